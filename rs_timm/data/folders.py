"""Folders of pictures: with labels in ROOT/SPLIT/CLASS, and without."""
import logging
import os
import random
import re
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from io import BytesIO
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import torch
from PIL import Image
from timm.data import ImageDataset
from timm.data.readers.class_map import load_class_map
from timm.data.readers.reader import Reader
from timm.utils.misc import natural_key
from torch.utils.data import Dataset

from rs_timm.pictures import ENDINGS, ImageError, open_image, read_file
from rs_timm.predict.collection import open_collection
from rs_timm.tar_files import Place, pictures_in_tar

__all__ = [
    'ImageFiles', 'find_pictures', 'folder_classes', 'hold_out', 'open_split', 'open_unlabelled', 'without_ending']

_logger = logging.getLogger(__name__)

# Names that stand for each other in a search for a split, as in timm, and others that folders of splits have.
_SYNONYMS = (('train', 'training'), ('val', 'valid', 'validation', 'eval', 'evaluation'))
_LOOSE = 'pictures outside of the folders of classes'
_OTHERS = f'files that do not end like a picture ({", ".join(ENDINGS[:3])}, ...)'
_SPLITS = (*_SYNONYMS[0], *_SYNONYMS[1], 'test', 'testing')


def find_pictures(folder: Union[str, 'PathLike[str]'], follow_links: bool = True) -> Tuple[List[str], List[str]]:
    """The files below a folder whose names end like a picture's, and the others, as paths relative to it, sorted.

    What starts with a dot is passed over: hidden files, and folders such as .ipynb_checkpoints.

    Args:
        folder: searched at any depth.
        follow_links: enter folders that are links too, each folder once.
    """
    pictures: List[str] = []
    others: List[str] = []
    entered = set()
    for place, folders, files in os.walk(folder, followlinks=follow_links):
        folders[:] = [name for name in folders if not name.startswith('.')]
        if follow_links:
            real = os.path.realpath(place)
            if real in entered:
                folders[:] = []
                continue
            entered.add(real)
        within = os.path.relpath(place, folder)
        for name in files:
            if not name.startswith('.'):
                path = name if within == os.curdir else os.path.join(within, name)
                (pictures if name.lower().endswith(ENDINGS) else others).append(path)
    return sorted(pictures), sorted(others)


def without_ending(name: str) -> str:
    """The name of a file without the ending of a picture, if it has one.

    >>> without_ending('a/cat.JPG'), without_ending('scene.001')
    ('a/cat', 'scene.001')
    """
    stem, ending = os.path.splitext(name)
    return stem if ending.lower() in ENDINGS else name


class _LabelledPictures(Reader):
    """Pictures in files or tar files, with their targets, in natural order of their names.

    Args:
        root: the folder or tar file.
        found: (name below the root, where it is, class) of each picture.
        class_map: as for `open_split`.
    """

    def __init__(self, root: str, found: Sequence[Tuple[str, Place, str]], class_map: Any = '') -> None:
        super().__init__()
        self.root = root
        self.class_to_idx = _class_indices([label for _, _, label in found], class_map, root)
        self.samples = sorted(
            ((name, place, self.class_to_idx[label]) for name, place, label in found),
            key=lambda sample: natural_key(sample[0]))

    def __getitem__(self, index: int) -> Tuple[Any, int]:
        _, place, target = self.samples[index]
        return BytesIO(read_file(place.path, offset=place.offset, size=place.size)), target

    def __len__(self) -> int:
        return len(self.samples)

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        name = self.samples[index][0]
        return os.path.basename(name) if basename else os.path.join(self.root, name) if absolute else name


def _in_folders(root: str, class_map: Any) -> _LabelledPictures:
    """The pictures in ROOT/CLASS/...: the class is the first folder below the root."""
    pictures, others = find_pictures(root)
    labelled = [(path, Place(os.path.join(root, path)), path.split(os.sep)[0]) for path in pictures if os.sep in path]
    reader = _LabelledPictures(root, labelled, class_map)
    classes = {label for _, _, label in labelled}
    _warn_of_omissions(root, {
        _LOOSE: [path for path in pictures if os.sep not in path],
        _OTHERS: others,
        'folders without pictures': sorted(
            entry.name for entry in os.scandir(root)
            if entry.is_dir() and not entry.name.startswith('.') and entry.name not in classes),
    })
    return reader


def _in_tar(root: str, class_map: Any) -> _LabelledPictures:
    """The pictures in a tar file: the class is the first folder below those that all of its pictures are in."""
    others: List[str] = []
    found = pictures_in_tar(root, '', lambda name, ending: others.append(name))
    shown = {name: place for name, place in found.items() if not _is_hidden(name)}
    folders = {name: re.sub(r'\.tar(?=/)', '', name).split('/')[:-1] for name in shown}  # as if it were unpacked
    shared = len(os.path.commonprefix([parts[:-1] for parts in folders.values() if parts]))  # whole names
    labelled = [(name, place, folders[name][shared]) for name, place in shown.items() if len(folders[name]) > shared]
    reader = _LabelledPictures(root, labelled, class_map)
    _warn_of_omissions(root, {
        _LOOSE: [name for name in shown if len(folders[name]) <= shared],
        _OTHERS: [name for name in others if not _is_hidden(name)],
    })
    return reader


def _is_hidden(name: str) -> bool:
    return any(part.startswith('.') for part in name.split('/'))


