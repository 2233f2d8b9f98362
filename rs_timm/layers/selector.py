"""The dial: which resolution a switchable network runs at.

One `ResolutionSelector` is shared by every switchable layer of a network, so that a switch is one assignment,
however deep the network is.
"""
import threading
from operator import index
from typing import Any, Dict, Iterable, List, Optional, Set, Tuple

import torch
from torch import nn

from rs_timm.interpolation import INTERPOLATIONS
from rs_timm.resolutions import check_resolutions, input_resolution

__all__ = ['ResolutionSelector', 'follow_input']


class _Followed(threading.local):
    """What the input of the forward pass that runs in this thread asked for; 0 before the first one."""

    __slots__ = ()  # with a __dict__ of its own beside the thread's, guards of torch.compile look into the wrong one
    resolution: int = 0


class ResolutionSelector:
    """Which BatchNorm set is in use: a pinned one, or the one that the input asks for.

    The pin belongs to the network; what the input asks for belongs to the thread, so that one network can serve
    different sizes in several threads at once.

    Args:
        resolutions: sizes in pixels that own a BatchNorm set, in any order.
        interpolation: how a set for another size is made: 'params', 'affine' or 'nearest'.
    """

    def __init__(self, resolutions: Iterable[int], interpolation: str = 'params') -> None:
        self.resolutions = check_resolutions(resolutions)
        self.interpolation = self.check_interpolation(interpolation)
        self.pinned: Optional[int] = None
        self.touch_idle = True  # give the sets that a training step did not use a zero gradient
        self.prepared: Set[Tuple[int, str]] = set()  # unseen sizes whose sets were made: no second walk over the layers
        self.warned_load: Optional[List[str]] = None  # one warning a load, not one a layer
        self.followed = _Followed()

    @staticmethod
    def check_interpolation(interpolation: str) -> str:
        if interpolation not in INTERPOLATIONS:
            raise ValueError(f"interpolation {interpolation!r} is unknown: use one of {', '.join(INTERPOLATIONS)}.")
        return interpolation

    def current(self) -> int:
        """The resolution in force in this thread; the largest one before anything was seen."""
        return self.pinned or self.followed.resolution or self.resolutions[0]

    def pin(self, resolution: Optional[int]) -> None:
        if resolution is not None:
            (resolution,) = check_resolutions((resolution,))
        self.pinned = resolution

    def follow(self, x: torch.Tensor) -> None:
        """Take the resolution from an image batch `x` [..., H, W]; does nothing while one is pinned."""
        if self.pinned is not None:
            return
        height, width = x.shape[-2:]
        for resolution in self.resolutions:  # comparisons alone: torch.compile then makes one graph per set
            if height == resolution and width == resolution:
                self.followed.resolution = resolution
                return
        # index, not int: torch.compile then fixes a free size in this graph, and with it the set of the graph
        self.followed.resolution = input_resolution(index(height), index(width))

    def __getstate__(self) -> Dict[str, Any]:
        passing = ('followed', 'prepared', 'warned_load')
        return {key: value for key, value in self.__dict__.items() if key not in passing}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state, followed=_Followed(), prepared=set(), warned_load=None)

    def __repr__(self) -> str:
        mode = 'follows the input' if self.pinned is None else f'pinned at {self.pinned}'
        return f'ResolutionSelector({self.resolutions}, {self.interpolation!r}, {mode})'


# A plain function: hooks that are functions survive deepcopy, pickle and torch.jit.script. It stands on the network
# and on its stem, since wrappers such as features_only never call the network's own forward.
def follow_input(self: nn.Module, input: Tuple[torch.Tensor]) -> None:
    if not torch.jit.is_scripting():  # noqa: SIM102 (TorchScript wants this condition alone)
        if input and isinstance(input[0], torch.Tensor) and input[0].ndim >= 3:
            self.rs_selector.follow(input[0])


def selectors_of(model: nn.Module) -> List[ResolutionSelector]:
    """The selectors in `model` or in what it wraps, each once."""
    own = model.__dict__.get('rs_selector')
    if own is not None:
        return [own]
    found = {id(m.__dict__['rs_selector']): m.__dict__['rs_selector']
             for m in model.modules() if 'rs_selector' in m.__dict__}
    return list(found.values())
