"""Gradients of convolutions that leave no vector units of a CPU idle, and ReLU6 in place that is in place.

Weights: oneDNN sums over a feature map row by row. The last stages of a network see maps of 2 to 8 pixels at small
resolutions: the weight gradient of a 3x3 convolution with 512 channels on maps of 4x4 takes three times as long as its
forward pass. Gathered into a matrix of all positions of the batch, it is one product [O, positions] x
[positions, C * k * k].

Inputs: in bfloat16 the input gradient of a depthwise convolution with a stride is a plain loop. Spread out with zeros
to the output of stride 1, the gradient goes through the fast forward kernel: 14 to 60 times as fast, though three
quarters of what it reads are zeros.

ReLU6: torch writes its gradient by the input, and therefore copies the input before it overwrites it: "in place" saves
no memory and costs a copy. The gradient can as well be written by the output, which the next convolution keeps anyway:
MobileNetV2 then keeps two tensors for each BatchNorm with its activation instead of three. Values and gradients are
torch's, to the bit. SiLU and its like are copied for the same reason, but do need their input.

The thresholds were measured with oneDNN 3.12.0, as torch 2.14.1 has it (`torch.__config__.show()` says which one yours
has); `benchmarks/cpu_gradients.py` measures both gradients and the rules anew. `Recipe.own_kernels`, `--no-own-kernels`
on the command line, turns all of this off.
"""
from functools import partial
from typing import Any, Callable, Dict, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

__all__ = ['OwnKernels', 'has_matrix_units', 'input_gradient', 'pays', 'spreads', 'weight_gradient']

Pair = Tuple[int, int]

# How many weights per position of the batch, times the area of the stride, make the product faster. A 1x1 kernel needs
# no gathering; with matrix units (AMX) the gathered matrix is worth more than without.
_POINTWISE, _MATRIX_UNITS, _VECTOR_UNITS = 1, 16, 256