def _class_indices(labels: Sequence[str], class_map: Any, root: str) -> Dict[str, int]:
    """Name of each class -> target: in natural order, or as in `class_map`, which must have all of them."""
    if not labels:
        raise ValueError(f'Found 0 images in the folders of {root}. Endings of pictures are {", ".join(ENDINGS)}.')
    if not class_map:
        return {label: index for index, label in enumerate(sorted(set(labels), key=natural_key))}
    try:
        indices: Dict[str, int] = load_class_map(class_map, root)
    except AssertionError as error:  # timm's way to say that it cannot read it
        raise ValueError(f'{root}: {error}') from error
    missing = sorted(set(labels) - set(indices), key=natural_key)
    if missing:
        raise ValueError(f'{root}: the class map has no {missing[0]!r} ({len(missing)} of {len(set(labels))} folders '
                         f'are not in it); it has {", ".join(map(repr, list(indices)[:3]))}, ...: add the folders, or '
                         'move them away.')
    return indices


def _warn_of_omissions(root: str, omitted: Mapping[str, Sequence[str]]) -> None:
    if int(os.environ.get('RANK', 0)):  # the first process of a run says it
        return
    parts = [f'{len(names)} {what}, the first: {names[0]}' for what, names in omitted.items() if names]
    if parts:
        _logger.warning('%s: left out are %s', root, '; '.join(parts))


def open_split(root: Union[str, 'PathLike[str]'], split: str, class_map: Any = '', **options: Any) -> Dataset[Any]:
    """The pictures in ROOT/SPLIT/CLASS, or in ROOT/CLASS where there are no splits, as a data set of timm.

    The class is the first folder below the split, whatever lies deeper. A warning names and counts what is left out:
    files that do not end like a picture, pictures outside of the folders of classes, folders without pictures. What
    starts with a dot is passed over.

    Args:
        root: the folder, or a tar file.
        split: name of a sub-folder; 'val', 'valid', 'validation', ... stand for each other.
        class_map: a file of names of folders, one a line, or {name: target}; by default they are numbered in order.
        options: for `timm.data.ImageDataset`.

    Raises:
        ValueError: no such folder, no pictures in it, other splits but not this one, a class map that is not there, or
            one that lacks a folder.
    """
    root = Path(fspath(root))
    if not root.exists():
        raise ValueError(f'{root}: no such folder; expected {root}/{split}/CLASS/PICTURE.')
    place = root
    if root.is_dir():
        same = next((names for names in _SYNONYMS if split in names), ())
        place = next((root / name for name in (split, *same) if (root / name).is_dir()), root)
        others = [] if place != root or split == '.' else _splits(root)
        if others:
            raise ValueError(f"{root}: it has no folder for the split {split!r}, but {', '.join(others)}: name one of "
                             f'them (split, --split); expected {root}/{split}/CLASS/PICTURE.')
    try:
        reader: Any = (_in_folders if place.is_dir() else _in_tar)(str(place), class_map)
    except ValueError as error:
        raise ValueError(f'{error} Expected {root}/{split}/CLASS/PICTURE.') from error
    return ImageDataset(str(place), reader=reader, **options)


def open_unlabelled(root: Union[str, 'PathLike[str]']) -> Dataset[Any]:
    """The pictures of a folder, at any depth, or of a tar file, as a data set of timm; every target is 0.

    Raises:
        ValueError: as `rs_timm.predict.collection.open_collection`.
    """
    found = open_collection([root])
    reader = _LabelledPictures(fspath(root), [(*picture, '') for picture in zip(found.names, found.places)])
    return ImageDataset(fspath(root), reader=reader)


def _splits(root: Path) -> List[str]:
    """Sub-folders that are called like a split and hold folders, as a class of that name would not."""
    return sorted(entry.name for entry in os.scandir(root) if entry.name.lower() in _SPLITS and entry.is_dir() and
                  any(inner.is_dir() for inner in os.scandir(entry.path)))


def folder_classes(dataset: Any) -> Dict[str, int]:
    """Name of each class's folder -> target, as the reader of a folder or tar file has it; empty for others."""
    reader = getattr(dataset, 'reader', None)
    return getattr(reader, 'class_to_idx', None) or getattr(reader, 'class_name_to_idx', None) or {}


def hold_out(dataset: Any, fraction: float, seed: int = 0) -> Tuple[Dataset[Any], Dataset[Any]]:
    """Split the pictures of a data set in two: those that are left, and a share of each class, drawn at random.

    A class of several pictures has at least one in each part; a single picture stays in the first.

    Args:
        dataset: from `open_split`.
        fraction: share of the second part, in (0, 1).
        seed: of the draw.

    Returns:
        Two data sets with the classes of `dataset`, each in its order.

    Raises:
        ValueError: no class has two pictures.
    """
    samples = dataset.reader.samples
    by_class: Dict[int, List[int]] = defaultdict(list)
    for index, (*_, target) in enumerate(samples):
        by_class[target].append(index)
    draw, held = random.Random(seed), set()
    for indices in by_class.values():
        count = min(max(round(fraction * len(indices)), 1), len(indices) - 1)
        held.update(draw.sample(indices, count))
    if not held:
        raise ValueError(f'{dataset.reader.root}: each class has one picture, of which no share can be kept aside.')
    parts = []
    for is_held in (False, True):
        part = copy(dataset)
        part.reader = copy(dataset.reader)
        part.reader.samples = [sample for index, sample in enumerate(samples) if (index in held) is is_held]
        parts.append(part)
    return parts[0], parts[1]


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
        self.files = [Path(folder, path) for path in find_pictures(folder, follow_links=False)[0]]
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
