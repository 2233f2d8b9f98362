"""int8 networks: near the fp32 ones, made once, kept on disk, and served from there without the tool that made them."""
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import rs_timm
from rs_timm.runtime import Session, quantize
from tests.exported import network

pytest.importorskip('onnx')
RESOLUTIONS = (64, 48, 32)
TOOLS = {'openvino': 'nncf', 'onnxruntime': 'onnxruntime'}


@pytest.fixture(params=TOOLS)
def engine(request):
    pytest.importorskip(request.param)
    pytest.importorskip(TOOLS[request.param])
    return request.param


@pytest.fixture(scope='module')
def file(tmp_path_factory, random_statistics):
    model = network(random_statistics, resolutions=RESOLUTIONS)
    return rs_timm.export_onnx(model, tmp_path_factory.mktemp('exported') / 'model.onnx')


def pictures(count, seed):
    rng = np.random.default_rng(seed)
    coarse = [Image.fromarray(rng.integers(0, 256, (5, 5, 3), np.uint8)) for _ in range(count)]
    return [image.resize((80, 70), Image.Resampling.BICUBIC) for image in coarse]


def test_near_fp32_at_every_size(engine, file):
    session = Session(file, engine, 'int8', calibration=pictures(16, seed=0))
    reference = Session(file, engine)
    test = pictures(6, seed=1)
    for resolution in (64, 32, 40):
        ours, theirs = session(test, resolution), reference(test, resolution)
        assert ours.dtype == np.float32 and ours.shape == theirs.shape
        error = np.abs(ours - theirs).max() / np.abs(theirs).max()
        assert 0 < error < 0.1, 'no error at all would not be int8'


def test_the_networks_hold_int8_weights(engine, file, tmp_path):
    Session(file, engine, 'int8', calibration=pictures(4, 0), cache_dir=tmp_path).prepare((32,))
    (path,) = tmp_path.glob('*.xml' if engine == 'openvino' else '*.onnx')
    if engine == 'openvino':
        assert 'FakeQuantize' in path.read_text() and 'element_type="i8"' in path.read_text()
    else:
        import onnx
        kinds = {tensor.data_type for tensor in onnx.load(path).graph.initializer}
        assert onnx.TensorProto.INT8 in kinds


def test_kept_and_used_again(engine, file, tmp_path, monkeypatch):
    cache = tmp_path / 'new' / 'folder'
    session = Session(file, engine, 'int8', calibration=pictures(4, 0), cache_dir=cache)
    logits = session(pictures(1, 1), 48)
    names = sorted(path.name for path in cache.iterdir() if path.is_file())
    assert names and all('-int8-48.' in name and engine in name for name in names), 'and nothing temporary'
    monkeypatch.setitem(quantize._TOOLS, engine, None)  # it must not be called
    for calibration in (None, pictures(2, 5)):
        again = Session(file, engine, 'int8', calibration=calibration, cache_dir=cache)
        assert np.array_equal(again(pictures(1, 1), 48), logits)
    with pytest.raises(ValueError, match='int8 network for 64 px has to be calibrated first'):
        Session(file, engine, 'int8', cache_dir=cache)(pictures(1, 1), 64)


def test_a_damaged_network_is_not_used(engine, file, tmp_path):
    Session(file, engine, 'int8', calibration=pictures(2, 0), cache_dir=tmp_path).prepare((32,))
    (path,) = tmp_path.glob('*.bin' if engine == 'openvino' else '*.onnx')
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match='-int8-32.* is damaged, or not all .* remove them'):
        Session(file, engine, 'int8', cache_dir=tmp_path).prepare((32,))
    for kept in tmp_path.glob('*.sha256'):  # files of an earlier version have none
        kept.unlink()
    path.write_bytes(bytes(content))
    Session(file, engine, 'int8', cache_dir=tmp_path).prepare((32,))


def test_another_model_has_other_files(engine, file, tmp_path):
    Session(file, engine, 'int8', calibration=pictures(2, 0), cache_dir=tmp_path).prepare((32,))
    model = rs_timm.switchable('test_resnet', resolutions=RESOLUTIONS, num_classes=7).eval()
    with pytest.raises(ValueError, match='has to be calibrated first'):
        Session(model, engine, 'int8', cache_dir=tmp_path).prepare((32,))


def test_a_failure_leaves_nothing_behind(engine, file, tmp_path):
    session = Session(file, engine, 'int8', calibration=[tmp_path / 'absent.jpg'], cache_dir=tmp_path)
    with pytest.raises(rs_timm.data.ImageError, match='absent.jpg'):
        session.prepare((32,))
    assert not list(tmp_path.iterdir())


SERVE = """
import sys
for name in ('torch', 'timm', 'nncf', 'onnxruntime.quantization'):
    sys.modules[name] = None
import numpy as np
from rs_timm.runtime import Session
np.save({out!r}, Session({file!r}, {engine!r}, 'int8', cache_dir={cache!r})(np.full((70, 70, 3), 99, np.uint8), 32))
"""


def test_served_without_the_tool_and_without_torch(engine, file, tmp_path):
    picture = np.full((70, 70, 3), 99, np.uint8)
    logits = Session(file, engine, 'int8', calibration=pictures(4, 0), cache_dir=tmp_path / 'cache')(picture, 32)
    code = SERVE.format(out=str(tmp_path / 'a.npy'), file=str(file), engine=engine, cache=str(tmp_path / 'cache'))
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    assert np.array_equal(np.load(tmp_path / 'a.npy'), logits)


def test_the_tool_is_named_where_it_is_absent(file, monkeypatch):
    pytest.importorskip('openvino')
    monkeypatch.setitem(sys.modules, 'nncf', None)
    with pytest.raises(ImportError, match=r"made by NNCF: pip install 'rs_timm\[int8\]'"):
        Session(file, 'openvino', 'int8', calibration=pictures(1, 0)).prepare((32,))


def test_the_tool_does_not_report_its_use(monkeypatch):
    pytest.importorskip('nncf')
    monkeypatch.delenv('NNCF_CI', raising=False)
    code = ('import os\n'
            'from rs_timm.runtime.quantize import _nncf; _nncf()\n'
            'from nncf.telemetry.wrapper import telemetry, NNCFTelemetry\n'
            'assert not isinstance(telemetry, NNCFTelemetry); assert "NNCF_CI" not in os.environ')
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
