"""The table of a latency measurement: rows, statistics, JSON."""
import json
import math
import os
import warnings
from dataclasses import asdict, dataclass, fields
from functools import cache
from os import PathLike
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

from .limits import PARTS, largest_within
from .machine import describe_machine, machine_differences

__all__ = ['LatencyRow', 'LatencyTable', 'Timing', 'least_calls']

FORMAT = 1
_KIND = 'rs_timm latency table'
_CONFIDENCE = 0.95


@dataclass(frozen=True)
class Timing:
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
class LatencyRow:
    """One resolution (pixels) and batch size: the times of a call, and multiply-adds per picture if known.

    `network` is the call with a ready tensor; `total` is preprocessing and network together, for the whole batch.
    """

    resolution: int
    batch: int
    network: Timing
    preprocessing: Optional[Timing] = None
    total: Optional[Timing] = None
    madds: Optional[int] = None

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
class LatencyTable:
    """What was measured, on what, and when."""

    model: str
    engine: str
    precision: str
    memory: str
    threads: Optional[int]
    versions: Mapping[str, str]
    machine: Mapping[str, Any]
    measured: str
    rows: Tuple[LatencyRow, ...]

    def row(self, resolution: int, batch: int = 1) -> LatencyRow:
        """The row of a resolution in pixels and a batch size; ValueError if it was not measured."""
        for row in self.rows:
            if (row.resolution, row.batch) == (resolution, batch):
                return row
        measured = ', '.join(f'{row.resolution} px batch {row.batch}' for row in self.rows)
        raise ValueError(f'{resolution} px batch {batch} is not in the table, which has {measured or "no rows"}.')

    def at_batch(self, batch: int = 1) -> Dict[int, LatencyRow]:
        """{resolution, largest first: row} at this many pictures per call; ValueError if nothing was measured there."""
        rows = {row.resolution: row for row in self.rows if row.batch == batch}
        if not rows:
            raise ValueError(f'batch {batch} is not in the latency table, which has '
                             f'{sorted({row.batch for row in self.rows})}: measure with it first.')
        return dict(sorted(rows.items(), reverse=True))

    def with_rows(self, rows: Sequence[LatencyRow]) -> 'LatencyTable':
        """This table with more rows, which replace those of the same resolution and batch."""
        merged = {(row.resolution, row.batch): row for row in (*self.rows, *rows)}
        ordered = sorted(merged.items(), key=lambda item: (-item[0][0], item[0][1]))
        return LatencyTable(**{**self._header(), 'rows': tuple(row for _, row in ordered)})

    def milliseconds(self, batch: int = 1, part: str = 'network') -> Dict[int, float]:
        """Mean milliseconds per picture at each resolution: what LoadController and fit_cascade take as costs."""
        return {size: row.timing(part).mean_ms / batch for size, row in self.at_batch(batch).items()}

    def largest_within(self, **budget: Any) -> int:
        """The largest resolution of the table that fits: see `rs_timm.runtime.largest_within`."""
        return largest_within(self, **budget)

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
                             'rs-timm bench, or rs_timm.runtime.measure(session).')
        versions = dict(session.versions)
        differences = machine_differences(self.machine, describe_machine())
        differences += [f'{name} {self.versions.get(name)}, here {version}' for name, version in versions.items()
                        if self.versions.get(name) != version]
        if differences:
            warnings.warn(f"the latency table was measured elsewhere ({'; '.join(differences)}): its milliseconds may "
                          'not hold here; measure again with rs-timm bench.', stacklevel=2)

    def save(self, path: Union[str, 'PathLike[str]']) -> None:
        """Write the table as JSON, in one step: a reader sees the old file or the new one."""
        content = dict(format=FORMAT, kind=_KIND, **self._header(), rows=[asdict(row) for row in self.rows])
        temporary = f'{os.fspath(path)}.part'
        with open(temporary, 'w', encoding='utf-8') as stream:
            json.dump(content, stream, indent=1)
            stream.write('\n')
        os.replace(temporary, path)

    def _header(self) -> Dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self) if field.name != 'rows'}

    @classmethod
    def load(cls, path: Union[str, 'PathLike[str]']) -> 'LatencyTable':
        """Read what `save` wrote. `check(session)` says whether it is of the session at hand.

        Raises:
            ValueError: not such a file, or one of a later format.
            OSError: no such file, or one that cannot be read.
        """
        with open(path, encoding='utf-8') as stream:
            try:
                content = json.load(stream)
            except ValueError as error:
                raise ValueError(f'{os.fspath(path)} is not JSON: {error}.') from error
        if not isinstance(content, dict) or content.pop('kind', None) != _KIND:
            raise ValueError(f'{os.fspath(path)} is not a latency table: rs-timm bench --out writes one.')
        if content.pop('format', None) != FORMAT:
            raise ValueError(f'{os.fspath(path)} has another format than {FORMAT}, which this version reads: measure '
                             'again with rs-timm bench.')
        try:
            return cls(**{**content, 'rows': tuple(_row(row) for row in content['rows'])})
        except (KeyError, TypeError) as error:
            raise ValueError(f'{os.fspath(path)} is a damaged latency table: {error}.') from error

    def __str__(self) -> str:
        """The table as text, a line for each row."""
        header = f'{"resolution":>10} {"batch":>5} {"p50 ms":>9} {"p95 ms":>9} {"95 % interval":>19} {"pictures/s":>11}'
        parts = [part for part in ('preprocessing', 'total') if any(getattr(row, part) for row in self.rows)]
        header += ''.join(f' {part + " p50":>17} {"p95":>9}' for part in parts) + f' {"MAdds, M":>9}'
        return '\n'.join([header, *(_line(row, parts) for row in self.rows)])


def _row(content: Mapping[str, Any]) -> LatencyRow:
    timings = {name: Timing(**content[name]) for name in PARTS if content.get(name)}
    return LatencyRow(**{**content, **timings})


def _line(row: LatencyRow, parts: Sequence[str]) -> str:
    network = row.network
    interval = f'{network.p95_low_ms:.2f} to {network.p95_high_ms:.2f}'
    cells: List[str] = [f'{row.resolution:>10} {row.batch:>5} {network.p50_ms:9.2f} {network.p95_ms:9.2f}',
                        f'{interval:>19} {row.per_second:11.1f}']
    for part in parts:
        timing = getattr(row, part)
        cells.append(f'{timing.p50_ms:17.2f} {timing.p95_ms:9.2f}' if timing else f'{"":27}')
    return ' '.join([*cells, f'{row.madds / 1e6:9.1f}' if row.madds else f'{"":9}'])
