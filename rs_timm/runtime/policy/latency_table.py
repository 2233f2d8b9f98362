"""A table of latencies at each resolution: its statistics, its file, and the largest size in a budget."""
import math
import warnings
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

from rs_timm.format.records import Checked, Record
from rs_timm.resolutions import check_resolutions

from ..engines import OLD_PRECISIONS
from .machine import describe_machine, machine_differences

__all__ = ['IF_NONE', 'PARTS', 'LatencyRow', 'LatencyTable', 'Limits', 'Timing', 'check_if_none', 'least_calls',
           'no_resolution_fits']

PARTS = ('network', 'preprocessing', 'total')
IF_NONE = ('error', 'smallest')
_CONFIDENCE = 0.95


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
        """Whether both figures fit, which what is not a number does not; a figure without a limit may be None."""
        in_time = self.milliseconds is None or (p95_ms is not None and p95_ms <= self.milliseconds)
        return in_time and (self.madds is None or (madds is not None and madds <= self.madds))

    def __str__(self) -> str:
        parts = []
        if self.ms is not None:
            parts.append(f'at most {self.ms:g} ms')
        if self.fps is not None:
            parts.append(f'at most {1e3 * self.batch / self.fps:g} ms ({self.fps:g} per second)')
        if self.madds is not None:
            parts.append(f'at most {self.madds / 1e6:g} million MAdds')
        return ', '.join(parts)


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


@dataclass(frozen=True)
class Timing(Checked):
    """Statistics of the times of calls, in milliseconds.

    `p50_ms` and `p95_ms` are times that were measured: at least 50 and 95 % of the calls took no longer.
    `p95_low_ms` to `p95_high_ms` is the 95 % confidence interval of the p95 from order statistics, which holds for
    independent calls of any distribution.

    >>> Timing.of(range(1_000_000, 201_000_000, 1_000_000)).p95_ms
    190.0
    """

    calls: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p95_low_ms: float
    p95_high_ms: float

    def __post_init__(self) -> None:
        times = self.p50_ms, self.p95_ms, self.p95_high_ms
        if not (self.calls > 0 and 0. <= self.p50_ms <= self.p95_ms <= self.p95_high_ms < math.inf
                and 0. <= self.p95_low_ms <= self.p95_ms and 0. <= self.mean_ms < math.inf):
            raise ValueError(f'times {times} of {self.calls} calls with the mean {self.mean_ms}: none can be negative, '
                             'and p50, p95 and its upper bound grow in that order')

    @classmethod
    def of(cls, nanoseconds: Iterable[int]) -> 'Timing':
        """The statistics of calls that took so many nanoseconds each; at least 72 of them."""
        times = sorted(nanoseconds)
        low, high = p95_ranks(len(times))
        ranks = dict(p50_ms=_rank(0.5, len(times)), p95_ms=_rank(0.95, len(times)), p95_low_ms=low, p95_high_ms=high)
        chosen = {name: times[rank - 1] / 1e6 for name, rank in ranks.items()}
        return cls(calls=len(times), mean_ms=round(sum(times) / len(times)) / 1e6, **chosen)


def _rank(share: float, count: int) -> int:
    """The smallest rank, from 1, with at least that share of `count` values at or below it."""
    return max(1, math.ceil(round(share * count, 9)))


@cache
def p95_ranks(count: int) -> Tuple[int, int]:
    """Ranks, from 1, of the ends of a 95 % confidence interval of the p95 of `count` independent values.

    The number of values below the true p95 is binomial (count, 0.95), whatever their distribution.

    >>> p95_ranks(200)
    (184, 197)

    Raises:
        ValueError: too few values for an upper end.
    """
    below, tail = 0., (1. - _CONFIDENCE) / 2.  # below: probability of fewer than `rank` values
    low, high = 1, None
    for rank in range(1, count + 1):
        below += _binomial(count, rank - 1, 0.95)
        if below <= tail:
            low = rank
        if below >= 1. - tail:
            high = rank
            break
    if high is None:
        raise ValueError(f'{count} calls are too few for a p95 with a confidence interval: it needs {least_calls()}.')
    return low, high


