"""How fast is the runtime? Engines, precisions and resolutions against stock timm, in one run.

Latency of the network alone, of preprocessing and of both, at batch 1, beside the plain network of timm in eager mode;
sessions beside plain networks in the same engine (the price of being switchable), and the one graph with dynamic shapes
beside those; the switch; resident memory in fresh processes; top-1 agreement with torch in float32. What is compared is
timed in turns within the run; quoted are medians, and medians of the ratios of the turns.

    python -m benchmarks.runtime_latency [--data DIR] [--models rs_resnet50 ...] [--quick] [--again]

DIR holds train/CLASS/* and val/CLASS/* (as Imagenette does). Without it pictures are made up, and agreement is not
measured; nor is it for random weights. 'lite0' is EfficientNet-Lite0 with ImageNet weights, cut down to the classes of
Imagenette. Rows that are in the table stay, unless --again; a run that was cut off goes on where it was.
"""
import argparse
import logging
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch

from benchmarks.environment import RESULTS
from benchmarks.runtime.figures import write_figures
from benchmarks.runtime.networks import LITE0, Network, environment, labelled, load, pictures
from benchmarks.runtime.questions import (
    CASES,
    Case,
    agreement_rows,
    latency_rows,
    memory_rows,
    price_rows,
    sessions,
    switch_rows,
)
from benchmarks.store import put, read
from rs_timm.runtime import Session
from rs_timm.runtime.engines import PRECISIONS

QUESTIONS = ('latency', 'price', 'switch', 'memory', 'agreement')
MODELS: Dict[str, Sequence[str]] = {
    'rs_resnet50': QUESTIONS,
    'rs_mobilenetv2': QUESTIONS,
    'rs_resnet18': ('latency', 'agreement'),
    LITE0: ('agreement',),
}
UNIT = ('question', 'model', 'case')
Rows = List[Dict[str, Any]]
Work = Tuple[str, str, Callable[[], Rows]]  # question, case, how to answer


class Bench:
    """One network, its sessions, and the work to do on it."""

    def __init__(self, name: str, args: argparse.Namespace, folder: Path) -> None:
        self.args, self.folder = args, folder
        self.network: Network = load(name, folder)
        self.sizes: Sequence[int] = self.network.resolutions
        if args.quick:
            self.sizes = self.sizes[:1] + self.sizes[-1:]
        self.pictures = pictures(args.data and args.data / 'val', folder, 64)
        calibration = pictures(args.data and args.data / 'train', folder, 32, seed=1)
        cases = [case for case in CASES if case.engine in args.engines and case.precision in args.precisions]
        self.sessions: Dict[Case, Session] = sessions(
            self.network, cases, args.threads, calibration, folder / f'int8-{name}')

    def work(self) -> Iterator[Work]:
        threads, calls = self.args.threads, self.args.calls
        yield 'latency', '', partial(latency_rows, self.network, self.sessions, self.pictures, self.sizes, calls)
        for case, session in self.sessions.items():
            yield 'switch', str(case), partial(switch_rows, session, case, self.sizes)
            if case.precision != 'int8' and case.engine != 'torch':
                few = self.sizes[::2]
                yield 'price', str(case), partial(price_rows, self.network, session, case, few, threads, calls // 2)
            if case.precision != 'int8':
                yield 'memory', str(case), partial(memory_rows, self.network, case, threads, self.folder)
        if self.network.trained and self.args.data:
            yield 'agreement', '', self._agreement

    def _agreement(self) -> Rows:
        names = next(iter(self.sessions.values())).info.label_names
        files, targets = labelled(self.args.data / 'val', names, self.args.pictures)
        return agreement_rows(self.network, self.sessions, files, targets, self.sizes)


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = _parse(arguments)
    torch.set_num_threads(args.threads)
    logging.disable(logging.WARNING)  # the tools of quantisation have much to say
    columns = dict(environment(args.threads), batch='1')
    print(', '.join(f'{key} {value}' for key, value in columns.items()))
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.cache or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in args.models:
            started = time.monotonic()
            _answer(name, args, folder, columns)
            print(f'# {name}: {time.monotonic() - started:.0f} s', flush=True)
    if args.out.name == 'runtime_latency.csv':
        write_figures(args.out.parent, 'runtime_latency')


def _answer(name: str, args: argparse.Namespace, folder: Path, columns: Dict[str, str]) -> None:
    done = set() if args.again else {tuple(row[column] for column in (*UNIT, 'weights')) for row in read(args.out)}
    bench = Bench(name, args, folder)
    for question, case, answer in bench.work():
        unit = question, name, case, bench.network.weights
        if question not in (args.questions or MODELS.get(name, QUESTIONS)) or unit in done:
            continue
        started = time.monotonic()
        rows = [dict(question=question, model=name, weights=bench.network.weights, case=case, **row, **columns)
                for row in answer()]
        put(args.out, rows, UNIT)
        print(f'# {name}, {question} {case}: {time.monotonic() - started:.0f} s')
        for row in rows:
            print(_line(row), flush=True)


def _line(row: Dict[str, Any]) -> str:
    names = ('engine', 'precision', 'resolution', 'part', 'p50_ms', 'p95_ms', 'value', 'unit')
    shown = [row.get(name, '') for name in names]
    text = ' '.join(f'{value:10.3f}' if isinstance(value, float) else f'{value!s:>13}' for value in shown)
    return text + (f'   {row["ratio"]:.3f} (against {row["against"]})' if 'ratio' in row else '')


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, help='folder with train/CLASS/* and val/CLASS/*')
    parser.add_argument('--models', nargs='+', default=list(MODELS))
    parser.add_argument('--engines', nargs='+', default=sorted({case.engine for case in CASES}))
    parser.add_argument('--precisions', nargs='+', choices=PRECISIONS, default=PRECISIONS)
    parser.add_argument('--questions', nargs='+', choices=QUESTIONS, help='default: all for the first two models')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--calls', type=int, default=72, help='that count, of each case; at least 72')
    parser.add_argument('--pictures', type=int, default=500, help='for the agreement')
    parser.add_argument('--quick', action='store_true', help='the largest and the smallest resolution alone')
    parser.add_argument('--again', action='store_true', help='measure what is in the table, too')
    parser.add_argument('--cache', type=Path, help='keep exported files and int8 networks here, for the next run')
    parser.add_argument('--out', type=Path, default=RESULTS / 'runtime_latency.csv')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
