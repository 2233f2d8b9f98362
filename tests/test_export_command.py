"""rs-timm export writes the files that the library writes, and compares them with PyTorch."""
import re

import pytest
import timm

import rs_timm
from rs_timm.commands import export as command
from tests.exported import SIZES, network

pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')

from rs_timm.runtime import extract_onnx, read_info, read_model  # noqa: E402


@pytest.fixture
def folder(random_statistics, tmp_path):
    model = network(random_statistics)
    return str(rs_timm.hub.save_pretrained(model, tmp_path / 'saved'))


@pytest.fixture
def cli(cli):
    """Runs a command in this process -> status, lines of stdout, lines of stderr."""
    def run(*argv):
        status, out, err = cli(*argv)
        return status, out.splitlines(), err.splitlines()

    return run


def differences(lines):
    return {int(line.split()[0]): float(re.search(r'at most (\S+) of', line)[1]) for line in lines}


def test_one_file(cli, folder, tmp_path):
    file = tmp_path / 'net.onnx'
    status, (head, *rows), errors = cli('export', folder, file)
    assert (status, errors) == (0, []) and head.startswith(f'{file}: switchable:test_resnet, ')
    ratio = file.stat().st_size / extract_onnx(read_model(file), 64).ByteSize()
    assert f'{file.stat().st_size / 1e6:.1f} MB, {ratio:.3f} times' in head
    assert list(differences(rows)) == list(SIZES) and max(differences(rows).values()) < 2e-5
    model = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert read_info(file).madds == {r: rs_timm.analysis.madds(model, r) for r in SIZES}


def test_split(cli, folder, tmp_path):
    status, lines, errors = cli('export', folder, tmp_path / 'net.onnx', '--plain', 40, 64)
    assert (status, errors) == (0, [])
    assert sorted(path.name for path in tmp_path.glob('*.onnx')) == ['net_40.onnx', 'net_64.onnx']
    rows = [line for line in lines if line.strip()[0].isdigit()]
    assert set(differences(rows)) == {40, 64} and max(differences(rows).values()) < 2e-5
    cli('export', folder, tmp_path / 'all.onnx', '--plain')
    assert {read_info(path).resolutions for path in tmp_path.glob('all_*.onnx')} == {(r,) for r in SIZES}


def test_nothing_is_replaced_without_force(cli, folder, tmp_path):
    file = tmp_path / 'net_64.onnx'
    file.write_text('mine')
    for argv in ([file], [tmp_path / 'net.onnx', '--plain']):
        status, out, (error,) = cli('export', folder, *argv)
        assert status == 2 and not out and 'net_64.onnx exists' in error and '--force' in error
    assert file.read_text() == 'mine' and list(tmp_path.glob('*.onnx')) == [file]
    assert cli('export', folder, file, '--force')[0] == 0


def test_a_file_that_differs_is_an_error(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, '_TOLERANCE', 0.)
    status, out, (error,) = cli('export', folder, tmp_path / 'net.onnx')
    assert status == 2 and 'differs from PyTorch' in error


def test_without_onnxruntime_it_says_that_nothing_was_compared(cli, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(command, 'find_spec', lambda name: None)
    status, out, (line,) = cli('export', folder, tmp_path / 'net.onnx')
    assert status == 0 and 'not compared' in line and 'rs_timm[onnxruntime]' in line
    assert not [row for row in out if 'PyTorch' in row]


@pytest.mark.parametrize('argv, part', [
    (['net.pt'], '.onnx'),
    (['net.onnx', '--opset', 9], '13 to 20'),
    (['net.onnx', '--plain', '--choice', 'input'], '--choice input'),
])
def test_wrong_arguments(cli, folder, tmp_path, monkeypatch, argv, part):
    monkeypatch.chdir(tmp_path)
    status, out, (error,) = cli('export', folder, *argv)
    assert status == 2 and not out and part in error and not list(tmp_path.glob('*.onnx'))
