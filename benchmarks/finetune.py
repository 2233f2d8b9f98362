"""Own classes from ImageNet weights: one RS-Net, or a network for each size?

EfficientNet-Lite0, from the ImageNet weights that ship, on a small set of pictures with classes of its own, with the
recipe `finetune`, for the same number of epochs: the RS-Net (MRED), the same without distillation ('parallel'), and a
network for each size ('individual'). The individual network of the largest size is tested at all sizes too
('largest'). All pictures of DIR that are not among those to train on are tested on, by the folder that `rs-timm train`
leaves and the runtime. Epochs and crops are chosen on the training pictures kept aside, a crop for each network, and
for 'largest' one for each size. A run that was stopped goes on where it was; rows that are there are kept. Other
sizes, settings or test pictures make another comparison, with a table of its own.

    python -m benchmarks.finetune --data DIR --runs FOLDER [--epochs 3] [--sizes 224 160 96] [--served]

DIR holds train/CLASS/* and val/CLASS/*. `--served`: milliseconds of the RS-Net of the first seed, once it is trained,
and its top-1 with weights in float16 ('half').
"""
import argparse
import os
import random
import time
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Dict, Iterator, List, Sequence, Tuple

import numpy as np
import timm
import torch

import rs_timm
from benchmarks.adaptation import interval
from benchmarks.environment import RESULTS, describe
from benchmarks.store import NOT_MEASURED, Row, by_columns, markdown, packed, put, read, section, unpacked
from benchmarks.timing import ratio_of_visits, take_turns
from rs_timm.data.folders import find_pictures, hold_out, open_split
from rs_timm.hub import save_pretrained
from rs_timm.resolutions import check_resolutions
from rs_timm.runtime import Session, choose_crops
from rs_timm.training import Options, Recipe, Trained, get_recipe, keep_freed_memory, train
from rs_timm.training.tasks import Loaders
from rs_timm.training.train import choose_crop

TABLE, LATENCY = RESULTS / 'finetune.csv', RESULTS / 'finetune_latency.csv'
COMPARISON = ('data', 'pictures', 'tested', 'sizes', 'epochs', 'settings')
KEY = (*COMPARISON, 'method', 'seed', 'resolution')
MODEL, START = 'tf_efficientnet_lite0', 'rs_efficientnet_lite0'
SIZES = (224, 192, 160, 128, 96)
CANDIDATES = (1., 0.875, 0.75)  # crops for networks at the sizes that they were trained for
SMALLER = (*CANDIDATES, 0.65, 0.55)  # and for the network of the largest size at the others
METHODS = {
    'rs_net': 'RS-Net (MRED)',
    'parallel': 'the same without distillation',
    'individual': 'a network for each size',
    'largest': 'the one for the largest size, at its best crops',
    'half': 'RS-Net, weights in float16',
}
TRAINED = ('rs_net', 'parallel', 'individual')
BATCH = 32
ENGINES = ('openvino', 'torch')
ORDER = (('rs_net', 0), ('individual', 0), ('rs_net', 1), ('individual', 1), ('parallel', 0), ('parallel', 1))


@dataclass(frozen=True)
class Job:
    """A network to train: for all sizes, or for one."""

    method: str
    seed: int
    sizes: Tuple[int, ...]

    @property
    def name(self) -> str:
        sizes = () if self.sizes == SIZES else self.sizes
        return '_'.join(map(str, (self.method, *sizes, f's{self.seed}')))

    def recipe(self, args: argparse.Namespace) -> Recipe:
        """The same for all, but for sizes and losses; no early end, so that all have as many epochs."""
        return get_recipe('finetune', init=START, epochs=args.epochs, resolutions=self.sizes, seed=self.seed,
                          mred='none' if self.method == 'parallel' else 'full', patience=0, crop_choices=())


def jobs(sizes: Tuple[int, ...] = SIZES) -> Iterator[Job]:
    for method, seed in ORDER:
        for own in [(size,) for size in sizes] if method == 'individual' else [sizes]:
            yield Job(method, seed, own)


