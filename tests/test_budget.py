"""The largest resolution that fits: against brute force over everything that could have been measured."""
import random

import pytest

from rs_timm.runtime.policy.budget import Limits, choose_resolution, size_grid
from rs_timm.runtime.policy.latency import measure_latency
from tests.clocked_session import ClockedSession, jittery

MADDS = {224: 500_000_000, 160: 260_000_000, 96: 90_000_000}


def session_of(cost_ms, **options):
    """Each call takes exactly `cost_ms(resolution)` for each picture, unless `network` says otherwise."""
    return ClockedSession(**{'network': lambda r, n, call: 1e6 * n * cost_ms(r), 'madds': MADDS, **options})


def table_of(session, **options):
    return measure_latency(session, repeats=72, clock=session.clock, **options)


def choose(session, **options):
    return choose_resolution(session, repeats=72, clock=session.clock, **options)


def linear(resolution):
    return resolution / 10.


@pytest.mark.parametrize('limits, expected', [
    (dict(ms=22.4), 224), (dict(ms=22.3), 160), (dict(ms=16.), 160), (dict(ms=9.6), 96),
    (dict(fps=1e3 / 22.4), 224), (dict(fps=60), 160), (dict(fps=100), 96),
    (dict(madds=5e8), 224), (dict(madds=4.9e8), 160), (dict(madds=9e7), 96),
    (dict(ms=20, madds=1e8), 96), (dict(ms=10, madds=1e9), 96), (dict(ms=20, fps=100), 96),
])
def test_largest_that_fits(limits, expected):
    session = session_of(linear)
    table = table_of(session)
    assert table.largest_within(**limits) == expected
    assert choose(session, table=table, **limits).resolution == choose(session, **limits).resolution == expected


def test_p95_decides_and_not_the_mean():
    session = session_of(linear, network=jittery(lambda r: r / 10.))
    table = table_of(session)
    p95, mean = table.row(160).network.p95_ms, table.row(160).network.mean_ms
    assert mean < p95
    assert table.largest_within(ms=p95) == 160 and table.largest_within(ms=(p95 + mean) / 2) == 96


def test_batches_and_preprocessing_count():
    session = session_of(linear, preprocessing=lambda r, image: 5e6)
    table = table_of(session, batches=(1, 4), images=['a'])
    assert table.largest_within(ms=20) == 160 and table.largest_within(ms=20, part='total') == 96
    assert table.largest_within(ms=64, batch=4) == 160
    assert table.largest_within(fps=60, batch=4) == table.largest_within(fps=60) == 160
    with pytest.raises(ValueError, match=r'batch 2 is not.*\[1, 4\]'):
        table.largest_within(ms=20, batch=2)


@pytest.mark.parametrize('limits, words', [
    (dict(ms=9.5), r'at most 9\.5 ms\): the smallest, 96 px, takes 9\.6 ms'),
    (dict(fps=200), r'at most 5 ms \(200 per second\)\).*takes 9\.6 ms'),
    (dict(madds=1e6), r'at most 1 million MAdds\).*takes 90 million MAdds'),
    (dict(ms=1, madds=1e6), r'takes 9\.6 ms and 90 million MAdds'),
])
def test_if_none_fits(limits, words):
    session = session_of(linear)
    table = table_of(session)
    for chosen in (table.largest_within, lambda **more: choose(session, step=8, **more).resolution):
        with pytest.raises(ValueError, match=f"no resolution fits.*{words}.*if_none='smallest'"):
            chosen(**limits)
        assert chosen(if_none='smallest', **limits) == 96


@pytest.mark.parametrize('limits, words', [
    (dict(), 'needs a limit'), (dict(ms=0), 'ms=0'), (dict(fps=-1), 'fps=-1'), (dict(madds=True), 'madds=True'),
    (dict(ms=float('nan')), 'ms=nan'), (dict(ms=8, batch=0), 'batch=0'), (dict(ms=8, if_none='any'), "'any'"),
])
def test_wrong_limits(limits, words):
    session = session_of(linear)
    with pytest.raises(ValueError, match=words):
        table_of(session).largest_within(**limits)
    with pytest.raises(ValueError, match=words):
        choose(session, **limits)


