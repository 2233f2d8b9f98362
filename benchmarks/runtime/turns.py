"""Timing of many things in one run, in turns: what else the machine does hits all of them alike."""
import random
import time
from typing import Any, Callable, Dict, Hashable, Mapping, TypeVar

import numpy as np
from tqdm import tqdm

__all__ = ['VISIT', 'ratio', 'take_turns']

Key = TypeVar('Key', bound=Hashable)
VISIT = 4  # calls in a row that count
_SETTLE = 3e-3  # seconds of calls before them: the threads of another engine stop spinning, weights enter the cache


def take_turns(
        cases: Mapping[Key, Callable[[], Any]],
        calls: int,
        label: str = '',
        seed: int = 0,
) -> Dict[Key, np.ndarray]:
    """Milliseconds [rounds, VISIT] of each case, in rounds of random order; `calls` is rounded up to whole rounds."""
    order, keys = random.Random(seed), list(cases)
    times: Dict[Key, list] = {key: [] for key in keys}
    for call in cases.values():  # what is compiled on first use
        call()
    for _ in tqdm(range(-(-calls // VISIT)), desc=label, unit='round', leave=False, disable=None):
        for key in order.sample(keys, len(keys)):
            times[key].append(_visit(cases[key]))
    return {key: np.array(values) for key, values in times.items()}


def _visit(call: Callable[[], Any]) -> list:
    until = time.perf_counter() + _SETTLE
    call()
    while time.perf_counter() < until:
        call()
    visit = []
    for _ in range(VISIT):
        start = time.perf_counter_ns()
        call()
        visit.append((time.perf_counter_ns() - start) / 1e6)
    return visit


def ratio(times: np.ndarray, other: np.ndarray) -> float:
    """How many times as long: the median over the rounds of the ratio of the visits' medians."""
    return float(np.median(np.median(times, axis=1) / np.median(other, axis=1)))
