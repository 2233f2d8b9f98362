"""Rules of sizes that hold with and without torch: the training side and the runtime share them."""
import math
from typing import Any, Iterable, Sequence, Tuple

__all__ = ['INTERPOLATIONS', 'bracket', 'check_resolutions', 'input_resolution']

INTERPOLATIONS = ('params', 'affine', 'nearest')


def check_resolutions(resolutions: Iterable[int]) -> Tuple[int, ...]:
    """Return `resolutions` as a tuple of distinct positive ints, largest first, or raise ValueError.

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


def bracket(resolutions: Sequence[int], resolution: int) -> Tuple[int, int, float]:
    """Return (upper, lower, t): the neighbours of `resolution` and the share of the lower one, 0 <= t <= 1.

    Outside the range both are the nearest one and t is 0.

    >>> bracket((224, 192, 160), 168)
    (192, 160, 0.75)
    >>> bracket((224, 192, 160), 64)
    (160, 160, 0.0)
    """
    ordered = sorted(resolutions)
    if resolution <= ordered[0]:
        return ordered[0], ordered[0], 0.
    if resolution >= ordered[-1]:
        return ordered[-1], ordered[-1], 0.
    upper = next(r for r in ordered if r >= resolution)
    if upper == resolution:
        return upper, upper, 0.
    lower = ordered[ordered.index(upper) - 1]
    return upper, lower, (upper - resolution) / (upper - lower)
