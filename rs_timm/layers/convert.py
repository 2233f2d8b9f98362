"""Surgery: plain network <-> switchable network. Every step here has an inverse."""
from copy import deepcopy
from typing import Any, Iterable, List, Mapping, Tuple

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rs_timm.crops import crop_at, crops_of
from rs_timm.resolutions import check_resolutions

from .switch import ResolutionSelector, follow_input, get_resolutions, selectors_of
from .switchable_bn import SwitchableBatchNorm2d, switchable_layers

__all__ = ['convert_switchable_bn', 'extract', 'insert_resolution', 'pack', 'remove_resolution', 'replace_modules']


def convert_switchable_bn(
        model: nn.Module,
        resolutions: Iterable[int],
        interpolation: str = 'params',
) -> nn.Module:
    """Give every BatchNorm of `model` one private copy for each resolution, in place, and return the network.

    All sets start equal to the BatchNorm that was there. Convolutions and linear layers stay shared. The result follows
    the size of its input until `set_resolution` pins one.

    >>> import timm
    >>> model = convert_switchable_bn(timm.create_model('resnet18'), (224, 160, 96))
    >>> type(model).__name__, get_resolutions(model)
    ('ResNet', (224, 160, 96))

    Args:
        model: any network with BatchNorm layers. Convert before it is wrapped (DDP, EMA) or given to an optimizer.
        resolutions: sizes in pixels, in any order.
        interpolation: for sizes that have no set: 'params' (the paper), 'affine' or 'nearest'.

    Raises:
        ValueError: the network is switchable already, or has no BatchNorm (the message says what it has).

    Source: Section 3.1.
    """
    if selectors_of(model):
        raise ValueError(f'{type(model).__name__} is switchable already, for {get_resolutions(model)}: see '
                         'add_resolution and remove_resolution, or extract() a plain network first.')
    selector = ResolutionSelector(resolutions, interpolation)
    batch_norms = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if not batch_norms:
        raise ValueError(f'{type(model).__name__} has no BatchNorm layer{_other_norms(model)}: private BatchNorm sets '
                         'are what makes a network resolution-switchable, so there is nothing to convert.')
    if isinstance(model, _BatchNorm):
        return _switchable(model, selector)
    replace_modules(model, {bn: _switchable(bn, selector) for bn in batch_norms})
    for module in _entrances(model):
        module.rs_selector = selector  # type: ignore[assignment]
        module.register_forward_pre_hook(follow_input)
    return model


def _switchable(bn: _BatchNorm, selector: ResolutionSelector) -> SwitchableBatchNorm2d:
    forward_hooks, pre_hooks = bn._forward_hooks, bn._forward_pre_hooks
    bn._forward_hooks, bn._forward_pre_hooks = type(forward_hooks)(), type(pre_hooks)()
    first, *others = selector.resolutions
    layer = SwitchableBatchNorm2d({first: bn, **{r: deepcopy(bn) for r in others}}, selector)
    layer._forward_hooks, layer._forward_pre_hooks = forward_hooks, pre_hooks  # features_only hooks stay on the layer
    return layer.train(bn.training)


def replace_modules(module: nn.Module, replacements: Mapping[Any, nn.Module]) -> None:
    """Replace submodules, old -> new, in place; one that is used in several places stays one."""
    for parent in list(module.modules()):
        for name, child in list(parent._modules.items()):  # named_children() would name a shared one once
            if child in replacements:
                setattr(parent, name, replacements[child])


def _entrances(model: nn.Module) -> List[nn.Module]:
    """The modules that are called with the image: the network, and all that hold its first layer, down to that layer.

    Not the layer alone: a block of parallel branches (RepVGG, MobileOne) may run another branch first. Not the network
    alone: feature wrappers call its parts.
    """
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) or type(module).__name__ == 'SpaceToDepth':
            parts = name.split('.') if name else []
            path = (model.get_submodule('.'.join(parts[:length])) for length in range(len(parts) + 1))
            return [m for m in path if type(m) not in (nn.ModuleList, nn.ModuleDict)]  # those are never called
    return [model]


