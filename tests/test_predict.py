"""rs-timm predict on engines: what is shown and written is the network's, whoever is stopped or killed on the way."""
import json
import os
import re
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rs_timm
from rs_timm.cli import main
from rs_timm.commands import COMMANDS
from rs_timm.format.info import METADATA_KEY
from rs_timm.predict.rows import read_rows
from rs_timm.runtime import Session

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

ROOT = Path(rs_timm.__file__).parent.parent
SIZES, CLASSES, COUNT = (64, 48), 6, 90
BAD = 'c1/bad.jpg'


@pytest.fixture(scope='module')
def network():
    torch.manual_seed(0)
    return rs_timm.switchable('test_resnet', SIZES, num_classes=CLASSES).eval()


@pytest.fixture(scope='module')
def made(network, tmp_path_factory):
    """A folder with the exported file, the saved model, and pictures in a folder and in tar files."""
    home = tmp_path_factory.mktemp('made')
    rs_timm.export_onnx(network, home / 'tiny.onnx')
    rs_timm.save_pretrained(network, home / 'saved')
    generator = np.random.default_rng(0)
    for index in range(COUNT):
        path = home / 'photos' / f'c{index % 3}' / f'{index}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = generator.integers(0, 255, (6, 7, 3), np.uint8)
        Image.fromarray(pixels).resize((90, 70)).save(path)
    (home / 'photos' / BAD).write_bytes(b'\xff\xd8\xff')
    (home / 'photos' / 'notes.txt').write_text('no picture')
    for shard in range(3):
        with tarfile.open(home / f'{shard}.tar', 'w') as tar:
            tar.add(home / 'photos' / f'c{shard}', f'c{shard}')
    return home


@pytest.fixture
def predict(cli, made, tmp_path):
    """Writes predictions with ONNX Runtime -> status, stdout, stderr, rows."""
    def run(*options, inputs=None, out='rows.jsonl', engine='onnxruntime', model='tiny.onnx'):
        path = tmp_path / out
        result = cli('predict', made / model, *(inputs or [made / 'photos']), '--out', path, *options,
                     *(['--engine', engine] if engine else []))
        return *result, (list(read_rows(path)) if path.exists() else [])

    return run


# written

def test_one_crop_in_place_of_the_models(predict, made, capsys):
    """In rows and on the screen; a file that was begun with another crop is not gone on with."""
    picture = made / 'photos/c0/0.png'
    status, _, _, (row,) = predict('--crop-pct', '0.5', '--sizes', '64', inputs=[picture])
    logits = Session(made / 'tiny.onnx', 'onnxruntime', crop_pct=0.5)(picture, 64)[0].astype(float)
    share = np.exp(logits - logits.max())
    assert status == 0 and row.probabilities[0] == pytest.approx(share.max() / share.sum(), abs=1e-3)
    status, _, error, _ = predict('--crop-pct', '0.7', '--sizes', '64', inputs=[picture])
    assert status == 2 and 'crop_pct 0.5, now 0.7' in error

@pytest.mark.parametrize('options, size', [([], 64), (['--sizes', 48], 48), (['--sizes', 56], 56)])
def test_rows_are_the_networks(predict, network, made, options, size):
    status, out, err, rows = predict(*options, '--topk', 3)
    assert status == 1 and f'{COUNT + 1} rows' in out and f'1 of {COUNT + 1} pictures could not be predicted' in err
    session = Session(made / 'tiny.onnx', 'onnxruntime')
    assert len(rows) == COUNT + 1 and [row.file for row in rows if row.error] == [BAD]
    for row in rows:
        if row.file == BAD:
            assert row.error.startswith('not a') and not row.classes
            continue
        with torch.no_grad():
            x = torch.from_numpy(session.preprocess(made / 'photos' / row.file, size))
            p = network(x).softmax(1)[0].double().numpy()
        assert row.resolution == size and row.labels == tuple(f'class {k}' for k in row.classes)
        assert p[list(row.classes)] == pytest.approx(np.sort(p)[::-1][:3], abs=1e-4)
        assert row.probabilities == pytest.approx(p[list(row.classes)], abs=1e-4)


