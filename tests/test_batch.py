"""Collections through a session: each picture once, the same rows in any number of processes, whatever is killed."""
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import rs_timm
from rs_timm.format.info import ModelInfo
from rs_timm.pictures import ImageError
from rs_timm.predict.batch import Counts, Share, Work, _parts, predict_pictures
from rs_timm.predict.output import Output
from rs_timm.predict.rows import JsonLines, Prediction, format_of

ROOT = Path(rs_timm.__file__).parent.parent
CLASSES = 4
SETTINGS = dict(model='fake', resolution=8)
ALONE = Share()
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


def predict(path, pictures, session=None, share=ALONE, work=WORK, **settings):
    output = Output(path, pictures.names, {**SETTINGS, **settings})
    counts = predict_pictures(session or FakeSession(), pictures, output, work, share)
    return counts, output.merge()


@pytest.fixture(params=['.jsonl', '.parquet'])
def suffix(request):
    if request.param == '.parquet':
        pytest.importorskip('pyarrow')
    return request.param


@pytest.fixture
def expected(tmp_path, suffix):
    """The file that one process makes in one go."""
    path = tmp_path / f'expected{suffix}'
    assert predict(path, Pictures(100)) == (Counts(86, 14, 0), True)
    return path


def same(path, other):
    if path.suffix == '.jsonl':
        return path.read_bytes() == other.read_bytes()
    return list(format_of(path).read(path)) == list(format_of(other).read(other))


def leftovers(path):
    return sorted(p.name for p in path.parent.iterdir() if p.name.startswith(path.name) and p != path)


def test_rows_are_softmax_of_the_logits_in_the_order_of_the_pictures(expected):
    rows = list(format_of(expected).read(expected))
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


@pytest.mark.parametrize('world_size', [2, 3, 30])
def test_several_processes_make_the_file_of_one(tmp_path, expected, world_size):
    path = tmp_path / f'several{expected.suffix}'
    merged = [predict(path, Pictures(100), share=Share(rank, world_size))[1] for rank in range(world_size)]
    assert merged == [False] * (world_size - 1) + [True] or world_size > 25  # ranks without work find all done, too
    assert same(path, expected) and leftovers(path) == [f'{path.name}.run.json']


@pytest.mark.parametrize('count, batch_size, world_size', [(1, 4, 1), (3, 4, 2), (100, 7, 3), (5000, 32, 2), (0, 1, 1)])
def test_every_picture_is_in_one_share(count, batch_size, world_size):
    parts = [part for rank in range(world_size) for part in _parts(count, batch_size, Share(rank, world_size))]
    assert sorted(position for part in parts for position in part) == list(range(count))
    assert all(part.start % batch_size == 0 and len(part) <= max(1024, batch_size) for part in parts)


@pytest.mark.parametrize('stops', [[0], [1, 1, 1], [5, 3], [24]])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path, expected, stops):
    path, run = tmp_path / f'stopped{expected.suffix}', []
    for stop in stops:
        session = FakeSession(stop_after=stop)
        with pytest.raises(KeyboardInterrupt):
            predict(path, Pictures(100), session)
        run += session.batches
        assert not path.exists()
    session = FakeSession()
    _, merged = predict(path, Pictures(100), session)
    whole = FakeSession()
    predict(tmp_path / f'whole{expected.suffix}', Pictures(100), whole)
    assert merged and same(path, expected) and sorted(run + session.batches) == whole.batches  # nothing twice


def test_a_run_may_go_on_in_other_processes_with_other_batches(tmp_path, suffix):
    path = tmp_path / f'rows{suffix}'
    predict(path, Pictures(100), share=Share(1, 3))
    with pytest.raises(KeyboardInterrupt):
        predict(path, Pictures(100), FakeSession(stop_after=2), Share(0, 2), Work(8, batch_size=7))
    done = Output(path, Pictures(100).names, SETTINGS).done()
    counts, merged = predict(path, Pictures(100), work=Work(8, batch_size=5))
    rows = list(format_of(path).read(path))
    assert merged and 0 < counts.skipped == len(done) < 100 and [row.file for row in rows] == Pictures(100).names


CODE = '''
import sys
sys.path.insert(0, {tests!r})
from test_batch import *
predict(Path(sys.argv[1]), Pictures(100), FakeSession(pause=0.02), Share(int(sys.argv[2]), 2))
'''


