"""Build a registered model through timm's own builder, with the checks that timm leaves to its hub."""
import traceback
import warnings
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, Dict, Mapping, Optional

import timm
import torch
from safetensors import SafetensorError
from timm.models import build_model_with_cfg, generate_default_cfgs, resolve_pretrained_cfg
from torch import nn

from rs_timm.crops import check_crop_pct
from rs_timm.hub_client import one_try
from rs_timm.layers import SwitchableBatchNorm2d, get_resolutions

from ._checkpoint import PAPER_PREPROCESSING, checkpoint_filter_fn, weights_origin
from ._manifest import file_sha256, manifest, manifest_cfgs, manifest_entry_of_file
from ._saved import DamagedWeights, check_digest, check_part, saved_config

if TYPE_CHECKING:
    from ._config import SavedConfig

__all__ = ['OWN_ARGUMENTS', 'build_switchable', 'switchable_cfgs']

# of networks that timm does not have; timm before 1.0.31 records no arguments by itself
OWN_ARGUMENTS = ('encoder', 'features', 'weight_bits', 'act_bits')
_SOURCES = frozenset(('file', 'url', 'hf_hub_id', 'state_dict'))
_PAPER_CODE = 'https://github.com/yikaiw/RS-Nets'


def switchable_cfgs(name: str, stock_name: str, default_tag: str, paper_weights: bool) -> Dict[str, Any]:
    """The tags of `name`: weights that the project ships, timm's ImageNet weights for all sets, the paper's."""
    cfgs: Dict[str, Dict[str, Any]] = {}
    for tag, cfg in manifest_cfgs(name).items():
        cfgs[f'{name}.{tag}'] = cfg
    stock = timm.models.get_arch_pretrained_cfgs(stock_name)
    for stock_tag in sorted(stock, key=lambda key: not key.endswith(f'.{default_tag}')):
        if stock[stock_tag].hf_hub_id:
            description = (f'The plain weights of timm/{stock_tag}, trained for one resolution, given to every '
                           'BatchNorm set: a start for fine-tuning, not a trained RS-Net.')
            cfgs[f"{name}.{stock_tag.split('.', 1)[1]}"] = asdict(
                replace(stock[stock_tag], description=description, architecture=None, tag=None))
    if paper_weights:
        cfgs[f'{name}.orig_in1k'] = asdict(replace(
            stock[f'{stock_name}.{default_tag}'],
            **PAPER_PREPROCESSING,
            **dict.fromkeys(('url', 'file', 'hf_hub_id', 'architecture', 'tag')),
            num_classes=1000,
            license='mit',
            origin_url=_PAPER_CODE,
            paper_name='Resolution Switchable Networks for Runtime Efficient Image Recognition',
            paper_ids='arXiv:2007.09558',
            description="The paper's weights; they have no public direct address: see rs-timm convert.",
        ))
    return generate_default_cfgs(cfgs)


