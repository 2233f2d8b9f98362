"""Pictures from files as upright RGB, whatever their mode. Needs Pillow alone: training and runtime share it.

Nothing is read without a bound: only regular files (a pipe would be waited for, a device has no end), of at most
`MAX_BYTES`, in one of `FORMATS`, with at most `MAX_PIXELS`; the last three before anything is decoded.
"""
import errno
import io
import os
import stat
from contextlib import nullcontext
from functools import lru_cache
from os import PathLike, fsdecode
from typing import BinaryIO, ContextManager, NamedTuple, Optional, Tuple, Union

import numpy as np
from PIL import Image, UnidentifiedImageError
from PIL.JpegImagePlugin import JpegImageFile

__all__ = [
    'ENDINGS', 'FORMATS', 'MAX_BYTES', 'MAX_PIXELS', 'ImageError', 'Picture', 'as_picture', 'open_image',
    'open_picture', 'open_regular', 'read_file', 'reason', 'to_rgb', 'trim_strip', 'upright', 'without_surrogates',
]

# Formats of photographs by Pillow's names; the others (EPS starts Ghostscript, WMF, FITS, ...) are never opened.
FORMATS = ('JPEG', 'PNG', 'WEBP', 'AVIF', 'BMP', 'GIF', 'TIFF', 'PPM', 'JPEG2000')
# Their endings, in lower case: a list of its own, so that all machines of a job see the same pictures.
ENDINGS = (
    '.jpg', '.jpeg', '.jpe', '.jfif', '.mpo', '.png', '.apng', '.webp', '.avif', '.bmp', '.gif', '.tif', '.tiff',
    '.ppm', '.pgm', '.pbm', '.pnm', '.jp2', '.j2k', '.jpx',
)

MAX_BYTES = 512 << 20  # of a file: a photograph of 170 megapixels that is not compressed
MAX_PIXELS = 200_000_000  # of a picture: the largest cameras, telephones' among them

Box = Tuple[float, float, float, float]
_WITH_ALPHA = ('LA', 'La', 'PA', 'RGBA', 'RGBa')
_WHITE = (255, 255, 255)
_ORIENTATION = 0x0112  # the EXIF tag
_TURNS = {  # its values (TIFF 6.0, page 36) -> turn, axes swapped?, first stored pixel then at the right?, the bottom?
    2: (Image.Transpose.FLIP_LEFT_RIGHT, False, True, False), 3: (Image.Transpose.ROTATE_180, False, True, True),
    4: (Image.Transpose.FLIP_TOP_BOTTOM, False, False, True), 5: (Image.Transpose.TRANSPOSE, True, False, False),
    6: (Image.Transpose.ROTATE_270, True, True, False), 7: (Image.Transpose.TRANSVERSE, True, True, True),
    8: (Image.Transpose.ROTATE_90, True, False, True),
}
_BITS, _PHOTOMETRIC, _WHITE_IS_ZERO = 258, 262, 0  # TIFF tags, and a value (TIFF 6.0, pages 29 and 37)


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
        ImageError: no such file, a directory, a pipe or device, an empty or truncated file, one that is no picture, one
            that is larger than `MAX_BYTES`, with more pixels than `MAX_PIXELS` or Pillow's own limit against
            decompression bombs, or a kind of pixel without a defined range.
    """
    return open_picture(path, background=background).image


def open_picture(
        source: Union[str, 'PathLike[str]', BinaryIO],
        shorter: Optional[int] = None,
        background: Tuple[int, int, int] = _WHITE,
        name: Optional[str] = None,
        max_pixels: int = MAX_PIXELS,
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
        max_pixels: width times height that is decoded at most. Above twice `PIL.Image.MAX_IMAGE_PIXELS`, Pillow's own
            limit, that one has to be raised as well.

    Raises:
        ImageError: as for `open_image`.
    """
    try:
        with _stream(source) as stream, Image.open(stream, formats=open_formats()) as image:
            size = image.size
            if size[0] * size[1] > max_pixels:
                raise ImageError(f'refused, {size[0]} x {size[1]} pixels are more than the bound of {max_pixels}')
            box = _reduce(image, shorter)
            image.load()
            orientation = _orientation(image)
            return _turned(to_rgb(image, background), size, box, orientation)
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(f'{name or _name(source)}: {reason(error)}') from error


