"""Pictures with masks: which files belong together, what the values mean, and one crop of both at S sizes."""
import random
import re
from io import BytesIO
from os import PathLike
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch.utils.data import Dataset

from rs_timm.pictures import ImageError, open_formats, open_image, read_file, reason, upright

from .folders import find_pictures, without_ending
from .samples import MultiResDataset, Sample, ViewBatch, collate_views
from .views import EvalViews, Views, _colour_augmentation, _resize_with_pillow

__all__ = [
    'IGNORED', 'MaskFolder', 'MaskedEvalViews', 'MaskedPicture', 'MaskedSamples', 'MaskedTrainViews', 'class_values',
    'collate_masks',
]

IGNORED = 255  # in what `MaskFolder` gives: this pixel has no class

# Names of the sub-folders with pictures and with masks.
_BY_SPLIT = (('images', 'masks'), ('rgb', 'labels_40'))  # ROOT/SPLIT/...: CamVid here; NYUDv2 as ESANet prepares it
_BY_LIST = (('RGB', 'Label'), ('images', 'masks'))  # ROOT/..., with ROOT/SPLIT.txt: NYUDv2 as CMX and DFormer have it
_UNKNOWN = -1


class MaskedPicture(NamedTuple):
    picture: Image.Image  # upright RGB
    mask: np.ndarray  # upright uint8 [height, width]: class indices, or IGNORED


def class_values(num_classes: int, ignore_label: int = IGNORED) -> List[int]:
    """The mask values of the classes, in order: the smallest ones but for `ignore_label`.

    >>> class_values(3), class_values(3, ignore_label=0)
    ([0, 1, 2], [1, 2, 3])
    """
    if not 0 < num_classes < 256 or not 0 <= ignore_label < 256:
        raise ValueError(f'{num_classes} classes, ignore_label {ignore_label}: masks have 8 bits, so that there are 1 '
                         'to 255 classes, and the ignored value is in 0 to 255.')
    return [value for value in range(num_classes + 1) if value != ignore_label][:num_classes]


class MaskFolder(Dataset[MaskedPicture]):
    """The pictures and masks of one split, in the order of their names.

    Known are ROOT/SPLIT/images with ROOT/SPLIT/masks (or rgb with labels_40), where a mask has the name of its picture,
    or differs in the ending alone, and ROOT/SPLIT.txt, whose lines name a picture and its mask by their paths, or both
    by one name in ROOT/RGB and ROOT/Label. Folders below these are entered. Masks have one channel or a palette, and
    the size of their picture.

    Args:
        root: the folder.
        split: such as 'train'.
        classes: names of the classes.
        ignore_label: mask value of pixels without a class; the classes are the smallest other values, in order.
        smallest: sides in pixels that a picture must have, the output stride of the networks.

    Attributes:
        pairs: (picture, mask) as paths.

    Raises:
        ValueError: no such folder or split, a picture without a mask, or numbers that do not fit 8 bits. On access,
            ImageError: a file that cannot be read, a mask of another size, a value that is no class, a picture too
            small; the message names the file.
    """

    def __init__(
            self,
            root: Union[str, 'PathLike[str]'],
            split: str,
            classes: Sequence[str],
            ignore_label: int = IGNORED,
            smallest: int = 32,
    ) -> None:
        self.root, self.split = Path(root), split
        self.classes = tuple(classes)
        self.ignore_label = ignore_label
        self.smallest = smallest
        self.values = class_values(len(self.classes), ignore_label)
        self.pairs = _pairs(self.root, split)
        self._meaning = np.full(256, _UNKNOWN, dtype=np.int16)
        self._meaning[self.values] = np.arange(len(self.values))
        self._meaning[ignore_label] = IGNORED

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> MaskedPicture:
        file, mask_file = self.pairs[index]
        picture = open_image(file)
        if min(picture.size) < self.smallest:
            raise ImageError(f'{file}: {picture.width}x{picture.height} pixels; each side needs at least '
                             f'{self.smallest}, the output stride of the network.')
        mask = _read_mask(mask_file)
        if mask.shape != picture.size[::-1]:
            raise ImageError(f'{mask_file}: {mask.shape[1]}x{mask.shape[0]} pixels; its picture, {file}, has '
                             f'{picture.width}x{picture.height}.')
        return MaskedPicture(picture, self._classes(mask, mask_file))

    def _classes(self, mask: np.ndarray, file: Path) -> np.ndarray:
        """Mask values -> class indices."""
        known = (mask >= 0) & (mask < len(self._meaning))
        classes = self._meaning[np.where(known, mask, 0)]
        wrong = ~known | (classes == _UNKNOWN)
        if wrong.any():
            raise ImageError(f'{file}: the value {int(mask[wrong][0])} is no class: expected {self.values[0]} to '
                             f'{self.values[-1]} for the {len(self.values)} classes, or {self.ignore_label} for none '
                             '(ignore_label, --ignore-label).')
        return classes.astype(np.uint8)


