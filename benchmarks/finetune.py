"""Own classes from ImageNet weights: one RS-Net, or a network for each size?

EfficientNet-Lite0, from the ImageNet weights that ship, on a small set of pictures with classes of its own, with the
recipe `finetune`, for the same number of epochs: the RS-Net (MRED), the same without distillation ('parallel'), and a
network for each size ('individual'). The individual network of the largest size is tested at all sizes too
('largest'). Epochs and crops are chosen on the training pictures kept aside, a crop for each network, and for 'largest'
one for each size: nothing is chosen on DIR/val, which is tested on. A run that was stopped goes on where it was; rows
that are there are kept.

    python -m benchmarks.finetune --data DIR --runs FOLDER [--per-class 100] [--epochs 3] [--threads 2]

DIR holds train/CLASS/* and val/CLASS/*.
"""
import argparse
import os
import random
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import torch
from torch import nn

import rs_timm
from benchmarks.adaptation import interval
from benchmarks.environment import RESULTS, describe
from benchmarks.store import NOT_MEASURED, Row, by_columns, markdown, packed, put, read, section, unpacked
from rs_timm.analysis import Predictions, predict
from rs_timm.crops import CropPct
from rs_timm.data import create_multires_loader
from rs_timm.data.folders import find_pictures, hold_out, open_split
from rs_timm.runtime import Session, choose_crops
from rs_timm.training import Options, Recipe, Trained, get_recipe, keep_freed_memory, train
from rs_timm.training.tasks import Loaders
from rs_timm.training.train import choose_crop

TABLE = RESULTS / 'finetune.csv'
KEY = ('data', 'pictures', 'epochs', 'method', 'seed', 'resolution')
MODEL, START = 'tf_efficientnet_lite0', 'rs_efficientnet_lite0'
SIZES = (224, 192, 160, 128, 96)
CANDIDATES = (1., 0.875, 0.75)  # crops for networks at the sizes that they were trained for
SMALLER = (*CANDIDATES, 0.65, 0.55)  # and for the network of the largest size at the others
METHODS = {
    'rs_net': 'RS-Net (MRED)',
    'parallel': 'the same without distillation',
    'individual': 'a network for each size',
    'largest': 'the one for the largest size, at its best crops',
}
ORDER = (('rs_net', 0), ('individual', 0), ('rs_net', 1), ('individual', 1), ('parallel', 0), ('parallel', 1))


@dataclass(frozen=True)
class Job:
    """A network to train: for all sizes, or for one."""

    method: str
    seed: int
    sizes: Tuple[int, ...]

    @property
    def name(self) -> str:
        return '_'.join(map(str, (self.method, *(self.sizes if len(self.sizes) == 1 else ()), f's{self.seed}')))

    def recipe(self, args: argparse.Namespace) -> Recipe:
        """The same for all, but for sizes and losses; no early end, so that all have as many epochs."""
        return get_recipe('finetune', init=START, epochs=args.epochs, resolutions=self.sizes, seed=self.seed,
                          mred='none' if self.method == 'parallel' else 'full', patience=0, crop_choices=())


def jobs() -> Iterator[Job]:
    for method, seed in ORDER:
        for sizes in [(size,) for size in SIZES] if method == 'individual' else [SIZES]:
            yield Job(method, seed, sizes)


def small_folder(data: Path, place: Path, per_class: int) -> Path:
    """A folder with links to `per_class` training pictures of each class, drawn at random, and to all of DIR/val."""
    for folder in sorted(path for path in (data / 'train').iterdir() if path.is_dir()):
        names = find_pictures(folder)[0]
        chosen = place / 'train' / folder.name
        chosen.mkdir(parents=True, exist_ok=True)
        for name in random.Random(0).sample(names, min(per_class, len(names))):
            if not (chosen / Path(name).name).exists():
                os.symlink((folder / name).resolve(), chosen / Path(name).name)
    if not (place / 'val').exists():
        os.symlink((data / 'val').resolve(), place / 'val')
    return place