@lru_cache
def open_formats() -> Tuple[str, ...]:
    """Those of `FORMATS` that the installed Pillow can open."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def _stream(source: Union[str, 'PathLike[str]', BinaryIO]) -> ContextManager[BinaryIO]:
    """What Pillow reads: it wants to seek. A stream that was given stays open."""
    if isinstance(source, (str, PathLike)):
        return io.BytesIO(read_file(source))
    if hasattr(source, 'seekable') and not source.seekable():
        data = source.read(MAX_BYTES + 1)
        _check_bytes(len(data), MAX_BYTES)
        return io.BytesIO(data)
    return nullcontext(source)


def read_file(
        path: Union[str, 'PathLike[str]'],
        max_bytes: int = MAX_BYTES,
        offset: int = 0,
        size: Optional[int] = None,
) -> bytes:
    """The content of a regular file, or a piece of it.

    Args:
        path: the file; a link is followed.
        max_bytes: of the content, or of the piece.
        offset: where the piece begins, in bytes.
        size: of the piece; None: all from `offset` on.

    Raises:
        ImageError: more than `max_bytes`; fewer than `size`; a pipe, a device, a socket.
        OSError: no such file, a directory, no permission.
    """
    with open_regular(path) as stream:
        if size is None:  # as it is now: it may grow, and what the kernel calls files may have no end
            size = max(0, os.fstat(stream.fileno()).st_size - offset)
        _check_bytes(size, max_bytes)
        stream.seek(offset)
        data = stream.read(size) or b''
    if len(data) < size:
        raise ImageError(f'its file ends after {len(data)} of {size} bytes')
    return data


def open_regular(path: Union[str, 'PathLike[str]']) -> BinaryIO:
    """Open a file for reading, unless it is one that may have no end.

    Raises:
        ImageError: a pipe, a device, a socket.
        OSError: no such file, a directory, no permission.
    """
    flags = os.O_RDONLY | getattr(os, 'O_BINARY', 0) | getattr(os, 'O_NONBLOCK', 0)  # a pipe is not waited for
    descriptor = os.open(path, flags)
    try:
        status = os.fstat(descriptor)
        if stat.S_ISDIR(status.st_mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(status.st_mode):
            raise ImageError('not a regular file, but a pipe, device or socket')
        return os.fdopen(descriptor, 'rb')
    except BaseException:
        os.close(descriptor)
        raise


def _check_bytes(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise ImageError(f'refused, {size} bytes are more than the bound of {max_bytes}')


def _reduce(image: Image.Image, shorter: Optional[int]) -> Box:
    """Tell the decoder to scale down, if it can; return the part of its result that the picture fills."""
    if shorter and shorter < min(image.size) and isinstance(image, JpegImageFile):
        drafted = image.draft('RGB', (shorter, shorter))
        if drafted is not None:
            return 0., 0., float(drafted[1][2]), float(drafted[1][3])
    return 0., 0., float(image.width), float(image.height)


def _name(source: Union[str, 'PathLike[str]', BinaryIO]) -> str:
    return _printable(fsdecode(source)) if isinstance(source, (str, PathLike)) else 'a picture without a name'


def as_picture(image: Image.Image, background: Tuple[int, int, int] = _WHITE) -> Picture:
    """A picture that is in memory, or opened, as `open_picture` gives it; `image` is left as it is.

    Raises:
        ImageError: it was opened but not decoded yet, and its file is damaged.
    """
    try:
        rgb = to_rgb(upright(image), background)
        rgb.load()
    except Exception as error:
        raise ImageError(f"{_printable(getattr(image, 'filename', '')) or 'a picture'}: {reason(error)}") from error
    return Picture(rgb, rgb.size, (0., 0., float(rgb.width), float(rgb.height)))


def upright(image: Image.Image) -> Image.Image:
    """An opened picture turned as its EXIF data say; itself if there is nothing to turn.

    A JPEG that is upright is not decoded yet, so that its decoder may still be told to scale down.

    Raises:
        Exception: whatever a decoder raises on a damaged file; see `reason`.
    """
    if not isinstance(image, JpegImageFile):  # some formats keep their EXIF data behind the pixels, TIFF turns itself
        name = getattr(image, 'filename', '')
        if image.format == 'TIFF':  # what Pillow 13 maps to memory, by its name, it turns wrongly
            image.filename = ''  # type: ignore[attr-defined]
        try:
            image.load()
        finally:
            image.filename = name  # type: ignore[attr-defined]
    orientation = _orientation(image)
    return _transposed(image, orientation) if orientation in _TURNS else image


def _transposed(image: Image.Image, orientation: int) -> Image.Image:
    """The picture turned, without its EXIF data: to take one tag out of them, all would have to be well-formed."""
    turned = image.transpose(_TURNS[orientation][0])
    for key in ('exif', 'Raw profile type exif', 'xmp', 'XML:com.adobe.xmp'):
        turned.info.pop(key, None)
    return turned


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # a damaged EXIF block says nothing about the pixels
        return 1


def _turned(image: Image.Image, size: Tuple[int, int], box: Box, orientation: int) -> Picture:
    if orientation not in _TURNS:
        return Picture(image, size, box)
    _, swapped, from_right, from_bottom = _TURNS[orientation]
    image = _transposed(image, orientation)
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
    """Gray of up to 16 bits as 8 bits. Pillow's own conversion clips at 255, takes 12 bits for 16, white for black."""
    values = np.asarray(image)
    if image.mode == 'F' or values.min() < 0 or values.max() > 65535:
        raise ValueError(f'its pixels are {"floating-point" if image.mode == "F" else "32-bit"} numbers, which have no '
                         'defined white: save it with 8 or 16 bits per channel')
    tags = getattr(image, 'tag_v2', {})  # of a TIFF file
    bits = tags.get(_BITS, (16,))[0] if image.mode.startswith('I;16') else 16
    white = (1 << bits) - 1
    gray = ((values.astype(np.uint32) * 510 + white) // (2 * white)).astype(np.uint8)
    return Image.fromarray(255 - gray if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else gray)


def without_surrogates(name: str) -> str:
    """Bytes of a file name that are no text as escapes, so that every kind of output takes it.

    >>> without_surrogates('caf\\udce9.jpg')
    'caf\\\\udce9.jpg'
    """
    return name.encode('utf-8', 'backslashreplace').decode('utf-8')


def reason(error: Exception) -> str:
    """Why a picture could not be read, in one line, for whatever a decoder raised."""
    if isinstance(error, ImageError):
        return str(error)
    if isinstance(error, MemoryError):
        return 'there is not enough memory to decode it'
    if isinstance(error, FileNotFoundError):
        return 'no such file'
    if isinstance(error, IsADirectoryError):
        return 'a directory, not a picture; name the files in it'
    if isinstance(error, UnidentifiedImageError):
        return f'not a picture in a format that is read ({", ".join(FORMATS)})'
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
