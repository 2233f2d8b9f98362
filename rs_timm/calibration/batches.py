"""Pictures in whatever form they come -> batches of one resolution."""
from typing import Any, Callable, Iterable, Iterator, List, Mapping, Optional, Union

import torch
import torch.nn.functional as F

from rs_timm.layers import input_resolution

__all__ = ['Images', 'pictures', 'rebatch']

Batches = Iterable[Any]
Images = Union[torch.Tensor, Batches, Mapping[int, Any], Callable[[int], Batches]]


def pictures(images: Images, resolution: int, limit: Optional[int]) -> Iterator[torch.Tensor]:
    """The first `limit` pictures, in batches as they come, each [N, C, H, W] of size `resolution`."""
    left = limit
    for x in _batches(images, resolution):
        x = _fit(_tensor_of(x, resolution), resolution)
        x = x if left is None else x[:left]
        if len(x):
            yield x
        left = None if left is None else left - len(x)
        if left == 0:
            return


def _batches(images: Images, resolution: int) -> Batches:
    if isinstance(images, Mapping):
        if resolution not in images:
            raise ValueError(f'images has no pictures for resolution {resolution}, only for {tuple(images)}: add them, '
                             'or name resolutions=.')
        images = images[resolution]
    elif callable(images) and not isinstance(images, torch.Tensor):
        images = images(resolution)
    if isinstance(images, torch.Tensor):
        return images.split(256)  # scaled down in pieces, so that a large tensor needs little memory
    if isinstance(images, Iterable):
        return images
    raise ValueError(f'images is a {type(images).__name__}: it must be a tensor [N, C, H, W], batches of those, a '
                     'mapping {resolution: tensor or batches}, or a function resolution -> batches.')


def _tensor_of(batch: Any, resolution: int) -> torch.Tensor:
    if isinstance(batch, (tuple, list)) and batch:
        batch = batch[0]
    if isinstance(batch, Mapping):
        if resolution not in batch:
            raise ValueError(f'a batch has no pictures for resolution {resolution}, only for {tuple(batch)}: name '
                             'resolutions=.')
        batch = batch[resolution]
    found = f'{batch.dtype} {list(batch.shape)}' if isinstance(batch, torch.Tensor) else type(batch).__name__
    if not isinstance(batch, torch.Tensor) or batch.ndim != 4 or not batch.is_floating_point():
        raise ValueError(f'a batch of images is {found}: it must be normalised pictures, a float tensor [N, C, H, W], '
                         'alone or first in a tuple.')
    return batch


def _fit(x: torch.Tensor, resolution: int) -> torch.Tensor:
    size = input_resolution(*x.shape[-2:])
    if size < resolution:
        raise ValueError(f'pictures of {x.shape[-2]}x{x.shape[-1]} are too small for resolution {resolution}: enlarged '
                         'ones have other statistics. Load them larger, or leave the resolution out with resolutions=.')
    if size == resolution:
        return x
    height, width = (max(1, round(side * resolution / size)) for side in x.shape[-2:])
    return F.interpolate(x.float(), size=(height, width), mode='bilinear', antialias=True).to(x.dtype)


def rebatch(batches: Iterable[torch.Tensor], size: int) -> Iterator[torch.Tensor]:
    """Join and cut `batches` to `size` pictures, so that the result is not the loader's; the last has the rest."""
    waiting: List[torch.Tensor] = []
    for x in batches:
        if waiting and x.shape[1:] != waiting[0].shape[1:]:
            yield torch.cat(waiting)  # non-square pictures of another shape
            waiting = []
        waiting.append(x)
        if sum(map(len, waiting)) >= 2 * size:
            joined = torch.cat(waiting)
            cut = (len(joined) // size - 1) * size
            yield from joined[:cut].split(size)
            waiting = [joined[cut:]]
    if waiting:
        yield torch.cat(waiting)
