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
import math
import random
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Callable, Dict, List, Optional, Protocol, Sequence, Tuple

import numpy as np

from benchmarks.runtime.figures import write_figures
from benchmarks.runtime.networks import labelled, measure_one, parser_of_one
from rs_timm.runtime import LoadController, Session, measure_latency

BINS = 20
TOTAL = 'all'
Rows = List[Dict[str, Any]]


class Policy(Protocol):
    """Says at which resolution the next request is served; a `LoadController` is one."""

    @property
    def resolution(self) -> int: ...

    def observe(self, latency_ms: float, queue_length: int = 0) -> int: ...


@dataclass(frozen=True)
class Fixed:
    """Always the same resolution."""

    resolution: int

    def observe(self, latency_ms: float, queue_length: int = 0) -> int:
        return self.resolution


@dataclass(frozen=True)
class Served:
    """What became of the requests, in the order of arrival: arrays [N]."""

    arrived: np.ndarray  # seconds from the start, as planned
    latency_ms: np.ndarray  # from then to the answer
    resolution: np.ndarray
    answer: np.ndarray  # class


def ramp(seconds: float, low: float, high: float) -> Callable[[float], float]:
    """A rate that rises evenly from `low` to `high` at half time, and falls again."""
    return lambda t: low + (high - low) * (1. - abs(2. * t / seconds - 1.))


def arrivals(rate: Callable[[float], float], highest: float, seconds: float, seed: int) -> List[float]:
    """Times of a Poisson process with that rate (per second), by thinning one of the highest rate."""
    generator, t, times = random.Random(seed), 0., []
    while True:
        t += generator.expovariate(highest)
        if t >= seconds:
            return times
        if generator.random() * highest < rate(t):
            times.append(t)


def serve(
        planned: Sequence[float],
        requests: Sequence[Any],
        answer: Callable[[Any, int], int],
        policy: Policy,
) -> Served:
    """Serve request number i, which comes `planned[i]` seconds after the start, with one worker, in order of arrival.

    A producer thread hands the requests over at their times. Latency counts from the planned time: a producer that is
    late makes the server look worse, not better.
    """
    waiting: SimpleQueue[int] = SimpleQueue()
    start = time.perf_counter() + 0.05

    def produce() -> None:
        for number, due in enumerate(planned):
            time.sleep(max(0., start + due - time.perf_counter()))
            waiting.put(number)

    producer = threading.Thread(target=produce, daemon=True)
    producer.start()
    rows: List[Tuple[float, int, int]] = []
    for number in range(len(planned)):
        taken = waiting.get()
        assert taken == number
        resolution = policy.resolution
        said = answer(requests[number], resolution)
        latency = 1e3 * (time.perf_counter() - start - planned[number])
        rows.append((latency, resolution, said))
        policy.observe(max(0., latency), waiting.qsize())
    producer.join()
    columns = [np.array(column) for column in zip(*rows)]
    return Served(np.array(planned), *columns)


def p95(values: np.ndarray) -> float:
    """The nearest-rank p95; nan of none."""
    return float(np.sort(values)[math.ceil(0.95 * len(values)) - 1]) if len(values) else math.nan


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
    if measure_one(args, _compare, seconds=args.seconds):
        write_figures(args.out.parent, 'load_curve')


def _compare(session: Session, args: argparse.Namespace) -> Rows:
    session.prepare()
    files, targets = labelled(args.data / 'val', session.info.label_names, args.pictures)
    table = measure_latency(session, images=files, repeats=args.repeats, progress=True)
    print(table)
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
    parser = parser_of_one(__doc__, 'load_curve')
    parser.add_argument('--seconds', type=float, default=40., help='of the load curve')
    parser.add_argument('--peak', type=float, default=2., help='load at half time, of what the largest size can carry')
    parser.add_argument('--deadline', type=float, help='ms (default: six times the service at the largest size)')
    parser.add_argument('--target', type=float, default=0.8, help="the controller's p95, of the deadline")
    parser.add_argument('--pictures', type=int, default=500, help='different ones')
    parser.add_argument('--repeats', type=int, default=100, help='calls each to measure the costs')
    parser.add_argument('--seed', type=int, default=0)
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