def _binomial(count: int, hits: int, share: float) -> float:
    log = math.lgamma(count + 1) - math.lgamma(hits + 1) - math.lgamma(count - hits + 1)
    return math.exp(log + hits * math.log(share) + (count - hits) * math.log1p(-share))


def least_calls() -> int:
    """The fewest calls whose slowest one is an upper end of the interval of the p95: 0.95 ** n <= 0.025."""
    return math.ceil(math.log((1. - _CONFIDENCE) / 2.) / math.log(0.95))


@dataclass(frozen=True)
class LatencyRow(Checked):
    """One resolution (pixels) and batch size: the times of a call, and multiply-adds per picture if known.

    `network` is the call with a ready tensor; `total` is preprocessing and network together, for the whole batch.
    """

    resolution: int
    batch: int
    network: Timing
    preprocessing: Optional[Timing] = None
    total: Optional[Timing] = None
    madds: Optional[int] = None

    def __post_init__(self) -> None:
        check_resolutions((self.resolution,))
        if self.batch < 1 or not self.network.p50_ms > 0. or (self.madds is not None and self.madds < 0):
            raise ValueError(f'batch {self.batch}, p50 of the network {self.network.p50_ms} ms, {self.madds} '
                             'multiply-adds: the first two are positive, and the third is not negative')

    @property
    def per_second(self) -> float:
        """Pictures per second of the network, one call after the other."""
        return 1e3 * self.batch / self.network.mean_ms

    def timing(self, part: str) -> Timing:
        """The timing of 'network', 'preprocessing' or 'total'.

        Raises:
            ValueError: it was not measured.
        """
        if part not in PARTS:
            raise ValueError(f"part {part!r}: choose among {', '.join(map(repr, PARTS))}.")
        timing = getattr(self, part)
        if timing is None:
            raise ValueError(f'{part} was not measured at {self.resolution} px: measure with images (rs-timm bench '
                             "--images), or ask for part='network'.")
        return timing


