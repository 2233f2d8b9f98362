"""Collections through a session: each picture once, the same rows wherever and however often they were stopped."""
import json
import os
import signal
import subprocess
import sys
import threading  # noqa: F401
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest

import rs_timm
from rs_timm.format.info import ModelInfo
from rs_timm.pictures import ImageError
from rs_timm.predict.batch import Counts, Work, predict_batches, predict_pictures
from rs_timm.predict.output import Output
from rs_timm.predict.rows import Row, read_rows, write_rows

ROOT = Path(rs_timm.__file__).parent.parent
CLASSES = 4
SETTINGS = dict(model='fake', resolution=8, topk=2)
WORK = Work(resolution=8, topk=2, batch_size=4, threads=2)


class Pictures:
    """Pictures whose bytes are their numbers; every seventh is none."""

    def __init__(self, count, skip=()):
        self.numbers = [number for number in range(count) if number not in skip]
        self.names = [f'{number:04d}.jpg' for number in self.numbers]

    def read(self, position):
        number = self.numbers[position]
        return b'none' if number % 7 == 6 else str(number).encode()


class FakeSession:
    """Logits that depend on the whole batch, so that rows show with whom a picture was."""

    def __init__(self, stop_after=None, pause=0.):
        self.info = ModelInfo('fake', (8,), num_classes=CLASSES, label_names=tuple('abcd'))
        self.batches, self.stop_after, self.pause = [], stop_after, pause

    def prepare(self, resolutions, batch):
        assert (tuple(resolutions), batch) == ((8,), 4) or batch in (5, 7)

    def preprocess(self, images, resolution):
        if images == b'none':
            raise ImageError('picture 0: not a picture')
        return np.full((1, 3, resolution, resolution), float(images), np.float32)

    def run(self, x):
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        time.sleep(self.pause)
        numbers = x[:, 0, 0, 0]
        self.batches.append([int(number) for number in numbers])
        return np.stack([np.sin(numbers * (k + 1)) + numbers.sum() / 100 * (k == 1) for k in range(CLASSES)], axis=1)


def predict(path, pictures, session=None, work=WORK, **settings):
    return predict_pictures(session or FakeSession(), pictures, path, work, settings)


@pytest.fixture(params=['.jsonl', '.parquet'])
def suffix(request):
    if request.param == '.parquet':
        pytest.importorskip('pyarrow')
    return request.param


@pytest.fixture
def expected(tmp_path, suffix):
    """The file that is made in one go."""
    path = tmp_path / f'expected{suffix}'
    assert predict(path, Pictures(100)) == Counts(86, 14, 0)
    return path


def same(path, other):
    if path.suffix == '.jsonl':
        return path.read_bytes() == other.read_bytes()
    return list(read_rows(path)) == list(read_rows(other))


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir() if path.name in p.name and p != path)


def test_rows_are_softmax_of_the_logits_in_the_order_of_the_pictures(expected):
    rows = list(read_rows(expected))
    assert [row.file for row in rows] == Pictures(100).names
    session = FakeSession()
    for start in range(0, 100, 4):
        numbers = [number for number in range(start, start + 4) if number % 7 != 6]
        logits = session.run(np.array(numbers, np.float32).reshape(-1, 1, 1, 1))
        for number, z in zip(numbers, np.exp(logits)):
            row, p = rows[number], z / z.sum()
            assert row.classes == tuple(np.argsort(-p)[:2]) and row.labels == tuple('abcd'[k] for k in row.classes)
            assert row.probabilities == pytest.approx(sorted(p)[::-1][:2], abs=1e-5) and row.resolution == 8
    errors = {row.file: row.error for row in rows if row.error}
    assert errors == {f'{number:04d}.jpg': 'not a picture' for number in range(6, 100, 7)}
    assert leftovers(expected) == [f'.{expected.name}.lock', f'{expected.name}.run.json']


