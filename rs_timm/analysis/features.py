"""Pooled features and the distribution of their values (Figure 3 of the paper)."""
from contextlib import nullcontext
from typing import Any, Iterable, List, Optional, Tuple

import numpy as np
import torch
from torch import nn

from rs_timm.layers import is_switchable, use_resolution

__all__ = ['distribution', 'pooled_features']


@torch.no_grad()
def pooled_features(
        model: nn.Module,
        batches: Iterable[torch.Tensor],
        resolution: int,
        amp_dtype: Optional[torch.dtype] = None,
) -> np.ndarray:
    """The outputs of the global average pooling, float32 [N, C], in evaluation.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 32))
    >>> pooled_features(model, [torch.randn(2, 3, 32, 32)], 32).shape
    (2, 512)

    Args:
        model: a network of timm, switchable or not.
        batches: images [N, 3, H, W].
        resolution: which BatchNorm set to use, pixels.
        amp_dtype: run the network under autocast with this type.
    """
    found: List[torch.Tensor] = []
    network: Any = model
    was_training = model.training
    model.eval()
    try:
        for x in batches:
            pinned: Any = use_resolution(model, resolution) if is_switchable(model) else nullcontext()
            with pinned, torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                found.append(network.forward_head(network.forward_features(x), pre_logits=True).float().cpu())
    finally:
        model.train(was_training)
    if not found:
        raise ValueError('there are no batches: the distribution of no features is not defined.')
    return torch.cat(found).numpy()


def distribution(values: np.ndarray, points: int = 101) -> Tuple[np.ndarray, np.ndarray]:
    """The cumulative distribution function F of `values`, of any shape, as a curve: x and F(x), each [points].

    The shares 0 to 1 are evenly spaced; x is the smallest value with at least that share at or below it.

    >>> x, share = distribution(np.array([[4., 1.], [2., 3.]]), points=5)
    >>> x.tolist(), share.tolist()
    ([1.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.25, 0.5, 0.75, 1.0])

    Source: Section 3.2, Figure 3.
    """
    ordered, shares = np.sort(values, axis=None), np.linspace(0., 1., points)
    rank = np.ceil(np.round(shares * ordered.size, 9)).astype(int)  # rounded: 0.1 * 30 is not quite 3
    return ordered[np.maximum(rank - 1, 0)], shares
