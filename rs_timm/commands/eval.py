"""rs-timm eval: top-1 and top-5 on labelled pictures, or IoU on pictures with masks, at any sizes, in one pass."""
import argparse
from typing import Any, Dict, Mapping, Optional, Sequence

import torch
from timm.data import resolve_model_data_config
from torch import nn

from rs_timm.layers import get_resolutions
from rs_timm.training import evaluate, results_rows, results_table, write_results_csv
from rs_timm.training.build import task_of
from rs_timm.training.processes import is_first_process, join_processes

from ._classes import labelled_pictures
from ._data import PRECISIONS, add_data_arguments, add_running_arguments, evaluation_loader
from ._masks import evaluate_segmentation
from ._model import describe_preprocessing, load_model, positive_int
from ._shell import report

__all__ = ['register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('eval', help='top-1 and top-5, or mean IoU, at any sizes, in one pass over the data')
    parser.add_argument('model', metavar='MODEL', help="as for 'rs-timm predict'")
    add_data_arguments(parser)
    parser.add_argument('--resolutions', type=positive_int, nargs='+', metavar='R',
                        help='sizes to measure in pixels, trained or not (default: the trained ones)')
    parser.add_argument('--ensemble', action='store_true',
                        help='measure the ensemble too: with the learned weights, or with equal ones if there are none')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--checkpoint', metavar='FILE', help='load these weights (.safetensors or .pth)')
    source.add_argument('--no-weights', action='store_true', help='random weights, to try out')
    add_running_arguments(parser)
    parser.add_argument('--csv', metavar='FILE', help="write the results too, with the columns of timm's validate.py")
    masks = parser.add_argument_group('segmentation', 'for a network such as rs_refinenet_resnet18; DIR has '
                                      'SPLIT/images and SPLIT/masks')
    masks.add_argument('--ignore-label', type=int, default=255, metavar='V',
                       help='mask value of pixels without a class (default: 255)')
    masks.add_argument('--per-class', action='store_true', help='print the IoU of each class')
    masks.add_argument('--overlays', metavar='DIR', help='draw the predictions of the first pictures there')
    masks.add_argument('--overlay-count', type=positive_int, default=4, metavar='N', help='how many (default: 4)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    device = join_processes(args.device)
    model = load_model(args.model, not args.no_weights, args.checkpoint).to(device)
    config = resolve_model_data_config(model)
    sizes = tuple(sorted(set(args.resolutions or get_resolutions(model)), reverse=True))
    alpha = _alpha(model, sizes) if args.ensemble else {}
    if task_of(model) == 'segmentation':
        _print_heading(args, config, device)
        return evaluate_segmentation(args, model, config, sizes, alpha, PRECISIONS.get(args.amp), device)
    pictures = labelled_pictures(args, model)
    loader = evaluation_loader(args, pictures.dataset, config, sizes, device)
    _print_heading(args, config, device, f'; classes {pictures.order}')
    results = evaluate(model, loader, sizes, alpha, PRECISIONS.get(args.amp), device)
    for message in loader.damaged:
        report(f'warning: skipped {message}')
    if is_first_process():
        print(results_table(results))
        if alpha:
            weights = ', '.join(f'{size}: {weight:.3f}' for size, weight in alpha.items())
            print(f'# ensemble: {weights}')
        if args.csv:
            columns = dict(
                param_count=round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
                crop_pct=config['crop_pct'],
                interpolation=config['interpolation'],
            )
            write_results_csv(args.csv, results_rows(results, args.model, **columns))
    return 0


def _print_heading(args: argparse.Namespace, config: Mapping[str, Any], device: torch.device, more: str = '') -> None:
    if is_first_process():
        print(f'# {args.model} on {args.data} ({args.split}), {device}, {args.amp or "float32"}; '
              f'{describe_preprocessing(config)}{more}', flush=True)


def _alpha(model: nn.Module, sizes: Sequence[int]) -> Dict[int, float]:
    """The learned weights of the ensemble, largest resolution first; equal ones if the model has none."""
    learned: Optional[Mapping[Any, float]] = (getattr(model, 'checkpoint_metadata', None) or {}).get('alpha')
    if not learned:
        report('note: the model has no ensemble weights; equal ones are used')
        return {size: 1. / len(sizes) for size in sizes}
    weights = {int(size): float(weight) for size, weight in learned.items()}
    missing = sorted(set(weights) - set(sizes), reverse=True)
    if missing:
        raise ValueError(f"the ensemble needs the sizes {tuple(sorted(weights, reverse=True))}: add "
                         f"{' '.join(map(str, missing))} to --resolutions, or leave out --ensemble.")
    return dict(sorted(weights.items(), reverse=True))
