"""What is known about a checkpoint beyond its tensors: how its pictures were prepared, what its classes are called."""
import json
from pathlib import Path
from typing import Any, Dict, Mapping, NamedTuple, Optional

from timm.data import infer_imagenet_subset, resolve_model_data_config
from timm.models import PretrainedCfg
from torch import nn

from rs_timm.hub.saving import CONFIG
from rs_timm.layers import get_resolutions
from rs_timm.models import file_sha256, manifest
from rs_timm.training import Recipe
from rs_timm.training.build import input_cfg
from rs_timm.training.checkpoint import load_checkpoint

__all__ = ['Description', 'describe_preprocessing', 'describe_weights', 'unknown_preprocessing']

_KEYS = (
    'input_size', 'test_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'crop_mode', 'mean', 'std',
    'label_names', 'label_descriptions')

_OF_RECIPE = ('resolutions', 'model_args', 'interpolation', 'crop_pct', 'mean', 'std')


class Description(NamedTuple):
    """Of the weights in a file.

    Attributes:
        cfg: entries of timm's pretrained_cfg.
        alpha: weight of each resolution in the ensemble, or nothing.
    """

    cfg: Dict[str, Any]
    alpha: Mapping[Any, float]


def describe_weights(model: nn.Module, file: str) -> bool:
    """Write into `model`, which has the weights of `file`, what is known about them; False if nothing is.

    Asked are the manifest of the shipped weights, by the file's hash; a config.json beside the file that fits `model`;
    and the recipe in a checkpoint of `rs-timm train`.
    """
    found = _shipped(file) or _saved(file, model) or _trained(file)
    if found is None:
        return False
    cfg: Any = model.pretrained_cfg
    cfg.update(found.cfg, num_classes=model.num_classes)
    alpha = {int(resolution): float(weight) for resolution, weight in found.alpha.items()}
    if alpha and set(alpha) == set(get_resolutions(model)):
        model.checkpoint_metadata = {'alpha': alpha}  # type: ignore[assignment]
    return True


def _shipped(file: str) -> Optional[Description]:
    if not file.endswith('.safetensors'):
        return None
    digest = file_sha256(Path(file))
    entry = next((entry for entry in manifest().values() if entry['sha256'] == digest), None)
    return Description(_known(entry['cfg']), entry.get('alpha') or {}) if entry else None


def _saved(file: str, model: nn.Module) -> Optional[Description]:
    try:
        config = json.loads(Path(file).with_name(CONFIG).read_text(encoding='utf-8'))
        if not _fits(config, model):
            return None
        labels = {key: config[key] for key in ('label_names', 'label_descriptions') if key in config}
        return Description(_known({**config['pretrained_cfg'], **labels}), config.get('rs_timm', {}).get('alpha') or {})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none there, or none of timm's
        return None


def _fits(config: Mapping[str, Any], model: nn.Module) -> bool:
    """Whether a config.json is about this network: the file may have been put beside that of another one."""
    base = str(config.get('model_args', {}).get('base', '')).partition('.')[0]
    own = {model.pretrained_cfg['architecture'], getattr(model, 'stock_architecture', None)}  # type: ignore[index]
    own -= {'rs_switchable', None}
    return not own.isdisjoint((config['architecture'], base)) and config['num_classes'] == model.num_classes


def _known(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """What `cfg` says about pictures and classes, with timm's defaults for what it leaves out."""
    defaults = PretrainedCfg()
    return {key: cfg.get(key, getattr(defaults, key)) for key in _KEYS}


def _trained(file: str) -> Optional[Description]:
    if file.endswith('.safetensors'):
        return None
    try:
        state = load_checkpoint(file)
    except ValueError:  # of somebody else
        return None
    recipe = Recipe(**{key: state['recipe'][key] for key in _OF_RECIPE})
    names = state.get('class_names')  # earlier versions did not note them
    scores = (state.get('task_state_ema') or state['task_state'])['alpha']
    return Description(
        dict(input_cfg(recipe), label_names=names, label_descriptions=None),
        dict(zip(recipe.resolutions, scores.float().softmax(0).tolist())))


def unknown_preprocessing(model: nn.Module, name: str, file: str) -> str:
    """In one line: what is assumed about the weights of `file`, about which nothing is known.

    Args:
        model: the network `name` with those weights.
        name: MODEL of the command line.
        file: the checkpoint.
    """
    cfg: Any = model.pretrained_cfg
    if not (':' in name or '.' in name) and cfg.get('tag'):
        name = f"{name}.{cfg['tag']}"
    named = infer_imagenet_subset(model) or len(cfg.get('label_names') or ()) == model.num_classes
    return (f"note: {file} does not say how its pictures were prepared: as for {name} it is "
            f"{describe_preprocessing(resolve_model_data_config(model))}"
            f"{'' if named else '; what its classes are called is unknown'}")


def describe_preprocessing(config: Mapping[str, Any]) -> str:
    """One line for what `timm.data.resolve_model_data_config` returned."""
    mean, std = (', '.join(f'{value:g}' for value in config[key]) for key in ('mean', 'std'))
    return f"{config['interpolation']}, crop {config['crop_pct']:g} ({config['crop_mode']}), mean {mean}, std {std}"
