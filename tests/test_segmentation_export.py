"""A segmentation network on the runtime: one file, the sizes of a session, and what fits a budget."""
import numpy as np
import pytest
import timm
import torch
from masked_pictures import NAMES

import rs_timm

onnx = pytest.importorskip('onnx')
pytest.importorskip('onnxruntime')
SIZES = (64, 48, 32)


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    network = timm.create_model('rs_refinenet_resnet18', resolutions=SIZES, num_classes=3, features=8).eval()
    with torch.no_grad():
        for p in network.parameters():
            p.mul_(torch.rand_like(p) + 0.5)
        network.classifier.weight.mul_(100)
    network.pretrained_cfg = dict(network.pretrained_cfg, label_names=list(NAMES))
    return network


@pytest.fixture(scope='module')
def file(model, tmp_path_factory):
    return rs_timm.export_onnx(model, tmp_path_factory.mktemp('exported') / 'model.onnx')


def test_one_file_for_every_size(model, file):
    """Trained, unseen and odd sizes, in ONNX Runtime, from the graph's own choice."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])
    for height, width in ((64, 64), (48, 48), (32, 32), (40, 40), (50, 71)):
        x = torch.randn(2, 3, height, width)
        with torch.no_grad():
            expected = model(x).numpy()
        (actual,) = session.run(None, {'images': x.numpy()})
        assert actual.shape == expected.shape == (2, 3, -(-height // 4), -(-width // 4))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_a_session_gives_maps_of_logits(model, file):
    from rs_timm.runtime import Session

    session = Session(file, engine='onnxruntime', threads=1)
    assert session.info.task == 'segmentation' and session.info.label_names == NAMES
    assert session.info.crop_mode == 'squash' and session.info.crop_pct == 1.
    picture = np.random.default_rng(0).integers(0, 255, (60, 80, 3), np.uint8)
    for resolution in (*SIZES, 40):
        x = session.preprocess([picture], resolution)
        with torch.no_grad(), rs_timm.use_resolution(model, resolution):
            expected = model(torch.from_numpy(x)).numpy()
        actual = session([picture], resolution)
        assert actual.shape == (1, 3, resolution // 4, resolution // 4)
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())
    assert session.set_budget(madds=session.info.madds[48]) == 48
