"""One picture, decoded once and cropped once, at S sizes."""
import math
import random
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from timm.data import create_transform
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, str_to_pil_interp
from torchvision import transforms

from .images import ImageError, _reason

__all__ = ['Erasure', 'EvalViews', 'FLIPS', 'TrainViews', 'Views', 'draw_erasures']

FLIPS = ('shared', 'per_resolution')
Box = Tuple[float, float, float, float]  # left, top, right, bottom


class Erasure(NamedTuple):
    """A rectangle as shares of the picture's sides, and what fills it."""

    top: float
    left: float
    height: float
    width: float
    fill: Union[None, Tuple[float, ...], int]  # None: zeros; a colour per channel; or the seed of per-pixel noise

    def slices(self, size: int) -> Tuple[slice, slice]:
        """The rows and columns of a picture of `size` x `size` pixels."""
        top, bottom = round(self.top * size), round((self.top + self.height) * size)
        left, right = round(self.left * size), round((self.left + self.width) * size)
        return slice(top, bottom), slice(left, right)


class Views(NamedTuple):
    """What a worker makes of one picture."""

    images: Dict[int, np.ndarray]  # {size: uint8 [size, size, 3]}
    flips: Optional[Tuple[bool, ...]] = None  # per resolution, where the flip is left to the device
    erasures: Tuple[Erasure, ...] = ()


def draw_erasures(eraser: RandomErasing) -> Tuple[Erasure, ...]:
    """Rectangles with the distribution of timm's `RandomErasing`, relative to the picture and so shared by all sizes.

    Draws from `random`.
    """
    if random.random() > eraser.probability:
        return ()
    count = random.randint(eraser.min_count, eraser.max_count)
    return tuple(erasure for erasure in (_draw_erasure(eraser, count) for _ in range(count)) if erasure)


def _draw_erasure(eraser: RandomErasing, count: int) -> Optional[Erasure]:
    for _ in range(10):
        area = random.uniform(eraser.min_area, eraser.max_area) / count
        aspect = math.exp(random.uniform(*eraser.log_aspect_ratio))
        height, width = math.sqrt(area * aspect), math.sqrt(area / aspect)
        if height < 1. and width < 1.:
            fill: Union[None, Tuple[float, ...], int] = None
            if eraser.rand_color:
                fill = tuple(random.gauss(0., 1.) for _ in range(3))
            elif eraser.per_pixel:
                fill = random.getrandbits(62)
            return Erasure(random.uniform(0., 1. - height), random.uniform(0., 1. - width), height, width, fill)
    return None


def _rgb(image: Image.Image) -> Image.Image:
    """Decode. Only this step can find a picture damaged: an error elsewhere is ours."""
    try:
        image.load()
        return image if image.mode == 'RGB' else image.convert('RGB')
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(_reason(error)) from error


