"""Loaders that give each picture at S sizes: decoded once, cropped once, resized S times; with labels or with masks."""
import math
from functools import partial
from os import PathLike
from typing import Any, Iterable, Optional, Sequence, Tuple, Union

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import str_to_pil_interp
from torch.utils.data import Dataset, IterableDataset

from rs_timm.crops import CropPct

from .device import TORCH_RESAMPLING, BatchFinisher
from .folders import open_split
from .loader import MultiResLoader
from .masks import MaskedEvalViews, MaskedSamples, MaskedTrainViews, MaskFolder, collate_masks
from .order import EpochBatches
from .samples import MultiResDataset
from .views import EvalViews, SeparateCrops, TrainViews

__all__ = ['check_crops', 'check_normalisation', 'create_mask_loader', 'create_multires_loader', 'per_channel']

_CHOICES = dict(
    mode=('loader', 'device'),
    flip=('shared', 'per_resolution'),
    crop=('shared', 'per_resolution'),
    resizer=('pillow', 'torch'),
    crop_mode=('center', 'squash', 'border'),
)


def create_multires_loader(
        root_or_dataset: Union[str, 'PathLike[str]', Dataset[Any]],
        resolutions: Iterable[int],
        *,
        batch_size: int,
        split: str = 'train',
        is_training: Optional[bool] = None,
        seed: int = 0,
        num_workers: int = 4,
        channels: int = 3,
        mean: Sequence[float] = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] = IMAGENET_DEFAULT_STD,
        interpolation: str = 'bilinear',
        crop_pct: CropPct = 0.875,
        crop_mode: str = 'center',
        scale: Tuple[float, float] = (0.08, 1.),
        ratio: Tuple[float, float] = (3. / 4., 4. / 3.),
        hflip: float = 0.5,
        mode: str = 'loader',
        flip: str = 'shared',
        crop: str = 'shared',
        same_size: int = 0,
        resizer: Optional[str] = None,
        draft: bool = False,
        color_jitter: Union[None, float, Tuple[float, ...]] = None,
        auto_augment: Optional[str] = None,
        re_prob: float = 0.,
        re_mode: str = 'const',
        re_count: int = 1,
        mixup: Optional[Mixup] = None,
        device: Union[str, torch.device] = 'cpu',
        channels_last: bool = False,
        skip_corrupt: bool = False,
        rank: int = 0,
        world_size: int = 1,
        **dataset_kwargs: Any,
) -> MultiResLoader:
    """Create a loader of ({resolution: images}, target) in which all sizes of a picture show the same crop.

    Order and augmentation depend on (seed, epoch, picture) alone, not on the number of workers. Pictures are read as
    `open_image` reads them. timm's own loader ignores the EXIF orientation, clips 16-bit gray and makes transparent
    pixels black or whatever lies beneath: on such pictures its numbers can differ.

    >>> loader = create_multires_loader('imagenet', (224, 160, 96), batch_size=64)  # doctest: +SKIP
    >>> images, target = next(iter(loader))                                         # doctest: +SKIP
    >>> images[160].shape                                                           # doctest: +SKIP
    torch.Size([64, 3, 160, 160])

    Args:
        root_or_dataset: a folder (with or without a sub-folder for `split`), or a map-style data set, as
            `timm.data.create_dataset` returns it, without a transform.
        resolutions: sizes in pixels.
        batch_size: pictures of one rank; a training pass leaves out the rest that does not fill a batch on each rank.
        split: 'train', 'val' or another name of a sub-folder; only with a folder.
        is_training: random views, shuffled; else the central crop, in order. By default, whether `split` is 'train'.
        seed: of order and augmentation.
        num_workers: processes that decode; 0 decodes in this one.
        channels: 3 for RGB; 1 for gray, as `image_transform` makes it; in training after the colour augmentation.
        mean, std: per channel, for values in [0, 1]; those of another number of channels are averaged.
        interpolation: a name that timm knows.
        crop_pct: side of the crop over shorter side of the resized picture, in evaluation; or size -> crop.
        crop_mode: in evaluation, one of timm's: 'center' (the paper), 'squash' or 'border'.
        scale, ratio, hflip: share of the area and aspect ratio of the random crop; probability of the flip.
        mode: 'loader' resizes each size straight from the crop, as the paper does; 'device' makes the largest so, and
            reduces the others from that, antialiased, where the network is: faster.
        flip: 'shared' by all sizes, or drawn 'per_resolution', as the paper's public code does.
        crop: likewise; drawn per resolution, and the flip with it, it is the 'multi-crop' of Table 6.
        same_size: side in pixels of all training views, in place of their own (Table 6, 'single-resolution').
        resizer: in training, 'pillow', or 'torch', which is faster (vectorised) and, when bilinear, within one level of
            255 of it; by default the one for mode 'loader', the other for 'device'.
        draft: in training, let the JPEG decoder scale down by 2, 4 or 8 where the crop still covers the largest size.
        color_jitter, auto_augment: as in timm; applied to the crop before it is resized.
        re_prob, re_mode, re_count: timm's random erasing; the same relative rectangle at all sizes.
        mixup: timm's parameters of mixup and cutmix, the same draw for all sizes; targets are then [N, classes].
        device, channels_last: where the batches go, and the memory format of the images.
        skip_corrupt: go on at pictures that cannot be read and count them in `loader.corrupt_count`; training takes
            the next picture instead, evaluation leaves them out. Otherwise they stop the pass with an `ImageError`.
        rank, world_size: the share of this process. Training shards are equal; evaluation shards hold each picture
            exactly once and may be uneven.
        dataset_kwargs: for `timm.data.create_dataset`, such as `class_map`; only with a folder.

    Raises:
        ValueError: an argument out of range; no pictures found, or other splits but not this one; fewer training
            pictures than one batch.

    Source: Sections 3.1 and 4.1 of the paper.
    """
    sizes = _check_sizes(resolutions)
    is_training = split == 'train' if is_training is None else is_training
    resizer = resizer or ('pillow' if mode == 'loader' else 'torch')
    for name, value in dict(mode=mode, flip=flip, crop=crop, resizer=resizer, crop_mode=crop_mode).items():
        if value not in _CHOICES[name]:
            raise ValueError(f"{name} {value!r} is unknown: use one of {', '.join(_CHOICES[name])}.")
    if same_size and crop == 'shared':
        raise ValueError(f"same_size {same_size} with crop 'shared' would give the same view several times: use "
                         "crop='per_resolution'.")
    if crop == 'per_resolution' and (mode != 'loader' or draft):
        raise ValueError("crop 'per_resolution' cuts every size from the picture itself: it needs mode='loader', "
                         'without draft.')
    if channels not in (1, 3):
        raise ValueError(f'channels {channels}: pictures are read as gray (1) or RGB (3); feed a network with another '
                         'number of input channels from a loader of your own.')
    for name, share in dict(hflip=hflip, re_prob=re_prob).items():
        if not 0. <= share <= 1.:
            raise ValueError(f'{name} {share}: a probability is in [0, 1].')
    check_normalisation(mean, std)
    check_crops(scale, ratio)
    mean, std = per_channel(mean, channels), per_channel(std, channels)
    _check_interpolation(interpolation, is_training, on_torch=mode == 'device' or is_training and resizer == 'torch')
    dataset: Any = root_or_dataset
    if isinstance(dataset, IterableDataset):
        raise ValueError(f'{type(dataset).__name__} is a stream, and order and resume need an index: use a folder, tar '
                         'files, hfds/ or torch/ of timm.')
    if not isinstance(dataset, Dataset):
        dataset = open_split(root_or_dataset, split, **dataset_kwargs)  # type: ignore[arg-type]
    elif dataset_kwargs:
        raise ValueError(f"{', '.join(dataset_kwargs)}: only for a folder; this {type(dataset).__name__} exists.")
    order = _order(len(dataset), batch_size, is_training, seed, rank, world_size)
    made = sizes if mode == 'loader' else sizes[:1]
    transform: Union[TrainViews, SeparateCrops, EvalViews]
    if is_training:
        eraser = RandomErasing(re_prob, mode=re_mode, max_count=re_count, device='cpu') if re_prob > 0. else None
        drawing = dict(
            scale=scale, ratio=ratio, hflip=hflip, interpolation=interpolation, resizer=resizer, eraser=eraser,
            color_jitter=color_jitter, auto_augment=auto_augment, channels=channels, mean=mean)
        transform = (SeparateCrops(sizes, same_size, **drawing) if crop == 'per_resolution' else
                     TrainViews(sizes, made, flip=flip, draft=draft, **drawing))  # type: ignore[arg-type]
    else:
        transform = EvalViews(made, crop_pct, interpolation, crop_mode=crop_mode, channels=channels, mean=mean)
    finisher = BatchFinisher(
        sizes, mean, std,
        reduction=interpolation if interpolation in TORCH_RESAMPLING else 'bilinear',
        exact=not is_training,
        mixup=mixup if is_training else None,
        device=device,
        channels_last=channels_last,
    )
    samples = MultiResDataset(dataset, transform, seed, substitute=is_training and skip_corrupt)
    return MultiResLoader(samples, order, finisher, num_workers, skip_corrupt)


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
    sizes = _check_sizes(resolutions)
    check_normalisation(mean, std)
    check_crops(scale, ratio)
    dataset = root_or_dataset if isinstance(root_or_dataset, MaskFolder) else MaskFolder(
        root_or_dataset, split, classes, ignore_label)
    is_training = dataset.split == 'train' if is_training is None else is_training
    _check_interpolation(interpolation, is_training, on_torch=False)
    order = _order(len(dataset), batch_size, is_training, seed, rank, world_size)
    transform: Any = (MaskedTrainViews(sizes, scale, ratio, hflip, interpolation, color_jitter) if is_training else
                      MaskedEvalViews(sizes, interpolation))
    samples = MaskedSamples(dataset, transform, seed, substitute=is_training and skip_corrupt)
    finisher = BatchFinisher(sizes, mean, std, exact=not is_training, device=device, channels_last=channels_last)
    collate = partial(collate_masks, keep_sizes=not is_training)
    return MultiResLoader(samples, order, finisher, num_workers, skip_corrupt, collate)


