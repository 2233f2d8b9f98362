"""A plan: how fast and how accurate each engine, precision and size is on a machine, and the best within a budget."""
import math
import os
import warnings
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

from rs_timm.format.records import Checked, Record
from rs_timm.resolutions import check_resolutions

from ..engines import ENGINES, PRECISIONS
from .cascade import CascadeFit
from .latency_table import Limits, Timing, check_if_none
from .machine import describe_machine, machine_differences

__all__ = ['BY', 'DroppedPoint', 'MEASURES', 'Plan', 'PlanPoint', 'PlannedModel']

BY = ('p95', 'mean')
MEASURES = ('top1', 'agreement')
_MOST_POINTS = 10_000
PathOrStr = Union[str, 'PathLike[str]']


@dataclass(frozen=True)
class PlannedModel(Checked):
    """An exported file: where it is, and the SHA-256 of what was measured."""

    path: str
    digest: str

    def __post_init__(self) -> None:
        if not self.path or len(self.digest) != 64 or set(self.digest) - set('0123456789abcdef'):
            raise ValueError(f'path {self.path!r:.80}, digest {self.digest!r:.80}: a file, and 64 hexadecimal digits')


@dataclass(frozen=True)
class _Network(Checked):
    """What a row of a plan is about."""

    model: str
    engine: str
    precision: str
    resolution: int

    def __post_init__(self) -> None:
        check_resolutions((self.resolution,))
        for name, value, allowed in (('engine', self.engine, ENGINES), ('precision', self.precision, PRECISIONS)):
            if value not in allowed:
                raise ValueError(f"{name} {value!r:.80} is unknown: one of {', '.join(allowed)}")
        accuracy, pictures = getattr(self, 'accuracy', 0.), getattr(self, 'pictures', 1)
        if not 0. <= accuracy <= 100. or pictures < 1:
            raise ValueError(f'accuracy {accuracy}, pictures {pictures}: percent, and a positive number')

    @property
    def sizes(self) -> str:
        return str(self.resolution)

    @property
    def name(self) -> str:
        """Of the point, as in 'openvino int8 192 px'; without the model."""
        return f'{self.engine} {self.precision} {self.sizes} px'


@dataclass(frozen=True)
class PlanPoint(_Network):
    """A network of the plan as it was measured: times of a call with one ready picture, and accuracy.

    Args:
        model: its name among `Plan.models`.
        engine, precision: as of a `Session`.
        resolution: pixels; of a cascade, the largest.
        network: the times of calls.
        accuracy: top-1, or agreement with the plan's reference, in percent.
        pictures: that the accuracy is of.
        madds: multiply-adds of a picture; of a cascade, on average.
        cascade: the fit of a cascade; its accuracy here is of pictures that it was not fitted to.
    """

    network: Timing
    accuracy: float
    pictures: int
    madds: Optional[int] = None
    cascade: Optional[CascadeFit] = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.network.p50_ms > 0. or (self.madds is not None and self.madds < 0):
            raise ValueError(f'p50 {self.network.p50_ms} ms, {self.madds} multiply-adds: neither can be negative, nor '
                             'the first 0')
        if self.cascade is not None and self.cascade.resolutions[-1] != self.resolution:
            raise ValueError(f'resolution {self.resolution} of a cascade of {self.cascade.resolutions} px')

    @property
    def sizes(self) -> str:
        return '-'.join(map(str, self.cascade.resolutions)) if self.cascade else str(self.resolution)

    def milliseconds(self, by: str = 'p95') -> float:
        """The p95 of a call, or its mean.

        Raises:
            ValueError: another `by` than these.
        """
        if by not in BY:
            raise ValueError(f"by={by!r}: choose 'p95' (of a call) or 'mean' (of many).")
        return self.network.p95_ms if by == 'p95' else self.network.mean_ms

    def limit(self, by: str = 'p95') -> float:
        """What a budget is compared with: the upper end of the 95 % interval of the p95, or the mean."""
        return self.network.p95_high_ms if by == 'p95' else self.milliseconds(by)


