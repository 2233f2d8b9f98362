"""Gradients of convolution weights by one matrix product, on CPUs: small resolutions end in small maps.

oneDNN computes the gradient of a kernel row by row of the feature map. The last stages of a network see maps of 2 to 8
pixels at small resolutions, where that leaves the vector units almost idle: the weight gradient of a 3x3 convolution
with 512 channels on maps of 4x4 takes three times as long as its forward pass. Gathered into a matrix of all
positions of the batch, it is one product [O, positions] x [positions, C * k * k].
"""
from typing import Any, Dict, Optional, Tuple

import torch
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad
from torch.overrides import TorchFunctionMode

__all__ = ['MatmulWeightGradients', 'pays', 'weight_gradient']

Pair = Tuple[int, int]

# How many weights per position of the batch make the product faster; measured by benchmarks/weight_gradients.py.
# A 1x1 kernel needs no gathering; with matrix units (AMX) the gathered matrix is worth more than without.
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
        rows = pad(rows, (0, 0, padding[1], padding[1], padding[0], padding[0]))
    along_n, along_h, along_w, along_c = rows.stride()
    channels = x.shape[1]
    windows = rows.as_strided(
        (n, h, w, *kernel, channels),
        (along_n, along_h * stride[0], along_w * stride[1], along_h, along_w, along_c),
        rows.storage_offset())
    columns = windows.reshape(n * h * w, kernel[0] * kernel[1] * channels)
    product = grad.permute(0, 2, 3, 1).reshape(n * h * w, out).t() @ columns
    return product.view(out, *kernel, channels).permute(0, 3, 1, 2)


def pays(x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> bool:
    """Whether `weight_gradient` is faster than oneDNN for these shapes and this dtype; kernels of 1x1 and 3x3 only."""
    out, channels, *kernel = weight.shape
    if kernel not in ([1, 1], [3, 3]):
        return False
    size = [(side + 2 * p - k) // s + 1 for side, p, k, s in zip(x.shape[2:], padding, kernel, stride)]
    weights = channels * out * stride[0] * stride[1]
    least = _POINTWISE if kernel == [1, 1] else _MATRIX_UNITS if _has_matrix_units(x.dtype) else _VECTOR_UNITS
    return weights >= least * x.shape[0] * size[0] * size[1]


def _has_matrix_units(dtype: torch.dtype) -> bool:
    return dtype is torch.bfloat16 and torch.cpu._is_amx_tile_supported()


class MatmulWeightGradients(TorchFunctionMode):
    """Within it, convolutions on a CPU take their weight gradient from a matrix product where that is faster.

    Values and gradients are those of torch up to rounding. It obeys autocast. Second derivatives go through torch's
    own convolution only: outside.

    >>> conv = torch.nn.Conv2d(256, 512, 1, bias=False)
    >>> with MatmulWeightGradients():
    ...     conv(torch.randn(2, 256, 4, 4)).sum().backward()
    >>> conv.weight.grad.shape
    torch.Size([512, 256, 1, 1])
    """

    def __torch_function__(
            self,
            func: Any,
            types: Any,
            args: Tuple[Any, ...] = (),
            kwargs: Optional[Dict[str, Any]] = None,
    ) -> Any:
        if func is torch.conv2d and not kwargs:
            return _convolve(*args)
        return func(*args, **(kwargs or {}))


def _convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor] = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
) -> torch.Tensor:
    plain = bias is None and groups == 1 and _pair(dilation) == (1, 1) and not isinstance(padding, str)
    if plain and weight.requires_grad and torch.is_grad_enabled() and x.device.type == 'cpu' and x.dim() == 4:
        if torch.is_autocast_enabled('cpu'):
            dtype = torch.get_autocast_dtype('cpu')
            x, weight = x.to(dtype), weight.to(dtype)
        stride, padding = _pair(stride), _pair(padding)
        if pays(x, weight, stride, padding):
            return _Convolution.apply(x, weight, stride, padding)
    return torch.conv2d(x, weight, bias, stride, padding, dilation, groups)


def _pair(value: Any) -> Pair:
    return (value, value) if isinstance(value, int) else (value[0], value[-1])


class _Convolution(torch.autograd.Function):

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, stride: Pair, padding: Pair) -> torch.Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(x, weight, None, stride, padding)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Optional[torch.Tensor], ...]:
        x, weight = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, x, weight, None, ctx.stride, ctx.padding, (1, 1), False, (0, 0), 1, (True, False, False))
        return grad_x, weight_gradient(x, grad, tuple(weight.shape[2:]), ctx.stride, ctx.padding), None, None
