"""The dial: which resolution a switchable network runs at, and the functions that turn and read it.

One `ResolutionSelector` is shared by every switchable layer of a network, so that a switch is one assignment, however
deep the network is. The functions find it inside DDP, EMA or feature wrappers too.
"""
import threading
from contextlib import contextmanager
from operator import index
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set, Tuple

import torch
from torch import nn

from rs_timm.interpolation import INTERPOLATIONS
from rs_timm.resolutions import MAX_RESOLUTIONS, check_resolutions, input_resolution

__all__ = [
    'ResolutionSelector',
    'follow_input',
    'get_interpolation',
    'get_resolution',
    'get_resolutions',
    'is_switchable',
    'learned_alpha',
    'selectors_of',
    'set_idle_gradients',
    'set_interpolation',
    'set_resolution',
    'use_resolution',
]


class _Followed(threading.local):
    """The resolution that the input of this thread's forward pass asked for; 0 before the first one."""

    __slots__ = ()  # with a __dict__ of its own beside the thread's, guards of torch.compile look into the wrong one
    resolution: int = 0


class ResolutionSelector:
    """The choice of a BatchNorm set: a pinned one, or the one that the input asks for.

    The pin belongs to the network; what the input asks for belongs to the thread, so that one network can serve
    different sizes in several threads at once.

    Args:
        resolutions: sizes in pixels that own a BatchNorm set, in any order.
        interpolation: how a set for another size is made: 'params', 'affine' or 'nearest'.
    """

    def __init__(self, resolutions: Iterable[int], interpolation: str = 'params') -> None:
        self.resolutions = check_resolutions(resolutions)
        if len(self.resolutions) > MAX_RESOLUTIONS:
            raise ValueError(f'{len(self.resolutions)} resolutions: a network has BatchNorm sets for at most '
                             f'{MAX_RESOLUTIONS}, and makes those of other sizes from them.')
        self.interpolation = self.check_interpolation(interpolation)
        self.pinned: Optional[int] = None
        self.idle_gradients = 'auto'  # see set_idle_gradients
        self._start()

    def _start(self) -> None:
        """Give the state that belongs to this process alone, and to no copy."""
        self.prepared: Set[Tuple[int, str]] = set()  # unseen sizes whose sets were made: no second walk over the layers
        self.warned: Dict[str, Any] = {}  # one warning for a network, not one a layer
        self.first_backward: Optional[int] = None  # number of the first backward pass, see idle.py
        self.in_ddp = False  # the last forward pass
        self.remade = False  # a set averages all its batches (momentum None), as when statistics are made anew
        self.leftover: Tuple[int, List[nn.Parameter]] = 0, []  # of a backward pass: idle ones that have a gradient
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
        own = ('followed', 'prepared', 'warned', 'first_backward', 'in_ddp', 'leftover', 'remade')
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._start()

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
    """The selectors in `model` or in what it wraps, each once; none if the layers are gone, as in a traced graph."""
    own = model.__dict__.get('rs_selector')
    if own is not None:
        return [own]
    found = (m.__dict__.get('selector') for m in model.modules())
    return list({id(s): s for s in found if isinstance(s, ResolutionSelector)}.values())


def is_switchable(model: nn.Module) -> bool:
    """Whether `model`, or what it wraps, has private BatchNorm sets."""
    return bool(selectors_of(model))


def _selectors(model: nn.Module) -> List[ResolutionSelector]:
    selectors = selectors_of(model)
    if not selectors:
        graph = isinstance(model, torch.fx.GraphModule)
        traced = ' (a graph keeps the set of the size it was traced at)' if graph else ''
        raise ValueError(
            f'{type(model).__name__} has no switchable BatchNorm{traced}: convert it with '
            "rs_timm.convert_switchable_bn(model, resolutions), or create an 'rs_*' model.")
    return selectors


