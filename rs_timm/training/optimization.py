"""The optimizer of a recipe and its learning rate: timm's, counted in updates, and one-cycle, which timm lacks."""
import warnings
from functools import partial
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from timm.scheduler.scheduler import Scheduler
from torch import nn

from rs_timm.layers import SwitchableBatchNorm2d

from .recipe import Recipe

__all__ = ['OneCycle', 'create_optimizer', 'create_schedule']

_FUSED = ('sgd', 'momentum', 'adam', 'adamw')


def create_optimizer(task: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """The optimizer of `recipe`, from timm, over the network and alpha; torch's own ones in one pass over the weights.

    `rs_resnet18` on a CPU: SGD takes 4 ms instead of 20. Not in float16, where the first gradients overflow, as they
    should: fused optimizers then skip the step within their kernel, after they have made their state, and that of SGD
    is whatever was in memory. Others are not called at all.
    """
    fused = recipe.opt in _FUSED and recipe.precision != 'float16'
    return create_optimizer_v2(
        task,
        opt=recipe.opt,
        lr=recipe.lr,
        weight_decay=recipe.weight_decay,
        momentum=recipe.momentum,
        filter_bias_and_bn=not recipe.decay_norm,
        param_group_fn=None if recipe.private_lr == 1. else partial(_groups, recipe=recipe),
        **(dict(fused=True) if fused else {}),
    )


def _groups(task: nn.Module, recipe: Recipe) -> List[Dict[str, Any]]:
    """timm's groups, without and with weight decay, of what the resolutions share; then those of private BatchNorms."""
    private = {p for m in task.modules() if isinstance(m, SwitchableBatchNorm2d) for p in m.parameters()}
    groups: Dict[Tuple[bool, bool], List[nn.Parameter]] = {}
    for name, p in task.named_parameters():
        if p.requires_grad:
            decays = recipe.decay_norm or not (p.ndim <= 1 or name.endswith('.bias'))
            groups.setdefault((p in private, decays), []).append(p)
    return [dict(params=params, weight_decay=recipe.weight_decay * decays, lr=recipe.lr * recipe.private_lr ** own)
            for (own, decays), params in sorted(groups.items(), key=lambda item: item[0])]


class OneCycle:
    """torch's `OneCycleLR` with the calls of a timm scheduler.

    Momentum goes the other way: from 0.05 above that of the optimizer to 0.05 below it at the peak, and back; for the
    usual 0.9 that is torch's 0.95 and 0.85. Beta1 of Adam and its like, which is no setting of a recipe, goes between
    these two. An optimizer without either, or with momentum 0, has the rate alone.

    Args:
        optimizer: its learning rates are the peaks of the cycle.
        total: updates in the whole run.
        warmup: updates before the one at the peak.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, total: int, warmup: int) -> None:
        peaks = [group['lr'] for group in optimizer.param_groups]
        total = max(total, 2)
        peak_at = min(max(warmup, 1), max(total - 2, 1))
        bounds = _momentum_bounds(optimizer)
        low, high = bounds or (0., 0.)
        self.scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=peaks,
            total_steps=total,
            pct_start=(peak_at + 1) / total,  # torch counts from 1 here
            cycle_momentum=bounds is not None,
            base_momentum=low,
            max_momentum=high,
        )

    def step_update(self, num_updates: int) -> None:
        """Set the rate for the update number `num_updates` (from 0)."""
        if num_updates > self.scheduler.last_epoch:
            with warnings.catch_warnings():  # of an optimizer that has made no step yet: float16 skips its first ones
                warnings.filterwarnings('ignore', message='Detected call of')
                self.scheduler.step()

    def state_dict(self) -> Dict[str, Any]:
        return {key: value for key, value in self.scheduler.state_dict().items() if not callable(value)}

    def load_state_dict(self, state: Dict[str, Any]) -> None:
        self.scheduler.load_state_dict(state)


def _momentum_bounds(optimizer: torch.optim.Optimizer) -> Optional[Tuple[float, float]]:
    """The momentum, or beta1, at the peak of the rate and at both ends; None: there is nothing to move."""
    if 'betas' in optimizer.defaults:
        return 0.85, 0.95
    momentum = optimizer.defaults.get('momentum')
    if not momentum:
        return None
    high = min(momentum + 0.05, max(momentum, 0.99))
    return round(max(momentum - 0.05, 0.), 10), round(high, 10)  # 0.9 gives 0.85 and 0.95 to the last bit


def create_schedule(
        optimizer: torch.optim.Optimizer,
        recipe: Recipe,
        updates_per_epoch: int,
) -> Union[Scheduler, OneCycle]:
    """The schedule of `recipe`; it moves with every update, and its lengths are counted in epochs."""
    if recipe.sched == 'onecycle':
        total, warmup = recipe.epochs * updates_per_epoch, round(recipe.warmup_epochs * updates_per_epoch)
        return OneCycle(optimizer, total, warmup)
    schedule, _ = create_scheduler_v2(
        optimizer,
        sched=recipe.sched,
        num_epochs=recipe.epochs,
        warmup_epochs=recipe.warmup_epochs,
        warmup_lr=recipe.warmup_lr,
        min_lr=recipe.min_lr,
        decay_epochs=recipe.decay_epochs,
        decay_milestones=list(recipe.decay_milestones),
        decay_rate=recipe.decay_rate,
        step_on_epochs=False,
        updates_per_epoch=updates_per_epoch,
    )
    return schedule
