"""Small pictures first, larger ones for those that need it: a confident answer ends the matter."""
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from rs_timm.resolutions import check_resolutions
from rs_timm.runtime.images import as_list, is_ready

from .cascade_fit import CascadeFit, fit_cascade
from .confidence import COMBINATIONS, combine_logits, confidence, stage_weights

__all__ = ['Cascade', 'CascadeFit', 'CascadeResult', 'fit_cascade']


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
        """`pictures_at(resolution, indices)` gives the tensor of those pictures."""
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
    """{resolution: value} for exactly these sizes; one number stands for all."""
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
