"""Resolution against load: small while many requests come, large again when there is time."""
import math
import threading
import time
from collections import deque
from typing import Callable, Deque, Dict, Mapping, NamedTuple, Optional, Tuple

from rs_timm.resolutions import check_resolutions

__all__ = ['LoadController', 'predicted_wait']

_ENOUGH = 20  # latencies from which a p95 is taken
_EASED = 0.8  # a raise that failed is free to be tried again when the load is below this share of what it was then
_LONGEST = 32  # times the patience, at most, after raises that failed


class _Seen(NamedTuple):
    now: float  # seconds
    arrived: float
    latency_ms: float
    queue: int


class LoadController:
    """Keeps the p95 of latency, or the queue, at a target while load changes, by moving the resolution.

    A state machine: tell it of each request that was served, and serve the next one at the resolution that it returns.
    It lowers the resolution as soon as the requests that wait could not be served in time, or one was late and the p95
    of those that came since the last change is beyond the target, or the queue is. It raises it by one step when it has
    been calm for `patience_s` and the larger size, at the rate at which requests arrive, would keep `margin` of the
    target. A raise that had to be taken back soon is tried again after twice the time, or when load has eased. So costs
    that are too optimistic make it slow, not restless.

    >>> controller = LoadController({224: 12., 160: 7., 96: 3.}, target_ms=50.)
    >>> controller.observe(latency_ms=14., queue_length=0, now=0.)
    224
    >>> controller.observe(latency_ms=25., queue_length=5, now=0.1)     # six times 12 ms are too late, six times 7 fit
    160

    Args:
        costs: resolution in pixels -> milliseconds of service of one request; `LatencyTable.milliseconds()` measures
            them. A size that costs no less than a larger one is not used.
        target_ms: the p95 of latency, from a request's arrival to its answer, that is to be kept, in milliseconds.
        target_queue: requests that may wait. At least one of both targets.
        margin: share of the target that a larger size must be expected to keep, 0 to 1: the hysteresis.
        window_s: seconds back that p95 and rate of arrival look.
        cooldown_s: seconds between a change and a lowering; None: the target latency, or ten times the largest cost.
        patience_s: seconds between a change and a raise.
        start: resolution to begin with; None: the largest.
        clock: seconds, for calls of `observe` without `now`.

    Raises:
        ValueError: no target, or values out of range.
    """

    def __init__(
            self,
            costs: Mapping[int, float],
            target_ms: Optional[float] = None,
            target_queue: Optional[float] = None,
            *,
            margin: float = 0.7,
            window_s: float = 2.,
            cooldown_s: Optional[float] = None,
            patience_s: float = 1.,
            start: Optional[int] = None,
            clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.costs = _useful(costs)
        if cooldown_s is None:
            cooldown_s = (target_ms or 10. * max(self.costs.values())) / 1e3
        _check(target_ms, target_queue, margin, window_s=window_s, cooldown_s=cooldown_s, patience_s=patience_s)
        if start is not None and start not in self.costs:
            raise ValueError(f'start {start!r} is not one of the sizes {self.resolutions}.')
        self.target_ms, self.target_queue, self.margin = target_ms, target_queue, margin
        self.window_s, self.cooldown_s, self.patience_s = window_s, cooldown_s, patience_s
        self.clock = clock
        self._resolution = self.resolutions[0] if start is None else start
        self._lock = threading.Lock()
        self._seen: Deque[_Seen] = deque()
        self._changed: Optional[float] = None  # when; None before the first observation
        self._raised: Optional[float] = None  # when the size in use was reached from below
        self._patience: Dict[int, float] = {}  # size -> seconds before it is tried again, after it failed
        self._failed_at: Dict[int, float] = {}  # size -> arrivals per second when it failed

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """The sizes in use, largest first."""
        return tuple(self.costs)

    @property
    def resolution(self) -> int:
        """The size for the next request."""
        return self._resolution

    def observe(self, latency_ms: float, queue_length: int = 0, now: Optional[float] = None) -> int:
        """Tell of a request that was served, and get the resolution for the next one.

        Args:
            latency_ms: milliseconds from its arrival to its answer.
            queue_length: requests that wait now.
            now: seconds of a clock that does not go back; None: `clock()`.

        Raises:
            ValueError: a negative latency or queue.
        """
        if not latency_ms >= 0. or queue_length < 0:
            raise ValueError(f'latency_ms {latency_ms!r}, queue_length {queue_length!r}: neither can be negative.')
        with self._lock:
            now = self.clock() if now is None else now
            if self._seen:
                now = max(now, self._seen[-1].now)  # threads may report in another order
            if self._changed is None:
                self._changed = now - self.cooldown_s  # free to lower at once, and calm from here on
            self._seen.append(_Seen(now, now - latency_ms / 1e3, latency_ms, queue_length))
            while self._seen[0].now < now - self.window_s:
                self._seen.popleft()
            self._move(now, queue_length)
            return self._resolution

    def arrivals_per_second(self) -> float:
        """Rate of arrival in the window: what was served, and what the queue has grown by. 0 if it is not known."""
        if len(self._seen) < 2 or self._seen[-1].now <= self._seen[0].now:
            return 0.
        first, last = self._seen[0], self._seen[-1]
        return max(0., (len(self._seen) - 1 + last.queue - first.queue) / (last.now - first.now))

    def _move(self, now: float, queue: int) -> None:
        assert self._changed is not None
        calm = now - self._changed
        lower = self._lower(queue) if calm >= self.cooldown_s else self._resolution
        if lower < self._resolution:
            self._remember_failure(now)
            self._set(lower, now, raised=False)
            return
        larger = [size for size in self.resolutions if size > self._resolution]
        if larger and self._may_raise(larger[-1], queue, calm):
            self._set(larger[-1], now, raised=True)

    def _lower(self, queue: int) -> int:
        """The size in use if it keeps the targets, else a smaller one, or the smallest."""
        sizes = [size for size in self.resolutions if size <= self._resolution]
        if self.target_ms is not None:
            in_time = [size for size in sizes if (queue + 1) * self.costs[size] <= self.target_ms]
            if not in_time:
                return sizes[-1]
            sizes = in_time
        late = self.target_ms is not None and min(self._seen[-1].latency_ms, self._p95()) > self.target_ms
        full = self.target_queue is not None and queue > self.target_queue
        step_is_due = sizes[0] == self._resolution and (late or full)
        return sizes[min(1, len(sizes) - 1)] if step_is_due else sizes[0]

    def _p95(self) -> float:
        """Of the requests that came after the last change: the others waited under another size. 0 for too few."""
        assert self._changed is not None
        latencies = sorted(seen.latency_ms for seen in self._seen if seen.arrived >= self._changed)
        return latencies[math.ceil(0.95 * len(latencies)) - 1] if len(latencies) >= _ENOUGH else 0.

    def _may_raise(self, size: int, queue: int, calm: float) -> bool:
        rate, cost = self.arrivals_per_second(), self.costs[size]
        eased = rate < _EASED * self._failed_at.get(size, math.inf)
        if calm < (self.patience_s if eased else self._patience.get(size, self.patience_s)):
            return False
        wait = predicted_wait(rate, cost)
        if self.target_ms is not None:
            allowed = self.margin * self.target_ms
            if wait + cost > allowed or (queue + 1) * cost > allowed:
                return False
        if self.target_queue is not None:
            allowed = self.margin * self.target_queue
            if rate * wait / 1e3 > allowed or queue > allowed:
                return False
        return rate * cost < 1e3

    def _remember_failure(self, now: float) -> None:
        """A raise that is taken back soon doubles the time before the next one to this size; else it is forgiven."""
        size = self._resolution
        patience = self._patience.get(size, self.patience_s)
        if self._raised is not None and now - self._raised < 4. * patience:
            self._patience[size] = min(2. * patience, _LONGEST * self.patience_s)
            self._failed_at[size] = self.arrivals_per_second()
        else:
            self._patience.pop(size, None)
            self._failed_at.pop(size, None)

    def _set(self, size: int, now: float, raised: bool) -> None:
        self._resolution, self._changed = size, now
        self._raised = now if raised else None


def predicted_wait(per_second: float, service_ms: float) -> float:
    """The p95 of the wait in milliseconds before one server, if requests come at random and all take the same time.

    The tail of an M/D/1 queue, taken as exponential: P(wait > t) = load * exp(-2 (1 - load) t / service).

    >>> predicted_wait(10, 2.), round(predicted_wait(50, 10.), 1), predicted_wait(200, 10.)
    (0.0, 23.0, inf)

    Args:
        per_second: requests that arrive.
        service_ms: milliseconds that each takes.
    """
    load = per_second * service_ms / 1e3
    if load >= 1.:
        return math.inf
    return max(0., math.log(max(load, 1e-9) / 0.05)) * service_ms / (2. * (1. - load))


def _useful(costs: Mapping[int, float]) -> Dict[int, float]:
    """{resolution, largest first: cost}, without sizes that cost no less than a larger one."""
    useful: Dict[int, float] = {}
    for size in check_resolutions(costs):
        cost = float(costs[size])
        if not 0. < cost < math.inf:
            raise ValueError(f'costs[{size}] = {cost}: milliseconds, positive and finite.')
        if not useful or cost < min(useful.values()):
            useful[size] = cost
    return useful


def _check(target_ms: Optional[float], target_queue: Optional[float], margin: float, **seconds: float) -> None:
    if target_ms is None and target_queue is None:
        raise ValueError('a target is missing: target_ms=50 (p95 of latency) or target_queue=10 (requests that wait).')
    if target_ms is not None and not target_ms > 0.:
        raise ValueError(f'target_ms {target_ms!r} is not positive.')
    if target_queue is not None and not target_queue >= 0.:
        raise ValueError(f'target_queue {target_queue!r} is negative.')
    if not 0. < margin <= 1.:
        raise ValueError(f'margin {margin!r}: a share of the target, above 0 and at most 1.')
    for name, value in seconds.items():
        if not value > 0.:
            raise ValueError(f'{name} {value!r} is not positive.')
