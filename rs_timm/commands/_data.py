"""Labelled pictures on the command line: which ones, and how they are read."""
import argparse
from typing import Any, Mapping, Sequence

import torch
from torch.utils.data import Dataset

from rs_timm.data import MultiResLoader, create_multires_loader
from rs_timm.training.processes import process_count, process_rank

from ._model import positive_int

__all__ = ['PRECISIONS', 'add_data_arguments', 'add_running_arguments', 'evaluation_loader']

PRECISIONS = {'bfloat16': torch.bfloat16, 'float16': torch.float16}


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """--data, --split and --class-map."""
    parser.add_argument('--data', required=True, metavar='DIR', help='pictures in DIR/SPLIT/CLASS, or in DIR/CLASS')
    parser.add_argument('--split', default='val', help='sub-folder of the data (default: val)')
    parser.add_argument('--class-map', metavar='FILE',
                        help="the classes' folders, one a line in the order of the model's outputs (default: by "
                             "the names of the model's classes, or else sorted)")


def add_running_arguments(parser: argparse.ArgumentParser) -> None:
    """How pictures are read and the network runs."""
    parser.add_argument('--batch-size', type=positive_int, default=64, metavar='N', help='default: 64')
    parser.add_argument('--workers', type=int, default=4, metavar='N', help='processes that read (default: 4)')
    parser.add_argument('--device', default='auto', help="'cpu', 'cuda' or 'auto' (default)")
    parser.add_argument('--amp', nargs='?', const='bfloat16', choices=sorted(PRECISIONS), help='run under autocast')
    parser.add_argument('--skip-corrupt', action='store_true', help='leave out pictures that cannot be read')


def evaluation_loader(
        args: argparse.Namespace,
        dataset: Dataset[Any],
        config: Mapping[str, Any],
        sizes: Sequence[int],
        device: torch.device,
) -> MultiResLoader:
    """The pictures of `dataset`, prepared as `config` (of timm) says, at each of `sizes`."""
    return create_multires_loader(
        dataset,
        sizes,
        is_training=False,
        batch_size=args.batch_size,
        num_workers=args.workers,
        channels=config['input_size'][0],
        mean=config['mean'],
        std=config['std'],
        interpolation=config['interpolation'],
        crop_pct=config['crop_pct'],
        crop_mode=config['crop_mode'],
        device=device,
        skip_corrupt=args.skip_corrupt,
        rank=process_rank(),
        world_size=process_count(),
    )
