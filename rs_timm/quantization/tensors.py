"""Whole tensors through the quantisers: shapes, dtypes, memory formats, tracing."""
from contextlib import contextmanager
from typing import Iterator

import torch

from .lq import quantize_rows, sorted_levels

__all__ = [
    'quantize_activation',
    'quantize_weight',
    'rows_of',
    'shaped_as',
    'traced_activation',
    'untraced',
    'wide',
]


def quantize_weight(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`weight` [out, ...] with each value replaced by the nearest level of its output channel; `basis` is [out, b].

    >>> quantize_weight(torch.tensor([[[[0.4]], [[-3.]]]]), torch.tensor([[1., 2.]])).flatten()
    tensor([ 1., -3.])
    """
    return shaped_as(quantize_rows(rows_of(weight, len(weight)), wide(basis), True), weight)


def quantize_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`x` of any shape with each value replaced by the nearest level of the one `basis` [b].

    >>> quantize_activation(torch.tensor([0.4, 1.6, 7.]), torch.tensor([1., 2.]))
    tensor([0., 2., 3.])
    """
    return shaped_as(quantize_rows(rows_of(x, 1), wide(basis).unsqueeze(0), False), x)


def _is_nhwc(x: torch.Tensor) -> bool:
    """Whether it is channels last; a 1 x 1 kernel, which is both, must not become channels last, nor its output."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def rows_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """The values of `x` in rows [count, n], as they lie in memory."""
    return wide(x.permute(0, 2, 3, 1) if _is_nhwc(x) else x).reshape(count, -1)


def shaped_as(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What `rows_of` gave for `x`, in the shape and memory format of `x`."""
    rows = rows.to(x.dtype)
    if _is_nhwc(x):
        return rows.reshape(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return rows.reshape(x.shape)


def wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least: levels and thresholds are compared there."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def untraced() -> Iterator[None]:
    """What is computed here from buffers and weights is a constant of the graph that is being traced."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[arg-type]


def traced_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`quantize_activation` in comparisons with constants, which every exporter knows."""
    with untraced():
        levels = sorted_levels(wide(basis.detach()).unsqueeze(0), signed=False)[0][0]
        thresholds, values = ((levels[1:] + levels[:-1]) / 2).tolist(), levels.tolist()
    quantized = torch.full_like(x, values[0])
    for threshold, value in zip(thresholds, values[1:]):
        quantized = torch.where(x > threshold, value, quantized)
    return quantized
