"""A network that was fine-tuned for one size, made switchable: what does adaptation without labels give it?

EfficientNet-Lite0 or -Lite1, from the ImageNet weights that ship, is fine-tuned at its own size alone, on some
pictures of DIR/train; `rs_timm.adapt` then teaches its smaller sizes on the same pictures, without their labels. Tested
is on DIR/val and on the training pictures that neither has seen, at the crops that adaptation chose, before and after,
on pictures kept aside. Rows that are there are not measured again.

    python -m benchmarks.adapted --data DIR [--models lite0 lite1] [--per-class 100] [--runs FOLDER]
"""
import argparse
import time
from dataclasses import replace
from pathlib import Path
from typing import List, Sequence, Tuple

import numpy as np
import torch
from torch import nn

from benchmarks.adaptation import interval
from benchmarks.environment import RESULTS, describe
from benchmarks.finetune import small_folder
from benchmarks.store import NOT_MEASURED, Row, by_columns, markdown, packed, put, read, section, unpacked
from rs_timm.adaptation import adapt, adapt_recipe
from rs_timm.crops import crops_of
from rs_timm.data.folders import find_pictures
from rs_timm.hub import save_pretrained
from rs_timm.loading import load_model
from rs_timm.runtime import Session
from rs_timm.training import Options, get_recipe, keep_freed_memory, train

TABLE = RESULTS / 'adapted.csv'
KEY = ('data', 'model', 'pictures', 'method', 'resolution')
NETWORKS = {'lite0': (224, 192, 160, 128, 96), 'lite1': (240, 192, 160, 128, 96)}
OPTIONS = Options(device='cpu', workers=0, progress=False, checkpoint_minutes=2.)
BATCH = 32


def test_pictures(data: Path, chosen: Path, count: int) -> Tuple[List[Path], List[str]]:
    """Files that were not trained on, and their classes: of DIR/val and of DIR/train, at most `count`, at random."""
    taken = {(chosen / 'train' / name).resolve() for name in find_pictures(chosen / 'train')[0]}
    files = [(data / split / name).resolve() for split in ('train', 'val') for name in find_pictures(data / split)[0]]
    files = [file for file in files if file not in taken]
    picks = np.random.default_rng(0).permutation(len(files))[:count]
    return [files[i] for i in picks], [files[i].parent.name for i in picks]


def one_size(name: str, data: Path, folder: Path, args: argparse.Namespace) -> nn.Module:
    """The network fine-tuned at its own size, with sets for all sizes, which are equal."""
    saved, sizes = folder / 'one_size', NETWORKS[name]
    if not saved.is_dir():
        recipe = get_recipe('finetune', init=f'rs_efficientnet_{name}', epochs=args.epochs, resolutions=sizes[:1])
        made = train(f'tf_efficientnet_{name}', str(data), recipe, str(folder / 'training'), True, OPTIONS)
        save_pretrained(made.model, saved, model_config=dict(label_names=made.class_names))
    return load_model(str(saved), resolutions=sizes)


def measure(name: str, data: Path, args: argparse.Namespace) -> None:
    """Fine-tune, adapt, test and note one network."""
    folder = args.runs / f'{args.data.name}_{name}_{args.pictures}'
    network = one_size(name, data, folder, args)
    whole, start = not (folder / 'adapted/last.pth').is_file(), time.process_time()
    found = adapt(network, data / 'train', folder / 'adapted', True, adapt_recipe(network), OPTIONS)
    seconds = time.process_time() - start
    files, labels = test_pictures(args.data, data, args.tested)
    names = sorted({path.name for path in (data / 'train').iterdir()})
    targets = np.array([names.index(label) for label in labels])
    for size in NETWORKS[name]:
        change = found.changes.get(size)
        native = crops_of(found.model)[size]  # type: ignore[index]
        before = answers(network, files, size, change.crop_before if change else native)
        after = answers(found.model, files, size, native) if change else before
        for method, crop, given in (('untouched', change.crop_before if change else native, before),
                                    ('adapted', native, after)):
            right = given == targets
            key = dict(data=args.data.name, model=name, pictures=args.pictures, method=method, resolution=size)
            environment = {k: v for k, v in describe().items() if k != 'threads'}
            put(args.out, [dict(
                key, crop=crop, top1=f'{100 * right.mean():.2f}', tested=len(right), right=packed(right),
                kept=change.kept if change else '', adapt_seconds=f'{seconds:.0f}' if whole else '',
                threads=args.threads, **environment)], KEY)
            print(f'{name} {size} px, crop {crop:g}: {method} {100 * right.mean():.2f}', flush=True)


