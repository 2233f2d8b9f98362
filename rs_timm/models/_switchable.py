"""The mixin that makes a class of timm switchable, and `switchable` and `pack`, which do so to any network."""
from contextlib import nullcontext
from functools import cache
from typing import Any, Dict, Iterable, Mapping, Optional, Tuple, Type, Union

import timm
import torch
from torch import nn

from rs_timm.hub_client import one_try
from rs_timm.layers import (
    SwitchableBatchNorm2d,
    convert_switchable_bn,
    get_interpolation,
    get_resolution,
    get_resolutions,
    set_resolution,
    use_resolution,
)
from rs_timm.layers import pack as pack_layers

from ._checkpoint import checkpoint_filter_fn, weights_origin

__all__ = ['DEFAULT_RESOLUTIONS', 'SwitchableMixin', 'pack', 'switchable']

DEFAULT_RESOLUTIONS = (224, 192, 160, 128, 96)  # Section 4.1


class SwitchableMixin:
    """What `rs_*` models have beyond their stock class: private BatchNorms, and the methods of the switch.

    Each method delegates to the free function of the same name.

    Args:
        args, kwargs: as for the stock class.
        resolutions: sizes in pixels that get a private set.
        interpolation: for other sizes: 'params' (the paper), 'affine' or 'nearest'.
    """

    stock_class: Type[nn.Module]
    stock_architecture: Optional[str] = None  # of the timm model that extract() gives
    checkpoint_metadata: Dict[str, Any]
    derived_from: Optional[str] = None  # the source of pretrained weights, if its licence covers them
    __jit_unused_properties__ = ['resolutions']

    def __init__(
            self,
            *args: Any,
            resolutions: Iterable[int] = DEFAULT_RESOLUTIONS,
            interpolation: str = 'params',
            **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        convert_switchable_bn(self, resolutions, interpolation)  # type: ignore[arg-type]

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """The sizes in pixels that have a private BatchNorm set, largest first."""
        return get_resolutions(self)  # type: ignore[arg-type]

    @torch.jit.ignore
    def set_resolution(self, resolution: Optional[int]) -> None:
        """See `rs_timm.set_resolution`."""
        set_resolution(self, resolution)  # type: ignore[arg-type]

    @torch.jit.ignore
    def get_resolution(self) -> Optional[int]:
        """See `rs_timm.get_resolution`."""
        return get_resolution(self)  # type: ignore[arg-type]

    @torch.jit.ignore
    def use_resolution(self, resolution: Optional[int]) -> Any:
        """See `rs_timm.use_resolution`."""
        return use_resolution(self, resolution)  # type: ignore[arg-type]

    @torch.jit.ignore
    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load as torch does, and also the layouts that `checkpoint_filter_fn` knows."""
        state_dict = checkpoint_filter_fn(dict(state_dict), self)  # type: ignore[arg-type]
        return super().load_state_dict(state_dict, strict=strict, assign=assign)  # type: ignore[misc]


@cache
def _switchable_class(stock_class: Any) -> Any:
    """The stock class with the switch's methods; made on the fly, so it pickles by its stock class."""
    def reduce_ex(self: nn.Module, protocol: int) -> Tuple[Any, ...]:
        return _rebuild, (stock_class,), self.__dict__

    return type(
        f'Switchable{stock_class.__name__}',
        (SwitchableMixin, stock_class),
        dict(
            __module__=__name__,
            __doc__=stock_class.__doc__,
            __annotations__=dict(getattr(stock_class, '__annotations__', {})),  # TorchScript reads Final from them
            __reduce_ex__=reduce_ex,
            stock_class=stock_class,
        ),
    )


def _rebuild(stock_class: Any) -> nn.Module:
    cls: Any = _switchable_class(stock_class)
    return cls.__new__(cls)


def switchable(
        model: Union[str, nn.Module],
        resolutions: Iterable[int] = DEFAULT_RESOLUTIONS,
        pretrained: bool = False,
        interpolation: str = 'params',
        **kwargs: Any,
) -> nn.Module:
    """Make any BatchNorm network of timm resolution-switchable.

    All BatchNorm sets start equal: accuracy at the sizes that the weights were not made for comes from training.

    >>> import rs_timm
    >>> model = rs_timm.switchable('tf_efficientnet_lite0', resolutions=(224, 160, 96))
    >>> model.resolutions
    (224, 160, 96)

    Args:
        model: a name as for `timm.create_model` (tags, 'hf-hub:' and 'local-dir:' included), or a network, which is
            converted in place.
        resolutions: sizes in pixels that get a private BatchNorm set.
        pretrained: load timm's weights of that name; only with a name.
        interpolation: for other sizes: 'params' (the paper), 'affine' or 'nearest'.
        kwargs: passed to `timm.create_model`; only with a name.

    Raises:
        ValueError: the network has no BatchNorm, or its input size is fixed; the message says which.
    """
    if isinstance(model, str):
        if pretrained:  # refuse what cannot be converted before its weights are downloaded
            switchable(model, resolutions, interpolation=interpolation, **kwargs)
        with one_try() if pretrained else nullcontext():
            model = timm.create_model(model, pretrained=pretrained, **kwargs)
        if pretrained:
            model.derived_from = weights_origin(model.pretrained_cfg, kwargs.get('pretrained_cfg_overlay'))
    elif pretrained or kwargs:
        given = ', '.join([*(['pretrained'] if pretrained else []), *kwargs])
        raise ValueError(f'{given}: only for a model name; this {type(model).__name__} exists already.')
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    if cfg.get('fixed_input_size'):
        size = 'x'.join(str(s) for s in cfg.get('input_size', ())[1:])
        raise ValueError(f"{cfg.get('architecture', type(model).__name__)} has a fixed input size ({size}): its layers "
                         'are tied to that size, so there is no resolution to switch.')
    return _with_methods(convert_switchable_bn(model, resolutions, interpolation))


def pack(models: Mapping[int, nn.Module], interpolation: str = 'params') -> nn.Module:
    """Join plain networks that differ in their BatchNorms alone into one switchable network: the inverse of `extract`.

    The result is of the kind that `switchable` gives, with its methods; timm saves it as `rs_switchable`.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18')
    >>> again = rs_timm.pack({r: rs_timm.extract(model, r) for r in model.resolutions})
    >>> again.resolutions
    (224, 192, 160, 128, 96)

    Args:
        models: resolution in pixels -> plain network; all of one architecture. They are left as they are.
        interpolation: for sizes that have no set: 'params' (the paper), 'affine' or 'nearest'.

    Raises:
        ValueError: no model, or weights outside the BatchNorms that differ: the first such tensor is named.
    """
    return _with_methods(pack_layers(models, interpolation))


def _with_methods(model: nn.Module) -> nn.Module:
    """Give a converted network, in place, the methods of the switch, and put its base on record.

    The record is what timm's own save and push need to restore it: see `rs_switchable`.
    """
    if isinstance(model, SwitchableBatchNorm2d):
        return model
    stock_class: Any = type(model)
    model.__class__ = _switchable_class(stock_class)
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    base = cfg.get('architecture')
    if base is not None:  # made by timm
        model.stock_architecture = base
        model.pretrained_cfg = model.default_cfg = dict(cfg, architecture='rs_switchable')
        model._model_args = dict(
            getattr(model, '_model_args', {}),
            base=base,
            resolutions=get_resolutions(model),
            interpolation=get_interpolation(model),
        )
    return model