def trained(job: Job, args: argparse.Namespace, data: Path) -> Tuple[Trained, float]:
    """The network of a job, and the seconds that the cores worked on it; 'cpu' beside the run keeps those of parts."""
    folder = args.runs / f'{data.name}_{args.epochs}' / job.name
    spent, whole = folder / 'cpu', folder / 'whole'  # once it is whole, reading it again is no training
    before = float(spent.read_text()) if spent.is_file() else 0.
    start = time.process_time()
    try:
        made = train(MODEL, str(data), job.recipe(args), str(folder), resume=True,
                     options=Options(device='cpu', workers=0, progress=False, checkpoint_minutes=2.))
    finally:
        seconds = before + (0. if whole.is_file() else time.process_time() - start)
        if folder.is_dir():
            spent.write_text(str(seconds))
    whole.touch()
    return made, seconds


def tested(model: nn.Module, recipe: Recipe, data: Path, sizes: Sequence[int], crop_pct: CropPct) -> Predictions:
    loader = create_multires_loader(
        str(data), sizes, split='val', is_training=False, batch_size=64, num_workers=0, mean=recipe.mean,
        std=recipe.std, interpolation=recipe.interpolation, crop_pct=crop_pct, channels_last=recipe.channels_last)
    return predict(model, loader, sizes)


def measure(job: Job, args: argparse.Namespace, data: Path) -> None:
    """Train, test and note a job; with the network of the largest size, its row at all sizes too."""
    found, cpu_seconds = trained(job, args, data)
    recipe = job.recipe(args)
    common = dict(cpu_seconds=f'{cpu_seconds:.0f}', threads=args.threads)
    crop = choose_crop(found.model, Loaders(str(data), recipe, workers=0), replace(recipe, crop_choices=CANDIDATES))
    predictions = tested(found.model, recipe, data, job.sizes, crop)
    note(job.method, job.seed, predictions, dict.fromkeys(job.sizes, crop), args, **common)
    if job.sizes == SIZES[:1]:
        everywhere = rs_timm.switchable(rs_timm.extract(found.model, SIZES[0]), SIZES).eval()
        crops = chosen_crops(everywhere, recipe, data)
        note('largest', job.seed, tested(everywhere, recipe, data, SIZES, crops), crops, args, **common)


def chosen_crops(model: nn.Module, recipe: Recipe, data: Path) -> Dict[int, float]:
    """The crops with the best accuracy on the training pictures that were kept aside."""
    _, held = hold_out(open_split(str(data), 'train'), recipe.val_fraction, recipe.seed)
    files, targets = zip(*held.reader.samples)  # type: ignore[attr-defined]
    model.pretrained_cfg.update(  # type: ignore[operator, union-attr]
        mean=recipe.mean, std=recipe.std, interpolation=recipe.interpolation, crop_pct=recipe.crop_pct)
    return choose_crops(Session(model), files, targets, candidates=SMALLER).crops


def note(method: str, seed: int, predictions: Predictions, crops: Dict[int, float], args: argparse.Namespace,
         **columns: Any) -> None:
    rows = []
    for size, crop in crops.items():
        right = predictions.right(size)
        rows.append(dict(key(args, method, seed), resolution=size, crop=crop, top1=f'{100 * right.mean():.2f}',
                         tested=len(right), right=packed(right), **columns, **environment()))
    put(args.out, rows, KEY)
    print(f'{method} s{seed}: ' + ', '.join(f"{row['resolution']} px (crop {row['crop']:g}) {row['top1']}" for row in
                                           rows), flush=True)


def environment() -> Dict[str, Any]:
    return {name: value for name, value in describe().items() if name != 'threads'}


def key(args: argparse.Namespace, method: str, seed: int) -> Dict[str, Any]:
    return dict(data=args.data.name, pictures=args.pictures, epochs=args.epochs, method=method, seed=seed)


