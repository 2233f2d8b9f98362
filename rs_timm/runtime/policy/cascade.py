"""A cascade of resolutions: the smallest first, larger ones for pictures whose answer is not confident."""
import math
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rs_timm.format.records import Record
from rs_timm.resolutions import check_resolutions

from ..preprocessing import as_list, is_ready

__all__ = ['COMBINATIONS', 'Cascade', 'CascadeFit', 'CascadeResult', 'combine_logits', 'confidence', 'fit_temperature',
           'stage_weights']

COMBINATIONS = ('last', 'mean', 'alpha')
_RANGE = 1e3  # temperatures are sought from 1 / _RANGE to _RANGE


@dataclass(frozen=True)
class CascadeFit(Record):
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
    _kind = 'rs_timm cascade'
    _remedy = 'CascadeFit.save writes one'

    def __post_init__(self) -> None:
        object.__setattr__(self, 'resolutions', check_resolutions(self.resolutions)[::-1])
        sizes = set(self.resolutions)
        if self.combine not in COMBINATIONS:
            raise ValueError(f"combine {self.combine!r}: choose among {', '.join(map(repr, COMBINATIONS))}")
        for name, expected in (('thresholds', set(self.resolutions[:-1])), ('temperatures', sizes), ('shares', sizes)):
            values = getattr(self, name)
            least = 0. if name == 'shares' else 1e-12
            if set(values) != expected or not all(least <= value < math.inf for value in values.values()):
                raise ValueError(f'{name} {values}: a finite positive number for each of {sorted(expected)} is needed')
        stage_weights(self.resolutions, self.combine, self.alpha)
        if not 0. <= self.accuracy <= 100. or not 0. <= self.cost < math.inf:
            raise ValueError(f'accuracy {self.accuracy}, cost {self.cost}: percent, and a finite positive number')


@dataclass(frozen=True)
class CascadeResult:
    """Logits [N, K], and for each picture the resolution that answered, int64 [N]."""

    logits: np.ndarray
    answered: np.ndarray

    def shares(self) -> Dict[int, float]:
        """Resolution -> share of the pictures that it answered."""
        sizes, counts = np.unique(self.answered, return_counts=True)
        return {int(size): int(count) / len(self.answered) for size, count in zip(sizes, counts)}