@pytest.mark.parametrize('stops', [[0], [1, 1, 1], [5, 3], [24]])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, expected, stops):
    path, run = tmp_path / f'stopped{expected.suffix}', []
    for stop in stops:
        session = FakeSession(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            predict(path, Pictures(100), session)
        run += session.batches
        assert not path.exists()
    session, whole = FakeSession(), FakeSession()
    predict(path, Pictures(100), session)
    predict(tmp_path / f'whole{expected.suffix}', Pictures(100), whole)
    assert same(path, expected) and sorted(run + session.batches) == whole.batches  # nothing twice
    assert leftovers(path) == [f'.{path.name}.lock', f'{path.name}.run.json']


@pytest.mark.parametrize('cut', [0, 1, 5, 100, -1])
def test_a_torn_line_is_dropped(tmp_path, expected, cut):
    """At every point of a write, which is of a whole batch, and wherever a disk that lost power stopped."""
    path = tmp_path / f'torn{expected.suffix}'
    with pytest.raises(KeyboardInterrupt):
        predict(path, Pictures(100), FakeSession(stop_after=9))
    partial = path.with_name(f'{path.name}.partial')
    lines = partial.read_bytes().splitlines(keepends=True)
    assert len(lines) == 9
    partial.write_bytes(b''.join(lines[:6]) + lines[6][:cut] + {0: b'[]\n', 5: bytes(99)}.get(cut, b''))
    session = FakeSession()
    assert predict(path, Pictures(100), session).skipped == 24 and session.batches[0] == [24, 25, 26]
    assert same(path, expected)


def test_rows_may_come_in_any_order(tmp_path, expected):
    path = tmp_path / f'any{expected.suffix}'

    def backwards(batches):
        return predict_batches(FakeSession(), Pictures(100), WORK, batches[::-1])

    predict_pictures(FakeSession(), Pictures(100), path, WORK, predict=backwards)
    assert same(path, expected)


def test_a_run_may_go_on_with_other_batches(tmp_path, suffix):
    path = tmp_path / f'rows{suffix}'
    with pytest.raises(KeyboardInterrupt):
        predict(path, Pictures(100), FakeSession(stop_after=2), Work(8, 2, batch_size=7))
    counts = predict(path, Pictures(100), work=Work(8, 2, batch_size=5))
    assert counts.skipped == 14 and [row.file for row in read_rows(path)] == Pictures(100).names


CODE = '''
import sys
sys.path.insert(0, {tests!r})
from test_batch import *
predict(Path(sys.argv[1]), Pictures(100), FakeSession(pause=0.02))
'''


def test_killed_for_real(tmp_path, expected):
    """SIGKILL between and within writes: what is there is whole, and the rest is made by whoever comes next."""
    path = tmp_path / f'killed{expected.suffix}'
    partial = path.with_name(f'{path.name}.partial')
    for lines in (3, 9):
        code = CODE.format(tests=str(Path(__file__).parent))
        process = subprocess.Popen([sys.executable, '-c', code, path], cwd=ROOT)
        deadline = time.monotonic() + 60
        while not partial.exists() or partial.read_bytes().count(b'\n') < lines:
            assert time.monotonic() < deadline
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL and not path.exists()
    counts = predict(path, Pictures(100))
    assert counts.skipped >= 36 and same(path, expected)


def test_what_is_complete_is_not_touched_and_what_is_new_is_added(tmp_path, suffix):
    path = tmp_path / f'rows{suffix}'
    predict(path, Pictures(40, skip=(3, 9)))
    before = path.read_bytes()
    session = FakeSession()
    assert predict(path, Pictures(40, skip=(3, 9)), session) == Counts(0, 0, 38)
    assert not session.batches and path.read_bytes() == before
    old = list(read_rows(path))
    counts = predict(path, Pictures(41))
    rows = list(read_rows(path))
    assert counts == Counts(3, 0, 38) and rows[:38] == old
    assert [row.file for row in rows[38:]] == ['0003.jpg', '0009.jpg', '0040.jpg']


def test_a_kill_while_the_file_is_made_costs_nothing(tmp_path, expected, monkeypatch):
    path = tmp_path / f'rows{expected.suffix}'
    partial = path.with_name(f'{path.name}.partial')

    def killed(*args, **kwargs):
        raise SystemError('killed')

    with monkeypatch.context() as patch:
        patch.setattr('rs_timm.predict.output.write_rows', killed)
        with pytest.raises(SystemError):
            predict(path, Pictures(100))
    lines = partial.read_bytes()
    assert not path.exists() and predict(path, Pictures(100), FakeSession(stop_after=0)).skipped == 100
    partial.write_bytes(lines)  # the file is there, and what it was made of still is
    assert predict(path, Pictures(100), FakeSession(stop_after=0)).skipped == 100
    assert same(path, expected) and not partial.exists()
    partial.write_bytes(lines)
    predict(path, Pictures(101))
    assert [row.file for row in read_rows(path)] == Pictures(101).names


def test_a_full_disk_keeps_what_was_there(tmp_path):
    path = tmp_path / 'rows.jsonl'
    row = Row('a.jpg', 8)

    class Full:
        def __init__(self, stream):
            self.seek, self.truncate, self.close, self._stream = stream.seek, stream.truncate, stream.close, stream

        def write(self, data):
            if len(data) < 40:
                raise OSError(28, 'No space left on device')
            return self._stream.write(data[:20])

    with Output(path, ['a.jpg', 'b.jpg', 'c.jpg'], {}) as output:
        output.append([row])
        stream, output._stream = output._stream, Full(output._stream)
        with pytest.raises(OSError, match='No space'):
            output.append([Row('b.jpg', 8)])
        output._stream = stream
        output.append([Row('c.jpg', 8)])
    with Output(path, ['a.jpg', 'b.jpg', 'c.jpg'], {}) as output:
        assert output.done == {'a.jpg', 'c.jpg'}


def test_two_at_once(tmp_path):
    """The second gets one sentence, whatever it wants; when the first has ended, it may."""
    path = tmp_path / 'rows.jsonl'
    with Output(path, ['a'], SETTINGS):
        for settings in (SETTINGS, dict(model='other')):
            with pytest.raises(ValueError, match=rf'rows.jsonl is being written by another process \({os.getpid()}\)'):
                Output(path, ['a'], settings).__enter__()
    with Output(path, ['a'], SETTINGS):
        pass
    with pytest.raises(ValueError, match="model 'fake', now 'other'"):
        Output(path, ['a'], dict(model='other')).__enter__()


def killed_once(marker):
    """A session whose process dies in its second batch, unless another one did."""
    session = FakeSession()
    run = session.run

    def dying(x):
        if len(session.batches) == 1 and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return run(x)

    session.run = dying
    return session


@pytest.mark.timeout(300)
def test_two_workers_of_ray_one_killed(tmp_path, monkeypatch):
    """The file is that of one process; names are relative, the workers may be elsewhere."""
    ray = pytest.importorskip('ray')
    from rs_timm.predict.collection import open_collection
    from rs_timm.predict.on_ray import connected, predict_on_ray

    monkeypatch.setenv('RAY_worker_niceness', '0')
    monkeypatch.setenv('PYTHONPATH', f'{ROOT}{os.pathsep}{Path(__file__).parent}')
    for number in range(50):
        (tmp_path / 'f' / f'{number:04d}.jpg').parent.mkdir(exist_ok=True)
        (tmp_path / 'f' / f'{number:04d}.jpg').write_bytes(Pictures(50).read(number))
    monkeypatch.chdir(tmp_path)
    pictures = open_collection(['f'])
    predict(tmp_path / 'expected.jsonl', Pictures(50))
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level='ERROR')
    try:
        with connected():
            counts = predict_pictures(
                FakeSession(), pictures, tmp_path / 'rows.jsonl', WORK, predict=lambda batches: predict_on_ray(
                    partial(killed_once, tmp_path / 'marker'), pictures, WORK, batches, workers=2))
    finally:
        ray.shutdown()
    assert (tmp_path / 'marker').exists() and counts == Counts(43, 7, 0)
    assert (tmp_path / 'rows.jsonl').read_bytes() == (tmp_path / 'expected.jsonl').read_bytes()


