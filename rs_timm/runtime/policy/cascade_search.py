"""The search behind `fit_cascade`: all thresholds that tell the pictures apart."""
from dataclasses import dataclass
from itertools import product
from typing import Iterable, Iterator, List, Optional, Sequence, Tuple

import numpy as np

__all__ = ['EFFORT', 'Goal', 'NEVER', 'Point', 'Stages', 'best_point', 'separating_thresholds']

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

    def prefers(self, point: 'Point', other: Optional['Point']) -> bool:
        return other is None or self._rank(point) < self._rank(other)

    def _rank(self, point: 'Point') -> Tuple[float, float]:
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
    """What a cascade of these resolutions sees of N pictures.

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
    best: Optional[Point] = None
    for stages in candidates:
        for point in _points(stages, goal, effort):
            if goal.prefers(point, best):
                best = point
    return best


def _points(stages: Stages, goal: Goal, effort: int) -> Iterator[Point]:
    """For all thresholds but the last: the best that the last one can make of them."""
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
