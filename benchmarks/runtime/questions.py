"""The questions of benchmarks/runtime_latency.py, which each give rows of its table for one network, and what is timed:
stock timm in eager mode, sessions, and plain networks in the same engine.
"""
import io
import time
import warnings
from copy import copy
from functools import partial
from hashlib import sha256
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import rs_timm
from benchmarks.runtime.memory import resident_memory
from benchmarks.runtime.networks import Network
from benchmarks.timing import ratio_of_visits, seconds, take_turns
from rs_timm.pictures import open_image
from rs_timm.runtime import Session
from rs_timm.runtime.engines import PRECISIONS, create_engine
from rs_timm.runtime.policy.latency_table import Timing

Run = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """An engine and its precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f'{self.engine} {self.precision}'


EAGER = Case('timm eager', 'float32')
CASES = tuple(Case(engine, precision) for engine, precisions in {
    'openvino': PRECISIONS, 'onnxruntime': ('float32', 'int8'), 'torch': ('float32', 'bfloat16')}.items()
    for precision in precisions)


class Eager:
    """The plain network of timm with the same weights, as its documentation says to run it."""

    def __init__(self, network: Network) -> None:
        self.models: Dict[int, nn.Module] = {r: rs_timm.extract(network.model, r) for r in network.resolutions}
        config = resolve_model_data_config(network.model)
        config = {key: value for key, value in config.items() if key != 'input_size'}
        self.transforms = {r: create_transform((3, r, r), is_training=False, **config) for r in network.resolutions}

    def run(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.models[x.shape[-1]](torch.from_numpy(x)).numpy()

    def preprocess(self, picture: Path, resolution: int) -> np.ndarray:
        return self.transforms[resolution](open_image(picture))[None].numpy()

    def whole(self, picture: Path, resolution: int) -> np.ndarray:
        return self.run(self.preprocess(picture, resolution))


def sessions(
        network: Network,
        cases: Sequence[Case],
        threads: int,
        calibration: Sequence[Path],
        cache: Optional[Path],
) -> Dict[Case, Session]:
    """A session for each case that this machine can do; the others are named on standard output."""
    made: Dict[Case, Session] = {}
    for case in cases:
        options: Dict[str, Any] = dict(calibration=calibration, cache_dir=cache) if case.precision == 'int8' else {}
        source = network.model if case.engine == 'torch' else network.file
        try:
            made[case] = Session(source, case.engine, case.precision, threads, **options)
            made[case].prepare()
        except (ImportError, ValueError) as error:
            print(f'# left out {case}: {error}')
    return made


def plain_networks(network: Network, case: Case, threads: int, sizes: Sequence[int]) -> Dict[int, Run]:
    """resolution -> the plain network of timm in the engine, as torch exports it at this size."""
    engine = create_engine(case.engine, case.precision, threads)
    return {r: engine.compile(plain_graph(rs_timm.extract(network.model, r), r), 1) for r in sizes}


def plain_graph(model: nn.Module, resolution: int) -> Any:
    """The `onnx.ModelProto` of a plain network for one picture of this size; torch folds its BatchNorms."""
    import onnx
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # this exporter is deprecated; the other is slower, and gives the same graph
        torch.onnx.export(
            model.eval(), (torch.zeros(1, 3, resolution, resolution),), buffer,  # type: ignore[arg-type]
            input_names=['images'], output_names=['logits'], dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def engine_network(session: Session, resolution: int) -> Run:
    """The engine's own network of a session for one picture, without the session around it."""
    return session._networks.get(resolution, 1)  # private: what is measured is the session's share


def without_engine(session: Session) -> Session:
    """The same session with networks that answer at once: what is left is its own work."""
    session.prepare()
    bare, answer = object.__new__(Session), np.zeros((1, 1), np.float32)
    bare.__dict__.update(vars(session), _networks=copy(session._networks))
    bare._networks.compiled = dict.fromkeys(session._networks.compiled, lambda images: answer)
    return bare


# Questions

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
    times = take_turns(cases, calls, f'{network.name}: latency')
    rows = []
    for (case, resolution, part), taken in times.items():
        reference = EAGER if part != PREPROCESSING else Case(EAGER.engine, '')
        rows.append(_row(case, resolution, part, taken, against=str(reference).strip(),
                         ratio=ratio_of_visits(times[reference, resolution, part], taken)))
    return rows


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
                 p50_ms=float(np.median(times[part, r])), against=other,
                 ratio=ratio_of_visits(times[part, r], times[other, r]))
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
    taken: Dict[Tuple[str, int], List[List[float]]] = {(way, r): [] for way in ways for r in (a, b)}
    for _ in range(rounds):  # four calls of each, the first of them after a switch
        for way, r in taken:
            taken[way, r].append([1e3 * seconds(partial(ways[way], r)) for _ in range(4)])
    for (part, r), visits in taken.items():
        first, later = median(visit[0] for visit in visits), median(median(visit[2:]) for visit in visits)
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
                onnx.save(plain_graph(rs_timm.extract(network.model, r), r), str(file))
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
                value=100. * float(same.mean()), unit='% agreement', against='torch float32',
                top1='' if right is None else 100. * float(right),
                largest_difference=float(np.abs(logits - expected).max() / np.abs(expected).max())))
    return rows
