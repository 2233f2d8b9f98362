"""What the BatchNorm sets of a network hold, averaged over the channels (Figure 6 of the paper)."""
from typing import Dict

import torch
from torch import nn

from rs_timm.layers import BN_TENSORS, SwitchableBatchNorm2d

__all__ = ['Means', 'norm_means']

Means = Dict[str, Dict[int, Dict[str, float]]]


def norm_means(model: nn.Module) -> Means:
    """The mean over the channels of each tensor of each BatchNorm set.

    >>> import timm, rs_timm
    >>> means = norm_means(timm.create_model('rs_resnet18', resolutions=(64, 32)))
    >>> means['layer1.0.bn1'][64]
    {'weight': 1.0, 'bias': 0.0, 'running_mean': 0.0, 'running_var': 1.0}

    Args:
        model: a switchable network; a plain one has no sets and gives nothing.

    Returns:
        {layer, in the order of the network: {resolution in pixels, largest first: {'weight' (gamma), 'bias' (beta),
        'running_mean' (mu), 'running_var' (sigma squared): mean}}}; a tensor that a layer lacks is left out.

    Source: Section 4.3, Figure 6.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SwitchableBatchNorm2d)}
    return {
        name: {r: _means(layer.set_for(r)) for r in sorted(map(int, layer.keys()), reverse=True)}
        for name, layer in layers.items()
    }


def _means(bn: nn.Module) -> Dict[str, float]:
    tensors = {name: getattr(bn, name, None) for name in BN_TENSORS}
    return {name: float(t.detach().double().mean()) for name, t in tensors.items() if isinstance(t, torch.Tensor)}
