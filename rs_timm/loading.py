"""Networks by name: registered ones, folders, hub repositories, files of weights, any timm network made switchable.

What is known about the weights beyond their tensors comes along: preprocessing, names of classes, ensemble weights.
"""
import argparse
import difflib
import os
import pickle
import re
import warnings
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import timm
import torch
from timm.data import infer_imagenet_subset, resolve_data_config, resolve_model_data_config
from timm.models import PretrainedCfg, get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn

from rs_timm.crops import crop_at, set_crops
from rs_timm.hub import from_pretrained
from rs_timm.hub.saving import CONFIG
from rs_timm.layers import SwitchableBatchNorm2d, get_resolutions, is_switchable
from rs_timm.models import checkpoint_filter_fn, file_sha256, is_paper_layout, manifest, read_config, switchable
from rs_timm.tensor_files import check_values, read_state_dict
from rs_timm.training import Recipe
from rs_timm.training.build import input_cfg
from rs_timm.training.checkpoint import load_checkpoint
from rs_timm.training.processes import is_first_process

__all__ = ['PAPER_LAYOUT', 'describe_preprocessing', 'layout_of', 'load_model', 'named_weights']

PAPER_LAYOUT = "the layout of the paper's code"

_KEYS = (  # of a pretrained_cfg: what it says about pictures and classes
    'input_size', 'test_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'crop_mode', 'mean', 'std',
    'label_names', 'label_descriptions')

_OF_TIMM = {'img_size', 'interpolation', 'crop_pct', 'mean', 'std'}  # of the arguments of its train.py
_OF_RECIPE = ('resolutions', 'model_args', 'interpolation', 'crop_pct', 'mean', 'std')


def load_model(
        name: str,
        weights: bool = True,
        checkpoint: Optional[str] = None,
        resolutions: Optional[Iterable[int]] = None,
        num_classes: Optional[int] = None,
        preprocessing: Optional[Mapping[str, Any]] = None,
) -> nn.Module:
    """The switchable network that `name` means, in evaluation mode.

    >>> load_model('switchable:resnet18', weights=False, resolutions=(128, 96)).resolutions
    (128, 96)

    Args:
        name: a registered name, a folder, 'local-dir:FOLDER', 'hf-hub:user/name', or 'switchable:NAME' for any
            BatchNorm network of timm.
        weights: load the pretrained weights of that name.
        checkpoint: load this file instead; resolutions and number of classes are those of the file, if not given.
        resolutions: pixels; None: those that the name implies.
        num_classes: None: what the name implies.
        preprocessing: entries of pretrained_cfg that replace what is known about the weights of `checkpoint`. Without
            any, a warning says what is taken where nothing is known.

    Raises:
        ValueError: an unknown name, with those that are close to it; a network that is not switchable; a file that
            does not fit.
    """
    given = dict(resolutions=tuple(resolutions) if resolutions else None, num_classes=num_classes)
    given = {key: value for key, value in given.items() if value}
    if checkpoint is not None:
        return _from_checkpoint(name, checkpoint, given, preprocessing or {}).eval()
    try:
        return _create(name, weights, given).eval()
    except OSError as error:
        raise OSError(f'{name}: {error}') from error


def named_weights(name: str) -> str:
    """`name` with the tag of the weights that it stands for where these are loaded.

    >>> named_weights('rs_resnet18'), named_weights('rs_resnet18.tv_in1k')
    ('rs_resnet18.mred_imagenette', 'rs_resnet18.tv_in1k')
    """
    cfg = get_pretrained_cfg(name) if timm.is_model(name) and '.' not in name else None
    return f'{name}.{cfg.tag}' if cfg and cfg.tag and cfg.has_weights else name


def describe_preprocessing(config: Mapping[str, Any]) -> str:
    """One line for what `timm.data.resolve_model_data_config` returned."""
    mean, std = (', '.join(f'{value:g}' for value in config[key]) for key in ('mean', 'std'))
    crop = config['crop_pct']  # one for all sizes, or size -> crop
    crop = ', '.join(f'{c:.3g} at {size} px' for size, c in crop.items()) if isinstance(crop, Mapping) else f'{crop:g}'
    return f"{config['interpolation']}, crop {crop} ({config['crop_mode']}), mean {mean}, std {std}"


def layout_of(state_dict: Dict[str, Any], model: nn.Module) -> str:
    """Whose layout the keys have, in words."""
    if is_paper_layout(state_dict):
        return PAPER_LAYOUT
    return "rs_timm's layout" if _resolutions_in(state_dict, model) else 'a plain network; all sets start equal'


