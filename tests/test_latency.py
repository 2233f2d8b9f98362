"""What is measured, how its statistics are formed, and that a table of something else is noticed."""
import dataclasses
import json
import math
import random
import warnings

import pytest

from rs_timm.runtime.policy.latency import LatencyTable, measure_latency
from rs_timm.runtime.policy.latency_table import LatencyRow, Timing, least_calls, p95_ranks
from rs_timm.runtime.policy.machine import describe_machine, machine_differences
from tests.clocked_session import ClockedSession, jittery


def quadratic(resolution):
    return (resolution / 224) ** 2 * 10


def measured(session=None, **options):
    session = session or ClockedSession(jittery(quadratic), madds={224: 400, 160: 200, 96: 100})
    return measure_latency(session, **{'repeats': 80, 'clock': session.clock, **options})


# statistics

def test_quantiles_are_measured_times_with_that_share_at_or_below():
    generator = random.Random(0)
    for count in (72, 73, 99, 100, 200, 1001):
        times = [generator.randrange(10 ** 6) for _ in range(count)]
        timing = Timing.of(times)
        for share, value in ((0.5, timing.p50_ms), (0.95, timing.p95_ms)):
            at = round(value * 1e6)
            assert at in times and sum(t <= at for t in times) >= share * count
            assert sum(t < at for t in times) < share * count
        assert timing.mean_ms == pytest.approx(sum(times) / count / 1e6, abs=1e-6) and timing.calls == count
        assert timing.p95_low_ms <= timing.p95_ms <= timing.p95_high_ms


@pytest.mark.parametrize('count', [72, 100, 200, 1000])
def test_interval_of_the_p95_covers_it_as_often_as_it_says(count):
    low, high = p95_ranks(count)

    def fewer_below(rank):  # chance that fewer than `rank` values are below the p95
        return sum(math.comb(count, k) * 0.95 ** k * 0.05 ** (count - k) for k in range(rank))

    assert fewer_below(low) <= 0.025 < fewer_below(low + 1)  # the largest low end, the smallest high end
    assert fewer_below(high) >= 0.975 > fewer_below(high - 1)
    chance = fewer_below(high) - fewer_below(low)
    generator = random.Random(1)
    hits = 0
    for _ in range(400):
        times = sorted(generator.random() for _ in range(count))
        hits += times[low - 1] <= 0.95 <= times[high - 1]
    assert hits / 400 == pytest.approx(chance, abs=0.035)


def test_fewest_calls():
    count = least_calls()
    assert 0.95 ** count <= 0.025 < 0.95 ** (count - 1)
    assert p95_ranks(count)[1] == count
    with pytest.raises(ValueError, match=f'{count - 1} calls are too few.*{count}'):
        Timing.of(range(count - 1))


# measuring

def test_times_are_those_of_the_calls():
    session = ClockedSession(lambda r, n, call: n * r * 1000, lambda r, image: 5000 * image)
    table = measured(session, images=[1, 3], batches=(1, 4))
    for size in (224, 160, 96):
        row = table.row(size)
        assert row.network.mean_ms == row.network.p95_ms == pytest.approx(size / 1e3)
        assert row.per_second == pytest.approx(1e6 / size)
        assert row.preprocessing.mean_ms == pytest.approx(0.010)  # the pictures in turn: as many of 5 us as of 15
        assert (row.preprocessing.p50_ms, row.preprocessing.p95_ms) == (pytest.approx(0.005), pytest.approx(0.015))
        assert row.total.mean_ms == pytest.approx(row.network.mean_ms + row.preprocessing.mean_ms)
        four = table.row(size, batch=4)
        assert four.network.mean_ms == pytest.approx(4 * size / 1e3) and four.per_second == row.per_second
        assert four.preprocessing.mean_ms == pytest.approx(0.040)


