"""From pictures of any kind to the batch that a network expects, without torch: timm's evaluation transform.

Resize the shorter side to floor(resolution / crop_pct), crop the centre, normalise: pixel for pixel what
`rs_timm.data.image_transform` gives. The one liberty, which can be refused, is that a JPEG of several times the target
size is scaled down by its decoder first.
"""
import io
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from os import PathLike
from typing import Any, BinaryIO, List, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image

from rs_timm.crops import CropPct, crop_at
from rs_timm.format.info import CROP_MODES, RESIZES
from rs_timm.pictures import MAX_PIXELS, Picture, as_picture, open_picture, trim_strip

__all__ = ['RESAMPLINGS', 'Preprocessing', 'is_ready']

RESAMPLINGS = {name: Image.Resampling[name.upper()] for name in RESIZES}
Source = Union[str, 'PathLike[str]', bytes, BinaryIO, Image.Image, np.ndarray]


def is_ready(images: Any) -> bool:
    """Is `images` a batch [N, C, H, W] that needs no preprocessing? Any floating-point array of four axes is.

    >>> is_ready(np.zeros((1, 3, 64, 64), np.float32)), is_ready(np.zeros((64, 64, 3), np.uint8)), is_ready('cat.jpg')
    (True, False, False)
    """
    dtype = getattr(images, 'dtype', None)
    return dtype is not None and 'float' in str(dtype) and getattr(images, 'ndim', 0) == 4


@dataclass(frozen=True)
class Preprocessing:
    """The preprocessing of pictures that a network expects: calling it makes a batch.

    >>> preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    >>> batch = preprocessing([np.full((400, 300, 3), 255, np.uint8), Image.new('RGB', (64, 64))], 160)
    >>> batch.shape, batch.dtype.name, float(batch[0].min()), float(batch[1].max())
    ((2, 3, 160, 160), 'float32', 1.0, -1.0)

    Args:
        mean, std: per channel, of pixels in [0, 1]; one or three channels.
        crop_pct: side of the crop over the shorter side of the resized picture: for all sizes, or resolution -> crop.
        interpolation: one of `RESAMPLINGS`.
        crop_mode: 'center' as above; 'squash' resizes both sides to floor(resolution / crop_pct); 'border' resizes the
            longer side to that, and pads with the mean.
        draft: let the JPEG decoder scale down by 2, 4 or 8, never below the size that is resized to.
        threads: pictures of a batch that are read at a time.
        max_pixels: of a file that is decoded.
    """
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    crop_pct: CropPct = 0.875
    interpolation: str = 'bilinear'
    crop_mode: str = 'center'
    draft: bool = True
    threads: int = 1
    max_pixels: int = MAX_PIXELS

    def __post_init__(self) -> None:
        if len(self.mean) not in (1, 3) or len(self.std) != len(self.mean):
            raise ValueError(f'mean {self.mean} and std {self.std}: pictures have 1 or 3 channels; give a network of '
                             'other channels ready float32 arrays [N, C, H, W].')
        for name, value, allowed in (('interpolation', self.interpolation, tuple(RESAMPLINGS)),
                                     ('crop_mode', self.crop_mode, CROP_MODES)):
            if value not in allowed:
                raise ValueError(f'{name} {value!r} is not one of {", ".join(allowed)}.')

    @cached_property
    def _table(self) -> np.ndarray:
        """Value of a pixel: float32 [C, 256]. Looking it up is one pass, and rounds as the separate steps do."""
        levels = np.arange(256, dtype=np.float32) / np.float32(255)
        mean, std = (np.array(value, np.float32)[:, None] for value in (self.mean, self.std))
        return (levels - mean) / std

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.threads, thread_name_prefix='rs_timm pictures')

    def __call__(self, images: Union[Source, Sequence[Source]], resolution: int) -> np.ndarray:
        """Read, resize, crop and normalise: float32 [N, C, resolution, resolution].

        Args:
            images: one picture, or a sequence of them: a path, the bytes of a file, a binary stream, a PIL picture, or
                a uint8 array [H, W, 3] (RGB), [H, W, 4] (RGB and alpha) or [H, W] (gray). An array [N, H, W, 3] is N
                pictures.
            resolution: pixels.

        Raises:
            ImageError: a file that is no readable picture; the message names it.
            ValueError: something that is no picture, or no picture at all.
        """
        pictures = as_list(images)
        batch = np.empty((len(pictures), len(self.mean), resolution, resolution), np.float32)
        if self.threads > 1 and len(pictures) > 1:
            list(self._pool.map(self._into, range(len(pictures)), pictures, [batch] * len(pictures)))
        else:
            for index, picture in enumerate(pictures):
                self._into(index, picture, batch)
        return batch

    def _into(self, index: int, source: Source, batch: np.ndarray) -> None:
        resolution = batch.shape[-1]
        scaled = math.floor(resolution / crop_at(self.crop_pct, resolution))
        picture = _read(source, index, scaled if self.draft else None, self.max_pixels)
        pixels = self._cropped(picture, scaled, resolution)
        for channel, table in enumerate(self._table):
            np.take(table, pixels[..., channel], out=batch[index, channel], mode='clip')

    def _cropped(self, picture: Picture, scaled: int, resolution: int) -> np.ndarray:
        """uint8 [resolution, resolution, C] of an RGB picture."""
        image, size, box = picture
        whole = box == (0, 0, *image.size)
        if whole:
            image = trim_strip(image)
            size, box = image.size, (0, 0, *image.size)
        if len(self.mean) == 1:
            image = image.convert('L')
        target = self._target(size, scaled)
        if not (whole and target == image.size):
            image = image.resize(target, RESAMPLINGS[self.interpolation], box)
        fill = [round(255 * value) if self.crop_mode == 'border' else 0 for value in self.mean]
        return np.asarray(_centre(image, resolution, fill)).reshape(resolution, resolution, -1)

    def _target(self, size: Tuple[int, int], scaled: int) -> Tuple[int, int]:
        """The width and height to resize to, by the formulas, and the rounding, of torchvision and timm."""
        if self.crop_mode == 'squash':
            return scaled, scaled
        width, height = size
        if self.crop_mode == 'border':
            ratio = max(width, height) / scaled
            return round(width / ratio), round(height / ratio)
        short, long = min(size), max(size)
        other = int(scaled * long / short)
        return (scaled, other) if width <= height else (other, scaled)


