"""A budget, and the largest resolution of a latency table that fits in it."""
from dataclasses import dataclass
from typing import Any, Optional

__all__ = ['IF_NONE', 'Limits', 'PARTS', 'check_if_none', 'largest_within', 'no_resolution_fits']

PARTS = ('network', 'preprocessing', 'total')
IF_NONE = ('error', 'smallest')


@dataclass(frozen=True)
class Limits:
    """A budget: at least one of three limits; where there are several, all must be kept.

    >>> str(Limits(fps=40, madds=2e9))
    'at most 25 ms (40 per second), at most 2000 million MAdds'

    Args:
        ms: milliseconds that a call may take, at its p95.
        fps: pictures per second: a call with a batch of n may take n / fps seconds, at its p95.
        madds: multiply-adds per picture.
        batch: pictures per call.

    Raises:
        ValueError: no limit, one that is not positive, or an empty batch.
    """

    ms: Optional[float] = None
    fps: Optional[float] = None
    madds: Optional[float] = None
    batch: int = 1

    def __post_init__(self) -> None:
        given = {name: getattr(self, name) for name in ('ms', 'fps', 'madds') if getattr(self, name) is not None}
        if not given:
            raise ValueError('a budget needs a limit: ms=8 (milliseconds), fps=30 (pictures per second) or madds=2e9.')
        for name, value in {**given, 'batch': self.batch}.items():
            if isinstance(value, bool) or not value > 0:
                raise ValueError(f'{name}={value!r}: it must be positive.')

    @property
    def milliseconds(self) -> Optional[float]:
        """The p95 in milliseconds that a call may have; None without such a limit."""
        limits = [self.ms, 1e3 * self.batch / self.fps if self.fps is not None else None]
        return min((limit for limit in limits if limit is not None), default=None)

    def allow(self, p95_ms: Optional[float], madds: Optional[int]) -> bool:
        """Whether both figures fit; a figure without a limit may be None."""
        if self.milliseconds is not None:
            assert p95_ms is not None
            if p95_ms > self.milliseconds:
                return False
        if self.madds is not None:
            assert madds is not None
            return madds <= self.madds
        return True

    def __str__(self) -> str:
        parts = []
        if self.ms is not None:
            parts.append(f'at most {self.ms:g} ms')
        if self.fps is not None:
            parts.append(f'at most {1e3 * self.batch / self.fps:g} ms ({self.fps:g} per second)')
        if self.madds is not None:
            parts.append(f'at most {self.madds / 1e6:g} million MAdds')
        return ', '.join(parts)


def largest_within(
        table: Any,
        *,
        ms: Optional[float] = None,
        fps: Optional[float] = None,
        madds: Optional[float] = None,
        batch: int = 1,
        part: str = 'network',
        if_none: str = 'error',
) -> int:
    """The largest resolution of a latency table whose measured p95, or whose multiply-adds, fit.

    >>> from rs_timm.runtime.policy.latency_table import LatencyRow, LatencyTable, Timing
    >>> rows = [LatencyRow(size, 1, Timing.of([size * 50_000] * 100)) for size in (224, 160)]
    >>> table = LatencyTable('net', 'engine', 'fp32', 'speed', 2, {}, {}, '2026-01-01', tuple(rows))
    >>> largest_within(table, ms=10)  # 224 px takes 11.2 ms, 160 px takes 8
    160

    Args:
        table: a `LatencyTable`.
        ms: milliseconds that a call may take.
        fps: pictures per second, one call after the other.
        madds: multiply-adds per picture.
        batch: pictures per call: of the rows of the table with this batch.
        part: 'network', or 'total' to count preprocessing in.
        if_none: 'error', or 'smallest' to take the smallest resolution where none fits.

    Raises:
        ValueError: no limit given, nothing measured at this batch, multiply-adds not known, or nothing fits.
    """
    check_if_none(if_none)
    limits = Limits(ms, fps, madds, batch)
    rows = table.at_batch(batch)
    unknown = sorted(size for size, row in rows.items() if madds is not None and row.madds is None)
    if unknown:
        raise ValueError(f'the multiply-adds at {unknown} px are not in the latency table: measure again, or give ms '
                         'or fps alone.')
    timed = limits.milliseconds is not None
    p95 = {size: row.timing(part).p95_ms if timed else None for size, row in rows.items()}
    fitting = [size for size, row in rows.items() if limits.allow(p95[size], row.madds)]
    if fitting:
        return max(fitting)
    smallest = min(rows)
    return no_resolution_fits(limits, smallest, p95[smallest], rows[smallest].madds, if_none)


def check_if_none(if_none: str) -> None:
    """Raise ValueError unless it is one of IF_NONE."""
    if if_none not in IF_NONE:
        raise ValueError(f"if_none={if_none!r}: choose 'error' or 'smallest'.")


def no_resolution_fits(
        limits: Limits,
        smallest: int,
        p95_ms: Optional[float],
        madds: Optional[int],
        if_none: str,
) -> int:
    """The smallest resolution if that was asked for, else a ValueError that says what it takes."""
    if if_none == 'smallest':
        return smallest
    takes = [f'{p95_ms:.3g} ms'] if p95_ms is not None else []
    if limits.madds is not None and madds is not None:
        takes.append(f'{madds / 1e6:.4g} million MAdds')
    raise ValueError(f"no resolution fits ({limits}): the smallest, {smallest} px, takes {' and '.join(takes)}; raise "
                     "the budget, or pass if_none='smallest'.")
