"""Gradients for the BatchNorm sets that a training step does not use.

timm and DDP expect a gradient on every parameter. A zero gradient alone would not be harmless: weight decay and
momentum would still move a set that has seen nothing. So an idle set gets a zero gradient, and any torch optimizer
passes it over.
"""
from functools import cache
from typing import Any, Callable, Dict, Hashable, Iterable, List, Mapping, NamedTuple, Optional, Tuple

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

__all__ = ['install_step_hook', 'touch_idle']

# On each parameter, until the next optimizer step: the number of the backward pass that used it, or the `_Idle` set
# that it belongs to. A mark on the parameter survives param groups.
_MARK = '_rs_step'


class _Idle(NamedTuple):
    """A set, through all layers, that no backward pass of this process has used."""

    key: Hashable


class _TouchIdle(torch.autograd.Function):
    """Identity of `x`; sends zeros to the idle parameters on the way back."""

    @staticmethod
    def forward(
            ctx: Any, x: torch.Tensor, used: List[nn.Parameter], keys: List[Hashable], *idle: nn.Parameter,
    ) -> torch.Tensor:
        ctx.used, ctx.keys, ctx.idle = used, keys, idle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        backward_pass = torch._C._current_graph_task_id()
        for p in ctx.used:
            setattr(p, _MARK, backward_pass)
        for p, key in zip(ctx.idle, ctx.keys):
            used_in = getattr(p, _MARK, None)
            # no gradient left of an earlier pass: it was thrown away without a step (zero_grad, a skipped step)
            if used_in is None or p.grad is None and used_in != backward_pass:
                setattr(p, _MARK, _Idle(key))
        return (grad, None, None, *(torch.zeros_like(p) if p.grad is None else None for p in ctx.idle))


def touch_idle(
        x: torch.Tensor, used: Iterable[nn.Parameter], idle: Mapping[Hashable, Iterable[nn.Parameter]],
) -> torch.Tensor:
    """Return `x` [N, C, H, W] unchanged, in a graph that gives each trainable `idle` parameter a zero gradient.

    Optimizers skip parameters that were idle in every backward pass since their last step: no decay, no momentum.
    `idle` names the set, over all layers, that parameters belong to.
    """
    waiting = [(key, p) for key, parameters in idle.items() for p in parameters if p.requires_grad]
    if not waiting or torch._C._are_functorch_transforms_active():  # torch.func gives what was not used zeros itself
        return x
    return _TouchIdle.apply(x, list(used), [key for key, _ in waiting], *(p for _, p in waiting))


def _drop_idle_gradients(optimizer: torch.optim.Optimizer) -> None:
    idle: Dict[Hashable, List[nn.Parameter]] = {}
    for group in optimizer.param_groups:
        for p in group['params']:
            mark = p.__dict__.pop(_MARK, None)
            if isinstance(mark, _Idle) and p.grad is not None:
                idle.setdefault(mark.key, []).append(p)
    for parameters in idle.values():
        if not _used_by_another_rank(parameters):
            for p in parameters:
                p.grad = None


def _used_by_another_rank(parameters: List[nn.Parameter]) -> bool:
    """Under DDP another process may have used a set that was idle in this one: then some gradient is not zero."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return False
    return bool(torch.stack([p.grad.count_nonzero() for p in parameters if p.grad is not None]).any())


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Optional[Tuple[Any, Any]]:
    """Step hook; `args` are those of `Optimizer.step`: itself, perhaps a closure that runs backward."""
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
