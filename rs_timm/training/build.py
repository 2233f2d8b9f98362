"""The network of a recipe: which one, from which weights, and what of it is trained."""
import logging
import warnings
from pathlib import Path
from typing import Any, Dict, List, Mapping

import timm
import torch
from timm.layers import convert_sync_batchnorm
from timm.models import adapt_input_conv, is_model
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rs_timm.data.multires import per_channel
from rs_timm.layers import SwitchableBatchNorm2d, extract, is_switchable, pack
from rs_timm.models import checkpoint_filter_fn, switchable
from rs_timm.segmentation import load_encoder
from rs_timm.tensor_files import check_values, read_weights

from .recipe import Recipe
from .tasks import TASKS, task_of

__all__ = [
    'build_model', 'check_start', 'freeze', 'input_cfg', 'resized', 'synchronized', 'task_of',
]

_logger = logging.getLogger(__name__)
_PREFIX = 'switchable:'


def build_model(name: str, recipe: Recipe, num_classes: int) -> nn.Module:
    """The network `name` with the BatchNorm sets, the initial weights and the trainable parameters of `recipe`.

    Args:
        name: of a registered `rs_*` model, or any BatchNorm network of timm, which is then converted; 'switchable:' may
            stand before it, as elsewhere.
        recipe: its `resolutions`, `shared_bn`, `model_args`, `init` and `train` matter.
        num_classes: outputs of the classifier.

    Raises:
        ValueError: an unknown name, or weights that do not fit.
    """
    name = name.removeprefix(_PREFIX)
    create = timm.create_model if name.startswith('rs_') else switchable
    try:
        model = create(name, resolutions=recipe.resolutions, num_classes=num_classes, **recipe.model_kwargs())
    except RuntimeError as error:  # timm's 'Unknown model'
        raise ValueError(f'model {name!r}: {error}. rs_timm has {", ".join(timm.list_models("rs_*"))}, and converts '
                         'any BatchNorm network of timm.list_models().') from error
    except TypeError as error:  # an argument that the network does not have, or of another type
        raise ValueError(f"model_args {' '.join(recipe.model_args)}: {name} does not take this: {error}.") from error
    TASKS[recipe.task].check(model)
    if recipe.init:
        _load_init(model, recipe.init, recipe.head)
    if recipe.shared_bn:
        model = extract(model, max(recipe.resolutions))
    model.pretrained_cfg = model.default_cfg = {**model.pretrained_cfg, **input_cfg(recipe)}  # where timm looks for it
    return freeze(model, recipe.train)


def check_start(name: str, recipe: Recipe) -> None:
    """Refuse to start from random weights where `recipe` does not, or where `name` stands for weights.

    Raises:
        ValueError: a recipe that goes on from others, a name with a tag, or a folder, without `init`.
    """
    recipe.check_start()
    if recipe.init:
        return
    plain = name.removeprefix(_PREFIX)
    architecture, _, tag = plain.partition('.')
    if ':' in plain or (Path(plain).is_dir() and not is_model(plain)):
        raise ValueError(f'{name} stands for weights, and a run starts from random ones unless it has init: name a '
                         f'network, such as rs_resnet18, with --init {plain}.')
    if tag:
        raise ValueError(f'{name} stands for weights, and a run starts from random ones unless it has init: train '
                         f'{architecture} with --init {plain}.')


def input_cfg(recipe: Recipe) -> Dict[str, Any]:
    """The preprocessing of `recipe` in evaluation, as entries of timm's pretrained_cfg."""
    side = max(recipe.resolutions)
    return dict(
        input_size=(recipe.channels, side, side),
        test_input_size=None,
        crop_pct=recipe.crop_pct,
        test_crop_pct=None,
        interpolation=recipe.interpolation,
        mean=per_channel(recipe.mean, recipe.channels),
        std=per_channel(recipe.std, recipe.channels),
    )


