"""Gradients for the BatchNorm sets that a training step does not use.

timm and DDP expect a gradient on every parameter. A zero gradient alone would not be harmless: weight decay and
momentum would still move a set that has seen nothing. So an idle set gets a zero gradient, and any torch optimizer
passes it over.
"""
from functools import cache
from typing import Any, Iterable, List, Tuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ['touch_idle']

_MARK = '_rs_step'  # 'used' or 'idle' since the last optimizer step; a mark on the parameter survives param groups


class _TouchIdle(torch.autograd.Function):
    """Identity of `x`; sends zeros to the idle parameters on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, used: List[nn.Parameter], *idle: nn.Parameter) -> torch.Tensor:
        ctx.used, ctx.idle = used, idle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        _install_step_hook()
        for p in ctx.used:
            setattr(p, _MARK, 'used')
        for p in ctx.idle:
            if getattr(p, _MARK, None) is None:
                setattr(p, _MARK, 'idle')
        return (grad, None, *(torch.zeros_like(p) if p.grad is None else None for p in ctx.idle))


def touch_idle(x: torch.Tensor, used: Iterable[nn.Parameter], idle: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return `x` [N, C, H, W] unchanged, in a graph that gives each trainable `idle` parameter a zero gradient.

    Optimizers skip parameters that were idle in every backward pass since their last step: no decay, no momentum.
    """
    waiting = [p for p in idle if p.requires_grad]
    return _TouchIdle.apply(x, list(used), *waiting) if waiting else x


def _skip_idle(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    for group in optimizer.param_groups:
        for p in group['params']:
            mark = getattr(p, _MARK, None)
            if mark is not None:
                if mark == 'idle':
                    p.grad = None
                delattr(p, _MARK)


@cache
def _install_step_hook() -> None:
    """Once per process, and only when the first idle gradient is made; inert for every other parameter."""
    register_optimizer_step_pre_hook(_skip_idle)
