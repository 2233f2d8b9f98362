"""The thresholds of a cascade, chosen on held-out logits: most accuracy for a budget, or least cost for an accuracy."""
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rs_timm.resolutions import check_resolutions

from .cascade import COMBINATIONS, CascadeFit, combine_logits, confidence, fit_temperature, stage_weights

__all__ = ['fit_cascade']

EFFORT = 4096
NEVER = 2.  # a threshold that no probability reaches
_SLACK = 1. + 1e-9  # rounding of a mean must not turn a budget down that is met exactly


@dataclass(frozen=True)
class Goal:
    """Either the most correct answers within a mean cost, or the lowest mean cost with so many correct answers."""

    budget: Optional[float] = None
    correct: Optional[int] = None

    def best(self, correct: np.ndarray, cost: np.ndarray) -> Optional[int]:
        """Index of the best of several points; None if none will do. Ties: the cheaper, or the more correct."""
        if self.budget is not None:
            allowed = np.flatnonzero(cost <= self.budget * _SLACK)
            first, second = -correct, cost
        else:
            allowed = np.flatnonzero(correct >= self.correct)
            first, second = cost, -correct
        if not len(allowed):
            return None
        best = allowed[first[allowed] == first[allowed].min()]
        return int(best[second[best].argmin()])

    def rank(self, point: 'Point') -> Tuple[float, float]:
        """A value that is the smaller, the better the point is."""
        return (-point.correct, point.cost) if self.budget is not None else (point.cost, -point.correct)


@dataclass(frozen=True)
class Point:
    """A cascade: thresholds of all resolutions but the last; correct answers, and mean cost of a picture."""

    resolutions: Tuple[int, ...]
    thresholds: Tuple[float, ...]
    correct: int
    cost: float


@dataclass(frozen=True)
class Stages:
    """The view that a cascade of these resolutions has of N pictures.

    Attributes:
        resolutions: pixels, in the order of use.
        confidence: [N] for each stage but the last.
        correct: bool [N] for each stage.
        costs: of an answer at each stage, with all passes before it, [S].
    """

    resolutions: Tuple[int, ...]
    confidence: List[np.ndarray]
    correct: List[np.ndarray]
    costs: np.ndarray

    def answered(self, thresholds: Sequence[float]) -> np.ndarray:
        """Index of the stage that answers, int [N]."""
        answered = np.full(len(self.correct[0]), len(self.resolutions) - 1)
        for stage in reversed(range(len(thresholds))):
            answered[self.confidence[stage] >= thresholds[stage]] = stage
        return answered


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
    counts = range(1, len(sizes) + 1) if subsets else [len(sizes)]
    chosen = [subset for count in counts for subset in combinations(sizes, count)]
    best = best_point(map(builder.stages, chosen), goal, effort)
    if best is None:
        raise ValueError(_unreachable(goal, builder, chosen, effort))
    return builder.result(best)


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
        """Temperature, confidence [N] and correctness [N] after these resolutions."""
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
    if missing or not all(0. < float(costs[size]) < np.inf for size in sizes):
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


def separating_thresholds(confidence: np.ndarray, limit: int) -> np.ndarray:
    """Thresholds, ascending, that separate the values in every way, from 'all answer' to 'none does'.

    Halfway between neighbours, so that a last bit of rounding changes no answer. At most `limit` of them, at quantiles
    of the pictures.

    >>> separating_thresholds(np.array([0.5, 0.9, 0.5]), 10)
    array([0.25, 0.7 , 2.  ])
    """
    values, counts = np.unique(confidence, return_counts=True)
    halfway = (values[:-1] + values[1:]) / 2.
    thresholds = np.concatenate([values[:1] / 2., np.where(halfway > values[:-1], halfway, values[1:]), [NEVER]])
    if len(thresholds) <= limit:
        return thresholds
    below = np.concatenate([[0], counts.cumsum()])  # pictures that go on under each threshold
    wanted = np.linspace(0, below[-1], limit)
    return thresholds[np.unique(np.searchsorted(below, wanted))]


def best_point(candidates: Iterable[Stages], goal: Goal, effort: int = EFFORT) -> Optional[Point]:
    """The best point over all thresholds of all candidates; None if none reaches the goal."""
    points = (point for stages in candidates for point in _points(stages, goal, effort))
    return min(points, key=goal.rank, default=None)


def _points(stages: Stages, goal: Goal, effort: int) -> Iterator[Point]:
    """The best that the last threshold can make of each choice of the others."""
    if len(stages.resolutions) == 1:
        correct, cost = stages.correct[0].sum(), stages.costs[0]
        if goal.best(np.array([correct]), np.array([cost])) is not None:
            yield Point(stages.resolutions, (), int(correct), float(cost))
        return
    last = _LastThreshold(stages)
    outer = stages.confidence[:-1]
    limit = max(2, int(round(effort ** (1. / max(1, len(outer))))))
    for thresholds in product(*(separating_thresholds(values, limit) for values in outer)):
        point = last.best(thresholds, goal)
        if point is not None:
            yield point


class _LastThreshold:
    """Correct answers and cost for every value of the last threshold at once, by sums in the order of confidence."""

    def __init__(self, stages: Stages) -> None:
        self.stages = stages
        self.order = np.argsort(-stages.confidence[-1], kind='stable')
        descending = stages.confidence[-1][self.order]
        # after how many pictures a threshold can lie: not between equal ones
        self.cuts = np.concatenate([[0], np.flatnonzero(np.diff(descending)) + 1, [len(descending)]])
        self.thresholds = separating_thresholds(descending, len(descending) + 1)[::-1]  # one for each cut
        here, beyond = (stages.correct[stage][self.order].astype(np.int64) for stage in (-2, -1))
        self.gain, self.beyond = here - beyond, beyond

    def best(self, thresholds: Tuple[float, ...], goal: Goal) -> Optional[Point]:
        stages, total = self.stages, len(self.order)
        answered = stages.answered(thresholds)  # the last stage stands for "went on"
        before = len(thresholds)
        correct = sum(int(stages.correct[stage][answered == stage].sum()) for stage in range(before))
        cost = sum(float(stages.costs[stage]) * int((answered == stage).sum()) for stage in range(before))
        left = (answered[self.order] == len(stages.resolutions) - 1).astype(np.int64)
        correct_at = correct + int(self.beyond @ left) + _sums(self.gain * left)[self.cuts]
        here = _sums(left)[self.cuts]
        cost_at = (cost + stages.costs[-2] * here + stages.costs[-1] * (left.sum() - here)) / total
        index = goal.best(correct_at, cost_at)
        if index is None:
            return None
        chosen = (*map(float, thresholds), float(self.thresholds[index]))
        return Point(stages.resolutions, chosen, int(correct_at[index]), float(cost_at[index]))


def _sums(values: np.ndarray) -> np.ndarray:
    """Sums of the first 0, 1, ... N values."""
    return np.concatenate([[0], np.cumsum(values)])
