"""An open-loop stream of requests in one process: they come when they come, whether they are served or not."""
import math
import random
import threading
import time
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, Callable, List, Protocol, Sequence, Tuple

import numpy as np

__all__ = ['Fixed', 'Policy', 'Served', 'arrivals', 'ramp', 'serve']


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