def test_folder_tar_files_and_parquet_have_the_same_rows(predict, made):
    folder = predict()[3]
    shards = predict(inputs=[made / '0.tar', made / '1.tar', made / '2.tar'], out='shards.jsonl')[3]
    by_name = {row.file.partition('/')[2]: row for row in shards}
    assert len(by_name) == len(shards) == len(folder)
    assert {row.file[:6] for row in shards} == {'0.tar/', '1.tar/', '2.tar/'}
    for row in folder:
        other = by_name[row.file]
        assert (other.classes, other.error) == (row.classes, row.error)
        assert other.probabilities == pytest.approx(row.probabilities, abs=1e-5)
    pytest.importorskip('pyarrow')
    assert predict(out='rows.parquet')[3] == folder


@pytest.mark.parametrize('reader, root', [('folder', 'photos'), ('tar', '1.tar')])
def test_readers_of_timm(predict, made, reader, root):
    by_timm = predict('--reader', reader, inputs=[made / root], out='timm.jsonl')[3]
    ours = predict(inputs=[made / root])[3]
    prefix = '' if reader == 'folder' else '1.tar/'
    assert [(prefix + row.file, row.classes, row.probabilities, row.error) for row in by_timm] == [
        (row.file, row.classes, row.probabilities, row.error) for row in ours]


@pytest.mark.parametrize('engine, model', [('openvino', 'tiny.onnx'), ('onnxruntime', 'saved'), ('torch', 'saved')])
def test_engines_agree(predict, engine, model):
    pytest.importorskip(engine)
    expected = predict()[3]
    rows = predict(engine=engine, model=model, out='other.jsonl')[3]
    for row, other in zip(rows, expected):
        assert row.file == other.file and row.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_int8_calibrates_once(predict, made, tmp_path):
    options = ('--precision', 'int8', '--cache-dir', tmp_path / 'int8', '--sizes', 48)
    status, _, err, _ = predict(*options)
    assert status == 2 and 'has to be calibrated first' in err
    status, _, _, rows = predict(*options, '--calibration', made / 'photos' / 'c0')
    assert status == 1 and len(rows) == COUNT + 1
    assert predict(*options, out='again.jsonl')[3] == rows, 'what is in the folder is used'
    assert predict(*options)[3] == rows
    other = ('--precision', 'int8', '--cache-dir', tmp_path / 'other', '--sizes', 48)
    status, _, err, _ = predict(*other, '--calibration', made / 'photos' / 'c2')
    assert status == 2 and re.search(r"calibrated '\w+', now '\w+'", err), 'another network'


def test_random_weights_are_the_same_in_all_runs(predict, made, cli, tmp_path):
    argv = ('predict', 'switchable:test_resnet', '--no-weights', '--resolutions', 64, 48, '--engine', 'onnxruntime')
    for name in ('one', 'two'):
        assert cli(*argv, '--out', tmp_path / f'{name}.jsonl', made / 'photos')[0] == 1
    assert (tmp_path / 'one.jsonl').read_bytes() == (tmp_path / 'two.jsonl').read_bytes()
    assert (tmp_path / 'one.jsonl.run.json').read_text() == (tmp_path / 'two.jsonl.run.json').read_text()


def test_splits_of_a_data_set_are_other_files(predict, made, monkeypatch):
    from timm.data import create_reader

    from rs_timm.data import ReaderPictures

    monkeypatch.setattr('rs_timm.data.readers.open_reader', lambda name, root, split: ReaderPictures(
        create_reader('', str(root))))
    assert len(predict('--reader', 'hfds/a/b')[3]) == COUNT + 1
    assert predict('--reader', 'hfds/a/b', '--split', 'validation')[0] == 1
    status, _, err, _ = predict('--reader', 'hfds/a/b', '--split', 'test')
    assert status == 2 and 'hfds/a/b, validation: ' in err and 'now ' in err and 'hfds/a/b, test: ' in err


# stopped, and going on

class Stopping:
    """`Session.run` that is interrupted in its third call."""

    def __init__(self, monkeypatch, act):
        run, calls = Session.run, []

        def stop(session, *args):
            calls.append(args)
            if len(calls) == 3:
                act()
            return run(session, *args)

        monkeypatch.setattr(Session, 'run', stop)


def interrupt():
    raise KeyboardInterrupt


