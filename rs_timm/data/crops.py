"""Several random crops of one picture, one for each resolution: the ablation of Table 6."""
from typing import Any, Dict, Optional, Sequence

import numpy as np
from PIL import Image

from .views import TrainViews, Views, draw_erasures

__all__ = ['CROPS', 'SeparateCrops', 'check_crop']

CROPS = ('shared', 'per_resolution')


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


def check_crop(crop: str, same_size: int, mode: str, draft: Optional[bool]) -> None:
    """Refuse arguments of `create_multires_loader` that contradict each other."""
    if same_size and crop == 'shared':
        raise ValueError(f"same_size {same_size} with crop 'shared' would give the same view several times: use "
                         "crop='per_resolution'.")
    if crop == 'per_resolution' and (mode != 'loader' or draft):
        raise ValueError("crop 'per_resolution' cuts every size from the picture itself: it needs mode='loader', "
                         'without draft.')
