"""All pictures of a collection through a session: read ahead, in fixed batches, shared among processes, resumable."""
import os
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Callable, Iterable, Iterator, List, Mapping, NamedTuple, Protocol, Sequence, Tuple, Union

import numpy as np

from rs_timm.format.info import ModelInfo
from rs_timm.pictures import ImageError

from .output import Output
from .rows import Prediction

Loaded = Tuple[str, Union[np.ndarray, str]]  # name, and the ready picture [1, C, r, r] or what is wrong with it

__all__ = ['Counts', 'PictureSource', 'Share', 'Work', 'fault', 'predict_pictures']

_PART = 1024  # pictures that a kill may cost a process, and that processes share out at a time
_PARTS_EACH = 8  # of a small collection, so that no process is left without work


class PictureSource(Protocol):
    """A collection of encoded pictures."""

    @property
    def names(self) -> Sequence[str]:
        """Each another one, in a fixed order."""

    def read(self, position: int) -> bytes:
        """The file of a picture, from any thread. Raises ImageError if there is none."""


class Predictor(Protocol):
    """What is needed of a `Session`."""

    @property
    def info(self) -> ModelInfo:
        """What the model says about itself."""

    def preprocess(self, images: bytes, resolution: int) -> np.ndarray:
        """float32 [1, C, r, r]; raises ImageError for what is no picture."""

    def run(self, x: np.ndarray) -> np.ndarray:
        """Logits [N, classes]."""


@dataclass(frozen=True)
class Share:
    """Which of several processes this is; each takes every n-th part of the work, and nobody waits for anybody.

    Args:
        rank: from 0.
        world_size: how many there are.

    Raises:
        ValueError: a rank that there is not.
    """

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise ValueError(f'rank {self.rank} of {self.world_size} processes: ranks are 0 to world_size - 1.')

    @classmethod
    def of_environment(cls, environment: Mapping[str, str] = os.environ) -> 'Share':
        """As torchrun, and whoever sets RANK and WORLD_SIZE, says; alone where nobody does.

        >>> Share.of_environment({'RANK': '1', 'WORLD_SIZE': '4'})
        Share(rank=1, world_size=4)
        """
        try:
            if ('RANK' in environment) != ('WORLD_SIZE' in environment):
                raise ValueError('one of two')
            return cls(int(environment.get('RANK', 0)), int(environment.get('WORLD_SIZE', 1)))
        except ValueError as error:
            given = {name: environment.get(name) for name in ('RANK', 'WORLD_SIZE')}
            raise ValueError(f'the environment has {given}: set both, RANK from 0 to WORLD_SIZE - 1, as torchrun does, '
                             'or neither.') from error


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
    """What a process has done."""

    predicted: int = 0
    failed: int = 0  # pictures that could not be read; their rows say why
    skipped: int = 0  # of its share, pictures that were done before


def predict_pictures(
        session: Predictor,
        pictures: PictureSource,
        output: Output,
        work: Work,
        share: Share = Share(),
        progress: Callable[[Counts, int], None] = lambda counts, total: None,
) -> Counts:
    """Write a row for each picture of this process's share that has none yet.

    Batches hold the same pictures however many processes there are and however often they were stopped, so that the
    rows are the same. `Output.merge` makes the file when all is done.

    Args:
        session: a `Session` of a classifier.
        pictures: the collection.
        output: over the same names.
        work: what is asked of the network.
        share: of this process.
        progress: called before the first and after each batch, with what is done so far, and the pictures of the share.

    Raises:
        ValueError: a network that is no classifier.
        OSError: the output cannot be written; what was written before stays.
    """
    if session.info.task != 'classification' or not session.info.num_classes:
        raise ValueError(f'{session.info.name} is no classifier: there are no classes to predict.')
    parts = list(_parts(len(pictures.names), work.batch_size, share))
    done = output.done()
    missing = [run for part in parts for run in _runs(p for p in part if pictures.names[p] not in done)]
    total = sum(map(len, parts))
    counts = Counts(skipped=total - sum(map(len, missing)))
    progress(counts, total)
    load = partial(_load, session, pictures, work.resolution)
    with ThreadPoolExecutor(work.threads, thread_name_prefix='rs_timm pictures') as pool:
        loaded = _ahead(pool, load, _batches(missing, work.batch_size))
        for part in missing:
            rows: List[Prediction] = []
            try:
                while len(rows) < len(part):
                    some = _predict(session, work, next(loaded))
                    rows += some
                    failed = sum(row.error is not None for row in some)
                    counts = Counts(counts.predicted + len(some) - failed, counts.failed + failed, counts.skipped)
                    progress(counts, total)
            finally:  # an interrupted part is whole batches, too
                if rows:
                    output.write(rows)
    return counts


