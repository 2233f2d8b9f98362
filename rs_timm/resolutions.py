"""Which sizes there may be, and which one an image has: rules that training and runtime share, without torch."""
import math
from typing import Any, Iterable, Tuple

__all__ = ['LARGEST_RESOLUTION', 'MAX_RESOLUTIONS', 'check_resolutions', 'input_resolution']

MAX_RESOLUTIONS = 64  # BatchNorm sets of one network
LARGEST_RESOLUTION = 2 ** 15  # pixels: an image of that size takes 12 GiB


def check_resolutions(resolutions: Iterable[int]) -> Tuple[int, ...]:
    """Return `resolutions` as a tuple of distinct positive ints, largest first, or raise ValueError.

    None is larger than `LARGEST_RESOLUTION`.

    >>> check_resolutions([96, 224, 160])
    (224, 160, 96)
    """
    if isinstance(resolutions, int):
        resolutions = (resolutions,)
    values = list(resolutions)
    if not values:
        raise ValueError('resolutions is empty: name at least one size in pixels, as in (224, 192, 160, 128, 96).')
    for value in values:
        if not _is_size(value):
            raise ValueError(f'resolution {value!r} is not a positive whole number of pixels.')
        if value > LARGEST_RESOLUTION:
            raise ValueError(f'resolution {value!r:.12}: at most {LARGEST_RESOLUTION} pixels make sense.')
    ints = [int(value) for value in values]
    if len(set(ints)) != len(ints):
        raise ValueError(f'resolutions {tuple(ints)} has duplicates: each resolution owns exactly one BatchNorm set.')
    return tuple(sorted(ints, reverse=True))


def _is_size(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and int(value) == value and value > 0
    except (TypeError, ValueError, OverflowError):
        return False


def input_resolution(height: int, width: int) -> int:
    """The resolution of an image in pixels: its side, or for a non-square image the side of the square of equal area.

    >>> input_resolution(224, 224), input_resolution(128, 200)
    (224, 160)
    """
    return int(height) if height == width else round(math.sqrt(height * width))
