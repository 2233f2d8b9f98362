"""Resident memory of one way to serve all resolutions, in a process of its own: prints MiB before and after.

    python -m benchmarks.runtime.memory session|shared|separate ENGINE PRECISION THREADS RESOLUTIONS SOURCE...

SOURCE is the exported file for 'session' and 'shared', a plain file for each resolution for 'separate'; for the engine
torch, which alone imports torch, the name of the model. 'after' is when each resolution has answered once.
"""
import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence

import numpy as np
import psutil

_MIB = 2 ** 20
_ROOT = Path(__file__).resolve().parent.parent.parent


def resident_memory(
        kind: str,
        engine: str,
        precision: str,
        threads: int,
        resolutions: Sequence[int],
        sources: Sequence[Any],
) -> Dict[str, float]:
    """{'before', 'after'} in MiB of a fresh process: with the engine imported, and serving."""
    command = [sys.executable, '-m', 'benchmarks.runtime.memory', kind, engine, precision, str(threads),
               ','.join(map(str, resolutions)), *map(str, sources)]
    done = subprocess.run(command, cwd=_ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f'{" ".join(command)}: {done.stderr.strip()[-500:]}')
    return json.loads(done.stdout.splitlines()[-1])


def _mib() -> float:
    gc.collect()
    return psutil.Process().memory_info().rss / _MIB


def _serve(kind: str, engine: str, precision: str, threads: int, resolutions: List[int], sources: List[str]) -> Any:
    """What must be kept alive to serve; each resolution has answered once."""
    if kind in ('session', 'shared'):
        return _session(kind, engine, precision, threads, resolutions, sources)
    return _separate(engine, precision, threads, resolutions, sources)


def _session(kind: str, engine: str, precision: str, threads: int, resolutions: List[int], sources: List[str]) -> Any:
    from rs_timm.runtime import Session
    source = _torch_model(sources[0]) if engine == 'torch' else sources[0]
    session = Session(source, engine, precision, threads, memory='shared' if kind == 'shared' else 'speed')
    del source
    for resolution in resolutions:
        session.run(_picture(resolution))
    return session


def _separate(engine: str, precision: str, threads: int, resolutions: List[int], sources: List[str]) -> Any:
    from rs_timm.runtime.engines import create_engine
    from rs_timm.runtime.networks import release_free_memory
    made = create_engine(engine, precision, threads, of_torch=engine == 'torch')
    networks: List[Callable[[np.ndarray], np.ndarray]] = []
    for resolution, source in zip(resolutions, sources):
        networks.append(made.compile(_plain(engine, precision, source, resolution), 1))
        release_free_memory()  # as a session does
        networks[-1](_picture(resolution))
    return networks


def _plain(engine: str, precision: str, source: str, resolution: int) -> Any:
    """A network of its own, as if it had been trained for this resolution alone."""
    if engine != 'torch':
        import onnx
        return onnx.load(source)
    import rs_timm
    from rs_timm.runtime.engines._torch import prepare
    return prepare(rs_timm.extract(_torch_model(source), resolution), precision)


def _torch_model(name: str) -> Any:
    import timm

    import rs_timm  # noqa: F401 (registers the models)
    return timm.create_model(name).eval()


def _picture(resolution: int) -> np.ndarray:
    return np.zeros((1, 3, resolution, resolution), np.float32)


def _import(engine: str) -> None:
    if engine == 'torch':
        import timm  # noqa: F401
        import torch  # noqa: F401
    else:
        import onnx  # noqa: F401

        import rs_timm.runtime.session  # noqa: F401
        __import__(engine)


def main() -> None:
    kind, engine, precision, threads, resolutions, *sources = sys.argv[1:]
    _import(engine)
    before = _mib()
    alive = _serve(kind, engine, precision, int(threads), [int(r) for r in resolutions.split(',')], sources)
    print(json.dumps(dict(before=before, after=_mib())))
    del alive


if __name__ == '__main__':
    main()
