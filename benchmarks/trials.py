"""Distillations that were tried beside those of `rs_timm.loss.MODES`.

A trial is a `MREDTask` with another distillation, which `rs_timm.training.train` uses within `tried`. One that beats
full MRED would become a mode of the package.
"""
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import partial
from importlib import import_module
from typing import Any, Dict, List, Mapping, Optional
from unittest import mock

import torch
from torch import nn
from torch.nn import functional as F

from rs_timm.loss import ensemble_weights
from rs_timm.training import MREDTask

ENSEMBLES = ('learned', 'equal', 'entropy')


class Trial(MREDTask):
    """Full MRED (Equation 10) with one thing changed.

    What it counts and averages is in the checkpoint, so that a run may stop and go on.

    Args:
        weight: factor of the distillation.
        first: the update that it begins with.
        temperature: T, which the logits of teachers and students are divided by; the distillation is multiplied by T^2.
        mutual: the gradient goes through the teachers too, which then learn from their students.
        ensemble: 'learned' is that of the paper; in 'equal' each size has the same weight; 'entropy' takes the entropy
            of the answer of a size to a picture, in nats, from its score alpha: whoever is certain weighs more.
        ema_decay: the teachers are a moving average of the network, which forgets by this factor with each update
            (faster at first), at the same sizes; 0: the network itself.
        args, kwargs: of `MREDTask`.
    """

    def __init__(
            self,
            *args: Any,
            weight: float = 1.,
            first: int = 0,
            temperature: float = 1.,
            mutual: bool = False,
            ensemble: str = 'learned',
            ema_decay: float = 0.,
            **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if ensemble not in ENSEMBLES:
            raise ValueError(f'ensemble {ensemble!r} is unknown: use one of {", ".join(ENSEMBLES)}.')
        self.weight, self.first, self.temperature, self.mutual = weight, first, temperature, mutual
        self.ensemble, self.ema_decay, self.updates = ensemble, ema_decay, 0
        self.average: List[nn.Module] = []  # at most one; in a list, so that it is no part of this module

    def forward(self, input: Mapping[int, torch.Tensor], target: torch.Tensor) -> Dict[str, Any]:
        """As `MREDTask`."""
        losses = super().forward(input, target)
        teachers = self._average_logits(input) if self.ema_decay else losses['logits']
        weight = self.weight if self.updates >= self.first else 0.
        self.updates += 1
        rest = losses['classification'] + losses['ensemble']
        if self.temperature == 1 and self.ensemble == 'learned' and not self.mutual and not self.ema_decay:
            own = losses['distillation']
        else:
            own = self._distillation(losses['logits'], teachers)
        return dict(losses, loss=rest + weight * own, distillation=own)

    def _distillation(self, students: Mapping[int, torch.Tensor], teachers: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """Equation 10 for classifiers, logits [N, C], term by term."""
        order, t = self.resolutions, self.temperature
        z = {r: teachers[r].float() if self.mutual else teachers[r].float().detach() for r in order}
        taught_by = [(self._mean(z) / t).log_softmax(dim=1)]
        terms = []
        for r in order:
            log_q = (students[r].float() / t).log_softmax(dim=1)
            terms += [F.kl_div(log_q, log_p, reduction='batchmean', log_target=True) for log_p in taught_by]
            taught_by.append((z[r] / t).log_softmax(dim=1))
        return t ** 2 * 2 / (len(order) + 1) * torch.stack(terms).sum()

    def _mean(self, z: Mapping[int, torch.Tensor]) -> torch.Tensor:
        """The logits of the ensemble [N, C]."""
        stacked = torch.stack([z[r] for r in self.resolutions])  # [S, N, C]
        scores = torch.zeros_like(self.alpha) if self.ensemble == 'equal' else self.alpha.detach()
        if self.ensemble == 'entropy':
            log_p = stacked.log_softmax(dim=2)
            scores = scores[:, None] + (log_p.exp() * log_p).sum(dim=2)  # [S, N]
        return (ensemble_weights(scores).reshape(len(stacked), -1, 1) * stacked).sum(dim=0)

    def _average_logits(self, input: Mapping[int, torch.Tensor]) -> Dict[int, torch.Tensor]:
        """Update the moving average, and let it answer, with the statistics of the batch."""
        own = self._branches()
        if not self.average:
            self.average.append(deepcopy(own))
        average = self.average[0]
        decay = min(self.ema_decay, (1 + self.updates) / (10 + self.updates))
        with torch.no_grad():
            for mean, now in zip(average.parameters(), own.parameters()):
                mean.lerp_(now, 1 - decay)
            logits: Dict[int, torch.Tensor] = average(dict(input))
        return logits

    def get_task_state(self, module: Any = None, ema: bool = False) -> Dict[str, Any]:
        """As `MREDTask`, the updates, and the moving average."""
        state = dict(super().get_task_state(module, ema), updates=self.updates)
        return dict(state, average=self.average[0].state_dict()) if self.average else state

    def load_task_state(self, state: Optional[Dict[str, Any]], *args: Any, **kwargs: Any) -> None:
        """As `MREDTask`, the updates, and the moving average."""
        super().load_task_state(state, *args, **kwargs)
        self.updates = (state or {}).get('updates', 0)
        if 'average' in (state or {}):
            assert state is not None
            self.average = [deepcopy(self._branches())]
            self.average[0].load_state_dict(state['average'])


def tried(trial: Mapping[str, Any]) -> AbstractContextManager[Any]:
    """Within this context `train` makes tasks with the settings `trial` of `Trial`; none: those of the package."""
    module = import_module('rs_timm.training.train')  # the attribute of this name is the function
    return mock.patch.object(module, 'MREDTask', partial(Trial, **trial) if trial else MREDTask)