def answers(network: nn.Module, files: Sequence[Path], size: int, crop: float) -> np.ndarray:
    """The class of each picture, [N]."""
    session = Session(network, 'torch')
    make = replace(session.preprocessing, crop_pct=crop)
    return np.concatenate([session(make(files[i:i + BATCH], size), size).argmax(1)
                           for i in range(0, len(files), BATCH)])


@section('adapted')
def adapted_section(rows: Sequence[Row]) -> str:
    """Top-1 before and after adaptation at each size, and the gain with its interval."""
    lines = []
    for data, model in dict.fromkeys((row['data'], row['model']) for row in rows):
        own = by_columns(rows, data=data, model=model)
        for size in NETWORKS[model]:
            before, after = (by_columns(own, resolution=size, method=m)[0] for m in ('untouched', 'adapted'))
            bits = [unpacked(row['right'], int(row['tested'])).astype(float) for row in (before, after)]
            low, high = interval(bits[1] - bits[0])
            gain = f'{100 * (bits[1] - bits[0]).mean():+.1f} ({low:+.1f} to {high:+.1f})'
            line = [f'{size} px', f"{float(before['crop']):g}", f"{float(before['top1']):.1f}"]
            if size == NETWORKS[model][0]:
                seconds = after['adapt_seconds']
                lines.append([f'`tf_efficientnet_{model}`, {data}', *line, '', 'the same', '',
                              f'{int(seconds) / 60:.0f}' if seconds else NOT_MEASURED])
            else:
                lines.append(['', *line, f"{float(after['crop']):g}", f"{float(after['top1']):.1f}", gain, ''])
    header = ['network, pictures', 'size', 'best crop', 'untouched', 'crop', 'adapted', 'gain', 'minutes of a core']
    first = rows[0]
    return (f'{markdown(header, lines)}\n\nTop-1 in percent on {first["tested"]} pictures that were neither trained '
            f'nor adapted on; fine-tuned and adapted on {first["pictures"]} pictures; crops chosen on a tenth of '
            f"these. The gain with the 95 % interval of a paired bootstrap. {first['device']}, {first['threads']} "
            f"threads, torch {first['torch']}, timm {first['timm']}.")


SECTIONS = {'adapted': adapted_section}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, metavar='DIR', help='with train/CLASS/* and val/CLASS/*')
    parser.add_argument('--runs', type=Path, default=Path('runs/adapted'), metavar='FOLDER')
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    parser.add_argument('--per-class', type=int, default=100, help='training pictures of each class, at most')
    parser.add_argument('--epochs', type=int, default=3, help='of fine-tuning')
    parser.add_argument('--tested', type=int, default=1000, help='test pictures, at most')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--out', type=Path, default=TABLE)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    data = small_folder(args.data, args.runs / f'{args.data.name}_{args.per_class}', args.per_class)
    args.pictures = len(find_pictures(data / 'train')[0])
    for name in args.models:
        wanted = dict(data=args.data.name, model=name, pictures=args.pictures, method='adapted')
        if not all(read(args.out, **wanted, resolution=size) for size in NETWORKS[name]):
            measure(name, data, args)


if __name__ == '__main__':
    main()
