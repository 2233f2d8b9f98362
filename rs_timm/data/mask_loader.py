"""Loaders of pictures with masks, at S resolutions."""
from functools import partial
from os import PathLike
from typing import Any, Iterable, Optional, Sequence, Tuple, Union

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .checks import check_batches, check_count, check_interpolation, check_sizes
from .device import BatchFinisher
from .masked_views import MaskedEvalViews, MaskedSamples, MaskedTrainViews, collate_masks
from .masks import MaskFolder
from .multires import MultiResLoader
from .order import EpochBatches

__all__ = ['create_mask_loader']


def create_mask_loader(
        root_or_dataset: Union[str, 'PathLike[str]', MaskFolder],
        resolutions: Iterable[int],
        *,
        batch_size: int,
        classes: Sequence[str] = (),
        ignore_label: int = 255,
        split: str = 'train',
        is_training: Optional[bool] = None,
        seed: int = 0,
        num_workers: int = 4,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        interpolation: str = 'bilinear',
        scale: Tuple[float, float] = (0.25, 1.),
        ratio: Tuple[float, float] = (3. / 4., 4. / 3.),
        hflip: float = 0.5,
        color_jitter: Any = None,
        device: Union[str, torch.device] = 'cpu',
        channels_last: bool = False,
        skip_corrupt: bool = False,
        rank: int = 0,
        world_size: int = 1,
) -> MultiResLoader:
    """Create a loader of ({resolution: images [N, 3, r, r]}, masks).

    In training all sizes show the same crop, and the masks are uint8 [N, R, R] with R the largest size. In evaluation
    the whole picture is squeezed to r x r, and the masks are a list of uint8 [H, W], of the pictures' own sizes. They
    hold class indices, and 255 where there is no class.

    >>> loader = create_mask_loader('camvid', (352, 224, 96), batch_size=8, classes=names)  # doctest: +SKIP
    >>> images, masks = next(iter(loader))                                                 # doctest: +SKIP
    >>> images[224].shape, masks.shape                                                     # doctest: +SKIP
    (torch.Size([8, 3, 224, 224]), torch.Size([8, 352, 352]))

    Args:
        root_or_dataset: a folder, see `MaskFolder`, or a `MaskFolder`; `classes`, `ignore_label` and `split` are then
            those of it.
        resolutions: sizes in pixels.
        batch_size: pictures of one rank.
        classes, ignore_label, split: see `MaskFolder`.
        is_training: random views, shuffled; by default, whether `split` is 'train'.
        scale, ratio, hflip, color_jitter: see `MaskedTrainViews`.
        seed, num_workers, mean, std, interpolation, device, channels_last, skip_corrupt, rank, world_size: see
            `create_multires_loader`.

    Raises:
        ValueError: an argument out of range, no pictures, or fewer training pictures than one batch.
    """
    sizes = check_sizes(resolutions)
    dataset = root_or_dataset if isinstance(root_or_dataset, MaskFolder) else MaskFolder(
        root_or_dataset, split, classes, ignore_label)
    is_training = dataset.split == 'train' if is_training is None else is_training
    check_interpolation(interpolation, is_training, on_torch=False)
    check_batches(batch_size, rank, world_size)
    transform: Any = MaskedEvalViews(sizes, interpolation)
    if is_training:
        check_count(len(dataset), batch_size, world_size)
        transform = MaskedTrainViews(sizes, scale, ratio, hflip, interpolation, color_jitter)
    samples = MaskedSamples(dataset, transform, seed, substitute=is_training and skip_corrupt)
    order = EpochBatches(len(dataset), batch_size, is_training, seed, rank, world_size)
    finisher = BatchFinisher(sizes, mean, std, exact=not is_training, device=device, channels_last=channels_last)
    collate = partial(collate_masks, keep_sizes=not is_training)
    return MultiResLoader(samples, order, finisher, num_workers, skip_corrupt, collate)
