"""What does a batch at S resolutions cost to load?

(a) One multi-resolution loader against the S separate loaders of timm that it replaces, on JPEGs of ImageNet's size,
for S = 1 to 5: the same crop distribution, flips and normalisation on both sides, and nothing else. Both sides pass
over the same files in turn, in one run; quoted are medians over the rounds, the ratio being that of each round.
(b) What decoding at a reduced scale (`draft`) gains in speed, on how many of the crops, and what it changes in the
pixels (mean absolute difference, levels of 255), for two sizes of file.

    python -m benchmarks.data_pipeline [--data DIR] [--workers 2] [--rounds 5]

`--data` holds photographs, which are resized to the size in question and saved as JPEGs of quality 90 in a temporary
folder; without it, pictures are made up (smooth noise).
"""
import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence

import numpy as np
import PIL
import torch
from PIL import Image
from timm.data import create_dataset, create_loader
from timm.data.transforms import RandomResizedCropAndInterpolation

from benchmarks.environment import RESULTS, describe
from benchmarks.store import put
from benchmarks.timing import seconds
from rs_timm.data import ImageFiles, create_multires_loader, open_image
from rs_timm.data.order import seeded
from rs_timm.data.views import TrainViews

RESOLUTIONS = (224, 192, 160, 128, 96)
IMAGENET_SIZE = (500, 375)
LARGE_SIZE = (1000, 750)
OURS: Dict[str, Dict[str, Any]] = {
    'loader, pillow': dict(mode='loader', resizer='pillow'),
    'loader, torch': dict(mode='loader', resizer='torch'),
    'device': dict(mode='device'),
}


def write_jpegs(folder: Path, count: int, size: Sequence[int], data: Optional[Path]) -> float:
    """Fill `folder` with `count` JPEGs of `size` (width, height); returns their mean size in KiB."""
    target = folder / 'train' / 'class'
    target.mkdir(parents=True)
    photographs = [open_image(path) for path in ImageFiles(data).files[:count]] if data else _smooth_noise(count)
    for number, picture in zip(range(count), photographs):
        picture.resize(tuple(size), Image.Resampling.BICUBIC).save(target / f'{number:05d}.jpg', quality=90)
    return sum(path.stat().st_size for path in target.iterdir()) / count / 1024


def _smooth_noise(count: int) -> Iterable[Image.Image]:
    rng = np.random.default_rng(0)
    for _ in range(count):
        yield Image.fromarray(rng.integers(0, 256, (48, 64, 3), dtype=np.uint8))


def seconds_of_a_pass(loader: Iterable[Any]) -> float:
    return seconds(lambda: sum(1 for _ in loader))


def separate_loaders(folder: Path, sizes: Sequence[int], batch: int, workers: int) -> Callable[[], float]:
    """Seconds of a pass over each of timm's loaders, one after the other."""
    loaders = [
        create_loader(
            create_dataset('', root=str(folder), split='train'),
            (3, size, size),
            batch,
            is_training=True,
            color_jitter=None,
            interpolation='bilinear',
            num_workers=workers,
            device=torch.device('cpu'),
        )
        for size in sizes
    ]
    return lambda: sum(seconds_of_a_pass(loader) for loader in loaders)


def against_separate_loaders(folder: Path, count: int, args: argparse.Namespace) -> List[Dict[str, object]]:
    rows: List[Dict[str, object]] = []
    count = count // args.batch * args.batch  # both sides leave out the rest
    for amount in range(1, len(RESOLUTIONS) + 1):
        sizes = RESOLUTIONS[:amount]
        theirs = separate_loaders(folder, sizes, args.batch, args.workers)
        ours = {
            name: create_multires_loader(folder, sizes, batch_size=args.batch, num_workers=args.workers, **options)
            for name, options in OURS.items()
        }
        theirs(), [seconds_of_a_pass(loader) for loader in ours.values()]  # workers start, files enter the cache
        rounds = []
        for _ in range(args.rounds):
            before = theirs()
            times = {name: seconds_of_a_pass(loader) for name, loader in ours.items()}
            rounds.append((times, (before + theirs()) / 2.))  # their time around ours: drift cancels
        for name in ours:
            rows.append(dict(
                question='against separate loaders',
                pipeline=name,
                sizes=' '.join(map(str, sizes)),
                pictures_per_s=count / statistics.median(times[name] for times, _ in rounds),
                other_pictures_per_s=count / statistics.median(other for _, other in rounds),
                ratio=statistics.median(other / times[name] for times, other in rounds),
            ))
    return rows


