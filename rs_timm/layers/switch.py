"""Set, read and lend the resolution of any switchable network, also inside DDP, EMA or feature wrappers."""
from contextlib import contextmanager
from typing import Iterator, List, Optional, Tuple

import torch
from torch import nn

from .selector import ResolutionSelector, selectors_of
from .switchable_bn import switchable_layers

__all__ = [
    'get_resolution',
    'get_resolutions',
    'is_switchable',
    'set_interpolation',
    'set_resolution',
    'use_resolution',
]


def is_switchable(model: nn.Module) -> bool:
    """Whether `model`, or what it wraps, has private BatchNorm sets."""
    return bool(selectors_of(model))


def _selectors(model: nn.Module) -> List[ResolutionSelector]:
    selectors = selectors_of(model)
    if not selectors:
        raise ValueError(
            f'{type(model).__name__} has no switchable BatchNorm: convert it with rs_timm.convert_switchable_bn(model, '
            "resolutions), or create an 'rs_*' model.")
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
        if resolution is not None and resolution not in selector.resolutions:
            _prepare(model, selector, resolution)


def _prepare(model: nn.Module, selector: ResolutionSelector, resolution: int) -> None:
    key = resolution, selector.interpolation
    if key not in selector.prepared and not model.training:
        for layer in switchable_layers(model):
            layer.set_for(resolution)
        selector.prepared.add(key)


def _set_scripted(model: torch.jit.ScriptModule, resolution: Optional[int]) -> None:
    layers = [m for m in model.modules() if hasattr(m, 'scripted_set')]
    names = sorted({name for layer in layers for name, _ in layer.named_children()}, key=int, reverse=True)
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


def set_interpolation(model: nn.Module, interpolation: str) -> None:
    """How sets for sizes that were not trained are made: 'params' (the paper), 'affine' or 'nearest'."""
    for selector in _selectors(model):
        selector.interpolation = selector.check_interpolation(interpolation)


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
