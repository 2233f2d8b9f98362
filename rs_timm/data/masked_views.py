"""One picture with its mask: one crop of both, the picture at S sizes and the mask at the largest."""
import random
from typing import Any, List, NamedTuple, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation

from .masks import MaskedPicture
from .samples import MultiResDataset, Sample, ViewBatch, collate_views
from .views import EvalViews, Views, _colour_augmentation, _resize_with_pillow

__all__ = ['MaskedEvalViews', 'MaskedSamples', 'MaskedTrainViews', 'Masks', 'collate_masks']


class MaskedViews(NamedTuple):
    views: Views
    mask: np.ndarray  # uint8 [H, W]


class MaskedTrainViews:
    """Training views: one random crop and flip of picture and mask; the picture at every size, the mask at the largest.

    Pictures are resized bilinearly with antialiasing, masks by their nearest pixel. Draws from the ambient generators:
    call it within `seeded`.

    Args:
        resolutions: sizes in pixels, largest first.
        scale, ratio: share of the picture's area, and width / height, of the crop.
        hflip: probability of a horizontal flip.
        interpolation: of the picture; 'random' draws bilinear or bicubic.
        color_jitter: as in timm, on the picture alone; None: none.

    Source: Appendix B, Figure 7.
    """

    def __init__(
            self,
            resolutions: Sequence[int],
            scale: Tuple[float, float] = (0.25, 1.),
            ratio: Tuple[float, float] = (3. / 4., 4. / 3.),
            hflip: float = 0.5,
            interpolation: str = 'bilinear',
            color_jitter: Any = None,
    ) -> None:
        self.resolutions = tuple(resolutions)
        self.scale, self.ratio, self.hflip = scale, ratio, hflip
        self.interpolations = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
        self.augment, _ = _colour_augmentation(self.resolutions[0], interpolation, color_jitter=color_jitter)

    def __call__(self, picture: Image.Image, mask: np.ndarray) -> MaskedViews:
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(picture, self.scale, self.ratio)
        box = (left, top, left + width, top + height)
        crop, classes = picture.crop(box), Image.fromarray(mask).crop(box)
        if random.random() < self.hflip:
            crop, classes = (x.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for x in (crop, classes))
        if self.augment is not None:
            crop = self.augment(crop)
        side = self.resolutions[0]
        images = _resize_with_pillow(crop, self.resolutions, random.choice(self.interpolations))
        return MaskedViews(Views(images), np.asarray(classes.resize((side, side), Image.Resampling.NEAREST)))


class MaskedEvalViews:
    """Evaluation views: the whole picture at every size, and the mask as it is.

    A picture that is not square is squeezed to r x r, as the training crops are.

    Args:
        resolutions: sizes in pixels.
        interpolation: of the picture.
    """

    def __init__(self, resolutions: Sequence[int], interpolation: str = 'bilinear') -> None:
        self.views = EvalViews(resolutions, crop_pct=1., interpolation=interpolation, crop_mode='squash')

    def __call__(self, picture: Image.Image, mask: np.ndarray) -> MaskedViews:
        return MaskedViews(self.views(picture), mask)


class MaskedSamples(MultiResDataset):
    """`MultiResDataset` for a `MaskFolder`: the target of a picture is its mask."""

    def _load(self, index: int) -> Tuple[Views, np.ndarray]:
        item: MaskedPicture = self.dataset[index]
        return self.transform(item.picture, item.mask)  # type: ignore[call-arg, return-value]

    def __getitem__(self, key: Tuple[int, int]) -> Sample:
        sample = super().__getitem__(key)
        # the data set's messages name the file at fault, the picture or the mask, already
        return sample._replace(damaged=tuple(message.split(': ', 1)[1] for message in sample.damaged))


class Masks(List[torch.Tensor]):
    """The masks of a batch at their own sizes, uint8 [H, W] each; they move to a device together."""

    def to(self, *args: Any, **kwargs: Any) -> 'Masks':
        return Masks(mask.to(*args, **kwargs) for mask in self)


def collate_masks(samples: Sequence[Sample], keep_sizes: bool) -> ViewBatch:
    """As `collate_views`; the target is a tensor uint8 [N, H, W], or `Masks` with `keep_sizes`."""
    masks = [torch.from_numpy(np.array(sample.target)) for sample in samples if sample.views is not None]
    batch = collate_views([sample._replace(target=-1) for sample in samples])
    target: Any = Masks(masks) if keep_sizes or not masks else torch.stack(masks)
    return batch._replace(target=target)
