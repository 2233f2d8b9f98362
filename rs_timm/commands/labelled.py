"""Labelled pictures on the command line: which ones, how they are read, and which output each of their folders is."""
import argparse
from typing import Any, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple

import torch
from torch import nn
from torch.utils.data import Dataset

from rs_timm.data import MultiResLoader, create_multires_loader, folder_classes, open_split
from rs_timm.labels import class_names, folder_names, outputs_by_name
from rs_timm.layers import get_resolutions
from rs_timm.training.processes import is_first_process, process_count, process_rank

from .arguments import (
    add_crop_pct,
    add_model_arguments,
    add_old_name,
    add_sizes,
    count_of_cores,
    positive_int,
    precision_name,
)
from .shell import report, watched

__all__ = [
    'Labelled', 'Reading', 'WatchedLoader', 'add_labelled_arguments', 'autocast_type', 'labelled_pictures', 'reading',
    'sizes_to_run']

_TYPES = {'float32': None, 'bfloat16': torch.bfloat16, 'float16': torch.float16}


def add_labelled_arguments(parser: argparse.ArgumentParser, also: str = '', precisions: Sequence[str] = ()) -> None:
    """MODEL and its weights, the pictures, and how they are read and the network runs.

    Args:
        also: what else may be MODEL.
        precisions: beside those of autocast.
    """
    add_model_arguments(parser, resolutions=False, also=also)
    parser.add_argument('--data', required=True, metavar='DIR', help='pictures in DIR/SPLIT/CLASS, or in DIR/CLASS')
    parser.add_argument('--split', default='val', help='of the data: a sub-folder (default: val)')
    parser.add_argument('--class-map', metavar='FILE',
                        help="the classes' folders, one a line in the order of the model's outputs (default: by "
                             "the names of the model's classes, or else sorted)")
    add_sizes(parser, 'sizes to run at in pixels, trained or not (default: the trained ones)', old='--resolutions')
    add_crop_pct(parser)
    parser.add_argument('--batch-size', type=positive_int, default=64, metavar='N', help='default: 64')
    parser.add_argument('--workers', type=int, default=min(8, count_of_cores()), metavar='N',
                        help='processes that read pictures (default: as many as cores, at most 8; here %(default)s)')
    of_files = "; of an exported file, by the engine's own name, such as GPU" if also else ''
    parser.add_argument('--device', default='auto', help=f"'cpu', 'cuda' or 'auto' (default){of_files}")
    parser.add_argument('--precision', type=precision_name, choices=(*_TYPES, *precisions), default='float32',
                        help='of the network, by autocast (default: float32)')
    old = argparse.Action(['--precision'], 'precision', nargs='?', const='bfloat16', choices=tuple(_TYPES))
    add_old_name(parser, old, '--amp')
    parser.add_argument('--skip-corrupt', action='store_true', help='leave out pictures that cannot be read')


def autocast_type(precision: str) -> Optional[torch.dtype]:
    """The type that a network runs in; None: as it is."""
    return _TYPES[precision]


def sizes_to_run(given: Optional[Sequence[int]], model: nn.Module) -> Tuple[int, ...]:
    """The sizes of --sizes, else the trained ones, largest first."""
    return tuple(sorted(set(given or get_resolutions(model)), reverse=True))


class Reading(NamedTuple):
    """How pictures are read."""

    batch_size: int
    workers: int
    skip_corrupt: bool
    device: torch.device

    def loader(self, dataset: Dataset[Any], config: Mapping[str, Any], sizes: Sequence[int]) -> MultiResLoader:
        """The pictures of `dataset`, prepared as `config` (of timm) says, at each of `sizes`."""
        return create_multires_loader(
            dataset,
            sizes,
            is_training=False,
            batch_size=self.batch_size,
            num_workers=self.workers,
            channels=config['input_size'][0],
            mean=config['mean'],
            std=config['std'],
            interpolation=config['interpolation'],
            crop_pct=config['crop_pct'],
            crop_mode=config['crop_mode'],
            device=self.device,
            skip_corrupt=self.skip_corrupt,
            rank=process_rank(),
            world_size=process_count(),
        )


def reading(args: argparse.Namespace, device: torch.device) -> Reading:
    """The values of what `add_labelled_arguments` added."""
    return Reading(args.batch_size, args.workers, args.skip_corrupt, device)


class WatchedLoader:
    """A loader that shows a bar on the terminal of the first process while it is gone through."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Any]:
        return watched(self._loader, 'batch') if is_first_process() else iter(self._loader)

    def __len__(self) -> int:
        return len(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class Labelled(NamedTuple):
    """Pictures whose targets are outputs of the model."""

    dataset: Dataset[Any]  # of timm
    order: str  # how the folders became outputs, in words
    warning: str = ''  # why that may be wrong; '' if nothing speaks for it


def labelled_pictures(model: nn.Module, data: str, split: str, class_map: Optional[str] = None) -> Labelled:
    """The pictures in DATA/SPLIT/CLASS; a warning goes to stderr too.

    With a class map a folder is the output that the file says. Else folders go by name where all of them are called
    like classes of the model, and in sorted order where not.

    Raises:
        ValueError: no pictures, other splits than the one asked for, or more classes than the model has outputs.
    """
    dataset = open_split(data, split, **(dict(class_map=class_map) if class_map else {}))
    folders, outputs = folder_classes(dataset), int(getattr(model, 'num_classes', 0))
    by_name = None if class_map else outputs_by_name(list(folders), folder_names(model))
    if by_name is not None:
        if by_name != folders:
            dataset = open_split(data, split, class_map=by_name)
        return Labelled(dataset, f'by name ({len(folders)} of {outputs})')
    if folders and outputs and max(folders.values()) >= outputs:
        raise ValueError(f'{data} has {max(folders.values()) + 1} classes, the model {outputs}: this is other data, or '
                         'a wrong --class-map.')
    doubt = ''
    if class_map and len(folders) not in (0, outputs):
        doubt = f'{class_map} names {len(folders)} of the {outputs} classes of the model'
    elif not class_map and 0 < len(folders) < outputs:
        doubt = (f'{data} has {len(folders)} of the {outputs} classes of the model; they are numbered in the order of '
                 'their names, unless --class-map says otherwise')
    elif not class_map and folders and outputs and folder_names(model):
        name = class_names(model)
        pairs: List[str] = [f'{folder!r} for {name(output)!r}' for folder, output in folders.items()]
        doubt = (f"the folders of {data} are not called like the model's classes; they are taken in sorted order, "
                 f"{', '.join(pairs[:3])}{', ...' if pairs[3:] else ''}, unless --class-map says otherwise")
    if doubt and is_first_process():
        report(f'warning: {doubt}')
    return Labelled(dataset, f'as in {class_map}' if class_map else 'in sorted order', doubt)
