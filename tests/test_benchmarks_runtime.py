"""The benchmarks of the runtime: what they time, count and draw is what happened."""
import threading
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from timm.data import ImageNetInfo
from training_run import make_pictures

import rs_timm
from benchmarks import cascade, environment, load_curve, run, runtime_latency, store
from benchmarks.load_curve import Fixed, arrivals, p95, ramp, serve
from benchmarks.presets import PRESETS
from benchmarks.runtime import figures, networks, questions, sections
from benchmarks.runtime.memory import resident_memory
from benchmarks.runtime.questions import engine_network, without_engine
from benchmarks.serving import Outcome, row_of
from benchmarks.store import put, read
from benchmarks.timing import VISIT, ratio_of_visits, take_turns
from rs_timm.runtime import Session

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SIZES = (64, 48, 32)


# the runs of Table 3

def test_debug_twins_of_the_quantised_runs(tmp_path, monkeypatch):
    """Full precision, its int8 networks, and 2/32 that goes on from it."""
    pytest.importorskip('nncf')
    given = PRESETS['quantised']
    monkeypatch.setitem(PRESETS, 'quantised', replace(given, recipe=replace(given.recipe, resolutions=(128, 64))))
    data = make_pictures(tmp_path / 'data', classes=3, train_each=8, val_each=3)
    arguments = ['full_precision', 'w2a32', '--preset', 'quantised', '--data', str(data), '--out', str(tmp_path),
                 '--debug-twin', '--device', 'cpu', '--workers', '0']
    assert run.main(arguments) == 0
    rows = store.ACCURACY.read(tmp_path / 'results')
    sizes = {str(r // 4 + 8) for r in (128, 64)}
    assert {row['resolution'] for row in rows if row['sets'] == 'int8'} == sizes
    assert {row['run'] for row in rows if row['sets'] == 'int8'} == {'full_precision'}
    assert {row['resolution'] for row in rows if row['run'] == 'w2a32'} == {*sizes, 'ensemble'}
    files = {(row['run'], row['kind']): int(row['bytes']) for row in store.FILES.read(tmp_path / 'results')}
    assert files['full_precision', 'float32'] < 2.001 * files['full_precision', 'float16']
    assert 12 * files['w2a32', 'packed'] < files['full_precision', 'float32']
    assert ('full_precision', 'packed') not in files


# turns

def test_each_case_is_called_in_every_round():
    order = []
    times = take_turns({name: lambda name=name: order.append(name) for name in 'abc'}, calls=10)
    assert {name: values.shape for name, values in times.items()} == dict.fromkeys('abc', (3, VISIT))
    visits = [name for index, name in enumerate(order[3:], 3) if name != order[index - 1]]
    assert len(visits) in range(7, 11)  # 9 visits; neighbours may be of the same case


def test_ratio_is_of_turns_and_not_of_totals():
    slow, fast = np.ones((5, VISIT)), np.full((5, VISIT), 0.5)
    slow[2] *= 100  # a disturbance that hits both in one round
    fast[2] *= 100
    slow[3, 0] = 1e6  # and one in one call
    assert ratio_of_visits(slow, fast) == 2.


# tables

def test_rows_of_a_unit_replace_its_older_ones(tmp_path):
    path = tmp_path / 'x.csv'
    put(path, [dict(question='a', model='m', value=1.), dict(question='b', model='m', value=2.)], ('question', 'model'))
    put(path, [dict(question='a', model='m', value=3.123456789, more='x')], ('question', 'model'))
    rows = read(path)
    assert [(row['question'], row['value'], row['more']) for row in rows] == [('b', '2', ''), ('a', '3.12346', 'x')]
    assert [file.name for file in tmp_path.iterdir()] == ['x.csv'] and read(tmp_path / 'none.csv') == []


# the stream

def test_arrivals_have_the_rate_of_the_ramp():
    rate = ramp(100., 10., 50.)
    assert (rate(0.), rate(50.), rate(100.)) == (10., 50., 10.)
    times = np.array(arrivals(rate, 50., 100., seed=1))
    assert len(times) == pytest.approx(3000, rel=0.06) and (np.diff(times) >= 0).all() and times[-1] < 100.
    middle = ((times > 40) & (times < 60)).sum()
    assert middle == pytest.approx(20 * 46, rel=0.1)
    assert arrivals(rate, 50., 100., seed=1) == times.tolist()


def test_all_requests_are_served_in_order_and_latency_counts_the_wait():
    """Ten at once, 5 ms each: the n-th waits for those before it."""
    answered, threads = [], threading.active_count()

    def answer(request, resolution):
        time.sleep(0.005)
        answered.append((request, resolution))
        return request * 10

    served = serve([0.] * 10, list(range(10)), answer, Fixed(96))
    assert answered == [(index, 96) for index in range(10)]
    assert served.answer.tolist() == [10 * index for index in range(10)] and set(served.resolution) == {96}
    assert (served.latency_ms >= 5. * np.arange(1, 11) - 1.).all() and (np.diff(served.latency_ms) > 4.).all()
    assert threading.active_count() == threads


def test_the_policy_is_told_of_each_request():
    told = []

    class Policy:
        resolution = 64

        def observe(self, latency_ms, queue_length=0):
            told.append(queue_length)
            self.resolution = 32
            return 32

    served = serve([0.] * 5, range(5), lambda request, resolution: time.sleep(0.005) or 0, Policy())
    assert served.resolution.tolist() == [64, 32, 32, 32, 32] and told[-1] == 0 and len(told) == 5


def test_rows_count_every_request_once():
    assert p95(np.arange(1., 101.)) == 95. and p95(np.array([7.])) == 7. and np.isnan(p95(np.array([])))
    served = type('Served', (), dict(
        arrived=np.array([0., 0.1, 3.9, 3.99]), latency_ms=np.array([10., 30., 20., 21.]),
        resolution=np.array([64, 64, 32, 64]), answer=np.array([1, 2, 3, 4])))
    rows = load_curve.rows_of(served, np.array([1, 2, 0, 4]), deadline=20., seconds=4.)
    *parts, total = rows
    assert len(parts) == load_curve.BINS
    for column in ('arrivals', 'in_time', 'late', 'right', 'right_in_time'):
        assert sum(row[column] for row in parts) == total[column]
    assert (total['in_time'], total['late'], total['right'], total['right_in_time']) == (2, 2, 3, 1)
    assert total['p95_ms'] == 30. and total['mean_resolution'] == 56. and total['switches'] == 2


# pictures

def test_labels_are_the_positions_of_the_folders_names(tmp_path):
    for name, count in (('b', 3), ('a', 1)):
        (tmp_path / name).mkdir()
        for index in range(count):
            (tmp_path / name / f'{index}.png').touch()
    files, targets = networks.labelled(tmp_path, ['x', 'a', 'b'])
    assert [file.parent.name for file in files] == ['a', 'b', 'b', 'b'] and targets.tolist() == [1, 2, 2, 2]
    assert networks.labelled(tmp_path, ['x', 'a', 'b'], 2)[1].tolist() == [1, 2]
    with pytest.raises(ValueError, match=r"\['b'\] are no classes"):
        networks.labelled(tmp_path, ['a'])


def test_a_classifier_cut_down_keeps_the_logits_of_its_classes():
    torch.manual_seed(0)
    model = rs_timm.switchable('test_resnet', SIZES, num_classes=1000).eval()
    x, names = torch.randn(2, 3, 48, 48), ImageNetInfo().label_names()
    with torch.no_grad():
        expected = model(x)[:, [names.index(synset) for synset in networks.IMAGENETTE]]
        networks.of_classes(model, networks.IMAGENETTE)
        torch.testing.assert_close(model(x), expected)
    info = rs_timm.export.model_info(model)
    assert info.label_names == networks.IMAGENETTE and info.num_classes == model.num_classes == 10


def test_a_fresh_network_has_no_weights_that_could_be_stored_once(tmp_path, monkeypatch):
    monkeypatch.setattr(networks, 'manifest', dict)  # nothing is shipped
    network = networks.load('rs_mobilenetv2', tmp_path)
    assert network.weights == 'random' and not network.trained
    for r in (224, 96):
        plain = rs_timm.extract(network.model, r)
        gammas = [m.weight for m in plain.modules() if hasattr(m, 'running_mean')]
        assert all((gamma > 0.2).all() for gamma in gammas)
    with torch.no_grad():
        assert torch.isfinite(network.model(torch.randn(1, 3, 96, 96))).all()


# whole runs, on a tiny network

@pytest.fixture
def tiny(monkeypatch, tmp_path, random_statistics):
    """`load` gives a tiny network that counts as trained; the folder has pictures of its two classes."""

    def load(name, folder):
        torch.manual_seed(0)
        model = random_statistics(rs_timm.switchable('test_resnet', SIZES, num_classes=2))
        model.pretrained_cfg['label_names'] = ['class0', 'class1']
        file = rs_timm.export_onnx(model, folder / 'tiny.onnx')
        return networks.Network('rs_resnet18', model, 'tiny', file)

    for module in (networks, runtime_latency):
        monkeypatch.setattr(module, 'load', load)
    return make_pictures(tmp_path, classes=2, train_each=20, val_each=20, size=80)


def test_every_request_over_http_is_counted_once():
    outcomes = [Outcome(5., 200, 64, 1), Outcome(20., 200, 32, 1), Outcome(20.5, 200, 32, 0), Outcome(1., 503),
                Outcome(2., 500), Outcome(60e3, 0)]
    row = row_of(outcomes, np.array([1, 0, 0, 0, 0, 0]), deadline_ms=20.)
    kinds = ('in_time', 'late', 'refused', 'failed', 'silent')
    assert [row[kind] for kind in kinds] == [2, 1, 1, 1, 1] and sum(row[kind] for kind in kinds) == row['requests']
    assert (row['right_in_time'], row['mean_resolution'], row['p50_ms']) == (1, pytest.approx(128 / 3), 20.)


def test_load_curve_end_to_end(tiny, monkeypatch):
    load_curve.main(['--data', str(tiny), '--engine', 'onnxruntime', '--threads', '1', '--seconds', '0.3', '--repeats',
                     '72', '--out', str(tiny / 'out' / 'load_curve.csv')])
    rows = read(tiny / 'out' / 'load_curve.csv')
    totals = {row['policy']: row for row in rows if row['second'] == 'all'}
    assert list(totals) == ['controller', 'fixed 64', 'fixed 32']
    assert len({row['arrivals'] for row in totals.values()}) == 1  # the same requests for all
    for row in totals.values():
        assert int(row['in_time']) + int(row['late']) == int(row['arrivals'])
    assert (totals['fixed 64']['mean_resolution'], totals['fixed 32']['switches']) == ('64', '0')
    assert (tiny / 'out' / 'load_curve.png').is_file()
    monkeypatch.setattr(environment, 'RESULTS', tiny / 'out')
    assert sections.load_section().count('\n| ') == 4 and 'controller' in sections.load_section()


def test_halves_are_apart_and_have_all_classes():
    """`labelled` gives the classes in turn: taking every other picture would part them by class."""
    files, targets = list(range(200)), np.arange(200) % 10
    first, first_targets, second, second_targets = cascade.halves(files, targets)
    assert sorted(first + second) == files and len(first) == len(second) == 100
    assert all((part % 10 == part_targets).all() and len(set(part_targets)) == 10
               for part, part_targets in ((np.array(first), first_targets), (np.array(second), second_targets)))


def test_cascade_end_to_end(tiny, monkeypatch):
    cascade.main(['--data', str(tiny), '--engine', 'onnxruntime', '--threads', '1', '--batch', '4', '--out',
                  str(tiny / 'out' / 'cascade.csv')])
    rows = read(tiny / 'out' / 'cascade.csv')
    single = {row['resolutions']: row for row in rows if row['kind'] == 'single'}
    assert list(single) == ['32', '48', '64'] and {row['pictures'] for row in rows} == {'20'}
    assert all(0. < float(row['top1']) < 100. for row in rows)  # both classes are in the half that is reported
    every = next(row for row in rows if row['kind'] == 'ensemble')
    paid = sum(float(row['mmadds']) for row in single.values())
    assert float(every['mmadds']) == pytest.approx(paid, rel=1e-4)
    for row in rows:
        assert sum(map(float, row['answered'].split())) == pytest.approx(1., abs=2e-3) and float(row['ms']) > 0
    assert (tiny / 'out' / 'cascade.svg').is_file()
    before = (tiny / 'out' / 'cascade.csv').stat().st_mtime_ns
    cascade.main(['--data', str(tiny), '--engine', 'onnxruntime', '--batch', '4', '--out',
                  str(tiny / 'out' / 'cascade.csv')])
    assert (tiny / 'out' / 'cascade.csv').stat().st_mtime_ns == before  # all is there
    monkeypatch.setattr(environment, 'RESULTS', tiny / 'out')
    text = sections.cascade_section()
    assert text.count('\n| ') == len(rows) + 1
    best = max(single.values(), key=lambda row: float(row['top1_of_fit']))
    chosen = min((row for row in rows if row['kind'] == 'cascade' and float(row['top1_of_fit']) >= float(
        best['top1_of_fit'])), key=lambda row: float(row['ms_of_fit']), default=None)
    assert (chosen is not None) is (f"{best['resolutions']} px is the best single size" in text)
    if chosen:
        assert f"in {float(chosen['ms']) / float(best['ms']):.2f} of its ms" in text


def test_runtime_latency_end_to_end(tiny, monkeypatch, capsys):
    out = tiny / 'out' / 'runtime_latency.csv'
    monkeypatch.setattr(questions, 'resident_memory', lambda kind, *rest: dict(before=100., after=dict(
        session=150., shared=120., separate=200.)[kind]))
    options = ['--data', str(tiny), '--models', 'rs_resnet18', '--engines', 'onnxruntime', '--precisions', 'float32',
               '--threads', '1', '--pictures', '10', '--out', str(out), '--questions', *runtime_latency.QUESTIONS]
    runtime_latency.main(options)
    rows = read(out)
    found = {(row['question'], row['engine'], row['resolution'], row['part']): row for row in rows}
    for size in map(str, SIZES):
        assert found['latency', 'timm eager', size, 'network']['ratio'] == '1'
        total, alone = (found['latency', 'onnxruntime', size, part] for part in ('total', 'network'))
        assert float(total['p50_ms']) > float(alone['p50_ms']) and alone['calls'] == '72'
        assert found['agreement', 'onnxruntime', size, 'top-1']['value'] == '100'
        assert float(found['agreement', 'onnxruntime', size, 'top-1']['largest_difference']) < 1e-4
    assert found['memory', 'onnxruntime', '', 'session']['ratio'] == '0.5'  # (150 - 100) / (200 - 100)
    assert ('price', 'onnxruntime', '32', 'one graph') in found
    switch = {(row['part'], row['resolution']) for row in rows if row['question'] == 'switch'}
    assert switch == {('set_resolution', ''), ('switch and dispatch', ''), *(
        (part, size) for part in ('first call', 'first call, engine alone') for size in ('64', '32'))}
    assert (tiny / 'out' / 'runtime_latency.png').is_file()
    capsys.readouterr()
    runtime_latency.main(options)  # all is there
    assert 'rs_resnet18, ' not in capsys.readouterr().out and read(out) == rows
    monkeypatch.setattr(environment, 'RESULTS', tiny / 'out')
    for section in ('latency', 'price', 'memory', 'agreement'):
        assert 'not measured' not in sections.SECTIONS[f'runtime_{section}']()


def test_the_session_around_the_engine_is_told_apart(tiny):
    """Without the engine the session does the same, and the engine's network is the one that the session calls."""
    session = Session(runtime_latency.load('', tiny).file, 'onnxruntime')
    bare, x = without_engine(session), np.ones((1, 3, 48, 48), np.float32)
    assert bare.run(x, 48).shape == (1, 1) and session.run(x, 48).shape == (1, 2)
    with pytest.raises(ValueError, match='a ready batch'):
        bare.run(x, 32)
    np.testing.assert_array_equal(engine_network(session, 48)(x), session.run(x))


def test_memory_of_a_fresh_process(tmp_path):
    torch.manual_seed(0)
    file = rs_timm.export_onnx(rs_timm.switchable('test_resnet', SIZES, num_classes=2).eval(), tmp_path / 'tiny.onnx')
    taken = resident_memory('session', 'onnxruntime', 'float32', 1, SIZES, [file])
    assert 20. < taken['before'] < taken['after']
    with pytest.raises(RuntimeError, match='no such file'):
        resident_memory('session', 'onnxruntime', 'float32', 1, SIZES, [tmp_path / 'none.onnx'])


def test_what_a_precision_costs_is_told_for_each_resolution(monkeypatch, tmp_path):
    common = dict(question='agreement', model='m', weights='w', calls=100, device='cpu', threads=2, openvino=1,
                  onnxruntime=1, torch=2, timm=1)
    rows = [dict(common, engine=engine, precision=precision, resolution=size, value=value, top1=top1)
            for engine, precision, size, value, top1 in (
                ('timm eager', 'float32', 224, 100., 90.), ('timm eager', 'float32', 96, 100., 80.),
                ('openvino', 'int8', 224, 99., 89.5), ('openvino', 'int8', 96, 97., 80.))]
    put(tmp_path / 'runtime_latency.csv', rows, ('engine', 'resolution'))
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    lines = sections.agreement_section().splitlines()
    assert '| timm eager float32 | 100.0 (90.0) | 100.0 (80.0) |' in lines
    assert '| openvino int8 | 99.0 (89.5, -0.5) | 97.0 (80.0, +0.0) |' in lines


def test_no_figure_without_the_rows_that_it_shows(tmp_path):
    assert figures.write_figures(tmp_path) == []
    put(tmp_path / 'runtime_latency.csv', [dict(question='memory', model='m', value=1.)], ('question',))
    assert figures.write_figures(tmp_path) == []


def test_scaling_is_relative_to_multiply_adds(monkeypatch, tmp_path):
    """Times that are proportional to multiply-adds give 1 everywhere; twice that at a small size gives 2."""
    rows = [dict(question='latency', model='rs_resnet18', weights='random', engine='e', precision='p', part='network',
                 resolution=size, p50_ms=figures.madds_of_model('rs_resnet18', size) * scale, device='cpu', threads='2')
            for size, scale in ((224, 1.), (160, 1.), (96, 2.))]
    put(tmp_path / 'runtime_latency.csv', rows, ('question', 'resolution'))
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    assert '| 1.00 | 2.00 |' in sections.scaling_section()
    assert figures.write_figures(tmp_path) == ['runtime_latency']