def test_multiply_adds_that_are_not_known():
    session = session_of(linear, madds={224: 5})
    with pytest.raises(ValueError, match=r'multiply-adds at \[96, 160\] px are not in'):
        table_of(session).largest_within(madds=10)


def test_multiply_adds_alone_measure_nothing():
    session = session_of(linear)
    choice = choose(session, madds=3e8)
    assert choice.resolution == 160 and choice.table is None and not session.calls


# sizes between the trained ones

@pytest.mark.parametrize('step', [1, 8, 16, 24, 50, 200])
def test_grid(step):
    sizes = size_grid((224, 160, 96), step)
    assert {96, 160, 224} <= set(sizes) and list(sizes) == sorted(sizes)
    assert all(size in (96, 160, 224) or (size - 96) % step == 0 for size in sizes)
    assert max(b - a for a, b in zip(sizes, sizes[1:])) <= step


@pytest.mark.parametrize('step', [0, -8, 1.5, True])
def test_steps_that_are_none(step):
    with pytest.raises(ValueError, match='positive whole number'):
        choose(session_of(linear), ms=20, step=step)


@pytest.mark.parametrize('step', [1, 4, 8, 32])
@pytest.mark.parametrize('seed', range(5))
def test_unseen_sizes_against_measuring_them_all(step, seed):
    """Any cost that grows with size: the result is the largest of the grid, found with few measurements."""
    generator = random.Random(seed)
    cost, total = {}, 5.
    for size in range(96, 225):
        total += generator.choice((0., 0., 0.1, 1.))
        cost[size] = total
    for ms in (cost[96], cost[130], cost[160], cost[200] + 1e-9, cost[223], 2 * cost[224]):
        session = session_of(cost.get)
        choice = choose(session, ms=ms, step=step)
        assert choice.resolution == max(size for size in size_grid((224, 160, 96), step) if cost[size] <= ms)
        probed = {size for size, _ in session.calls} - {96, 160, 224}
        assert len(probed) <= (64 // step).bit_length()
        assert {row.resolution for row in choice.table.rows} == probed | {96, 160, 224}


@pytest.mark.parametrize('seed', range(5))
def test_with_any_cost_the_result_fits_and_its_successor_does_not(seed):
    generator = random.Random(seed)
    cost = {size: size / 10. + generator.uniform(0, 3) for size in range(96, 225)}
    for ms in (14., 16., 18., 20.):
        size = choose(session_of(cost.get), ms=ms, step=4).resolution
        assert cost[size] <= ms and (size == 224 or cost[size + 4] > ms)


def test_a_given_table_is_used_and_extended(tmp_path):
    session = session_of(linear)
    table = table_of(session)
    table.save(tmp_path / 'table.json')
    session.calls.clear()
    choice = choose(session, ms=18., step=16, table=table)
    assert choice.resolution == 176 and {size for size, _ in session.calls} <= {176, 192, 208}
    session.calls.clear()
    assert choose(session, ms=18., step=16, table=choice.table).resolution == 176 and not session.calls
    assert choose(session, ms=18., table=tmp_path / 'table.json').resolution == 160 and not session.calls


def test_a_table_of_another_session_is_refused():
    session = session_of(linear)
    table = table_of(session)
    session.precision = 'int8'
    with pytest.raises(ValueError, match='another session.*precision float32, here int8'):
        choose(session, ms=20, table=table)


def test_limits_say_what_they_are():
    assert str(Limits(ms=8)) == 'at most 8 ms'
    assert Limits(ms=100, fps=20).milliseconds == 50. and Limits(fps=20, batch=4).milliseconds == 200.
    assert Limits(madds=1).milliseconds is None