def _check_sizes(resolutions: Iterable[int]) -> Tuple[int, ...]:
    """The sizes as whole numbers, largest first."""
    sizes = tuple(resolutions)
    if not sizes or len(set(sizes)) != len(sizes) or not all(size >= 1 and int(size) == size for size in sizes):
        raise ValueError(f'resolutions {sizes}: name distinct positive sizes in pixels, as in (224, 160, 96).')
    return tuple(sorted((int(size) for size in sizes), reverse=True))


def _check_interpolation(interpolation: str, is_training: bool, on_torch: bool) -> None:
    if interpolation == 'random':
        if not is_training:
            raise ValueError("interpolation 'random' is for training: name one, such as 'bilinear', for evaluation.")
        return
    try:
        str_to_pil_interp(interpolation)
    except KeyError:
        raise ValueError(f"interpolation {interpolation!r} is unknown: use 'bilinear', for example.") from None
    if on_torch and interpolation not in TORCH_RESAMPLING:
        raise ValueError(f"interpolation {interpolation!r} is not one of torch's, {', '.join(TORCH_RESAMPLING)}: use "
                         "one, or mode='loader' with resizer='pillow'.")


def check_normalisation(mean: Sequence[float], std: Sequence[float]) -> None:
    """Refuse a mean or std that is not for values in [0, 1], such as those for values up to 255."""
    if not all(0. <= value <= 1. for value in mean):
        raise ValueError(f'mean {tuple(mean)}: pixels are in [0, 1], and so is their mean; divide values for pixels '
                         'up to 255 by 255.')
    if not all(0. < value <= 1. for value in std):
        raise ValueError(f'std {tuple(std)}: pixels are in [0, 1], and their standard deviation is in (0, 1]; divide '
                         'values for pixels up to 255 by 255.')