def _from_checkpoint(name: str, file: str, given: Dict[str, Any], preprocessing: Mapping[str, Any]) -> nn.Module:
    state_dict = read_state_dict(file)
    from_paper, paper = is_paper_layout(state_dict), f'{name}.orig_in1k'
    if from_paper and timm.is_model(name) and paper in get_arch_pretrained_cfgs(name):
        name = paper  # the layout tells the preprocessing; the default weights have another one
    draft = _create(name, False, given)
    head = checkpoint_filter_fn(state_dict, draft).get(f"{draft.pretrained_cfg.get('classifier')}.weight")
    found = dict(resolutions=_resolutions_in(state_dict, draft), num_classes=None if head is None else len(head))
    if given.get('num_classes') and found['num_classes'] not in (None, given['num_classes']):
        raise ValueError(f"{file} has {found['num_classes']} classes, not {given['num_classes']}.")
    model = _create(name, False, {**{key: value for key, value in found.items() if value}, **given})
    _load_into(model, state_dict, file)
    known = _describe_weights(model, file) or from_paper
    if 'crop_pct' in preprocessing:
        set_crops(model, None)
    model.pretrained_cfg.update(preprocessing)  # type: ignore[operator, union-attr]
    if not (known or preprocessing) and is_first_process():
        warnings.warn(_unknown_preprocessing(model, name, file), stacklevel=3)
    return model


def _resolutions_in(state_dict: Dict[str, Any], model: nn.Module) -> Optional[Tuple[int, ...]]:
    """The sizes that the checkpoint has sets for, if it is in rs_timm's layout, largest first."""
    state_dict = checkpoint_filter_fn(state_dict, model)
    layer = next(name for name, module in model.named_modules() if isinstance(module, SwitchableBatchNorm2d))
    matches = (re.fullmatch(rf'{re.escape(layer)}\.(\d+)\.running_mean', key) for key in state_dict)
    return tuple(sorted((int(match[1]) for match in matches if match), reverse=True)) or None


def _load_into(model: nn.Module, state_dict: Dict[str, Any], file: str) -> None:
    """Load `state_dict`, all of it and nothing less, into `model`.

    Args:
        model: a switchable network.
        state_dict: in any of the known layouts.
        file: where it is from, for the error.

    Raises:
        ValueError: it is the checkpoint of another network; the first differences are named. Or a value is not finite.
    """
    check_values(state_dict, model, file)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        differences = ' '.join(str(error).partition(':')[2].split())[:300]
        name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture', type(model).__name__)
        raise ValueError(
            f'{file}: not a checkpoint of {name} with {getattr(model, "num_classes", "?")} classes: {differences} ... '
            "Expected a state dict of it, of its plain timm or torchvision network, or of the paper's code.") from error


def _create(name: str, pretrained: bool, kwargs: Dict[str, Any]) -> nn.Module:
    kind, source = _resolve(name)
    if kind == 'switchable':
        model = switchable(source, pretrained=pretrained, **kwargs)
    elif kind in ('local-dir', 'hf-hub') and pretrained:
        repo_id, _, revision = source.partition('@') if kind == 'hf-hub' else (source, '', '')
        model = from_pretrained(repo_id, revision or None, **kwargs)
    else:
        model = timm.create_model(source if kind == 'name' else f'{kind}:{source}', pretrained=pretrained, **kwargs)
    if not is_switchable(model):
        raise ValueError(f'{name} is not a resolution-switchable network: switchable:{kind}:{source} makes it one.')
    return model


def _resolve(name: str) -> Tuple[str, str]:
    """What kind of MODEL it is ('name', 'local-dir', 'hf-hub', 'switchable'), and the rest of it."""
    prefix, separator, rest = name.partition(':')
    if separator and prefix == 'switchable':
        if ':' not in rest:
            _check_registered(rest, timm.list_models(), 'timm.list_models() gives all.')
        return prefix, rest
    if separator and prefix in ('local-dir', 'hf-hub'):
        if prefix == 'local-dir' and not os.path.isdir(rest):
            raise ValueError(f'{rest}: no such folder.')
        return prefix, rest
    if os.path.isdir(name) and not timm.is_model(name):
        return 'local-dir', name
    if timm.is_model(name) and not name.startswith('rs_'):
        raise ValueError(f'{name} is a plain timm network: switchable:{name} makes it resolution-switchable.')
    _check_registered(name, timm.list_models('rs_*'), "'rs-timm list' shows all.")
    return 'name', name


def _check_registered(name: str, known: List[str], remedy: str) -> None:
    architecture, _, tag = name.partition('.')
    if architecture not in known:
        raise ValueError(f'unknown model {name!r}{_close(architecture, known)} {remedy}')
    tags = [cfg.partition('.')[2] for cfg in get_arch_pretrained_cfgs(architecture)]
    if tag and tag not in tags:
        raise ValueError(f"{architecture} has no weights {tag!r}{_close(tag, tags)} It has: {', '.join(tags)}.")


def _close(name: str, known: Sequence[str]) -> str:
    matches = difflib.get_close_matches(name, known, n=3)
    return f": did you mean {' or '.join(matches)}?" if matches else '.'


class _Description(NamedTuple):
    """The facts about weights in a file."""

    cfg: Dict[str, Any]  # entries of timm's pretrained_cfg
    alpha: Mapping[Any, float]  # weight of each resolution in the ensemble, or nothing
    crops: Mapping[Any, float] = {}  # side of the crop / shorter side for each resolution; none: one for all


