"""The load controller keeps its target, uses the time there is, and does not hunt: by simulation of one server."""
import bisect
import itertools
import math
import random
import threading
import time

import pytest

from rs_timm.runtime.policy.load import LoadController, predicted_wait

COSTS = {224: 12., 192: 9., 160: 6.8, 128: 4.8, 96: 3.2}  # ms
TARGET = 60.


def poisson(rate, seconds, seed=0, start=0.):
    generator = random.Random(seed)
    times = itertools.accumulate(iter(lambda: generator.expovariate(rate), None), initial=start)
    return list(itertools.takewhile(lambda t: t < start + seconds, times))[1:]


def even(rate, seconds, start=0.):
    return [start + index / rate for index in range(int(rate * seconds))]


def serve(controller, arrivals, service=COSTS):
    """First in, first out -> latencies in ms, and [(seconds, resolution)] of the changes."""
    now, latencies, changes = 0., [], []
    for served, arrived in enumerate(arrivals, start=1):
        before = controller.resolution
        now = max(now, arrived) + service[before] / 1e3
        latencies.append(1e3 * (now - arrived))
        after = controller.observe(latencies[-1], bisect.bisect_right(arrivals, now) - served, now)
        if after != before:
            changes.append((now, after))
    return latencies, changes


def controller(**options):
    return LoadController(COSTS, **{'target_ms': TARGET, **options})


@pytest.mark.parametrize('rate', [20, 60, 80])
def test_a_load_that_the_largest_size_carries_changes_nothing(rate):
    assert rate * COSTS[224] < 1e3
    latencies, changes = serve(controller(), even(rate, 60))
    assert not changes and max(latencies) == pytest.approx(COSTS[224])


