"""Measurement of the latency of a session at each resolution, on this machine.

A p95 is an order statistic, and one of few calls says little: each resolution is called at least 72 times, which is
what a 95 % confidence interval of the p95 needs without assuming a distribution, and the table states the interval.
The resolutions take turns, in random order, so that what else the machine does hits all of them alike.
"""
import math
import random
import time
from datetime import datetime, timezone
from typing import Any, Callable, Iterable, List, Optional, Sequence

import numpy as np

from rs_timm.format.madds import madds_of
from rs_timm.resolutions import check_resolutions

from .latency_table import LatencyRow, LatencyTable, Timing, least_calls
from .machine import describe_machine

__all__ = ['LatencyTable', 'measure_latency']

Clock = Callable[[], int]
_VISIT = 4  # calls in a row that count; one before them finds the weights out of the cache, and does not


def measure_latency(
        session: Any,
        resolutions: Optional[Iterable[int]] = None,
        batches: Sequence[int] = (1,),
        images: Sequence[Any] = (),
        repeats: int = 200,
        seconds: Optional[float] = None,
        warmup: int = 5,
        progress: bool = False,
        seed: int = 0,
        clock: Clock = time.perf_counter_ns,
) -> LatencyTable:
    """Measure `session` at each resolution and batch size.

    All cases are compiled and called `warmup` times first. Then they take turns in random order; a turn is one call
    that does not count, and four that do. The garbage collector stays on, as in service.

    >>> import rs_timm
    >>> session = rs_timm.runtime.Session(rs_timm.switchable('test_resnet', (64, 32)))
    >>> table = measure_latency(session, repeats=72, images=[np.zeros((90, 80, 3), np.uint8)])
    >>> table.row(32).network.p95_ms < table.row(32).total.p95_ms + table.row(64).total.p95_ms
    True

    Args:
        session: a `Session`.
        resolutions: sizes in pixels, trained or not; None: those of the session.
        batches: pictures per call; each gives a row of its own.
        images: what `session.preprocess` takes; if given, preprocessing is measured too, apart and with the network.
        repeats: calls that count, for each resolution and batch; at least 72.
        seconds: stop after this time, but not before 72 calls each; None: no limit.
        warmup: calls before measuring, for each resolution and batch.
        progress: show a bar where the standard error is a terminal.
        seed: of the order of the turns.
        clock: nanoseconds.

    Raises:
        ValueError: fewer than 72 repeats, or sizes or batches that are not positive.
    """
    least = least_calls()
    if repeats < least:
        raise ValueError(f'repeats {repeats}: a p95 needs at least {least} calls; more make its interval narrower.')
    if not batches or min(batches) < 1 or warmup < 0 or not (seconds is None or seconds >= 0.):
        raise ValueError(f'batches {tuple(batches)}, warmup {warmup}, seconds {seconds}: batches are at least 1, the '
                         'others at least 0.')
    sizes = check_resolutions(session.resolutions if resolutions is None else resolutions)
    cases = [_Case(session, size, batch, images, clock) for size in sizes for batch in dict.fromkeys(batches)]
    for case in cases:
        session.prepare((case.resolution,), case.batch)
        for _ in range(warmup):
            case.call()
        case.forget()
    _take_turns(cases, repeats, seconds, random.Random(seed), progress, clock)
    return LatencyTable(
        model=session.info.name,
        engine=session.engine_name,
        precision=session.precision,
        memory=session.memory,
        threads=session.threads,
        versions=dict(session.versions),
        machine=describe_machine(),
        measured=datetime.now(timezone.utc).isoformat(timespec='seconds'),
        rows=tuple(case.row() for case in cases),
    )


def _take_turns(
        cases: Sequence['_Case'],
        repeats: int,
        seconds: Optional[float],
        order: random.Random,
        progress: bool,
        clock: Clock,
) -> None:
    from tqdm import tqdm  # not at the top: serving needs no bar

    started, done = clock(), 0
    turns = math.ceil(repeats / _VISIT) * len(cases)
    with tqdm(total=turns, desc='measuring', unit='turn', leave=False, disable=None if progress else True) as bar:
        while done < repeats:
            if seconds is not None and done >= least_calls() and clock() - started > seconds * 1e9:
                break
            for case in order.sample(cases, len(cases)):
                case.settle()
                for _ in range(min(_VISIT, repeats - done)):
                    case.call()
                bar.update()
            done += _VISIT


class _Case:
    """One resolution and batch size, and the nanoseconds of its calls."""

    def __init__(self, session: Any, resolution: int, batch: int, images: Sequence[Any], clock: Clock) -> None:
        self.session, self.resolution, self.batch, self.clock = session, resolution, batch, clock
        self.images = images
        generator = np.random.default_rng(resolution)
        self.x = generator.standard_normal((batch, session.info.channels, resolution, resolution), dtype=np.float32)
        self.next_image = 0
        self.forget()

    def forget(self) -> None:
        self.network: List[int] = []
        self.preprocessing: List[int] = []
        self.total: List[int] = []

    def settle(self) -> None:
        self.session.run(self.x, self.resolution)

    def call(self) -> None:
        start = self.clock()
        self.session.run(self.x, self.resolution)
        self.network.append(self.clock() - start)
        if len(self.images):
            pictures = self._pictures()
            start = self.clock()
            x = self.session.preprocess(pictures, self.resolution)
            middle = self.clock()
            self.session.run(x, self.resolution)
            end = self.clock()
            self.preprocessing.append(middle - start)
            self.total.append(end - start)

    def _pictures(self) -> List[Any]:
        """The next pictures in turn, so that no resolution gets the large ones."""
        first, self.next_image = self.next_image, self.next_image + self.batch
        return [self.images[index % len(self.images)] for index in range(first, first + self.batch)]

    def row(self) -> LatencyRow:
        try:
            madds: Optional[int] = madds_of(self.session, self.resolution)
        except ImportError:  # of onnx, which reads the graph
            madds = None
        return LatencyRow(
            resolution=self.resolution,
            batch=self.batch,
            network=Timing.of(self.network),
            preprocessing=Timing.of(self.preprocessing) if self.preprocessing else None,
            total=Timing.of(self.total) if self.total else None,
            madds=madds,
        )