def check_crops(scale: Sequence[float], ratio: Sequence[float]) -> None:
    """Refuse ranges of area and aspect ratio from which no crop can be drawn."""
    for name, values, high in (('scale', scale, 1.), ('ratio', ratio, math.inf)):
        if len(values) != 2 or not 0. < values[0] <= values[1] <= high or math.isinf(values[1]):
            raise ValueError(f'crop {name} {tuple(values)}: it is two positive numbers{" up to 1" * (high == 1.)}, the '
                             'smaller one first.')


def per_channel(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    """Mean or std for each of `channels`: as given where the number fits, else the average, as a saved network has it.

    >>> per_channel((0.25, 0.5, 0.75), 1)
    (0.5,)
    """
    values = tuple(values)
    return values if len(values) == channels else (sum(values) / len(values),) * channels


def _order(count: int, batch_size: int, is_training: bool, seed: int, rank: int, world_size: int) -> EpochBatches:
    """The batches of `count` pictures for one process, where the settings allow any."""
    if batch_size < 1:
        raise ValueError(f'batch_size {batch_size}: it must be at least 1.')
    if not 0 <= rank < world_size:
        raise ValueError(f'rank {rank} of world_size {world_size}: ranks are 0 to world_size - 1.')
    if is_training and count < batch_size * world_size:
        raise ValueError(f'batch_size {batch_size} on each of {world_size} process(es) is more than the {count} '
                         f'pictures there are: take at most {count // world_size}.')
    return EpochBatches(count, batch_size, is_training, seed, rank, world_size)
