"""Start, resume and list the runs behind the paper's tables and figures.

    python -m benchmarks.run --list [--out runs/paper]                       # what there is, and what is done
    python -m benchmarks.run rs_net --data DIR --out runs/paper [--seed 1]   # one run, or one group such as table2
    python -m benchmarks.run --all --data DIR --out runs/paper               # all of small and ladder, in order

A run is trained with `rs_timm.training.train` (checkpoints in --out), measured, and its rows go to
benchmarks/results/paper_*.csv; what each picture was taken for goes to --out. Several runs, a group and --all skip what
is done and resume what is not; SIGTERM saves and stops (status 143), and the same command goes on, also after a kill.
`--debug-twin` runs the same path in seconds, and its rows go to OUT/results instead.
"""
import argparse
import json
import logging
import signal
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn

from benchmarks.aside import link_pictures, link_scenes
from benchmarks.environment import RESULTS, commit, describe
from benchmarks.measure import Measured, Pictures, file_rows, int8_rows, measure, measure_masks
from benchmarks.presets import PRESETS
from benchmarks.recalibration import write_start
from benchmarks.runs import GROUPS, Job, jobs, runs, settings
from benchmarks.store import ACCURACY, FILES, RUNS, TABLES
from benchmarks.trials import tried
from rs_timm import is_switchable, recalibrate
from rs_timm.atomic import write_bytes
from rs_timm.hub import save_pretrained
from rs_timm.training import NonFiniteError, Options, Recipe, keep_freed_memory, train
from rs_timm.training.build import build_model
from rs_timm.training.tasks import Loaders

_logger = logging.getLogger('benchmarks.run')

DONE, OTHER_SETTINGS = 'done', 'done with other settings'
TRIES = 5  # for a run that meets a loss that is no number: it goes on from its last checkpoint
QUEUED = ('small', 'ladder')


def recipe_of(job: Job, args: argparse.Namespace) -> Recipe:
    """The settings of a job, as the command line changes them."""
    recipe = job.run.recipe(job.preset, job.seed, args.epochs, args.debug_twin)
    if job.preset.name == 'ladder':
        return replace(recipe, init=str(folder_of(job, args) / 'start.pth'))
    if job.run.start:
        start = Job(job.preset, runs(job.preset)[job.run.start], job.seed)
        return replace(recipe, init=str(folder_of(start, args) / 'model/model.safetensors'))
    return recipe


def folder_of(job: Job, args: argparse.Namespace) -> Path:
    return Path(args.out) / str(job)


def data_of(job: Job, args: argparse.Namespace) -> str:
    """The folder of the pictures; where some for training are kept aside, one of links to these."""
    if not job.preset.aside:
        return str(args.data)
    folder = Path(args.out) / f'{job.preset.name}-pictures'
    if job.preset.recipe.task == 'segmentation':
        return str(link_scenes(Path(args.data), folder, job.preset.recipe, job.preset.aside))
    return str(link_pictures(Path(args.data), folder, job.preset.aside))


def results_of(args: argparse.Namespace) -> Path:
    """Where the rows go; those of a debug twin never beside real ones."""
    return Path(args.out) / 'results' if args.debug_twin else Path(args.results)


def state_of(job: Job, args: argparse.Namespace) -> str:
    """'done', 'done with other settings', how far it is, or 'waiting'."""
    for row in RUNS.read(results_of(args), **job.key):
        return DONE if row['settings'] == settings(recipe_of(job, args)) else OTHER_SETTINGS
    folder = folder_of(job, args)
    if not (folder / 'last.pth').is_file():
        return 'waiting'
    log = folder / 'log.csv'
    epochs = log.read_text().splitlines()[-1].split(',')[0] if log.is_file() else '0'
    return f'{epochs} of {recipe_of(job, args).epochs} epochs'