@pytest.mark.parametrize('logits, finite', [
    ([np.nan, 0, 1, 2], False), ([np.inf, 0, 1, 2], False), ([-np.inf] * 4, False), ([1e38, -1e38, 0, 0], True),
    ([-np.inf, 0, 1, 2], True)])
def test_nothing_is_predicted_that_is_not_finite(tmp_path, logits, finite):
    session, path = FakeSession(), tmp_path / 'rows.jsonl'
    session.run = lambda x: np.array([logits] * len(x), np.float32)
    assert predict(path, Pictures(3), session) == (Counts(3, 0, 0) if finite else Counts(0, 3, 0))
    for line in path.read_text().splitlines():
        row = json.loads(line, parse_constant=pytest.fail)
        assert (row['error'] is None and np.isfinite(row['probabilities']).all() if finite
                else 'not finite' in row['error'] and row['classes'] == [])


def test_a_read_that_never_ends_keeps_no_process(tmp_path):
    code = ("import sys; sys.path.insert(0, {!r}); from test_batch import *; pictures = Pictures(9); stuck = "
            "threading.Event(); pictures.read = lambda position: stuck.wait(); "
            "threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start(); predict({!r}, pictures)")
    done = subprocess.run([sys.executable, '-c', code.format(str(Path(__file__).parent), str(tmp_path / 'rows.jsonl'))],
                          cwd=ROOT, timeout=60, capture_output=True, text=True)
    assert 'KeyboardInterrupt' in done.stderr and done.returncode not in (0, None)


