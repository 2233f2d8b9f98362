"""What does a training step with quantised weights, or weights and activations, cost against full precision?

A step is all that `Trainer.update` does for a batch at all resolutions: forward, MRED, backward, optimizer, bases. The
other side is the same network without quantisers: timm's ResNet for 2/32, timm's pre-activation ResNet for 2/2, with
private BatchNorms. Both sides take turns within a round, in an order that reverses from round to round; quoted are
medians over the rounds, the ratio being that of each round.

    python -m benchmarks.quantization_cost [--networks resnet18] [--precisions float32 bfloat16] [--rounds 5]
"""
import argparse
import statistics
from pathlib import Path
from typing import Any, Dict, List

import timm

import rs_timm
from benchmarks.environment import RESULTS, describe, keep_kernels
from benchmarks.store import put
from benchmarks.timing import interleaved, ratio_of
from benchmarks.training_cost import CLASSES, step_of
from rs_timm.training import Recipe, keep_freed_memory

SIDES = {'w2a32': '', 'w2a2': 'v2'}  # suffix of the quantised network -> what its stock name has behind 'resnet'


def rows_of(network: str, side: str, recipe: Recipe, rounds: int) -> List[Dict[str, Any]]:
    depth = network.removeprefix('resnet')
    plain = f'resnet{SIDES[side]}_{depth}' if SIDES[side] else network
    arguments = dict(resolutions=recipe.resolutions, num_classes=CLASSES)
    models = timm.create_model(f'rs_{network}_{side}', **arguments), rs_timm.switchable(plain, **arguments)
    times = interleaved({side: step_of(model, recipe) for side, model in enumerate(models)}, rounds)
    return [dict(
        model=f'rs_{network}_{side}',
        against=f'{plain}, switchable',
        sizes=' '.join(map(str, recipe.resolutions)),
        batch=recipe.batch_size,
        quantised_s=round(statistics.median(times[0]), 4),
        full_s=round(statistics.median(times[1]), 4),
        ratio=round(ratio_of(times[0], times[1]), 4),
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
    put(args.out, rows)


if __name__ == '__main__':
    main()
