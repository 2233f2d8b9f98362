"""rs-timm bench: milliseconds and throughput at every resolution on this machine, and which one fits a budget."""
import argparse
import itertools
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

from rs_timm.runtime import LatencyTable, Session, choose_resolution, measure_latency
from rs_timm.runtime.policy.latency_table import IF_NONE, Limits
from rs_timm.runtime.session import MEMORY

from .arguments import add_crop_pct, add_model_arguments, add_old_name, add_sizes, model_source, positive_int
from .serving import (
    add_engine_arguments,
    calibration_pictures,
    describe_versions,
    engine_device,
    on_device,
    open_model,
    pictures_below,
)
from .shell import report

__all__ = ['bench_arguments', 'run']

_PICTURES = 64  # are enough to vary the work of decoding


def bench_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm bench`."""
    add_model_arguments(parser, also="; or a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch")
    add_engine_arguments(parser, several=True)
    parser.add_argument('--memory', choices=MEMORY, default='speed',
                        help="'speed' (default): a network for each resolution; 'shared': one copy of the weights")
    add_sizes(parser, 'sizes to measure in pixels, trained or not (default: the trained ones)')
    add_crop_pct(parser)
    add_old_name(parser, parser.add_argument(
        '--batch-size', type=positive_int, nargs='+', default=[1], metavar='N',
        help='pictures per call (default: 1)'), '--batch')
    parser.add_argument('--images', metavar='PATH', nargs='+', default=(),
                        help=f'picture files, or folders ({_PICTURES} pictures of each): measure preprocessing too')
    parser.add_argument('--repeats', type=positive_int, default=200, metavar='N', help='calls each (default: 200)')
    parser.add_argument('--seconds', type=float, metavar='S', help='stop after this time, with 72 calls each or more')
    parser.add_argument('--out', metavar='FILE', help='write the table as JSON; several engines or numbers of threads '
                                                      'get a file each, with their names behind that of FILE')
    budget = parser.add_argument_group('budget', 'name the largest size whose p95 fits')
    budget.add_argument('--ms', type=float, help='milliseconds of a call')
    budget.add_argument('--fps', type=float, help='pictures per second')
    budget.add_argument('--madds', type=float, help='multiply-adds of a picture')
    budget.add_argument('--step', type=positive_int, metavar='N', help='try sizes N pixels apart, too')
    budget.add_argument('--if-none', choices=IF_NONE, default='error', help='where none fits (default: error)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    budget = {key: getattr(args, key) for key in ('ms', 'fps', 'madds') if getattr(args, key) is not None}
    if budget:
        Limits(**budget)  # says what is wrong before anything is measured
    elif args.step:
        raise ValueError('--step goes with a budget: add --ms, --fps or --madds.')
    model = open_model(model_source(args))
    images = [file for path in args.images
              for file in (pictures_below(path, _PICTURES) if Path(path).is_dir() else [path])]
    options: Dict[str, Any] = dict(
        memory=args.memory, calibration=calibration_pictures(args.calibration), cache_dir=args.cache_dir,
        crop_pct=args.crop_pct,
        **({'precision': args.precision} if args.precision else {}))
    cases = list(itertools.product(args.engine, args.threads))
    for engine, threads in cases:
        there, name, device = on_device(model, engine, engine_device(args.device))
        session = Session(there, name, threads=threads, device=device, **options)
        table = measure_latency(session, args.sizes, batches=args.batch_size, images=images, repeats=args.repeats,
                                seconds=args.seconds, progress=True)
        print(_heading(table))
        print(table, flush=True)
        if budget:
            choice = dict(step=args.step, if_none=args.if_none, images=images, repeats=args.repeats)
            table = _choose(session, table, args.batch_size, budget, choice)
        if args.out:
            path = _file(args.out, table if len(cases) > 1 else None)
            table.save(path)
            print(f'# wrote {path}')
    return 0


def _heading(table: LatencyTable) -> str:
    machine, threads = table.machine, 'as many threads as the engine chooses' if table.threads is None else (
        f'{table.threads} threads')
    return (f"# {table.model}, {describe_versions(table.versions)}, {table.precision}, {threads}; {machine['cpu']}, "
            f"{machine['cores']} cores")


def _choose(
        session: Session,
        table: LatencyTable,
        batches: Sequence[int],
        budget: Dict[str, Any],
        options: Dict[str, Any],
) -> LatencyTable:
    """Print the largest size that fits, for each batch; returns the table with what was measured on the way."""
    part = 'total' if options['images'] else 'network'
    for batch in batches:
        choice = choose_resolution(session, **budget, batch=batch, part=part, table=table, **options)
        table = choice.table or table
        too = '' if part == 'network' else ', preprocessing too'
        print(f'# batch {batch}: {choice.resolution} px ({Limits(**budget, batch=batch)}{too})')
        if choice.resolution not in session.resolutions:
            report(f'note: {choice.resolution} px is not a trained size; its BatchNorm set is interpolated')
    return table


def _file(out: str, table: Optional[LatencyTable]) -> Path:
    """The file of a table; several tables have engine and threads in their names."""
    path = Path(out)
    if table is None:
        return path
    threads = [f'{table.threads}threads'] if table.threads else []
    return path.with_name('-'.join((path.stem, table.engine, *threads)) + (path.suffix or '.json'))
