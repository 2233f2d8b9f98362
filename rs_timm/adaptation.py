"""`adapt`: the smaller sizes of a network learn, from pictures without labels, what its largest size answers."""
import math
import tempfile
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from typing import Any, ContextManager, Dict, List, Optional, Union

from torch import nn

from rs_timm.crops import crop_at, set_crops
from rs_timm.data import data_config
from rs_timm.data.folders import hold_out, open_unlabelled
from rs_timm.layers import SwitchableBatchNorm2d, get_resolutions, is_switchable
from rs_timm.pictures import ImageError, open_picture
from rs_timm.runtime import Session, choose_crops
from rs_timm.runtime.crop_choice import CropChoice
from rs_timm.training import Options, Recipe, get_recipe, train
from rs_timm.training.tasks import TASKS

__all__ = ['Adapted', 'Change', 'adapt', 'adapt_recipe']

CROPS = (1., 0.875, 0.75, 0.65, 0.55)  # that are tried, before and after


@dataclass(frozen=True)
class Change:
    """What adaptation changed at one size: the crop, and the agreement with the largest size in percent.

    Both were measured on pictures that were kept aside; each agreement is that at the best crop.
    """

    crop_before: float
    agreement_before: float
    crop: float
    agreement: float
    kept: bool  # False: the agreement fell, and the old set is back


@dataclass(frozen=True)
class Adapted:
    """The network that `adapt` returns, and what changed."""

    model: nn.Module  # in evaluation mode, with a crop for each size
    changes: Dict[int, Change]  # smaller size -> what changed
    pictures: int  # that were kept aside and measured on


def adapt_recipe(model: nn.Module, **changes: Any) -> Recipe:
    """The recipe `adapt` with the sizes and the preprocessing of `model`, and some fields changed."""
    config, resolutions = data_config(model), get_resolutions(model)
    own = dict(resolutions=resolutions, mean=tuple(config['mean']), std=tuple(config['std']),
               interpolation=config['interpolation'], crop_pct=crop_at(config['crop_pct'], resolutions[0]))
    if config['input_size'][0] != 3:
        own['model_args'] = (f"in_chans={config['input_size'][0]}",)
    return get_recipe('adapt', **{**own, **changes})


def adapt(
        model: nn.Module,
        images: Union[str, 'PathLike[str]'],
        output: Union[None, str, 'PathLike[str]'] = None,
        resume: bool = False,
        recipe: Optional[Recipe] = None,
        options: Optional[Options] = None,
) -> Adapted:
    """Teach the smaller sizes of `model` what its largest size answers, on pictures that need no labels.

    For a network that was trained for one size and made switchable, with pictures of the kind that it is for, of all
    its classes: those it was trained on will do. Only the BatchNorm weights and biases of the smaller sizes move;
    statistics stay, and the largest size stays as it is, bit for bit. A share of the pictures is kept aside; on these
    a crop is chosen for each size, before and after, and where the agreement with the largest size fell, the old set
    is put back. The network that was given is left alone.

    Pictures of few of the classes, or of other kinds, do harm that the agreement does not show: docs/adapt.md has the
    measurements.

    >>> model = rs_timm.switchable('resnet18.a1_in1k', (224, 160, 96), pretrained=True)  # doctest: +SKIP
    >>> adapted = rs_timm.adapt(model, 'photographs')                                    # doctest: +SKIP
    >>> rs_timm.save_pretrained(adapted.model, 'resnet18_rs')                            # doctest: +SKIP

    Args:
        model: a switchable classifier, on any device.
        images: a folder, searched at any depth, or a tar file.
        output: folder for checkpoints and log.csv, with which a run that was stopped goes on; None: a temporary one.
        resume: go on from the checkpoint in `output`, if there is one.
        recipe: None: `adapt_recipe(model)`.
        options: device, workers and the like; None: the defaults.

    Returns:
        The adapted network, on the CPU, and what changed at each smaller size.

    Raises:
        ValueError: a network that is not switchable, has one size, or is no classifier; no pictures; sizes in `recipe`
            that are not those of the network; as of `rs_timm.training.train`.
        Stopped: a signal came; the run is saved in `output`.

    Source: the distillation of Equation 7 with the largest resolution as the only teacher, in place of Equation 2.
    """
    if not is_switchable(model):
        raise ValueError(f'{type(model).__name__} has no switchable BatchNorm: rs_timm.switchable(NAME, RESOLUTIONS) '
                         'gives one that has.')
    TASKS['adaptation'].check(model)
    recipe = recipe or adapt_recipe(model)
    if recipe.resolutions != get_resolutions(model):
        raise ValueError(f'resolutions {recipe.resolutions} in the recipe: the network has {get_resolutions(model)}.')
    network: Any = deepcopy(model).cpu().eval()
    options = options or Options()
    _, aside = hold_out(open_unlabelled(images), recipe.val_fraction, recipe.seed)  # as the run keeps them aside
    reader = aside.reader  # type: ignore[attr-defined]
    held = [reader[index][0].getvalue() for index in range(len(reader))]
    if options.skip_corrupt:
        held = [file for file in held if _is_readable(file)]
    before = _crops(network, held)
    place: ContextManager[Any] = tempfile.TemporaryDirectory() if output is None else nullcontext(output)
    with place as folder:
        network = train(network, str(images), recipe, str(folder), resume, options).model.cpu()
    network.requires_grad_(True)
    network.checkpoint_metadata = dict(getattr(model, 'checkpoint_metadata', None) or {})
    after = _crops(network, held)
    crops, changes = dict(before.crops), {}
    for size in recipe.resolutions[1:]:
        old, new = before.scores[size][crops[size]], after.scores[size]
        # An adapted set has seen objects at the size that its teacher saw, so that it takes the teacher's crop, unless
        # another is better by more than the standard error of the best one.
        best = max(new.values())
        level = best - math.sqrt(best * (100 - best) / len(held))
        crop = min((abs(crop - recipe.crop_pct), crop) for crop, score in new.items() if score >= level)[1]
        change = Change(crops[size], old, crop, new[crop], kept=new[crop] >= old)
        changes[size] = change
        if change.kept:
            crops[size] = crop
        else:
            _put_back(model, network, size)
    set_crops(network, crops)
    return Adapted(network, changes, len(held))


def _is_readable(file: bytes) -> bool:
    try:
        open_picture(BytesIO(file))
    except ImageError:
        return False
    return True


def _crops(network: nn.Module, pictures: List[bytes]) -> CropChoice:
    return choose_crops(Session(network, 'torch'), pictures, candidates=CROPS)


def _put_back(source: nn.Module, network: nn.Module, resolution: int) -> None:
    """Give `network` the BatchNorm set of `source`, of the same architecture, at one size."""
    for old, new in zip(source.modules(), network.modules()):
        if isinstance(old, SwitchableBatchNorm2d):
            new.set_for(resolution).load_state_dict(old.set_for(resolution).state_dict())  # type: ignore[operator]
