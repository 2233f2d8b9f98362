"""rs-timm bench: milliseconds and throughput at every resolution on this machine, and which one fits a budget."""
import argparse
import itertools
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

from rs_timm.runtime import LatencyTable, Session, choose_resolution, measure_latency
from rs_timm.runtime.engines import ENGINES, OLD_PRECISIONS, PRECISIONS
from rs_timm.runtime.policy.latency_table import IF_NONE, Limits
from rs_timm.runtime.session import MEMORY

from ._arguments import add_model_arguments, positive_int
from ._serving import CALIBRATION, check_exported, is_exported, pictures_below, require_torch
from ._shell import report

__all__ = ['register', 'run']

_PICTURES = 64  # are enough to vary the work of decoding


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('bench', help='latency and throughput per resolution, as a table for budgets')
    add_model_arguments(parser, also="; or a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch")
    parser.add_argument('--engine', nargs='+', choices=ENGINES, default=[None], help='default: the fastest installed')
    parser.add_argument('--precision', type=lambda name: OLD_PRECISIONS.get(name, name), choices=PRECISIONS,
                        default='float32', help='default: float32')
    parser.add_argument('--threads', type=positive_int, nargs='+', default=[None], metavar='N',
                        help="default: the engine's choice")
    parser.add_argument('--memory', choices=MEMORY, default='speed',
                        help="'speed' (default): a network for each resolution; 'shared': one copy of the weights")
    parser.add_argument('--calibration', metavar='DIR',
                        help=f'for int8: folder of pictures to calibrate with ({CALIBRATION} are taken)')
    parser.add_argument('--cache-dir', metavar='DIR', help='for int8: folder that keeps the calibrated networks')
    parser.add_argument('--sizes', type=positive_int, nargs='+', metavar='R',
                        help='sizes to measure in pixels, trained or not (default: the trained ones)')
    parser.add_argument('--batch', type=positive_int, nargs='+', default=[1], metavar='N',
                        help='pictures per call (default: 1)')
    parser.add_argument('--images', metavar='PATH', nargs='+',
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
    if _has_budget(args):
        Limits(args.ms, args.fps, args.madds)  # says what is wrong before anything is measured
    model = _model(args)
    images = _pictures(args.images)
    calibration = pictures_below(args.calibration, CALIBRATION) if args.calibration else None
    cases = list(itertools.product(args.engine, args.threads))
    for engine, threads in cases:
        session = Session(
            model, engine, args.precision, threads, memory=args.memory, calibration=calibration,
            cache_dir=args.cache_dir)
        table = _measure(session, args, images)
        print(_heading(table))
        print(table, flush=True)
        if _has_budget(args):
            table = _choose(session, table, args, images)
        if args.out:
            path = _file(args.out, table if len(cases) > 1 else None)
            table.save(path)
            print(f'# wrote {path}')
    return 0


def _model(args: argparse.Namespace) -> Any:
    """The path of an exported file, or the torch model that MODEL names."""
    if is_exported(args.model):
        check_exported(args)
        return args.model
    require_torch(args.model)
    from ._model import load_model  # not at the top: exported files need no torch

    return load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions)


def _pictures(paths: Optional[Sequence[str]]) -> List[str]:
    """The files, with folders replaced by pictures from all over them."""
    chosen: List[str] = []
    for path in paths or ():
        chosen += pictures_below(path, _PICTURES) if Path(path).is_dir() else [path]
    return chosen


def _measure(session: Session, args: argparse.Namespace, images: Sequence[str]) -> LatencyTable:
    return measure_latency(
        session,
        args.sizes,
        batches=args.batch,
        images=images,
        repeats=args.repeats,
        seconds=args.seconds,
        progress=True,
    )


def _heading(table: LatencyTable) -> str:
    machine, threads = table.machine, 'as many threads as the engine chooses' if table.threads is None else (
        f'{table.threads} threads')
    versions = ', '.join(f'{name} {version}' for name, version in table.versions.items())
    return f"# {table.model}, {versions}, {table.precision}, {threads}; {machine['cpu']}, {machine['cores']} cores"


def _has_budget(args: argparse.Namespace) -> bool:
    if args.step and (args.ms, args.fps, args.madds) == (None, None, None):
        raise ValueError('--step goes with a budget: add --ms, --fps or --madds.')
    return (args.ms, args.fps, args.madds) != (None, None, None)


def _choose(session: Session, table: LatencyTable, args: argparse.Namespace, images: Sequence[str]) -> LatencyTable:
    """Print the largest size that fits, for each batch; returns the table with what was measured on the way."""
    part = 'total' if images else 'network'
    for batch in args.batch:
        choice = choose_resolution(
            session, ms=args.ms, fps=args.fps, madds=args.madds, batch=batch, part=part, table=table, step=args.step,
            if_none=args.if_none, images=images, repeats=args.repeats)
        table = choice.table or table
        limits = Limits(args.ms, args.fps, args.madds, batch)
        print(f'# batch {batch}: {choice.resolution} px ({limits}{"" if part == "network" else ", preprocessing too"})')
        if choice.resolution not in session.resolutions:
            report(f'note: {choice.resolution} px is not a trained size; its BatchNorm set is interpolated')
    return table


def _file(out: str, table: Optional[LatencyTable]) -> Path:
    path = Path(out)
    if table is None:
        return path
    parts: Tuple[str, ...] = (path.stem, table.engine, *([f'{table.threads}threads'] if table.threads else []))
    return path.with_name('-'.join(parts) + (path.suffix or '.json'))
