"""The last steps from uint8 batches to tensors on a device: reduced, flipped, normalised, mixed, erased."""
from typing import Dict, Iterable, Iterator, List, Optional, Sequence, Tuple, Union

import torch
from timm.data import Mixup
from timm.data.mixup import cutmix_bbox_and_lam, mixup_target
from torch.nn import functional as F

from .order import seeded
from .samples import ViewBatch
from .views import Erasure

__all__ = ['BatchFinisher', 'TORCH_RESAMPLING', 'Images', 'mix', 'prefetched']

TORCH_RESAMPLING = ('bilinear', 'bicubic')  # what torch resizes with antialiasing
Images = Dict[int, torch.Tensor]  # {resolution: [N, C, resolution, resolution]}


class BatchFinisher:
    """The device's part of the pipeline, the same for every size.

    Args:
        resolutions: sizes in pixels, largest first; those that a batch lacks are reduced from its largest.
        mean, std: per channel, for values in [0, 1].
        reduction: 'bilinear' or 'bicubic', both antialiased.
        exact: normalise in the steps of torchvision's `ToTensor` and `Normalize`, bit by bit; else in one fused step.
        mixup: timm's parameters of mixup and cutmix, or None.
        device, channels_last: where the result lives, and how.
    """

    def __init__(
            self,
            resolutions: Sequence[int],
            mean: Sequence[float],
            std: Sequence[float],
            reduction: str = 'bilinear',
            exact: bool = False,
            mixup: Optional[Mixup] = None,
            device: Union[str, torch.device] = 'cpu',
            channels_last: bool = False,
    ) -> None:
        self.resolutions = tuple(resolutions)
        self.device = device = torch.device(device)
        self.mean = torch.tensor(mean, dtype=torch.float32, device=device)
        self.std = torch.tensor(std, dtype=torch.float32, device=device)
        self.reduction = reduction
        self.exact = exact
        self.mixup = mixup
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, batch: ViewBatch, *key: int) -> Tuple[Images, torch.Tensor]:
        """Finish a batch; what is random about it as a whole is decided by `key`."""
        pixels = {size: view.to(self.device, non_blocking=True) for size, view in batch.images.items()}
        target = batch.target.to(self.device, non_blocking=True)
        images = {}
        for position, size in enumerate(self.resolutions):
            view = pixels[size] if size in pixels else self._reduced(pixels[self.resolutions[0]], size)
            if batch.flips is not None:
                turn = batch.flips[:, position].to(self.device)
                view = torch.where(turn[:, None, None, None], view.flip(2), view)
            images[size] = self._normalised(view)
        if self.mixup is not None:
            with seeded(*key):
                images, target = mix(self.mixup, images, target)
        erase(images, batch.erasures)
        return images, target

    def _reduced(self, pixels: torch.Tensor, size: int) -> torch.Tensor:
        """uint8 [N, H, W, C] -> [N, size, size, C]: uint8 on the CPU, which is fast at that, else float32 in 0..255."""
        view = pixels.permute(0, 3, 1, 2)
        if view.device.type != 'cpu':
            return F.interpolate(
                view.float(), (size, size), mode=self.reduction, antialias=True).clamp_(0., 255.).permute(0, 2, 3, 1)
        return F.interpolate(view, (size, size), mode=self.reduction, antialias=True).permute(0, 2, 3, 1)

    def _normalised(self, view: torch.Tensor) -> torch.Tensor:
        """[N, r, r, C] in 0..255 -> float32 [N, C, r, r]."""
        count, height, width, channels = view.shape
        images = torch.empty(
            (count, channels, height, width), device=view.device, memory_format=self.memory_format)
        mean, std = self.mean.repeat(width), self.std.repeat(width)  # long rows: broadcasting three channels is slow
        shift, factor = -mean / std, 1. / (255. * std)
        step = 1 if view.device.type == 'cpu' else count  # one picture fits the cache
        for part, pixels in zip(images.split(step), view.split(step)):
            rows = pixels.reshape(-1, width * channels).float()
            rows = rows.div_(255.).sub_(mean).div_(std) if self.exact else torch.addcmul(shift, rows, factor)
            part.copy_(rows.view(pixels.shape).permute(0, 3, 1, 2))
        return images