class Cascade:
    """Classifies at the smallest resolution, and goes on to the next with the pictures that are not confident.

    Those that go on are gathered into a smaller batch, and only they are preprocessed at the next resolution.

    >>> import rs_timm
    >>> session = rs_timm.runtime.Session(rs_timm.switchable('test_resnet', (64, 48, 32), num_classes=10))
    >>> cascade = Cascade(session, (32, 64), thresholds=0.999)
    >>> result = cascade([np.zeros((90, 80, 3), np.uint8), np.ones((70, 99, 3), np.uint8)])
    >>> result.logits.shape, result.answered
    ((2, 10), array([64, 64]))

    Args:
        session: a `Session`; or anything with its `preprocess` and `run`.
        resolutions: sizes in pixels; they are used from the smallest to the largest.
        thresholds: resolution -> the probability of the first class at which it answers, for all but the largest; one
            number for all. Above 1: it never answers.
        temperatures: resolution -> what its logits are divided by before the probability is taken; one number for all.
        combine: of a picture's logits so far: 'last' takes the last, 'mean' their mean, 'alpha' their mean weighted
            with `alpha`.
        alpha: resolution -> weight in the ensemble (Equation 5 of the paper); None: `session.info.alpha`.
        max_batch: pictures that are preprocessed and classified at a time: what bounds memory.

    Raises:
        ValueError: resolutions, thresholds or weights that do not fit together.
    """

    def __init__(
            self,
            session: Any,
            resolutions: Sequence[int] = (96, 160, 224),
            thresholds: Any = 0.8,
            temperatures: Any = 1.,
            combine: str = 'last',
            alpha: Optional[Mapping[int, float]] = None,
            max_batch: int = 32,
    ) -> None:
        self.session = session
        self.resolutions: Tuple[int, ...] = check_resolutions(resolutions)[::-1]
        self.thresholds = _by_size('thresholds', thresholds, self.resolutions[:-1])
        self.temperatures = _by_size('temperatures', temperatures, self.resolutions)
        if combine not in COMBINATIONS:
            raise ValueError(f"combine {combine!r}: choose among {', '.join(map(repr, COMBINATIONS))}.")
        if max_batch < 1:
            raise ValueError(f'max_batch {max_batch}: at least 1.')
        if combine == 'alpha' and alpha is None:
            alpha = getattr(session.info, 'alpha', None)
        self.combine = combine
        self.weights = stage_weights(self.resolutions, combine, alpha)
        self.max_batch = max_batch

    @classmethod
    def fitted(cls, session: Any, fit: CascadeFit, max_batch: int = 32) -> 'Cascade':
        """The cascade that `fit_cascade` chose."""
        return cls(session, fit.resolutions, fit.thresholds, fit.temperatures, fit.combine, fit.alpha, max_batch)

    def __call__(self, images: Any) -> CascadeResult:
        """Classify pictures: one or a list of what `session.preprocess` takes (file, PIL, uint8 array)."""
        if is_ready(images):
            raise ValueError('a ready batch has one resolution, and a cascade needs several: use cascade.run({96: ..., '
                             '224: ...}), or give pictures.')
        pictures = as_list(images)
        return self._climb(len(pictures), lambda size, chosen: self.session.preprocess(
            [pictures[index] for index in chosen], size))

    def run(self, tensors: Mapping[int, np.ndarray]) -> CascadeResult:
        """Classify ready tensors, float32 [N, 3, r, r] for each resolution r."""
        missing = [size for size in self.resolutions if size not in tensors]
        if missing:
            raise ValueError(f'tensors for {missing} px are missing: the cascade uses {self.resolutions}.')
        counts = {size: len(tensors[size]) for size in self.resolutions}
        if len(set(counts.values())) != 1 or 0 in counts.values():
            raise ValueError(f'the tensors are to have the same number of pictures, one or more: {counts}.')
        return self._climb(counts[self.resolutions[0]], lambda size, chosen: tensors[size][chosen])

    def _climb(self, count: int, pictures_at: Callable[[int, np.ndarray], np.ndarray]) -> CascadeResult:
        """Answer all pictures; `pictures_at(resolution, indices)` gives the tensor of those at the indices."""
        waiting = np.arange(count)
        answered = np.zeros(count, np.int64)
        logits: Optional[np.ndarray] = None
        seen: List[np.ndarray] = []  # logits of the waiting pictures at each resolution so far
        for size in self.resolutions:
            seen.append(self._network(size, waiting, pictures_at))
            combined = combine_logits(seen, self.weights)
            logits = np.empty((count, combined.shape[1]), combined.dtype) if logits is None else logits
            done = self._is_confident(size, combined)
            logits[waiting[done]] = combined[done]
            answered[waiting[done]] = size
            waiting, seen = waiting[~done], [part[~done] for part in seen]
            if not len(waiting):
                break
        assert logits is not None and not len(waiting)
        return CascadeResult(logits, answered)

    def _is_confident(self, size: int, logits: np.ndarray) -> np.ndarray:
        if size == self.resolutions[-1]:
            return np.ones(len(logits), bool)
        return confidence(logits, self.temperatures[size]) >= self.thresholds[size]

    def _network(
            self,
            size: int,
            waiting: np.ndarray,
            pictures_at: Callable[[int, np.ndarray], np.ndarray],
    ) -> np.ndarray:
        """Logits of the waiting pictures, `max_batch` at a time."""
        parts = [waiting[start:start + self.max_batch] for start in range(0, len(waiting), self.max_batch)]
        return np.concatenate([self.session.run(pictures_at(size, part), size) for part in parts])