@pytest.mark.parametrize('change, message', [
    (dict(weights='b'), "weights 'a', now 'b'"),
    (dict(weights='a', extra=1), 'extra None, now 1'),
])
def test_other_settings_are_another_file(tmp_path, change, message):
    path = tmp_path / 'rows.jsonl'
    predict(path, Pictures(10), weights='a')
    with pytest.raises(ValueError, match=message):
        predict(path, Pictures(10), **change)


@pytest.mark.parametrize('name, content, message', [
    ('rows.jsonl.run.json', '{"model":', 'rows.jsonl.run.json does not say how rows.jsonl was made'),
    ('rows.jsonl.run.json', '[1]', 'rows.jsonl.run.json does not say how'),
    ('rows.jsonl', '{"file": 1, "odd": 2}', 'rows.jsonl, line 1: not a row of predictions'),
    ('rows.jsonl', '7', 'rows.jsonl, line 1: not a row of predictions'),
])
def test_damaged_files_are_named(tmp_path, name, content, message):
    predict(tmp_path / 'rows.jsonl', Pictures(3))
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        predict(tmp_path / 'rows.jsonl', Pictures(3))


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('mine\n')
    with pytest.raises(ValueError, match='rows.jsonl exists, and there is no rows.jsonl.run.json'):
        predict(path, Pictures(10))
    assert path.read_text() == 'mine\n' and leftovers(path) == ['.rows.jsonl.lock']


@pytest.mark.parametrize('act, message', [
    (lambda path: Output(path / 'rows.csv', [], {}), r'rows.csv.*\.jsonl, \.parquet'),
    (lambda path: Output(path / 'rows.jsonl', ['a', 'b', 'a'], {}), "two pictures are called 'a'"),
    (lambda path: Work(8, batch_size=0), 'batch_size 0'),
])
def test_what_is_wrong_is_said(tmp_path, act, message):
    with pytest.raises(ValueError, match=message):
        act(tmp_path)


@pytest.mark.parametrize('info', [ModelInfo('net', (8,), task='segmentation', num_classes=3), ModelInfo('net', (8,))])
def test_no_classifier(tmp_path, info):
    session = FakeSession()
    session.info = info
    with pytest.raises(ValueError, match='net is no classifier'):
        predict(tmp_path / 'rows.jsonl', Pictures(3), session)


def test_names_are_ascii_in_json(tmp_path):
    row = Row('\u00e9\u732b\ud83d.jpg', 8, (1,), ('\n',), (0.5,))
    write_rows(tmp_path / 'rows.jsonl', [row, row])
    text = (tmp_path / 'rows.jsonl').read_bytes()
    assert text.isascii() and text.count(b'\n') == 2 and list(read_rows(tmp_path / 'rows.jsonl')) == [row, row]


def test_columns_of_parquet(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    predict(tmp_path / 'rows.parquet', Pictures(20))
    predict(tmp_path / 'rows.jsonl', Pictures(20))
    lines = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
    assert parquet.read_table(tmp_path / 'rows.parquet').to_pylist() == lines
    assert parquet.read_schema(tmp_path / 'rows.parquet').names == list(lines[0])


def test_without_pyarrow_or_ray_the_extra_is_named(tmp_path, monkeypatch):
    from rs_timm.predict.on_ray import connected

    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'rs_timm\[parquet\]'):
        Output(tmp_path / 'rows.parquet', [], {})
    monkeypatch.setitem(sys.modules, 'ray', None)
    with pytest.raises(ImportError, match=r'rs_timm\[ray\]'), connected():
        pass
