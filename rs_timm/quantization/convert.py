"""Surgery: a network <-> the same with quantised convolutions."""
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Callable, Dict, List, Optional

import torch
from torch import nn

from rs_timm.layers.convert import replace_modules

from .conv import LQConv2d
from .lq import check_bits, fit_basis

__all__ = ['LQConfig', 'dequantize', 'quantize_', 'quantized_layers']

Filter = Callable[[str, nn.Module], bool]


@dataclass(frozen=True)
class LQConfig:
    """The numbers of bits of a quantised network.

    >>> LQConfig(weight_bits=2, act_bits=None)
    LQConfig(weight_bits=2, act_bits=None)

    Args:
        weight_bits: of a weight, 1 to 8.
        act_bits: of a value that goes into a quantised convolution, 1 to 8; None: full precision.

    Raises:
        ValueError: a number of bits outside of that.
    """

    weight_bits: int = 2
    act_bits: Optional[int] = None

    def __post_init__(self) -> None:
        check_bits('weight_bits', self.weight_bits)
        if self.act_bits is not None:
            check_bits('act_bits', self.act_bits)


def quantize_(
        model: nn.Module,
        config: LQConfig = LQConfig(),
        filter_fn: Optional[Filter] = None,
        fit: bool = True,
) -> nn.Module:
    """Give `model` quantised convolutions, in place, and return it.

    Parameters stay what they are and where they are (an optimizer that holds them goes on), hooks too. The state dict
    gets a `weight_basis`, and with `act_bits` an `act_basis`, beside each quantised `weight`.

    >>> import timm, rs_timm
    >>> model = quantize_(timm.create_model('rs_resnet18'), LQConfig(weight_bits=2))
    >>> len(quantized_layers(model)), type(model.conv1).__name__
    (19, 'Conv2d')

    Args:
        model: any network with convolutions, switchable or not.
        config: how many bits.
        filter_fn: which convolutions, by name and module; None: all but the first one and the classifier, which stay in
            full precision as in LQ-Nets.
        fit: start with bases fitted to the weights that are there. False is the start of LQ-Nets, which suits He's
            initialisation.

    Raises:
        ValueError: no convolution to quantise; one that is quantised already, or that has a way of its own to compute
            (a subclass of `nn.Conv2d`); the message names it.
    """
    chosen = _chosen(model, filter_fn or _default_filter(model))
    layers = {conv: LQConv2d.of(conv, config.weight_bits, config.act_bits) for conv in chosen}
    for conv, layer in layers.items():
        if fit and not conv.weight.is_meta:
            with torch.no_grad():
                rows = conv.weight.float().reshape(conv.out_channels, -1)
                layer.weight_basis.copy_(fit_basis(rows, config.weight_bits))
    replace_modules(model, layers)
    return model


def quantized_layers(model: nn.Module) -> Dict[str, LQConv2d]:
    """Name -> quantised convolution, in order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LQConv2d)}


def dequantize(model: nn.Module) -> nn.Module:
    """A copy of `model` with plain convolutions that have the quantised weights for their own; the output is the same.

    It is the way to stock timm and to what reads stock timm: `dequantize(rs_timm.extract(model, 160))`.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18_w2a32', resolutions=(64, 32)).eval()
    >>> plain, x = dequantize(model), torch.randn(1, 3, 64, 64)
    >>> torch.equal(plain(x), model(x)), len(quantized_layers(plain))
    (True, 0)

    Raises:
        ValueError: a convolution with a quantised input, for which a plain one has no place.
    """
    for name, layer in quantized_layers(model).items():
        if layer.act_basis is not None:
            raise ValueError(f'{name} quantises its input to {len(layer.act_basis)} bits, which no plain convolution '
                             'does: dequantize takes networks with quantised weights alone (act_bits None).')
    plain = deepcopy(model)
    replace_modules(plain, {layer: layer.plain() for layer in quantized_layers(plain).values()})
    return plain


def _chosen(model: nn.Module, filter_fn: Filter) -> List[nn.Conv2d]:
    chosen = [(name, m) for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and filter_fn(name, m)]
    for name, module in chosen:
        if isinstance(module, LQConv2d):
            raise ValueError(f'{name} is quantised already: dequantize(model) first.')
        if type(module) is not nn.Conv2d:
            raise ValueError(f'{name} is a {type(module).__name__}, which computes in a way of its own: leave it out '
                             'with filter_fn=lambda name, module: type(module) is torch.nn.Conv2d and ....')
    if not chosen:
        raise ValueError(f'{type(model).__name__} has no convolution to quantise: filter_fn gets (name, module) and '
                         'returns True for those that are meant.')
    return [module for _, module in chosen]


def _default_filter(model: nn.Module) -> Filter:
    """Choose all convolutions but the first one and those in the classifier."""
    convs = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    get_classifier: Any = getattr(model, 'get_classifier', None)
    heads = get_classifier() if get_classifier else ()
    heads = heads if isinstance(heads, (tuple, list)) else [heads]
    ends = {*convs[:1], *(module for head in heads for module in head.modules())}
    return lambda name, module: module not in ends