def build_switchable(
        model_cls: Callable[..., nn.Module],
        variant: str,
        stock_name: Optional[str],
        pretrained: bool,
        pretrained_cfg: Any = None,
        pretrained_cfg_overlay: Optional[Dict[str, Any]] = None,
        **kwargs: Any,
) -> nn.Module:
    """`timm.models.build_model_with_cfg`, with checkpoint filter, hash check and errors that name the file."""
    if 'checkpoint_path' in kwargs:  # timm.create_model takes it for itself: this one comes out of a config.json
        raise ValueError(f'checkpoint_path is no argument of {variant}: give it to timm.create_model.')
    if 'encoder' in kwargs:
        check_part('encoder', kwargs['encoder'], switchable=True)
    saved = saved_config(pretrained_cfg, kwargs.get('cache_dir'))  # read under rules, before anything is built from it
    default = pretrained_cfg is None
    if default and not (pretrained and _SOURCES.isdisjoint(pretrained_cfg_overlay or {})):
        pretrained_cfg = _imagenet_tag(variant)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, dict(pretrained_cfg_overlay or {}))
    if default and pretrained_cfg is None:
        _warn_of_other_classes(variant, cfg)
    if pretrained:
        _check_source(variant, cfg)
    try:
        with one_try() if pretrained and cfg.hf_hub_id else nullcontext():
            model = build_model_with_cfg(
                model_cls,
                variant,
                pretrained,
                pretrained_cfg=pretrained_cfg,
                pretrained_cfg_overlay=pretrained_cfg_overlay,
                pretrained_filter_fn=partial(
                    _filter_and_check, strict=kwargs.get('pretrained_strict', True), saved=saved,
                    where=cfg.file or cfg.hf_hub_id),
                **kwargs,
            )
    except DamagedWeights:
        raise
    except Exception as error:
        if cfg.file and _while_loading(error):
            raise ValueError(_unreadable(cfg.file, variant, error)) from error
        if cfg.hf_hub_id and type(error) is ValueError and _while_loading(error):
            raise ValueError(_unreadable(cfg.hf_hub_id, variant, error)) from error
        if isinstance(error, SafetensorError):
            repo_id, _, revision = cfg.hf_hub_id.partition('@')
            options = f'revision={revision!r}, ' if revision else ''
            raise ValueError(
                f'model.safetensors of {repo_id} in the cache is damaged ({error}): huggingface_hub.hf_hub_download('
                f"{repo_id!r}, 'model.safetensors', {options}force_download=True) loads it again.") from error
        raise
    model.stock_architecture = stock_name
    if pretrained:
        model.derived_from = weights_origin(model.pretrained_cfg, pretrained_cfg_overlay)
        _restore_metadata(model, saved)
    model._model_args = dict(
        {name: kwargs[name] for name in OWN_ARGUMENTS if name in kwargs}, resolutions=get_resolutions(model))
    return model


def _imagenet_tag(variant: str) -> str:
    """The first tag of weights that the project does not ship itself.

    A name without a tag means the shipped weights, with the classes that they were trained on, where these are loaded.
    A network with random weights, or with the user's own file, is the architecture as everybody knows it: 1000 classes.
    """
    names = timm.models.get_arch_pretrained_cfgs(variant)
    return next(name.partition('.')[2] for name in names if name not in manifest())


def _warn_of_other_classes(variant: str, cfg: Any) -> None:
    cfgs = timm.models.get_arch_pretrained_cfgs(variant)
    names = [name for name, other in cfgs.items() if other.num_classes == 1000 and other.has_weights]
    if names and cfg.num_classes != 1000:
        warnings.warn(
            f'{variant} without a tag loads {variant}.{cfg.tag}, which knows {cfg.num_classes} classes. With the 1000 '
            f"of ImageNet there are {', '.join(names)}. Name a tag to choose.", stacklevel=6)


def _restore_metadata(model: nn.Module, saved: Optional['SavedConfig']) -> None:
    """Origin, and ensemble weights where `evaluate` looks for them: of the manifest, or of a saved config.json.

    The ensemble weights of other resolutions than the model's would be of no use.
    """
    file = model.pretrained_cfg.get('file')  # type: ignore[operator]
    found = (manifest_entry_of_file(Path(file)) if file else None) or (
        saved.rs_timm.model_dump(exclude_none=True) if saved else {})
    if file and 'derived_from' in found:
        model.derived_from = found['derived_from']
    alpha = {int(resolution): weight for resolution, weight in found.get('alpha', {}).items()}  # JSON has no int keys
    metadata: Dict[str, Any] = {'alpha': alpha} if alpha and set(alpha) == set(get_resolutions(model)) else {}
    if found.get('crops'):
        metadata['crops'] = check_crop_pct({int(size): crop for size, crop in found['crops'].items()})
    if metadata:
        model.checkpoint_metadata = metadata  # type: ignore[assignment]


def _while_loading(error: Exception) -> bool:
    """Whether `error` came up in timm's `load_pretrained`, and not in the constructor or the feature wrapper."""
    return any(frame.f_code.co_name == 'load_pretrained' for frame, _ in traceback.walk_tb(error.__traceback__))


