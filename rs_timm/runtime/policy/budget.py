"""The largest resolution whose measured figures fit in a budget, on this machine."""
from bisect import bisect_left
from dataclasses import dataclass
from os import PathLike
from typing import Any, Optional, Sequence, Tuple, Union

from rs_timm.format.madds import madds_of

from .latency import LatencyTable, measure_latency
from .latency_table import Limits, check_if_none, no_resolution_fits

__all__ = ['Choice', 'Limits', 'choose_resolution', 'size_grid']


@dataclass(frozen=True)
class Choice:
    """A resolution, and the table that it was chosen from, which has all that was measured; None if nothing was."""

    resolution: int
    table: Optional[LatencyTable]


def choose_resolution(
        session: Any,
        *,
        ms: Optional[float] = None,
        fps: Optional[float] = None,
        madds: Optional[float] = None,
        batch: int = 1,
        part: str = 'network',
        table: Union[None, LatencyTable, str, 'PathLike[str]'] = None,
        step: Optional[int] = None,
        if_none: str = 'error',
        **measuring: Any,
) -> Choice:
    """The largest resolution of `session` that fits, measured now where the table does not say.

    With `step`, sizes between the trained ones are candidates too (their BatchNorm sets are interpolated). Between the
    largest size of the table that fits and the next one they are bisected: the result is measured and fits, and the
    next larger candidate is measured and does not. Multiply-adds of such sizes are counted in the specialised graph.

    >>> import rs_timm
    >>> session = rs_timm.runtime.Session(rs_timm.switchable('test_resnet', (64, 32)))
    >>> choose_resolution(session, madds=session.info.madds[64] - 1, step=8).resolution
    56

    Args:
        session: a `Session`.
        ms: milliseconds that a call may take, at its p95.
        fps: pictures per second, one call after the other: a call may take batch / fps seconds, at its p95.
        madds: multiply-adds per picture. Alone, it needs no measurement.
        batch: pictures per call.
        part: 'network', or 'total' to count preprocessing in (give `images`).
        table: of an earlier measurement, or the file of one; None: the trained sizes are measured now.
        step: distance of the candidates in pixels, from the smallest trained size to the largest; None: the sizes of
            the table alone.
        if_none: 'error', or 'smallest' to take the smallest resolution where none fits.
        measuring: further arguments of `measure_latency`: images, repeats, seconds, progress.

    Raises:
        ValueError: no limit given, a table of another session, or nothing fits (with what the smallest size takes).
    """
    check_if_none(if_none)
    limits = Limits(ms, fps, madds, batch)
    grid = size_grid(session.resolutions, step) if step is not None else ()
    if isinstance(table, (str, PathLike)):
        table = LatencyTable.load(table)
    candidates = _Candidates(session, limits, part, table, measuring)
    known = candidates.known()
    fitting = [size for size in known if candidates.fits(size)]
    if not fitting:
        size = no_resolution_fits(limits, known[0], *candidates.figures(known[0]), if_none)
        return Choice(size, candidates.table)
    low = max(fitting)
    above = [size for size in known if size > low]
    if above:  # where cost does not grow with size, the result fits all the same, and the next candidate does not
        between = [low, *(size for size in grid if low < size < above[0])]
        low = between[bisect_left(between, True, lo=1, key=lambda size: not candidates.fits(size)) - 1]
    return Choice(low, candidates.table)


def size_grid(resolutions: Sequence[int], step: int) -> Tuple[int, ...]:
    """Sizes from the smallest to the largest of `resolutions`, `step` pixels apart, and `resolutions` themselves.

    >>> size_grid((224, 192, 160), 24)
    (160, 184, 192, 208, 224)

    Raises:
        ValueError: a step that is not a positive whole number.
    """
    if isinstance(step, bool) or int(step) != step or step < 1:
        raise ValueError(f'step {step!r}: it must be a positive whole number of pixels.')
    smallest, largest = min(resolutions), max(resolutions)
    return tuple(sorted({*range(smallest, largest + 1, int(step)), *resolutions}))


class _Candidates:
    """Figures of sizes: from the table if they are there, else measured and added to it."""

    def __init__(self, session: Any, limits: Limits, part: str, table: Optional[LatencyTable], measuring: Any) -> None:
        self.session, self.limits, self.part, self.measuring = session, limits, part, measuring
        self.timed = limits.milliseconds is not None
        if self.timed and table is None:
            table = measure_latency(session, batches=(limits.batch,), **measuring)
        elif self.timed and table is not None:
            table.check(session)
        self.table = table

    def known(self) -> Sequence[int]:
        """Sizes to start from, ascending: those of the table, or the trained ones without one."""
        return sorted(self.session.resolutions if self.table is None else self.table.at_batch(self.limits.batch))

    def fits(self, size: int) -> bool:
        return self.limits.allow(*self.figures(size))

    def figures(self, size: int) -> Tuple[Optional[float], Optional[int]]:
        """The p95 in milliseconds and the multiply-adds, each None if there is no limit on it."""
        p95, batch = None, self.limits.batch
        if self.timed:
            assert self.table is not None
            if size not in self.table.at_batch(batch):
                self.table = self.table.with_rows(
                    measure_latency(self.session, (size,), batches=(batch,), **self.measuring).rows)
            p95 = self.table.row(size, batch).timing(self.part).p95_ms
        return p95, madds_of(self.session, size) if self.limits.madds is not None else None