def small_folder(data: Path, place: Path, per_class: int) -> Path:
    """A folder with links: train/ has `per_class` training pictures of each class, drawn at random, test/ the rest."""
    for folder in sorted(path for path in (data / 'train').iterdir() if path.is_dir()):
        names = find_pictures(folder)[0]
        chosen = set(random.Random(0).sample(names, min(per_class, len(names))))
        parts = [(folder / name, 'train' if name in chosen else 'test') for name in names]
        parts += [(path, 'test') for path in (data / 'val' / folder.name).iterdir()]
        for path, split in parts:
            link = place / split / folder.name / path.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if link.resolve() != path.resolve():
                os.symlink(path.resolve(), link)
    return place


def settings(recipe: Recipe) -> str:
    """The settings of a recipe that are not those of all recipes, but for what is a matter of the method."""
    own = {name: mine for name, (mine, _) in recipe.differences(asdict(Recipe())).items()}
    return ' '.join(f'{name}={value}'.replace(' ', '') for name, value in own.items()
                    if name not in ('resolutions', 'mred', 'seed', 'init', 'patience', 'crop_choices'))


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


def opened(folder: Path, engine: str = 'openvino', **options: Any) -> Session:
    return Session(timm.create_model(f'local-dir:{folder}', pretrained=True).eval(), engine, **options)


def measure(job: Job, args: argparse.Namespace, data: Path) -> None:
    """Train, test and note a job; with the network of the largest size, its row at all sizes too."""
    found, cpu_seconds = trained(job, args, data)
    recipe, folder = job.recipe(args), args.runs / f'{data.name}_{args.epochs}' / job.name
    columns = dict(cpu_seconds=f'{cpu_seconds:.0f}', threads=args.threads)
    network: Any = found.model
    crop = choose_crop(network, Loaders(str(data), recipe, workers=0), replace(recipe, crop_choices=CANDIDATES))
    network.pretrained_cfg = network.default_cfg = {**network.pretrained_cfg, 'crop_pct': crop}
    names = dict(label_names=found.class_names)
    crops = dict.fromkeys(job.sizes, crop)
    session = opened(save_pretrained(network, folder / 'model', model_config=names), threads=args.threads)
    note(job.method, job.seed, tested(session, data, crops), crops, args, **columns)
    if job.sizes == args.sizes[:1]:
        everywhere = rs_timm.switchable(rs_timm.extract(network, args.sizes[0]), args.sizes).eval()
        session = Session(everywhere, 'openvino', threads=args.threads)
        crops = chosen_crops(session, recipe, data)
        note('largest', job.seed, tested(session, data, crops), crops, args, **columns)


def tested(session: Session, data: Path, crops: Dict[int, float]) -> Dict[int, np.ndarray]:
    """Size -> which of the test pictures are answered rightly, bool [N]."""
    files, targets = files_of(open_split(str(data), 'test'))
    right = {}
    for size, crop in crops.items():
        make = replace(session.preprocessing, crop_pct=crop)
        found = [session(make(files[i:i + BATCH], size), size).argmax(1) for i in range(0, len(files), BATCH)]
        right[size] = np.concatenate(found) == targets
    return right


def files_of(split: Any) -> Tuple[List[str], np.ndarray]:
    """The files of a part of a folder, and their classes."""
    return ([place.path for _, place, _ in split.reader.samples],
            np.array([target for *_, target in split.reader.samples]))


def chosen_crops(session: Session, recipe: Recipe, data: Path) -> Dict[int, float]:
    """The crops with the best accuracy on the training pictures that were kept aside."""
    _, held = hold_out(open_split(str(data), 'train'), recipe.val_fraction, recipe.seed)
    files, targets = files_of(held)
    return choose_crops(session, files, targets.tolist(), candidates=SMALLER).crops


def note(method: str, seed: int, right: Dict[int, np.ndarray], crops: Dict[int, float], args: argparse.Namespace,
         **columns: Any) -> None:
    rows = [dict(key(args, method, seed), resolution=size, crop=crops[size], top1=f'{100 * own.mean():.2f}',
                 right=packed(own), **columns, **environment()) for size, own in right.items()]
    put(args.out, rows, KEY)
    print(f'{method} s{seed}: ' + ', '.join(f"{row['resolution']} px (crop {row['crop']:g}) {row['top1']}" for row in
                                           rows), flush=True)