def execute(job: Job, args: argparse.Namespace, resume: bool = True) -> None:
    """Train, unless that is done, measure, and write the rows.

    Args:
        job: the run.
        args: of the command line.
        resume: go on from the checkpoint, if there is one.
    """
    recipe, folder = recipe_of(job, args), folder_of(job, args)
    folder.mkdir(parents=True, exist_ok=True)
    options = Options(device=args.device, workers=args.workers, progress=sys.stderr.isatty())
    device = torch.device(args.device if args.device != 'auto' else 'cuda' if torch.cuda.is_available() else 'cpu')
    note = folder / 'began.json'  # commit, device and versions of the start, wherever it goes on or is measured again
    if not note.is_file():
        write_bytes(note, json.dumps(dict(commit=commit(), **describe(device.type, recipe.precision))).encode())
    began: Dict[str, Any] = json.loads(note.read_text())
    if job.preset.name == 'ladder' and not Path(recipe.init).is_file():
        write_start(Path(recipe.init), Loaders(data_of(job, args), recipe, workers=0).class_names)
    if job.run.start and not Path(recipe.init).is_file():
        raise ValueError(f'{job} goes on from the run {job.run.start!r}, which is not there: make it first, with the '
                         f'same --out.')
    if job.run.trains:
        with tried(job.run.trial):
            trained = train(job.model, data_of(job, args), recipe, str(folder), resume, options)
        model, epochs = trained.model, trained.rows
        if is_switchable(model):
            save_pretrained(model, folder / 'model', model_config=dict(label_names=trained.class_names))
    else:
        started = time.monotonic()
        classes = len(Loaders(data_of(job, args), recipe, workers=0).class_names)
        model, epochs = build_model(job.model, recipe, classes).eval().to(device), []
        if job.run.prior_images is not None:
            crops = Pictures(data_of(job, args), recipe, device, args.workers).training_crops
            recalibrate(model, lambda r: crops((r,), 'train'), prior_images=job.run.prior_images)
            began['train_seconds'] = round(time.monotonic() - started, 1)
    measured = _measured(job, args, recipe, model, epochs, device)
    for table in TABLES:  # the table of runs, which says that all is there, comes last
        if table is not RUNS:
            table.put(results_of(args), job.key, measured.get(table, []))
    RUNS.put(results_of(args), job.key, [dict(row, **began) for row in measured[RUNS]])


