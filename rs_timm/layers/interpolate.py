"""BatchNorm sets for sizes that were not trained (Section 4.3 of the paper): pure functions of tensors."""
from typing import Dict

import torch

__all__ = ['BN_TENSORS', 'interpolate_bn']

BN_TENSORS = ('weight', 'bias', 'running_mean', 'running_var')

BNState = Dict[str, torch.Tensor]


def _affine(bn: BNState, eps: float) -> BNState:
    """The same map written with mean 0 and variance 1."""
    scale = bn['weight'] * torch.rsqrt(bn['running_var'] + eps)
    return dict(
        weight=scale * (1. + eps) ** 0.5,
        bias=bn['bias'] - bn['running_mean'] * scale,
        running_mean=torch.zeros_like(bn['running_mean']),
        running_var=torch.ones_like(bn['running_var']),
    )


def interpolate_bn(upper: BNState, lower: BNState, t: float, mode: str = 'params', eps: float = 1e-5) -> BNState:
    """Blend two BatchNorm sets; t = 0 gives `upper`, t = 1 gives `lower`.

    The two linear modes differ: gamma / sqrt(var + eps) is not linear in var.

    >>> one = dict(weight=torch.tensor([1.]), bias=torch.tensor([0.]),
    ...            running_mean=torch.tensor([0.]), running_var=torch.tensor([1.]))
    >>> two = dict(one, weight=torch.tensor([3.]))
    >>> interpolate_bn(one, two, 0.5)['weight']
    tensor([2.])

    Args:
        upper, lower: weight, bias, running_mean, running_var, each [C]. A set without affine parameters or without
            statistics lacks those keys, and so does the result.
        t: share of `lower`, 0 to 1.
        mode: 'params' blends (gamma, beta, mean, var), as the paper does; 'affine' blends the map that they make,
            y = scale * x + shift; 'nearest' takes the closer set (the larger resolution at a tie).
        eps: the eps of both layers.
    """
    if mode == 'nearest':
        return dict(upper if t <= 0.5 else lower)
    if mode == 'affine' and all(name in upper for name in BN_TENSORS):
        upper, lower = _affine(upper, eps), _affine(lower, eps)
    return {name: torch.lerp(value, lower[name], t) for name, value in upper.items()}
