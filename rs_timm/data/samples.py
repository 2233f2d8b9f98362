"""The pictures of a timm data set as views at S sizes, and batches of them; damaged files are reported."""
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import Dataset, default_collate

from rs_timm.pictures import MAX_PIXELS, ImageError, open_formats, reason, upright

from .order import seeded
from .views import Erasure, Views

__all__ = ['MultiResDataset', 'Sample', 'ViewBatch', 'collate_views']


class Sample(NamedTuple):
    views: Optional[Views]  # None: the picture is damaged and was not replaced
    target: Any
    damaged: Tuple[str, ...] = ()  # what was wrong, with the file's name


class ViewBatch(NamedTuple):
    """A batch as a worker sends it: N pictures at the sizes made there, uint8 NHWC."""

    images: Dict[int, torch.Tensor]  # {size: uint8 [N, size, size, C]}
    target: torch.Tensor  # [N] int64, or [N, classes]
    flips: Optional[torch.Tensor]  # [N, S] bool, where the device flips
    erasures: List[Tuple[Erasure, ...]]  # N entries
    damaged: List[str]


class MultiResDataset(Dataset[Sample]):
    """A map-style data set of pictures, indexed by (epoch, index), that gives views instead of pictures.

    Pictures are read as `open_image` reads them: upright by their EXIF data, 16-bit gray scaled, transparent pixels on
    white.

    Args:
        dataset: timm's `ImageDataset` (its reader is used, so that damaged files are seen and JPEGs may be decoded at
            a reduced scale), or any data set of (PIL picture, target).
        transform: opened, upright picture -> `Views`, drawing from the ambient generators.
        seed: with epoch and index it decides all that is random about a picture.
        substitute: replace a damaged picture by the next one that can be read, as long as there is any, so that batches
            keep their size.
    """

    def __init__(
            self,
            dataset: Dataset[Any],
            transform: Callable[[Image.Image], Views],
            seed: int = 0,
            substitute: bool = False,
    ) -> None:
        self.dataset = dataset
        self.transform = transform
        self.seed = seed
        self.substitute = substitute
        self._damaged: Dict[int, str] = {}  # index -> what was wrong, as far as this process has tried in ...
        self._epoch = -1  # ... this epoch

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitem__(self, key: Tuple[int, int]) -> Sample:
        epoch, index = key
        if epoch != self._epoch:  # a disk that failed once gets another chance
            self._epoch, self._damaged = epoch, {}
        damaged = [self._damaged[index]] if index in self._damaged else []
        for attempt in range(len(self) if self.substitute else 1):
            candidate = (index + attempt) % len(self)
            if candidate in self._damaged and self.substitute:
                continue
            try:
                with seeded(self.seed, epoch, index):
                    views, target = self._load(candidate)
                return Sample(views, target, tuple(damaged))
            except ImageError as error:
                if candidate not in self._damaged:
                    damaged.append(self._message(candidate, error))
                self._damaged[candidate] = damaged[-1]
        return Sample(None, -1, tuple(damaged))

    def _load(self, index: int) -> Tuple[Views, Any]:
        if isinstance(self.dataset, ImageDataset):
            file, target, *_ = self._opened(lambda: self.dataset.reader[index])
            with file:
                image = self._opened(lambda: Image.open(file, formats=open_formats()))
                if image.width * image.height > MAX_PIXELS:
                    raise ImageError(f'refused, {image.width} x {image.height} pixels are more than the bound of '
                                     f'{MAX_PIXELS}')
                views = self.transform(_upright(image))
            target_transform = self.dataset.target_transform
        else:  # of torchvision: it has applied its target_transform itself
            image, target, *_ = self._opened(lambda: self.dataset[index])
            if not isinstance(image, Image.Image):
                raise ValueError(f'the data set gives a {type(image).__name__}, not a PIL picture: remove its '
                                 'transform; this loader has its own.')
            views, target_transform = self.transform(_upright(image)), None
        if target is None:
            return views, -1
        return views, target if target_transform is None else target_transform(target)

    @staticmethod
    def _opened(read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:  # what Image.open raises
            raise ImageError(reason(error)) from error

    def _message(self, index: int, error: ImageError) -> str:
        """The error with the file of the picture, as far as the data set knows it."""
        known = isinstance(self.dataset, ImageDataset)
        name = self.dataset.filename(index, absolute=True) if known else f'picture {index}'
        return f'{name}: {error}'


def _upright(image: Image.Image) -> Image.Image:
    """Turn, where the file says so. Only this step and `_rgb` can find pixels damaged: an error elsewhere is ours."""
    try:
        return upright(image)
    except Exception as error:  # on damaged files, decoders raise whatever they met
        raise ImageError(reason(error)) from error


def collate_views(samples: Sequence[Sample]) -> ViewBatch:
    """Stack the samples that have views; a batch whose pictures are all damaged has no images."""
    damaged = [message for sample in samples for message in sample.damaged]
    good = [(sample.views, sample.target) for sample in samples if sample.views is not None]
    if not good:
        return ViewBatch({}, torch.empty(0, dtype=torch.int64), None, [], damaged)
    images = {size: torch.from_numpy(np.stack([views.images[size] for views, _ in good])) for size in good[0][0].images}
    target = torch.as_tensor(default_collate([target for _, target in good]))
    if target.ndim == 1:
        target = target.long()
    flips = None if good[0][0].flips is None else torch.tensor([views.flips for views, _ in good])
    return ViewBatch(images, target, flips, [views.erasures for views, _ in good], damaged)
