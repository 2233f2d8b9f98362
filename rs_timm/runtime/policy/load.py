"""Resolution against load: small while many requests come, large again when there is time."""
import math
import threading
import time
from collections import deque
from typing import Callable, Deque, Dict, List, Mapping, Optional, Tuple

from rs_timm.resolutions import check_resolutions

__all__ = ['LoadController', 'predicted_wait']

_ENOUGH = 20  # latencies from which a p95 is taken
_BUCKETS = 16  # that a window is counted in
_EASED = 0.8  # load has eased when it is below this share of the highest since the last lowering, beyond doubt
_LONGEST = 8  # times `retry_s`, at most, after raises that were taken back
_SMOOTH = 5.  # windows that the smoothed rate of arrival looks back, about
_CHANCE = 1e-6  # probability of a wait that is put down to a change of load, not to arrivals at random


class LoadController:
    """Keeps the p95 of latency, or the queue, at a target while load changes, by moving the resolution.

    A state machine: tell it of each request that was served, and serve the next one at the resolution that it returns.
    It lowers the resolution as soon as the requests that wait could not be served in time, or one was late and the p95
    of those that came since the last change is beyond the target, or the queue is. It raises it by one step when it has
    been calm for `patience_s` and the larger size, at the rate at which requests arrive, would keep `margin` of the
    target; but not within `retry_s` of a lowering or another such raise, or twice as long after each raise that had to
    be taken back, unless load has eased. After two changes within `retry_s`, a queue that requests at random make once
    in a while at the present rate lowers nothing as long as the p95 since the last change is in time. So a constant
    load, or costs that are too optimistic, do not make it restless: two changes a minute, once it has settled.

    Each observation takes constant time and memory, at any rate, and whatever the timestamps are.

    >>> controller = LoadController({224: 12., 160: 7., 96: 3.}, target_ms=50.)
    >>> controller.observe(latency_ms=14., queue_length=0, now=0.)
    224
    >>> controller.observe(latency_ms=25., queue_length=5, now=0.1)     # six times 12 ms are too late, six times 7 fit
    160
    >>> controller.observe(latency_ms=60., queue_length=50, now=0.2), controller.overloaded  # 3 ms are too many, too
    (96, True)

    Args:
        costs: resolution in pixels -> milliseconds of service of one request; `LatencyTable.milliseconds()` measures
            them. A size that costs no less than a larger one is not used.
        target_ms: the p95 of latency, from a request's arrival to its answer, that is to be kept, in milliseconds.
        target_queue: requests that may wait. At least one of both targets.
        margin: share of the target that a larger size must be expected to keep, 0 to 1: the hysteresis.
        window_s: seconds back that p95 and rate of arrival look.
        cooldown_s: seconds between a change and a lowering; None: the target latency, or ten times the largest cost.
        patience_s: seconds between a change and a raise.
        retry_s: seconds between a lowering or a raise and the next raise, unless load has eased; they double, up to
            eight times as many. No more than two changes come within them at constant load.
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
            retry_s: float = 60.,
            start: Optional[int] = None,
            clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.costs = _useful(costs)
        if cooldown_s is None:
            cooldown_s = (target_ms or 10. * max(self.costs.values())) / 1e3
        _check(target_ms, target_queue, margin, window_s=window_s, cooldown_s=cooldown_s, patience_s=patience_s,
               retry_s=retry_s)
        if start is not None and start not in self.costs:
            raise ValueError(f'start {start!r} is not one of the sizes {self.resolutions}.')
        self.target_ms, self.target_queue, self.margin = target_ms, target_queue, margin
        self.window_s, self.cooldown_s, self.patience_s, self.retry_s = window_s, cooldown_s, patience_s, retry_s
        self.clock = clock
        self._limit_ms = math.inf if target_ms is None else target_ms
        self._limit_queue = math.inf if target_queue is None else target_queue
        self._resolution = self.resolutions[0] if start is None else start
        self._overloaded = False
        self._lock = threading.Lock()
        self._given: Optional[float] = None  # the latest timestamp
        self._now = 0.  # seconds of its own, which only grow
        self._changed = -cooldown_s  # free to lower at once, and calm from here on
        self._changes = deque([-math.inf, -math.inf], maxlen=2)
        self._lowered = self._raised = self._tried = -math.inf
        self._retry = retry_s
        self._peak = 0.  # highest smoothed rate since the last lowering
        self._smooth = 0.  # arrivals per second
        self._window = _Window(window_s)

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """The sizes in use, largest first."""
        return tuple(self.costs)

    @property
    def resolution(self) -> int:
        """The size for the next request."""
        return self._resolution

    @property
    def overloaded(self) -> bool:
        """Whether even the smallest size cannot serve in time those that wait: time to refuse new requests.

        As of the last observation. It ends as soon as one is reported with a queue that can be served in time.
        """
        return self._overloaded

    def observe(self, latency_ms: float, queue_length: int = 0, now: Optional[float] = None) -> int:
        """Tell of a request that was served, and get the resolution for the next one.

        Args:
            latency_ms: milliseconds from its arrival to its answer.
            queue_length: requests that wait now.
            now: seconds; None: `clock()`. Where threads report in another order, the latest counts; a clock that was
                set back is followed from there.

        Raises:
            ValueError: a negative latency or queue, or a time that is not finite.
        """
        if not (latency_ms >= 0. and queue_length >= 0):
            raise ValueError(f'latency_ms {latency_ms!r}, queue_length {queue_length!r}: neither can be negative.')
        with self._lock:
            given = self.clock() if now is None else now
            if not -math.inf < given < math.inf:
                raise ValueError(f'now {given!r}: finite seconds are needed.')
            passed = 0. if self._given is None else given - self._given
            if passed >= 0. or passed < -self.window_s:
                self._given = given
            if passed > 0.:
                self._now += passed
            window = self._window
            new_bucket = window.add(
                self._now, queue_length, latency_ms > self._limit_ms, self._now - latency_ms / 1e3 >= self._changed)
            if new_bucket:
                rate = window.rate()
                share = min(1., window.step / (_SMOOTH * self.window_s))
                self._smooth = rate if not self._smooth else self._smooth + share * (rate - self._smooth)
                self._peak = max(self._peak, self._smooth)
            self._move(latency_ms, queue_length, new_bucket)
            return self._resolution

    def _move(self, latency_ms: float, queue: int, new_bucket: bool) -> None:
        size, calm = self._resolution, self._now - self._changed
        in_time = (queue + 1) * self.costs[size] <= self._limit_ms
        late = latency_ms > self._limit_ms and self._window.mostly_late()
        full = queue > self._limit_queue
        if in_time and not late and not full:
            self._overloaded = False
            if new_bucket and calm >= self.patience_s and size != self.resolutions[0]:
                self._raise(queue)
            return
        smaller = [r for r in self.resolutions if r < size]
        if not smaller:
            self._overloaded = queue > 0
        elif calm >= self.cooldown_s and not (
                self._now - self._changes[0] < self.retry_s and self._is_chance(queue, late)):
            fitting = [r for r in smaller if (queue + 1) * self.costs[r] <= self._limit_ms]
            failed = self._now - self._raised < self._retry
            self._retry = min(2. * self._retry, _LONGEST * self.retry_s) if failed else self.retry_s
            self._set((fitting or smaller[-1:])[0])
            self._lowered, self._raised, self._tried, self._peak = self._now, -math.inf, -math.inf, self._smooth
            self._overloaded = not fitting and queue > 0

    def _raise(self, queue: int) -> None:
        size = min(r for r in self.resolutions if r > self._resolution)
        rate, cost = max(self._window.rate(), self._smooth), self.costs[size]
        by_chance = 3. * math.sqrt(self._peak / (_SMOOTH * self.window_s))  # part of the peak of a constant load
        eased = self._window.below(_EASED * (self._peak - by_chance))
        if self._now - max(self._lowered, self._tried) < self._retry and not eased:
            return
        wait = predicted_wait(rate, cost)
        in_time = max(wait + cost, (queue + 1) * cost) <= self.margin * self._limit_ms
        short = max(rate * wait / 1e3, queue) <= self.margin * self._limit_queue
        if rate * cost < 1e3 and in_time and short:
            self._set(size)
            self._raised = self._now
            self._tried = -math.inf if eased else self._now

    def _is_chance(self, queue: int, late: bool) -> bool:
        """Whether requests that come at random, at the present rate, make a queue this long once in a while."""
        cost = self.costs[self._resolution]
        load = max(self._window.rate(), self._smooth) * cost / 1e3
        in_time = not (late and self._window.mostly_late(since_change=True))
        return in_time and load < 1. and load * math.exp(-2. * (1. - load) * (queue + 1)) > _CHANCE

    def _set(self, size: int) -> None:
        self._resolution, self._changed = size, self._now
        self._changes.append(self._now)
        self._window.forget_latencies()


class _Window:
    """Counts of the requests of the last seconds, in buckets of a sixteenth, so that the oldest can go."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.step = 0.  # seconds between the last two buckets
        self._buckets: Deque[List[float]] = deque()  # start, queue at the start, requests, and of those below
        self._count = self._current = self._late = 0  # all; those that came since the last change; of them, late
        self._since_change = [0, 0]  # those and the late ones of them, also where they are older than the window
        self._now, self._queue = 0., 0.

    def add(self, now: float, queue: float, late: bool, current: bool) -> bool:
        """Count a request; `now` must not go back. Returns whether a bucket was begun."""
        begun = not self._buckets or now - self._buckets[-1][0] >= self.seconds / _BUCKETS
        if begun:
            while self._buckets and self._buckets[0][0] < now - self.seconds:
                _, _, count, of_these, late_ones = self._buckets.popleft()
                self._count -= int(count)
                self._current -= int(of_these)
                self._late -= int(late_ones)
            self.step = now - self._buckets[-1][0] if self._buckets else self.seconds
            self._buckets.append([now, queue, 0, 0, 0])
        bucket = self._buckets[-1]
        self._count += 1
        bucket[2] += 1
        if current:
            self._current += 1
            self._since_change[0] += 1
            bucket[3] += 1
            if late:
                self._late += 1
                self._since_change[1] += 1
                bucket[4] += 1
        self._now, self._queue = now, queue
        return begun

    def rate(self) -> float:
        """Arrivals per second: what was served, and what the queue has grown by. 0 if it is not known."""
        if not self._buckets or self._now <= self._buckets[0][0]:
            return 0.
        start, queue, *_ = self._buckets[0]
        return max(0., (self._count - 1 + self._queue - queue) / (self._now - start))

    def below(self, rate: float) -> bool:
        """Whether the rate is below this one by more than chance makes it, for requests that come at random."""
        if not self._buckets:
            return False
        seconds = max(self._now - self._buckets[0][0], self.seconds / 2.)
        count = self.rate() * seconds
        return count + 4. * math.sqrt(count) < rate * seconds

    def mostly_late(self, since_change: bool = False) -> bool:
        """Whether the p95 of those that came since the last change was late; others waited under another size.

        Of those in the window, or of all of them.
        """
        count, late = self._since_change if since_change else (self._current, self._late)
        return count >= _ENOUGH and late > count - math.ceil(0.95 * count)

    def forget_latencies(self) -> None:
        """Count latencies anew, as after a change."""
        self._current = self._late = 0
        self._since_change = [0, 0]
        for bucket in self._buckets:
            bucket[3] = bucket[4] = 0


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
    """Return {resolution, largest first: cost}, without sizes that cost no less than a larger one."""
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
