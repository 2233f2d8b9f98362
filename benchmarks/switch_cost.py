"""What does the switch cost?

(a) `set_resolution` against loading another network of the same size from disk, which is what a set of individual
networks has to do. (b) The forward pass of a switchable network against stock timm at equal resolution, eager.
Both sides are timed in turn, in one run; quoted are the median over the rounds and the median of the ratios.

    python -m benchmarks.switch_cost [--models rs_resnet18 ...] [--rounds 30]
"""
import argparse
import csv
import statistics
import tempfile
import time
from pathlib import Path
from typing import Callable, Dict, List, Tuple

import safetensors.torch
import timm
import torch

import rs_timm
from benchmarks.environment import RESULTS, describe

MODELS = ('rs_resnet18', 'rs_resnet50', 'rs_mobilenetv2')
UNSEEN = 144


def seconds(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def paired(first: Callable[[], object], second: Callable[[], object], rounds: int) -> Tuple[float, float, float]:
    """Median seconds of each and the median ratio first / second, the two in turn and in alternating order."""
    pairs: List[Tuple[float, float]] = []
    first(), second()
    for index in range(rounds):
        if index % 2:
            b, a = seconds(second), seconds(first)
        else:
            a, b = seconds(first), seconds(second)
        pairs.append((a, b))
    ratios = [a / b for a, b in pairs]
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), statistics.median(ratios)


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

            four, loading, _ = paired(switch, load, rounds)
            per_switch = four / len(switches)
            rows.append(dict(
                question='switch against load', model=name, batch='', resolution=kind, rs_ms=per_switch * 1e3,
                other_ms=loading * 1e3, ratio=per_switch / loading))
    return rows


def forward_rows(name: str, batch: int, rounds: int) -> List[Dict[str, object]]:
    rows = []
    model = timm.create_model(name).eval()
    stock = timm.create_model(model.stock_architecture).eval()
    for mode in ('following', 'pinned'):
        for resolution in (224, 96):
            x = torch.randn(batch, 3, resolution, resolution)
            rs_timm.set_resolution(model, resolution if mode == 'pinned' else None)
            with torch.inference_mode():
                ours, theirs, ratio = paired(lambda x=x: model(x), lambda x=x: stock(x), rounds)
            rows.append(dict(
                question=f'forward, {mode}', model=name, batch=batch, resolution=resolution, rs_ms=ours * 1e3,
                other_ms=theirs * 1e3, ratio=ratio))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--batches', nargs='+', type=int, default=(1, 32))
    parser.add_argument('--rounds', type=int, default=40, help='at batch 1; larger batches take a quarter')
    parser.add_argument('--out', type=Path, default=RESULTS / 'switch_cost.csv')
    args = parser.parse_args()
    rows: List[Dict[str, object]] = []
    environment = describe()
    print(', '.join(f'{key} {value}' for key, value in environment.items()))
    print(f'{"":22} {"model":15} {"batch":>5} {"resolution":>15} {"rs_timm ms":>11} {"other ms":>10} {"ratio":>8}')
    for name in args.models:
        made = switch_rows(name, args.rounds)
        for batch in args.batches:
            made += forward_rows(name, batch, args.rounds if batch == 1 else max(5, args.rounds // 4))
        for row in made:
            print(f'{row["question"]:22} {row["model"]:15} {row["batch"]:>5} {row["resolution"]:>15} '
                  f'{row["rs_ms"]:11.4f} {row["other_ms"]:10.2f} {row["ratio"]:8.4f}', flush=True)
        rows += [dict(row, **environment) for row in made]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    with args.out.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == '__main__':
    main()