def done(job: Job, args: argparse.Namespace) -> bool:
    """Whether the rows of a job are all there."""
    methods = [job.method] + ['largest'] * (job.sizes == SIZES[:1])
    return all(read(args.out, **key(args, method, job.seed), resolution=size) for method in methods
               for size in (SIZES if method == 'largest' else job.sizes))


@section('finetune')
def finetune_section(rows: Sequence[Row]) -> str:
    """Top-1 of each method at each size, mean over the seeds, and the gain of the RS-Net with its interval."""
    lines = []
    for method, title in METHODS.items():
        own = by_columns(rows, method=method)
        seeds = sorted({row['seed'] for row in own})
        cells = [_cell(by_columns(own, resolution=size), len(seeds)) for size in SIZES]
        lines.append([title, str(len(seeds)) if seeds else '-', *cells, _minutes(own)])
    lines.append(['RS-Net against a network for each size', '', *(_gain(rows, size) for size in SIZES), ''])
    first = rows[0]
    header = ['', 'seeds', *(f'{size} px' for size in SIZES), 'minutes of two cores']
    return (f"{markdown(header, lines)}\n\nTop-1 in percent on {first['tested']} test pictures, mean over the seeds; "
            f"{first['pictures']} training pictures of {first['data']}, {first['epochs']} epochs of `finetune`, from "
            f'`{START}`. Minutes: the time that cores worked, on average over the seeds, over two. The last line has '
            "the gain in points with the 95 % interval of a bootstrap over the pictures, paired by seed; "
            f"{first['device']}, {first['threads']} threads, torch {first['torch']}, timm {first['timm']}.")


def _cell(rows: Sequence[Row], seeds: int) -> str:
    """The mean of all seeds; a size that lacks one is not measured."""
    return f"{np.mean([float(row['top1']) for row in rows]):.1f}" if rows and len(rows) == seeds else NOT_MEASURED


def _minutes(rows: Sequence[Row]) -> str:
    """Of all networks of a method, each counted once: a network for all sizes has a row for each of them."""
    per_seed: List[float] = []
    for seed in sorted({row['seed'] for row in rows}):
        own = by_columns(rows, seed=seed)
        several = own[0]['method'] == 'individual'
        per_seed.append(sum(float(row['cpu_seconds']) for row in (own if several else own[:1])) / 120)
    return f'{np.mean(per_seed):.0f}' if per_seed else NOT_MEASURED


def _gain(rows: Sequence[Row], size: int) -> str:
    differences = []
    for mine in by_columns(rows, method='rs_net', resolution=size):
        for theirs in by_columns(rows, method='individual', resolution=size, seed=mine['seed']):
            bits = [unpacked(row['right'], int(row['tested'])).astype(float) for row in (mine, theirs)]
            differences.append(bits[0] - bits[1])
    if not differences:
        return NOT_MEASURED
    gains = np.mean(differences, axis=0)  # of each picture, over the seeds
    low, high = interval(gains)
    return f'{100 * gains.mean():+.1f} ({low:+.1f} to {high:+.1f})'


SECTIONS = {'finetune': finetune_section}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, metavar='DIR')
    parser.add_argument('--runs', type=Path, default=Path('runs/finetune'), metavar='FOLDER')
    parser.add_argument('--per-class', type=int, default=100, help='training pictures of each class, at most')
    parser.add_argument('--epochs', type=int, default=3)
    parser.add_argument('--methods', nargs='+', default=list(METHODS)[:3], choices=list(METHODS)[:3])
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, default=TABLE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    data = small_folder(args.data, args.runs / f'{args.data.name}_{args.per_class}', args.per_class)
    args.pictures = len(find_pictures(data / 'train')[0])
    for job in jobs():
        if job.method in args.methods and job.seed in args.seeds and not done(job, args):
            measure(job, args, data)


if __name__ == '__main__':
    main()
