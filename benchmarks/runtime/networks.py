"""Networks by name, and the pictures that they classify.

A name is one of timm's registry (`rs_resnet50`: shipped weights if the project has some, else random ones, for
latency), or 'lite0': EfficientNet-Lite0 with its ImageNet weights, made switchable.
"""
import random
from dataclasses import dataclass
from pathlib import Path
from typing import List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn

import rs_timm
from rs_timm.data import ImageFiles
from rs_timm.models import manifest

__all__ = ['LITE0', 'Network', 'labelled', 'load', 'made_up_pictures']

LITE0 = 'lite0'
RANDOM = 'random'


@dataclass(frozen=True)
class Network:
    """A switchable model in evaluation mode, what its weights are, and its exported file."""

    name: str
    model: nn.Module
    weights: str
    file: Path

    @property
    def trained(self) -> bool:
        return self.weights != RANDOM

    @property
    def resolutions(self) -> Tuple[int, ...]:
        return rs_timm.get_resolutions(self.model)


def load(name: str, folder: Path) -> Network:
    """The network `name`, exported into `folder`."""
    torch.manual_seed(0)
    if name == LITE0:
        from benchmarks.recalibration import load_network
        model, weights = load_network(''), 'ImageNet, made switchable'
    else:
        shipped = next((key for key in manifest() if key.partition('.')[0] == name or key == name), None)
        model = timm.create_model(shipped or name, pretrained=shipped is not None)
        weights = shipped or RANDOM
    model = model.eval()
    file = folder / f'{name}.onnx'
    rs_timm.export_onnx(model, file)
    return Network(name, model, weights, file)


def made_up_pictures(folder: Path, count: int) -> List[Path]:
    """JPEGs of smooth noise, of the size that is usual in ImageNet."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f'{number:04d}.jpg' for number in range(count)]
    for file in files:
        noise = Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))
        noise.resize((500, 375), Image.Resampling.BICUBIC).save(file, quality=90)
    return files


def pictures(data: Optional[Path], folder: Path, count: int, seed: int = 0) -> List[Path]:
    """`count` pictures below `data`, drawn with a seed; made up without it."""
    return ImageFiles(data, seed).files[:count] if data else made_up_pictures(folder / 'pictures', count)


def labelled(
        data: Path,
        label_names: Optional[Sequence[str]],
        count: Optional[int] = None,
) -> Tuple[List[Path], np.ndarray]:
    """Pictures DIR/CLASS/* and their classes: the position of the folder's name among the names of the outputs.

    Args:
        data: the folder DIR.
        label_names: of the outputs; None: the synsets of ImageNet.
        count: draw so many, the same each time, as many of each class as possible; None: all.

    Raises:
        ValueError: a folder that is no class of the network.
    """
    names = list(label_names) if label_names else ImageNetInfo().label_names()
    folders = sorted(path for path in data.iterdir() if path.is_dir())
    unknown = [path.name for path in folders if path.name not in names]
    if unknown or not folders:
        raise ValueError(f'{data}: its folders {unknown[:3]} are no classes of the network; expected DIR/CLASS/*.')
    drawn = random.Random(0)
    shuffled = [drawn.sample(files, len(files)) for files in (sorted(path.iterdir()) for path in folders)]
    turns = max(map(len, shuffled))
    mixed = [files[turn] for turn in range(turns) for files in shuffled if turn < len(files)][:count]
    return mixed, np.array([names.index(path.parent.name) for path in mixed])