def _load_init(model: nn.Module, init: str, head: str) -> None:
    """Start from weights of another network; a classifier for other classes starts anew, as `head` says."""
    state = read_weights(init)
    if task_of(model) == 'segmentation' and not any(key.startswith('encoder.') for key in state):
        return load_encoder(model.encoder, init)  # type: ignore[arg-type]
    try:
        state = checkpoint_filter_fn(state, model)
        _keep_new_heads(state, model, init, head)
        _fit_input(state, model, init)
        check_values(state, model, init)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            model.load_state_dict(state)
    except ValueError:
        raise
    except Exception as error:  # shapes, or keys that only look like those of a network
        reason = (str(error).splitlines() or [type(error).__name__])[-1].strip()
        raise ValueError(f'{init}: does not fit {type(model).__name__}: {reason}') from error
    for warning in caught:
        _logger.info('%s: %s', init, warning.message)


def _keep_new_heads(state: Dict[str, Any], model: nn.Module, init: str, start: str) -> None:
    """Put the classifier of `model`, or zeros, into `state` where that has none, or one for other classes."""
    own = model.state_dict()
    heads = model.pretrained_cfg.get('classifier') or 'fc'
    for head in (heads,) if isinstance(heads, str) else heads:
        weight = f'{head}.weight'
        if weight not in own or (weight in state and state[weight].shape == own[weight].shape):
            continue
        theirs = f'is for {len(state[weight])} classes' if weight in state else 'is not there'
        _logger.warning('%s: %s %s, the network has %d: it starts anew', init, weight, theirs, len(own[weight]))
        fresh = {key: own[key] for key in (weight, f'{head}.bias') if key in own}
        state.update({key: torch.zeros_like(value) if start == 'zero' else value for key, value in fresh.items()})


def _fit_input(state: Dict[str, Any], model: nn.Module, init: str) -> None:
    """Make the first convolution of RGB weights fit a network for other channels, as timm does: for gray, their sum."""
    own = model.state_dict()
    firsts = model.pretrained_cfg.get('first_conv') or ()
    for first in (firsts,) if isinstance(firsts, str) else firsts:
        weight = f'{first}.weight'
        if weight in own and weight in state and state[weight].shape[1] == 3 != own[weight].shape[1]:
            channels = own[weight].shape[1]
            _logger.info('%s: %s is for 3 channels, the network has %d: it is adapted', init, weight, channels)
            state[weight] = adapt_input_conv(channels, state[weight])


def freeze(model: nn.Module, train: str) -> nn.Module:
    """Leave trainable what `train` names: 'all', 'head' (classifier and BatchNorms), 'bn', or of these 'smaller'."""
    if train == 'all':
        return model
    modules: List[nn.Module] = [m for m in model.modules() if isinstance(m, _BatchNorm)]
    if train == 'smaller':
        modules = [layer.set_for(resolution) for layer in model.modules() if isinstance(layer, SwitchableBatchNorm2d)
                   for resolution in layer.selector.resolutions[1:]]
    if train == 'head':
        modules.append(model.get_classifier())
    model.requires_grad_(False)
    for module in modules:
        module.requires_grad_(True)
    return model


def synchronized(model: nn.Module, device: torch.device) -> nn.Module:
    """`model` with the statistics of its BatchNorms taken over all processes.

    timm's conversion keeps the activation of BatchNorms that have one; torch's own does not.

    Args:
        model: is changed.
        device: where it will run.

    Raises:
        ValueError: a device other than CUDA.
    """
    if device.type != 'cuda':
        raise ValueError("sync_bn needs CUDA: torch's SyncBatchNorm runs there alone.")
    return convert_sync_batchnorm(model)


def resized(model: nn.Module, sets: Mapping[int, int]) -> nn.Module:
    """A copy of `model` whose BatchNorm sets stand under the sizes that they are fed with; itself if all are equal.

    Args:
        model: switchable, or plain.
        sets: size in pixels -> resolution of the set, see `Recipe.measured_sets`.
    """
    if not is_switchable(model) or all(resolution == size for size, resolution in sets.items()):
        return model
    return pack({size: extract(model, resolution) for size, resolution in sets.items()})
