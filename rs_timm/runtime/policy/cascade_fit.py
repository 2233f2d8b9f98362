"""The thresholds of a cascade, chosen on held-out logits: most accuracy for a budget, or least cost for an accuracy."""
import json
import os
from dataclasses import asdict, dataclass
from itertools import combinations
from os import PathLike
from typing import Any, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np

from rs_timm.resolutions import check_resolutions

from .cascade_search import EFFORT, Goal, Point, Stages, best_point
from .confidence import COMBINATIONS, combine_logits, confidence, fit_temperature, stage_weights

__all__ = ['CascadeFit', 'fit_cascade']

FORMAT = 1
_KIND = 'rs_timm cascade'


@dataclass(frozen=True)
class CascadeFit:
    """A cascade: what `Cascade.fitted` needs, and what was reached on the pictures that it was fitted to.

    Attributes:
        resolutions: pixels, in the order of use; those of the given ones that are worth their cost.
        thresholds: resolution -> calibrated probability at which it answers; above 1: never.
        temperatures: resolution -> what the logits are divided by for that.
        combine: 'last', 'mean' or 'alpha'.
        alpha: the weights of 'alpha'; None otherwise.
        accuracy: top-1 in percent.
        cost: mean cost of a picture, in the unit of the given costs.
        shares: resolution -> share of the pictures that it answered.
    """

    resolutions: Tuple[int, ...]
    thresholds: Dict[int, float]
    temperatures: Dict[int, float]
    combine: str
    alpha: Optional[Dict[int, float]]
    accuracy: float
    cost: float
    shares: Dict[int, float]

    def save(self, path: Union[str, 'PathLike[str]']) -> None:
        """Write it as JSON."""
        temporary = f'{os.fspath(path)}.part'
        with open(temporary, 'w', encoding='utf-8') as stream:
            json.dump(dict(format=FORMAT, kind=_KIND, **asdict(self)), stream, indent=1)
            stream.write('\n')
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Union[str, 'PathLike[str]']) -> 'CascadeFit':
        """Read what `save` wrote; ValueError if it is something else."""
        with open(path, encoding='utf-8') as stream:
            try:
                content = json.load(stream)
            except ValueError as error:
                raise ValueError(f'{os.fspath(path)} is not JSON: {error}.') from error
        if not isinstance(content, dict) or content.pop('kind', None) != _KIND or content.pop('format', 0) != FORMAT:
            raise ValueError(f'{os.fspath(path)} is not a cascade of format {FORMAT}: CascadeFit.save writes one.')
        try:
            for key in ('thresholds', 'temperatures', 'alpha', 'shares'):
                if content[key] is not None:
                    content[key] = {int(size): value for size, value in content[key].items()}
            return cls(**{**content, 'resolutions': tuple(content['resolutions'])})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f'{os.fspath(path)} is a damaged cascade: {error}.') from error


