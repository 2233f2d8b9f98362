"""The predictions of a collection as a file: what `rs-timm predict --out` does."""
import argparse
import os
import signal
import threading
from contextlib import contextmanager
from typing import Any, Callable, Dict, Iterator, Sequence

from rs_timm.predict.batch import Counts, PictureSource, Share, Work, predict_pictures
from rs_timm.predict.output import Output
from rs_timm.predict.rows import format_of
from rs_timm.runtime.quantize import QuantisedFile
from rs_timm.runtime.session import Session

from ._arguments import positive_int
from ._serving import open_session
from ._shell import PARTLY_FAILED, report

__all__ = ['add_writing_arguments', 'write_predictions']

_BATCH = 32
_WORKERS = 4


def add_writing_arguments(parser: argparse.ArgumentParser) -> None:
    """--out, and what is for it alone."""
    group = parser.add_argument_group('a file of predictions', 'at one resolution, resumable')
    group.add_argument('--out', metavar='FILE', help='write a row for each picture; .jsonl or .parquet')
    group.add_argument('--batch-size', type=positive_int, metavar='N', help=f'default: {_BATCH}')
    group.add_argument('--workers', type=positive_int, metavar='N', help=f'threads that read (default: {_WORKERS})')


def write_predictions(args: argparse.Namespace, pictures: PictureSource, folders: Sequence[str]) -> int:
    """Predict what is missing of this process's share, and make the file if nothing is missing then."""
    if args.all or len(args.resolution or ()) > 1:
        raise ValueError('--out is for one resolution: make a file for each.')
    if args.ms is not None:
        raise ValueError('--ms measures anew each time, and a file is of one resolution: see which one fits with '
                         "'rs-timm bench --ms', and give --resolution.")
    format_of(args.out)  # says what is wrong before a model is loaded
    share = Share.of_environment()
    session, digest = open_session(args)
    if args.resolution:
        session.set_resolution(args.resolution[0])
    settings: Dict[str, Any] = dict(
        model=session.info.name, weights=digest, engine=session.engine_name, precision=session.precision,
        resolution=session.resolution, topk=args.topk, folders=list(folders))
    if isinstance(session.source, QuantisedFile):  # pictures that it was calibrated with change the rows
        settings['calibrated'] = session.source.digest(session.resolution)
    output = Output(args.out, pictures.names, settings)
    work = Work(session.resolution, args.topk, args.batch_size or _BATCH, args.workers or _WORKERS)
    try:
        with _stoppable(), _bar(share) as progress:
            counts = predict_pictures(_Prepared(session, work), pictures, output, work, share, progress)
            complete = output.merge()
    except KeyboardInterrupt:
        report(f'stopped: what is done is in {output.parts}; the same command goes on')
        raise
    return _conclude(output, counts, complete, share)


def _conclude(output: Output, counts: Counts, complete: bool, share: Share) -> int:
    who = f'process {share.rank} of {share.world_size}: ' if share.world_size > 1 else ''
    print(f'# {who}{counts.predicted} predicted, {counts.failed} could not be read, {counts.skipped} done before')
    if not complete:
        missing = len(output.positions.keys() - output.done())
        report(f'{who}{missing} of {len(output.positions)} pictures are missing yet: other processes are at work on '
               'them; if none is, the same command goes on')
        return 0
    rows = errors = 0
    for row in format_of(output.path).read(output.path):  # not its parts: others may be merging some
        rows, errors = rows + 1, errors + (row.error is not None)
    print(f'# {output.path}: {rows} rows', flush=True)
    if errors:
        report(f'{errors} of {rows} pictures could not be read; "error" in their rows says why')
    return PARTLY_FAILED if errors and share.world_size == 1 else 0  # torchrun would stop the others


class _Prepared:
    """A session that is compiled for the batches of a work when the first one comes."""

    def __init__(self, session: Session, work: Work) -> None:
        self.info, self.preprocess = session.info, session.preprocess
        self._session, self._work, self._is_prepared = session, work, False

    def run(self, x: Any) -> Any:
        if not self._is_prepared:
            self._session.prepare((self._work.resolution,), self._work.batch_size)
            self._is_prepared = True
        return self._session.run(x)


@contextmanager
def _bar(share: Share) -> Iterator[Callable[[Counts, int], None]]:
    """A bar where the standard error is a terminal: one a machine, since all shares are alike."""
    try:
        from tqdm import tqdm
    except ImportError:  # comes with torch and timm; without them there may be none
        yield lambda counts, total: None
        return
    hidden = True if int(os.environ.get('LOCAL_RANK', 0)) else None
    whose = f'process {share.rank} of {share.world_size}' if share.world_size > 1 else None
    with tqdm(desc=whose, unit='picture', leave=False, disable=hidden) as bar:
        def show(counts: Counts, total: int) -> None:
            if bar.total is None:
                bar.reset(total)
                bar.initial = counts.skipped
            bar.update(sum(counts) - bar.n)

        yield show


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which torchrun and batch systems send, interrupts as Ctrl-C does, so that what is done is kept.

    Where both come together, as from torchrun in a terminal, the second must not interrupt the writing.
    """
    if threading.current_thread() is not threading.main_thread():  # elsewhere python has no signals
        yield
        return

    def stop(number: int, frame: Any) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
