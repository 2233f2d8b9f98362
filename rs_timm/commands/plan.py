"""rs-timm plan: how fast and how accurate each engine, precision and size is on this machine, as a plan for budgets."""
import argparse
import os
import random
import re
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

from rs_timm.format.info import ModelInfo
from rs_timm.labels import outputs_by_name
from rs_timm.pictures import ImageError
from rs_timm.predict.collection import Collection, open_collection
from rs_timm.runtime import Plan, make_plan, read_info
from rs_timm.runtime.engines import PRECISIONS
from rs_timm.runtime.policy.latency_table import IF_NONE, Limits
from rs_timm.runtime.policy.plan import PlanPoint
from rs_timm.runtime.policy.plan_plot import plot_plan
from rs_timm.runtime.policy.planner import FILE_ENGINES

from .arguments import MODEL_HELP, ModelSource, add_sizes, positive_int, precision_name
from .serving import add_device, calibration_pictures, describe_versions, engine_device
from .shell import bar, report, report_skipped

__all__ = ['plan_arguments', 'run']

_PICTURES = 1000
Picture = Union[str, bytes]


class _Files(NamedTuple):
    """What a plan consists of."""

    plan: Path
    plot: Path
    log: Path  # grows while it is measured
    networks: Path  # the int8 ones

    @classmethod
    def of(cls, out: str) -> '_Files':
        """The files of --out, a .json file or a folder."""
        path = Path(out) if out.endswith('.json') else Path(out, 'plan.json')
        if path.is_dir() or (path.parent.exists() and not path.parent.is_dir()):
            raise ValueError(f'--out {out}: name a .json file, or a folder.')
        return cls(path, path.with_suffix('.png'), path.with_suffix('.jsonl'), path.with_name(f'{path.stem}_networks'))


