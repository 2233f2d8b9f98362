"""Folders of pictures: with labels in ROOT/SPLIT/CLASS, and without."""
import os
import random
from concurrent.futures import ThreadPoolExecutor
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Union

import torch
from PIL import Image
from timm.data import create_dataset
from torch.utils.data import Dataset

from rs_timm.pictures import ImageError, open_image

__all__ = ['ImageFiles', 'folder_classes', 'open_split']

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


class ImageFiles:
    """The pictures below `folder`, at any depth, in an order that is random and always the same.

    Random, since folders are often sorted by class and the first pictures then show one class alone.

    Args:
        folder: searched for files whose name ends like a picture's (`.jpg`, `.png`, ...); links to folders are not
            followed.
        seed: of the order.

    Attributes:
        files: their paths, in order.
        unreadable: one line for each file that turned out to be no picture, so far.

    Raises:
        ValueError: no such folder, or no pictures in it.
    """

    def __init__(self, folder: Union[str, 'os.PathLike[str]'], seed: int = 0) -> None:
        if not os.path.isdir(folder):
            raise ValueError(f'{folder}: no such folder; expected one with pictures.')
        endings = tuple(Image.registered_extensions())
        self.files = sorted(path for path in Path(folder).rglob('*') if path.name.lower().endswith(endings))
        if not self.files:
            raise ValueError(f'{folder}: no pictures in it (.jpg, .png, ...).')
        random.Random(seed).shuffle(self.files)
        self.unreadable: List[str] = []

    def batches(
            self,
            transform: Callable[[Image.Image], torch.Tensor],
            batch_size: int,
            threads: Optional[int] = None,
    ) -> Iterator[torch.Tensor]:
        """Batches [N, ...] of transformed pictures, N = `batch_size` but for the last; unreadable ones are left out."""
        def load(path: Path) -> Union[torch.Tensor, ImageError]:
            try:
                return transform(open_image(path))
            except ImageError as error:
                return error

        with ThreadPoolExecutor(threads or min(8, os.cpu_count() or 1)) as pool:
            batch: List[torch.Tensor] = []
            for start in range(0, len(self.files), batch_size):
                for loaded in pool.map(load, self.files[start:start + batch_size]):
                    if isinstance(loaded, torch.Tensor):
                        batch.append(loaded)
                    elif str(loaded) not in self.unreadable:
                        self.unreadable.append(str(loaded))
                if len(batch) >= batch_size:
                    yield torch.stack(batch[:batch_size])
                    batch = batch[batch_size:]
            if batch:
                yield torch.stack(batch)