def _parts(count: int, batch_size: int, share: Share) -> Iterator[range]:
    """The parts of a share: consecutive pictures, in whole batches.

    >>> list(_parts(100, 8, Share(1, 2)))
    [range(8, 16), range(24, 32), range(40, 48), range(56, 64), range(72, 80), range(88, 96)]
    """
    batches = min(_PART, -(-count // (_PARTS_EACH * share.world_size))) // batch_size
    step = max(1, batches) * batch_size
    for start in range(share.rank * step, count, share.world_size * step):
        yield range(start, min(start + step, count))


def _runs(positions: Iterable[int]) -> Iterator[List[int]]:
    """Consecutive positions, so that no part of the output lies within another one.

    >>> list(_runs([3, 4, 7, 8, 9]))
    [[3, 4], [7, 8, 9]]
    """
    for _, run in groupby(enumerate(positions), lambda pair: pair[1] - pair[0]):
        yield [position for _, position in run]


def _batches(runs: Iterable[Iterable[int]], batch_size: int) -> Iterator[List[int]]:
    """Positions that go together: those of each `batch_size` pictures of the whole collection.

    >>> list(_batches([range(4, 9), range(10, 12)], 4))
    [[4, 5, 6, 7], [8], [10, 11]]
    """
    for run in runs:
        for _, together in groupby(run, lambda position: position // batch_size):
            yield list(together)


def _load(session: Predictor, pictures: PictureSource, resolution: int, position: int) -> Loaded:
    name = pictures.names[position]
    try:
        return name, session.preprocess(pictures.read(position), resolution)
    except ImageError as error:
        return name, fault(error, name)


def fault(error: ImageError, name: str) -> str:
    """What is wrong with a picture, without its name."""
    return str(error).removeprefix('picture 0: ').removeprefix(f'{name}: ')


def _ahead(
        pool: ThreadPoolExecutor,
        load: Callable[[int], Loaded],
        batches: Iterator[List[int]],
) -> Iterator[List[Loaded]]:
    """Loaded batches, one ahead of the one that is used."""
    def submit() -> List['Future[Loaded]']:
        return [pool.submit(load, position) for position in next(batches, [])]

    upcoming = submit()
    while upcoming:
        current, upcoming = upcoming, submit()
        yield [future.result() for future in current]


def _predict(session: Predictor, work: Work, loaded: List[Loaded]) -> List[Prediction]:
    ready = [x for _, x in loaded if isinstance(x, np.ndarray)]
    rows = iter(_top(session.run(np.concatenate(ready)), work.topk) if ready else ())
    predictions = []
    for name, x in loaded:
        if isinstance(x, str):
            predictions.append(Prediction(name, work.resolution, error=x))
            continue
        classes, probabilities = next(rows)
        labels = tuple(session.info.label(index) for index in classes)
        predictions.append(Prediction(name, work.resolution, classes, labels, probabilities))
    return predictions


def _top(logits: np.ndarray, count: int) -> Iterator[Tuple[Tuple[int, ...], Tuple[float, ...]]]:
    """The most probable classes [N, classes] and their probabilities; of equal ones, the first."""
    z = logits.astype(np.float64)
    p = np.exp(z - z.max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    for row, order in zip(p, np.argsort(-p, axis=1, kind='stable')[:, :count]):
        yield tuple(int(index) for index in order), tuple(round(float(row[index]), 6) for index in order)
