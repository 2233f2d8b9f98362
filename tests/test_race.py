"""Networks that answer in turns: what is stopped early, what never is, and what a stopped measurement keeps."""
import json

import numpy as np
import pytest

from rs_timm.pictures import ImageError
from rs_timm.runtime.policy.plan_log import BROKEN, MeasuredLog, Visit
from rs_timm.runtime.policy.race import FIRST, VISIT, Contender, Race, advantage
from rs_timm.runtime.session import NotFiniteError

CLASSES = 4


class Clock:

    def __init__(self):
        self.now = 0

    def __call__(self):
        return self.now


class Known:
    """A session whose answers are in a table, and whose calls take so many milliseconds; a picture is its position."""

    def __init__(self, clock, answers, ms, unreadable=(), fails_at=None, margin=1.):
        self.clock, self.answers, self.ms = clock, answers, ms
        self.unreadable, self.fails_at, self.calls = set(unreadable), fails_at, []
        self.preprocessing, self.margin = self, margin

    def preprocess(self, pictures, size):
        for picture in pictures:
            if picture in self.unreadable:
                raise ImageError(f'{picture}: no picture')
        return np.array(pictures)

    def run(self, x, size):
        (picture,) = x
        if picture == self.fails_at:
            raise NotFiniteError('nan', (0,), x)
        self.calls.append(int(picture))
        # longer every other time, so that the interval of the median is more than a point
        self.clock.now += int(1e6 * self.ms * (1 + 0.02 * (len(self.calls) % 2)))
        return self.margin * np.eye(CLASSES, dtype=np.float32)[[self.answers[picture]]]


def network(clock, name, right, ms, targets, **options):
    """Right where `right` says so."""
    answers = np.where(right, targets, (targets + 1) % CLASSES)
    return Contender(Known(clock, answers, ms, **options), 32, name, name)


def targets_of(count):
    return np.random.default_rng(0).integers(0, CLASSES, count)


def share(count, percent):
    """Right in so many of a hundred, spread evenly; the larger of two contains the smaller."""
    return np.arange(count) * 37 % 100 < percent


def race(contenders, count, targets, clock, calls=72, **options):
    made = Race(contenders, range(count), targets, clock=clock, **options)
    made.run(calls)
    return made


def test_the_bound_on_an_advantage_holds_in_95_of_100_samples():
    generator = np.random.default_rng(0)
    for both, ours, theirs in ((0.8, 0.02, 0.02), (0.6, 0.1, 0.05), (0.9, 0.0, 0.01)):
        cells = generator.multinomial(1, (both, ours, theirs, 1 - both - ours - theirs), (800, 200)).astype(bool)
        bounds = [advantage(cell[:, 0] | cell[:, 1], cell[:, 0] | cell[:, 2]) for cell in cells]
        assert np.mean(np.array(bounds) >= 100 * (ours - theirs)) > 0.93
    everything = np.arange(200) < 120, np.arange(200) < 100
    assert advantage(*everything, of=200) == pytest.approx(100 * 20 / 202)


def test_what_is_behind_stops_and_the_front_does_not():
    clock, count = Clock(), 400
    targets = targets_of(count)
    make = {'small': (60, 1.), 'middle': (75, 2.), 'large': (90, 4.), 'slow': (75, 4.2), 'bad': (40, 1.2),
            'tie': (60, 1.)}
    contenders = {name: network(clock, name, share(count, percent), ms, targets)
                  for name, (percent, ms) in make.items()}
    done = race(contenders.values(), count, targets, clock)
    assert {contender.label for contender in done.out} == {'slow', 'bad'}
    assert {contender.label for contender in done.running} == {'small', 'middle', 'large', 'tie'}
    assert contenders['slow'].behind.label in ('large', 'middle') and contenders['bad'].behind.label == 'small'
    for contender in done.out:
        assert len(contender.answers) == FIRST == len(contender.nanoseconds)
    for contender in done.running:
        percent, ms = make[contender.label]
        assert 100 * contender.right(targets).mean() == percent and len(contender.nanoseconds) == count
        assert contender.median()[1] == pytest.approx(1e6 * ms, rel=0.03)


