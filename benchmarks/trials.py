"""Distillations that were tried beside those of `rs_timm.loss.MODES`.

A trial is a `MREDTask` with another loss, which `rs_timm.training.train` uses within `tried`. One that beats full MRED
would become a mode of the package.
"""
from contextlib import AbstractContextManager
from functools import partial
from importlib import import_module
from typing import Any, Dict, Mapping, Optional
from unittest import mock

import torch

from rs_timm.training import MREDTask


class Weighted(MREDTask):
    """The recipe's distillation times `weight`, from the update `first` on.

    The updates are counted in the checkpoint, so that a run may stop and go on.
    """

    def __init__(self, *args: Any, weight: float = 1., first: int = 0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.weight, self.first, self.updates = weight, first, 0

    def forward(self, input: Mapping[int, torch.Tensor], target: torch.Tensor) -> Dict[str, Any]:
        """As `MREDTask`."""
        losses = super().forward(input, target)
        weight = self.weight if self.updates >= self.first else 0.
        self.updates += 1
        return dict(losses, loss=losses['loss'] + (weight - 1) * losses['distillation'])

    def get_task_state(self, module: Any = None, ema: bool = False) -> Dict[str, Any]:
        """As `MREDTask`, and the updates."""
        return dict(super().get_task_state(module, ema), updates=self.updates)

    def load_task_state(self, state: Optional[Dict[str, Any]], *args: Any, **kwargs: Any) -> None:
        """As `MREDTask`, and the updates."""
        super().load_task_state(state, *args, **kwargs)
        self.updates = (state or {}).get('updates', 0)


def tried(trial: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Within this context `train` makes tasks with the settings `trial` of `Weighted`; none: those of the package."""
    module = import_module('rs_timm.training.train')  # the attribute of this name is the function
    return mock.patch.object(module, 'MREDTask', partial(Weighted, **trial) if trial else MREDTask)
