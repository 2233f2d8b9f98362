"""Networks by name, and the pictures that they classify.

A name is one of timm's registry (`rs_resnet50`: shipped weights if the project has some, else random ones, for
latency), or 'lite0': EfficientNet-Lite0 with its ImageNet weights, made switchable, and its last layer cut down to the
ten classes of Imagenette.
"""
import argparse
import random
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import rs_timm
from benchmarks.environment import RESULTS, describe
from benchmarks.store import by_columns, put, read
from rs_timm.data import ImageFiles
from rs_timm.models import manifest
from rs_timm.runtime import Session

LITE0 = 'lite0'
IMAGENETTE = ('n01440764', 'n02102040', 'n02979186', 'n03000684', 'n03028079', 'n03394916', 'n03417042', 'n03425413',
              'n03445777', 'n03888257')  # synsets
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
        model, weights = _lite0(), 'ImageNet, cut to ten classes'
    else:
        shipped = next((key for key in manifest() if key.partition('.')[0] == name or key == name), None)
        model = timm.create_model(shipped or name, pretrained=shipped is not None)
        weights = shipped or RANDOM
        if shipped is None:
            _randomise(model)
    model = model.eval()
    file = folder / f'{name}.onnx'
    rs_timm.export_onnx(model, file)
    return Network(name, model, weights, file)


def _lite0() -> nn.Module:
    from benchmarks.recalibration import MEAN, STD, load_network
    model = load_network()
    of_classes(model, IMAGENETTE)
    model.pretrained_cfg.update(mean=(MEAN,) * 3, std=(STD,) * 3)  # of these weights
    return model


def of_classes(model: nn.Module, synsets: Sequence[str]) -> None:
    """Leave, in place, of a classifier of ImageNet's 1000 classes the outputs for `synsets`.

    Raises:
        ValueError: a name that is no synset of these classes.
    """
    network: Any = model
    known = ImageNetInfo().label_names()
    foreign = [name for name in synsets if name not in known]
    if foreign:
        raise ValueError(f'class {foreign[0]!r} is none of ImageNet-1k: folders named by synset are needed, as in '
                         'Imagenette.')
    rows = [known.index(synset) for synset in synsets]
    old = network.get_classifier()
    network.reset_classifier(len(rows))
    new = network.get_classifier()
    with torch.no_grad():
        new.weight.copy_(old.weight[rows])
        new.bias.copy_(old.bias[rows])
    network.pretrained_cfg = dict(network.pretrained_cfg, num_classes=len(rows), label_names=list(synsets))


def _randomise(model: nn.Module) -> None:
    """Give each BatchNorm set values of its own.

    In a fresh network the last gammas of the blocks are 0, so that folded weights are 0, too. Engines and exporters
    store one of those for all, so that a plain network takes less memory than it will once it is trained.
    """
    for bn in model.modules():
        if isinstance(bn, _BatchNorm):
            for tensor, low, high in ((bn.weight, 0.3, 0.7), (bn.bias, -0.1, 0.1), (bn.running_var, 0.8, 1.2)):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]


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


def parser_of_one(description: Optional[str], table: str) -> argparse.ArgumentParser:
    """The options of a benchmark whose table holds one network."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with val/CLASS/*')
    parser.add_argument('--model', default='rs_resnet18')
    parser.add_argument('--engine', default='openvino')
    parser.add_argument('--precision', default='float32')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--again', action='store_true', help='measure even if the table is of this network')
    parser.add_argument('--out', type=Path, default=RESULTS / f'{table}.csv')
    return parser


def measure_one(
        args: argparse.Namespace,
        compare: Callable[[Session, argparse.Namespace], Sequence[Mapping[str, Any]]],
        **settings: Any,
) -> bool:
    """Fill the table of one trained network, unless it is there already; returns whether anything was measured.

    Args:
        args: of `parser_of_one`.
        compare: makes the rows, without the columns about network and machine.
        settings: columns which say, with those about the network, what the table was measured with.
    """
    common = dict(model=args.model, engine=args.engine, precision=args.precision)
    there = read(args.out)
    if not args.again and there and by_columns(there, **common, **settings) == there:
        print(f'{args.out} has these rows; --again measures anew')
        return False
    with tempfile.TemporaryDirectory() as folder:
        network = load(args.model, Path(folder))
        if not network.trained:
            raise SystemExit(f'{args.model} has random weights: its answers mean nothing; name another model.')
        session = Session(network.file, args.engine, args.precision, args.threads)
        rows = compare(session, args)
    columns = dict(model=args.model, weights=network.weights, engine=session.engine_name, precision=args.precision,
                   **environment(args.threads))
    put(args.out, [dict(row, **columns) for row in rows])
    return True


def environment(threads: int) -> Dict[str, str]:
    """Columns about the machine and the versions of all that answers here."""
    columns = {key: value for key, value in describe().items() if key not in ('dtype', 'threads')}
    return dict(columns, threads=str(threads), **{name: version(name) for name in ('openvino', 'onnxruntime')})