def _measured(
        job: Job,
        args: argparse.Namespace,
        recipe: Recipe,
        model: nn.Module,
        epochs: Sequence[Mapping[str, Any]],
        device: torch.device,
) -> Measured:
    preset = job.preset.recipe.debug() if args.debug_twin else job.preset.recipe
    if recipe.task == 'segmentation':
        return measure_masks(job, recipe, model, data_of(job, args), preset.resolutions, epochs, device, args.workers)
    dense = [size // 4 + 8 for size in job.preset.dense] if args.debug_twin else job.preset.dense
    pictures = Pictures(data_of(job, args), recipe, device, args.workers)
    measured, said = measure(job, recipe, model, pictures, dense, preset.resolutions, epochs)
    if job.run.group == 'table3':
        measured[FILES] = file_rows(model)
    if job.run.int8:
        names = Loaders(data_of(job, args), recipe, workers=0).class_names
        measured[ACCURACY] += int8_rows(model, Path(data_of(job, args)), recipe.resolutions, names)
    write_bytes(folder_of(job, args) / 'predictions.npz', said.to_bytes())
    return measured


def run_queue(todo: Sequence[Job], args: argparse.Namespace) -> List[Job]:
    """Execute what is not done; returns the jobs that failed, after which it went on with the next one."""
    failed = []
    for number, job in enumerate(todo, 1):
        if state_of(job, args) == DONE and not args.again:
            continue
        _logger.info('%s (%d of %d): starts', job, number, len(todo))
        started = time.monotonic()
        for attempt in range(1, TRIES + 1):
            try:
                execute(job, args)
                _logger.info('%s: done after %.0f s', job, time.monotonic() - started)
                break
            except NonFiniteError as error:
                _logger.warning('%s: %s (try %d of %d)', job, error, attempt, TRIES)
            except Exception:  # the other runs do not depend on this one
                _logger.exception('%s: failed', job)
                failed.append(job)
                break
        else:
            failed.append(job)
    return failed


def _stop(number: int, frame: Optional[FrameType]) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Two queues in one folder would write the same checkpoints. The lock ends with the process, however that ends."""
    import fcntl  # not on Windows, where the rest of this module can be imported

    out.mkdir(parents=True, exist_ok=True)
    with (out / 'queue.lock').open('w') as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # unlike flock not shared with the loaders' processes
        except OSError as error:
            raise ValueError(f'{out} is in use by another benchmarks.run: wait for it, or name another --out.'
                             ) from error
        yield


def parse(arguments: Optional[Sequence[str]] = None) -> Tuple[argparse.ArgumentParser, argparse.Namespace]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('names', nargs='*', metavar='NAME', help=f'a run of --list, or a group: {", ".join(GROUPS)}')
    parser.add_argument('--all', action='store_true', help='all runs of the preset, in order')
    parser.add_argument('--list', action='store_true', help='show the runs and their state')
    parser.add_argument('--data', help='folder with train/CLASS/* and val/CLASS/*, or train/images and train/masks')
    parser.add_argument('--out', default='runs/paper', help='checkpoints and predictions (default: %(default)s)')
    parser.add_argument('--preset', choices=list(PRESETS), help=f'default: {" and ".join(QUEUED)}')
    parser.add_argument('--seed', type=int, help='in place of the planned seeds')
    parser.add_argument('--epochs', type=int, help="in place of the preset's; tables leave such rows out")
    parser.add_argument('--resume', action='store_true', help='go on with a single run that was begun')
    parser.add_argument('--again', action='store_true', help='measure finished runs again')
    parser.add_argument('--debug-twin', action='store_true', help='the same path in seconds; rows go to OUT/results')
    parser.add_argument('--results', default=str(RESULTS), help='folder of the CSV files (default: %(default)s)')
    parser.add_argument('--device', default='auto', help='cpu, cuda or auto')
    parser.add_argument('--workers', type=int, default=2, help='processes that read pictures (default: 2)')
    return parser, parser.parse_args(arguments)


def main(arguments: Optional[Sequence[str]] = None) -> int:
    parser, args = parse(arguments)
    try:
        todo = jobs([args.preset] if args.preset else QUEUED, args.names, args.seed)
    except ValueError as error:
        parser.error(str(error))
    if args.list:
        for job in todo:
            print(f'{str(job):45} {job.run.group:9} {state_of(job, args)}')
        return 0
    if not (args.names or args.all):
        parser.error('name a run or a group, or use --all or --list')
    if not args.data:
        parser.error('--data is needed: a folder with train/CLASS/* and val/CLASS/*, or with masks for camvid')
    try:
        with _alone(Path(args.out)):
            return _run(todo, args)
    except (ValueError, NonFiniteError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def _run(todo: Sequence[Job], args: argparse.Namespace) -> int:
    handlers = [logging.StreamHandler(), logging.FileHandler(Path(args.out) / 'queue.log')]
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', handlers=handlers, force=True)
    if args.device == 'cpu' or not torch.cuda.is_available():
        keep_freed_memory()  # as `rs-timm train` does
    before = signal.signal(signal.SIGTERM, _stop)  # within training, a signal saves first
    try:
        if len(todo) == 1 and not (args.all or args.again):
            if state_of(todo[0], args) == DONE:
                raise ValueError(f'{todo[0]} is done: --again measures it again.')
            execute(todo[0], args, args.resume)
            return 0
        failed = run_queue(todo, args)
    finally:
        signal.signal(signal.SIGTERM, before)
    for job in failed:
        _logger.error('%s failed: see above', job)
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
