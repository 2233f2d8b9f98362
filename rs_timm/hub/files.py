"""What a saved network consists of: the config that timm writes, the weights, and the proof that they restore it."""
import json
import re
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, Dict, Mapping, Optional

import timm
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from timm.layers import SelectAdaptivePool2d
from timm.models import FeatureInfo, PretrainedCfg, is_model, model_entrypoint
from timm.models._hub import save_config_for_hf
from timm.utils import unwrap_model
from torch import nn

from rs_timm.layers import get_resolutions, is_switchable
from rs_timm.layers.selector import selectors_of
from rs_timm.models import OWN_ARGUMENTS, file_sha256
from rs_timm.quantization import pack_weights, unpack_weights
from rs_timm.tensor_files import save_tensors

from .errors import HubError

__all__ = [
    'CARD',
    'CONFIG',
    'WEIGHTS',
    'address',
    'check_restores',
    'check_weights',
    'read_config',
    'restorable',
    'write_config',
    'write_weights',
]

CONFIG = 'config.json'
WEIGHTS = 'model.safetensors'
CARD = 'README.md'

# Fields of a cfg that say where weights come from, and what is claimed about them.
_SOURCES = ('url', 'file', 'state_dict', 'hf_hub_id', 'hf_hub_filename', 'source')
_CLAIMS = ('tag', 'description', 'license', 'origin_url', 'paper_name', 'paper_ids', 'notes')


def restorable(
        model: nn.Module,
        keep_source: bool,
        claims: Mapping[str, Optional[str]],
        overrides: Mapping[str, Any],
) -> nn.Module:
    """A shallow copy of the network inside `model` whose `pretrained_cfg` describes it as it is now.

    Args:
        model: a switchable network, or a wrapper of one.
        keep_source: keep what the cfg claims about its weights.
        claims: license and description that replace those of the cfg, unless None.
        overrides: entries of the cfg to replace.
    """
    model = unwrap_model(model)
    _check_kind(model)
    unknown = sorted(set(overrides) - {field.name for field in fields(PretrainedCfg)})
    if unknown:
        raise ValueError(f"pretrained_cfg has no {', '.join(unknown)}: timm would refuse to load it. Other entries "
                         'belong at the top level of model_config.')
    network = copy(model)
    cfg = {key: value for key, value in model.pretrained_cfg.items() if key not in _SOURCES}
    if not keep_source:
        derived = getattr(model, 'derived_from', None) is not None
        kept = {'license': cfg.get('license')} if derived else {}
        cfg = {key: value for key, value in cfg.items() if key not in _CLAIMS}
        cfg.update(kept)
    cfg.update({key: value for key, value in claims.items() if value is not None})
    _describe_input(cfg, model)
    if cfg.get('num_classes') != model.num_classes:
        cfg.update(num_classes=model.num_classes, label_names=None, label_descriptions=None)
    if model_entrypoint(cfg['architecture']).__module__.startswith('timm.'):  # converted or packed by hand
        network.stock_architecture = cfg['architecture']
        cfg['architecture'] = 'rs_switchable'
    network.pretrained_cfg = {**cfg, **overrides}  # type: ignore[assignment]
    return network


def _check_kind(model: nn.Module) -> None:
    kind = type(model).__name__
    if not is_switchable(model):
        raise ValueError(f'{kind} has no switchable BatchNorm: rs_timm.switchable(model) gives it some; timm.models.'
                         'save_for_hf saves plain networks.')
    architecture = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture')
    if not architecture or not is_model(architecture):
        raise ValueError(f'{kind} was not made by timm (pretrained_cfg names no registered architecture): a config '
                         'cannot restore it. Save its state_dict() with safetensors instead.')
    if isinstance(getattr(model, 'feature_info', None), FeatureInfo):
        raise ValueError(f'{kind} is a features_only network without its head: save the whole network, and load it '
                         'with features_only=True.')
    if any(tensor.is_meta for tensor in model.state_dict().values()):
        raise ValueError(f'{kind} is on the meta device: it has no weights to save.')