def test_killed_for_real(tmp_path, expected):
    """SIGKILL between and within writes: what is there is whole, and the rest is made by whoever comes next."""
    path = tmp_path / f'killed{expected.suffix}'
    command = [sys.executable, '-c', CODE.format(tests=str(Path(__file__).parent)), str(path)]
    for rank, parts in ((0, 2), (1, 5)):
        process = subprocess.Popen([*command, str(rank)], cwd=ROOT)
        folder, deadline = path.with_name(f'{path.name}.parts'), time.monotonic() + 60
        while len(list(folder.glob(f'*{path.suffix}'))) < parts and time.monotonic() < deadline:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        found = [row.file for part in folder.glob(f'*{path.suffix}') for row in format_of(path).read(part)]
        assert found and len(set(found)) == len(found) < 100 and not path.exists()
    counts, merged = predict(path, Pictures(100))
    assert merged and counts.skipped >= len(found) and same(path, expected)
    assert leftovers(path) == [f'{path.name}.run.json']


def test_what_is_complete_is_not_touched_and_what_is_new_is_added(tmp_path, suffix):
    path = tmp_path / f'rows{suffix}'
    predict(path, Pictures(40, skip=(3, 9)))
    before = path.read_bytes()
    session = FakeSession()
    assert predict(path, Pictures(40, skip=(3, 9)), session) == (Counts(0, 0, 38), True)
    assert not session.batches and path.read_bytes() == before
    old = list(format_of(path).read(path))
    counts, _ = predict(path, Pictures(41))
    rows = list(format_of(path).read(path))
    assert counts == Counts(3, 0, 38) and rows[:38] == old
    assert [row.file for row in rows[38:]] == ['0003.jpg', '0009.jpg', '0040.jpg']


def test_a_merge_that_was_killed_is_made_good(tmp_path, expected, monkeypatch):
    path = tmp_path / f'rows{expected.suffix}'
    output = Output(path, Pictures(100).names, SETTINGS)
    predict_pictures(FakeSession(), Pictures(100), output, WORK)

    def killed(*args, **kwargs):
        raise SystemError('killed')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'replace', killed)
        with pytest.raises(SystemError):
            output.merge()
    assert not path.exists()
    with monkeypatch.context() as patch:  # the file is there, its parts still are
        patch.setattr(Output, '_clear', killed)
        with pytest.raises(SystemError):
            output.merge()
    assert path.exists() and output.merge() and same(path, expected)
    assert leftovers(path) == [f'{path.name}.run.json']


def test_who_merges_second_finds_it_done(tmp_path, expected, monkeypatch):
    """Another process merges, and removes the parts, while this one reads them."""
    path = tmp_path / f'rows{expected.suffix}'
    first, second = (Output(path, Pictures(100).names, SETTINGS) for _ in range(2))
    predict_pictures(FakeSession(), Pictures(100), first, WORK)
    read = type(second._format).read
    calls = []

    def interrupted(self, part):
        calls.append(part)
        if len(calls) == 20:
            assert first.merge()
        return read(self, part)

    monkeypatch.setattr(second._format, 'read', interrupted.__get__(second._format))
    assert second.merge() and len(calls) >= 20 and same(path, expected)


def test_parts_of_others_stay_when_this_process_merges(tmp_path, suffix):
    """A process with a shorter list merges; what another one has of further pictures is not lost."""
    path = tmp_path / f'rows{suffix}'
    short, long = (Output(path, Pictures(count).names, SETTINGS) for count in (20, 40))
    predict_pictures(FakeSession(), Pictures(20), short, WORK)
    merge, committed = short._format.write, []

    def write(file, rows):
        if not committed:
            committed.append(True)
            long.write([Prediction('0030.jpg', 8, error='x')])
        merge(file, rows)

    short._format.write = write
    assert short.merge() and [row.file for row in format_of(path).read(path)] == Pictures(20).names
    assert long.done() == {*Pictures(20).names, '0030.jpg'}
    predict_pictures(FakeSession(), Pictures(40), long, WORK)
    assert long.merge() and [row.file for row in long.rows()].count('0030.jpg') == 1 and len(long.done()) == 40
    assert leftovers(path) == [f'{path.name}.run.json']


def test_a_folder_that_another_process_has_removed_comes_back(tmp_path):
    path = tmp_path / 'rows.jsonl'
    first, second = (Output(path, Pictures(3).names, SETTINGS) for _ in range(2))
    predict_pictures(FakeSession(), Pictures(3), first, WORK)
    assert first.merge() and not second.parts.exists()
    second.write([Prediction('0000.jpg', 8)])
    assert [row.file for row in second.rows()] == Pictures(3).names and second.merge() and not second.parts.exists()