def _by_size(name: str, values: Any, sizes: Sequence[int]) -> Dict[int, float]:
    """Return {resolution: value} for exactly these sizes; one number stands for all."""
    if not isinstance(values, Mapping):
        values = dict.fromkeys(sizes, values)
    wrong = sorted({*sizes} ^ {*values})
    if wrong:
        raise ValueError(f'{name} {dict(values)}: one for each of {tuple(sizes)} is needed; {wrong} differ.')
    chosen = {size: float(values[size]) for size in sizes}
    for size, value in chosen.items():
        if not value > 0.:
            raise ValueError(f'{name} {value} at {size} px: it must be positive.')
    return chosen


def confidence(logits: np.ndarray, temperature: float = 1.) -> np.ndarray:
    """The probability of the most likely class, float64 [N], of softmax(logits / temperature).

    >>> confidence(np.log([[0.6, 0.4], [0.1, 0.9]])).round(6)
    array([0.6, 0.9])

    Args:
        logits: [N, K].
        temperature: as fitted by `fit_temperature`.
    """
    scaled = logits.astype(np.float64) / temperature
    return 1. / np.exp(scaled - scaled.max(axis=1, keepdims=True)).sum(axis=1)


def fit_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The temperature at which the mean cross-entropy of softmax(logits / temperature) is smallest.

    In b = 1 / temperature the cross-entropy is convex, and its derivative is the mean of E_p[z] - z_target, with p
    the softmax of b z: bisection finds its root. Where there is none (every picture is classified correctly, or the
    logits are worse than none), the nearer end of 0.001 to 1000 is returned.

    Args:
        logits: [N, K].
        targets: classes, integers [N].

    Source: Guo et al., On Calibration of Modern Neural Networks, ICML 2017, Section 4.2.
    """
    z = logits.astype(np.float64)
    z = z - z.max(axis=1, keepdims=True)
    target = z[np.arange(len(z)), targets]

    def slope(b: float) -> float:
        p = np.exp(b * z)
        return float(((p * z).sum(axis=1) / p.sum(axis=1) - target).mean())

    low, high = 1. / _RANGE, _RANGE
    if slope(low) >= 0.:
        return 1. / low
    if slope(high) <= 0.:
        return 1. / high
    while high / low > 1. + 1e-10:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0. else (low, middle)
    return 1. / math.sqrt(low * high)


def stage_weights(
        resolutions: Sequence[int],
        combine: str,
        alpha: Optional[Mapping[int, float]] = None,
) -> Optional[Tuple[float, ...]]:
    """Weight of each stage in the combination, in the order of `resolutions`; None for 'last'.

    Raises:
        ValueError: 'alpha' without weights, or with weights that lack a resolution, are negative or all zero.
    """
    if combine == 'last':
        return None
    if combine == 'mean':
        return (1.,) * len(resolutions)
    if not alpha:
        raise ValueError("combine='alpha' needs the weights of the ensemble: alpha={224: 0.4, ...}; the model's file "
                         "has none. Or take combine='mean'.")
    weights = {int(size): float(weight) for size, weight in alpha.items()}
    missing = [size for size in resolutions if size not in weights]
    if missing:
        raise ValueError(f'alpha {weights} has no weight for {missing} px.')
    chosen = tuple(weights[size] for size in resolutions)
    if not (all(0. <= weight < math.inf for weight in chosen) and chosen[0] > 0.):
        raise ValueError(f'alpha {weights}: weights must not be negative, and the one of the smallest resolution, '
                         'which answers alone at times, is positive.')
    return chosen


def combine_logits(parts: Sequence[np.ndarray], weights: Optional[Sequence[float]]) -> np.ndarray:
    """Their mean with the first of `weights`, or the last of them if there are none; all [N, K].

    >>> combine_logits([np.array([[0., 4.]]), np.array([[4., 0.]])], (3., 1., 1.))
    array([[1., 3.]])
    """
    if weights is None:
        return parts[-1]
    used = weights[:len(parts)]
    assert len(used) == len(parts)
    return sum(part * (weight / sum(used)) for part, weight in zip(parts, used))  # type: ignore[return-value]
