"""What does a cascade of resolutions reach? Accuracy against measured milliseconds and against multiply-adds.

Cascades are fitted on one half of the pictures, drawn at random (`fit_cascade`, budgets in measured milliseconds), and
what is reported is from the other half: top-1, time of the cascade as it runs (preprocessing included; picture by
picture, and in batches), and mean multiply-adds. Beside them the single resolutions and the ensemble of all, weighted
by alpha where the weights know it, else evenly. All are timed in turns, batch by batch of pictures, in random order.

    python -m benchmarks.cascade --data DIR [--model rs_resnet18] [--engine openvino] [--pictures 1000]
    python -m benchmarks.cascade --data DIR --model rs_efficientnet_lite0 --out benchmarks/results/cascade_lite0.csv

DIR holds val/CLASS/*; the network is one with trained weights ('lite0' is EfficientNet-Lite0 for Imagenette;
'rs_efficientnet_lite0' answers among all 1000 classes, at its crops). A table holds one network; what is in it is not
measured again, unless --again.
"""
import argparse
import random
import time
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
from tqdm import tqdm

from benchmarks.runtime.figures import write_figures
from benchmarks.runtime.networks import labelled, measure_one, parser_of_one
from rs_timm.format.madds import madds_of
from rs_timm.runtime import Cascade, CascadeFit, Session, fit_cascade, measure_latency
from rs_timm.runtime.policy.cascade import combine_logits, stage_weights

Rows = List[Dict[str, Any]]
Answer = Tuple[np.ndarray, np.ndarray]  # logits [N, K]; index of the last resolution that was used, [N]
SHARES = (0.45, 0.6, 0.75, 0.9, 1.05)  # budgets, of what the largest resolution takes


class Method:
    """A way to classify pictures, its fit if it has one, and the time it took."""

    def __init__(self, kind: str, sizes: Sequence[int], call: Callable[[List[Path]], Answer], **columns: Any) -> None:
        self.kind, self.sizes, self.call, self.columns = kind, tuple(sizes), call, columns
        self.seconds = {'one': 0., 'batch': 0.}
        self.logits: List[np.ndarray] = []
        self.used: List[np.ndarray] = []

    def one_by_one(self, files: List[Path]) -> None:
        start = time.perf_counter()
        answers = [self.call([file]) for file in files]
        self.seconds['one'] += time.perf_counter() - start
        for logits, used in answers:
            self.logits.append(logits)
            self.used.append(used)

    def at_once(self, files: List[Path]) -> None:
        start = time.perf_counter()
        self.call(files)
        self.seconds['batch'] += time.perf_counter() - start

    def row(self, targets: np.ndarray, madds: Dict[int, int]) -> Dict[str, Any]:
        right = np.concatenate(self.logits).argmax(1) == targets
        used = np.concatenate(self.used)
        paid = np.cumsum([madds[size] for size in self.sizes])
        shares = [float((used == stage).mean()) for stage in range(len(self.sizes))]
        return dict(
            kind=self.kind,
            resolutions=' '.join(map(str, self.sizes)),
            pictures=len(targets),
            top1=100. * float(right.mean()),
            ms=1e3 * self.seconds['one'] / len(targets),
            ms_in_batches=1e3 * self.seconds['batch'] / len(targets),
            mmadds=float(paid[used].mean()) / 1e6,
            answered=' '.join(f'{share:.3f}' for share in shares),
            **self.columns,
        )


def single(session: Session, size: int, top1_of_fit: float, ms_of_fit: float) -> Method:
    return Method('single', [size], lambda files: (session(files, size), np.zeros(len(files), int)),
                  top1_of_fit=top1_of_fit, ms_of_fit=ms_of_fit)


def ensemble(session: Session, sizes: Sequence[int], weights: Optional[Sequence[float]], combine: str) -> Method:
    def call(files: List[Path]) -> Answer:
        return combine_logits([session(files, size) for size in sizes], weights), np.full(len(files), len(sizes) - 1)

    return Method('ensemble', sizes, call, combine=combine)