@dataclass(frozen=True)
class DroppedPoint(_Network):
    """A network that was not measured to the end: it is slower than another, and hardly more accurate if at all.

    Args:
        p50_ms, p95_ms: of the calls that there were: too few for a p95 that one could count on.
        accuracy: an estimate: that of the other, and the difference of the two on the pictures that both have answered.
        pictures: that it has answered.
        behind: the name of the other.
    """

    p50_ms: float
    p95_ms: float
    accuracy: float
    pictures: int
    behind: str

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0. < self.p50_ms <= self.p95_ms < math.inf:
            raise ValueError(f'p50_ms {self.p50_ms}, p95_ms {self.p95_ms}: positive numbers, the first the smaller')


@dataclass(frozen=True)
class Plan(Record):
    """What was measured on a machine, and the choice from it; `rs_timm.runtime.make_plan` makes one.

    Args:
        models: name -> exported file. The paths in a file are relative to its folder.
        points: what was measured to the end.
        dropped: what was not.
        measure: what `accuracy` is: 'top1', or 'agreement' with `reference` where there were no labels.
        reference: the name of a point, for 'agreement'.
        pictures: that were measured with.
        seconds: that measuring took, opening and compiling apart.
        tolerance: points of accuracy that a dropped network may be better than what was kept in its place.
        threads, device: as of `Session`.
        networks: the folder with the int8 networks; None: there are none.
        versions: package -> version.
        machine: as of `describe_machine`.
        measured: date and time.
    """

    models: Dict[str, PlannedModel]
    points: Tuple[PlanPoint, ...]
    dropped: Tuple[DroppedPoint, ...]
    measure: str
    reference: Optional[str]
    pictures: int
    seconds: float
    tolerance: float
    threads: Optional[int]
    device: Optional[str]
    networks: Optional[str]
    versions: Dict[str, str]
    machine: Dict[str, Any]
    measured: str
    _kind = 'rs_timm plan'
    _remedy = 'rs-timm plan writes one'

    def __post_init__(self) -> None:
        if not 1 <= len(self.points) + len(self.dropped) <= _MOST_POINTS or not self.points:
            raise ValueError(f'{len(self.points)} points, and {len(self.dropped)} dropped: 1 to {_MOST_POINTS}')
        unknown = {point.model for point in (*self.points, *self.dropped)} - self.models.keys()
        if unknown:
            raise ValueError(f'points of {sorted(unknown)[0]!r:.80}, which is not among the models')
        if self.measure not in MEASURES or (self.measure == 'agreement') != (self.reference is not None):
            raise ValueError(f"measure {self.measure!r:.80} with the reference {self.reference!r:.80}: 'top1' without "
                             "one, or 'agreement' with one")
        if self.pictures < 1 or min(self.tolerance, self.seconds) < 0. or (
                self.threads is not None and self.threads < 1):
            raise ValueError(f'pictures {self.pictures}, seconds {self.seconds}, tolerance {self.tolerance}, threads '
                             f'{self.threads}: none can be negative, nor the first and the last 0')
        if any(point.precision == 'int8' for point in self.points) and self.networks is None:
            raise ValueError('int8 points without the folder of the int8 networks (networks)')

    def label(self, point: _Network) -> str:
        """The name of a point, with its model where there are several."""
        return f'{point.model} {point.name}' if len(self.models) > 1 else point.name

    def front(self, by: str = 'p95') -> Tuple[PlanPoint, ...]:
        """The points that none is faster than and as accurate, fastest first."""
        front: List[PlanPoint] = []
        for point in sorted(self.points, key=lambda point: (point.milliseconds(by), -point.accuracy)):
            if not front or point.accuracy > front[-1].accuracy:
                front.append(point)
        return tuple(front)

    def choose(
            self,
            *,
            ms: Optional[float] = None,
            fps: Optional[float] = None,
            madds: Optional[float] = None,
            by: str = 'p95',
            if_none: str = 'error',
    ) -> PlanPoint:
        """The most accurate point within a budget; among equals, the fastest.

        The budget is compared with the upper end of the 95 % interval of the p95, so that it is kept beyond doubt.

        Args:
            ms: milliseconds that a call may take.
            fps: pictures per second, one call after the other.
            madds: multiply-adds of a picture.
            by: 'p95', or 'mean': calls may take longer, but many of them on average do not; for cascades.
            if_none: 'error', or 'smallest' to take the fastest point where none fits.

        Raises:
            ValueError: no limit given, or nothing fits (with what the fastest takes).
        """
        check_if_none(if_none)
        limits = Limits(ms, fps, madds)
        fitting = [point for point in self.points if limits.allow(point.limit(by), point.madds)]
        if fitting:
            return min(fitting, key=lambda point: (-point.accuracy, point.limit(by)))
        fastest = min(self.points, key=lambda point: (point.limit(by), -point.accuracy))
        if if_none == 'smallest':
            return fastest
        takes = f'{by} of {"up to " * (by == "p95")}{fastest.limit(by):.3g} ms'
        if limits.madds is not None and fastest.madds is not None:
            takes += f' and {fastest.madds / 1e6:.4g} million MAdds'
        raise ValueError(f'no point of the plan fits ({limits}): the fastest, {self.label(fastest)}, has a {takes}; '
                         "raise the budget, or pass if_none='smallest'.")

    def differences(self, versions: Mapping[str, str]) -> List[str]:
        """What makes times differ between where the plan was made and here, as in 'cores: 2, here 16'."""
        return machine_differences(self.machine, describe_machine()) + [
            f'{name} {self.versions.get(name)}, here {version}' for name, version in versions.items()
            if name != 'device' and self.versions.get(name) != version]

    def warn(self, versions: Mapping[str, str], stacklevel: int = 2) -> None:
        """Warn, naming the differences, where the plan is of another machine or other versions."""
        if differences := self.differences(versions):
            warnings.warn(f"the plan was measured elsewhere ({'; '.join(differences)}): its milliseconds may not hold "
                          'here; measure again with rs-timm plan.', stacklevel=stacklevel + 1)

    def save(self, path: PathOrStr) -> None:
        """Write the plan as JSON, in one step; files in it are named relative to its folder."""
        folder = os.path.dirname(os.path.abspath(path))
        super(Plan, self._with_paths(lambda name: _relative(name, folder))).save(path)

    @classmethod
    def load(cls, path: PathOrStr) -> 'Plan':
        """Read what `save` wrote; errors as of any `Record`."""
        plan = super().load(path)
        folder = os.path.dirname(os.path.abspath(path))
        return plan._with_paths(lambda name: os.path.normpath(os.path.join(folder, *name.split('/'))))

    def _with_paths(self, change: Any) -> 'Plan':
        models = {name: replace(model, path=change(model.path)) for name, model in self.models.items()}
        return replace(self, models=models, networks=None if self.networks is None else change(self.networks))

    def __str__(self) -> str:
        """The plan as a table, fastest first; * marks the front by p95, + that by the mean alone."""
        several = len(self.models) > 1
        width = max(5, *(len(name) for name in self.models)) if several else 0
        sizes = max(6, *(len(point.sizes) for point in self.points))
        what = 'top-1 %' if self.measure == 'top1' else 'agrees %'
        first = f'{"model":<{width}} ' if several else ''
        lines = [f'  {first}{"engine":<11} {"precision":<9} {"pixels":>{sizes}} {"p50 ms":>8} {"p95 ms":>8} '
                 f'{"at most":>8} {"mean ms":>8} {what:>8} {"pictures":>8}']

        def line(mark: str, point: Union[PlanPoint, DroppedPoint], times: Iterable[str]) -> str:
            name = f'{point.model:<{width}} ' if several else ''
            return (f'{mark} {name}{point.engine:<11} {point.precision:<9} {point.sizes:>{sizes}} '
                    f'{" ".join(f"{time:>8}" for time in times)} {point.accuracy:8.2f} {point.pictures:8}')

        fronts = {by: self.front(by) for by in BY}
        for point in sorted(self.points, key=lambda point: point.network.p95_ms):
            mark = '*' if point in fronts['p95'] else '+' if point in fronts['mean'] else ' '
            taken = point.network
            lines.append(line(mark, point, (f'{value:.2f}' for value in (
                taken.p50_ms, taken.p95_ms, taken.p95_high_ms, taken.mean_ms))))
        for gone in sorted(self.dropped, key=lambda point: point.p50_ms):
            times = (f'{gone.p50_ms:.2f}', f'{gone.p95_ms:.2f}', '', '')
            lines.append(line(' ', gone, times) + f'  behind {gone.behind}')
        return '\n'.join(lines)


def _relative(name: str, folder: str) -> str:
    """A path as the file of a plan has it: relative where the system can, with slashes."""
    try:
        return Path(os.path.relpath(name, folder)).as_posix()
    except ValueError:  # another drive
        return Path(name).as_posix()
