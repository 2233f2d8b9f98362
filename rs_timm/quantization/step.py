"""When the bases move: with the step of the optimizer that moves their weights.

The forward passes of a step, at all resolutions and in all parts of an accumulated batch, add up the normal equations
of the least-squares problem. After `optimizer.step()` each basis goes a tenth of the way to the solution. So all
passes of a step, those that activation checkpointing runs again included, see the same levels; a step that is skipped
moves no basis; and processes that train together add up their equations in one reduction, so that they agree.
"""
from functools import cache
from typing import TYPE_CHECKING, Any, List, Optional, Tuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.optim.optimizer import register_optimizer_step_post_hook

from .lq import solve_basis

if TYPE_CHECKING:
    from .conv import LQConv2d

__all__ = ['MOMENTUM', 'Equations', 'Pending', 'watch']

MOMENTUM = 0.9  # of the moving average

Equations = Tuple[torch.Tensor, torch.Tensor]

# torch knows no way from an optimizer, which holds parameters, to the layers that they belong to
_LAYERS: 'WeakSet[LQConv2d]' = WeakSet()


class Pending:
    """Normal equations (B^T B [R, b, b], B^T x [R, b]), summed since the last step."""

    def __init__(self) -> None:
        self.equations: Optional[Equations] = None

    def add(self, gram: torch.Tensor, moment: torch.Tensor) -> None:
        if self.equations is not None:
            gram, moment = gram + self.equations[0], moment + self.equations[1]
        self.equations = gram, moment

    def take(self) -> Optional[Equations]:
        equations, self.equations = self.equations, None
        return equations


def watch(layer: 'LQConv2d') -> None:
    """From now on optimizers move the bases of `layer` with its weights."""
    _LAYERS.add(layer)
    _install_hook()


@cache
def _install_hook() -> None:
    """Once per process, with the first quantised layer; inert for all other parameters."""
    register_optimizer_step_post_hook(_after_step)


def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    owners = {id(layer.weight): layer for layer in _LAYERS}
    # the optimizer's order is the same in all processes
    layers = [owners[id(p)] for group in optimizer.param_groups for p in group['params'] if id(p) in owners]
    for layer in layers:
        layer.forget_quantized()  # fused optimizers write without raising a tensor's version
    layers = [layer for layer in layers if layer.pending()]
    equations = _summed([layer.take_pending() for layer in layers])
    for layer, (weight, act) in zip(layers, equations):
        bases = layer.weight_basis, None if layer.act_basis is None else layer.act_basis.unsqueeze(0)
        new_weight, new_act = (_moved(basis, terms) for basis, terms in zip(bases, (weight, act)))
        layer.move_bases(new_weight, None if new_act is None else new_act[0])


def _moved(basis: Optional[torch.Tensor], equations: Optional[Equations]) -> Optional[torch.Tensor]:
    """The moving average of `basis` [R, b] and the solution."""
    if basis is None or equations is None:
        return None
    return MOMENTUM * basis + (1 - MOMENTUM) * solve_basis(*equations, basis)


def _summed(
        pairs: List[Tuple[Optional[Equations], Optional[Equations]]],
) -> List[Tuple[Optional[Equations], Optional[Equations]]]:
    """Added up over the processes; there must be the same layers in each."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return pairs
    tensors = [tensor for pair in pairs for equations in pair if equations is not None for tensor in equations]
    if not tensors:
        return pairs
    flat = torch.cat([tensor.flatten() for tensor in tensors])
    dist.all_reduce(flat)
    parts = iter(flat.split([tensor.numel() for tensor in tensors]))

    def summed(equations: Optional[Equations]) -> Optional[Equations]:
        return None if equations is None else (next(parts).view_as(equations[0]), next(parts).view_as(equations[1]))

    return [(summed(weight), summed(act)) for weight, act in pairs]