def _read_mask(file: Path) -> np.ndarray:
    try:
        with Image.open(BytesIO(read_file(file)), formats=open_formats()) as mask:
            mode, values = mask.mode, np.asarray(upright(mask))
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(f'{file}: {reason(error)}') from error
    if values.ndim != 2 or values.dtype == np.float32:
        raise ImageError(f'{file}: a mask holds one whole number a pixel; this is a picture of kind {mode}.')
    return values.astype(np.int32)


def _pairs(root: Path, split: str) -> List[Tuple[Path, Path]]:
    expected = f'expected {root}/{split}/images and {root}/{split}/masks, or {root}/{split}.txt with {root}/RGB and ' \
               f'{root}/Label.'
    if not root.is_dir():
        raise ValueError(f'{root}: no such folder; {expected}')
    for pictures, masks in _BY_SPLIT:
        if (root / split / pictures).is_dir() and (root / split / masks).is_dir():
            return _matched(_Names(root / split / pictures), _Names(root / split / masks))
    listing = root / f'{split}.txt'
    if listing.is_file():
        return _listed(root, listing)
    raise ValueError(f'{root}: no split {split!r}; {expected}')


class _Names:
    """The pictures below a folder, found by their path in it, with its ending or without."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.files = find_pictures(folder)[0] if folder.is_dir() else []
        self._by_stem: Dict[str, List[str]] = {}
        for file in self.files:
            self._by_stem.setdefault(without_ending(file), []).append(file)

    def find(self, name: str) -> Path:
        """The file of exactly this name, else the one that differs in the ending alone; where none is, the name."""
        if (self.folder / name).is_file():
            return self.folder / name
        found = self._by_stem.get(without_ending(name), [])
        if len(found) > 1:
            raise ValueError(f'{self.folder / found[0]}: {found[1]} beside it has the same name but for the ending, '
                             f'and {name} could mean either: name them apart.')
        return self.folder / (found[0] if found else name)


def _matched(pictures: _Names, masks: _Names) -> List[Tuple[Path, Path]]:
    if not pictures.files:
        raise ValueError(f'{pictures.folder}: no pictures in it (.jpg, .png, ...).')
    pairs = [(pictures.folder / file, masks.find(file)) for file in pictures.files]
    alone = [picture for picture, mask in pairs if not mask.is_file()]
    if alone:
        raise ValueError(f'{alone[0]}: has no mask in {masks.folder} ({len(alone)} of {len(pairs)} pictures have '
                         f'none); expected {masks.folder / alone[0].stem}.png.')
    return _apart(pairs)


def _apart(pairs: List[Tuple[Path, Path]]) -> List[Tuple[Path, Path]]:
    """The pairs, of which no two may have the same mask."""
    owners: Dict[Path, Path] = {}
    for picture, mask in pairs:
        if owners.setdefault(mask, picture) != picture:
            raise ValueError(f'{mask}: it would be the mask of {owners[mask].name} and of {picture.name}, which have '
                             'the same name but for the ending: name them apart.')
    return pairs


def _listed(root: Path, listing: Path) -> List[Tuple[Path, Path]]:
    try:
        lines = [line.strip() for line in listing.read_text(encoding='utf-8').splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise ValueError(f'{listing}: a list of names is UTF-8 text; {error}.') from error
    if not lines:
        raise ValueError(f'{listing}: it names no picture.')
    folders = next((pair for pair in _BY_LIST if all((root / name).is_dir() for name in pair)), _BY_LIST[0])
    pictures, masks = (_Names(root / name) for name in folders)
    pairs = [_pair_in(line, root) or _pair_by_name(line, pictures, masks) for line in lines]
    missing = [path for pair in pairs for path in pair if not path.is_file()]
    if missing:
        raise ValueError(f'{missing[0]}: no such file; {listing} names it.')
    return _apart(pairs)


def _pair_in(line: str, root: Path) -> Optional[Tuple[Path, Path]]:
    """The picture and the mask that a line names by their paths below `root`, either of which may have spaces."""
    for space in re.finditer(r'\s+', line):
        pair = root / line[:space.start()], root / line[space.end():]
        if all(path.is_file() for path in pair):
            return pair
    return None


def _pair_by_name(line: str, pictures: _Names, masks: _Names) -> Tuple[Path, Path]:
    """The picture and the mask of the one name in a line, which may begin with the folder of the pictures."""
    name = line.removeprefix(f'{pictures.folder.name}/')
    picture = pictures.find(name)
    return picture, masks.find(str(picture.relative_to(pictures.folder)))


class MaskedViews(NamedTuple):
    views: Views
    mask: np.ndarray  # uint8 [H, W]


class MaskedTrainViews:
    """Training views: one random crop and flip of picture and mask; the picture at every size, the mask at the largest.

    Pictures are resized bilinearly with antialiasing, masks by their nearest pixel. Draws from the ambient generators:
    call it within `seeded`.

    Args:
        resolutions: sizes in pixels, largest first.
        scale, ratio: share of the picture's area, and width / height, of the crop.
        hflip: probability of a horizontal flip.
        interpolation: of the picture; 'random' draws bilinear or bicubic.
        color_jitter: as in timm, on the picture alone; None: none.

    Source: Appendix B, Figure 7.
    """

    def __init__(
            self,
            resolutions: Sequence[int],
            scale: Tuple[float, float] = (0.25, 1.),
            ratio: Tuple[float, float] = (3. / 4., 4. / 3.),
            hflip: float = 0.5,
            interpolation: str = 'bilinear',
            color_jitter: Any = None,
    ) -> None:
        self.resolutions = tuple(resolutions)
        self.scale, self.ratio, self.hflip = scale, ratio, hflip
        self.interpolations = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
        self.augment, _ = _colour_augmentation(self.resolutions[0], interpolation, color_jitter=color_jitter)

    def __call__(self, picture: Image.Image, mask: np.ndarray) -> MaskedViews:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, self.scale, self.ratio)
        box = (left, top, left + width, top + height)
        crop, classes = picture.crop(box), Image.fromarray(mask).crop(box)
        if random.random() < self.hflip:
            crop, classes = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (crop, classes))
        if self.augment is not None:
            crop = self.augment(crop)
        side = self.resolutions[0]
        images = _resize_with_pillow(crop, self.resolutions, random.choice(self.interpolations))
        return MaskedViews(Views(images), np.asarray(classes.resize((side, side), Image.Resampling.NEAREST)))


class MaskedEvalViews:
    """Evaluation views: the whole picture at every size, and the mask as it is.

    A picture that is not square is squeezed to r x r, as the training crops are.

    Args:
        resolutions: sizes in pixels.
        interpolation: of the picture.
    """

    def __init__(self, resolutions: Sequence[int], interpolation: str = 'bilinear') -> None:
        self.views = EvalViews(resolutions, crop_pct=1., interpolation=interpolation, crop_mode='squash')

    def __call__(self, picture: Image.Image, mask: np.ndarray) -> MaskedViews:
        return MaskedViews(self.views(picture), mask)


class MaskedSamples(MultiResDataset):
    """`MultiResDataset` for a `MaskFolder`: the target of a picture is its mask."""

    def _load(self, index: int) -> Tuple[Views, np.ndarray]:
        item: MaskedPicture = self.dataset[index]
        return self.transform(item.picture, item.mask)  # type: ignore[call-arg, return-value]

    def _message(self, index: int, error: ImageError) -> str:
        return str(error)  # it names the file at fault, the picture or the mask


class Masks(List[torch.Tensor]):
    """The masks of a batch at their own sizes, uint8 [H, W] each; they move to a device together."""

    def to(self, *args: Any, **kwargs: Any) -> 'Masks':
        return Masks(mask.to(*args, **kwargs) for mask in self)


def collate_masks(samples: Sequence[Sample], keep_sizes: bool) -> ViewBatch:
    """Stack samples as `collate_views` does; the target is a tensor uint8 [N, H, W], or `Masks` with `keep_sizes`."""
    masks = [torch.from_numpy(np.array(sample.target)) for sample in samples if sample.views is not None]
    batch = collate_views([sample._replace(target=-1) for sample in samples])
    target: Any = Masks(masks) if keep_sizes or not masks else torch.stack(masks)
    return batch._replace(target=target)
