"""Loaders that give each picture at S resolutions: decoded once, cropped once, resized S times."""
from os import PathLike
from typing import Any, Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD, Mixup
from timm.data.random_erasing import RandomErasing
from torch.utils.data import DataLoader, Dataset, IterableDataset

from rs_timm.pictures import ImageError

from .checks import check_batches, check_channels, check_count, check_interpolation, check_sizes, per_channel
from .class_folders import open_split
from .crops import CROPS, SeparateCrops, check_crop
from .device import REDUCTIONS, BatchFinisher, Images, prefetched
from .order import EpochBatches
from .samples import MultiResDataset, Sample, ViewBatch, collate_views
from .views import FLIPS, RESIZERS, EvalViews, TrainViews
from .workers import obey_parent_alone

__all__ = ['MODES', 'MultiResLoader', 'create_multires_loader']

MODES = ('loader', 'device')
_CHOICES = dict(mode=MODES, flip=FLIPS, crop=CROPS, resizer=RESIZERS, crop_mode=('center', 'squash', 'border'))


class MultiResLoader:
    """Iterates over ({resolution: float32 [N, C, resolution, resolution]}, target); see `create_multires_loader`.

    Attributes:
        resolutions: sizes in pixels, largest first.
        dataset: what the pictures come from.
        batch_size, rank, world_size, is_training: as given.
        mixup: timm's parameters, or None; `loader.mixup.mixup_enabled = False` turns it off.
        damaged: of the pass that runs or ran last, a line for each picture that could not be read.
    """

    def __init__(
            self,
            samples: MultiResDataset,
            order: EpochBatches,
            finisher: BatchFinisher,
            num_workers: int = 4,
            skip_corrupt: bool = False,
            collate: Callable[[Sequence[Sample]], ViewBatch] = collate_views,
    ) -> None:
        self.dataset = samples.dataset
        self.resolutions = finisher.resolutions
        self.mixup = finisher.mixup
        self.batch_size = order.batch_size
        self.rank = order.rank
        self.world_size = order.world_size
        self.is_training = order.is_training
        self.skip_corrupt = skip_corrupt
        self.damaged: List[str] = []
        self._order = order
        self._finisher = finisher
        cuda = finisher.device.type == 'cuda'
        self._stream = torch.cuda.Stream(finisher.device) if cuda else None
        self._loader = DataLoader(
            samples,
            batch_sampler=order,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=cuda,
            persistent_workers=num_workers > 0,
            worker_init_fn=obey_parent_alone,
            generator=torch.Generator(),  # else each pass would draw from the generator of the training run
        )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever the next pass starts."""
        return len(self._order)

    @property
    def num_samples(self) -> int:
        """Pictures in the data set, over all ranks."""
        return self._order.count

    @property
    def epoch(self) -> int:
        """The epoch of the pass that runs, or of the next one."""
        return self._order.epoch

    @property
    def corrupt_count(self) -> int:
        """How many pictures could not be read, in the pass that runs or ran last, on this rank."""
        return len(self.damaged)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Say what the next pass is: the batches of `epoch` from `start_batch` on, exactly as in a pass from 0.

        Without it, a training pass that ends moves on to the following epoch.

        >>> loader.set_epoch(3, start_batch=40)  # doctest: +SKIP

        Raises:
            ValueError: a negative epoch, or a start behind the end of the epoch.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(f'epoch {epoch}, start_batch {start_batch}: epochs count from 0, and start_batch is 0 to '
                             f'{len(self)}, the number of batches; was the batch size changed since?')
        self._order.epoch = epoch
        self._order.start_batch = start_batch

    def __iter__(self) -> Iterator[Tuple[Images, torch.Tensor]]:
        self.damaged = []
        epoch, start = self._order.epoch, self._order.start_batch
        batches = iter(self._loader)
        self._order.start_batch = 0
        yield from prefetched(self._finished(batches, epoch, start), self._finisher.device, self._stream)
        if self.is_training and self._order.epoch == epoch:
            self._order.epoch = epoch + 1

    def _finished(self, batches: Iterable[ViewBatch], epoch: int, start: int) -> Iterator[Tuple[Images, torch.Tensor]]:
        for number, batch in enumerate(batches, start):
            self._note(batch.damaged)
            if batch.images:
                yield self._finisher(batch, self._order.seed, epoch, number, self.rank)

    def _note(self, damaged: Sequence[str]) -> None:
        self.damaged += damaged
        if damaged and not self.skip_corrupt:
            raise ImageError(f'{damaged[0]} (repair or remove the file, or skip such files with skip_corrupt=True, '
                             '--skip-corrupt on the command line)')


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
        crop_pct: float = 0.875,
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
        crop_pct: side of the crop over shorter side of the resized picture, in evaluation.
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
    sizes = check_sizes(resolutions)
    is_training = split == 'train' if is_training is None else is_training
    resizer = resizer or ('pillow' if mode == 'loader' else 'torch')
    _check_choices(mode=mode, flip=flip, crop=crop, resizer=resizer, crop_mode=crop_mode)
    check_crop(crop, same_size, mode, draft)
    check_channels(channels)
    mean, std = per_channel(mean, channels), per_channel(std, channels)
    check_interpolation(interpolation, is_training, on_torch=mode == 'device' or is_training and resizer == 'torch')
    check_batches(batch_size, rank, world_size)
    dataset = _dataset(root_or_dataset, split, dataset_kwargs)
    count = len(dataset)  # type: ignore[arg-type]
    if is_training:
        check_count(count, batch_size, world_size)
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
        reduction=interpolation if interpolation in REDUCTIONS else 'bilinear',
        exact=not is_training,
        mixup=mixup if is_training else None,
        device=device,
        channels_last=channels_last,
    )
    samples = MultiResDataset(dataset, transform, seed, substitute=is_training and skip_corrupt)
    order = EpochBatches(count, batch_size, is_training, seed, rank, world_size)
    return MultiResLoader(samples, order, finisher, num_workers, skip_corrupt)


def _check_choices(**chosen: str) -> None:
    for name, value in chosen.items():
        allowed = _CHOICES[name]
        if value not in allowed:
            raise ValueError(f"{name} {value!r} is unknown: use one of {', '.join(allowed)}.")


def _dataset(root_or_dataset: Any, split: str, kwargs: Dict[str, Any]) -> Dataset[Any]:
    if isinstance(root_or_dataset, IterableDataset):
        raise ValueError(f'{type(root_or_dataset).__name__} is a stream, and order and resume need an index: use a '
                         'folder, tar files, hfds/ or torch/ of timm.')
    if isinstance(root_or_dataset, Dataset):
        if kwargs:
            raise ValueError(f"{', '.join(kwargs)}: only for a folder; this {type(root_or_dataset).__name__} exists.")
        return root_or_dataset
    return open_split(root_or_dataset, split, **kwargs)