def mix(mixup: Mixup, images: Images, target: torch.Tensor) -> Tuple[Images, torch.Tensor]:
    """timm's mixup and cutmix, with one draw of partner, share and relative box for all sizes.

    As in timm, picture i is mixed with picture N - 1 - i. Draws from numpy's ambient generator.

    Args:
        mixup: the parameters; `mode` 'batch', 'elem' or 'pair'.
        images: {resolution: [N, C, resolution, resolution]}; changed in place.
        target: [N] class indices, or [N, classes] with `multi_label`.

    Returns:
        The images, and soft targets [N, classes].
    """
    count, largest = len(target), max(images)
    share = torch.ones(count, 1)  # of the picture itself, in the target
    blend = torch.ones(count)  # of the picture itself, in its pixels
    boxes: List[Optional[Tuple[float, ...]]] = [None] * count
    for rows, lam, is_cutmix in _draws(mixup, count):
        if is_cutmix and lam < 1.:
            box, lam = cutmix_bbox_and_lam(
                (3, largest, largest), lam, ratio_minmax=mixup.cutmix_minmax, correct_lam=mixup.correct_lam)
            for row in rows:
                boxes[row] = tuple(float(edge) / largest for edge in box)
        elif lam < 1.:
            blend[rows] = lam
        share[rows] = lam
    for view in images.values():
        _mix_view(view, blend, boxes)
    newer = dict(multi_label=True) if getattr(mixup, 'multi_label', False) else {}  # older timm has none
    target = mixup_target(target, mixup.num_classes, share.to(target.device), mixup.label_smoothing, **newer)
    return images, target


def _draws(mixup: Mixup, count: int) -> Iterator[Tuple[List[int], float, bool]]:
    """(pictures, lam, whether it is cutmix) for each draw of timm's."""
    if mixup.mode == 'batch':
        lam, is_cutmix = mixup._params_per_batch()
        yield list(range(count)), float(lam), bool(is_cutmix)
        return
    pairs = mixup.mode == 'pair'
    lams, cutmixes = mixup._params_per_elem((count + 1) // 2 if pairs else count)
    for row, (lam, is_cutmix) in enumerate(zip(lams, cutmixes)):
        yield ([row, count - 1 - row] if pairs else [row]), float(lam), bool(is_cutmix)


def _mix_view(view: torch.Tensor, blend: torch.Tensor, boxes: Sequence[Optional[Tuple[float, ...]]]) -> None:
    partner, size = view.flip(0), view.shape[-1]
    if bool((blend < 1.).any()):
        weight = blend.to(view.device, view.dtype)[:, None, None, None]
        view.mul_(weight).add_(partner * (1. - weight))
    for row, box in enumerate(boxes):
        if box is not None:
            top, bottom, left, right = (round(edge * size) for edge in box)
            view[row, :, top:bottom, left:right] = partner[row, :, top:bottom, left:right]


def erase(images: Images, erasures: Sequence[Sequence[Erasure]]) -> None:
    """Fill the rectangles of picture n, erasures[n], at every size; in place."""
    for view in images.values():
        for picture, rectangles in zip(view, erasures):
            for rectangle in rectangles:
                rows, columns = rectangle.slices(view.shape[-1])
                patch = picture[:, rows, columns]
                patch.copy_(_fill(rectangle, patch))


def _fill(rectangle: Erasure, patch: torch.Tensor) -> torch.Tensor:
    if rectangle.fill is None:
        return torch.zeros((), device=patch.device)
    if isinstance(rectangle.fill, tuple):
        return torch.tensor(rectangle.fill[:len(patch)], device=patch.device)[:, None, None]
    return torch.randn(patch.shape, generator=torch.Generator().manual_seed(rectangle.fill)).to(patch.device)


def prefetched(
        finished: Iterable[Tuple[Images, torch.Tensor]],
        device: torch.device,
        stream: Optional[torch.cuda.Stream],
) -> Iterator[Tuple[Images, torch.Tensor]]:
    """Run `finished` one batch ahead on a CUDA stream, so that it overlaps the step; without a stream, as it is."""
    if stream is None:
        yield from finished
        return
    pending = None
    iterator = iter(finished)
    while True:
        stream.wait_stream(torch.cuda.current_stream(device))  # memory that the step has freed may be reused here
        with torch.cuda.stream(stream):
            upcoming = next(iterator, None)
        if pending is not None:
            yield pending
        if upcoming is None:
            return
        torch.cuda.current_stream(device).wait_stream(stream)
        pending = upcoming
