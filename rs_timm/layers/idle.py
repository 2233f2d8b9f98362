"""Gradients for the BatchNorm sets that a training step does not use.

timm and DDP expect a gradient on every parameter. A zero gradient alone would not be harmless: weight decay and
momentum would still move a set that has seen nothing. So an idle set gets a zero gradient, and any torch optimizer
passes it over.
"""
from functools import cache
from typing import Any, Callable, Iterable, List, Optional, Tuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ['install_step_hook', 'touch_idle']

# On each parameter, until the next optimizer step: the number of the backward pass that used it, or _IDLE. A mark on the
# parameter survives param groups.
_MARK = '_rs_step'
_IDLE = -1


class _TouchIdle(torch.autograd.Function):
    """Identity of `x`; sends zeros to the idle parameters on the way back."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, used: List[nn.Parameter], *idle: nn.Parameter) -> torch.Tensor:
        ctx.used, ctx.idle = used, idle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        backward_pass = torch._C._current_graph_task_id()
        for p in ctx.used:
            setattr(p, _MARK, backward_pass)
        for p in ctx.idle:
            used_in = getattr(p, _MARK, None)
            # no gradient left of an earlier pass: it was thrown away without a step (zero_grad, a skipped step)
            if used_in is None or p.grad is None and used_in != backward_pass:
                setattr(p, _MARK, _IDLE)
        return (grad, None, *(torch.zeros_like(p) if p.grad is None else None for p in ctx.idle))


def touch_idle(x: torch.Tensor, used: Iterable[nn.Parameter], idle: Iterable[nn.Parameter]) -> torch.Tensor:
    """Return `x` [N, C, H, W] unchanged, in a graph that gives each trainable `idle` parameter a zero gradient.

    Optimizers skip parameters that were idle in every backward pass since their last step: no decay, no momentum.
    """
    waiting = [p for p in idle if p.requires_grad]
    return _TouchIdle.apply(x, list(used), *waiting) if waiting else x


def _drop_idle_gradients(optimizer: torch.optim.Optimizer) -> None:
    idle = []
    for group in optimizer.param_groups:
        for p in group['params']:
            mark = getattr(p, _MARK, None)
            if mark is not None:
                delattr(p, _MARK)
                if mark == _IDLE and p.grad is not None:
                    idle.append(p)
    for p in _unused_by_all_ranks(idle):
        p.grad = None


def _unused_by_all_ranks(idle: List[nn.Parameter]) -> List[nn.Parameter]:
    """Those with a zero gradient: under DDP, another process may have used a set that was idle in this one."""
    if not idle or not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return idle
    used = torch.stack([p.grad.count_nonzero() for p in idle if p.grad is not None]).tolist()
    return [p for p, count in zip(idle, used) if not count]


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Optional[Tuple[Any, Any]]:
    """Step hook: `args` are those of `Optimizer.step`, the optimizer itself and perhaps a closure that runs backward."""
    _drop_idle_gradients(optimizer)
    if kwargs.get('closure') is not None:
        return args, dict(kwargs, closure=_dropping(kwargs['closure'], optimizer))
    if len(args) > 1 and callable(args[1]):
        return (args[0], _dropping(args[1], optimizer), *args[2:]), kwargs
    return None


def _dropping(closure: Callable[[], Any], optimizer: torch.optim.Optimizer) -> Callable[[], Any]:
    def run() -> Any:
        loss = closure()
        _drop_idle_gradients(optimizer)
        return loss

    return run


@cache
def install_step_hook() -> None:
    """Once per process, with the first switchable layer; inert for every other parameter."""
    register_optimizer_step_pre_hook(_before_step)