def _describe_weights(model: nn.Module, file: str) -> bool:
    """Write into `model`, which has the weights of `file`, what is known about them; False if nothing is.

    Asked are the manifest of the shipped weights, by the file's hash; a config.json beside the file that fits `model`;
    the recipe in a checkpoint of `rs-timm train`, or the arguments in one of timm's train.py.
    """
    found = _shipped(file) or _saved(file, model) or _trained(file) or _trained_by_timm(file, model)
    if found is None:
        return False
    cfg: Any = model.pretrained_cfg
    cfg.update(found.cfg, num_classes=model.num_classes)
    alpha = {int(resolution): float(weight) for resolution, weight in found.alpha.items()}
    if alpha and set(alpha) == set(get_resolutions(model)):
        model.checkpoint_metadata = {'alpha': alpha}  # type: ignore[assignment]
    crops = {int(resolution): float(crop) for resolution, crop in found.crops.items()}
    set_crops(model, {r: crop_at(crops, r) for r in get_resolutions(model)} if crops else None)
    return True


def _shipped(file: str) -> Optional[_Description]:
    if not file.endswith('.safetensors'):
        return None
    digest = file_sha256(Path(file))
    entry = next((entry for entry in manifest().values() if entry['sha256'] == digest), None)
    return _Description(
        _known(entry['cfg']), entry.get('alpha') or {}, entry.get('crops') or {}) if entry else None


def _saved(file: str, model: nn.Module) -> Optional[_Description]:
    """What the config.json beside the file says, if it is about this network: the file may have been put there."""
    path = Path(file).with_name(CONFIG)
    try:
        config = read_config(path, str(path.parent))
    except (OSError, ValueError):  # none there, or none of timm's
        return None
    base = str(config.model_args.get('base', '')).partition('.')[0]
    own = {model.pretrained_cfg['architecture'], getattr(model, 'stock_architecture', None)}  # type: ignore[index]
    own -= {'rs_switchable', None}
    if own.isdisjoint((config.architecture, base)) or config.num_classes != model.num_classes:
        return None
    labels = config.model_dump(mode='json', include={'label_names', 'label_descriptions'}, exclude_unset=True)
    cfg = _known({**config.pretrained_cfg.model_dump(mode='json', exclude_unset=True), **labels})
    return _Description(cfg, config.rs_timm.alpha, config.rs_timm.crops)


def _known(cfg: Mapping[str, Any]) -> Dict[str, Any]:
    """What `cfg` says about pictures and classes, with timm's defaults for what it leaves out."""
    defaults = PretrainedCfg()
    return {key: cfg.get(key, getattr(defaults, key)) for key in _KEYS}


def _trained(file: str) -> Optional[_Description]:
    if file.endswith('.safetensors'):
        return None
    try:
        state = load_checkpoint(file)
    except ValueError:  # of somebody else
        return None
    recipe = Recipe(**{key: state['recipe'][key] for key in _OF_RECIPE})
    names = state.get('class_names')  # earlier versions did not note them
    scores = (state.get('task_state_ema') or state['task_state'])['alpha']
    return _Description(
        dict(input_cfg(recipe), label_names=names, label_descriptions=None),
        dict(zip(recipe.resolutions, scores.float().softmax(0).tolist())))


def _trained_by_timm(file: str, model: nn.Module) -> Optional[_Description]:
    """What timm's train.py says about its pictures in its checkpoints: its arguments, else the network's cfg."""
    if file.endswith('.safetensors'):
        return None
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            args = vars(torch.load(file, map_location='cpu', weights_only=True)['args'])
        name = str(args['model'])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError, pickle.UnpicklingError):
        return None  # none there; or torch 2.4, which has no safe_globals
    if not args.keys() >= _OF_TIMM:
        return None
    cfg: Any = model.pretrained_cfg
    if timm.is_model(name) and (args.get('pretrained') or '.' in name or not name.startswith('rs_')):
        cfg = get_pretrained_cfg(name).to_dict()  # type: ignore[union-attr]
    try:
        config = resolve_data_config(args, pretrained_cfg=cfg)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f'{file}: its args say a preprocessing that timm does not take: {error!r}.') from None
    from rs_timm.models._config import check_entries  # pydantic takes its time to import

    check_entries(config, f'args of {file}')
    return _Description(_known({**config, 'label_names': None}), {})


def _unknown_preprocessing(model: nn.Module, name: str, file: str) -> str:
    """The assumptions about the weights of `file`, about which nothing is known, in one line."""
    cfg: Any = model.pretrained_cfg
    if not (':' in name or '.' in name) and cfg.get('tag'):
        name = f"{name}.{cfg['tag']}"
    named = infer_imagenet_subset(model) or len(cfg.get('label_names') or ()) == model.num_classes
    return (f"{file} does not say how its pictures were prepared: as for {name} it is "
            f"{describe_preprocessing(resolve_model_data_config(model))}"
            f"{'' if named else '; what its classes are called is unknown'}")