def test_a_stopped_run_keeps_what_is_there(predict, tmp_path, monkeypatch):
    """Ctrl-C; that SIGTERM does the same, the next test shows."""
    *_, expected = predict(out='whole.jsonl')
    handler = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        Stopping(patch, interrupt)
        status, out, err, rows = predict('--batch-size', 8)
    assert status == 130 and not rows and 'the same command goes on' in err
    assert signal.getsignal(signal.SIGTERM) == handler
    assert len((tmp_path / 'rows.jsonl.partial').read_text().splitlines()) == 2
    status, out, _, rows = predict('--batch-size', 8)
    assert f'# {COUNT - 16} predicted, 1 could not be, 16 done before' in out and status == 1
    assert [row.file for row in rows] == [row.file for row in expected]
    status, out, _, rows = predict('--batch-size', 8)
    assert f'# 0 predicted, 0 could not be, {COUNT + 1} done before' in out and status == 1


def test_bounds_and_what_is_passed_over(predict, made, tmp_path):
    status, out, _, rows = predict('--max-pixels', 6299, '--max-bytes', 10 ** 6, inputs=[made / 'photos' / 'c0'])
    assert status == 1 and {row.error for row in rows} == {'refused, 90 x 70 pixels are more than the bound of 6299'}
    status, out, _, rows = predict('--max-bytes', 10, out='bytes.jsonl')
    assert '# passed over: 1 .txt' in out and 'more than the bound of 10' in rows[0].error


def test_new_pictures_are_added(predict, made, tmp_path):
    before = predict(inputs=[made / '0.tar'])[3]
    status, out, _, rows = predict(inputs=[made / '0.tar', made / '2.tar'])
    assert status == 0 and f'# {COUNT // 3} predicted, 0 could not be, {COUNT // 3} done before' in out
    assert rows[:len(before)] == before and len(rows) == 2 * COUNT // 3


SLOW = """
import sys, time
from rs_timm.cli import main
from rs_timm.runtime import Session
run = Session.run
Session.run = lambda *args: [time.sleep(float(sys.argv[1])), run(*args)][1]
sys.exit(main(sys.argv[2:]))
"""


def test_sigterm_ends_a_run_that_waits(predict, made, tmp_path):
    """A second one with other settings gets one sentence, whoever was first; the first goes on after SIGTERM."""
    *_, expected = predict('--batch-size', 4, out='whole.jsonl')
    out = tmp_path / 'rows.jsonl'
    script = tmp_path / 'slow.py'
    script.write_text(SLOW)
    argv = ('predict', made / 'tiny.onnx', made / 'photos', '--engine', 'onnxruntime', '--batch-size', 4, '--out', out)
    running = subprocess.Popen([sys.executable, script, '0.2', *map(str, argv)], text=True, stderr=subprocess.PIPE,
                               env=dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1'))
    deadline = time.monotonic() + 120
    while not out.with_name('rows.jsonl.partial').exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    status, _, err, _ = predict('--topk', 2)
    assert status == 2 and f'is being written by another process ({running.pid})' in err and err.count('\n') == 1
    running.send_signal(signal.SIGTERM)
    _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and 'the same command goes on' in err and not out.exists()
    assert predict('--batch-size', 4)[3] == expected


@pytest.mark.parametrize('options, words', [
    (['--reader', 'folder'], 'leave one of the two out'),
    (['--precision', 'int8', '--calibration', 'photos'], 'needs --cache-dir'),
])
def test_what_ray_is_not_for(predict, made, monkeypatch, options, words):
    monkeypatch.chdir(made)
    status, _, err, _ = predict(*options, '--ray')
    assert status == 2 and words in err


# shown

def test_a_folder_is_shown_on_an_engine(cli, made):
    status, out, err = cli('predict', made / 'saved', made / 'photos' / 'c1', '--all', '--topk', 2)
    lines = out.splitlines()
    assert status == 1 and err.startswith('rs-timm: bad.jpg: not a') and err.count('\n') == 1
    assert 'float32, threads: ' in lines[0] and ('openvino' in lines[0] or 'onnxruntime' in lines[0])
    assert [line for line in lines if line.endswith('.png')] == [f'{k}.png' for k in range(1, COUNT, 3)]
    assert len([line for line in lines if ' ms ' in line and not line.startswith('#')]) == len(SIZES) * COUNT // 3


@pytest.mark.parametrize('options', [[], ['--sizes', 56, 48], ['--all']])
def test_engines_show_what_torch_shows(cli, made, options):
    photos = [made / 'photos' / 'c0' / f'{k}.png' for k in (0, 3)]
    shown = []
    for model, engine in (('saved', []), ('saved', ['--engine', 'onnxruntime']), ('tiny.onnx', [])):
        status, out, _ = cli('predict', made / model, *photos, *options, *engine)
        lines = [re.sub(r' +[\d.]+ ms', '', line) for line in out.splitlines() if not line.startswith('# /')]
        classes = [re.sub(r'[\d.]+%', '', line) for line in lines]
        shown.append(classes)
        assert status == 0
    assert shown[0] == shown[1] == shown[2]


def test_a_budget_chooses_the_resolution(cli, made):
    photo = made / 'photos' / 'c0' / '0.png'
    status, out, _ = cli('predict', made / 'tiny.onnx', photo, '--engine', 'onnxruntime', '--ms', 1e6)
    assert status == 0 and re.search(r'^ +64 px', out, re.MULTILINE)
    status, _, err = cli('predict', made / 'tiny.onnx', photo, '--engine', 'onnxruntime', '--ms', 1e-9)
    assert status == 2 and 'no resolution fits' in err


def test_a_bar_for_terminals_alone(made, tmp_path):
    fcntl, pty, termios = (pytest.importorskip(name) for name in ('fcntl', 'pty', 'termios'))
    ours, theirs = pty.openpty()
    fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 80, 0, 0))  # tqdm shows nothing in no columns
    argv = ['predict', made / 'tiny.onnx', made / 'photos', '--engine', 'onnxruntime', '--out']
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1')
    for out, stderr in (('a.jsonl', theirs), ('b.jsonl', subprocess.PIPE)):
        command = [sys.executable, '-m', 'rs_timm', *map(str, argv), tmp_path / out]
        done = subprocess.run(command, env=environment, stderr=stderr)
        assert done.returncode == 1
    assert b'picture/s' not in done.stderr and done.stderr.count(b'\n') == 1
    assert b'picture/s' in os.read(ours, 1 << 16)