def _other_norms(model: nn.Module) -> str:
    kinds = sorted({type(m).__name__ for m in model.modules() if 'norm' in type(m).__name__.lower()})
    standardised = any(type(m).__name__.startswith(('ScaledStd', 'StdConv')) for m in model.modules())
    kinds += ['weight-standardised convolutions'] if standardised else []
    return f" (it uses {', '.join(kinds)})" if kinds else ''


def _plain_copy(model: nn.Module) -> nn.Module:
    """A deep copy that shares nothing with `model`, without selector and hooks, of the stock class."""
    plain = deepcopy(model)
    for module in plain.modules():
        if module.__dict__.pop('rs_selector', None) is not None:
            for key, hook in list(module._forward_pre_hooks.items()):
                if hook is follow_input:
                    del module._forward_pre_hooks[key]
        stock = getattr(type(module), 'stock_class', None)
        if stock is not None:
            module.__class__ = stock
            for name in ('stock_architecture', 'checkpoint_metadata'):
                module.__dict__.pop(name, None)
    return plain


def extract(model: nn.Module, resolution: int) -> nn.Module:
    """The plain network that `model` is at `resolution`: a copy of the stock class, with bit-identical output.

    It loads strictly into the stock architecture and is the way to every exporter. Sizes without a set of their own get
    the interpolated one. The inverse is `pack`.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18').eval()
    >>> plain = rs_timm.extract(model, 144)
    >>> x = torch.randn(1, 3, 144, 144)
    >>> type(plain).__name__, torch.equal(plain(x), model(x))
    ('ResNet', True)

    Args:
        model: a switchable network (unwrapped).
        resolution: pixels.

    Raises:
        ValueError: no switchable BatchNorm, or a resolution that is no positive int.
    """
    get_resolutions(model)
    (resolution,) = check_resolutions((resolution,))
    if isinstance(model, SwitchableBatchNorm2d):
        return _thaw(model.set_for(resolution), model)
    plain = _plain_copy(model)
    layers: List[Any] = switchable_layers(plain)
    replacements = {layer: _thaw(layer.set_for(resolution), layer) for layer in layers}
    for layer, bn in replacements.items():
        bn._forward_hooks, bn._forward_pre_hooks = layer._forward_hooks, layer._forward_pre_hooks
    replace_modules(plain, replacements)
    _rename_architecture(plain, model, resolution)
    return plain


def _thaw(bn: nn.Module, layer: SwitchableBatchNorm2d) -> nn.Module:
    """A copy of a set, trainable where the layer is (interpolated sets are frozen)."""
    upper = layer[str(layer.selector.resolutions[0])]
    plain = deepcopy(bn).train(layer.training)
    for parameter, like in zip(plain.parameters(), upper.parameters()):
        parameter.requires_grad_(like.requires_grad)
    return plain


def _rename_architecture(plain: nn.Module, model: nn.Module, resolution: int) -> None:
    """Name the stock architecture and the size's crop in the cfg of an extracted model, and no switchable weights."""
    args = plain.__dict__.get('_model_args')
    if args is not None:
        own = ('resolutions', 'interpolation', 'base')
        plain._model_args = {key: value for key, value in args.items() if key not in own}  # type: ignore[assignment]
    cfg = getattr(plain, 'pretrained_cfg', None)
    crops = crops_of(model)
    if crops:
        plain.pretrained_cfg = cfg = dict(cfg or {}, crop_pct=crop_at(crops, resolution))  # type: ignore[assignment]
    name = getattr(model, 'stock_architecture', None)
    if isinstance(cfg, dict) and name:
        sources = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source', 'tag')
        cfg = {key: value for key, value in cfg.items() if key not in sources}
        plain.pretrained_cfg = plain.default_cfg = dict(cfg, architecture=name)  # type: ignore[assignment]