def plan_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm plan`."""
    parser.description = (
        'Measure milliseconds and accuracy of every engine, precision and size on this machine, and write them as a '
        'plan, from which Session.from_plan chooses within a budget. What was stopped goes on with the same command.')
    parser.add_argument('models', metavar='MODEL', nargs='+',
                        help=f"a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch; or {MODEL_HELP}, "
                             'which is exported first')
    parser.add_argument('--data', required=True, metavar='DIR',
                        help='pictures in DIR/SPLIT/CLASS, DIR/CLASS, or without classes; tar files, too')
    parser.add_argument('--split', default='val', help='of the data: a sub-folder, if there is one (default: val)')
    parser.add_argument('--class-map', metavar='FILE',
                        help="the classes' folders, one a line in the order of the model's outputs (default: by the "
                             "names of the model's classes; where that fails there are no labels)")
    parser.add_argument('--pictures', type=positive_int, default=_PICTURES, metavar='N',
                        help=f'take so many, drawn at random (default: {_PICTURES})')
    parser.add_argument('--skip-corrupt', action='store_true', help='leave out pictures that cannot be read')
    parser.add_argument('--out', required=True, metavar='FILE.json|DIR',
                        help='where the plan goes, and beside it a plot and what was measured')
    parser.add_argument('--again', action='store_true', help='measure anew what an earlier run left there')
    what = parser.add_argument_group('what is measured')
    what.add_argument('--engines', choices=FILE_ENGINES, nargs='+', metavar='E',
                      help=f'of {", ".join(FILE_ENGINES)} (default: those that are installed)')
    what.add_argument('--precisions', type=precision_name, choices=PRECISIONS, nargs='+', metavar='P',
                      help=f'of {", ".join(PRECISIONS)} (default: all that can be had)')
    add_sizes(what, 'sizes in pixels, trained or not (default: the trained ones)')
    what.add_argument('--cascades', action='store_true', help='fit cascades of sizes, and measure them too')
    what.add_argument('--tolerance', type=float, default=1., metavar='T',
                      help='points of accuracy that a slower one must be ahead, or it is not measured to the end, once '
                           'that is beyond doubt (default: 1)')
    what.add_argument('--exhaustive', action='store_true', help='measure all to the end')
    what.add_argument('--calls', type=positive_int, default=200, metavar='N',
                      help='that are timed of each, at least (default: 200)')
    what.add_argument('--threads', type=positive_int, metavar='N', help="of a network (default: the engine's choice)")
    add_device(what)
    what.add_argument('--calibration', metavar='DIR',
                      help='for int8: folder of pictures to calibrate with (default: DATA/train, or else the data)')
    budget = parser.add_argument_group('budget', 'name the most accurate within it')
    budget.add_argument('--ms', type=float, help='milliseconds of a call, at its p95')
    budget.add_argument('--if-none', choices=IF_NONE, default='error', help='where none fits (default: error)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.ms is not None:
        Limits(ms=args.ms)  # says what is wrong before anything is measured
    files = _Files.of(args.out)
    files.plan.parent.mkdir(parents=True, exist_ok=True)
    if args.again:
        files.log.unlink(missing_ok=True)
    models = [_exported(name, files.plan.parent, args.again) for name in args.models]
    folder = os.path.join(args.data, args.split) if os.path.isdir(os.path.join(args.data, args.split)) else args.data
    collection = open_collection([folder])
    drawn = random.Random(0).sample(range(len(collection.names)), min(args.pictures, len(collection.names)))
    targets, labels = _targets([collection.names[position] for position in drawn], read_info(models[0]), args.class_map)
    print(f'# {len(drawn)} pictures of {folder}; {labels}', flush=True)
    calibration: Optional[List[str]] = None
    if 'int8' in (args.precisions or PRECISIONS):
        calibration = calibration_pictures(args.calibration) or _calibration(args.data, folder)
    damaged: Dict[str, None] = {}  # each once

    def skip(error: ImageError) -> None:
        damaged[str(error)] = None

    try:
        plan = make_plan(
            models,
            [_picture(collection, position) for position in drawn],
            targets,
            engines=args.engines,
            precisions=args.precisions,
            sizes=args.sizes,
            cascades=args.cascades,
            threads=args.threads,
            device=engine_device(args.device),
            calibration=calibration,
            networks=files.networks,
            tolerance=None if args.exhaustive else args.tolerance,
            calls=args.calls,
            log=files.log,
            note=lambda text: report(f'note: {text}'),
            skip=skip if args.skip_corrupt else None,
            progress=True,
        )
    except KeyboardInterrupt:
        report(f'stopped: what is done is in {files.log}; the same command goes on')
        raise
    report_skipped(damaged)
    plan.save(files.plan)
    return _show(plan, files, args.ms, args.if_none)


def _show(plan: Plan, files: _Files, ms: Optional[float], if_none: str) -> int:
    threads = "the engine's choice" if plan.threads is None else plan.threads
    print(f"# {describe_versions(plan.versions)}, threads: {threads}; {plan.machine['cpu']}, "
          f"{plan.machine['cores']} cores" + (f', device {plan.device}' if plan.device else ''))
    if plan.reference:
        print(f'# accuracy is agreement with {plan.reference}')
    print(plan)
    print(f'# * the front by p95; budgets are compared with "at most", the upper end of its 95 % interval'
          f'{"; + by the mean alone" * any(point.cascade for point in plan.points)}')
    print(f'# measured in {plan.seconds:.0f} s; wrote {files.plan}')
    chosen: Optional[PlanPoint] = None
    try:
        if ms is not None:
            chosen = plan.choose(ms=ms, if_none=if_none)
            print(f'# {plan.label(chosen)} ({Limits(ms=ms)}): {chosen.accuracy:.2f} %')
    finally:  # the plot is of use where nothing fits, too
        try:
            plot_plan(plan, files.plot, chosen, ms)
            print(f'# wrote {files.plot}', flush=True)
        except ImportError as error:
            report(f'note: no plot: {error}')
    return 0


def _exported(name: str, folder: Path, again: bool) -> str:
    """The exported file of MODEL, which is made beside the plan if it is not one."""
    source = ModelSource(name)
    if source.is_exported:
        return source.path()
    file = folder / (re.sub(r'[^A-Za-z0-9._-]+', '_', name) + '.onnx')
    if again or not file.exists():
        from rs_timm.export import export_onnx  # needs torch

        model = source.load()
        with bar(None, 'file', 'export'):
            export_onnx(model, file)
        print(f'# exported {name} to {file}', flush=True)
    return str(file)


def _picture(collection: Collection, position: int) -> Picture:
    """A path, or the bytes of a picture in a tar file."""
    place = collection.places[position]
    return place.path if place.size is None else collection.read(position)


def _calibration(data: str, folder: str) -> Optional[List[str]]:
    """Pictures for int8 from DATA/train, or else the data; None, so that there is no int8, if they are in tar files."""
    train = os.path.join(data, 'train')
    try:
        return calibration_pictures(train if os.path.isdir(train) else folder)
    except ValueError as error:
        report(f'note: no pictures to calibrate int8 with: {error}')
        return None


def _targets(names: Sequence[str], info: ModelInfo, class_map: Optional[str]) -> Tuple[Optional[List[int]], str]:
    """The class of each picture by its folder, or None; and how that was found, in words.

    Raises:
        ValueError: a class map that lacks a folder.
    """
    folders = [name.split('/')[0] if '/' in name else '' for name in names]
    distinct = sorted(set(folders))
    if class_map is not None:
        lines = Path(class_map).read_text(encoding='utf-8').splitlines()
        numbers: Dict[str, int] = {line.strip(): output for output, line in enumerate(lines) if line.strip()}
        missing = [folder for folder in distinct if folder not in numbers]
        if missing:
            raise ValueError(f'{class_map} has no line for the folder {missing[0]!r}.')
        return [numbers[folder] for folder in folders], f'classes as in {class_map}'
    labels = info.label_names or ()
    descriptions = [(info.label_descriptions or {}).get(label, label) for label in labels]
    by_name = outputs_by_name(distinct, [labels, descriptions]) if labels else None
    if by_name is not None:
        return [by_name[folder] for folder in folders], f'{len(distinct)} classes by name'
    return None, ("no labels, as the folders are not called like the model's classes (--class-map says which is "
                  'which): accuracy is agreement')

