"""Where the runs of the preset `ladder` start: ImageNet's EfficientNet-Lite0, with the outputs of a few classes."""
import io
from pathlib import Path
from typing import Sequence

import torch
from timm.data import ImageNetInfo

from benchmarks.recalibration import load_network
from rs_timm import extract, get_resolutions
from rs_timm.atomic import write_bytes

__all__ = ['write_start']


def write_start(path: Path, class_names: Sequence[str]) -> None:
    """Write the network's weights, its classifier cut down to `class_names`: logits restricted to these classes.

    Args:
        path: state dict of a plain network.
        class_names: ImageNet synsets, in the order of the outputs.

    Raises:
        ValueError: a name that is no synset of ImageNet's 1000 classes.
    """
    known = ImageNetInfo().label_names()
    foreign = [name for name in class_names if name not in known]
    if foreign:
        raise ValueError(f'class {foreign[0]!r} is none of ImageNet-1k: this experiment needs folders named by synset, '
                         'as in Imagenette.')
    network = load_network('')
    state = extract(network, get_resolutions(network)[0]).state_dict()
    rows = torch.tensor([known.index(name) for name in class_names])
    for name in ('classifier.weight', 'classifier.bias'):
        state[name] = state[name][rows]
    stream = io.BytesIO()
    torch.save(state, stream)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes(path, stream.getvalue())
