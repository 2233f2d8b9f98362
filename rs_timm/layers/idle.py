"""Gradients for the BatchNorm sets that a backward pass does not use.

They get none, so that no optimizer moves them. Two callers expect a gradient on every parameter nevertheless: DDP,
which waits for it, and tools that look for parameters without one after a first backward pass (timm's tests). They get
zeros (`set_idle_gradients` chooses otherwise). A zero gradient is not harmless: weight decay and momentum would move a
set that has seen nothing. So the set is marked, and a hook takes zeros away again before any torch optimizer steps.
"""
from functools import cache, partial
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple

import torch
from torch import nn
from torch.autograd import Variable
from torch.nn.parallel import DistributedDataParallel
from torch.optim.optimizer import register_optimizer_step_pre_hook

from .switch import ResolutionSelector

__all__ = ['install_step_hook', 'mark_idle', 'watch_idle']

# On each parameter: the number of the last backward pass that used its set, or, if a later one did not, the key of the
# set (through all layers). A mark on the parameter survives param groups.
_MARK = '_rs_step'


class _WatchIdle(torch.autograd.Function):
    """The identity of `x`, which marks on the way back who was used, and sends zeros to the idle where they are due."""

    @staticmethod
    def forward(
            ctx: Any, x: torch.Tensor, selector: ResolutionSelector, zeros: bool, used: List[nn.Parameter],
            keys: List[Any], *idle: nn.Parameter,
    ) -> torch.Tensor:
        ctx.selector, ctx.zeros, ctx.used, ctx.keys, ctx.idle = selector, zeros, used, keys, idle
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[Any, ...]:  # type: ignore[override]
        backward_pass, selector = torch._C._current_graph_task_id(), ctx.selector
        if selector.first_backward is None:
            selector.first_backward = backward_pass
        grouped = torch.distributed.is_available() and torch.distributed.is_initialized()
        first = selector.idle_gradients == 'auto' and selector.first_backward == backward_pass and not grouped
        for p in ctx.used:
            setattr(p, _MARK, backward_pass)
        for p, key in zip(ctx.idle, ctx.keys):
            if getattr(p, _MARK, None) != backward_pass:
                setattr(p, _MARK, key)
        if ctx.zeros or first:
            return (grad, None, None, None, None, *(torch.zeros_like(p) if p.grad is None else None for p in ctx.idle))
        left = [p for p in ctx.idle if p.grad is not None]
        if left:  # of an earlier pass, or zeros of zero_grad(set_to_none=False), which any optimizer would step with
            if selector.leftover[0] != backward_pass:
                selector.leftover = backward_pass, []
                Variable._execution_engine.queue_callback(partial(_drop_zeros, selector.leftover[1]))
            selector.leftover[1].extend(left)
        return grad, None, None, None, None, *[None] * len(ctx.idle)


def watch_idle(
        x: torch.Tensor, selector: ResolutionSelector, used: nn.Module, sets: Iterable[Tuple[str, nn.Module]],
) -> torch.Tensor:
    """Return `x` [N, C, H, W] unchanged, in a graph whose backward pass looks after the sets that are not `used`.

    Args:
        selector: of the network; with the name of a set it names the set through all layers.
        used: the BatchNorm that is about to run.
        sets: name and BatchNorm of all sets of the layer.
    """
    if torch._C._are_functorch_transforms_active():  # torch.func gives what was not used zeros itself
        return x
    waiting = [((id(selector), name), p) for name, bn in sets if bn is not used for p in bn.parameters()
               if p.requires_grad]
    if not waiting:
        return x
    if torch._C._current_graph_task_id() == -1:  # else a checkpointed block is run again, outside of DDP's forward
        selector.in_ddp = DistributedDataParallel._active_ddp_module is not None
    zeros = selector.idle_gradients == 'zero' or selector.idle_gradients == 'auto' and selector.in_ddp
    keys = [key for key, _ in waiting]
    return _WatchIdle.apply(x, selector, zeros, list(used.parameters()), keys, *(p for _, p in waiting))


def mark_idle(selector: ResolutionSelector, sets: Iterable[Tuple[str, nn.Module]]) -> None:
    """Mark all `sets`, for DataParallel, which gives zeros to what its replicas did not use, and tells nobody."""
    for name, bn in sets:
        for p in bn.parameters():
            setattr(p, _MARK, (id(selector), name))


def _drop_zeros(parameters: List[nn.Parameter]) -> None:
    """Take the gradient from the idle among `parameters`, unless it has a value other than zero.

    It has one if the set was used in an earlier pass of the same step (accumulation over sizes), or under DDP by
    another process.
    """
    sets: Dict[Any, List[nn.Parameter]] = {}
    for p in parameters:
        key = getattr(p, _MARK, None)
        if isinstance(key, tuple) and p.grad is not None:
            sets.setdefault(key, []).append(p)
    for idle in sets.values():
        if not torch.stack([p.grad.count_nonzero() for p in idle]).any():  # type: ignore[union-attr]
            for p in idle:
                p.grad = None


def _before_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> Optional[Tuple[Any, Any]]:
    """Drop zeros before a step and after each run of its closure; `args` start with the optimizer itself."""
    parameters = [p for group in optimizer.param_groups for p in group['params']]

    def dropping(closure: Callable[[], Any]) -> Callable[[], Any]:
        def run() -> Any:
            loss = closure()
            _drop_zeros(parameters)
            return loss

        return run

    _drop_zeros(parameters)
    if kwargs.get('closure') is not None:
        return args, dict(kwargs, closure=dropping(kwargs['closure']))
    if len(args) > 1 and callable(args[1]):
        return (args[0], dropping(args[1]), *args[2:]), kwargs
    return None


@cache
def install_step_hook() -> None:
    """Register the hook, once per process, with the first switchable layer; it is inert for every other parameter."""
    register_optimizer_step_pre_hook(_before_step)
