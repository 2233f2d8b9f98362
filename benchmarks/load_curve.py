"""What does moving the resolution do for a server under changing load?

Requests for classification come at random times (Poisson, fixed seed), first at a fraction of what the server can carry
at the largest resolution, then at twice that, then at a fraction again. The same requests are served by a
LoadController, at the fixed largest and at the fixed smallest resolution; by one worker in this process, in order, and
all of them: none is dropped. Counted are the answers in time and the right ones.

    python -m benchmarks.load_curve --data DIR [--model rs_resnet18] [--engine openvino] [--seconds 40]

DIR holds val/CLASS/*; the network is one with trained weights ('lite0' is EfficientNet-Lite0 for Imagenette). The table
holds one network; what is in it is not measured again, unless --again.
"""
import argparse
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List, Optional, Sequence

import numpy as np

from benchmarks.environment import RESULTS, describe
from benchmarks.runtime.figures import write_figures
from benchmarks.runtime.networks import labelled, load
from benchmarks.runtime.stream import Fixed, Policy, Served, arrivals, p95, ramp, serve
from benchmarks.runtime.table import is_done, put
from rs_timm.runtime import LatencyTable, LoadController, Session, measure_latency

BINS = 20
TOTAL = 'all'
Rows = List[Dict[str, Any]]


def rows_of(served: Served, targets: np.ndarray, deadline: float, seconds: float) -> Rows:
    """A row for each part of the time, by arrival, and one for all."""
    edges = np.linspace(0, seconds, BINS + 1)
    part = np.searchsorted(edges, served.arrived, side='right') - 1
    parts = {f'{edge:g}': part == index for index, edge in enumerate(edges[:-1])}
    rows = []
    for name, chosen in {**parts, TOTAL: np.ones(len(targets), bool)}.items():
        in_time = served.latency_ms[chosen] <= deadline
        right = served.answer[chosen] == targets[chosen]
        rows.append(dict(
            second=name,
            arrivals=int(chosen.sum()),
            in_time=int(in_time.sum()),
            late=int((~in_time).sum()),
            p95_ms=p95(served.latency_ms[chosen]),
            mean_resolution=float(served.resolution[chosen].mean()) if chosen.any() else 0.,
            right=int(right.sum()),
            right_in_time=int((right & in_time).sum()),
            switches=int((np.diff(served.resolution[chosen]) != 0).sum()),
        ))
    return rows


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = _parse(arguments)
    wanted = dict(model=args.model, engine=args.engine, precision=args.precision, seconds=args.seconds)
    if not args.again and is_done(args.out, **wanted):
        print(f'{args.out} has these rows; --again measures anew')
        return
    with tempfile.TemporaryDirectory() as folder:
        network = load(args.model, Path(folder))
        if not network.trained:
            raise SystemExit(f'{args.model} has random weights: its answers mean nothing; name another model.')
        session = Session(network.file, args.engine, args.precision, args.threads)
        session.prepare()
        files, targets = labelled(args.data / 'val', session.info.label_names, args.pictures)
        table = measure_latency(session, images=files, repeats=args.repeats, progress=True)
        print(table)
        rows = _compare(session, files, targets, table, args)
    columns = dict(
        model=args.model, weights=network.weights, engine=session.engine_name, precision=args.precision,
        **{key: value for key, value in describe().items() if key not in ('dtype', 'threads')}, threads=args.threads,
        **{name: version(name) for name in ('openvino', 'onnxruntime')})
    rows = [dict(row, **columns) for row in rows]
    args.out.unlink(missing_ok=True)
    put(args.out, rows, ('policy', 'second'))
    write_figures(args.out.parent, 'load_curve')


def _compare(
        session: Session,
        files: Sequence[Path],
        targets: np.ndarray,
        table: LatencyTable,
        args: argparse.Namespace,
) -> Rows:
    costs = table.milliseconds(part='total')
    largest, smallest = max(costs), min(costs)
    capacity = 1e3 / costs[largest]
    deadline = args.deadline or 6. * costs[largest]
    rate = ramp(args.seconds, 0.4 * capacity, args.peak * capacity)
    planned = arrivals(rate, args.peak * capacity, args.seconds, args.seed)
    order = np.random.default_rng(args.seed).integers(0, len(files), len(planned))
    print(f'# {len(planned)} requests in {args.seconds:g} s; {largest} px carries {capacity:.1f} per second; in time: '
          f'{deadline:.1f} ms')
    policies: Dict[str, Policy] = {
        'controller': LoadController(costs, target_ms=args.target * deadline),
        f'fixed {largest}': Fixed(largest),
        f'fixed {smallest}': Fixed(smallest),
    }
    rows: Rows = []
    for name, policy in policies.items():
        served = serve(planned, [files[i] for i in order], lambda file, r: int(session(file, r).argmax()), policy)
        made = rows_of(served, targets[order], deadline, args.seconds)
        rows += [dict(policy=name, **row, deadline_ms=deadline, capacity=capacity, seconds=args.seconds, seed=args.seed)
                 for row in made]
        total = made[-1]
        print(f'{name:12} {total["in_time"]:6} in time, {total["late"]:6} late, p95 {total["p95_ms"]:9.1f} ms, mean '
              f'{total["mean_resolution"]:5.1f} px, right {total["right"]}, right and in time '
              f'{total["right_in_time"]}, {total["switches"]} switches', flush=True)
    return rows


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, required=True, help='folder with val/CLASS/*')
    parser.add_argument('--model', default='rs_resnet18')
    parser.add_argument('--engine', default='openvino')
    parser.add_argument('--precision', default='fp32')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--seconds', type=float, default=40., help='of the load curve')
    parser.add_argument('--peak', type=float, default=2., help='load at half time, of what the largest size can carry')
    parser.add_argument('--deadline', type=float, help='ms (default: six times the service at the largest size)')
    parser.add_argument('--target', type=float, default=0.8, help="the controller's p95, of the deadline")
    parser.add_argument('--pictures', type=int, default=500, help='different ones')
    parser.add_argument('--repeats', type=int, default=100, help='calls each to measure the costs')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--again', action='store_true', help='measure even if the table is of this network')
    parser.add_argument('--out', type=Path, default=RESULTS / 'load_curve.csv')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
