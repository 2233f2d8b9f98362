"""Activations in place that are in place.

Where the gradient of an activation is written by its input, torch copies the input before it overwrites it: ReLU6 in
place holds two tensors and copies one, which is what "in place" is meant to avoid. The gradient of ReLU6 can as well be
written by the output, which the next convolution keeps anyway: MobileNetV2 then keeps two tensors for each BatchNorm
with activation instead of three. SiLU and its like do need their input: out of place they keep the same two tensors,
without the copy.

Values and gradients are torch's, to the bit.
"""
from functools import partial
from typing import Any, Callable, Tuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from .replaced import Replaced

__all__ = ['LeanActivations']

_NEED_INPUT = (F.silu, F.hardswish, F.hardsigmoid, F.mish)
_MODULES = (nn.Hardtanh, nn.SiLU, nn.Hardswish, nn.Hardsigmoid, nn.Mish)


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
    if inplace and _differentiated(input) and type(input) is torch.Tensor:
        return _HardtanhInPlace.apply(input, min_val, max_val)
    return F.hardtanh(input, min_val, max_val, inplace)


def _relu6(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _hardtanh(input, 0., 6., inplace)


def _out_of_place(func: Callable[..., torch.Tensor], input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return func(input, inplace=inplace and not _differentiated(input))


def _differentiated(x: torch.Tensor) -> bool:
    return x.requires_grad and torch.is_grad_enabled() and not x.is_leaf  # a leaf: torch's error


class LeanActivations(Replaced):
    """Within it, activations in place make no copy of their input for the gradient.

    They are those of `torch.nn.functional`, and modules that call these, such as `nn.ReLU6(inplace=True)`. SiLU and its
    like return a new tensor, as if they were not in place. Second derivatives are not supported: take them outside.

    >>> act = torch.nn.ReLU6(inplace=True)
    >>> x = torch.tensor([-1., 3., 7.], requires_grad=True)
    >>> with LeanActivations():
    ...     act(x * 1).sum().backward()
    >>> x.grad
    tensor([0., 1., 0.])
    """

    table = {
        F.hardtanh: _hardtanh,
        F.relu6: _relu6,
        **{func: partial(_out_of_place, func) for func in _NEED_INPUT},
    }

    @staticmethod
    def concerns(model: nn.Module) -> bool:
        """Whether `model` has activations that it changes."""
        return any(isinstance(module, _MODULES) and module.inplace for module in model.modules())
