"""Pictures from files as RGB, and from RGB to the tensor that a network expects, at any resolution."""
from os import PathLike, fsdecode, fspath
from typing import Any, Callable, Mapping, Tuple, Union

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from timm.data import create_transform
from torchvision import transforms

__all__ = ['ImageError', 'image_transform', 'open_image']

_WITH_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')


class ImageError(ValueError):
    """A file that cannot be read as a picture; the message is one line and names the file."""


def open_image(path: Union[str, 'PathLike[str]'], background: Tuple[int, int, int] = (255, 255, 255)) -> Image.Image:
    """Read the picture in a file as upright 8-bit RGB, whatever its mode.

    16-bit gray is scaled to 8 bits, transparent pixels are laid over `background`, the EXIF orientation is applied,
    CMYK is converted, and of an animation the first frame is taken.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), 'gray.png')
    >>> Image.new('I;16', (4, 3), 65535).save(file)
    >>> open_image(file).getpixel((0, 0))
    (255, 255, 255)

    Args:
        path: the file; its content says the format, not its name.
        background: RGB behind transparent pixels, 0 to 255; white unless told otherwise.

    Raises:
        ImageError: no such file, a directory, an empty or truncated file, one that is no picture, one with more pixels
            than Pillow's limit against decompression bombs, or a kind of pixel without a defined range.
    """
    try:
        with Image.open(fspath(path)) as image:
            image.load()
            return _to_rgb(_upright(image), background)
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(f'{_printable(fsdecode(path))}: {_reason(error)}') from error


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return image


def _to_rgb(image: Image.Image, background: Tuple[int, int, int]) -> Image.Image:
    if image.mode.startswith('I') or image.mode == 'F':
        return _from_16_bits(image).convert('RGB')
    if image.mode in _WITH_ALPHA or 'transparency' in image.info:
        rgba = image.convert('LA' if image.mode == 'La' else 'RGBA').convert('RGBA')
        canvas = Image.new('RGBA', image.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert('RGB')
    return image.convert('RGB')


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as 8 bits. Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == 'F' or values.min() < 0 or values.max() > 65535:
        raise ValueError(f'its pixels are {"floating-point" if image.mode == "F" else "32-bit"} numbers, which have no '
                         'defined white: save it with 8 or 16 bits per channel')
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, IsADirectoryError):
        return 'a directory, not a picture; name the files in it'
    if isinstance(error, UnidentifiedImageError):
        return 'not a picture in a format that Pillow reads'
    if isinstance(error, Image.DecompressionBombError):
        return f'refused, it could be a decompression bomb: {_one_line(error)}'
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f'not a readable picture: {_one_line(error)}'


def _one_line(error: Exception) -> str:
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f'{text[:300]}...'


def _printable(text: str) -> str:
    """Line breaks, control characters and undecodable bytes of a file name as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def image_transform(data_config: Mapping[str, Any], resolution: int) -> Callable[[Image.Image], torch.Tensor]:
    """Evaluation preprocessing of a model, at a resolution of choice: RGB picture -> tensor [C, H, W], H = W.

    The shorter side is resized to floor(resolution / crop_pct), the centre is cropped, and mean and std are applied:
    what timm's `validate.py --img-size` does (a model with another `crop_mode` keeps it).

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18')
    >>> transform = image_transform(timm.data.resolve_model_data_config(model), 160)
    >>> transform(Image.new('RGB', (400, 300))).shape
    torch.Size([3, 160, 160])

    Args:
        data_config: as returned by `timm.data.resolve_model_data_config(model)`.
        resolution: pixels.

    Raises:
        ValueError: a resolution that is not positive.
    """
    if resolution < 1:
        raise ValueError(f'resolution {resolution}: it must be a positive number of pixels.')
    config = {key: value for key, value in data_config.items() if key != 'input_size'}
    channels = data_config.get('input_size', (3,))[0]
    steps = [_trim_strip, create_transform((channels, resolution, resolution), is_training=False, **config)]
    return transforms.Compose(steps if channels == 3 else [transforms.Grayscale(channels), *steps])


def _trim_strip(image: Image.Image) -> Image.Image:
    """Cut the ends off a strip beyond 32:1; the centre crop would do so later, after enlarging it to gigabytes."""
    width, height = image.size
    longest = 32 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))