def test_without_a_tolerance_all_are_measured_to_the_end():
    clock, count = Clock(), 120
    targets = targets_of(count)
    contenders = [network(clock, str(ms), share(count, 90), ms, targets) for ms in (1., 5.)]
    assert not race(contenders, count, targets, clock, tolerance=None).out
    assert [len(contender.answers) for contender in contenders] == [count, count]


@pytest.mark.parametrize('margin, same', [(1 + 1e-5, True), (1.1, False)])
def test_what_computes_the_same_stops_at_once(margin, same):
    """As the same answers alone do once there are so many that one point is beyond doubt."""
    clock, count = Clock(), 400
    targets = targets_of(count)
    fast, slow = (network(clock, str(ms), share(count, 70), ms, targets, margin=of)
                  for ms, of in ((1., 1.), (2., margin)))
    done = race([fast, slow], count, targets, clock)
    stopped = np.ones(len(slow.answers), bool)
    assert done.out == [slow] and (len(stopped) == FIRST) == same
    early = stopped[:FIRST]
    assert same or advantage(stopped, stopped, count) <= 1. < advantage(early, early, count)


def test_nothing_is_lost_by_a_chain_of_replacements():
    """8 points behind are within the tolerance of 10; 16, by way of another network, are not."""
    clock, count = Clock(), 1700
    targets = targets_of(count)
    best, middle, last = (network(clock, name, share(count, percent), ms, targets)
                          for name, percent, ms in (('best', 90, 3.), ('middle', 82, 2.), ('last', 74, 1.)))
    done = race([best, middle, last], count, targets, clock, tolerance=10.)
    assert done.out == [best] and best.behind is middle and done.running == [middle, last]
    alone = [network(clock, name, share(count, percent), ms, targets)
             for name, percent, ms in (('middle', 82, 2.), ('last', 74, 1.))]
    assert [contender.label for contender in race(alone, count, targets, clock, tolerance=10.).out] == ['middle']


def test_who_stands_for_one_that_stopped_early_can_be_replaced_later():
    """100 answers of the slowest are too few for a comparison with the fastest; that with the middle one is enough."""
    clock, count = Clock(), 400
    targets = targets_of(count)
    fast, middle, slow = (network(clock, str(ms), share(count, 70), ms, targets, margin=margin)
                          for ms, margin in ((1., 1.1), (2., 1.), (3., 1.)))
    done = race([fast, middle, slow], count, targets, clock)
    assert done.out == [slow, middle] and (slow.behind, middle.behind) == (middle, fast)
    assert len(slow.answers) == FIRST < len(middle.answers) < count


def test_without_labels_the_reference_says_what_is_right():
    clock, count = Clock(), 100
    targets = targets_of(count)
    reference = network(clock, 'reference', share(count, 50), 9., targets)
    other = network(clock, 'other', share(count, 50), 1., targets)
    done = race([reference, other], count, None, clock, reference=reference)
    assert done.running == [reference, other] and other.right(done.targets).all()


def test_few_pictures_are_called_again_until_there_is_a_p95():
    clock = Clock()
    targets = targets_of(15)
    contender = network(clock, 'one', share(15, 100), 1., targets)
    race([contender], 15, targets, clock, calls=100)
    assert 100 <= len(contender.nanoseconds) < 100 + VISIT and len(contender.answers) == 15


def test_pictures_that_cannot_be_read_are_left_out_once():
    clock, count, errors = Clock(), 30, []
    targets = targets_of(count)
    contenders = [network(clock, str(ms), share(count, 100), ms, targets, unreadable=(3, 17)) for ms in (1., 2.)]
    done = race(contenders, count, targets, clock, skip=errors.append)
    assert sorted(str(error) for error in errors) == ['17: no picture', '3: no picture']
    for contender in done.running:
        assert contender.right(targets).tolist() == [True] * 28 and (contender.answers == BROKEN).sum() == 2
    with pytest.raises(ImageError, match='3: no picture'):
        race(contenders, count, targets, clock)
    none = network(clock, 'none', share(5, 100), 1., targets[:5], unreadable=range(5))
    with pytest.raises(ValueError, match='none of 5 pictures can be read'):
        race([none], 5, targets[:5], clock, skip=errors.append)