def fit_cascade(
        logits_by_resolution: Mapping[int, np.ndarray],
        targets: Any,
        *,
        budget: Optional[float] = None,
        accuracy: Optional[float] = None,
        costs: Optional[Mapping[int, float]] = None,
        combine: str = 'last',
        alpha: Optional[Mapping[int, float]] = None,
        subsets: bool = True,
        effort: int = EFFORT,
) -> CascadeFit:
    """Choose resolutions, temperatures and thresholds of a cascade on held-out pictures.

    Each stage's confidence is calibrated first (the temperature with the lowest cross-entropy). Then all thresholds
    that tell these pictures apart are searched: exactly for up to three resolutions (and up to `effort` pictures), with
    quantiles for all but the last threshold for more. A cascade with one resolution is a candidate too, so the result
    is on these pictures no worse than any resolution alone. Only pictures that neither trained the network nor chose
    the thresholds tell how good it is.

    >>> logits = {96: np.array([[3., 0.], [0.1, 0.]]), 224: np.array([[3., 0.], [0., 3.]])}
    >>> fit = fit_cascade(logits, [0, 1], accuracy=100, costs={96: 1., 224: 5.}, subsets=False)
    >>> fit.shares, fit.cost
    ({96: 0.5, 224: 0.5}, 3.5)

    Args:
        logits_by_resolution: resolution in pixels -> [N, K], the same pictures in the same order.
        targets: their classes, integers [N].
        budget: mean cost of a picture that may not be exceeded; the most accurate cascade is wanted.
        accuracy: top-1 in percent that is to be reached; the cheapest cascade is wanted. Either this or `budget`.
        costs: resolution -> cost of one pass, such as `session.info.madds` or `LatencyTable.milliseconds()`; None: the
            number of pixels, in units of the largest resolution's. A picture pays for all its passes.
        combine: 'last', 'mean' or 'alpha': what `Cascade` does with the logits of several resolutions.
        alpha: weights for 'alpha'.
        subsets: leave out resolutions that do not pay.
        effort: combinations that are tried of all thresholds but the last, for each subset.

    Raises:
        ValueError: arguments that do not fit together; a target that cannot be reached, with what can be.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f"combine {combine!r}: choose among {', '.join(map(repr, COMBINATIONS))}.")
    logits, classes = _checked(logits_by_resolution, targets)
    sizes = tuple(sorted(logits))
    prices = _prices(costs, sizes)
    builder = _Builder(logits, classes, prices, combine, alpha)
    goal = _goal(budget, accuracy, len(classes))
    chosen = _subsets(sizes) if subsets else [sizes]
    best = best_point(map(builder.stages, chosen), goal, effort)
    if best is None:
        raise ValueError(_unreachable(goal, builder, chosen, effort))
    return builder.result(best)


def _subsets(sizes: Tuple[int, ...]) -> List[Tuple[int, ...]]:
    return [subset for count in range(1, len(sizes) + 1) for subset in combinations(sizes, count)]


class _Builder:
    """Confidence and correctness of the stages of any subset; temperatures are fitted once for a prefix."""

    def __init__(
            self,
            logits: Mapping[int, np.ndarray],
            targets: np.ndarray,
            prices: Mapping[int, float],
            combine: str,
            alpha: Optional[Mapping[int, float]],
    ) -> None:
        self.logits, self.targets, self.prices = logits, targets, prices
        self.combine, self.alpha = combine, alpha
        self.known: Dict[Tuple[int, ...], Tuple[float, np.ndarray, np.ndarray]] = {}

    def stage(self, prefix: Tuple[int, ...]) -> Tuple[float, np.ndarray, np.ndarray]:
        """(temperature, confidence [N], correct [N]) after these resolutions."""
        if self.combine == 'last' and len(prefix) > 1:
            return self.stage(prefix[-1:])
        if prefix not in self.known:
            weights = stage_weights(prefix, self.combine, self.alpha)
            combined = combine_logits([self.logits[size] for size in prefix], weights)
            temperature = fit_temperature(combined, self.targets)
            correct = combined.argmax(axis=1) == self.targets
            self.known[prefix] = temperature, confidence(combined, temperature), correct
        return self.known[prefix]

    def stages(self, sizes: Tuple[int, ...]) -> Stages:
        parts = [self.stage(sizes[:count]) for count in range(1, len(sizes) + 1)]
        return Stages(
            resolutions=sizes,
            confidence=[part[1] for part in parts[:-1]],
            correct=[part[2] for part in parts],
            costs=np.cumsum([self.prices[size] for size in sizes]),
        )

    def result(self, point: Point) -> CascadeFit:
        sizes = point.resolutions
        stages = self.stages(sizes)
        answered = stages.answered(point.thresholds)
        shares = {size: float((answered == stage).mean()) for stage, size in enumerate(sizes)}
        chosen = np.stack(stages.correct)[answered, np.arange(len(answered))]
        alpha = {size: float((self.alpha or {})[size]) for size in sizes} if self.combine == 'alpha' else None
        return CascadeFit(
            resolutions=sizes,
            thresholds=dict(zip(sizes, point.thresholds)),
            temperatures={size: self.stage(sizes[:count + 1])[0] for count, size in enumerate(sizes)},
            combine=self.combine,
            alpha=alpha,
            accuracy=100. * float(chosen.mean()),
            cost=float(stages.costs[answered].mean()),
            shares=shares,
        )


def _checked(logits_by_resolution: Mapping[int, np.ndarray], targets: Any) -> Tuple[Dict[int, np.ndarray], np.ndarray]:
    logits = {size: np.asarray(logits_by_resolution[size]) for size in check_resolutions(logits_by_resolution)}
    classes = np.asarray(targets)
    shapes = {size: values.shape for size, values in logits.items()}
    shape = next(iter(shapes.values()))
    if len(set(shapes.values())) != 1 or len(shape) != 2 or shape[:1] != classes.shape or not classes.size:
        raise ValueError(f'logits have the shapes {shapes} and targets {classes.shape}: [N, K] at each resolution and '
                         '[N] are needed, of the same pictures.')
    if not np.issubdtype(classes.dtype, np.integer) or classes.min() < 0 or classes.max() >= shape[1]:
        raise ValueError(f'targets are classes, whole numbers from 0 to {shape[1] - 1}; they are {classes.dtype}, from '
                         f'{classes.min()} to {classes.max()}.')
    broken = [size for size, values in logits.items() if not np.isfinite(values).all()]
    if broken:
        raise ValueError(f'the logits at {broken} px are not all finite.')
    return logits, classes


def _prices(costs: Optional[Mapping[int, float]], sizes: Tuple[int, ...]) -> Dict[int, float]:
    if costs is None:
        return {size: (size / sizes[-1]) ** 2 for size in sizes}
    missing = [size for size in sizes if size not in costs]
    if missing or not all(float(costs[size]) > 0. for size in sizes):
        raise ValueError(f'costs {dict(costs)}: a positive one for each of {sizes} is needed.')
    return {size: float(costs[size]) for size in sizes}


def _goal(budget: Optional[float], accuracy: Optional[float], count: int) -> Goal:
    if (budget is None) == (accuracy is None):
        raise ValueError('give either budget (mean cost of a picture) or accuracy (percent).')
    if budget is not None:
        return Goal(budget=budget)
    assert accuracy is not None
    if not 1. < accuracy <= 100.:
        raise ValueError(f'accuracy {accuracy}: percent are meant, as in 92.5.')
    return Goal(correct=int(np.ceil(accuracy * count / 100. - 1e-9)))


def _unreachable(goal: Goal, builder: _Builder, chosen: List[Tuple[int, ...]], effort: int) -> str:
    if goal.budget is not None:
        cheapest = best_point(map(builder.stages, chosen), Goal(correct=0), effort)
        assert cheapest is not None
        return (f'budget {goal.budget:g} is below the cheapest cascade ({cheapest.resolutions} px), which costs '
                f'{cheapest.cost:g} a picture.')
    best = best_point(map(builder.stages, chosen), Goal(budget=float('inf')), effort)
    assert best is not None and goal.correct is not None
    count = len(builder.targets)
    return (f'accuracy {100. * goal.correct / count:.2f} % is out of reach on these {count} pictures: the best cascade '
            f'({best.resolutions} px) reaches {100. * best.correct / count:.2f} %, at a cost of {best.cost:g} each.')
