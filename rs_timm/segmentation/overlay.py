"""Predictions as pictures: classes as colours over the photograph, resolutions side by side (Figure 8)."""
import colorsys
from typing import List, Mapping, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torchvision.transforms.functional import pil_to_tensor, to_pil_image
from torchvision.utils import draw_segmentation_masks

__all__ = ['class_colours', 'comparison', 'overlay']

Colour = Tuple[int, int, int]
_GAP = 8  # pixels between panels
_LINE = 20  # height of a line of text
_WHITE, _BLACK = (255, 255, 255), (0, 0, 0)


def class_colours(num_classes: int) -> List[Colour]:
    """A colour for each class, neighbours in the list far apart.

    >>> len(set(class_colours(40)))
    40
    """
    golden = (5 ** 0.5 - 1) / 2  # steps of the golden section fill the circle of hues evenly
    shades = ((0.85, 0.95), (0.55, 0.8), (0.95, 0.6))
    colours = []
    for index in range(num_classes):
        saturation, value = shades[index % len(shades)]
        red, green, blue = colorsys.hsv_to_rgb(index * golden % 1., saturation, value)
        colours.append((round(255 * red), round(255 * green), round(255 * blue)))
    return colours


def overlay(
        image: Image.Image,
        classes: np.ndarray,
        num_classes: int,
        opacity: float = 0.6,
) -> Image.Image:
    """The picture with the colour of each pixel's class laid over it.

    >>> overlay(Image.new('RGB', (3, 2)), np.zeros((2, 3), int), num_classes=2, opacity=1.).getpixel((0, 0))
    (242, 36, 36)

    Args:
        image: RGB.
        classes: whole numbers [height, width]; pixels outside [0, num_classes) keep the colour of the picture.
        num_classes: K; fixes the colours.
        opacity: 0: the picture alone, 1: the colours alone.

    Raises:
        ValueError: `classes` is not of the picture's size, or an opacity outside [0, 1].
    """
    if not 0 <= opacity <= 1:
        raise ValueError(f'opacity is {opacity:g}: it must be from 0 (the picture) to 1 (the colours).')
    if classes.shape != image.size[::-1]:
        raise ValueError(f'classes {classes.shape}: the picture has {image.size[1]} rows and {image.size[0]} columns.')
    pixels = pil_to_tensor(image.convert('RGB'))  # [3, height, width]
    occurring = [index for index in np.unique(classes).tolist() if 0 <= index < num_classes]
    if not occurring:
        return to_pil_image(pixels)
    colours = class_colours(num_classes)
    masks = torch.stack([torch.from_numpy(classes == index) for index in occurring])
    return to_pil_image(draw_segmentation_masks(pixels, masks, opacity, [colours[index] for index in occurring]))


def comparison(
        image: Optional[Image.Image],
        panels: Mapping[str, np.ndarray],
        names: Sequence[str],
) -> Image.Image:
    """The picture, then each of `panels` laid over it, side by side under their titles, above a legend.

    >>> comparison(None, {'352 px': np.zeros((30, 40), int), '96 px': np.ones((30, 40), int)}, ['sky', 'road']).size
    (104, 114)

    Args:
        image: RGB; None: the colours of the panels alone, as for a photograph that must not be passed on.
        panels: title -> classes [height, width], such as the ground truth and a prediction at each resolution.
        names: of the classes; those that occur in a panel are in the legend.
    """
    count = len(names)
    if image is None:
        height, width = next(iter(panels.values())).shape
        image = Image.new('RGB', (width, height), _WHITE)
        pictures = {title: overlay(image, panel, count, opacity=1.) for title, panel in panels.items()}
    else:
        pictures = {'picture': image, **{title: overlay(image, panel, count) for title, panel in panels.items()}}
    width = len(pictures) * (image.width + _GAP) + _GAP
    occurring = sorted({int(index) for panel in panels.values() for index in np.unique(panel) if 0 <= index < count})
    legend = _legend(occurring, names, width)
    top = _LINE + _GAP
    canvas = Image.new('RGB', (width, top + image.height + _GAP + legend.height), _WHITE)
    draw, font = ImageDraw.Draw(canvas), _font()
    for position, (title, picture) in enumerate(pictures.items()):
        left = _GAP + position * (image.width + _GAP)
        draw.text((left, _GAP // 2), title, fill=_BLACK, font=font)
        canvas.paste(picture, (left, top))
    canvas.paste(legend, (0, top + image.height + _GAP))
    return canvas


def _legend(indices: Sequence[int], names: Sequence[str], width: int) -> Image.Image:
    """A coloured square and a name for each class, in as many rows as they need."""
    colours, font, square = class_colours(len(names)), _font(), _LINE - 6
    places, left, row = [], _GAP, 0
    for index in indices:
        length = square + 2 * _GAP + round(font.getlength(names[index])) + _GAP
        if left + length > width and left > _GAP:
            left, row = _GAP, row + 1
        places.append((index, left, row * _LINE))
        left += length
    legend = Image.new('RGB', (width, (row + 1) * _LINE + _GAP), _WHITE)
    draw = ImageDraw.Draw(legend)
    for index, left, top in places:
        draw.rectangle((left, top, left + square, top + square), fill=colours[index], outline=_BLACK)
        draw.text((left + square + _GAP // 2, top), names[index], fill=_BLACK, font=font)
    return legend


def _font() -> ImageFont.ImageFont:
    return ImageFont.load_default()  # type: ignore[return-value]
