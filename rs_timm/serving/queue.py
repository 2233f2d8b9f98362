"""Requests that wait for a network: each has a deadline, and is served in a batch of one size, or refused."""
import asyncio
import io
import math
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Callable, Deque, Dict, List, Mapping, Optional, Tuple, Union

import numpy as np
from PIL import Image

from rs_timm.pictures import ImageError
from rs_timm.runtime.policy.load import LoadController
from rs_timm.runtime.session import Session

__all__ = ['Answer', 'Refused', 'RequestQueue', 'measure_costs']


_PLANNED = 0.9  # share of a deadline that may be planned: sending takes time, and so does whatever nobody foresees
_SLOWER, _FASTER = 1.06, 0.98  # steps of the pace, after which three batches in four take no longer than it says


class Refused(Exception):
    """A request that cannot be answered in time.

    Attributes:
        reason: 'queue' is full, 'overload' even at the smallest size, 'deadline', or 'stopping'.
        retry_s: whole seconds after which it may be tried again.
    """

    def __init__(self, message: str, reason: str, wait_ms: float = 0.) -> None:
        super().__init__(message)
        self.reason, self.retry_s = reason, max(1, math.ceil(wait_ms / 1e3))


@dataclass(frozen=True)
class Answer:
    """Logits of a request.

    Args:
        logits: float32 [N, classes].
        resolution: pixels of the network that made them.
        milliseconds: from the arrival of the request.
    """

    logits: np.ndarray
    resolution: int
    milliseconds: float


@dataclass
class _Request:
    content: Union[bytes, np.ndarray]  # a file, or a batch that is ready [N, C, r, r]
    resolution: Optional[int]  # None: whatever keeps the deadline
    arrived: float  # seconds, as the others
    due: float  # when it is planned to be answered
    deadline: float
    loop: asyncio.AbstractEventLoop
    future: 'asyncio.Future[Answer]' = field(repr=False)

    @property
    def count(self) -> int:
        return 1 if isinstance(self.content, bytes) else len(self.content)

    @property
    def size(self) -> int:
        """Pixels that it has to be served at; 0: whatever keeps the deadline."""
        return (self.resolution or 0) if isinstance(self.content, bytes) else int(self.content.shape[-1])

    def goes_with(self, other: '_Request') -> bool:
        """Whether both may be of one batch: pictures that ask for the same size."""
        return isinstance(self.content, bytes) and isinstance(other.content, bytes) and self.size == other.size

    def settle(self, result: Union[Answer, Exception]) -> None:
        def act() -> None:
            if not self.future.done():  # its client may have gone
                if isinstance(result, Answer):
                    self.future.set_result(result)
                else:
                    self.future.set_exception(result)

        with suppress(RuntimeError):  # its loop has ended, and its client with it
            self.loop.call_soon_threadsafe(act)