# without torch

WITHOUT_TORCH = """
import sys
sys.modules.update(dict.fromkeys(('torch', 'timm', 'torchvision', 'yaml', 'huggingface_hub', 'safetensors')))
import rs_timm.predict.on_ray
from rs_timm.cli import main
sys.exit(main())
"""


def test_exported_files_need_no_torch(predict, made, tmp_path):
    predict()

    def run(*argv):
        return subprocess.run([sys.executable, '-c', WITHOUT_TORCH, *map(str, argv)], capture_output=True, text=True,
                              cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS='1'))

    out = tmp_path / 'torchless.jsonl'
    done = run('predict', made / 'tiny.onnx', made / 'photos', '--engine', 'onnxruntime', '--out', out)
    assert done.returncode == 1, done.stderr
    assert out.read_bytes() == (tmp_path / 'rows.jsonl').read_bytes()
    assert 'class ' in run('predict', made / 'tiny.onnx', made / 'photos' / 'c0' / '0.png').stdout
    for argv, words in ((['predict', 'rs_resnet18', made / 'photos'], 'rs_resnet18 needs PyTorch'),
                        (['predict', 'rs_resnet18', made / 'photos' / 'c0' / '0.png'], 'rs_resnet18 needs PyTorch'),
                        (['predict', made / 'tiny.onnx', made / 'photos', '--reader', 'folder'],
                         '--reader folder needs PyTorch and timm'),
                        (['info', 'rs_resnet18'], 'need PyTorch and timm')):
        done = run(*argv)
        assert done.returncode == 2 and words in done.stderr and done.stderr.count('\n') == 1, done.stderr
    done = run('bench', made / 'tiny.onnx', '--engine', 'onnxruntime', '--seconds', 0.01,
               '--images', made / 'photos' / 'c0')
    assert done.returncode == 0 and '64' in done.stdout, done.stderr
    assert 'usage: rs-timm' in run().stderr
    done = run('--help')
    assert done.returncode == 0 and re.findall(r'^    (\w+)\b', done.stdout, flags=re.MULTILINE) == list(COMMANDS)
    done = run('--version')
    assert done.returncode == 0 and 'torch not installed' in done.stdout


def test_other_packages_that_are_missing_are_not_called_torch(monkeypatch, capsys):
    def load(parser, name):
        raise ImportError('no yaml', name='yaml')

    monkeypatch.setattr('rs_timm.cli.add_arguments', load)
    assert main(['info', 'rs_resnet18']) == 2
    err = capsys.readouterr().err
    assert 'no yaml' in err and 'PyTorch' not in err
    with pytest.raises(ImportError, match='no yaml'):
        main(['--debug', 'info', 'rs_resnet18'])