def weight_gradient(x: torch.Tensor, grad: torch.Tensor, kernel: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
    """Gradient of the weight of a convolution without groups and dilation.

    >>> x, weight = torch.randn(2, 8, 5, 5), torch.randn(4, 8, 3, 3, requires_grad=True)
    >>> y = torch.conv2d(x, weight, padding=1)
    >>> y.sum().backward()
    >>> grad = weight_gradient(x, torch.ones_like(y), (3, 3), (1, 1), (1, 1))
    >>> torch.allclose(grad, weight.grad, atol=1e-4)
    True

    Args:
        x: input [N, C, H, W].
        grad: gradient of the output [N, O, h, w].
        kernel: height and width of the weight.
        stride, padding: of the convolution.

    Returns:
        [O, C, *kernel], channels_last.
    """
    n, out, h, w = grad.shape
    rows = x.permute(0, 2, 3, 1)
    if any(padding):
        rows = F.pad(rows, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    along_n, along_h, along_w, along_c = rows.stride()
    channels = x.shape[1]
    windows = rows.as_strided(
        (n, h, w, *kernel, channels),
        (along_n, along_h * stride[0], along_w * stride[1], along_h, along_w, along_c),
        rows.storage_offset())
    columns = windows.reshape(n * h * w, kernel[0] * kernel[1] * channels)
    product = grad.permute(0, 2, 3, 1).reshape(n * h * w, out).t() @ columns
    return product.view(out, *kernel, channels).permute(0, 3, 1, 2)


def pays(x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair, dtype: torch.dtype) -> bool:
    """Whether `weight_gradient` is faster than oneDNN for these shapes, computed in `dtype`; kernels of 1x1 and 3x3."""
    out, channels, *kernel = weight.shape
    if kernel not in ([1, 1], [3, 3]):
        return False
    size = [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(x.shape[2:], padding, kernel, stride)]
    weights = channels * out * stride[0] * stride[1]
    least = _POINTWISE if kernel == [1, 1] else _MATRIX_UNITS if has_matrix_units(dtype) else _VECTOR_UNITS
    return weights >= least * x.shape[0] * size[0] * size[1]


def has_matrix_units(dtype: torch.dtype = torch.bfloat16) -> bool:
    """Whether this CPU multiplies matrices of `dtype` by AMX."""
    supported = getattr(torch.cpu, '_is_amx_tile_supported', bool)  # since torch 2.5; bool() is False
    return dtype is torch.bfloat16 and supported()


def input_gradient(grad: torch.Tensor, weight: torch.Tensor, size: Pair, stride: Pair, padding: Pair) -> torch.Tensor:
    """Gradient of the input of a depthwise convolution with a stride, without dilation.

    >>> x, weight = torch.randn(2, 8, 7, 6, requires_grad=True), torch.randn(8, 1, 3, 3)
    >>> y = torch.conv2d(x, weight, stride=2, padding=1, groups=8)
    >>> y.sum().backward()
    >>> grad = input_gradient(torch.ones_like(y), weight, (7, 6), (2, 2), (1, 1))
    >>> torch.allclose(grad, x.grad, atol=1e-5)
    True

    Args:
        grad: gradient of the output [N, C, h, w].
        weight: [C, 1, *kernel].
        size: height and width of the input.
        stride, padding: of the convolution; the padding is smaller than the kernel.

    Returns:
        [N, C, *size], channels_last.
    """
    n, channels = grad.shape[:2]
    kernel = weight.shape[2:]
    height, width = (side + 2 * p - k + 1 for side, p, k in zip(size, padding, kernel))
    spread = grad.new_zeros(n, height, width, channels).permute(0, 3, 1, 2)
    spread[:, :, ::stride[0], ::stride[1]] = grad
    rest = [k - 1 - p for k, p in zip(kernel, padding)]
    return torch.conv2d(spread, weight.flip(2, 3), None, 1, rest, 1, channels)


def spreads(
        x: torch.Tensor,
        weight: torch.Tensor,
        stride: Pair,
        padding: Pair,
        groups: int,
        dtype: torch.dtype,
) -> bool:
    """Whether `input_gradient` is faster than oneDNN, computed in `dtype`."""
    depthwise = 1 < groups == x.shape[1] == weight.shape[0]
    inside = all(p < k for p, k in zip(padding, weight.shape[2:]))
    return depthwise and inside and stride != (1, 1) and dtype is torch.bfloat16


class _WeightCasts:
    """Copies of weights in the dtype that convolutions compute in, one for all resolutions.

    A lean one gives the weight itself, which the backward pass casts again. All copies at once are half the size of the
    gradients.
    """

    def __init__(self, lean: bool) -> None:
        self._lean = lean
        self._copies: Dict[torch.Tensor, Tuple[int, torch.Tensor]] = {}

    def __call__(self, weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        plain = weight.detach()
        if weight.dtype is dtype or self._lean and weight.is_leaf:
            return plain
        if not weight.is_leaf:  # made anew by each forward pass
            return plain.to(dtype)
        version, copy = self._copies.get(weight, (None, plain))
        if version != weight._version or copy.dtype is not dtype:
            copy = plain.to(dtype)
            self._copies[weight] = weight._version, copy
        return copy


def _convolve(
        cast: Callable[[torch.Tensor, torch.dtype], torch.Tensor],
        input: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor] = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
) -> torch.Tensor:
    plain = bias is None and _pair(dilation) == (1, 1) and not isinstance(padding, str)
    if plain and torch.is_grad_enabled() and input.device.type == 'cpu' and input.dim() == 4:
        stride, padding, dtype = _pair(stride), _pair(padding), _computed_in(input)
        by_product = groups == 1 and weight.requires_grad and pays(input, weight, stride, padding, dtype)
        if by_product or input.requires_grad and spreads(input, weight, stride, padding, groups, dtype):
            return _Convolution.apply(input.to(dtype), weight, cast(weight, dtype), stride, padding, groups)
    return torch.conv2d(input, weight, bias, stride, padding, dilation, groups)


def _computed_in(x: torch.Tensor) -> torch.dtype:
    """The dtype to which autocast, if it is on, brings a convolution of `x`."""
    casts = torch.is_autocast_enabled('cpu') and x.dtype is not torch.float64
    return torch.get_autocast_dtype('cpu') if casts else x.dtype


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Convolution(torch.autograd.Function):
    """A convolution whose weight gradient is ours, if it has no groups, or whose input gradient is, if it is depthwise.

    `kept` is the weight too, or its copy in the dtype of the input. The gradients of all resolutions are summed in the
    weight's own dtype.
    """

    @staticmethod
    def forward(
            ctx: Any,
            x: torch.Tensor,
            weight: torch.Tensor,
            kept: torch.Tensor,
            stride: Pair,
            padding: Pair,
            groups: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(x, kept)
        ctx.geometry, ctx.groups, ctx.dtype = (stride, padding), groups, weight.dtype
        return torch.conv2d(x, kept.to(x.dtype), None, stride, padding, 1, groups)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        x, kept = ctx.saved_tensors
        weight = kept.to(x.dtype)
        for_x, for_weight, *_ = ctx.needs_input_grad
        dense = ctx.groups == 1
        mask = for_x and dense, for_weight and not dense, False
        grad_x, grad_weight, _ = torch.ops.aten.convolution_backward(
            grad, x, weight, None, *ctx.geometry, (1, 1), False, (0, 0), ctx.groups, mask)
        if dense:
            grad_weight = weight_gradient(x, grad, tuple(weight.shape[2:]), *ctx.geometry)
        elif for_x:
            grad_x = input_gradient(grad, weight, tuple(x.shape[2:]), *ctx.geometry)
        return grad_x, None if grad_weight is None else grad_weight.to(ctx.dtype), None, None, None, None


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
    # leaves and views are torch's, with its errors
    if (inplace and type(input) is torch.Tensor and torch.is_grad_enabled() and input.requires_grad
            and not input.is_leaf and not input._is_view()):
        return _HardtanhInPlace.apply(input, min_val, max_val)
    return F.hardtanh(input, min_val, max_val, inplace)


def _relu6(input: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return _hardtanh(input, 0., 6., inplace)


class OwnKernels(TorchFunctionMode):
    """A context in which convolutions on CPUs have the faster of two gradients, and ReLU6 in place copies no input.

    Values and gradients are those of torch, those of convolutions up to rounding. It obeys autocast. What has no faster
    way here (biases, groups, dilation, other devices) is torch's own. It changes `torch.conv2d` and ReLU6 and Hardtanh
    of `torch.nn.functional`, and the modules that call them. Second derivatives are not supported: take them outside.

    It may be entered several times, once for each resolution: weights are then cast to autocast's dtype once.

    >>> conv = torch.nn.Conv2d(256, 512, 1, bias=False)
    >>> with OwnKernels():
    ...     conv(torch.randn(2, 256, 4, 4)).sum().backward()
    >>> conv.weight.grad.shape
    torch.Size([512, 256, 1, 1])

    Args:
        lean: keep no copies of weights in autocast's dtype for the backward pass.
        convolutions: leave those to torch if False.
    """

    def __init__(self, lean: bool = False, convolutions: bool = True) -> None:
        super().__init__()
        self.table: Mapping[Callable[..., Any], Callable[..., Any]] = {
            F.hardtanh: _hardtanh, F.relu6: _relu6,
            **({torch.conv2d: partial(_convolve, _WeightCasts(lean))} if convolutions else {})}

    def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        return self.table.get(func, func)(*args, **(kwargs or {}))
