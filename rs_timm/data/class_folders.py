"""Labelled pictures in ROOT/SPLIT/CLASS: which split is meant, and how its folders are numbered."""
import os
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Dict, List, Union

from timm.data import create_dataset
from torch.utils.data import Dataset

__all__ = ['folder_classes', 'open_split']

# The names that timm takes for each other in a search for a split, and those of a third one.
_SPLITS = ('train', 'training', 'val', 'valid', 'validation', 'eval', 'evaluation', 'test', 'testing')


def open_split(root: Union[str, 'PathLike[str]'], split: str, **options: Any) -> Dataset[Any]:
    """The pictures in ROOT/SPLIT/CLASS, or in ROOT/CLASS where there are no splits, as a data set of timm.

    Args:
        root: the folder, or a tar file.
        split: name of a sub-folder; timm takes 'val', 'valid', 'validation', ... for each other.
        options: for `timm.data.create_dataset`, such as `class_map`.

    Raises:
        ValueError: no such folder, no pictures in it, other splits but not this one, or a class map that is not there.
    """
    root = Path(fspath(root))
    if not root.exists():
        raise ValueError(f'{root}: no such folder; expected {root}/{split}/CLASS/PICTURE.')
    try:
        dataset = create_dataset('', root=str(root), split=split, **options)
    except RuntimeError as error:  # timm's way to say that there are no pictures
        raise ValueError(f'{error} Expected {root}/{split}/CLASS/PICTURE.') from error
    except AssertionError as error:  # and that it cannot read the class map
        raise ValueError(f'{root}: {error}') from error
    others = _splits(root)
    if others and str(dataset.reader.root) == str(root):  # timm then takes all pictures, those of other splits too
        raise ValueError(f"{root}: it has no folder for the split {split!r}, but {', '.join(others)}: name one of "
                         f'them (split, --split); expected {root}/{split}/CLASS/PICTURE.')
    return dataset


def _splits(root: Path) -> List[str]:
    """Sub-folders that are called like a split and hold folders, as a class of that name would not."""
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in os.scandir(root)
                  if entry.name.lower() in _SPLITS and entry.is_dir() and _holds_folders(entry.path))


def _holds_folders(path: str) -> bool:
    with os.scandir(path) as entries:
        return any(entry.is_dir() for entry in entries)


def folder_classes(dataset: Any) -> Dict[str, int]:
    """Name of each class's folder -> target, as timm's reader of a folder or tar file has it; empty for others."""
    reader = getattr(dataset, 'reader', None)
    return getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}