def _filter_and_check(
        state_dict: Dict[str, Any],
        model: nn.Module,
        strict: bool = True,
        saved: Optional['SavedConfig'] = None,
        where: str = '',
) -> Dict[str, Any]:
    """Apply `checkpoint_filter_fn`, and refuse other layers, also where timm loads loosely for a new head.

    Refused as well are tensors with another digest or of another kind, values that are not finite, and a file that
    lacks BatchNorm sets which the config.json beside it, `saved`, promises and the user has not asked to do without.
    """
    if saved:
        check_digest(state_dict, saved, where)
    state_dict = checkpoint_filter_fn(state_dict, model)
    classifier = model.pretrained_cfg.get('classifier') or ()  # type: ignore[operator]
    heads = {classifier} if isinstance(classifier, str) else set(classifier)
    wanted = model.state_dict()
    own, given = _layer_names(wanted, model), _layer_names(state_dict, model)
    missing = [name for name in own if name not in given and name not in heads]
    unknown = [name for name in given if name not in own and name not in heads]
    if missing:
        raise ValueError(f'{len(missing)} of the {len(own)} layers are not in it, such as {missing[0]}')
    if unknown and strict:
        raise ValueError(f'{len(unknown)} layers in it are not in the model, such as {unknown[0]}')
    for key, tensor in state_dict.items():
        if not isinstance(tensor, torch.Tensor):
            raise ValueError(f'{key} is a {type(tensor).__name__}, not a tensor')
        if key in wanted and tensor.is_floating_point() != wanted[key].is_floating_point():
            raise ValueError(f'{key} is stored as {tensor.dtype}, and {wanted[key].dtype} is meant')
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f'{key} has values that are not finite')
        if key.endswith('.running_var') and (tensor < 0).any():
            raise ValueError(f'{key} has negative variances')
    if saved:
        _check_sets(state_dict, model, saved.model_args.get('resolutions'))
    return state_dict


def _check_sets(state_dict: Mapping[str, Any], model: nn.Module, promised: Any) -> None:
    if not isinstance(promised, list) or sorted(promised, reverse=True) != list(get_resolutions(model)):
        return  # the user has asked for other sizes
    for name, module in model.named_modules():
        if isinstance(module, SwitchableBatchNorm2d):
            there = {r for r in promised if any(key.startswith(f'{name}.{r}.') for key in state_dict)}
            if there and len(there) < len(promised):
                raise ValueError(
                    f'{name} lacks the BatchNorm set for {min(set(promised) - there)} px that config.json names; '
                    f'resolutions={tuple(sorted(there, reverse=True))} does without')


def _layer_names(state_dict: Dict[str, Any], model: nn.Module) -> Dict[str, None]:
    """The layers with tensors in `state_dict`, in order; a switchable one once, whatever sets it has there."""
    switchable = {name for name, m in model.named_modules() if isinstance(m, SwitchableBatchNorm2d)}
    layers = (key.rpartition('.')[0] for key in state_dict)
    return dict.fromkeys(
        parent if (parent := name.rpartition('.')[0]) in switchable else name for name in layers)


def _check_source(variant: str, cfg: Any) -> None:
    if not (cfg.has_weights or cfg.state_dict):
        name = '.'.join(filter(None, (variant, cfg.tag)))
        raise ValueError(
            f'{name} has no weights that can be downloaded. Get the checkpoint of the paper from {_PAPER_CODE}, then: '
            f'rs-timm convert CHECKPOINT --model {variant} --out DIR; afterwards timm.create_model("local-dir:DIR", '
            'pretrained=True). Or pass pretrained_cfg_overlay=dict(file=CHECKPOINT).'
            if cfg.tag == 'orig_in1k' else f'{name} has no weights: use pretrained=False, or a name of '
            f"timm.list_pretrained('{variant}*').")
    if cfg.file and cfg.source != 'local-dir':
        path = Path(cfg.file)
        if not path.is_file():
            kind = 'a directory' if path.is_dir() else 'no such file'
            raise FileNotFoundError(f'{path}: {kind}; expected the weights of {variant} (.safetensors, .pth).')
        entry = manifest_entry_of_file(path)
        if entry and (found := file_sha256(path)) != entry['sha256']:
            raise ValueError(f'{path}: sha256 is {found}, the manifest has {entry["sha256"]}: the file is damaged or '
                             'was exchanged. Reinstall rs_timm.')


def _unreadable(file: str, variant: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return (f'{file}: not a checkpoint of {variant} ({type(error).__name__}: {reason}). Expected a .safetensors or '
            f'.pth state dict of {variant}, of its plain architecture (timm or torchvision), or of the public RS-Nets '
            'code; pickled objects other than tensors are not opened.')
