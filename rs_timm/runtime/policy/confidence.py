"""How sure a network is of its first class, calibrated; and the logits of several resolutions as one."""
import math
from typing import Mapping, Optional, Sequence, Tuple

import numpy as np

__all__ = ['COMBINATIONS', 'combine_logits', 'confidence', 'fit_temperature', 'stage_weights']

COMBINATIONS = ('last', 'mean', 'alpha')
_RANGE = 1e3  # temperatures are sought from 1 / _RANGE to _RANGE


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
    if min(chosen) < 0. or not chosen[0] > 0.:
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