# errors

def of_another_task(path, made):
    model = onnx.load(made / 'tiny.onnx')
    entry = next(entry for entry in model.metadata_props if entry.key == METADATA_KEY)
    entry.value = json.dumps({**json.loads(entry.value), 'task': 'segmentation'})
    onnx.save(model, path)


@pytest.mark.parametrize('options, words', [
    (['--sizes', 64, 48], 'one resolution: make a file for each'),
    (['--all'], 'one resolution'),
    (['--ms', 8], 'rs-timm bench --ms'),
    (['--no-weights'], 'is an exported file'),
    (['--engine', 'torch'], 'runs torch models, not exported files'),
    (['--device', 'nonsense'], "no provider 'nonsense' here: it has"),
    (['--precision', 'int8'], 'needs pictures to calibrate with'),
    (['--reader', 'nonsense'], "'nonsense' is unknown: give folder or tar"),
    (['--reader', 'wds/x'], 'one after the other'),
    (['--reader', 'hdfs/x'], "'hdfs/x' is unknown: give folder or tar, or hfds/USER/NAME"),
    (['--reader', 'torch/cifar10'], 'is unknown'),
    (['--reader', 'hfds/'], 'is unknown'),
    (['--reader', 'tar'], 'is no .tar file: give --reader folder'),
    (['--split', 'test'], '--split test is for --reader hfds/NAME'),
    (['--split', 'test', '--reader', 'folder'], '--split test is for --reader hfds/NAME'),
])
def test_options_that_cannot_be(cli, made, tmp_path, options, words):
    status, _, err = cli('predict', made / 'tiny.onnx', made / 'photos', '--engine', 'onnxruntime', *options,
                         '--out', tmp_path / 'rows.jsonl')
    assert status == 2 and words in err and err.count('\n') == 1 and not list(tmp_path.iterdir())


def test_inputs_that_cannot_be(cli, made, tmp_path):
    (tmp_path / 'empty').mkdir()
    (tmp_path / 'tars').mkdir()
    os.link(made / '0.tar', tmp_path / 'tars' / '0.tar')
    of_another_task(tmp_path / 'masks.onnx', made)
    photos, tiny, out = made / 'photos', made / 'tiny.onnx', ['--out', tmp_path / 'rows.jsonl']
    for argv, words in (
            ([tiny, tmp_path / 'empty', *out], 'empty: no pictures in it'),
            ([tiny, tmp_path / 'empty'], 'empty: no pictures in it'),
            ([tiny, tmp_path / 'absent', *out], 'absent: no such file or folder'),
            ([tiny, photos, photos, *out], 'two pictures are called'),
            ([tiny, photos, '--out', tmp_path / 'rows.csv'], r'rows.csv: the ending says the format'),
            ([tiny, made / '0.tar', '--reader', 'folder', *out], '0.tar is a file: give --reader tar'),
            ([tiny, photos, '--device', 'nonsense', *out], "no device 'nonsense' on this machine: it has CPU"),
            ([tiny, photos, '--precision', 'int8', '--calibration', tmp_path / 'tars'], 'tars: no pictures in it but'),
            ([tmp_path / 'masks.onnx', photos, *out], 'is for segmentation: rs-timm eval --overlays'),
            ([tmp_path / 'absent.onnx', photos, *out], 'absent.onnx: no such file'),
            ([tiny, photos / 'c0' / '0.png', '--batch-size', 4], '--batch-size and --decoders are for --out'),
    ):
        status, _, err = cli('predict', *argv)
        assert status == 2 and words in err and err.count('\n') == 1, err
    assert not [path for path in tmp_path.iterdir() if path.name.startswith('rows')]


@pytest.mark.parametrize('change, words', [
    (dict(options=['--sizes', 48]), 'resolution 64, now 48'),
    (dict(options=['--topk', 2]), 'topk 5, now 2'),
    (dict(model='saved'), r"weights '\w+', now '\w+'"),
    (dict(inputs='photos/c0'), "folders .*photos'], now .*c0'"),
])
def test_a_file_of_another_run(predict, made, change, words):
    before = predict()[3]
    inputs = [made / change['inputs']] if 'inputs' in change else None
    status, _, err, rows = predict(*change.get('options', []), inputs=inputs, model=change.get('model', 'tiny.onnx'))
    assert status == 2 and re.search(words, err) and 'another file' in err and rows == before
