"""rs-timm bench, and budget and cascade on real sessions: what they say is what the engine and torch say."""
import json
import re

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import rs_timm
from rs_timm.analysis import madds
from rs_timm.format.madds import graph_madds, madds_of
from rs_timm.runtime import Cascade, LatencyTable, Session, choose_resolution, extract_onnx, measure_latency, read_model
from rs_timm.runtime.policy.cascade import confidence

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

SIZES = (64, 48, 32)


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return rs_timm.switchable('test_resnet', SIZES, num_classes=10).eval()


@pytest.fixture(scope='module')
def file(network, tmp_path_factory):
    return str(rs_timm.export_onnx(network, tmp_path_factory.mktemp('file') / 'tiny.onnx'))


@pytest.fixture(scope='module')
def session(file):
    return Session(file, 'onnxruntime', threads=1)


@pytest.fixture
def photos(tmp_path):
    generator = np.random.default_rng(0)
    for index in range(6):
        Image.fromarray(generator.integers(0, 255, (90, 70, 3), np.uint8)).save(tmp_path / f'{index}.png')
    return [str(tmp_path / f'{index}.png') for index in range(6)]


@pytest.mark.parametrize('name', ['test_resnet', pytest.param('rs_mobilenetv2', marks=pytest.mark.slow)])
def test_multiply_adds_of_the_graph_are_those_of_the_network(name, file, network, tmp_path):
    if name == 'rs_mobilenetv2':
        network = timm.create_model(name, resolutions=SIZES, num_classes=10).eval()
        file = rs_timm.export_onnx(network, tmp_path / 'mobile.onnx')
    model = read_model(file)
    for resolution in (64, 41, 32):
        for fold in (True, False):
            assert graph_madds(extract_onnx(model, resolution, 1, fold)) == madds(network, resolution)


def test_bench_takes_a_model_by_name(cli):
    status, text, _ = cli('bench', 'switchable:test_resnet', '--no-weights', '--resolutions', 64, 32, '--engine',
                          'onnxruntime', '--sizes', 32, '--repeats', 72)
    assert status == 0 and text.splitlines()[-1].split()[:2] == ['32', '1']


def test_shapes_that_are_not_static_cannot_be_counted(file):
    with pytest.raises(ValueError, match='not static'):
        graph_madds(read_model(file))


def test_budget_in_multiply_adds_counts_unseen_sizes(session, network):
    for limit, step in ((1.3 * madds(network, 48), 4), (madds(network, 41), 1), (1e12, 8)):
        chosen = choose_resolution(session, madds=limit, step=step).resolution
        fitting = [size for size in (*range(32, 65, step), *SIZES) if madds(network, size) <= limit]
        assert chosen == max(fitting)
    assert madds_of(session, 40) == madds(network, 40)


def test_table_of_a_real_session(session, photos):
    table = measure_latency(session, (64, 40), repeats=72, images=photos)
    assert (table.model, table.engine, table.threads) == (session.info.name, 'onnxruntime', 1)
    assert table.versions == session.versions and [row.resolution for row in table.rows] == [64, 40]
    for row in table.rows:
        assert 0 < row.network.p50_ms <= row.network.p95_ms < row.total.p95_ms + row.network.p95_ms
        assert row.total.mean_ms > row.preprocessing.mean_ms > 0
    table.check(session)
    generous = 100 * table.row(64).network.p95_ms
    assert choose_resolution(session, ms=generous, table=table).resolution == 64


def test_cascade_answers_as_the_session_does(session, photos):
    alone = {size: session(photos, size) for size in SIZES}
    thresholds = {size: float(np.median(confidence(alone[size]))) for size in (32, 48)}
    result = Cascade(session, SIZES, thresholds)(photos)
    assert set(result.answered) >= {32}
    for index, size in enumerate(result.answered):
        np.testing.assert_allclose(result.logits[index], alone[size][index], rtol=1e-4, atol=1e-4)
        assert size == next(s for s in (32, 48, 64)
                            if s == 64 or confidence(alone[s])[index] >= thresholds[s] - 1e-6)
    np.testing.assert_allclose(
        Cascade(session, SIZES, thresholds).run({size: session.preprocess(photos, size) for size in SIZES}).logits,
        result.logits, rtol=1e-4, atol=1e-4)


# the command

def test_bench_writes_what_it_prints(cli, file, photos, tmp_path):
    out = tmp_path / 'table.json'
    status, text, _ = cli('bench', file, '--engine', 'onnxruntime', '--threads', 1, '--repeats', 72, '--batch-size', 1,
                          2, '--images', tmp_path, photos[0], '--out', out)
    table = LatencyTable.load(out)
    assert status == 0 and str(table) in text and f'# wrote {out}' in text
    assert [(row.resolution, row.batch) for row in table.rows] == [(size, n) for size in SIZES for n in (1, 2)]
    assert all(row.total for row in table.rows) and 'onnxruntime' in text.splitlines()[0]


def test_bench_answers_the_budget(cli, file, network, tmp_path):
    out = tmp_path / 'table.json'
    status, text, errors = cli('bench', file, '--engine', 'onnxruntime', '--repeats', 72, '--madds', madds(network, 44),
                               '--step', 4, '--ms', 1e6, '--out', out)
    assert status == 0 and '# batch 1: 44 px (at most 1e+06 ms, at most ' in text
    assert '44 px is not a trained size' in errors
    assert 44 in {row['resolution'] for row in json.loads(out.read_text())['rows']}


def test_bench_of_several_engines_and_threads_writes_a_file_each(cli, file, tmp_path):
    pytest.importorskip('openvino')
    status, text, _ = cli('bench', file, '--engine', 'onnxruntime', 'openvino', '--threads', 1, 2, '--sizes', 32,
                          '--repeats', 72, '--out', tmp_path / 'table.json')
    written = sorted(path.name for path in tmp_path.glob('*.json'))
    assert status == 0 and written == [f'table-{engine}-{threads}threads.json' for engine in ('onnxruntime', 'openvino')
                                       for threads in (1, 2)]
    assert {LatencyTable.load(tmp_path / name).engine for name in written} == {'onnxruntime', 'openvino'}


@pytest.mark.parametrize('options, words', [
    (('--repeats', 10), 'at least 72'),
    (('--ms', 0), '--ms 0'),
    (('--step', 8), '--step goes with a budget'),
    (('--ms', 1e-9), "no resolution fits .*the smallest, 32 px"),
    (('--no-weights',), 'exported file'),
    (('--images', 'nowhere.jpg'), 'nowhere.jpg: no such file'),
    (('--engine', 'torch'), 'torch models'),
])
def test_bench_says_what_is_wrong(cli, file, options, words):
    status, _, errors = cli('bench', file, '--sizes', 32, '--repeats', 72, *options)
    assert status == 2 and re.search(f'rs-timm: error: .*{words}', errors) and errors.count('\n') == 1