def cascade(session: Session, fit: CascadeFit, budget: Optional[float]) -> Method:
    made = Cascade.fitted(session, fit)
    stage_of = {size: stage for stage, size in enumerate(fit.resolutions)}

    def call(files: List[Path]) -> Answer:
        result = made(files)
        return result.logits, np.array([stage_of[size] for size in result.answered.tolist()])

    return Method('cascade', fit.resolutions, call, combine=fit.combine, budget_ms=budget or '',
                  top1_of_fit=fit.accuracy, ms_of_fit=fit.cost,
                  thresholds=' '.join(f'{t:.4f}' for t in fit.thresholds.values()))


def fitted(
        session: Session,
        logits: Dict[int, np.ndarray],
        targets: np.ndarray,
        costs: Dict[int, float],
        combines: Sequence[str],
) -> List[Method]:
    """Cascades as good as the best size alone, and for a range of budgets; the same fit for two counts once."""
    alpha, methods, seen = session.info.alpha, [], set()
    best = max(accuracy_of(logits[size], targets) for size in logits)
    for combine in combines:
        for budget in (None, *(share * costs[max(costs)] for share in SHARES)):
            aim: Dict[str, Any] = dict(accuracy=best) if budget is None else dict(budget=budget)
            try:
                fit = fit_cascade(logits, targets, **aim, costs=costs, combine=combine, alpha=alpha)
            except ValueError as error:
                print(f'# {combine}, {aim}: {error}')
                continue
            key = combine, fit.resolutions, tuple(fit.thresholds.values())
            if len(fit.resolutions) > 1 and key not in seen:
                seen.add(key)
                methods.append(cascade(session, fit, budget))
    return methods


def accuracy_of(logits: np.ndarray, targets: np.ndarray) -> float:
    """Top-1 in percent."""
    return 100. * float((logits.argmax(1) == targets).mean())


def halves(files: Sequence[Path], targets: np.ndarray) -> Tuple[List[Path], np.ndarray, List[Path], np.ndarray]:
    """The pictures and classes to fit with, and those to report on, drawn at random with a fixed seed."""
    order = np.random.default_rng(0).permutation(len(files))
    first, second = order[::2], order[1::2]
    return [files[i] for i in first], targets[first], [files[i] for i in second], targets[second]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = _parse(arguments)
    if measure_one(args, _compare, batch=args.batch):
        write_figures(args.out.parent, args.out.stem)


def _compare(session: Session, args: argparse.Namespace) -> Rows:
    files, targets = labelled(args.data / 'val', session.info.label_names, args.pictures)
    sizes = tuple(sorted(session.resolutions))
    session.prepare()
    costs = measure_latency(session, images=files[:64], repeats=100, progress=True).milliseconds(part='total')
    fit_files, fit_targets, files, targets = halves(files, targets)
    logits = {size: np.concatenate([session(file, size) for file in tqdm(fit_files, disable=None, leave=False)])
              for size in sizes}
    combine = 'alpha' if session.info.alpha else 'mean'
    methods = [*(single(session, size, accuracy_of(logits[size], fit_targets), costs[size]) for size in sizes),
               ensemble(session, sizes, stage_weights(sizes, combine, session.info.alpha), combine),
               *fitted(session, logits, fit_targets, costs, ('last', combine))]
    for batch in (1 << power for power in range(args.batch.bit_length())):
        session.prepare(batch=batch)  # a batch that shrinks on the way is cut into these
    _run_in_turns(methods, files, args.batch)
    madds = {size: madds_of(session, size) for size in sizes}
    rows = [dict(method.row(targets, madds), batch=args.batch) for method in methods]
    for row in rows:
        print(f'{row["kind"]:9} {row["resolutions"]:20} {row.get("combine", ""):6} top-1 {row["top1"]:6.2f} %, '
              f'{row["ms"]:7.2f} ms, in batches {row["ms_in_batches"]:7.2f} ms, {row["mmadds"]:8.1f} M, '
              f'answered {row["answered"]}', flush=True)
    return rows


def _run_in_turns(methods: Sequence[Method], files: List[Path], batch: int) -> None:
    order = random.Random(0)
    for method in methods:
        method.call(files[:batch])
    for start in tqdm(range(0, len(files), batch), disable=None, leave=False):
        chunk = files[start:start + batch]
        for method in order.sample(list(methods), len(methods)):
            method.one_by_one(chunk)
            method.at_once(chunk)


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = parser_of_one(__doc__, 'cascade')
    parser.add_argument('--pictures', type=int, default=1000, help='half of them to fit, half to report')
    parser.add_argument('--batch', type=int, default=32)
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