@pytest.mark.parametrize('rate', [90, 120, 160, 220, 300])
def test_constant_load_ends_the_movement(rate):
    """Even arrivals: it comes down to a size that carries them, perhaps looks up once, and stays."""
    chosen = controller()
    latencies, changes = serve(chosen, even(rate, 60))
    assert rate * COSTS[chosen.resolution] < 1e3
    assert not [change for change in changes if change[0] > 10.]
    assert max(latencies[len(latencies) // 2:]) <= TARGET


@pytest.mark.parametrize('rate, seed', [
    *itertools.product([50, 80, 120, 180, 240], [0, 1]),
    (75, 1), (70, 1), (70, 2),  # three or four changes in a minute, before two of them had to be enough
])
def test_random_arrivals_are_served_in_time_and_without_hunting(rate, seed):
    latencies, changes = serve(controller(), poisson(rate, 300, seed))
    assert sum(latency > TARGET for latency in latencies) <= 0.05 * len(latencies)
    settled = [t for t, _ in changes if t > 10.]
    assert all(third - first >= 60. for first, third in zip(settled, settled[2:]))


def test_a_rise_is_answered_at_once_also_after_two_changes_within_a_minute():
    """A queue that random requests would not make is load."""
    chosen = controller(start=192)
    assert [chosen.observe(10., queue, now) for queue, now in ((7, 1.), (9, 1.5))] == [160, 128]
    _, changes = serve(chosen, [*poisson(75, 20, start=2.), *even(300, 1, start=22.)])
    assert changes[0][1] == 96 and 22. < changes[0][0] < 22.25


def test_what_the_largest_size_cannot_carry_is_late_without_the_controller():
    """The oracle of the tests above: they are not true of any policy."""
    latencies, _ = serve(LoadController({224: COSTS[224]}, TARGET), poisson(120, 60))
    assert sum(latency > TARGET for latency in latencies) > 0.9 * len(latencies)


def test_overload_reaches_the_smallest_and_calm_the_largest():
    chosen = controller()
    beyond = 1.5e3 / COSTS[96]
    _, changes = serve(chosen, [*even(20, 10), *even(beyond, 2, start=10.), *even(20, 30, start=20.)])
    down, up = [r for t, r in changes if t < 12.], [r for t, r in changes if t > 12.]
    assert down[-1] == 96 and down == sorted(down, reverse=True)
    assert up == [128, 160, 192, 224]  # one step at a time


def test_falls_within_the_target_of_a_rise():
    _, changes = serve(controller(), [*even(20, 10), *even(200, 5, start=10.)])
    assert changes[0][0] - 10. < TARGET / 1e3 + COSTS[224] / 1e3


def test_it_uses_the_time_that_there_is():
    """Mean size falls with load, and is the largest that would keep the target for most of the time."""
    def mean_size(rate):
        chosen, sizes = controller(), []
        arrivals = poisson(rate, 30)
        now = 0.
        for served, arrived in enumerate(arrivals, start=1):
            sizes.append(chosen.resolution)
            now = max(now, arrived) + COSTS[chosen.resolution] / 1e3
            chosen.observe(1e3 * (now - arrived), bisect.bisect_right(arrivals, now) - served, now)
        return sum(sizes) / len(sizes)

    means = [mean_size(rate) for rate in (20, 60, 100, 160, 240, 290)]
    assert means == sorted(means, reverse=True) and means[0] == 224 and means[-1] < 112


@pytest.mark.parametrize('factor', [1.3, 1.6])
def test_costs_that_are_too_optimistic_make_it_slow_not_restless(factor):
    """Each failed raise doubles the time to the next."""
    service = {size: cost * factor for size, cost in COSTS.items()}
    latencies, changes = serve(controller(), even(100, 200), service)
    late = sum(latency > TARGET for latency in latencies)
    assert late <= 0.05 * len(latencies)
    assert len([t for t, _ in changes if t > 10.]) <= 2 * 2


def test_hysteresis_between_up_and_down():
    """At a load where a size is kept when it is in use, it is not entered from below."""
    load = 0.8e3 / COSTS[160]
    above, below = controller(start=160), controller(start=128)
    serve(above, even(load, 30)), serve(below, even(load, 30))
    assert (above.resolution, below.resolution) == (160, 128)


def test_a_failed_raise_is_free_again_when_load_eases():
    service = {**COSTS, 224: 3 * COSTS[224]}  # the largest costs three times what the controller was told
    chosen = controller(start=192)
    _, changes = serve(chosen, [*even(40, 60), *even(5, 4, start=61.)], service)
    failures = [t for t, r in changes if r == 192 and t < 61.]
    assert failures and chosen.resolution == 224 and changes[-1][0] < 64.


def test_queue_as_the_target():
    chosen = LoadController(COSTS, target_queue=4)
    _, changes = serve(chosen, even(200, 20))
    assert chosen.resolution <= 160 and 200 * COSTS[chosen.resolution] < 1e3
    assert not [t for t, _ in changes if t > 10.]
    rest = LoadController(COSTS, target_queue=4)
    assert not serve(rest, even(20, 20))[1]


def test_old_latencies_are_no_evidence():
    """Requests that came before a change waited under another size: they lower nothing further."""
    chosen = controller(cooldown_s=0.01)
    assert chosen.observe(10., 5, now=1.) == 192  # six times 12 ms are beyond 60, six times 9 are not
    for index in range(30):
        chosen.observe(500., 0, now=1.02 + index / 1e3)  # all arrived before second 1
    assert chosen.resolution == 192
    for index in range(30):
        chosen.observe(70., 0, now=1.1 + index / 1e3)
    assert chosen.resolution < 192


@pytest.mark.parametrize('load', [0.2, 0.5, 0.8, 0.9])
def test_predicted_wait_is_that_of_a_simulated_queue(load):
    service = 0.01
    now, waits = 0., []
    for arrived in poisson(load / service, 1000, seed=1):
        start = max(now, arrived)
        waits.append(1e3 * (start - arrived))
        now = start + service
    p95 = sorted(waits)[int(0.95 * len(waits))]
    assert predicted_wait(load / service, 1e3 * service) == pytest.approx(p95, rel=0.15)


def test_same_observations_same_decisions():
    runs = [serve(controller(), poisson(150, 20, seed=3))[1] for _ in range(2)]
    assert runs[0] == runs[1] and runs[0]


def test_time_comes_from_the_clock_if_not_given():
    ticks = iter(even(200, 60))
    chosen = LoadController(COSTS, TARGET, clock=lambda: next(ticks))
    for _ in range(100):
        chosen.observe(500., 100)
    assert chosen.resolution == 96


def test_many_threads():
    chosen, errors = controller(), []

    def report(seed):
        generator = random.Random(seed)
        try:
            for _ in range(2000):
                assert chosen.observe(generator.uniform(0, 200), generator.randrange(20)) in COSTS
        except Exception as error:  # noqa: BLE001 (shown by the assertion below)
            errors.append(error)

    threads = [threading.Thread(target=report, args=(seed,)) for seed in range(4)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert not errors


def test_a_size_that_does_not_pay_is_not_used():
    assert LoadController({224: 10., 192: 5., 160: 6., 128: 5., 96: 3.}, 50.).resolutions == (224, 192, 96)


@pytest.mark.parametrize('options, words', [
    (dict(target_ms=None), 'target is missing'),
    (dict(target_ms=0.), 'target_ms 0.0'),
    (dict(target_ms=None, target_queue=-1), 'target_queue -1'),
    (dict(margin=1.5), 'margin 1.5'),
    (dict(patience_s=0.), 'patience_s 0.0'),
    (dict(window_s=-1.), 'window_s -1.0'),
    (dict(retry_s=float('nan')), 'retry_s nan'),
    (dict(start=100), r'start 100 .*\(224, 192, 160, 128, 96\)'),
])
def test_options_out_of_range(options, words):
    with pytest.raises(ValueError, match=words):
        controller(**options)


@pytest.mark.parametrize('costs, words', [({}, 'empty'), ({224: 0.}, '224'), ({224: float('nan')}, 'positive'),
                                          ({-3: 1.}, '-3')])
def test_costs_out_of_range(costs, words):
    with pytest.raises(ValueError, match=words):
        LoadController(costs, 50.)


@pytest.mark.parametrize('observation, now', [((-1., 0), 0.), ((1., -1), 0.), ((float('nan'), 0), 0.),
                                              ((1., float('nan')), 0.), ((1., 0), float('nan')), ((1., 0), math.inf)])
def test_observations_out_of_range(observation, now):
    with pytest.raises(ValueError, match='negative|finite seconds'):
        controller().observe(*observation, now=now)


@pytest.mark.parametrize('beyond', [1.5, 5.])
def test_more_than_the_smallest_carries_is_an_overload_while_it_lasts(beyond):
    chosen, said = controller(), []
    rate = beyond * 1e3 / COSTS[96]
    serve(chosen, even(20, 5))
    assert not chosen.overloaded
    arrivals, now = even(rate, 3), 0.
    for served, arrived in enumerate(arrivals, start=1):
        now = max(now, arrived) + COSTS[chosen.resolution] / 1e3
        chosen.observe(1e3 * (now - arrived), bisect.bisect_right(arrivals, now) - served, 5. + now)
        said.append(chosen.overloaded)
    assert sum(said) > 0.8 * len(said)
    chosen.observe(3., 0, 5. + now)
    assert not chosen.overloaded


def test_refusing_what_comes_while_it_is_overloaded_keeps_the_target():
    chosen, waiting, latencies, now = controller(), [], [], 0.
    for arrived in even(5e3 / COSTS[96], 10):
        while waiting and max(now, waiting[0]) + COSTS[chosen.resolution] / 1e3 <= arrived:
            first = waiting.pop(0)
            now = max(now, first) + COSTS[chosen.resolution] / 1e3
            latencies.append(1e3 * (now - first))
            chosen.observe(latencies[-1], len(waiting), now)
        if not chosen.overloaded:
            waiting.append(arrived)
    settled = latencies[len(latencies) // 4:]
    assert len(latencies) > 0.9 * 10e3 / COSTS[96] and sum(t > 1.2 * TARGET for t in settled) <= 0.05 * len(settled)


def test_timestamps_that_cannot_be_neither_freeze_it_nor_grow_it():
    chosen = controller()
    serve(chosen, even(20, 5))
    for bad in (1e12, 5., -1e12, 5.):  # far ahead, back again, far back, and right
        chosen.observe(3., 0, bad)
    changes = []
    for index in range(2000):  # overload, after which it must come down and, when it is over, up again
        before = chosen.resolution
        if chosen.observe(3., 30 if index < 1000 else 0, 5. + index / (100. if index < 1000 else 10.)) != before:
            changes.append(chosen.resolution)
    assert 96 in changes and chosen.resolution == 224
    assert len(chosen._window._buckets) < 20


def test_an_observation_takes_constant_time_at_any_rate():
    def microseconds(rate):
        chosen, best = controller(), math.inf
        for block in range(20):
            start = time.perf_counter()
            for index in range(1000):
                chosen.observe(5., 0, (1000 * block + index) / rate)
            best = min(best, time.perf_counter() - start)
        return 1e3 * best

    assert microseconds(100.) < 15. and microseconds(50_000.) < 15.  # 1.5 on an idle machine; sorting a window: 1,600