@dataclass(frozen=True)
class LatencyTable(Record):
    """The result of a measurement: of which session, where, when, and a row for each resolution and batch size."""

    model: str
    engine: str
    precision: str
    memory: str
    threads: Optional[int]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    measured: str
    rows: Tuple[LatencyRow, ...]
    _kind = 'rs_timm latency table'
    _remedy = 'measure again with rs-timm bench --out'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'precision', OLD_PRECISIONS.get(self.precision, self.precision))
        keys = [(row.resolution, row.batch) for row in self.rows]
        if len(set(keys)) < len(keys):
            raise ValueError('two rows are of the same resolution and batch')

    def row(self, resolution: int, batch: int = 1) -> LatencyRow:
        """The row of a resolution in pixels and a batch size; ValueError if it was not measured."""
        for row in self.rows:
            if (row.resolution, row.batch) == (resolution, batch):
                return row
        measured = ', '.join(f'{row.resolution} px batch {row.batch}' for row in self.rows)
        raise ValueError(f'{resolution} px batch {batch} is not in the table, which has {measured or "no rows"}.')

    def at_batch(self, batch: int = 1) -> Dict[int, LatencyRow]:
        """Return {resolution, largest first: row} at this many pictures per call; ValueError if there is none."""
        rows = {row.resolution: row for row in self.rows if row.batch == batch}
        if not rows:
            raise ValueError(f'batch {batch} is not in the latency table, which has '
                             f'{sorted({row.batch for row in self.rows})}: measure with it first.')
        return dict(sorted(rows.items(), reverse=True))

    def with_rows(self, rows: Sequence[LatencyRow]) -> 'LatencyTable':
        """This table with more rows, which replace those of the same resolution and batch."""
        merged = {(row.resolution, row.batch): row for row in (*self.rows, *rows)}
        ordered = sorted(merged.items(), key=lambda item: (-item[0][0], item[0][1]))
        return replace(self, rows=tuple(row for _, row in ordered))

    def milliseconds(self, batch: int = 1, part: str = 'network') -> Dict[int, float]:
        """Mean milliseconds per picture at each resolution: what LoadController and fit_cascade take as costs."""
        return {size: row.timing(part).mean_ms / batch for size, row in self.at_batch(batch).items()}

    def largest_within(
            self,
            *,
            ms: Optional[float] = None,
            fps: Optional[float] = None,
            madds: Optional[float] = None,
            batch: int = 1,
            part: str = 'network',
            if_none: str = 'error',
    ) -> int:
        """The largest resolution whose measured p95, or whose multiply-adds, fit.

        >>> rows = [LatencyRow(size, 1, Timing.of([size * 50_000] * 100)) for size in (224, 160)]
        >>> table = LatencyTable('net', 'engine', 'float32', 'speed', 2, {}, {}, '2026-01-01', tuple(rows))
        >>> table.largest_within(ms=10)  # 224 px takes 11.2 ms, 160 px takes 8
        160

        Args:
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
        rows = self.at_batch(batch)
        unknown = sorted(size for size, row in rows.items() if madds is not None and row.madds is None)
        if unknown:
            raise ValueError(f'the multiply-adds at {unknown} px are not in the latency table: measure again, or give '
                             'ms or fps alone.')
        timed = limits.milliseconds is not None
        p95 = {size: row.timing(part).p95_ms if timed else None for size, row in rows.items()}
        fitting = [size for size, row in rows.items() if limits.allow(p95[size], row.madds)]
        smallest = min(rows)
        return max(fitting) if fitting else no_resolution_fits(
            limits, smallest, p95[smallest], rows[smallest].madds, if_none)

    def check(self, session: Any) -> None:
        """Compare the table with what it is to be used for.

        Raises:
            ValueError: it is of another model, engine, precision, kind of memory or number of threads.

        Warns where the machine or a version differs: then the milliseconds are another machine's.
        """
        here = dict(model=session.info.name, engine=session.engine_name, precision=session.precision,
                    memory=session.memory, threads=session.threads)
        wrong = [f'{key} {getattr(self, key)}, here {value}' for key, value in here.items()
                 if getattr(self, key) != value]
        if wrong:
            raise ValueError(f"the latency table is of another session ({'; '.join(wrong)}): measure this one with "
                             'rs-timm bench, or rs_timm.runtime.measure_latency(session).')
        differences = machine_differences(self.machine, describe_machine())
        differences += [f'{name} {self.versions.get(name)}, here {version}' for name, version
                        in session.versions.items() if self.versions.get(name) != version]
        if differences:
            warnings.warn(f"the latency table was measured elsewhere ({'; '.join(differences)}): its milliseconds may "
                          'not hold here; measure again with rs-timm bench.', stacklevel=2)

    def __str__(self) -> str:
        """The table as text, a line for each row."""
        header = f'{"resolution":>10} {"batch":>5} {"p50 ms":>9} {"p95 ms":>9} {"95 % interval":>19} {"pictures/s":>11}'
        parts = [part for part in ('preprocessing', 'total') if any(getattr(row, part) for row in self.rows)]
        header += ''.join(f' {part + " p50":>17} {"p95":>9}' for part in parts) + f' {"MAdds, M":>9}'
        return '\n'.join([header, *(_line(row, parts) for row in self.rows)])


def _line(row: LatencyRow, parts: Sequence[str]) -> str:
    network = row.network
    interval = f'{network.p95_low_ms:.2f} to {network.p95_high_ms:.2f}'
    cells: List[str] = [f'{row.resolution:>10} {row.batch:>5} {network.p50_ms:9.2f} {network.p95_ms:9.2f}',
                        f'{interval:>19} {row.per_second:11.1f}']
    for part in parts:
        timing = getattr(row, part)
        cells.append(f'{timing.p50_ms:17.2f} {timing.p95_ms:9.2f}' if timing else f'{"":27}')
    return ' '.join([*cells, f'{row.madds / 1e6:9.1f}' if row.madds else f'{"":9}'])
