"""Networks that answer the same pictures in turns; those that are behind another beyond doubt stop early."""
import math
import random
import time
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Set, Tuple

import numpy as np

from rs_timm.pictures import ImageError

from ..session import NotFiniteError
from .plan_log import BROKEN, MeasuredLog, Visit

__all__ = ['Contender', 'Race', 'advantage']

VISIT = 10  # pictures that a network answers before the next one has its turn
FIRST = 100  # pictures after which a network can be out, and then after half as many more each time
_DOUBT = 1.645  # standard deviations: 95 % on one side
_DOUBT_OF_TIME = 2.576  # 99 % on two sides
_SETTLE = 2e6  # nanoseconds of calls that do not count: another engine's threads stop, the weights enter the cache
_SAME = 1e-3  # relative difference of margins of networks that compute the same


class Contender:
    """A session at one size, what it has answered and how long that took.

    Args:
        session: a `Session`; or anything with its `preprocess`, `preprocessing` and `run`.
        size: in pixels.
        key: what its measurements are filed under.
        label: for people.

    Attributes:
        answers: classes, int64 [N]; `BROKEN` of a picture that cannot be read.
        margins: float [N], of the pictures that can be read: the largest output less the second largest.
        nanoseconds: of the calls that count.
        behind: who has taken its place; None while it runs.
        stands_for: whose place it has taken, and the most points that each of them is ahead, beyond doubt.
    """

    def __init__(self, session: Any, size: int, key: str, label: str) -> None:
        self.session, self.size, self.key, self.label = session, size, key, label
        self.answers = np.zeros(0, np.int64)
        self.margins = np.zeros(0)
        self.nanoseconds: List[int] = []
        self.logits: Dict[int, np.ndarray] = {}  # position of a picture -> its logits, where they are kept
        self.behind: Optional[Contender] = None
        self.stands_for: List[Tuple[Contender, float]] = []

    def right(self, targets: np.ndarray) -> np.ndarray:
        """Whether each picture so far was answered as in `targets` [N], without those that cannot be read."""
        count = min(len(self.answers), len(targets))
        return (self.answers[:count] == targets[:count])[self.answers[:count] != BROKEN]

    def computes_as(self, other: 'Contender') -> bool:
        """Whether both have answered the same with the same margins, but for rounding: one network on two engines."""
        count = min(len(self.margins), len(other.margins))
        ours, theirs = self.margins[:count], other.margins[:count]
        answered = min(len(self.answers), len(other.answers))
        return bool(count and (self.answers[:answered] == other.answers[:answered]).all()
                    and np.abs(ours - theirs).max() <= _SAME * ours.mean())

    def median(self) -> Tuple[float, float, float]:
        """Nanoseconds: the lower end of a 99 % interval of the median, the median, and the upper end."""
        times = sorted(self.nanoseconds)
        count = len(times)
        reach = _DOUBT_OF_TIME * math.sqrt(count) / 2.
        low, high = (int(min(max(count / 2. + sign * reach, 0.), count - 1.)) for sign in (-1, 1))
        return times[low], times[(count - 1) // 2], times[high]


def advantage(ours: np.ndarray, theirs: np.ndarray, of: float = math.inf) -> float:
    """The most that one network may be more accurate than another, in points, with 95 % confidence.

    From the pictures that just one of them has right: the difference of two proportions of the same pictures, with half
    a picture added to each of the four cells.

    >>> both = np.ones(200, bool)
    >>> round(advantage(both, both), 2), advantage(both, ~both) > 90 > 0 > advantage(~both, both)
    (0.81, True)

    Args:
        ours, theirs: whether each picture was right, bool [N], the same pictures.
        of: how many pictures there are, from which these were drawn; the bound is on those, all of them.

    Source: Agresti and Min, Effects and non-effects of paired identical observations in comparing proportions with
    binary matched-pairs data, Statistics in Medicine 23, 2004.
    """
    count = len(ours) + 2
    only_ours, only_theirs = int((ours & ~theirs).sum()), int((theirs & ~ours).sum())
    difference = (only_ours - only_theirs) / count
    variance = ((only_ours + only_theirs + 1) / count - difference ** 2) / count
    return 100. * (difference + _DOUBT * math.sqrt(max(0., variance) * max(0., 1. - len(ours) / of)))


class Race:
    """Lets networks answer pictures, with a clock, and stops those that are behind.

    The pictures come in parts. All networks answer a part before the next one is read, in random order, so that what
    else the machine does hits all of them alike; each call is timed. After 100 pictures, and then whenever there are
    half as many more, a network is out if another one is faster (the 99 % intervals of the medians do not meet), and
    with 95 % confidence not less accurate on all the pictures by more than `tolerance`, or computes the same; and if
    the same can be said of all those whose place the first had taken.

    Args:
        contenders: the networks.
        pictures: what `session.preprocess` takes, in random order.
        targets: the class of each picture, int [N]; None: what `reference` answers.
        reference: one of the contenders, which is never out; needed without targets.
        tolerance: points of accuracy; None: all networks answer all pictures.
        log: keeps what was measured, and knows what was measured before.
        keep_logits: of all answers, for cascades.
        skip: called with the error of a picture that cannot be read, which is then left out; None: it is raised.
        progress: show a bar where the standard error is a terminal.
        seed: of the order of the turns.
        clock: nanoseconds.

    Attributes:
        running: those that are not out, and at the end have answered everything.
        out: those whose place another has taken.
        failed: those that gave no finite values.
        nanoseconds: of the measurement, with what the log knew of it before.
    """

    def __init__(
            self,
            contenders: Sequence[Contender],
            pictures: Sequence[Any],
            targets: Optional[np.ndarray] = None,
            reference: Optional[Contender] = None,
            tolerance: Optional[float] = 1.,
            log: Optional[MeasuredLog] = None,
            keep_logits: bool = False,
            skip: Optional[Callable[[ImageError], None]] = None,
            progress: bool = False,
            seed: int = 0,
            clock: Callable[[], int] = time.perf_counter_ns,
    ) -> None:
        assert contenders and len(pictures) and (targets is not None or reference in contenders)
        self.running: List[Contender] = list(contenders)
        self.out: List[Contender] = []
        self.pictures, self.reference, self.tolerance = pictures, reference, tolerance
        self.log, self.keep_logits, self.skip = log or MeasuredLog(None, {}), keep_logits, skip
        self._targets, self._order, self._clock = targets, random.Random(seed), clock
        self._progress = progress
        self._unreadable: Set[int] = set()
        self.failed: Dict[Contender, NotFiniteError] = {}
        self.nanoseconds = 0

    @property
    def targets(self) -> np.ndarray:
        """The class of each picture, or of each that the reference has answered."""
        if self._targets is not None:
            return self._targets
        assert self.reference is not None
        return self.reference.answers

    def run(self, calls: int) -> None:
        """Answer all pictures; then the first ones again, until every network that runs was called `calls` times."""
        from tqdm import tqdm  # not at the top: serving needs no bar

        count = len(self.pictures)
        ends = [*self._checks(), count]
        with tqdm(total=count * len(self.running), desc='measuring', unit='picture', leave=False,
                  disable=None if self._progress else True) as bar:
            for first, last in zip([0, *ends], ends):
                for start in range(first, last, VISIT):
                    self._part(start, min(start + VISIT, last), bar.update)
                if last < count and self.tolerance is not None:
                    self._drop(self.tolerance)
                    bar.total = bar.n + (count - last) * len(self.running)
            if not any(contender.nanoseconds for contender in self.running):
                raise ValueError(f'none of {count} pictures can be read.')
            again = 0
            while min(len(contender.nanoseconds) for contender in self.running) < calls:
                self._part(again % count, min(again % count + VISIT, count), lambda done: None, count + again)
                again += min(again % count + VISIT, count) - again % count

    def _checks(self) -> Iterator[int]:
        end = FIRST
        while end < len(self.pictures):
            yield end
            end += end // 2 // VISIT * VISIT

    def _part(self, start: int, stop: int, advance: Callable[[int], Any], at: Optional[int] = None) -> None:
        """Have pictures answered by all; `at` is the position that the answers are filed under, if not `start`."""
        position = start if at is None else at
        waiting = []
        for contender in self.running:
            visit = self.log.visits.get(contender.key, {}).get(position)
            if visit is None or len(visit.answers) != stop - start or (self.keep_logits and at is None):
                waiting.append(contender)
            else:
                self._count(contender, visit, at)
                advance(stop - start)
        tensors: List[Tuple[Any, int, Dict[int, np.ndarray]]] = []  # those of one size and preprocessing are shared
        for contender in self._order.sample(waiting, len(waiting)):
            session, size, begun = contender.session, contender.size, self._clock()
            ready = next((ready for preprocessing, of_size, ready in tensors
                          if of_size == size and preprocessing == session.preprocessing), None)
            if ready is None:
                ready = self._ready(session, size, range(start, stop))
                tensors.append((session.preprocessing, size, ready))
            try:
                visit = self._visit(contender, ready, range(start, stop), position, begun, at is None)
            except NotFiniteError as error:
                self.running.remove(contender)
                self.failed[contender] = error
                if not self.running or contender is self.reference:
                    raise
                continue
            self.log.add(visit)
            self._count(contender, visit, at)
            advance(stop - start)

    def _ready(self, session: Any, size: int, positions: Sequence[int]) -> Dict[int, np.ndarray]:
        """Position -> tensor [1, C, size, size] of the pictures that can be read."""
        try:
            x = session.preprocess([self.pictures[position] for position in positions], size)
            return {position: x[index:index + 1] for index, position in enumerate(positions)}
        except ImageError:
            if self.skip is None:
                raise
        ready = {}
        for position in positions:
            try:
                ready[position] = session.preprocess([self.pictures[position]], size)
            except ImageError as error:
                if position not in self._unreadable:
                    self.skip(error)
                self._unreadable.add(position)
        return ready

    def _visit(
            self,
            contender: Contender,
            ready: Dict[int, np.ndarray],
            positions: Sequence[int],
            position: int,
            begun: int,
            at_first: bool,
    ) -> Visit:
        run, size, clock = contender.session.run, contender.size, self._clock
        until = clock() + _SETTLE
        for x in ready.values():
            run(x, size)
            if clock() >= until:
                break
        answers, margins, times = [], [], []
        for picture in positions:
            if picture not in ready:
                answers.append(BROKEN)
                continue
            start = clock()
            logits = run(ready[picture], size)
            times.append(clock() - start)
            second, first = np.partition(logits[0], -2)[-2:] if logits.shape[1] > 1 else (0., 0.)
            answers.append(int(logits.argmax()))
            margins.append(float(first - second))
            if self.keep_logits and at_first:
                contender.logits[picture] = logits[0]
        return Visit(contender.key, position, tuple(answers), tuple(margins), tuple(times), clock() - begun)

    def _count(self, contender: Contender, visit: Visit, at: Optional[int]) -> None:
        if at is None:
            contender.answers = np.concatenate([contender.answers, visit.answers]).astype(np.int64)
            contender.margins = np.concatenate([contender.margins, visit.margins])
        contender.nanoseconds += visit.nanoseconds
        self.nanoseconds += visit.whole

    def _drop(self, tolerance: float) -> None:
        targets = self.targets
        for contender in sorted(self.running, key=lambda contender: -contender.median()[1]):
            if contender is self.reference or not contender.nanoseconds:
                continue
            for other in sorted(self.running, key=lambda other: -other.right(targets).mean()):
                if other.median()[2] >= contender.median()[0]:
                    continue
                ahead = self._advantage(contender, other)
                lost = [(each, min(self._advantage(each, other), before + ahead))
                        for each, before in contender.stands_for] if ahead <= tolerance else []
                if all(bound <= tolerance for _, bound in [(contender, ahead), *lost]):
                    contender.behind = other
                    other.stands_for += [(contender, ahead), *lost]
                    self.running.remove(contender)
                    self.out.append(contender)
                    break

    def _advantage(self, ours: Contender, theirs: Contender) -> float:
        """The most points that one may be ahead of another, with 95 % confidence."""
        if ours.computes_as(theirs):
            return 0.
        right = ours.right(self.targets)
        return advantage(right, theirs.right(self.targets)[:len(right)], len(self.pictures))