def pack(models: Mapping[int, nn.Module], interpolation: str = 'params') -> nn.Module:
    """Join plain networks as `rs_timm.pack` does, which adds the methods; the class stays theirs."""
    resolutions = check_resolutions(models)
    first = models[resolutions[0]]
    for resolution in resolutions:
        if selectors_of(models[resolution]):
            raise ValueError(f'the model for {resolution} is switchable already: pack takes plain networks, see '
                             'extract().')
        _check_shared(first, models[resolution], resolutions[0], resolution)
    packed = convert_switchable_bn(deepcopy(first), resolutions, interpolation)
    sources = {resolution: dict(models[resolution].named_modules()) for resolution in resolutions}
    for name, layer in packed.named_modules():
        if isinstance(layer, SwitchableBatchNorm2d):
            for resolution in resolutions:
                layer[str(resolution)].load_state_dict(sources[resolution][name].state_dict())
    return packed


def _check_shared(first: nn.Module, other: nn.Module, resolution: int, other_resolution: int) -> None:
    private = {name for name, m in first.named_modules() if isinstance(m, _BatchNorm)}
    mine, theirs = first.state_dict(), other.state_dict()
    for key in [*mine, *theirs]:
        own = key.rpartition('.')[0] in private
        if key not in mine or key not in theirs or not (own or torch.equal(mine[key], theirs[key])):
            raise ValueError(f'{key} differs between the models for {resolution} and {other_resolution}: pack joins '
                             'networks of one architecture, in which BatchNorm tensors alone may differ, since all '
                             'other weights are shared.')


def insert_resolution(model: nn.Module, resolution: int) -> None:
    """Add a private set for `resolution` pixels, made from its neighbours (Section 4.3); in place.

    Raises:
        ValueError: a set for it is there already.
    """
    resolutions = get_resolutions(model)
    (resolution,) = check_resolutions((resolution,))
    if resolution in resolutions:
        raise ValueError(f'resolution {resolution} has a BatchNorm set already; the model has {resolutions}.')
    layers = switchable_layers(model)
    sets = [_thaw(layer.set_for(resolution), layer) for layer in layers]
    _set_resolutions(model, check_resolutions((*resolutions, resolution)))
    for layer, bn in zip(layers, sets):
        layer[str(resolution)] = bn
        _sort_sets(layer)


def remove_resolution(model: nn.Module, resolution: int) -> None:
    """Drop the private set for `resolution` pixels, in place; the size is interpolated from then on.

    Raises:
        ValueError: there is no such set, or it is the last one.
    """
    resolutions = get_resolutions(model)
    if resolution not in resolutions:
        raise ValueError(f'resolution {resolution} has no BatchNorm set; the model has {resolutions}.')
    if len(resolutions) == 1:
        raise ValueError(f'{resolution} is the only resolution of the model: extract(model, {resolution}) gives a '
                         'plain network.')
    _set_resolutions(model, tuple(r for r in resolutions if r != resolution))
    for layer in switchable_layers(model):
        del layer[str(resolution)]
        _sort_sets(layer)


def _set_resolutions(model: nn.Module, resolutions: Tuple[int, ...]) -> None:
    for selector in selectors_of(model):
        selector.resolutions = resolutions
        selector.prepared.clear()
    if '_model_args' in model.__dict__:  # what timm writes into config.json
        model._model_args = dict(model._model_args, resolutions=resolutions)  # type: ignore[assignment, arg-type]


def _sort_sets(layer: SwitchableBatchNorm2d) -> None:
    sets = dict(layer.items())
    layer.clear()
    layer.update({str(r): sets[str(r)] for r in layer.selector.resolutions})
    layer.scripted_set = str(layer.selector.resolutions[0])
    layer._made.clear()
