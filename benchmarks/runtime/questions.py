"""The questions of benchmarks/runtime_latency.py: each gives rows of its table for one network."""
import time
from functools import partial
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np

from benchmarks.runtime.contenders import (
    EAGER,
    Case,
    Eager,
    engine_network,
    plain_graph,
    plain_networks,
    without_engine,
)
from benchmarks.runtime.memory import resident_memory
from benchmarks.runtime.networks import Network
from benchmarks.runtime.turns import ratio, take_turns
from rs_timm import extract
from rs_timm.runtime import Session
from rs_timm.runtime.policy.latency_table import Timing

__all__ = ['agreement_rows', 'latency_rows', 'memory_rows', 'price_rows', 'switch_rows']

Rows = List[Dict[str, Any]]
Sessions = Dict[Case, Session]
NETWORK, PREPROCESSING, TOTAL = 'network', 'preprocessing', 'total'
OURS = Case('rs_timm', '')  # preprocessing is the same for all engines
_Key = Tuple[Case, int, str]  # case, resolution, part


def _inputs(resolutions: Sequence[int]) -> Dict[int, np.ndarray]:
    return {r: np.random.default_rng(r).standard_normal((1, 3, r, r), dtype=np.float32) for r in resolutions}


def _row(case: Case, resolution: int, part: str, times: np.ndarray, **more: Any) -> Dict[str, Any]:
    timing = Timing.of(int(1e6 * t) for t in times.ravel())
    return dict(engine=case.engine, precision=case.precision, resolution=resolution, part=part, calls=timing.calls,
                p50_ms=timing.p50_ms, p95_ms=timing.p95_ms, mean_ms=timing.mean_ms, **more)


def latency_rows(
        network: Network,
        sessions: Sessions,
        pictures: Sequence[Path],
        sizes: Sequence[int],
        calls: int,
) -> Rows:
    """All engines against stock timm in eager mode: the network alone, preprocessing alone, both."""
    cases = _latency_cases(network, sessions, pictures, sizes)
    times = take_turns(cases, calls, f'{network.name}: latency')
    rows = []
    for (case, resolution, part), taken in times.items():
        reference = EAGER if part != PREPROCESSING else Case(EAGER.engine, '')
        rows.append(_row(case, resolution, part, taken, against=str(reference).strip(),
                         ratio=ratio(times[reference, resolution, part], taken)))
    return rows


def _latency_cases(
        network: Network,
        sessions: Sessions,
        pictures: Sequence[Path],
        sizes: Sequence[int],
) -> Dict[_Key, Callable[[], Any]]:
    eager, inputs = Eager(network), _inputs(sizes)
    first = next(iter(sessions.values()))
    cases: Dict[_Key, Callable[[], Any]] = {}
    for r in sizes:
        cases[EAGER, r, NETWORK] = partial(eager.run, inputs[r])
        cases[EAGER, r, TOTAL] = _each(pictures, partial(eager.whole, resolution=r))
        cases[Case(EAGER.engine, ''), r, PREPROCESSING] = _each(pictures, partial(eager.preprocess, resolution=r))
        cases[OURS, r, PREPROCESSING] = _each(pictures, partial(first.preprocess, resolution=r))
        for case, session in sessions.items():
            cases[case, r, NETWORK] = partial(session.run, inputs[r], r)
            if case.engine != 'torch':
                cases[case, r, TOTAL] = _each(pictures, partial(session, resolution=r))
    return cases


def _each(pictures: Sequence[Path], call: Callable[[Path], Any]) -> Callable[[], Any]:
    """`call` with the next picture each time."""
    turning: Iterator[Path] = cycle(pictures)
    return lambda: call(next(turning))


def price_rows(network: Network, session: Session, case: Case, sizes: Sequence[int], threads: int, calls: int) -> Rows:
    """A session against plain networks in the same engine (the price of being switchable), and its two kinds of memory.

    Rows of the part 'specialised' stand against plain networks, those of 'one graph' (memory='shared') against the
    specialised ones.
    """
    plain, inputs = plain_networks(network, case, threads, sizes), _inputs(sizes)
    shared = Session(network.file, case.engine, case.precision, threads, memory='shared')
    turns: Dict[Tuple[str, int], Callable[[], Any]] = {}
    for r in sizes:
        turns['specialised', r] = partial(session.run, inputs[r], r)
        turns['plain', r] = partial(plain[r], inputs[r])
        turns['one graph', r] = partial(shared.run, inputs[r], r)
    times = take_turns(turns, calls, f'{network.name}: {case} against plain')
    return [dict(engine=case.engine, precision=case.precision, resolution=r, part=part, calls=times[part, r].size,
                 p50_ms=float(np.median(times[part, r])), against=other, ratio=ratio(times[part, r], times[other, r]))
            for part, other in (('specialised', 'plain'), ('one graph', 'specialised')) for r in sizes]