class TrainViews:
    """Training views of a picture: one random crop, timm's colour augmentation on it, then every size straight from it.

    Draws from the ambient generators: call it within `seeded`.

    Args:
        resolutions: sizes in pixels, largest first.
        made: those that are made here; the device makes the others from the largest.
        scale, ratio: share of the picture's area, and aspect ratio, of the crop.
        hflip: probability of a horizontal flip.
        flip: 'shared' draws it once, 'per_resolution' for each size.
        interpolation: a name that timm knows; 'random' draws bilinear or bicubic for each picture.
        draft: let the JPEG decoder scale down by 2, 4 or 8 where the crop still covers the largest size.
        eraser: parameters of random erasing, or None.
        augment: arguments for timm's colour augmentation: `color_jitter`, `auto_augment`, `grayscale_prob`, ...
    """

    def __init__(
            self,
            resolutions: Sequence[int],
            made: Sequence[int],
            scale: Tuple[float, float] = (0.08, 1.),
            ratio: Tuple[float, float] = (3. / 4., 4. / 3.),
            hflip: float = 0.5,
            flip: str = 'shared',
            interpolation: str = 'bilinear',
            draft: bool = False,
            eraser: Optional[RandomErasing] = None,
            **augment: Any,
    ) -> None:
        self.resolutions = tuple(resolutions)
        self.made = tuple(made)
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip
        self.flip = flip
        names = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
        self.resamples = [str_to_pil_interp(name) for name in names]
        self.draft = draft
        self.eraser = eraser
        self.augment, self.augment_ops = _colour_augmentation(self.resolutions[0], interpolation, **augment)

    def __call__(self, image: Image.Image) -> Views:
        """Make the views of a picture that was opened but not decoded."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        resample = random.choice(self.resamples)
        draws = 1 if self.flip == 'shared' else len(self.resolutions)
        flips = tuple(random.random() < self.hflip for _ in range(draws)) * (len(self.resolutions) // draws)
        crop, box = self._crop(image, (left, top, left + width, top + height))
        if self.augment is not None:
            crop, box = self._augmented(crop, box), None
        images = {size: np.asarray(crop.resize((size, size), resample, box)) for size in self.made}
        pending = self.flip == 'per_resolution' and self.made != self.resolutions
        if not pending:
            flipped = dict(zip(self.resolutions, flips))
            images = {size: view[:, ::-1] if flipped[size] else view for size, view in images.items()}
        return Views(images, flips if pending else None, draw_erasures(self.eraser) if self.eraser else ())

    def _crop(self, image: Image.Image, box: Tuple[int, int, int, int]) -> Tuple[Image.Image, Optional[Box]]:
        """The crop, or with a scaled decode the whole picture and the crop's box in it."""
        left, top, right, bottom = box
        factor = min(min(right - left, bottom - top) // self.resolutions[0], 8)
        if not self.draft or factor < 2 or type(image) is not JpegImageFile:
            return _rgb(image).crop(box), None
        width, height = image.size
        drafted = image.draft('RGB', (width // factor, height // factor))
        shrink = width / drafted[1][2] if drafted else 1.
        return _rgb(image), (left / shrink, top / shrink, right / shrink, bottom / shrink)

    def _augmented(self, image: Image.Image, box: Optional[Box]) -> Image.Image:
        if box is not None:
            left, top, right, bottom = (round(edge) for edge in box)
            image = image.crop((left, top, right, bottom))
        for op in self.augment_ops:  # timm's rule for translations in pixels, with the size of this crop
            op.hparams['translate_const'] = int(min(image.size) * 0.45)
        return self.augment(image) if self.augment else image


def _colour_augmentation(
        size: int,
        interpolation: str,
        **augment: Any,
) -> Tuple[Optional[Callable[[Image.Image], Image.Image]], List[AugmentOp]]:
    """timm's transforms between the crop and the tensor, None where there are none, and its policy's operations."""
    if not augment.get('color_jitter'):
        augment['color_jitter'] = None
    _, secondary, _ = create_transform(size, is_training=True, interpolation=interpolation, separate=True, **augment)
    if not secondary.transforms:
        return None, []
    ops: List[AugmentOp] = []
    for transform in secondary.transforms:
        policy = getattr(transform, 'policy', None) or [getattr(transform, 'ops', [])]
        ops += [op for sub_policy in policy for op in sub_policy]
    return secondary, ops


class EvalViews:
    """Evaluation views (Section 4.1): the shorter side to floor(r / crop_pct), then the central r x r, for each r.

    Pixel for pixel what `timm.data.create_transform(r, interpolation=..., crop_pct=...)` gives before its tensor step.

    Args:
        made: sizes in pixels.
        crop_pct: side of the crop over shorter side of the resized picture.
        interpolation: a name that timm knows.
    """

    def __init__(self, made: Sequence[int], crop_pct: float = 0.875, interpolation: str = 'bilinear') -> None:
        self.transforms = {}
        for size in made:
            steps = create_transform(size, interpolation=interpolation, crop_pct=crop_pct, use_prefetcher=True)
            pictures = [step for step in steps.transforms if not isinstance(step, MaybePILToTensor)]
            self.transforms[size] = transforms.Compose(pictures)

    def __call__(self, image: Image.Image) -> Views:
        """Make the views of a picture that was opened but not decoded."""
        image = _rgb(image)
        return Views({size: np.asarray(transform(image)) for size, transform in self.transforms.items()})
