"""MODEL on the command line: a registered name, a folder, a hub repository, or any timm network made switchable."""
import difflib
import os
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import timm
from timm.models import get_arch_pretrained_cfgs, get_pretrained_cfg
from torch import nn

import rs_timm
from rs_timm.hub import from_pretrained
from rs_timm.models import is_paper_layout
from rs_timm.training.processes import is_first_process

from ._arguments import add_model_arguments, positive_int
from ._checkpoint import classes_in, load_into, read_state_dict, resolutions_in
from ._described import describe_preprocessing, describe_weights, unknown_preprocessing
from ._shell import report

__all__ = [
    'add_model_arguments', 'describe_preprocessing', 'load_model', 'named_weights', 'positive_int', 'prepare_out']


def prepare_out(directory: str, force: bool) -> str:
    """Refuse, before any work, to write into a folder that holds something, unless `force` is set."""
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f'{directory} is a file: --out names a folder.')
    if not force and os.path.isdir(directory) and os.listdir(directory):
        raise ValueError(f'{directory} is not empty: name another folder, or --force to replace the model in it.')
    return directory


def load_model(
        name: str,
        weights: bool = True,
        checkpoint: Optional[str] = None,
        resolutions: Optional[Iterable[int]] = None,
        num_classes: Optional[int] = None,
        preprocessing: Optional[Mapping[str, Any]] = None,
) -> nn.Module:
    """The switchable network that `name` means, in evaluation mode.

    Args:
        name: as in the help of MODEL.
        weights: load the pretrained weights of that name.
        checkpoint: load this file instead; resolutions and number of classes are those of the file, if not given.
        resolutions: pixels; None: those that the name implies.
        num_classes: None: what the name implies.
        preprocessing: entries of pretrained_cfg that replace what is known about the weights of `checkpoint`. Without
            any, a line on stderr says so where nothing is known.

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


def _from_checkpoint(name: str, file: str, given: Dict[str, Any], preprocessing: Mapping[str, Any]) -> nn.Module:
    state_dict = read_state_dict(file)
    from_paper, paper = is_paper_layout(state_dict), f'{name}.orig_in1k'
    if from_paper and timm.is_model(name) and paper in get_arch_pretrained_cfgs(name):
        name = paper  # the layout tells the preprocessing; the default weights have another one
    draft = _create(name, False, given)
    found = dict(resolutions=resolutions_in(state_dict, draft), num_classes=classes_in(state_dict, draft))
    if given.get('num_classes') and found['num_classes'] not in (None, given['num_classes']):
        raise ValueError(f"{file} has {found['num_classes']} classes, not {given['num_classes']}.")
    model = _create(name, False, {**{key: value for key, value in found.items() if value}, **given})
    load_into(model, state_dict, file)
    known = describe_weights(model, file) or from_paper
    model.pretrained_cfg.update(preprocessing)  # type: ignore[operator, union-attr]
    if not (known or preprocessing) and is_first_process():
        report(unknown_preprocessing(model, name, file))
    return model


def _create(name: str, pretrained: bool, kwargs: Dict[str, Any]) -> nn.Module:
    kind, source = _resolve(name)
    if kind == 'switchable':
        model = rs_timm.switchable(source, pretrained=pretrained, **kwargs)
    elif kind in ('local-dir', 'hf-hub') and pretrained:
        repo_id, _, revision = source.partition('@') if kind == 'hf-hub' else (source, '', '')
        model = from_pretrained(repo_id, revision or None, **kwargs)
    else:
        model = timm.create_model(source if kind == 'name' else f'{kind}:{source}', pretrained=pretrained, **kwargs)
    if not rs_timm.is_switchable(model):
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