def as_list(images: Any) -> List[Any]:
    """One picture or many as a list."""
    if isinstance(images, (str, PathLike, bytes, bytearray, memoryview, Image.Image)) or hasattr(images, 'read'):
        return [images]
    if hasattr(images, 'dtype') and hasattr(images, 'ndim'):
        return list(images) if images.ndim == 4 else [images]
    try:
        pictures = list(images)
    except TypeError:
        raise ValueError(f'a {type(images).__name__} is no picture: give a path, the bytes of a file, a stream, a PIL '
                         'picture, a uint8 array [H, W, 3], or a list of those.') from None
    if not pictures:
        raise ValueError('no pictures: the list is empty.')
    return pictures


def _read(source: Any, index: int, shorter: Optional[int], max_pixels: int) -> Picture:
    name: Optional[str] = f'picture {index}'
    if isinstance(source, (str, PathLike)):
        name = None
    elif isinstance(source, (bytes, bytearray, memoryview)):
        source = io.BytesIO(source)
    elif hasattr(source, 'read'):
        name = source.name if isinstance(getattr(source, 'name', None), str) else name
    else:
        return as_picture(source if isinstance(source, Image.Image) else _from_array(source, index))
    return open_picture(source, shorter, name=name, max_pixels=max_pixels)


def _from_array(array: Any, index: int) -> Image.Image:
    pixels = np.asarray(array)
    if pixels.dtype != np.uint8 or pixels.ndim not in (2, 3) or pixels.shape[2:] not in ((), (1,), (3,), (4,)):
        raise ValueError(
            f'picture {index} is a {type(array).__name__} of {pixels.dtype} {list(pixels.shape)}: expected uint8 '
            '[H, W, 3] (RGB), [H, W, 4] or [H, W]. A batch that is normalised already is float32 [N, C, H, W].')
    if 0 in pixels.shape:
        raise ValueError(f'picture {index} has no pixels: {list(pixels.shape)}.')
    return Image.fromarray(pixels[..., 0] if pixels.shape[2:] == (1,) else np.ascontiguousarray(pixels))


def _centre(image: Image.Image, side: int, fill: Sequence[int]) -> Image.Image:
    """The centre [side, side]; what lies outside the picture is filled. Rounds as torchvision's CenterCrop."""
    left, top = (_offset(length, side) for length in image.size)
    if min(left, top) >= 0:
        return image.crop((left, top, left + side, top + side))
    canvas = Image.new(image.mode, (side, side), fill[0] if len(fill) == 1 else (fill[0], fill[1], fill[2]))
    canvas.paste(image, (-left, -top))
    return canvas


def _offset(length: int, side: int) -> int:
    return int(round((length - side) / 2)) if length >= side else -((side - length) // 2)