class RequestQueue:
    """One thread that serves requests through a session, first come first served.

    The size is the load controller's, or a smaller one where that alone keeps the deadlines of a batch and of those
    that wait behind it. A request whose deadline cannot be kept at the smallest size, by the costs and by what waits
    before it, is refused at once; so is one whose turn comes too late, after all. Nothing is dropped without an answer.
    The costs are taken times a pace, which follows what batches really take while the machine does other things, too.

    Args:
        session: of a classifier.
        costs: resolution -> milliseconds of a picture, all in: `measure_costs`.
        target_ms: the p95 of latency that the load controller keeps.
        max_queue: pictures that may wait.
        max_batch: pictures that go through the network together.
        observe: told of each answer (resolution, milliseconds, kept its deadline?) and, with a reason, of each refusal.
    """

    def __init__(
            self,
            session: Session,
            costs: Mapping[int, float],
            target_ms: float = 50.,
            max_queue: int = 256,
            max_batch: int = 4,
            observe: Callable[..., None] = lambda **what: None,
    ) -> None:
        self.session, self.costs, self.max_queue, self.max_batch = session, dict(costs), max_queue, max_batch
        self.controller = LoadController(self.costs, target_ms=target_ms)
        self._fastest = min(self.costs, key=self.costs.__getitem__)
        self._pace = 1.  # milliseconds that pass for one of the costs
        self._observe = observe
        self._waiting: Deque[_Request] = deque()
        self._busy_until = 0.
        self._changed = threading.Condition()
        self._stopping = False
        self._thread = threading.Thread(target=self._serve, name='rs_timm requests', daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Pictures that wait."""
        return sum(request.count for request in list(self._waiting))

    def stop(self) -> None:
        """Answer what waits, then end. New requests are refused."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        self._thread.join()

    async def answer(
            self,
            content: Union[bytes, np.ndarray],
            deadline_ms: float,
            resolution: Optional[int] = None,
    ) -> Answer:
        """Logits of a picture, or of a batch that is ready.

        Args:
            content: the bytes of a picture's file, or float32 [N, C, r, r].
            deadline_ms: milliseconds from now.
            resolution: pixels; None leaves it to the load controller.

        Raises:
            ImageError: no readable picture.
            Refused: it could not be answered in time.
            ValueError: a batch of another shape.
        """
        loop, now = asyncio.get_running_loop(), time.monotonic()
        request = _Request(content, resolution, now, now + _PLANNED * deadline_ms / 1e3, now + deadline_ms / 1e3, loop,
                           loop.create_future())
        with self._changed:
            waiting = len(self)
            wait_ms = max(0., self._busy_until - now) * 1e3 + sum(map(self._least_ms, self._waiting))
            if self._stopping:
                raise self._refused('the server stops', 'stopping')
            if waiting + request.count > self.max_queue:
                raise self._refused(f'{waiting} pictures wait already', 'queue', wait_ms)
            if waiting and self.controller.overloaded:
                raise self._refused(f'{waiting} pictures wait already, more than the smallest size can serve within '
                                    f'{self.controller.target_ms:g} ms', 'overload', wait_ms)
            if now + (wait_ms + self._least_ms(request, self._pace if wait_ms else 1.)) / 1e3 > request.due:
                raise self._refused(
                    f'{waiting} pictures wait, which takes about {wait_ms:.0f} ms: a deadline of {deadline_ms:g} ms '
                    'cannot be kept', 'deadline', wait_ms)
            self._waiting.append(request)
            self._changed.notify()
        return await request.future

    def _refused(self, message: str, reason: str, wait_ms: float = 0.) -> Refused:
        self._observe(refused=reason)
        return Refused(message, reason, wait_ms)

    def _least_ms(self, request: _Request, pace: Optional[float] = None) -> float:
        """Milliseconds that a request takes at least. With a pace of 1, as if the machine did nothing else: requests
        that need not wait are always tried, or a pace that nobody keeps any longer would never be corrected."""
        cost = self.costs.get(request.size or self._fastest, max(self.costs.values()))
        return (self._pace if pace is None else pace) * request.count * cost

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._stopping)
                if not self._waiting:
                    return
                batch, size = self._next_batch()
                count, start = sum(request.count for request in batch), time.monotonic()
                expected = count * self.costs.get(size, 0.) / 1e3
                self._busy_until = start + self._pace * expected
            try:
                self._run(batch, size)
            except Exception as error:  # the next batch goes on
                for request in batch:
                    request.settle(error)
            if expected and isinstance(batch[0].content, bytes):
                self._pace *= _SLOWER if time.monotonic() - start > self._pace * expected else _FASTER

    def _next_batch(self) -> Tuple[List[_Request], int]:
        """Requests that wait longest and may go together, and their size; none if the turn of all comes too late."""
        batch: List[_Request] = []
        now, left = time.monotonic(), math.inf  # left: milliseconds until the first is due
        while self._waiting and len(batch) < self.max_batch:
            request = self._waiting[0]
            if batch and not request.goes_with(batch[0]):
                break
            mine = (request.due - now) * 1e3
            takes = sum(map(self._least_ms, (*batch, request))) if batch else self._least_ms(request, 1.)
            if takes <= min(left, mine):
                batch.append(request)
                left = min(left, mine)
            elif batch:
                break
            else:
                request.settle(self._refused('its turn came too late for its deadline', 'deadline'))
            self._waiting.popleft()
        return batch, self._size(batch, left, now) if batch else 0

    def _size(self, batch: List[_Request], left: float, now: float) -> int:
        """The size of a batch: the largest in use that leaves those behind it their time, too."""
        if batch[0].size:
            return batch[0].size
        behind = 0.
        for request in self._waiting:
            behind += self._least_ms(request)
            left = min(left, (request.due - now) * 1e3 - behind)
        sizes = [r for r in self.controller.resolutions if r <= self.controller.resolution]
        return next((r for r in sizes if self._pace * self.costs[r] * len(batch) <= left), sizes[-1])

    def _run(self, batch: List[_Request], size: int) -> None:
        ready: List[np.ndarray] = []
        served: List[_Request] = []
        for request in batch:
            try:
                ready.append(self.session.preprocess(request.content, size))
                served.append(request)
            except ImageError as error:  # there is but one picture, which has no name
                request.settle(ImageError(str(error).removeprefix('picture 0: ')))
            except ValueError as error:
                request.settle(error)
        if not served:
            return
        logits = self.session.run(np.concatenate(ready), size)
        now, start = time.monotonic(), 0
        for request in served:
            milliseconds = (now - request.arrived) * 1e3
            if not request.size:
                self.controller.observe(milliseconds, len(self))
            self._observe(resolution=size, milliseconds=milliseconds, kept=now <= request.deadline)
            request.settle(Answer(logits[start:start + request.count], size, milliseconds))
            start += request.count


def measure_costs(session: Session, max_batch: int = 1, runs: int = 5) -> Dict[int, float]:
    """Milliseconds of a photograph at each trained size, decoding and all. Compiles for all batches.

    It is the least of some runs, in turns: what else the machine does is left to the pace of a `RequestQueue`.

    Args:
        session: of a classifier.
        max_batch: pictures that may go together; batches of powers of two up to it are compiled.
        runs: of each size.
    """
    stream = io.BytesIO()
    Image.effect_mandelbrot((500, 375), (-2, -1, 1, 1), 30).convert('RGB').save(stream, 'JPEG', quality=90)
    for batch in (1 << power for power in range(max_batch.bit_length())):
        session.prepare(batch=batch)
    costs = dict.fromkeys(session.resolutions, math.inf)
    for _ in range(runs + 1):  # one warms up
        for size in costs:
            start = time.perf_counter()
            session.run(session.preprocess(stream.getvalue(), size), size)
            costs[size] = min(costs[size], (time.perf_counter() - start) * 1e3)
    return costs
