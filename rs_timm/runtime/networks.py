"""The compiled networks of a session, a bounded number: one for each resolution, or resolution and batch."""
import os
from functools import cache
from itertools import count
from threading import Lock
from typing import Any, Callable, Dict, List, Optional, Tuple

import numpy as np

from .engines import Engine, Network

__all__ = ['Networks', 'release_free_memory']

Key = Tuple[int, Optional[int]]  # resolution, and batch or None for any
_ALL_SIZES: Key = (0, None)
_LARGEST_BATCH = 32  # of the sizes that networks are compiled for, where an engine wants them exact
_PIXELS = 64 * 224 * 224  # of the images that go through a network of any batch at a time: what bounds memory


class Networks:
    """Runs batches of any size and resolution; each network that this takes is compiled on first use.

    Calls may come from several threads. A process that was forked has no threads of an engine, so it gets an error.

    Args:
        engine: compiles.
        plain: resolution -> what `engine` takes.
        one_for_all: `plain` gives the one network of all sizes and batches.
        limit: networks that are kept; the one that was not used for the longest time makes room.
        name: the file or model that the networks are of, for errors.
    """

    def __init__(
            self, engine: Engine, plain: Callable[[int], Any], one_for_all: bool, limit: int, name: str) -> None:
        self.engine, self.plain, self.one_for_all, self.limit, self.name = engine, plain, one_for_all, limit, name
        self.compiled: Dict[Key, Network] = {}
        self._used: Dict[Key, int] = {}
        self._uses = count()
        self._lock = Lock()
        self._process = os.getpid()

    def run(self, x: np.ndarray) -> np.ndarray:
        """Outputs, float32 [N, ...], of images [N, C, r, r]; they go through in parts that bound memory."""
        size, batch = x.shape[-1], len(x)
        network = self.compiled.get((size, batch))
        if network is not None:
            self._used[size, batch] = next(self._uses)
            return network(x)
        if self._takes_any(batch):
            network = self.get(size, batch)
            step = max(1, _PIXELS // size ** 2)
            if batch <= step:
                return network(x)
            return np.concatenate([network(x[start:start + step]) for start in range(0, batch, step)])
        parts = [self.get(size, stop - start)(x[start:stop]) for start, stop in powers_of_two(batch)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    def prepare(self, resolution: int, batch: int) -> None:
        """Compile what `run` needs for this many images of a size; up to 32 get a network for just that many."""
        if self._takes_any(batch) or batch <= _LARGEST_BATCH:
            self.get(resolution, batch)
            return
        for start, stop in powers_of_two(batch):
            self.get(resolution, stop - start)

    def get(self, resolution: int, batch: int) -> Network:
        """The network for this many images, or for any number where that is as fast; compiled if it is not there.

        Raises:
            ValueError: the engine cannot compile it.
        """
        key: Key = _ALL_SIZES if self.one_for_all else (resolution, None if self._takes_any(batch) else batch)
        network = self.compiled.get(key)
        if network is None:
            with self._lock:  # whoever comes second finds it made
                network = self.compiled.get(key)
                if network is None:
                    network = self._compile(key, resolution)
        self._used[key] = next(self._uses)
        return network

    def check_process(self) -> None:
        """Raise RuntimeError in a process that was forked off the one that made this."""
        if os.getpid() != self._process:
            raise RuntimeError(
                f'this session was made in process {self._process}, and this one, {os.getpid()}, was forked off it '
                'without the threads of its engine, so that a call would hang: make the session in the process that '
                "uses it, or start processes with the method 'spawn'.")

    def _compile(self, key: Key, resolution: int) -> Network:
        while len(self.compiled) >= self.limit:
            oldest = min(self.compiled, key=lambda k: self._used.get(k, -1))
            del self.compiled[oldest]
            self._used.pop(oldest, None)
        plain = self.plain(resolution)
        try:
            network = self.engine.compile(plain, key[1])
        except (ImportError, MemoryError, OSError):
            raise
        except Exception as error:  # engines have kinds of their own
            reason = ' '.join(str(error).split())[:300]
            raise ValueError(
                f'{self.engine.name} cannot run the network of {self.name} for {resolution} px: {reason}') from error
        self.compiled[key] = network
        release_free_memory()
        return network

    def _takes_any(self, batch: int) -> bool:
        """Whether a batch goes to the network that takes any."""
        limit = self.engine.any_batch_from
        return self.one_for_all or (limit is not None and batch >= limit)


def powers_of_two(batch: int) -> List[Tuple[int, int]]:
    """Cut a batch into powers of two, largest first, so that few networks serve all batches.

    >>> powers_of_two(37)
    [(0, 32), (32, 36), (36, 37)]
    """
    parts, start = [], 0
    while start < batch:
        size = min(_LARGEST_BATCH, 1 << (batch - start).bit_length() - 1)
        parts.append((start, start + size))
        start += size
    return parts


def release_free_memory() -> None:
    """Let the C library return free memory to the system, where it can be told to (glibc).

    Engines copy weights several times while they compile. What they free then stays with the process otherwise.
    """
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@cache
def _malloc_trim() -> Optional[Any]:
    try:
        import ctypes  # not in every build of python

        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, ImportError, OSError, TypeError):  # another C library; TypeError on Windows
        return None