def set_resolution(model: nn.Module, resolution: Optional[int]) -> None:
    """Pin `model` to a resolution; None lets it follow its input again, as a fresh model does.

    A switch is one assignment. The BatchNorm set for a size that was not trained is made from its neighbours at the
    first switch to it, and kept.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18')
    >>> rs_timm.set_resolution(model, 160)
    >>> rs_timm.get_resolution(model)
    160

    Args:
        model: a switchable network, or a wrapper of one (DDP, DataParallel, EMA, features_only, torch.compile), or a
            scripted one (private sets only).
        resolution: pixels, or None.

    Raises:
        ValueError: not a positive whole number, or a network without switchable BatchNorm.
    """
    if isinstance(model, torch.jit.ScriptModule):
        return _set_scripted(model, resolution)
    for selector in _selectors(model):
        selector.pin(resolution)
        key = resolution, selector.interpolation
        if not (resolution is None or resolution in selector.resolutions or key in selector.prepared or model.training):
            for layer in model.modules():
                if hasattr(layer, 'set_for'):
                    layer.set_for(resolution)  # type: ignore[operator]
            selector.prepared.add(key)  # type: ignore[arg-type]


def _set_scripted(model: torch.jit.ScriptModule, resolution: Optional[int]) -> None:
    layers = [m for m in model.modules() if hasattr(m, 'scripted_set')]
    names = sorted({name for layer in layers for name, _ in layer.named_children()}, key=int, reverse=True)
    if not layers:
        raise ValueError(f'{type(model).__name__} has no switchable BatchNorm: torch.jit.trace keeps the set of one '
                         'size; torch.jit.script keeps them all.')
    if str(resolution) not in names:
        raise ValueError(f'a scripted network has the resolutions ({", ".join(names)}), not {resolution}: it neither '
                         'follows its input nor interpolates.')
    for layer in layers:
        layer.scripted_set = str(resolution)


def get_resolution(model: nn.Module) -> Optional[int]:
    """The pinned resolution in pixels, or None while `model` follows its input."""
    return _selectors(model)[0].pinned


def get_resolutions(model: nn.Module) -> Tuple[int, ...]:
    """The resolutions with a private BatchNorm set, in pixels, largest first."""
    return _selectors(model)[0].resolutions


def learned_alpha(model: nn.Module) -> Dict[int, float]:
    """The learned weight of each resolution in the ensemble, largest first; empty if none are known."""
    alpha = (getattr(model, 'checkpoint_metadata', None) or {}).get('alpha') or {}
    return {int(size): float(alpha[size]) for size in sorted(alpha, key=int, reverse=True)}


def get_interpolation(model: nn.Module) -> str:
    """The rule by which sets for sizes that were not trained are made; see `set_interpolation`."""
    return _selectors(model)[0].interpolation


def set_interpolation(model: nn.Module, interpolation: str) -> None:
    """Choose how sets for sizes that were not trained are made: 'params' (the paper), 'affine' or 'nearest'."""
    for selector in _selectors(model):
        selector.interpolation = selector.check_interpolation(interpolation)


def set_idle_gradients(model: nn.Module, idle_gradients: str) -> None:
    """Choose what a backward pass gives to the parameters of the sets that it did not use.

    >>> import timm
    >>> model = timm.create_model('rs_resnet18')
    >>> set_idle_gradients(model, 'none')

    Args:
        model: a switchable network, or a wrapper of one.
        idle_gradients: 'none': no gradient, so that no optimizer moves them; 'zero': a gradient of zero, which torch's
            optimizers are kept from using (other ones would apply weight decay and momentum); 'auto' (the default):
            'zero' inside DistributedDataParallel, which waits for every gradient, and in the first backward pass of a
            network outside of any process group, for tools that look for parameters without one; else 'none'. (With
            'none', DDP needs find_unused_parameters=True.)

    Raises:
        ValueError: another value.
    """
    if idle_gradients not in ('auto', 'none', 'zero'):
        raise ValueError(f'idle_gradients {idle_gradients!r} is unknown: use one of auto, none, zero.')
    for selector in _selectors(model):
        selector.idle_gradients = idle_gradients


@contextmanager
def use_resolution(model: nn.Module, resolution: Optional[int]) -> Iterator[nn.Module]:
    """Run a block at `resolution` pixels (None: following the input); what was set before comes back, also on error.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18').eval()
    >>> with rs_timm.use_resolution(model, 96):
    ...     logits = model(torch.randn(1, 3, 96, 96))
    >>> rs_timm.get_resolution(model) is None
    True
    """
    before = [(selector, selector.pinned) for selector in _selectors(model)]
    set_resolution(model, resolution)
    try:
        yield model
    finally:
        for selector, pinned in before:
            selector.pinned = pinned