def test_what_is_half_written_goes_and_who_still_writes_does_so_again(tmp_path):
    path = tmp_path / 'rows.jsonl'
    first, second = (Output(path, Pictures(3).names, SETTINGS) for _ in range(2))
    (first.parts / '.part.killed').touch()
    predict_pictures(FakeSession(), Pictures(3), first, WORK)
    write, calls = second._format.write, []

    def interrupted(file, rows):
        write(file, rows)
        calls.append(file)
        if len(calls) == 1:
            assert first.merge() and not second.parts.exists()

    second._format.write = interrupted
    second.write([Prediction('0007.jpg', 8)])
    assert len(calls) == 2 and second.done() == {*Pictures(3).names, '0007.jpg'}


def test_parts_that_go_while_they_are_read(tmp_path, monkeypatch):
    path = tmp_path / 'rows.jsonl'
    first, second = (Output(path, Pictures(20).names, SETTINGS) for _ in range(2))
    predict_pictures(FakeSession(), Pictures(20), first, WORK)
    parts = second._part_files()
    assert first.merge()
    monkeypatch.setattr(second, '_part_files', lambda: parts)
    assert second.done() == set(Pictures(20).names)
    assert sorted(row.file for row in second.rows()) == Pictures(20).names


def test_a_full_disk_keeps_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / 'rows.jsonl'
    with pytest.raises(KeyboardInterrupt):
        predict(path, Pictures(100), FakeSession(stop_after=4))
    output = Output(path, Pictures(100).names, SETTINGS)
    before = output.done()

    def full(*args):
        raise OSError(28, 'No space left on device')

    with monkeypatch.context() as patch:
        patch.setattr(os, 'fsync', full)
        with pytest.raises(OSError, match='No space'):
            predict(path, Pictures(100))
    assert Output(path, Pictures(100).names, SETTINGS).done() == before
    assert not [p for p in output.parts.iterdir() if p.name.startswith('.')]


@pytest.mark.parametrize('change, message', [
    (dict(resolution=16), 'resolution 8, now 16'),
    (dict(topk=3), 'topk None, now 3'),
])
def test_other_settings_are_another_file(tmp_path, change, message):
    path = tmp_path / 'rows.jsonl'
    predict(path, Pictures(10))
    with pytest.raises(ValueError, match=message):
        predict(path, Pictures(10), **change)


def test_files_of_others_are_left_alone(tmp_path):
    path = tmp_path / 'rows.jsonl'
    path.write_text('mine\n')
    with pytest.raises(ValueError, match='rows.jsonl exists, and there is no rows.jsonl.run.json'):
        predict(path, Pictures(10))
    assert path.read_text() == 'mine\n' and leftovers(path) == []


@pytest.mark.parametrize('act, message', [
    (lambda path: Output(path / 'rows.csv', [], {}), r'rows.csv.*\.jsonl, \.parquet'),
    (lambda path: Output(path / 'rows.jsonl', ['a', 'b', 'a'], {}), "two pictures are called 'a'"),
    (lambda path: Share(2, 2), 'rank 2 of 2'),
    (lambda path: Share.of_environment({'RANK': '1'}), "'RANK': '1', 'WORLD_SIZE': None"),
    (lambda path: Share.of_environment({'RANK': '0'}), 'set both'),
    (lambda path: Share.of_environment({'WORLD_SIZE': '4'}), "'RANK': None, 'WORLD_SIZE': '4'"),
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
    row = Prediction('\u00e9\u732b\ud83d.jpg', 8, (1,), ('\n',), (0.5,))
    JsonLines().write(tmp_path / 'rows.jsonl', [row, row])
    text = (tmp_path / 'rows.jsonl').read_bytes()
    assert text.isascii() and text.count(b'\n') == 2 and list(JsonLines().read(tmp_path / 'rows.jsonl')) == [row, row]


def test_columns_of_parquet(tmp_path):
    parquet = pytest.importorskip('pyarrow.parquet')
    predict(tmp_path / 'rows.parquet', Pictures(20))
    predict(tmp_path / 'rows.jsonl', Pictures(20))
    lines = [json.loads(line) for line in (tmp_path / 'rows.jsonl').read_text().splitlines()]
    assert parquet.read_table(tmp_path / 'rows.parquet').to_pylist() == lines
    assert parquet.read_schema(tmp_path / 'rows.parquet').names == list(lines[0])


def test_without_pyarrow_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'pyarrow', None)
    with pytest.raises(ImportError, match=r'rs_timm\[parquet\]'):
        Output(tmp_path / 'rows.parquet', [], {})


def test_no_torch_needed():
    code = ("import sys; sys.modules['torch'] = sys.modules['timm'] = None; "
            'import rs_timm.predict.batch, rs_timm.predict.output')
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