def draft_rows(folder: Path, args: argparse.Namespace) -> List[Dict[str, object]]:
    """Views of each file with and without draft, in this process."""
    dataset = create_dataset('', root=str(folder), split='train')
    paths = [Path(path) for path in dataset.filenames(absolute=True)]
    rows: List[Dict[str, object]] = []
    for sizes in (RESOLUTIONS, (128, 112, 96, 80, 64)):
        exact, draft = (TrainViews(sizes, sizes, resizer='torch', draft=value) for value in (False, True))
        pairs, reduced, differences = [], 0, []
        for number, path in enumerate(paths):
            start = time.perf_counter()
            views = _views(exact, path, number)
            middle = time.perf_counter()
            drafted = _views(draft, path, number)
            pairs.append((middle - start, time.perf_counter() - middle))
            reduced += _crop_side(path, number) >= 2 * sizes[0]
            differences += [np.abs(views[s].astype(int) - drafted[s]).mean() for s in sizes]
        rows.append(dict(
            question='draft against exact',
            pipeline='loader, torch, no workers',
            sizes=' '.join(map(str, sizes)),
            pictures_per_s=len(pairs) / sum(b for _, b in pairs),
            other_pictures_per_s=len(pairs) / sum(a for a, _ in pairs),
            ratio=sum(a for a, _ in pairs) / sum(b for _, b in pairs),
            reduced_share=reduced / len(paths),
            difference=float(np.mean(differences)),
        ))
    return rows


def _views(transform: TrainViews, path: Path, number: int) -> Dict[int, np.ndarray]:
    with Image.open(path) as picture, seeded(0, 0, number):
        return transform(picture).images


def _crop_side(path: Path, number: int) -> int:
    with Image.open(path) as picture, seeded(0, 0, number):
        _, _, height, width = RandomResizedCropAndInterpolation.get_params(picture, (0.08, 1.), (3 / 4, 4 / 3))
    return min(height, width)


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder with photographs')
    parser.add_argument('--count', type=int, default=256, help='pictures')
    parser.add_argument('--batch', type=int, default=32)
    parser.add_argument('--workers', type=int, default=2, help='of each loader')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=RESULTS / 'data_pipeline.csv')
    args = parser.parse_args(argv)
    rows: List[Dict[str, object]] = []
    environment = dict(describe(), pillow=PIL.__version__, workers=str(args.workers), batch=str(args.batch))
    print(', '.join(f'{key} {value}' for key, value in environment.items()))
    for size in (IMAGENET_SIZE, LARGE_SIZE):
        with tempfile.TemporaryDirectory() as folder:
            kib = write_jpegs(Path(folder), args.count, size, args.data)
            made = against_separate_loaders(Path(folder), args.count, args) if size == IMAGENET_SIZE else []
            for row in [*made, *draft_rows(Path(folder), args)]:
                rows.append(dict(row, files=f'{size[0]}x{size[1]} JPEG, {kib:.0f} KiB', **environment))
                _show(rows[-1])
    put(args.out, rows)


def _show(row: Dict[str, Any]) -> None:
    draft = f'; {row["reduced_share"]:.0%} reduced, difference {row["difference"]:.2f}' if 'difference' in row else ''
    speeds = f'{row["pictures_per_s"]:8.1f} /s, other {row["other_pictures_per_s"]:8.1f} /s'
    print(f'{row["question"]:25} {row["files"]:24} {row["pipeline"]:26} {row["sizes"]:20} {speeds}, '
          f'ratio {row["ratio"]:.2f}{draft}', flush=True)


if __name__ == '__main__':
    main()