def switch_rows(session: Session, case: Case, sizes: Sequence[int], rounds: int = 60) -> Rows:
    """Microseconds of a switch, and what the first call after it takes more than the next ones.

    The switch is `set_resolution`, and all that a session does for a call around the engine: both with networks that
    answer at once. The first call is measured in the session and, without it, on the engine's own two networks: what
    both take more is the engine's and the caches'.
    """
    a, b = sizes[0], sizes[-1]
    inputs, common = _inputs((a, b)), dict(engine=case.engine, precision=case.precision)
    bare, networks = without_engine(session), {r: engine_network(session, r) for r in (a, b)}

    def switch(r: int) -> None:
        bare.set_resolution(r)
        bare.run(inputs[r], r)

    rows: Rows = [
        dict(common, part=part, calls=100 * rounds, value=_per_call([partial(call, r) for r in (a, b)], rounds),
             unit='us')
        for part, call in (('set_resolution', session.set_resolution), ('switch and dispatch', switch))]
    ways = {'first call': lambda r: session.run(inputs[r], r),
            'first call, engine alone': lambda r: networks[r](inputs[r])}
    for (part, r), (first, later) in _after_switch(ways, (a, b), rounds).items():
        rows.append(dict(common, resolution=r, part=part, calls=rounds, p50_ms=first, against='later calls',
                         ratio=first / later, value=1e3 * (first - later), unit='us'))
    return rows


def _per_call(calls: Sequence[Callable[[], Any]], rounds: int) -> float:
    """Median microseconds of one of them, over rounds of 100."""
    taken = []
    for _ in range(rounds):
        start = time.perf_counter_ns()
        for _ in range(100 // len(calls)):
            for call in calls:
                call()
        taken.append((time.perf_counter_ns() - start) / 100 / 1e3)
    return median(taken)


def _after_switch(
        ways: Dict[str, Callable[[int], Any]],
        sizes: Sequence[int],
        rounds: int,
) -> Dict[Tuple[str, int], Tuple[float, float]]:
    """(way, resolution) -> median milliseconds of the first of four calls, and of the last two; sizes alternate."""
    first: Dict[Tuple[str, int], List[float]] = {(way, r): [] for way in ways for r in sizes}
    later: Dict[Tuple[str, int], List[float]] = {key: [] for key in first}
    for _ in range(rounds):
        for way, r in first:
            taken = [_milliseconds(partial(ways[way], r)) for _ in range(4)]
            first[way, r].append(taken[0])
            later[way, r].append(median(taken[2:]))
    return {key: (median(first[key]), median(later[key])) for key in first}


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter_ns()
    call()
    return (time.perf_counter_ns() - start) / 1e6


def memory_rows(network: Network, case: Case, threads: int, folder: Path) -> Rows:
    """Resident memory of fresh processes that serve all resolutions: a session, one graph, separate plain networks.

    `ratio` compares what is there beyond the imported engine.
    """
    sizes = network.resolutions
    if case.engine == 'torch':
        kinds: Dict[str, Sequence[Any]] = dict(session=[network.name], separate=[network.name] * len(sizes))
    else:
        import onnx
        weights = sha256(network.file.read_bytes()).hexdigest()[:12]  # files of other weights may be there
        files = [folder / f'{network.name}-plain-{weights}-{r}.onnx' for r in sizes]
        for r, file in zip(sizes, files):
            if not file.exists():
                onnx.save(plain_graph(extract(network.model, r), r), str(file))
        kinds = dict(session=[network.file], shared=[network.file], separate=files)
    taken = {kind: resident_memory(kind, case.engine, case.precision, threads, sizes, sources)
             for kind, sources in kinds.items()}
    beyond = {kind: mib['after'] - mib['before'] for kind, mib in taken.items()}
    return [dict(engine=case.engine, precision=case.precision, part=kind, value=mib['after'], unit='MiB',
                 baseline=mib['before'], against='separate', ratio=beyond[kind] / beyond['separate'])
            for kind, mib in taken.items()]


def agreement_rows(
        network: Network,
        sessions: Sessions,
        pictures: Sequence[Path],
        targets: Optional[np.ndarray],
        sizes: Sequence[int],
) -> Rows:
    """Top-1 agreement of each session with torch in float32 on pictures, and its top-1 where they are labelled."""
    eager, rows = Eager(network), []
    for r in sizes:
        ready = [next(iter(sessions.values())).preprocess(picture, r) for picture in pictures]
        expected = np.concatenate([eager.run(x) for x in ready])
        for case, logits in [(EAGER, expected), *(
                (case, np.concatenate([session.run(x, r) for x in ready])) for case, session in sessions.items())]:
            same = logits.argmax(1) == expected.argmax(1)
            right = (logits.argmax(1) == targets).mean() if targets is not None else None
            rows.append(dict(
                engine=case.engine, precision=case.precision, resolution=r, part='top-1', calls=len(pictures),
                value=100. * float(same.mean()), unit='% agreement', against='torch fp32',
                top1='' if right is None else 100. * float(right),
                largest_difference=float(np.abs(logits - expected).max() / np.abs(expected).max())))
    return rows
