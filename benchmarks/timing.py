"""Timing of several things in one run, in turns: what else the machine does hits all of them alike."""
import random
import statistics
import time
from typing import Any, Callable, Dict, Hashable, List, Mapping, Sequence, TypeVar

import numpy as np
import torch
from tqdm import tqdm

Key = TypeVar('Key', bound=Hashable)
VISIT = 4  # calls in a row that count
_SETTLE = 3e-3  # seconds of calls before them: the threads of another engine stop spinning, weights enter the cache


def seconds(call: Callable[[], object], calls: int = 1) -> float:
    """Mean seconds of a call, over `calls` of them in a row; work on CUDA is waited for."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / calls


def interleaved(sides: Mapping[Key, Callable[[], object]], rounds: int, calls: int = 1) -> Dict[Key, List[float]]:
    """Seconds of each side in each round, in an order that reverses from round to round, after one that warms up."""
    names = list(sides)
    times: Dict[Key, List[float]] = {name: [] for name in names}
    for index in range(rounds + 1):
        for name in reversed(names) if index % 2 else names:
            times[name].append(seconds(sides[name], calls if index else 1))
    return {name: taken[1:] for name, taken in times.items()}


def ratio_of(ours: Sequence[float], other: Sequence[float]) -> float:
    """The median over the rounds of the ratio of two sides."""
    return statistics.median(a / b for a, b in zip(ours, other))


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
            call, until = cases[key], time.perf_counter() + _SETTLE
            call()
            while time.perf_counter() < until:
                call()
            times[key].append([1e3 * seconds(call) for _ in range(VISIT)])
    return {key: np.array(values) for key, values in times.items()}


def ratio_of_visits(times: np.ndarray, other: np.ndarray) -> float:
    """How many times as long: the median over the rounds of the ratio of the visits' medians."""
    return ratio_of(np.median(times, axis=1).tolist(), np.median(other, axis=1).tolist())
