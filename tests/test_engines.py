"""Which engines there are, which one is taken, and what is said about one that is not there or cannot do it."""
import importlib.util
import subprocess
import sys

import pytest

from rs_timm.runtime import engines
from rs_timm.runtime.engines import ENGINES, PRECISIONS, create_engine, installed_engines


def without(monkeypatch, *names):
    """As if these packages were not installed."""
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(engines, 'find_spec', lambda name: None if name in names else find_spec(name))


def test_the_first_installed_engine_is_taken(monkeypatch):
    for name in ENGINES:
        pytest.importorskip(name)
    assert installed_engines() == ENGINES
    assert create_engine(None, 'float32', None).name == 'openvino'
    without(monkeypatch, 'openvino')
    assert create_engine(None, 'float32', None, of_torch=True).name == 'onnxruntime'
    assert create_engine(None, 'bfloat16', None, of_torch=True).name == 'torch', 'ONNX Runtime cannot do bf16'
    without(monkeypatch, 'openvino', 'onnxruntime')
    assert create_engine(None, 'float32', None, of_torch=True).name == 'torch'
    assert installed_engines() == ('torch',)


def test_no_engine_names_the_extras(monkeypatch):
    without(monkeypatch, 'openvino', 'onnxruntime')
    with pytest.raises(ImportError, match=r"file in float32: pip install 'rs_timm\[openvino\]' .*\[onnxruntime\]"):
        create_engine(None, 'float32', None)
    with pytest.raises(ImportError, match='runs this model in int8'):
        create_engine(None, 'int8', None, of_torch=True)


@pytest.mark.parametrize('name', ['openvino', 'onnxruntime'])
def test_an_absent_engine_names_its_extra(monkeypatch, name):
    without(monkeypatch, name)
    with pytest.raises(ImportError, match=rf"engine {name} is not installed: pip install 'rs_timm\[{name}\]'"):
        create_engine(name, 'float32', None)


def test_every_remedy_is_an_extra():
    from configparser import ConfigParser
    from pathlib import Path

    config = ConfigParser()
    config.read(Path(__file__).resolve().parent.parent / 'setup.cfg')
    for name in ('openvino', 'onnxruntime'):
        assert {'onnx', name} <= set(config['options.extras_require'][name].split())


@pytest.mark.parametrize('args, message', [
    (('tensorrt', 'float32', None), 'engine .tensorrt. is unknown: choose one of openvino, onnxruntime, torch'),
    (('openvino', 'fp8', None), 'precision .fp8. is unknown: choose one of float32, bfloat16, int8'),
    (('openvino', 'float32', 0), 'threads=0: give a positive whole number'),
    (('openvino', 'float32', True), 'threads=True'),
    (('openvino', 'float32', 1.5), 'threads=1.5'),
    (('torch', 'float32', None), 'the torch engine runs torch models, not exported files: give the session the model'),
])
def test_what_cannot_be(args, message):
    with pytest.raises(ValueError, match=message):
        create_engine(*args)


@pytest.mark.parametrize('name, precision, able', [
    ('onnxruntime', 'bfloat16', 'float32, int8'), ('torch', 'int8', 'float32, bfloat16')])
def test_a_precision_that_an_engine_cannot_do(name, precision, able):
    with pytest.raises(ValueError, match=f'engine {name} cannot run in {precision}: it can in {able}'):
        create_engine(name, precision, None, of_torch=True)


def test_every_precision_is_one_of_some_engine():
    assert set(PRECISIONS) == {p for kind in engines._KINDS.values() for p in kind.precisions}
    assert tuple(engines._KINDS) == ENGINES


def test_a_cpu_without_bfloat16(monkeypatch):
    openvino = pytest.importorskip('openvino')

    class OldCore(openvino.Core):
        def get_property(self, *args):
            return ['FP32', 'INT8']

    monkeypatch.setattr(openvino, 'Core', OldCore)
    with pytest.raises(ValueError, match='this CPU has no bfloat16 arithmetic.* take float32 or int8'):
        create_engine('openvino', 'bfloat16', None)
    assert create_engine('openvino', 'float32', None).name == 'openvino'


@pytest.mark.parametrize('name, device, message', [
    ('openvino', 'TPU', "OpenVINO has no device 'TPU' on this machine: it has CPU.*, AUTO"),
    ('onnxruntime', 'TPU', "ONNX Runtime has no provider 'TPU' here: it has .*CPUExecutionProvider"),
    ('torch', 'cuda', r'move it, as in model.to\(device\)'),
])
def test_a_device_that_is_not_there(name, device, message):
    pytest.importorskip(name)
    with pytest.raises(ValueError, match=message):
        create_engine(name, 'float32', None, of_torch=True, device=device)


def test_devices_that_are_there():
    pytest.importorskip('openvino')
    assert create_engine('openvino', 'float32', None, device='AUTO:CPU').versions()['device'] == 'AUTO:CPU'
    with pytest.raises(ValueError, match='threads=2 are for the device CPU, not for AUTO'):
        create_engine('openvino', 'float32', 2, device='AUTO')
    pytest.importorskip('onnxruntime')
    assert create_engine('onnxruntime', 'float32', None, device='cpu').versions().keys() == {'onnxruntime'}


@pytest.mark.parametrize('name', ENGINES)
def test_versions_are_those_installed(name):
    from importlib.metadata import version

    pytest.importorskip(name)
    versions = create_engine(name, 'float32', None, of_torch=True).versions()
    assert versions[name].startswith(version(name).split('+')[0].rpartition('.')[0])


def test_memory_that_was_freed_goes_back():
    """Many small blocks, which the C library would keep: with the last one in use, it cannot shrink by itself."""
    pytest.importorskip('psutil')
    script = (
        'import gc, psutil\n'
        'from rs_timm.runtime.networks import _malloc_trim, release_free_memory\n'
        'blocks = [bytearray(4000) for _ in range(20_000)]\n'
        'last = bytearray(4000)\n'
        'before = psutil.Process().memory_info().rss\n'
        'del blocks; gc.collect(); release_free_memory()\n'
        'print(_malloc_trim() is None or before - psutil.Process().memory_info().rss > 40e6)\n')
    done = subprocess.run([sys.executable, '-c', script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == 'True'
