"""Training pictures in two parts, to choose settings without the test split.

Of pictures in folders of classes, some of each class are kept aside. Neighbours in a video are near-duplicates, so that
pictures drawn at random would be known from training: of those with masks it is the end of each sequence, and between
the two parts some pictures are used for neither.
"""
from collections import defaultdict
from pathlib import Path
from typing import Dict, Iterable, List, Sequence, Tuple

from rs_timm.data import MaskFolder
from rs_timm.training import Recipe

GAP = 3  # pictures of a sequence between its parts; three seconds of CamVid


def split_scenes(names: Sequence[str], share: float, gap: int = GAP) -> Tuple[List[str], List[str]]:
    """The names to train on, and those kept aside: the last `share` of each sequence.

    >>> split_scenes([f'a_{i}' for i in range(10)], 0.2, gap=1)
    (['a_0', 'a_1', 'a_2', 'a_3', 'a_4', 'a_5', 'a_6'], ['a_8', 'a_9'])

    Args:
        names: of pictures; what stands before the last underscore names the sequence, the rest its order.
        share: in (0, 1).
        gap: pictures before those kept aside that are in neither part.
    """
    sequences: Dict[str, List[str]] = defaultdict(list)
    for name in sorted(names):
        sequences[name.rpartition('_')[0]].append(name)
    kept, aside = [], []
    for sequence in sequences.values():
        first = len(sequence) - round(share * len(sequence))
        kept += sequence[:max(first - gap, 0)]
        aside += sequence[first:]
    if not (kept and aside):
        raise ValueError(f'{len(names)} pictures of {len(sequences)} sequence(s), of which a share of {share} is kept '
                         'aside: one of the parts is empty.')
    return kept, aside


def link_pictures(data: Path, folder: Path, share: float) -> Path:
    """Make `folder` of links: train/CLASS and val/CLASS are the two parts of data/train/CLASS.

    Args:
        data: with train/CLASS/*.
        folder: made if it is not there.
        share: of the pictures of each class that are kept aside, evenly in the order of names: for 0.2 every fifth.
    """
    for of_class in sorted((data / 'train').iterdir()):
        parts: Dict[str, List[Path]] = {'train': [], 'val': []}
        for i, file in enumerate(sorted(of_class.iterdir())):
            parts['val' if int(share * (i + 1)) > int(share * i) else 'train'].append(file)
        for split, files in parts.items():
            _link(folder / split / of_class.name, files)
    return folder


def link_scenes(data: Path, folder: Path, recipe: Recipe, share: float) -> Path:
    """Make `folder` of links: train and val are the two parts of the training pictures in `data`.

    Args:
        data: with train/images and train/masks, or another layout of `MaskFolder`.
        folder: made if it is not there.
        recipe: names the classes.
        share: of the pictures that are kept aside.
    """
    pairs = {picture.name: (picture, mask) for picture, mask in
             MaskFolder(data, 'train', recipe.labels, recipe.ignore_label).pairs}
    for split, names in zip(('train', 'val'), split_scenes(list(pairs), share)):
        for kind, files in zip(('images', 'masks'), zip(*(pairs[name] for name in names))):
            _link(folder / split / kind, files)
    return folder


def _link(folder: Path, files: Iterable[Path]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for file in files:
        link = folder / file.name
        if not link.is_symlink():
            link.symlink_to(file.resolve())
