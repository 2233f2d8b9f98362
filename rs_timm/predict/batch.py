"""All pictures of a collection through a session into a file of rows: read ahead, in fixed batches, resumable."""
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from multiprocessing.pool import AsyncResult, ThreadPool
from os import PathLike
from typing import Any, Callable, Iterable, Iterator, List, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

from rs_timm.pictures import ImageError
from rs_timm.runtime.session import NotFiniteError, Session

from .output import Output
from .rows import Row

__all__ = [
    'Counts', 'PictureSource', 'Work', 'fault', 'most_probable', 'predict_batches', 'predict_pictures']

Loaded = Any  # a ready picture [1, C, r, r], or what is wrong with it


class PictureSource(Protocol):
    """A collection of encoded pictures."""

    @property
    def names(self) -> Sequence[str]:
        """Each another one, in a fixed order."""

    def read(self, position: int) -> bytes:
        """The file of a picture, from any thread. Raises ImageError if there is none."""


@dataclass(frozen=True)
class Work:
    """What is asked of the network.

    Args:
        resolution: pixels.
        topk: classes a picture.
        batch_size: pictures that go through the network together.
        threads: that read and decode.

    Raises:
        ValueError: a number that is not positive.
    """

    resolution: int
    topk: int = 5
    batch_size: int = 32
    threads: int = 4

    def __post_init__(self) -> None:
        for name in ('resolution', 'topk', 'batch_size', 'threads'):
            if getattr(self, name) < 1:
                raise ValueError(f'{name} {getattr(self, name)}: it must be positive.')


class Counts(NamedTuple):
    """Pictures that a run has done."""

    predicted: int = 0
    failed: int = 0  # their rows say why
    skipped: int = 0  # done before


def predict_pictures(
        session: Session,
        pictures: PictureSource,
        path: 'str | PathLike[str]',
        work: Work,
        settings: Optional[Mapping[str, Any]] = None,
        progress: Callable[[int], Any] = lambda count: None,
        predict: Optional[Callable[[List[List[int]]], Iterable[List[Row]]]] = None,
) -> Counts:
    """Write a file with a row for each picture; what an earlier call was stopped at goes on.

    Batches hold the same pictures however often a run was stopped, so that the rows are the same.

    Args:
        session: a `Session` of a classifier.
        pictures: the collection.
        path: the file; .jsonl or .parquet.
        work: what is asked of the network.
        settings: what else decides the rows, such as a digest of the weights: a file of other ones is refused.
        progress: called with how many further pictures are done: those of earlier calls first, then those of a batch.
        predict: makes rows of batches of positions, in whatever order, in place of this process: `predict_on_ray`.

    Raises:
        ImportError: the format needs a package that is not installed.
        ValueError: a network that is no classifier; a file that another process writes, or other settings have made.
        OSError: the file cannot be written; what was written before stays.
    """
    if session.info.task != 'classification' or not session.info.num_classes:
        raise ValueError(f'{session.info.name} is no classifier: there are no classes to predict.')
    settings = dict(model=session.info.name, resolution=work.resolution, topk=work.topk, **(settings or {}))
    with Output(path, pictures.names, settings) as output:
        missing = list(_batches(pictures.names, output.done, work.batch_size))
        counts = Counts(skipped=len(pictures.names) - sum(map(len, missing)))
        progress(counts.skipped)
        for rows in (predict or partial(predict_batches, session, pictures, work))(missing) if missing else ():
            output.append(rows)
            failed = sum(row.error is not None for row in rows)
            counts = Counts(counts.predicted + len(rows) - failed, counts.failed + failed, counts.skipped)
            progress(len(rows))
        output.finish()
    return counts


def _batches(names: Sequence[str], done: Iterable[str], batch_size: int) -> Iterator[List[int]]:
    """Positions that go together: those of each `batch_size` pictures of the whole collection.

    >>> list(_batches('abcdefg', 'acde', 2))
    [[1], [5], [6]]
    """
    missing = (position for position, name in enumerate(names) if name not in done)
    for _, together in groupby(missing, lambda position: position // batch_size):
        yield list(together)


def predict_batches(
        session: Session,
        pictures: PictureSource,
        work: Work,
        batches: Iterable[Sequence[int]],
) -> Iterator[List[Row]]:
    """Rows of batches of positions; while one goes through the network, the next one is read."""
    session.prepare((work.resolution,), work.batch_size)
    with ThreadPool(work.threads) as pool:  # of daemons: a disk that does not answer keeps no process from ending
        ahead: List[Tuple[str, AsyncResult[Loaded]]] = []
        for batch in batches:
            current, ahead = ahead, [
                (pictures.names[position], pool.apply_async(_load, (session, pictures, work, position)))
                for position in batch]
            if current:
                yield _predict(session, work, [(name, result.get()) for name, result in current])
        if ahead:
            yield _predict(session, work, [(name, result.get()) for name, result in ahead])


def _load(session: Session, pictures: PictureSource, work: Work, position: int) -> Loaded:
    try:
        return session.preprocess(pictures.read(position), work.resolution)
    except ImageError as error:
        return fault(error, pictures.names[position])
    except MemoryError:
        return 'there is not enough memory to read it'


def fault(error: ImageError, name: str) -> str:
    """What is wrong with a picture, without its name."""
    return str(error).removeprefix('picture 0: ').removeprefix(f'{name}: ')


def _predict(session: Session, work: Work, loaded: List[Tuple[str, Loaded]]) -> List[Row]:
    ready = [x for _, x in loaded if isinstance(x, np.ndarray)]
    try:
        logits = iter(session.run(np.concatenate(ready)) if ready else ())
    except NotFiniteError as error:  # the rows of those pictures say so
        logits = iter(error.logits)
    rows = []
    for name, x in loaded:
        if isinstance(x, str):
            rows.append(Row(name, work.resolution, error=x))
            continue
        try:
            classes, p = zip(*most_probable(next(logits), work.topk))
        except ValueError as error:
            rows.append(Row(name, work.resolution, error=str(error)))
            continue
        labels = tuple(map(session.info.label, classes))
        rows.append(Row(name, work.resolution, classes, labels, tuple(round(share, 6) for share in p)))
    return rows


def most_probable(logits: np.ndarray, count: int) -> List[Tuple[int, float]]:
    """The classes with the largest probabilities, and these; of equal ones, the first. ValueError: they are not finite.

    >>> most_probable(np.array([0., 0., -np.log(2.)]), 2)
    [(0, 0.4), (1, 0.4)]
    """
    z = logits.astype(np.float64)
    with np.errstate(invalid='ignore'):
        p = np.exp(z - z.max())
        p /= p.sum()
    if not np.isfinite(p).all():
        raise ValueError('the network answers with numbers that are not finite')
    return [(int(index), float(p[index])) for index in np.argsort(-p, kind='stable')[:count]]