def test_a_network_without_finite_values_is_left_out():
    clock, count = Clock(), 30
    targets = targets_of(count)
    broken = network(clock, 'broken', share(count, 100), 1., targets, fails_at=12)
    well = network(clock, 'well', share(count, 100), 1., targets)
    done = race([broken, well], count, targets, clock)
    assert done.running == [well] and done.failed.keys() == {broken}
    with pytest.raises(NotFiniteError):
        race([network(clock, 'broken', share(count, 100), 1., targets, fails_at=12)], count, targets, clock)


class Stopped(Exception):
    pass


def test_a_measurement_that_was_stopped_goes_on(tmp_path):
    clock, count, file = Clock(), 120, tmp_path / 'log.jsonl'
    targets = targets_of(count)

    def contenders():
        return [network(clock, name, share(count, percent), ms, targets)
                for name, percent, ms in (('fast', 90, 1.), ('slow', 50, 3.))]

    def run(made):
        log = MeasuredLog(file, dict(pictures='these'))
        try:
            return race(made, count, targets, clock, log=log)
        finally:
            log.close()

    first = contenders()
    original, calls = first[0].session.run, []

    def stops(x, size):
        calls.append(x)
        if len(calls) > 60:
            raise Stopped
        return original(x, size)

    first[0].session.run = stops
    with pytest.raises(Stopped):
        run(first)
    with file.open('a') as stream:
        stream.write('{"network":"fast","sta')  # as of a process that was killed while it wrote
    kept = {(visit['network'], visit['start']) for visit in map(json.loads, file.read_text().splitlines()[1:-1])}
    again = contenders()
    done = run(again)
    whole = race(contenders(), count, targets, clock)
    assert [c.answers.tolist() for c in done.running] == [c.answers.tolist() for c in whole.running]
    assert [c.label for c in done.out] == [c.label for c in whole.out] == ['slow']
    assert done.nanoseconds == pytest.approx(whole.nanoseconds, rel=0.05)  # of what was measured before, too
    for contender in again:
        of_kept = {start + offset for name, start in kept if name == contender.key for offset in range(VISIT)}
        assert of_kept and not of_kept & set(contender.session.calls)
    before = file.read_bytes()
    third = contenders()
    run(third)
    assert file.read_bytes() == before and not any(contender.session.calls for contender in third)


VISIT_OF = '{"network": "a", "start": 0, "answers": %s, "margins": [0.5], "nanoseconds": %s, "whole": %s}'


@pytest.mark.parametrize('lines, words', [
    ([], ''),
    (['{"kind": "another"}'], 'log.jsonl has other content'),
    (['no json'], r'log.jsonl, line 1 is not JSON'),
    (['[]'], 'line 1 is no JSON object'),
    ([None, '{"network": "a"}'], 'log.jsonl, line 2 lacks start'),
    ([None, VISIT_OF % ('[1]', '[-5]', 9)], 'line 2: 1 answers from picture 0'),
    ([None, VISIT_OF % ('[1, 2]', '[5]', 9)], 'a margin and a time for each picture'),
    ([None, VISIT_OF % ('[1]', '[5]', 4)], '4 in all'),
    ([None, VISIT_OF % ('["1"]', '[5]', 9)], r'line 2: answers\.0'),
])
def test_what_is_no_log(tmp_path, lines, words):
    file = tmp_path / 'log.jsonl'
    MeasuredLog(file, dict(threads=2)).close()
    heading = file.read_text().strip()
    file.write_text(''.join(f'{heading if line is None else line}\n' for line in lines))
    if words:
        with pytest.raises(ValueError, match=words):
            MeasuredLog(file, dict(threads=2))
    else:
        MeasuredLog(file, dict(threads=2)).close()
        with pytest.raises(ValueError, match=r'other settings \(threads 2, here 1\): --again'):
            MeasuredLog(file, dict(threads=1))


def test_a_visit_comes_back_as_it_was(tmp_path):
    visit = Visit('key', 10, (1, BROKEN, 0), (0.25, 1.), (5, 7), 20)
    log = MeasuredLog(tmp_path / 'log.jsonl', {})
    log.add(visit)
    log.close()
    assert MeasuredLog(tmp_path / 'log.jsonl', {}).visits == {'key': {10: visit}}
