"""The predictions of a collection as a file: what `rs-timm predict --out` does."""
import argparse
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence

from rs_timm.predict.batch import PictureSource, Work, predict_pictures
from rs_timm.predict.collection import Collection
from rs_timm.predict.rows import check_format, read_rows
from rs_timm.runtime.quantize import QuantisedFile
from rs_timm.runtime.session import Session

from .arguments import model_source, positive_int
from .serving import engine_device, engine_options, open_model, open_session, weights_digest
from .shell import PARTLY_FAILED, bar, report

__all__ = ['add_writing_arguments', 'write_predictions']

_BATCH = 32
_WORKERS = 4


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """--out, and what is for it alone."""
    group = parser.add_argument_group('a file of predictions', 'at one resolution, resumable')
    group.add_argument('--out', metavar='FILE', help='write a row for each picture; .jsonl or .parquet')
    group.add_argument('--batch-size', type=positive_int, metavar='N', help=f'default: {_BATCH}')
    group.add_argument('--workers', type=positive_int, metavar='N', help=f'threads that read (default: {_WORKERS})')
    group.add_argument('--ray', metavar='ADDRESS', nargs='?', const='',
                       help="in many processes of a Ray cluster (default: RAY_ADDRESS's, else this machine), each of "
                            '--threads cores (default: 1)')


def write_predictions(args: argparse.Namespace, pictures: PictureSource, folders: Sequence[str]) -> int:
    """Predict what is missing, and make the file."""
    if args.all or len(args.sizes or ()) > 1:
        raise ValueError('--out is for one resolution: make a file for each.')
    if args.ms is not None:
        raise ValueError('--ms measures anew each time, and a file is of one resolution: see which one fits with '
                         "'rs-timm bench --ms', and give --sizes.")
    if args.ray is not None and not isinstance(pictures, Collection):
        raise ValueError('--ray reads pictures, folders and tar files, not through --reader: leave one of the two out.')
    if args.ray is not None and args.precision == 'int8' and not args.cache_dir:
        raise ValueError('--precision int8 with --ray needs --cache-dir: a folder that all machines share.')
    check_format(args.out)  # says what is wrong before a model is loaded
    model = open_model(model_source(args))
    digest = weights_digest(model)
    session = open_session(model, engine_options(args), crop_pct=args.crop_pct)
    session.max_pixels = args.max_pixels
    if args.sizes:
        session.set_resolution(args.sizes[0])
    settings: Dict[str, Any] = dict(
        weights=digest, engine=session.engine_name, precision=session.precision, folders=list(folders))
    if args.crop_pct is not None:  # the model's own crops go with its weights
        settings['crop_pct'] = args.crop_pct
    if isinstance(session.source, QuantisedFile):  # pictures that it was calibrated with change the rows
        settings['calibrated'] = session.source.digest(session.resolution)
    work = Work(session.resolution, args.topk, args.batch_size or _BATCH, args.workers or _WORKERS)
    try:
        with ExitStack() as stack:
            predict = None
            if args.ray is not None and isinstance(pictures, Collection):
                predict = _on_ray(args, stack, session, pictures, work)
            stack.enter_context(_stoppable())  # after Ray, which has handlers of its own
            shown = stack.enter_context(bar(len(pictures.names), 'picture'))
            counts = predict_pictures(session, pictures, args.out, work, settings, shown, predict)
    except KeyboardInterrupt:
        report(f'stopped: what is done is in {args.out}.partial; the same command goes on')
        raise
    print(f'# {counts.predicted} predicted, {counts.failed} could not be, {counts.skipped} done before')
    rows = errors = 0
    for row in read_rows(args.out):
        rows, errors = rows + 1, errors + (row.error is not None)
    print(f'# {args.out}: {rows} rows', flush=True)
    if errors:
        report(f'{errors} of {rows} pictures could not be predicted; "error" in their rows says why')
    return PARTLY_FAILED if errors else 0


def _on_ray(
        args: argparse.Namespace,
        stack: ExitStack,
        session: Session,
        pictures: Collection,
        work: Work,
) -> Callable[[List[List[int]]], Any]:
    """What predicts batches on the cluster of --ray, which is connected to until `stack` ends."""
    from rs_timm.predict import on_ray

    if session.engine_name == 'torch':
        raise ValueError('--ray runs the exported network on an engine, not --engine torch: leave --engine out.')
    cores = args.threads or 1
    cache = {'cache_dir': os.path.abspath(args.cache_dir)} if args.cache_dir else {}
    options = dict(engine=session.engine_name, precision=session.precision, threads=cores, max_pixels=args.max_pixels,
                   device=engine_device(args.device), crop_pct=args.crop_pct, **cache)
    whole = model_source(args).is_exported and not Path(f'{args.model}.data').exists()
    model = Path(args.model).read_bytes() if whole else session.graph.SerializeToString()
    stack.enter_context(on_ray.connected(args.ray or None))
    return partial(on_ray.predict_on_ray, partial(on_ray.open_session, model, options), pictures, work, cores=cores)


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which batch systems send, interrupts as Ctrl-C does; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere python has no signals
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