def test_resolutions_take_turns_in_changing_order():
    session = ClockedSession(jittery(quadratic))
    measured(session, repeats=80, warmup=2)
    first, rest = session.calls[:6], [size for size, _ in session.calls[6:]]
    assert first == [(224, 1)] * 2 + [(160, 1)] * 2 + [(96, 1)] * 2
    turns = [rest[i:i + 5] for i in range(0, len(rest), 5)]  # one call to settle, four that count
    assert len(rest) == 3 * 20 * 5 and all(len(set(turn)) == 1 for turn in turns)
    rounds = [tuple(turn[0] for turn in turns[i:i + 3]) for i in range(0, len(turns), 3)]
    assert all(sorted(order) == [96, 160, 224] for order in rounds) and len(set(rounds)) > 3


def test_what_drifts_hits_all_alike():
    """A machine that becomes three times as slow on the way: the ratios stay."""
    session = ClockedSession(lambda r, n, call: r * r * (100 + call // 5))
    table = measured(session, repeats=400)
    assert table.row(224).network.mean_ms / table.row(96).network.mean_ms == pytest.approx((224 / 96) ** 2, rel=0.02)


def test_first_calls_do_not_count():
    slow = set()

    def network(resolution, batch, call):
        first = resolution not in slow
        slow.add(resolution)
        return 10 ** 9 if first else 10 ** 6

    assert max(row.network.mean_ms for row in measured(ClockedSession(network), warmup=1).rows) == pytest.approx(1.)


def test_stops_after_its_time_but_not_before_enough_calls():
    a_round = 3 * 5 * 0.001  # three sizes, five calls of a millisecond
    for seconds, calls in ((0., 72), (0.5, 4 * math.ceil(0.5 / a_round)), (None, 200)):
        session = ClockedSession(lambda r, n, call: 10 ** 6, resolutions=(64, 48, 32))
        table = measured(session, repeats=200, seconds=seconds)
        assert [row.network.calls for row in table.rows] == [calls] * 3


@pytest.mark.parametrize('options, words', [
    (dict(repeats=71), 'at least 72'),
    (dict(batches=()), 'batches'),
    (dict(batches=(0,)), 'batches'),
    (dict(resolutions=(64, 64)), 'duplicates'),
    (dict(resolutions=(-1,)), '-1'),
    (dict(warmup=-1), 'warmup -1'),
])
def test_wrong_arguments(options, words):
    with pytest.raises(ValueError, match=words):
        measured(**options)


# the table

def test_a_table_is_kept_in_a_file(tmp_path):
    table = measured(images=[1], batches=(1, 2))
    table.save(tmp_path / 'table.json')
    assert LatencyTable.load(tmp_path / 'table.json') == table
    content = json.loads((tmp_path / 'table.json').read_text())
    assert content['format'] == 1 and content['machine'] == describe_machine()
    assert [path.name for path in tmp_path.iterdir()] == ['table.json']


@pytest.mark.parametrize('content, words', [
    ('{', 'not JSON'),
    ('[' * 10 ** 5, 'not JSON'),
    ('[]', "not a file of the kind 'rs_timm latency table'"),
    ('{"kind": "rs_timm latency table", "format": 9}', 'has format 9, and this version reads format 1'),
    ('{"kind": "rs_timm latency table", "format": 1}', 'x.json lacks model'),
])
def test_other_files(tmp_path, content, words):
    (tmp_path / 'x.json').write_text(content)
    with pytest.raises(ValueError, match=words):
        LatencyTable.load(tmp_path / 'x.json')


@pytest.mark.parametrize('field, value, words', [
    ('p95_ms', float('nan'), r'x.json: rows.0.network.p95_ms: input should be a finite number'),
    ('p95_ms', -1., r'x.json: rows.0.network: .*none can be negative'),
    ('p95_ms', 1e-9, 'grow in that order'),
    ('p50_ms', '3', r'rows.0.network.p50_ms: input should be a valid number'),
    ('mean_ms', 1e999, 'mean_ms: input should be a finite number'),
    ('calls', True, 'calls: input should be a valid integer'),
    ('quantile', 1., r'rows.0.network.quantile: unexpected'),
])
def test_figures_that_cannot_be(tmp_path, field, value, words):
    """Each of them would keep a budget, or break it, without a word."""
    measured().save(tmp_path / 'x.json')
    content = json.loads((tmp_path / 'x.json').read_text())
    content['rows'][0]['network'][field] = value
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        LatencyTable.load(tmp_path / 'x.json')


def test_a_table_of_an_earlier_version(tmp_path):
    """Precisions had other names."""
    measured().save(tmp_path / 'x.json')
    text = (tmp_path / 'x.json').read_text().replace('"float32"', '"fp32"')
    assert '"fp32"' in text
    (tmp_path / 'x.json').write_text(text)
    assert LatencyTable.load(tmp_path / 'x.json').precision == 'float32'


def test_rows_that_cannot_be():
    timing = Timing.of(range(10 ** 6, 10 ** 6 + 100))
    for change in (dict(batch=0), dict(madds=-1), dict(network=Timing.of([0] * 100)), dict(resolution=0),
                   dict(resolution=10 ** 400)):
        with pytest.raises(ValueError):
            LatencyRow(**{**dict(resolution=64, batch=1, network=timing), **change})


def test_a_fitting_table_says_nothing():
    session = ClockedSession(jittery(quadratic))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        measured(session).check(session)


@pytest.mark.parametrize(
    'change',
    [dict(model='other'), dict(engine='abacus'), dict(precision='int8'), dict(memory='shared'), dict(threads=1)])
def test_a_table_of_another_session_is_refused(change):
    session = ClockedSession(jittery(quadratic))
    table = dataclasses.replace(measured(session), **change)
    (name, value), = change.items()
    with pytest.raises(ValueError, match=f'another session.*{name} {value}, here.*rs-timm bench'):
        table.check(session)


@pytest.mark.parametrize('change, words', [
    (dict(machine={**describe_machine(), 'cpu': 'Z80'}), 'cpu: Z80, here'),
    (dict(machine={**describe_machine(), 'cores': 4096}), 'cores: 4096, here'),
    (dict(versions={'clock': '0.9'}), 'clock 0.9, here 1.0'),
])
def test_a_table_of_another_machine_or_version_warns(change, words):
    session = ClockedSession(jittery(quadratic))
    with pytest.warns(UserWarning, match=f'measured elsewhere.*{words}'):
        dataclasses.replace(measured(session), **change).check(session)


def test_rows_are_found_merged_and_missed():
    table, more = measured(batches=(1, 2)), measured(resolutions=(160, 128))
    merged = table.with_rows(more.rows)
    assert [row.resolution for row in merged.rows if row.batch == 1] == [224, 160, 128, 96]
    assert merged.row(160) == more.row(160) and merged.row(160, 2) == table.row(160, 2)
    assert list(merged.at_batch(2)) == [224, 160, 96]
    with pytest.raises(ValueError, match='128 px batch 1 is not in the table, which has 224 px batch 1'):
        table.row(128)
    with pytest.raises(ValueError, match=r'batch 3 is not in the latency table, which has \[1, 2\]'):
        table.milliseconds(batch=3)
    assert table.milliseconds(2)[96] == table.row(96, 2).network.mean_ms / 2
    with pytest.raises(ValueError, match='total was not measured at 96 px.*--images'):
        table.row(96).timing('total')
    with pytest.raises(ValueError, match="'decoding'.*'network'"):
        table.row(96).timing('decoding')


def test_as_text():
    text = str(measured(images=[1]))
    header, *lines = text.splitlines()
    assert [line.split()[0] for line in lines] == ['224', '160', '96'] and 'preprocessing p50' in header
    assert all(len(line) == len(header) for line in lines)


def test_machine():
    machine = describe_machine()
    assert json.loads(json.dumps(machine)) == machine and machine['cores'] >= 1 and machine['cpu']
    assert machine_differences(machine, machine) == []
    assert machine_differences(machine, {**machine, 'python': '2.7'}) == []
    assert machine_differences({}, machine)
