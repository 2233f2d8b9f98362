"""rs-timm train: a network on a folder of pictures; every field of a recipe is an option."""
import argparse
import logging
from copy import copy
from dataclasses import fields
from pathlib import Path
from typing import Any, Collection, Dict, get_args, get_origin, get_type_hints

import torch
from timm.models._hub import save_config_for_hf

from rs_timm.hub import save_pretrained
from rs_timm.hub.saving import CONFIG, WEIGHTS, check_restores, write_weights
from rs_timm.layers import is_switchable
from rs_timm.training import RECIPES, Options, Recipe, Trained, get_recipe, keep_freed_memory, train
from rs_timm.training.processes import is_first_process, process_rank

__all__ = ['add_fields', 'given_fields', 'run', 'train_arguments']

_logger = logging.getLogger(__name__)
_PROGRESSIVE = 0.8  # what --progressive without a value means: four fifths of the epochs
_CLAIMS = ('description', 'license', 'origin_url', 'paper_name', 'paper_ids', 'notes')  # of other weights


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm train`: some of its own, and every field of `Options` and `Recipe`."""
    parser.description = (
        'Train MODEL with private BatchNorms and MRED. On several GPUs: torchrun --nproc-per-node N -m rs_timm train '
        'MODEL ... SIGTERM and Ctrl-C save and stop; the same command with --resume goes on.')
    parser.add_argument('model', metavar='MODEL', help="a name of 'rs-timm list', or of any BatchNorm network of timm")
    parser.add_argument('--data', required=True, metavar='DIR',
                        help='folder with train/CLASS/* and val/CLASS/*; for segmentation train/images, train/masks')
    parser.add_argument('--out', metavar='DIR', help='folder to write (default: runs/MODEL)')
    parser.add_argument('--resume', action='store_true', help='go on from the checkpoint in --out, if there is one')
    parser.add_argument('--recipe', default='imagenette', help='(default: %(default)s)',
                        choices=[name for name in RECIPES if name != 'adapt'])  # which has a command of its own
    parser.add_argument('--debug-twin', action='store_true',
                        help='the same path in a minute: two epochs of a few steps on small pictures')
    add_fields(parser.add_argument_group('where and how'), Options)
    add_fields(parser.add_argument_group(
        'the recipe', 'each replaces a value of --recipe; the defaults are those of a recipe that says nothing else'),
        Recipe)
    parser.set_defaults(run=run)


def add_fields(group: Any, cls: type, without: Collection[str] = (), recipe: str = '') -> None:
    """An option for each field of a dataclass but those in `without`, as its metadata says.

    Args:
        group: of a parser.
        cls: the dataclass.
        without: fields that get no option.
        recipe: whose defaults are shown; by default those of `cls`.
    """
    hints, defaults = get_type_hints(cls), RECIPES[recipe]() if recipe else cls()
    for field in fields(cls):  # type: ignore[arg-type]
        if field.name in without:
            continue
        kind, option = hints[field.name], '--' + field.name.replace('_', '-')
        about = f"{field.metadata['help']} (default: {_shown(getattr(defaults, field.name))})"
        arguments: Dict[str, Any] = dict(default=None, dest=field.name, help=about.replace('%', '%%'))
        if kind is bool:
            group.add_argument(option, action=argparse.BooleanOptionalAction, **arguments)
        elif get_origin(kind) is tuple:
            group.add_argument(option, nargs='*', type=get_args(kind)[0], metavar=field.name[0].upper(), **arguments)
        elif field.name == 'progressive':
            group.add_argument(option, nargs='?', const=_PROGRESSIVE, type=kind, metavar='SHARE', **arguments)
        elif field.metadata['choices']:
            group.add_argument(option, type=kind, choices=field.metadata['choices'], **arguments)
        else:
            group.add_argument(option, type=kind, metavar=kind.__name__.upper(), **arguments)


def _shown(default: Any) -> str:
    """A default as it would be typed."""
    if isinstance(default, tuple):
        return ' '.join(map(_shown, default)) or 'none'
    return f'{default:g}' if isinstance(default, float) else str(default) or 'none'


def given_fields(args: argparse.Namespace, cls: type, without: Collection[str] = ()) -> Dict[str, Any]:
    """The fields that the user has set."""
    values = {each.name: getattr(args, each.name) for each in fields(cls)  # type: ignore[arg-type]
              if each.name not in without}
    return {key: tuple(v) if isinstance(v, list) else v for key, v in values.items() if v is not None}


def run(args: argparse.Namespace) -> int:
    level = logging.WARNING if process_rank() else logging.INFO
    logging.basicConfig(level=level, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    if args.device == 'cpu' or not torch.cuda.is_available():
        keep_freed_memory()
    recipe = get_recipe(args.recipe, debug=args.debug_twin, **given_fields(args, Recipe))
    out = Path(args.out or Path('runs') / args.model.removeprefix('switchable:'))
    trained = train(args.model, args.data, recipe, str(out), args.resume, Options(**given_fields(args, Options)))
    if is_first_process():
        _save(trained, out / 'model')
    return 0


def _save(trained: Trained, folder: Path) -> None:
    """Write the trained network to a folder that timm loads."""
    if is_switchable(trained.model):
        save_pretrained(trained.model, folder, model_config=dict(label_names=trained.class_names))
    elif not _save_plain(trained, folder):
        return
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{folder}"!r}, pretrained=True)')


def _save_plain(trained: Trained, folder: Path) -> bool:
    """Save a network without switchable BatchNorms as timm does; False if timm cannot load it, but for its weights."""
    network = copy(trained.model)
    cfg: Any = network.pretrained_cfg
    network.pretrained_cfg = {key: value for key, value in cfg.items() if key not in _CLAIMS}  # type: ignore
    folder.mkdir(parents=True, exist_ok=True)
    save_config_for_hf(network, folder / CONFIG, dict(label_names=trained.class_names))  # type: ignore[arg-type]
    saved = write_weights(network, folder, 'full')
    try:
        check_restores(network, folder, saved)
    except ValueError as error:
        (folder / CONFIG).unlink()
        _logger.warning('%s has the weights alone: %s', folder / WEIGHTS, error)
        return False
    return True
