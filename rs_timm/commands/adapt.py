"""rs-timm adapt: the smaller sizes of a network learn what its largest size answers, on pictures without labels."""
import argparse
import logging
from pathlib import Path

import torch

from rs_timm.adaptation import adapt, adapt_recipe
from rs_timm.hub import save_pretrained
from rs_timm.training import Options, Recipe, keep_freed_memory
from rs_timm.training.processes import is_first_process, process_rank

from .arguments import add_model_arguments, model_source
from .train import add_fields, given_fields

__all__ = ['adapt_arguments', 'run']

_OF_NETWORK = (  # what MODEL, or adaptation itself, decides
    'resolutions', 'shared_bn', 'model_args', 'init', 'head', 'train', 'task', 'statistics', 'labels', 'ignore_label',
    'mean', 'std', 'interpolation', 'crop_choices', 'sync_bn')


def adapt_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm adapt`: MODEL, and the fields of `Options` and `Recipe` that it does not decide."""
    parser.description = (
        'Teach the smaller sizes of MODEL what its largest size answers, on pictures of the kind that it is for, which '
        'need no labels. The largest size stays as it is. SIGTERM and Ctrl-C save and stop; the same command with '
        '--resume goes on.')
    add_model_arguments(parser)
    parser.add_argument('--data', required=True, metavar='DIR',
                        help='pictures of all classes of the network: a folder, at any depth, or a tar file')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write; the network goes to DIR/model')
    parser.add_argument('--resume', action='store_true', help='go on from the checkpoint in --out, if there is one')
    add_fields(parser.add_argument_group('where and how'), Options, ('splits',))
    add_fields(parser.add_argument_group('the recipe', 'each replaces a value of the recipe adapt'), Recipe,
               _OF_NETWORK, 'adapt')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    level = logging.WARNING if process_rank() else logging.INFO
    logging.basicConfig(level=level, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    if args.device == 'cpu' or not torch.cuda.is_available():
        keep_freed_memory()
    model = model_source(args).load()
    recipe = adapt_recipe(model, **given_fields(args, Recipe, _OF_NETWORK))
    found = adapt(model, args.data, args.out, args.resume, recipe, Options(**given_fields(args, Options, ('splits',))))
    if not is_first_process():
        return 0
    folder = Path(args.out) / 'model'
    save_pretrained(found.model, folder)
    print(f'agreement with {recipe.resolutions[0]} px on {found.pictures} pictures that were kept aside, percent')
    print(f'{"size":>6} {"before":>7} {"crop":>6} {"after":>7} {"crop":>6}')
    for size, change in found.changes.items():
        print(f'{size:>6} {change.agreement_before:7.1f} {change.crop_before:6.3g} {change.agreement:7.1f} '
              f'{change.crop:6.3g}{"" if change.kept else "  worse: the old set is kept"}')
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{folder}"!r}, pretrained=True)')
    return 0
