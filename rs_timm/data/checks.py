"""What loaders are asked for, checked before anything is read."""
from typing import Iterable, Sequence, Tuple

from timm.data.transforms import str_to_pil_interp

from .device import REDUCTIONS

__all__ = ['check_batches', 'check_channels', 'check_count', 'check_interpolation', 'check_sizes', 'per_channel']


def check_sizes(resolutions: Iterable[int]) -> Tuple[int, ...]:
    """The sizes as whole numbers, largest first."""
    sizes = tuple(resolutions)
    if not sizes or len(set(sizes)) != len(sizes) or any(int(size) != size or size < 1 for size in sizes):
        raise ValueError(f'resolutions {sizes}: name distinct positive sizes in pixels, as in (224, 160, 96).')
    return tuple(sorted((int(size) for size in sizes), reverse=True))


def check_interpolation(interpolation: str, is_training: bool, on_torch: bool) -> None:
    if interpolation == 'random':
        if not is_training:
            raise ValueError("interpolation 'random' is for training: name one, such as 'bilinear', for evaluation.")
        return
    try:
        str_to_pil_interp(interpolation)
    except KeyError:
        raise ValueError(f"interpolation {interpolation!r} is unknown: use 'bilinear', for example.") from None
    if on_torch and interpolation not in REDUCTIONS:
        raise ValueError(f"interpolation {interpolation!r} is not one of torch's, {', '.join(REDUCTIONS)}: use one, or "
                         "mode='loader' with resizer='pillow'.")


def check_channels(channels: int) -> None:
    if channels not in (1, 3):
        raise ValueError(f'channels {channels}: pictures are read as gray (1) or RGB (3); feed a network with another '
                         'number of input channels from a loader of your own.')


def per_channel(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    """Mean or std for each of `channels`: as given where the number fits, else the average, as a saved network has it.

    >>> per_channel((0.25, 0.5, 0.75), 1)
    (0.5,)
    """
    values = tuple(values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def check_batches(batch_size: int, rank: int, world_size: int) -> None:
    if batch_size < 1:
        raise ValueError(f'batch_size {batch_size}: it must be at least 1.')
    if not 0 <= rank < world_size:
        raise ValueError(f'rank {rank} of world_size {world_size}: ranks are 0 to world_size - 1.')


def check_count(count: int, batch_size: int, world_size: int) -> None:
    """Refuse fewer training pictures than one joint batch."""
    if count < batch_size * world_size:
        raise ValueError(f'batch_size {batch_size} on each of {world_size} process(es) is more than the {count} '
                         f'pictures there are: take at most {count // world_size}.')