def environment() -> Dict[str, Any]:
    return {name: value for name, value in describe().items() if name != 'threads'}


def key(args: argparse.Namespace, method: str, seed: int) -> Dict[str, Any]:
    recipe = Job(method, seed, args.sizes).recipe(args)
    return dict(data=args.data.name, pictures=args.pictures, tested=args.tested, sizes=' '.join(map(str, args.sizes)),
                epochs=args.epochs, settings=settings(recipe), method=method, seed=seed)


def done(job: Job, args: argparse.Namespace) -> bool:
    """Whether the rows of a job are all there."""
    methods = [job.method, *['largest'] * (job.sizes == args.sizes[:1])]
    return all(read(args.out, **key(args, method, job.seed), resolution=size)
               for method in methods for size in (args.sizes if method == 'largest' else job.sizes))


def served(job: Job, args: argparse.Namespace, data: Path) -> None:
    """Milliseconds of one ready picture at each size, engines and sizes in turns; and top-1 with weights in float16."""
    folder = args.runs / f'{data.name}_{args.epochs}' / job.name
    load = os.getloadavg()[0]  # what else the machine does makes milliseconds longer, and ratios less so
    sessions = {engine: opened(folder / 'model', engine, threads=args.threads) for engine in ENGINES}
    pictures = {size: np.random.default_rng(0).random((1, 3, size, size), np.float32) for size in job.sizes}
    times = take_turns({(engine, size): partial(session.run, x) for engine, session in sessions.items()
                        for size, x in pictures.items()}, calls=args.calls)
    rows = [dict(engine=engine, resolution=size, p50_ms=float(np.median(taken)),
                 ratio=ratio_of_visits(taken, times[engine, job.sizes[0]]), calls=taken.size, batch=1, load=load,
                 threads=args.threads, versions=' '.join(f'{n}={v}' for n, v in sessions[engine].versions.items()),
                 **environment()) for (engine, size), taken in times.items()]
    put(args.out.with_name(LATENCY.name), rows, ('engine', 'resolution'))
    for row in rows:
        print(f"{row['engine']} {row['resolution']} px: {row['p50_ms']:.2f} ms, {row['ratio']:.2f} of the largest")
    network = timm.create_model(f"local-dir:{folder / 'model'}", pretrained=True)
    half = opened(save_pretrained(network, folder / 'half', half=True), threads=args.threads)
    crops = dict.fromkeys(job.sizes, network.pretrained_cfg['crop_pct'])
    full = read(args.out, **key(args, job.method, job.seed))[0]
    note('half', job.seed, tested(half, data, crops), crops, args, cpu_seconds=full['cpu_seconds'],
         threads=args.threads)


@section('finetune', 'finetune_latency')
def finetune_section(rows: Sequence[Row], times: Sequence[Row]) -> str:
    """A table for each comparison, the last one first, and the milliseconds."""
    comparisons = dict.fromkeys(tuple(row[name] for name in COMPARISON) for row in reversed(rows))
    parts = [_comparison(by_columns(rows, **dict(zip(COMPARISON, values)))) for values in comparisons]
    if times:
        sizes = list(dict.fromkeys(row['resolution'] for row in times))
        lines = [[engine, *(f"{float(row['p50_ms']):.1f} ({float(row['ratio']):.2f})" for row in
                            by_columns(times, engine=engine))] for engine in ENGINES]
        first = times[0]
        table = markdown(['milliseconds', *(f'{size} px' for size in sizes)], lines)
        parts.append(f'{table}\n\nOf the RS-Net, for one ready picture, and as a share of the largest size: the median '
                     f"of {first['calls']} calls, all in turns; {first['device']}, {first['threads']} thread, "
                     f"{float(first['load']):.1f} other processes at work, {first['versions']}, "
                     f"torch {first['torch']}.")
    return '\n\n'.join(parts)