def _describe_input(cfg: Dict[str, Any], model: nn.Module) -> None:
    """Make sizes, mean and std agree with the channels that `model` takes; a lone mean stands for all channels."""
    channels = _channels(model, cfg)
    for key in ('input_size', 'test_input_size', 'min_input_size'):
        if cfg.get(key):
            cfg[key] = (channels, *cfg[key][1:])
    for key in ('mean', 'std'):
        values = cfg.get(key)
        if values and len(values) != channels:
            cfg[key] = (sum(values) / len(values),) * channels
    if channels not in (1, 3) and not hasattr(model, '_traits'):
        cfg['first_conv'] = None  # timm before 1.0.31 re-initialises a first convolution that fits already


def _channels(model: nn.Module, cfg: Mapping[str, Any]) -> int:
    if hasattr(model, 'in_chans'):
        return int(model.in_chans)  # type: ignore[arg-type]
    conv = model.get_submodule(cfg['first_conv']) if isinstance(cfg.get('first_conv'), str) else None
    declared = int(cfg['input_size'][0])
    folds = conv is not None and any(type(m).__name__ == 'SpaceToDepth' for m in model.modules())
    return declared if folds else int(getattr(conv, 'in_channels', declared))


def write_config(
        network: nn.Module,
        folder: Path,
        model_config: Mapping[str, Any],
        model_args: Mapping[str, Any],
) -> None:
    """Let timm write config.json for what `restorable` returned."""
    config = {key: value for key, value in model_config.items() if key != 'pretrained_cfg'}
    names = config.get('label_names')
    if names is not None and len(names) != network.num_classes:
        raise ValueError(f'{len(names)} label_names for {network.num_classes} classes: give one name a class.')
    config['rs_timm'] = {**_metadata(network), **config.get('rs_timm', {})}
    args = {**_constructor_arguments(network), **model_args}
    save_config_for_hf(network, folder / CONFIG, config, args)  # type: ignore[arg-type]


def _metadata(network: nn.Module) -> Dict[str, Any]:
    from rs_timm import __version__

    metadata: Dict[str, Any] = {'version': __version__}
    alpha = getattr(network, 'checkpoint_metadata', {}).get('alpha')
    if alpha:
        metadata['alpha'] = {str(resolution): float(weight) for resolution, weight in alpha.items()}
    if getattr(network, 'derived_from', None):
        metadata['derived_from'] = network.derived_from
    return metadata


def _constructor_arguments(network: nn.Module) -> Dict[str, Any]:
    """What timm before 1.0.31 does not record by itself, as far as the network tells."""
    args: Dict[str, Any] = dict(
        resolutions=get_resolutions(network),
        interpolation=selectors_of(network)[0].interpolation,
    )
    if network.pretrained_cfg['architecture'] == 'rs_switchable':  # type: ignore[index]
        args['base'] = network.stock_architecture
    recorded: Mapping[str, Any] = getattr(network, '_model_args', {})
    args.update({name: recorded[name] for name in OWN_ARGUMENTS if name in recorded})
    if 'encoder_weights' in recorded:
        args['encoder_weights'] = None  # the saved weights are those of the whole network
    pools = [module.pool_type for module in network.modules() if isinstance(module, SelectAdaptivePool2d)]
    if len(pools) == 1 and pools[0] != 'avg':
        args['global_pool'] = pools[0]
    return args


def write_weights(network: nn.Module, folder: Path, storage: str) -> Dict[str, torch.Tensor]:
    """Write model.safetensors, and return the state dict that it holds.

    Args:
        storage: 'full', 'half' (weights in float16) or 'packed' (quantised weights in their bits).
    """
    if storage == 'packed':
        return unpack_weights(load_file(pack_weights(network, folder / WEIGHTS)))
    tensors = {}
    for key, tensor in network.state_dict().items():
        tensor = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)  # tied ones become two
        if storage == 'half' and tensor.is_floating_point() and tensor.ndim > 1:
            tensor = _to_half(key, tensor)
        tensors[key] = tensor
    save_tensors(tensors, folder / WEIGHTS)
    return tensors


