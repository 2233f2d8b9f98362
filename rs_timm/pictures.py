"""Pictures from files as upright RGB, whatever their mode. Needs Pillow alone: training and runtime share it."""
from os import PathLike, fsdecode, fspath
from typing import BinaryIO, NamedTuple, Optional, Tuple, Union

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

__all__ = [
    'ENDINGS', 'FORMATS', 'ImageError', 'Picture', 'as_picture', 'open_image', 'open_picture', 'reason', 'to_rgb',
    'trim_strip', 'upright', 'without_surrogates',
]

# Formats of photographs by Pillow's names; the others (EPS starts Ghostscript, WMF, FITS, ...) are never opened.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000')
# Their endings, in lower case: a list of its own, so that all machines of a job see the same pictures.
ENDINGS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.webp', '.avif', '.bmp', '.gif', '.tif', '.tiff',
    '.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.jpx',
)

Box = Tuple[float, float, float, float]
_WITH_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {  # its values (TIFF 6.0, page 36) -> axes swapped; first stored pixel then at the right; at the bottom
    2: (False, True, False), 3: (False, True, True), 4: (False, False, True), 5: (True, False, False),
    6: (True, True, False), 7: (True, True, True), 8: (True, False, True),
}


class ImageError(ValueError):
    """A file that cannot be read as a picture; the message is one line and names the file."""


class Picture(NamedTuple):
    """An upright RGB picture as decoded, possibly at a fraction of its size.

    `size` is the (width, height) of the whole picture in pixels, and `box` the part (left, top, right, bottom) of
    `image` that it fills: a decoder that halves 375 rows gives 188, of which 187.5 are picture.
    """
    image: Image.Image
    size: Tuple[int, int]
    box: Box


def open_image(path: Union[str, 'PathLike[str]'], background: Tuple[int, int, int] = _WHITE) -> Image.Image:
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
    return open_picture(path, background=background).image


def open_picture(
        source: Union[str, 'PathLike[str]', BinaryIO],
        shorter: Optional[int] = None,
        background: Tuple[int, int, int] = _WHITE,
        name: Optional[str] = None,
) -> Picture:
    """As `open_image`, but a JPEG is decoded at 1/2, 1/4 or 1/8 where its shorter side stays `shorter` pixels or more.

    >>> import os, tempfile
    >>> file = os.path.join(tempfile.mkdtemp(), 'large.jpg')
    >>> Image.new('RGB', (1201, 1000)).save(file)
    >>> picture = open_picture(file, shorter=128)
    >>> picture.image.size, picture.size, picture.box
    ((301, 250), (1201, 1000), (0.0, 0.0, 300.25, 250.0))

    Args:
        source: the file, or a stream of its content.
        shorter: pixels; None decodes in full.
        background: RGB behind transparent pixels, 0 to 255.
        name: what errors call the picture, if not by its path.

    Raises:
        ImageError: as for `open_image`.
    """
    try:
        with Image.open(fspath(source) if isinstance(source, (str, PathLike)) else source) as image:
            size, box = image.size, _reduce(image, shorter)
            image.load()
            orientation = _orientation(image)
            if orientation in _TURNS:
                ImageOps.exif_transpose(image, in_place=True)
            return _turned(to_rgb(image, background), size, box, orientation)
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(f'{name or _name(source)}: {reason(error)}') from error


def _reduce(image: Image.Image, shorter: Optional[int]) -> Box:
    """Tell the decoder to scale down, if it can; return the part of its result that the picture fills."""
    if shorter and shorter < min(image.size) and isinstance(image, JpegImageFile):
        drafted = image.draft('RGB', (shorter, shorter))
        if drafted is not None:
            return drafted[1]
    return 0., 0., float(image.width), float(image.height)


def _name(source: Union[str, 'PathLike[str]', BinaryIO]) -> str:
    return _printable(fsdecode(source)) if isinstance(source, (str, PathLike)) else 'a picture without a name'


def as_picture(image: Image.Image, background: Tuple[int, int, int] = _WHITE) -> Picture:
    """A picture that is in memory, or opened, as `open_picture` gives it; `image` is left as it is.

    Raises:
        ImageError: it was opened but not decoded yet, and its file is damaged.
    """
    try:
        image.load()
        rgb = to_rgb(upright(image), background)
    except Exception as error:
        raise ImageError(f"{_printable(getattr(image, 'filename', '')) or 'a picture'}: {reason(error)}") from error
    return Picture(rgb, rgb.size, (0., 0., float(rgb.width), float(rgb.height)))


def upright(image: Image.Image) -> Image.Image:
    """An opened picture turned as its EXIF data say; itself if there is nothing to turn.

    A JPEG that is upright is not decoded yet, so that its decoder may still be told to scale down.

    Raises:
        Exception: whatever a decoder raises on a damaged file; see `reason`.
    """
    if not isinstance(image, JpegImageFile):
        image.load()  # some formats keep their EXIF data behind the pixels, and TIFF turns itself
    return ImageOps.exif_transpose(image) if _orientation(image) in _TURNS else image


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _turned(image: Image.Image, size: Tuple[int, int], box: Box, orientation: int) -> Picture:
    swapped, from_right, from_bottom = _TURNS.get(orientation, (False, False, False))
    width, height = box[2:]
    if swapped:
        size, width, height = size[::-1], height, width
    left = image.width - width if from_right else 0.
    top = image.height - height if from_bottom else 0.
    return Picture(image, size, (left, top, left + width, top + height))


def to_rgb(image: Image.Image, background: Tuple[int, int, int] = _WHITE) -> Image.Image:
    """A loaded picture of any mode as 8-bit RGB, itself if it is that already.

    Raises:
        ValueError: floating-point or 32-bit pixels, which have no defined white.
    """
    if image.mode.startswith('I') or image.mode == 'F':
        return _from_16_bits(image).convert('RGB')
    if image.mode in _WITH_ALPHA or 'transparency' in image.info:
        rgba = image.convert('LA' if image.mode == 'La' else 'RGBA').convert('RGBA')
        canvas = Image.new('RGBA', image.size, (*background, 255))
        return Image.alpha_composite(canvas, rgba).convert('RGB')
    return image if image.mode == 'RGB' else image.convert('RGB')


def _from_16_bits(image: Image.Image) -> Image.Image:
    """Gray of 16 bits as 8 bits. Pillow's own conversion would clip at 255."""
    values = np.asarray(image).astype(np.float64)
    if image.mode == 'F' or values.min() < 0 or values.max() > 65535:
        raise ValueError(f'its pixels are {"floating-point" if image.mode == "F" else "32-bit"} numbers, which have no '
                         'defined white: save it with 8 or 16 bits per channel')
    return Image.fromarray(np.round(values / 257).astype(np.uint8))


def without_surrogates(name: str) -> str:
    """Bytes of a file name that are no text as escapes, so that every kind of output takes it.

    >>> without_surrogates('caf\\udce9.jpg')
    'caf\\\\udce9.jpg'
    """
    return name.encode('utf-8', 'backslashreplace').decode('utf-8')


def reason(error: Exception) -> str:
    """Why a picture could not be read, in one line, for whatever a decoder raised."""
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


def trim_strip(image: Image.Image) -> Image.Image:
    """Cut the ends off a strip beyond 32:1; the centre crop would do so later, after enlarging it to gigabytes."""
    width, height = image.size
    longest = 32 * min(width, height)
    if max(width, height) <= longest:
        return image
    left, top = max(0, (width - longest) // 2), max(0, (height - longest) // 2)
    return image.crop((left, top, min(width, left + longest), min(height, top + longest)))
