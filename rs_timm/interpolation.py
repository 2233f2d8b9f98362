"""The rule by which a size that was not trained gets its BatchNorm set (Section 4.3 of the paper), in one place.

Arithmetic alone, on numpy arrays and torch tensors alike: the layers, the exported programs and the readers of files
all compute with these functions. Only the ONNX nodes of `rs_timm.export.onnx_graph` are a second writing.
"""
from typing import Any, Dict, Mapping, Sequence, Tuple

__all__ = ['BN_TENSORS', 'INTERPOLATIONS', 'blend', 'bracket', 'interpolate_bn', 'scale_and_shift', 'set_weights']

INTERPOLATIONS = ('params', 'affine', 'nearest')
BN_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')


def bracket(resolutions: Sequence[int], resolution: int) -> Tuple[int, int, float]:
    """Return (upper, lower, t): the neighbours of `resolution` and the share of the lower one, 0 <= t < 1.

    Outside the range both are the nearest one and t is 0.

    >>> bracket((224, 192, 160), 168)
    (192, 160, 0.75)
    >>> bracket((224, 192, 160), 64)
    (160, 160, 0.0)
    """
    inside = min(max(resolution, min(resolutions)), max(resolutions))
    upper, lower = min(r for r in resolutions if r >= inside), max(r for r in resolutions if r <= inside)
    return upper, lower, (upper - inside) / (upper - lower) if upper != lower else 0.


def set_weights(resolution: Any, resolutions: Any, interpolation: str) -> Any:
    """Return the weight of every set, [S], as `bracket` and `blend` have it, for a resolution that is an array itself.

    A traced program does not know its size, and so cannot choose two rows.

    >>> import numpy as np
    >>> set_weights(np.array(168.), np.array([224., 192., 160.]), 'params')
    array([0.  , 0.25, 0.75])

    Args:
        resolution: pixels, a float array of no dimension.
        resolutions: pixels, a float array [S], largest first.
        interpolation: one of `INTERPOLATIONS`.
    """
    r, ends = resolutions, (resolutions[:1] + 1, resolutions[-1:] - 1)  # neighbours of the outer two: any size will do
    above, below = r * 0 + ends[0], r * 0 + ends[1]
    above[1:], below[:-1] = r[:-1], r[1:]
    inside = resolution.clip(r[-1], r[0])
    rising, falling = (inside - below) / (r - below), (above - inside) / (above - r)
    if interpolation == 'nearest':
        return ((rising >= 0.5) & (falling > 0.5)) * 1.
    return rising.clip(None, falling).clip(0, 1)


def blend(upper: Mapping[str, Any], lower: Mapping[str, Any], t: float, interpolation: str) -> Dict[str, Any]:
    """Blend arrays of the same names; t = 0 gives `upper`. 'nearest' takes the closer set, the larger at a tie."""
    if interpolation == 'nearest':
        return dict(upper if t <= 0.5 else lower)
    return {name: value + t * (lower[name] - value) for name, value in upper.items()}  # equal values stay as they are


def scale_and_shift(gamma: Any, beta: Any, mean: Any, variance: Any) -> Tuple[Any, Any]:
    """Return the map y = scale * x + shift that a BatchNorm is, each [C]; `variance` has the layer's eps in it."""
    scale = gamma / variance ** 0.5
    return scale, beta - mean * scale


def interpolate_bn(
        upper: Mapping[str, Any],
        lower: Mapping[str, Any],
        t: float,
        mode: str = 'params',
        eps: float = 1e-5,
) -> Dict[str, Any]:
    """Blend two BatchNorm sets into a third one; t = 0 gives `upper`, t = 1 gives `lower`.

    The two linear modes differ: gamma / sqrt(var + eps) is not linear in var.

    >>> import numpy as np
    >>> one = dict(weight=np.array([1.]), bias=np.zeros(1), running_mean=np.zeros(1), running_var=np.ones(1))
    >>> interpolate_bn(one, dict(one, weight=np.array([3.])), 0.5)['weight']
    array([2.])

    Args:
        upper, lower: weight, bias, running_mean, running_var, each [C]. A set without affine parameters or without
            statistics lacks those keys, and so does the result.
        t: share of `lower`, 0 to 1.
        mode: 'params' blends (gamma, beta, mean, var), as the paper does; 'affine' blends the map that they make,
            y = scale * x + shift; 'nearest' takes the closer set (the larger resolution at a tie).
        eps: the eps of both layers.
    """
    if mode == 'affine' and all(name in upper for name in BN_TENSORS):
        upper, lower = _centred(upper, eps), _centred(lower, eps)
    return blend(upper, lower, t, mode)


def _centred(bn: Mapping[str, Any], eps: float) -> Dict[str, Any]:
    """The same map written with mean 0 and variance 1."""
    weight, bias, mean, variance = (bn[name] for name in BN_TENSORS)
    scale, shift = scale_and_shift(weight, bias, mean, variance + eps)
    values = scale * (1. + eps) ** 0.5, shift, mean.clip(0, 0), variance.clip(1, 1)
    return dict(zip(BN_TENSORS, values))
