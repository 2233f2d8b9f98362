"""ReLU6 in place that is in place.

torch writes the gradient of ReLU6 by its input, and therefore copies the input before it overwrites it: "in place"
saves no memory and costs a copy. The gradient can as well be written by the output, which the next convolution keeps
anyway: MobileNetV2 then keeps two tensors for each BatchNorm with its activation instead of three.

Values and gradients are torch's, to the bit. SiLU and its like are copied for the same reason, but do need their input.
"""
from typing import Any, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .replaced import Replaced

__all__ = ['LeanActivations']


class _HardtanhInPlace(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, low: float, high: float) -> torch.Tensor:
        ctx.mark_dirty(x)
        ctx.bounds = low, high
        F.hardtanh(x, low, high, inplace=True)
        ctx.save_for_backward(x)
        return x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Any, ...]:
        y, = ctx.saved_tensors  # outside of the bounds exactly where the input was
        return torch.ops.aten.hardtanh_backward(grad, y, *ctx.bounds), None, None


def _hardtanh(input: torch.Tensor, min_val: float = -1., max_val: float = 1., inplace: bool = False) -> torch.Tensor:
    if inplace and type(input) is torch.Tensor and torch.is_grad_enabled() and _is_intermediate(input):
        return _HardtanhInPlace.apply(input, min_val, max_val)
    return F.hardtanh(input, min_val, max_val, inplace)


def _relu6(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _hardtanh(input, 0., 6., inplace)


def _is_intermediate(x: torch.Tensor) -> bool:
    return x.requires_grad and not x.is_leaf and not x._is_view()  # the others are torch's, with its errors


class LeanActivations(Replaced):
    """Within it, ReLU6 and Hardtanh in place make no copy of their input for the gradient.

    It changes those of `torch.nn.functional`, and the modules that call them, such as `nn.ReLU6(inplace=True)`. Second
    derivatives are not supported: take them outside.

    >>> act = torch.nn.ReLU6(inplace=True)
    >>> x = torch.tensor([-1., 3., 7.], requires_grad=True)
    >>> with LeanActivations():
    ...     act(x * 1).sum().backward()
    >>> x.grad
    tensor([0., 1., 0.])
    """

    table = {F.hardtanh: _hardtanh, F.relu6: _relu6}

    @staticmethod
    def concerns(model: nn.Module) -> bool:
        """Whether `model` has activations that it changes."""
        return any(isinstance(module, nn.Hardtanh) and module.inplace for module in model.modules())
