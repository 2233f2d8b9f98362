"""The predictions of a collection as a file: what `rs-timm predict --out` does."""
import argparse
import os
import signal
import threading
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence

from rs_timm.predict.batch import PictureSource, Work, predict_pictures
from rs_timm.predict.collection import Collection
from rs_timm.predict.rows import check_format, read_rows
from rs_timm.runtime.quantize import QuantisedFile
from rs_timm.runtime.session import Session

from .arguments import ModelSource, add_old_name, positive_int
from .serving import EngineOptions, engine_device, open_model, open_session, weights_digest
from .shell import PARTLY_FAILED, bar, report

__all__ = ['Writing', 'add_writing_arguments', 'write_predictions', 'writing']

_BATCH = 32
_DECODERS = 4


class Writing(NamedTuple):
    """A file of predictions, and how it is made."""

    out: str
    resolution: Optional[int]  # None: that of the session
    topk: int
    batch_size: int
    decoders: int
    ray: Optional[str]  # address; '': Ray finds it; None: in this process
    crop_pct: Optional[float]
    max_pixels: int


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """--out, and what is for it alone."""
    group = parser.add_argument_group('a file of predictions', 'at one resolution, resumable')
    group.add_argument('--out', metavar='FILE', help='write a row for each picture; .jsonl or .parquet')
    group.add_argument('--batch-size', type=positive_int, metavar='N', help=f'default: {_BATCH}')
    decoders = group.add_argument('--decoders', type=positive_int, metavar='N',
                                  help=f'threads that read and decode pictures (default: {_DECODERS})')
    add_old_name(group, decoders, '--workers')
    group.add_argument('--ray', metavar='ADDRESS', nargs='?', const='',
                       help="in many processes of a Ray cluster (default: RAY_ADDRESS's, else this machine), each of "
                            '--threads cores (default: 1)')


def writing(args: argparse.Namespace) -> Writing:
    """What the options say of the file of --out.

    Raises:
        ValueError: options that go with shown pictures alone.
    """
    if args.all or len(args.sizes or ()) > 1:
        raise ValueError('--out is for one resolution: make a file for each.')
    if args.ms is not None:
        raise ValueError('--ms measures anew each time, and a file is of one resolution: see which one fits with '
                         "'rs-timm bench --ms', and give --sizes.")
    return Writing(args.out, args.sizes[0] if args.sizes else None, args.topk, args.batch_size or _BATCH,
                   args.decoders or _DECODERS, args.ray, args.crop_pct, args.max_pixels)


def write_predictions(
        source: ModelSource,
        options: EngineOptions,
        pictures: PictureSource,
        folders: Sequence[str],
        how: Writing,
) -> int:
    """Predict what is missing, make the file, and return the exit status.

    Args:
        source: MODEL.
        options: of the session.
        pictures: what to predict.
        folders: what the names of the pictures are relative to; a file goes on with the same ones only.
        how: the file.
    """
    if how.ray is not None and not isinstance(pictures, Collection):
        raise ValueError('--ray reads pictures, folders and tar files, not through --reader: leave one of the two out.')
    if how.ray is not None and options.precision == 'int8' and not options.cache_dir:
        raise ValueError('--precision int8 with --ray needs --cache-dir: a folder that all machines share.')
    check_format(how.out)  # says what is wrong before a model is loaded
    model = open_model(source)
    digest = weights_digest(model)
    session = open_session(model, options, crop_pct=how.crop_pct)
    session.max_pixels = how.max_pixels
    if how.resolution:
        session.set_resolution(how.resolution)
    settings: Dict[str, Any] = dict(
        weights=digest, engine=session.engine_name, precision=session.precision, folders=list(folders))
    if how.crop_pct is not None:  # the model's own crops go with its weights
        settings['crop_pct'] = how.crop_pct
    if isinstance(session.source, QuantisedFile):  # pictures that it was calibrated with change the rows
        settings['calibrated'] = session.source.digest(session.resolution)
    work = Work(session.resolution, how.topk, how.batch_size, how.decoders)
    try:
        with ExitStack() as stack:
            predict = None
            if how.ray is not None and isinstance(pictures, Collection):
                predict = _on_ray(source, options, how, stack, session, pictures, work)
            stack.enter_context(_stoppable())  # after Ray, which has handlers of its own
            shown = stack.enter_context(bar(len(pictures.names), 'picture'))
            counts = predict_pictures(session, pictures, how.out, work, settings, shown, predict)
    except KeyboardInterrupt:
        report(f'stopped: what is done is in {how.out}.partial; the same command goes on')
        raise
    print(f'# {counts.predicted} predicted, {counts.failed} could not be, {counts.skipped} done before')
    rows = errors = 0
    for row in read_rows(how.out):
        rows, errors = rows + 1, errors + (row.error is not None)
    print(f'# {how.out}: {rows} rows', flush=True)
    if errors:
        report(f'{errors} of {rows} pictures could not be predicted; "error" in their rows says why')
    return PARTLY_FAILED if errors else 0


def _on_ray(
        source: ModelSource,
        options: EngineOptions,
        how: Writing,
        stack: ExitStack,
        session: Session,
        pictures: Collection,
        work: Work,
) -> Callable[[List[List[int]]], Any]:
    """What predicts batches on the cluster of --ray, which is connected to until `stack` ends."""
    from rs_timm.predict import on_ray

    if session.engine_name == 'torch':
        raise ValueError('--ray runs the exported network on an engine, not --engine torch: leave --engine out.')
    cores = options.threads or 1
    cache = {'cache_dir': os.path.abspath(options.cache_dir)} if options.cache_dir else {}
    settings = dict(engine=session.engine_name, precision=session.precision, threads=cores, max_pixels=how.max_pixels,
                    device=engine_device(options.device), crop_pct=how.crop_pct, **cache)
    whole = source.is_exported and not Path(f'{source.name}.data').exists()
    model = Path(source.name).read_bytes() if whole else session.graph.SerializeToString()
    stack.enter_context(on_ray.connected(how.ray or None))
    return partial(on_ray.predict_on_ray, partial(on_ray.open_session, model, settings), pictures, work, cores=cores)


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
