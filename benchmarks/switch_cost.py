"""What does the switch cost?

(a) `set_resolution` against loading another network of the same size from disk, which is what a set of individual
networks has to do. (b) The forward pass of a switchable network against stock timm at equal resolution, eager.
Both sides are timed in turn, in one run; quoted are the median over the rounds and the median of the ratios. Where
a network lies in memory moves its time by some percent (of two equal stock networks, too), so half of the rounds take a
pair of which the switchable network was made first, and half one of which the stock network was.

    python -m benchmarks.switch_cost [--models rs_resnet18 ...] [--rounds 30]
"""
import argparse
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Dict, List, Tuple

import safetensors.torch
import timm
import torch

import rs_timm
from benchmarks.environment import RESULTS, describe
from benchmarks.store import put
from benchmarks.timing import interleaved, ratio_of

MODELS = ('rs_resnet18', 'rs_resnet50', 'rs_mobilenetv2')
UNSEEN = 144


def switch_rows(name: str, rounds: int) -> List[Dict[str, object]]:
    """Microseconds of a switch that was made before, to a trained and to an unseen size, against a load."""
    model = timm.create_model(name).eval()
    plain = rs_timm.extract(model, 224)
    sizes = (224, 96, 224, 160)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / 'other.safetensors'
        safetensors.torch.save_file(plain.state_dict(), path)

        def load() -> None:
            plain.load_state_dict(safetensors.torch.load_file(path))

        for kind, switches in (('trained sizes', sizes), ('an unseen size', (224, UNSEEN, 192, UNSEEN))):
            def switch(switches: Tuple[int, ...] = switches) -> None:
                for size in switches:
                    rs_timm.set_resolution(model, size)

            times = interleaved(dict(rs=switch, other=load), rounds)
            per_switch, loading = statistics.median(times['rs']) / len(switches), statistics.median(times['other'])
            rows.append(dict(
                question='switch against load', model=name, batch='', resolution=kind, rs_ms=per_switch * 1e3,
                other_ms=loading * 1e3, ratio=per_switch / loading))
    return rows


def forward_rows(name: str, batch: int, rounds: int) -> List[Dict[str, object]]:
    """Milliseconds of a forward pass, against that of stock timm."""
    rows, models = [], []
    for first in ('rs', 'other'):  # which network is made first, and so lies first in memory
        names = dict(rs=name, other=timm.create_model(name, device='meta').stock_architecture)
        models.append({side: timm.create_model(names[side]).eval() for side in sorted(names, key=first.__ne__)})
    for mode in ('following', 'pinned'):
        for resolution in (224, 96):
            x = torch.randn(batch, 3, resolution, resolution)
            taken: Dict[str, List[float]] = dict(rs=[], other=[])
            for pair in models:
                rs_timm.set_resolution(pair['rs'], resolution if mode == 'pinned' else None)
                with torch.inference_mode():
                    times = interleaved({side: partial(model, x) for side, model in pair.items()}, rounds // 2,
                                        calls=10 if batch == 1 else 1)
                for side, own in times.items():
                    taken[side] += own
            rows.append(dict(
                question=f'forward, {mode}', model=name, batch=batch, resolution=resolution,
                **{f'{side}_ms': 1e3 * statistics.median(own) for side, own in taken.items()},
                ratio=ratio_of(taken['rs'], taken['other'])))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--batches', nargs='+', type=int, default=(1, 32))
    parser.add_argument('--rounds', type=int, default=40, help='at batch 1, ten calls each; larger batches: a quarter')
    parser.add_argument('--out', type=Path, default=RESULTS / 'switch_cost.csv')
    args = parser.parse_args()
    rows: List[Dict[str, object]] = []
    environment = describe()
    print(', '.join(f'{key} {value}' for key, value in environment.items()))
    print(f'{"":22} {"model":15} {"batch":>5} {"resolution":>15} {"rs_timm ms":>11} {"other ms":>10} {"ratio":>8}')
    for name in args.models:
        made = switch_rows(name, args.rounds)
        for batch in args.batches:
            made += forward_rows(name, batch, args.rounds if batch == 1 else max(6, args.rounds // 4))
        for row in made:
            print(f'{row["question"]:22} {row["model"]:15} {row["batch"]:>5} {row["resolution"]:>15} '
                  f'{row["rs_ms"]:11.4f} {row["other_ms"]:10.2f} {row["ratio"]:8.4f}', flush=True)
        rows += [dict(row, **environment) for row in made]
    put(args.out, rows)


if __name__ == '__main__':
    main()
