"""Multiply-adds, activations and parameters of a network, plain or switchable.

Conventions: one MAdd is one multiplication with its addition, in convolutions and matrix products (linear layers,
attention); BatchNorm, activations, pooling and element-wise operations count nothing. Activations are the elements of
the outputs of all convolutions (Radosavovic et al., Designing Network Design Spaces, CVPR 2020). Parameters are what
an optimizer would see: BatchNorm's running statistics are buffers and not counted.
"""
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from rs_timm.layers import get_resolutions, is_switchable, set_resolution, switchable_layers

__all__ = ['ParameterCounts', 'activations', 'image_channels', 'madds', 'parameter_counts']


def madds(model: nn.Module, resolution: int, batch: int = 1) -> int:
    """Multiply-adds of one forward pass of `model`, in evaluation, on square images. Nothing is computed or changed.

    >>> import timm
    >>> round(madds(timm.create_model('resnet18'), 224) / 1e6, 1)
    1814.1

    Args:
        model: any network on images.
        resolution: side of the input in pixels.
        batch: images in the pass; the result is proportional to it.

    Source: Table 2 of the paper, whose figures are up to 1.3 % higher.
    """
    counter = FlopCounterMode(display=False)
    _forward_on_meta(model, resolution, batch, counter)
    return counter.get_total_flops() // 2  # it counts a multiplication and an addition as two


def activations(model: nn.Module, resolution: int) -> int:
    """Elements of the outputs of all convolutions, for one image: a measure of memory traffic.

    This is the convention of pycls. fvcore, which timm's `benchmark.py` uses, also counts the outputs of matrix
    products (for a ResNet the logits: 1000 more).

    >>> import timm
    >>> round(activations(timm.create_model('resnet50'), 224) / 1e6, 2)
    11.11

    Args:
        model: any network on images.
        resolution: side of the input in pixels.
    """
    counter = _ConvolutionOutputs()
    _forward_on_meta(model, resolution, 1, counter)
    return counter.elements


class _ConvolutionOutputs(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(
            self,
            func: Any,
            types: Sequence[type],
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Mapping[str, Any]] = None,
    ) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket is torch.ops.aten.convolution:
            self.elements += output.numel()
        return output


def _forward_on_meta(model: nn.Module, resolution: int, batch: int, counter: Any) -> None:
    """Run a copy of `model` that has shapes and no data, under `counter`."""
    tensors = [*model.parameters(), *model.buffers()]
    memo = {id(t): nn.Parameter(t.to('meta'), False) if isinstance(t, nn.Parameter) else t.to('meta') for t in tensors}
    copy = deepcopy(model, memo).eval()
    if is_switchable(copy):
        set_resolution(copy, get_resolutions(copy)[0])  # all sets cost the same
    dtype = next((t.dtype for t in tensors if t.is_floating_point()), torch.float32)
    x = torch.empty(batch, image_channels(model), resolution, resolution, device='meta', dtype=dtype)
    with torch.no_grad(), counter:
        copy(x)


def image_channels(model: nn.Module) -> int:
    """Channels of the images that `model` takes, from the first convolution or the space-to-depth in front of it."""
    fold = 1
    for module in model.modules():
        if type(module).__name__ == 'SpaceToDepth':
            fold = int(module.bs) ** 2  # type: ignore[arg-type]
        if isinstance(module, nn.Conv2d):
            return module.in_channels // fold
    raise ValueError(f'{type(model).__name__} has no convolution: what its input looks like is not known.')


@dataclass(frozen=True)
class ParameterCounts:
    """Parameters of a network by owner.

    Attributes:
        shared: those that all resolutions use.
        private: resolution in pixels -> those of its BatchNorm sets; empty for a plain network.
    """

    shared: int
    private: Dict[int, int]

    @property
    def total(self) -> int:
        """All parameters that are stored."""
        return self.shared + sum(self.private.values())

    @property
    def private_share(self) -> float:
        """The part of the total that is in private BatchNorm sets, 0 to 1."""
        return sum(self.private.values()) / self.total if self.total else 0.


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the parameters of `model`, each once, by owner.

    >>> import timm, rs_timm
    >>> counts = parameter_counts(timm.create_model('rs_resnet18'))
    >>> f'{counts.total / 2 ** 20:.2f} x 2^20, {counts.private_share:.2%} private'
    '11.18 x 2^20, 0.41% private'

    Args:
        model: plain or switchable.

    Source: Table 2 of the paper, in units of 2^20.
    """
    private = {}
    if is_switchable(model):
        for resolution in get_resolutions(model):
            sets = nn.ModuleList(layer[str(resolution)] for layer in switchable_layers(model))
            private[resolution] = _count(sets)
    return ParameterCounts(shared=_count(model) - sum(private.values()), private=private)


def _count(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
