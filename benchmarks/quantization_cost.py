"""What does a training step with quantised weights, or weights and activations, cost against full precision?

A step is all that `Trainer.update` does for a batch at all resolutions: forward, MRED, backward, optimizer, bases. The
other side is the same network without quantisers: timm's ResNet for 2/32, timm's pre-activation ResNet for 2/2, with
private BatchNorms. Both sides take turns within a round, in an order that reverses from round to round; quoted are
medians over the rounds, the ratio being that of each round.

    python -m benchmarks.quantization_cost [--networks resnet18] [--precisions float32 bfloat16] [--rounds 5]
"""
import argparse
import csv
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Tuple

import timm
import torch
from torch import nn

import rs_timm
from benchmarks.environment import RESULTS, describe, keep_kernels
from rs_timm.training import MREDTask, Recipe, Trainer, keep_freed_memory
from rs_timm.training.optimization import create_optimizer, create_schedule

SIDES = {'w2a32': '', 'w2a2': 'v2'}  # suffix of the quantised network -> what its stock name has behind 'resnet'
CLASSES = 1000


def step_of(model: nn.Module, recipe: Recipe) -> Callable[[], object]:
    """One update on noise, as the training loop makes it."""
    task = MREDTask(model.to(memory_format=torch.channels_last), recipe.mred).train()
    optimizer = create_optimizer(task, recipe)
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=1000)
    trainer = Trainer(task, recipe, optimizer, schedule, None, Path())  # type: ignore[arg-type]
    images = {r: torch.randn(recipe.batch_size, 3, r, r).contiguous(memory_format=torch.channels_last)
              for r in recipe.resolutions}
    return partial(trainer.update, [(images, torch.randint(CLASSES, (recipe.batch_size,)))])


def seconds(step: Callable[[], object]) -> float:
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def interleaved(steps: List[Callable[[], object]], rounds: int) -> List[Tuple[float, ...]]:
    """Seconds of each step, round by round, after one round to warm up."""
    times = []
    for index in range(rounds + 1):
        order = range(len(steps)) if index % 2 else reversed(range(len(steps)))
        taken = {number: seconds(steps[number]) for number in order}
        times.append(tuple(taken[number] for number in range(len(steps))))
    return times[1:]


def rows_of(network: str, side: str, recipe: Recipe, rounds: int) -> List[Dict[str, Any]]:
    depth = network.removeprefix('resnet')
    plain = f'resnet{SIDES[side]}_{depth}' if SIDES[side] else network
    arguments = dict(resolutions=recipe.resolutions, num_classes=CLASSES)
    models = timm.create_model(f'rs_{network}_{side}', **arguments), rs_timm.switchable(plain, **arguments)
    times = interleaved([step_of(model, recipe) for model in models], rounds)
    quantised, full = zip(*times)
    return [dict(
        model=f'rs_{network}_{side}',
        against=f'{plain}, switchable',
        sizes=' '.join(map(str, recipe.resolutions)),
        batch=recipe.batch_size,
        quantised_s=round(statistics.median(quantised), 4),
        full_s=round(statistics.median(full), 4),
        ratio=round(statistics.median(a / b for a, b in times), 4),
        rounds=rounds,
        **describe(dtype=recipe.precision),
    )]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--networks', nargs='+', default=['resnet18'], choices=['resnet18', 'resnet50'])
    parser.add_argument('--precisions', nargs='+', default=['float32', 'bfloat16'], choices=['float32', 'bfloat16'])
    parser.add_argument('--sizes', nargs='+', type=int, default=[128, 112, 96, 80, 64])
    parser.add_argument('--batch', type=int, default=64, help='that of the recipe lq_imagenette')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--out', type=Path, default=RESULTS / 'quantization_cost.csv')
    args = parser.parse_args()
    keep_freed_memory()  # as `rs-timm train` does
    keep_kernels()
    rows: List[Dict[str, Any]] = []
    for network in args.networks:
        for precision in args.precisions:
            recipe = Recipe(
                resolutions=tuple(args.sizes), batch_size=args.batch, precision=precision, channels_last=True, lr=1e-3)
            for side in SIDES:
                rows += rows_of(network, side, recipe, args.rounds)
                print(', '.join(f'{key} {value}' for key, value in rows[-1].items()), flush=True)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