def _to_half(key: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        largest = tensor.abs().max().item()
        raise ValueError(f'{key} has values up to {largest:.3g}, float16 ends at 65504: save without half.')
    return half


def check_restores(network: nn.Module, folder: Path, saved: Mapping[str, torch.Tensor]) -> None:
    """Load `folder` as a user would, and raise ValueError unless it gives the network back."""
    cause = None
    with torch.random.fork_rng(devices=[]):  # a save must not change the training that it interrupts
        try:
            restored = timm.create_model(f'local-dir:{folder}', pretrained=True)
            difference = _difference(saved, restored.state_dict())
            difference = difference or _difference(_settings(network), _settings(restored))
        except Exception as error:
            cause, difference = error, _why_not_loaded(folder, saved) or f'{type(error).__name__}: {error}'.rstrip('.')
    if difference:
        raise ValueError(
            f'config.json would not restore this network: {difference}. It was changed after it was made, or made with '
            f'arguments that timm {timm.__version__} does not record: pass those as model_args=dict(...).') from cause


def _why_not_loaded(folder: Path, saved: Mapping[str, torch.Tensor]) -> Optional[str]:
    try:
        built = timm.create_model(f'local-dir:{folder}').state_dict()
    except Exception:
        return None
    shapes = {key: tuple(tensor.shape) for key, tensor in built.items()}
    return _difference({key: tuple(tensor.shape) for key, tensor in saved.items()}, shapes)


def _settings(model: nn.Module) -> Dict[str, Any]:
    """What changes the output and is in no tensor."""
    names = ('stride', 'padding', 'dilation', 'groups', 'eps', 'pool_type', 'ceil_mode')
    return {f'{path}.{name}': getattr(module, name) for path, module in model.named_modules()
            for name in names if hasattr(module, name)}


def _difference(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> Optional[str]:
    """The first entry that differs, in words."""
    for key in [*mine, *theirs]:
        if key not in mine or key not in theirs:
            return f"{key} is {'missing' if key in mine else 'new'} in the restored one"
        a, b = mine[key], theirs[key]
        if isinstance(a, torch.Tensor) and a.shape == b.shape:
            if not torch.equal(a.to(b.dtype), b):
                return f'{key} has other values'
        elif isinstance(a, torch.Tensor) or a != b:
            a, b = (tuple(v.shape) if isinstance(v, torch.Tensor) else v for v in (a, b))
            return f'{key} is {a}, restored {b}'
    return None


def address(repo_id: str, local: bool) -> str:
    """What `timm.create_model` calls a repository of the hub, or a folder."""
    return f"{'local-dir' if local else 'hf-hub'}:{repo_id}"


def read_config(path: Path, repo_id: str, local: bool) -> Dict[str, Any]:
    try:
        config = json.loads(path.read_text(encoding='utf-8'))
        architecture = config['architecture']
    except FileNotFoundError:
        raise ValueError(f'{path}: no such file; expected a folder that rs_timm.save_pretrained wrote.') from None
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f'{path} of {repo_id} is no config.json of timm ({type(error).__name__}: {error}).') from error
    if not is_model(architecture):
        raise ValueError(f'{repo_id} is a {architecture!r}, which neither rs_timm nor timm {timm.__version__} knows: '
                         'update them, or import the package that registers it.')
    if model_entrypoint(architecture).__module__.startswith('timm.'):
        raise ValueError(f'{repo_id} is a plain {architecture} of timm, no model of rs_timm: '
                         f"rs_timm.switchable({address(repo_id, local)!r}, pretrained=True) makes it switchable.")
    return config


def check_weights(path: Path, repo_id: str, local: bool) -> None:
    """Raise HubError unless the file is whole, and is the one that the hub announced."""
    problem = None
    try:
        with safe_open(path, framework='pt') as weights:
            weights.keys()
    except FileNotFoundError:
        raise ValueError(f'{path}: no such file; expected a folder that rs_timm.save_pretrained wrote.') from None
    except SafetensorError as error:
        problem = f'{error}'
    blob = path.resolve()  # the cache names a file by the hash that the hub gave
    if problem is None and not local and re.fullmatch(r'[0-9a-f]{64}', blob.name):
        found = file_sha256(blob)
        problem = f'its sha256 is {found}, the hub announced {blob.name}' if found != blob.name else None
    if problem:
        remedy = 'save it again' if local else (
            f'delete {blob} or call rs_timm.from_pretrained({repo_id!r}, force_download=True) to load it again')
        raise HubError(f'{WEIGHTS} of {repo_id} is damaged ({problem}): {remedy}.')
