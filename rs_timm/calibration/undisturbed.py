"""Contexts that let a model run for a measurement and leave no trace: modes, compiled graphs, random state."""
import random
from contextlib import contextmanager, nullcontext
from typing import Any, ContextManager, Iterator

import torch
from torch import nn

__all__ = ['eager', 'evaluating', 'random_state_kept']


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout and stochastic depth off; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def eager() -> ContextManager[Any]:
    """A graph that was compiled before knows nothing of our hooks."""
    set_stance = getattr(torch.compiler, 'set_stance', None)  # torch 2.6
    return set_stance('force_eager') if set_stance else nullcontext()


@contextmanager
def random_state_kept(model: nn.Module) -> Iterator[None]:
    """Loaders that shuffle move the random state: every resolution starts from the same one, and it comes back."""
    device = next(model.parameters()).device
    state = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            yield
    finally:
        random.setstate(state)
