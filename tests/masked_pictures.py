"""Tiny pictures with masks, for the tests of segmentation: the class of a pixel is its colour."""
from pathlib import Path

import numpy as np
from PIL import Image

COLOURS = np.array([(200, 40, 40), (40, 200, 40), (40, 40, 200)], np.uint8)
NAMES = ('red', 'green', 'blue')
IGNORE = 7
SIZE = (64, 48)  # width, height


def random_mask(generator, size=SIZE):
    """Rectangles of classes, and a strip without one."""
    width, height = size
    mask = np.full((height, width), generator.integers(3), np.uint8)
    for _ in range(3):
        y, x = generator.integers(height - 16), generator.integers(width - 16)
        mask[y:y + 16, x:x + 16] = generator.integers(3)
    mask[:2] = IGNORE
    return mask


def picture_of(mask):
    return Image.fromarray(COLOURS[np.where(mask == IGNORE, 0, mask)])


def make_masked(root, train=8, val=5, sizes=(SIZE,)):
    """ROOT/SPLIT/images/*.png and ROOT/SPLIT/masks/*.png; pictures take the sizes in turn."""
    generator = np.random.default_rng(0)
    for split, count in (('train', train), ('val', val)):
        for folder in ('images', 'masks'):
            (Path(root) / split / folder).mkdir(parents=True)
        for number in range(count):
            mask = random_mask(generator, sizes[number % len(sizes)])
            picture_of(mask).save(Path(root) / split / 'images' / f'{number}.png')
            Image.fromarray(mask).save(Path(root) / split / 'masks' / f'{number}.png')
    return Path(root)