def _comparison(rows: Sequence[Row]) -> str:
    """Top-1 of each method at each size, mean over the seeds, and gains with their intervals."""
    first = rows[0]
    sizes, lines = [int(size) for size in first['sizes'].split()], []
    for method, title in METHODS.items():
        own = by_columns(rows, method=method)
        if own:
            seeds = sorted({row['seed'] for row in own})
            cells = [_cell(by_columns(own, resolution=size), len(seeds)) for size in sizes]
            lines.append([title, str(len(seeds)), *cells, _minutes(own)])
    for title, other in (('a network for each size', 'individual'), ('that without distillation', 'parallel')):
        if by_columns(rows, method=other):
            lines.append([f'RS-Net against {title}', '', *(_gain(rows, size, other) for size in sizes), ''])
    header = ['', 'seeds', *(f'{size} px' for size in sizes), 'minutes of a core']
    return (f"{markdown(header, lines)}\n\nTop-1 in percent on {first['tested']} test pictures, mean over the seeds; "
            f"{first['pictures']} training pictures of {first['data']}, {first['epochs']} epochs of `finetune`"
            f"{_unlike_now(first)}, from `{START}`. Minutes: what a core worked in training, mean over the seeds. "
            'Gains in points with the 95 % interval of a bootstrap over the pictures, paired by seed; '
            f"{first['device']}, {first['threads']} thread, torch {first['torch']}, timm {first['timm']}.")


def _unlike_now(row: Row) -> str:
    """What rows were measured with that the recipe has no more."""
    recipe = Job('rs_net', 0, SIZES).recipe(argparse.Namespace(epochs=int(row['epochs'])))
    then, now = (dict(part.split('=') for part in text.split()) for text in (row['settings'], settings(recipe)))
    unlike = [f'{name}={then.get(name, getattr(Recipe(), name))}' for name in {**now, **then}
              if then.get(name) != now.get(name)]
    return f" with {', '.join(unlike)}" if unlike else ''


def _cell(rows: Sequence[Row], seeds: int) -> str:
    """The mean of all seeds; a size that lacks one is not measured."""
    return f"{np.mean([float(row['top1']) for row in rows]):.1f}" if rows and len(rows) == seeds else NOT_MEASURED


def _minutes(rows: Sequence[Row]) -> str:
    """Of all networks of a method, each counted once: a network for all sizes has a row for each; none may lack."""
    per_seed: List[float] = []
    for seed in sorted({row['seed'] for row in rows}):
        own = by_columns(rows, seed=seed)
        several = own[0]['method'] == 'individual'
        if len(own) < len(own[0]['sizes'].split()):
            return NOT_MEASURED
        per_seed.append(sum(float(row['cpu_seconds']) for row in (own if several else own[:1])) / 60)
    return f'{np.mean(per_seed):.0f}' if per_seed else NOT_MEASURED


def _gain(rows: Sequence[Row], size: int, other: str) -> str:
    differences = []
    for mine in by_columns(rows, method='rs_net', resolution=size):
        for theirs in by_columns(rows, method=other, resolution=size, seed=mine['seed']):
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
    parser.add_argument('--methods', nargs='+', default=TRAINED, choices=TRAINED)
    parser.add_argument('--seeds', type=int, nargs='+', default=[0, 1])
    parser.add_argument('--sizes', type=int, nargs='+', default=SIZES)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--served', action='store_true', help='measure what serves, of the RS-Net of the first seed')
    parser.add_argument('--calls', type=int, default=200, help='that are timed, of each engine and size')
    parser.add_argument('--out', type=Path, default=TABLE)
    args = parser.parse_args()
    args.sizes = check_resolutions(args.sizes)
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    data = small_folder(args.data, args.runs / f'{args.data.name}_{args.per_class}', args.per_class)
    args.pictures, args.tested = (len(find_pictures(data / split)[0]) for split in ('train', 'test'))
    if args.served:
        served(Job('rs_net', args.seeds[0], args.sizes), args, data)
        return
    for job in jobs(args.sizes):
        if job.method in args.methods and job.seed in args.seeds and not done(job, args):
            measure(job, args, data)


if __name__ == '__main__':
    main()
