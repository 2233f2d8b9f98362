"""Gradients past the quantisers."""
from typing import Any, Tuple

import torch

__all__ = ['ClippedStraightThrough', 'StraightThrough']


class StraightThrough(torch.autograd.Function):
    """Gives `quantized`, and hands its gradient to `x` as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class ClippedStraightThrough(torch.autograd.Function):
    """Gives `quantized`, and hands its gradient to `x` where that is in [0, top]; what is clipped gets none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantized: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward((x >= 0) & (x <= top))
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None
