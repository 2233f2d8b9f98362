"""Which output of the model the pictures of a folder belong to."""
import argparse
from typing import Any, Dict, Mapping, NamedTuple, Optional, Sequence

from torch import nn
from torch.utils.data import Dataset

from rs_timm.data import folder_classes, open_split
from rs_timm.training.processes import is_first_process

from ._eager import class_names, folder_names
from ._shell import report

__all__ = ['Labelled', 'labelled_pictures', 'outputs_by_name']


class Labelled(NamedTuple):
    """Pictures whose targets are outputs of the model.

    Attributes:
        dataset: of timm.
        order: how the folders became outputs, in words.
        warning: why that may be wrong; '' if nothing speaks for it.
    """

    dataset: Dataset[Any]
    order: str
    warning: str = ''


def labelled_pictures(args: argparse.Namespace, model: nn.Module) -> Labelled:
    """The pictures that the arguments name; a warning goes to stderr too.

    With --class-map a folder is the output that the file says. Else folders go by name where all of them are called
    like classes of the model, and in sorted order where not.

    Raises:
        ValueError: no pictures, other splits than the one asked for, or more classes than the model has outputs.
    """
    options = dict(class_map=args.class_map) if args.class_map else {}
    dataset = open_split(args.data, args.split, **options)
    folders, outputs = folder_classes(dataset), getattr(model, 'num_classes', 0)
    by_name = None if args.class_map else outputs_by_name(list(folders), folder_names(model))
    if by_name is not None:
        if by_name != folders:
            dataset = open_split(args.data, args.split, class_map=by_name)
        return Labelled(dataset, f'by name ({len(folders)} of {outputs})')
    if folders and outputs and max(folders.values()) >= outputs:
        raise ValueError(f'{args.data} has {max(folders.values()) + 1} classes, the model {outputs}: this is other '
                         'data, or a wrong --class-map.')
    order = f'as in {args.class_map}' if args.class_map else 'in sorted order'
    labelled = Labelled(dataset, order, _doubt(args, folders, model) if folders and outputs else '')
    if labelled.warning and is_first_process():
        report(f'warning: {labelled.warning}')
    return labelled


def outputs_by_name(folders: Sequence[str], candidates: Sequence[Sequence[str]]) -> Optional[Dict[str, int]]:
    """Folder -> index of its name in the first of the lists that has them all; None if there is none.

    >>> outputs_by_name(['dog', 'cat'], [['n02084071', 'n02121620', 'n02512053'], ['dog', 'cat', 'fish']])
    {'dog': 0, 'cat': 1}

    Args:
        folders: names.
        candidates: names of all outputs, in order; a list that calls two outputs alike is passed over.
    """
    for names in candidates:
        index = {name: output for output, name in enumerate(names)}
        if folders and len(index) == len(names) and index.keys() >= set(folders):
            return {folder: index[folder] for folder in folders}
    return None


def _doubt(args: argparse.Namespace, folders: Mapping[str, int], model: nn.Module) -> str:
    """What may be wrong with the order of the folders."""
    outputs = model.num_classes
    if args.class_map:
        return '' if len(folders) == outputs else (
            f'{args.class_map} names {len(folders)} of the {outputs} classes of the model')
    if len(folders) < outputs:  # type: ignore[operator]
        return (f'{args.data} has {len(folders)} of the {outputs} classes of the model; they are numbered in the order '
                'of their names, unless --class-map says otherwise')
    if not folder_names(model):
        return ''
    name = class_names(model)
    pairs = [f'{folder!r} for {name(output)!r}' for folder, output in folders.items()]
    more = ', ...' if len(pairs) > 3 else ''
    return (f"the folders of {args.data} are not called like the model's classes; they are taken in sorted order, "
            f"{', '.join(pairs[:3])}{more}, unless --class-map says otherwise")
