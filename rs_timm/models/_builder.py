"""Build a registered model through timm's own builder, with the checks that timm leaves to its hub."""
import traceback
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Optional

import timm
from safetensors import SafetensorError
from timm.models import build_model_with_cfg, generate_default_cfgs, resolve_pretrained_cfg
from torch import nn

from rs_timm.layers import SwitchableBatchNorm2d, get_resolutions

from ._checkpoint import PAPER_PREPROCESSING, checkpoint_filter_fn, weights_origin
from ._manifest import file_sha256, manifest, manifest_cfgs, manifest_entry_of_file
from ._saved import saved_metadata

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
            tag = stock_tag.split('.', 1)[1]
            cfgs[f'{name}.{tag}'] = _broadcast_cfg(stock[stock_tag], stock_tag)
    if paper_weights:
        cfgs[f'{name}.orig_in1k'] = _paper_cfg(stock[f'{stock_name}.{default_tag}'])
    return generate_default_cfgs(cfgs)


def _broadcast_cfg(stock_cfg: Any, stock_tag: str) -> Dict[str, Any]:
    description = (f'The plain weights of timm/{stock_tag}, trained for one resolution, given to every BatchNorm set: '
                   'a start for fine-tuning, not a trained RS-Net.')
    return asdict(replace(stock_cfg, description=description, architecture=None, tag=None))


def _paper_cfg(stock_cfg: Any) -> Dict[str, Any]:
    return asdict(replace(
        stock_cfg,
        **PAPER_PREPROCESSING,
        url=None,
        file=None,
        hf_hub_id=None,
        architecture=None,
        tag=None,
        num_classes=1000,
        license='mit',
        origin_url=_PAPER_CODE,
        paper_name='Resolution Switchable Networks for Runtime Efficient Image Recognition',
        paper_ids='arXiv:2007.09558',
        description="The paper's weights; they have no public direct address: see rs-timm convert.",
    ))


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
    if pretrained_cfg is None and not (pretrained and _SOURCES.isdisjoint(pretrained_cfg_overlay or {})):
        pretrained_cfg = _imagenet_tag(variant)
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg, dict(pretrained_cfg_overlay or {}))
    if pretrained:
        _check_source(variant, cfg)
    try:
        model = build_model_with_cfg(
            model_cls,
            variant,
            pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            pretrained_filter_fn=partial(_filter_and_check, strict=kwargs.get('pretrained_strict', True)),
            **kwargs,
        )
    except Exception as error:
        if cfg.file and _while_loading(error):
            raise ValueError(_unreadable(cfg.file, variant, error)) from error
        if isinstance(error, SafetensorError):
            raise ValueError(_damaged_download(cfg.hf_hub_id, error)) from error
        raise
    model.stock_architecture = stock_name
    if pretrained:
        model.derived_from = weights_origin(model.pretrained_cfg, pretrained_cfg_overlay)
        _restore_metadata(model, kwargs.get('cache_dir'))
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


def _restore_metadata(model: nn.Module, cache_dir: Optional[str]) -> None:
    """Origin, and ensemble weights where `evaluate` looks for them: of the manifest, or of a saved config.json.

    The ensemble weights of other resolutions than the model's would be of no use.
    """
    cfg = model.pretrained_cfg
    file = cfg.get('file')  # type: ignore[operator]
    found = (manifest_entry_of_file(Path(file)) if file else None) or saved_metadata(cfg, cache_dir)  # type: ignore
    if file and 'derived_from' in found:
        model.derived_from = found['derived_from']
    alpha = {int(resolution): weight for resolution, weight in found.get('alpha', {}).items()}  # JSON has no int keys
    if alpha and set(alpha) == set(get_resolutions(model)):
        model.checkpoint_metadata = {'alpha': alpha}  # type: ignore[assignment]


def _while_loading(error: Exception) -> bool:
    """Whether it came up in timm's `load_pretrained`, and not in the constructor or the feature wrapper."""
    return any(frame.f_code.co_name == 'load_pretrained' for frame, _ in traceback.walk_tb(error.__traceback__))


def _filter_and_check(state_dict: Dict[str, Any], model: nn.Module, strict: bool = True) -> Dict[str, Any]:
    """`checkpoint_filter_fn`; a file with other layers is refused, also where timm loads loosely for a new head."""
    state_dict = checkpoint_filter_fn(state_dict, model)
    classifier = model.pretrained_cfg.get('classifier') or ()
    heads = {classifier} if isinstance(classifier, str) else set(classifier)
    own, given = _layer_names(model.state_dict(), model), _layer_names(state_dict, model)
    missing = [name for name in own if name not in given and name not in heads]
    unknown = [name for name in given if name not in own and name not in heads]
    if missing:
        raise ValueError(f'{len(missing)} of the {len(own)} layers are not in it, such as {missing[0]}')
    if unknown and strict:
        raise ValueError(f'{len(unknown)} layers in it are not in the model, such as {unknown[0]}')
    return state_dict


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


def _damaged_download(repo_id: str, error: Exception) -> str:
    repo_id, _, revision = repo_id.partition('@')
    arguments = f"{repo_id!r}, 'model.safetensors', {f'revision={revision!r}, ' if revision else ''}force_download=True"
    return (f'model.safetensors of {repo_id} in the cache is damaged ({error}): '
            f'huggingface_hub.hf_hub_download({arguments}) loads it again.')


def _unreadable(file: str, variant: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
    return (f'{file}: not a checkpoint of {variant} ({type(error).__name__}: {reason}). Expected a .safetensors or '
            f'.pth state dict of {variant}, of its plain architecture (timm or torchvision), or of the public RS-Nets '
            'code; pickled objects other than tensors are not opened.')
