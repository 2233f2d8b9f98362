"""Views of a picture: decoded once and cropped once, at S sizes, in training and in evaluation."""
import math
import random
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from timm.data import create_transform, resolve_model_data_config
from timm.data.auto_augment import AugmentOp
from timm.data.random_erasing import RandomErasing
from timm.data.transforms import MaybePILToTensor, RandomResizedCropAndInterpolation, str_to_pil_interp
from timm.utils import unwrap_model
from torch import nn
from torch.nn import functional as F
from torchvision import transforms

from rs_timm.crops import CropPct, check_crop_pct, crop_at, crops_of
from rs_timm.pictures import ImageError, reason, to_rgb, trim_strip

__all__ = ['Erasure', 'EvalViews', 'SeparateCrops', 'TrainViews', 'Views', 'image_transform']


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
    """One picture as a worker sends it."""

    images: Dict[int, np.ndarray]  # {size: uint8 [size, size, C]}
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


def _pixels(image: Image.Image) -> np.ndarray:
    """uint8 [H, W, C]."""
    return np.asarray(image).reshape(image.height, image.width, -1)


def _rgb(image: Image.Image) -> Image.Image:
    """Decode, to the colours that `open_image` gives."""
    try:
        image.load()
        return to_rgb(image)
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(reason(error)) from error


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
        resizer: 'pillow', or 'torch', which is faster (vectorised) and, when bilinear, within one level of 255 of it.
        draft: let the JPEG decoder scale down by 2, 4 or 8 where the crop still covers the largest size.
        eraser: parameters of random erasing, or None.
        channels: 3, or 1 for gray, which is taken after the colour augmentation.
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
            resizer: str = 'pillow',
            draft: bool = False,
            eraser: Optional[RandomErasing] = None,
            channels: int = 3,
            **augment: Any,
    ) -> None:
        self.resolutions = tuple(resolutions)
        self.made = tuple(made)
        self.scale = scale
        self.ratio = ratio
        self.hflip = hflip
        self.flip = flip
        self.interpolations = ('bilinear', 'bicubic') if interpolation == 'random' else (interpolation,)
        self.resize = _resize_with_torch if resizer == 'torch' else _resize_with_pillow
        self.draft = draft
        self.eraser = eraser
        self.channels = channels
        if channels == 1 and 'mean' in augment:  # it fills borders of the crop, which is still RGB
            augment['mean'] = tuple(augment['mean'])[:1] * 3
        self.augment, self.augment_ops = _colour_augmentation(self.resolutions[0], interpolation, **augment)

    def __call__(self, image: Image.Image) -> Views:
        """Make the views of a picture that was opened but not decoded."""
        top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, self.scale, self.ratio)
        interpolation = random.choice(self.interpolations)
        draws = 1 if self.flip == 'shared' else len(self.resolutions)
        flips = tuple(random.random() < self.hflip for _ in range(draws)) * (len(self.resolutions) // draws)
        crop = self._crop(image, (left, top, left + width, top + height))
        if self.augment is not None:
            for op in self.augment_ops:  # timm's rule for translations in pixels, with the size of this crop
                op.hparams['translate_const'] = int(min(crop.size) * 0.45)
            crop = self.augment(crop)
        if self.channels == 1:
            crop = crop.convert('L')
        erasures = draw_erasures(self.eraser) if self.eraser else ()
        if self.flip == 'per_resolution' and self.made != self.resolutions:
            return Views(self._resized(crop, self.made, interpolation), flips, erasures)
        straight = [size for size, flipped in zip(self.resolutions, flips) if not flipped and size in self.made]
        mirrored = [size for size, flipped in zip(self.resolutions, flips) if flipped and size in self.made]
        images = self._resized(crop, straight, interpolation)
        if mirrored:
            images.update(self._resized(crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT), mirrored, interpolation))
        return Views(images, None, erasures)

    def _resized(self, crop: Image.Image, sizes: Sequence[int], interpolation: str) -> Dict[int, np.ndarray]:
        return self.resize(crop, sizes, interpolation) if sizes else {}

    def _crop(self, image: Image.Image, box: Tuple[int, int, int, int]) -> Image.Image:
        left, top, right, bottom = box
        factor = min(min(right - left, bottom - top) // self.resolutions[0], 8)
        if self.draft and factor >= 2 and type(image) is JpegImageFile:
            width, height = image.size
            drafted = image.draft('RGB', (width // factor, height // factor))
            shrink = width / drafted[1][2] if drafted else 1.
            left, top, right, bottom = (round(edge / shrink) for edge in box)
        return _rgb(image).crop((left, top, right, bottom))


class SeparateCrops:
    """Training views as `TrainViews` makes them, but with a random crop and flip of its own for each resolution.

    Draws from the ambient generators: call it within `seeded`. Random erasing is shared, as there.

    Args:
        resolutions: sizes in pixels, largest first.
        same_size: side in pixels of all views, in place of their own; 0: their own.
        settings: for `TrainViews`.

    Source: Section 4.3, Table 6.
    """

    def __init__(self, resolutions: Sequence[int], same_size: int = 0, **settings: Any) -> None:
        self.sides = {resolution: same_size or resolution for resolution in resolutions}
        self.eraser = settings.pop('eraser', None)
        self.transforms = {side: TrainViews((side,), (side,), **settings) for side in self.sides.values()}

    def __call__(self, image: Image.Image) -> Views:
        """Make the views of a picture that was opened but not decoded."""
        images: Dict[int, np.ndarray] = {
            resolution: self.transforms[side](image).images[side] for resolution, side in self.sides.items()}
        return Views(images, None, draw_erasures(self.eraser) if self.eraser else ())


def _resize_with_pillow(crop: Image.Image, sizes: Sequence[int], interpolation: str) -> Dict[int, np.ndarray]:
    resample = str_to_pil_interp(interpolation)
    return {size: _pixels(crop.resize((size, size), resample)) for size in sizes}


def _resize_with_torch(crop: Image.Image, sizes: Sequence[int], interpolation: str) -> Dict[int, np.ndarray]:
    pixels = torch.from_numpy(_pixels(crop).copy())[None].permute(0, 3, 1, 2)  # channels last: torch is fast at that
    resized = {size: F.interpolate(pixels, (size, size), mode=interpolation, antialias=True) for size in sizes}
    return {size: view[0].permute(1, 2, 0).numpy() for size, view in resized.items()}


def _colour_augmentation(
        size: int,
        interpolation: str,
        **augment: Any,
) -> Tuple[Optional[Callable[[Image.Image], Image.Image]], List[AugmentOp]]:
    """timm's transforms between the crop and the tensor, None where there are none, and its policy's operations."""
    if not augment.get('color_jitter'):
        augment['color_jitter'] = None
    try:
        _, secondary, _ = create_transform(
            size, is_training=True, interpolation=interpolation, separate=True, **augment)
    except AssertionError as error:  # timm's way to say that it does not know the policy
        raise ValueError(f"auto_augment {augment['auto_augment']!r}: {error or 'unknown'}; take a policy of timm, such "
                         "as 'rand-m9-mstd0.5', 'augmix-m3-w2' or 'v0'.") from error
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
        crop_pct: side of the crop over shorter side of the resized picture: for all sizes, or size -> crop.
        interpolation: a name that timm knows.
        channels: 3, or 1 for gray.
        others: for `timm.data.create_transform`: `crop_mode`, and `mean`, which fills borders.
    """

    def __init__(
            self,
            made: Sequence[int],
            crop_pct: CropPct = 0.875,
            interpolation: str = 'bilinear',
            channels: int = 3,
            **others: Any,
    ) -> None:
        self.channels = channels
        self.transforms = {}
        for size in made:
            steps = create_transform(
                (channels, size, size), interpolation=interpolation, crop_pct=crop_at(crop_pct, size),
                use_prefetcher=True, **others)
            pictures = [step for step in steps.transforms if not isinstance(step, MaybePILToTensor)]
            self.transforms[size] = transforms.Compose(pictures)

    def __call__(self, image: Image.Image) -> Views:
        """Make the views of a picture that was opened but not decoded."""
        image = _rgb(image)
        if self.channels == 1:
            image = image.convert('L')
        return Views({size: _pixels(transform(image)) for size, transform in self.transforms.items()})


def data_config(model: nn.Module, crop_pct: Optional[CropPct] = None) -> Dict[str, Any]:
    """How a network wants its pictures: timm's `resolve_model_data_config`, with the crop of each size if it has such.

    Args:
        model: a network of timm.
        crop_pct: used in place of the network's: a number, or size in pixels -> number.
    """
    own = crops_of(unwrap_model(model)) if crop_pct is None else check_crop_pct(crop_pct)
    config = resolve_model_data_config(model)
    return config if own is None else dict(config, crop_pct=own)


def image_transform(data_config: Mapping[str, Any], resolution: int) -> Callable[[Image.Image], torch.Tensor]:
    """Evaluation preprocessing of a model, at a resolution of choice: RGB picture -> tensor [C, H, W], H = W.

    The shorter side is resized to floor(resolution / crop_pct), the centre is cropped, and mean and std are applied:
    what timm's `validate.py --img-size` does (a model with another `crop_mode` keeps it).

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18')
    >>> transform = image_transform(timm.data.resolve_model_data_config(model), 160)
    >>> transform(Image.new('RGB', (400, 300))).shape
    torch.Size([3, 160, 160])

    Args:
        data_config: as returned by `data_config(model)`, or by `timm.data.resolve_model_data_config(model)`, which
            knows one crop for all sizes.
        resolution: pixels.

    Raises:
        ValueError: a resolution that is not positive.
    """
    if resolution < 1:
        raise ValueError(f'resolution {resolution}: it must be a positive number of pixels.')
    config = {key: value for key, value in data_config.items() if key != 'input_size'}
    config['crop_pct'] = crop_at(config.get('crop_pct') or 0.875, resolution)
    channels = data_config.get('input_size', (3,))[0]
    steps = [trim_strip, create_transform((channels, resolution, resolution), is_training=False, **config)]
    return transforms.Compose(steps if channels == 3 else [transforms.Grayscale(channels), *steps])
