"""From an RGB picture to the tensor that a network expects, at any resolution."""
from typing import Any, Callable, Mapping

import torch
from PIL import Image
from timm.data import create_transform
from torchvision import transforms

from rs_timm.pictures import trim_strip

__all__ = ['image_transform']


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
        data_config: as returned by `timm.data.resolve_model_data_config(model)`.
        resolution: pixels.

    Raises:
        ValueError: a resolution that is not positive.
    """
    if resolution < 1:
        raise ValueError(f'resolution {resolution}: it must be a positive number of pixels.')
    config = {key: value for key, value in data_config.items() if key != 'input_size'}
    channels = data_config.get('input_size', (3,))[0]
    steps = [trim_strip, create_transform((channels, resolution, resolution), is_training=False, **config)]
    return transforms.Compose(steps if channels == 3 else [transforms.Grayscale(channels), *steps])
