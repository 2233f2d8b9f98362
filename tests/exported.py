"""What the tests of exported files share: engines, images, comparison."""
import numpy as np
import pytest
import timm
import torch

import rs_timm

ENGINES = ('onnxruntime', 'openvino')
SIZES = (64, 48, 32)
UNSEEN = (20, 33, 40, 41, 56, 60, 96)  # 40 and 56 lie half way between two sets
TOLERANCE = 2e-5  # of the largest output


def engine(name, model):
    """A function from named arrays to the list of outputs, for an `onnx.ModelProto`."""
    if name == 'onnxruntime':
        onnxruntime = pytest.importorskip('onnxruntime')
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=['CPUExecutionProvider'])
        return lambda **arrays: session.run(None, arrays)
    openvino = pytest.importorskip('openvino')
    core = openvino.Core()
    network = core.read_model(model.SerializeToString())
    compiled = core.compile_model(network, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})
    return lambda **arrays: list(compiled(arrays).values())


def images(batch, height, width=None, channels=3):
    return torch.randn(batch, channels, height, width or height, generator=torch.Generator().manual_seed(height))


def network(random_statistics, name='test_resnet', **kwargs):
    torch.manual_seed(0)
    make = timm.create_model if name.startswith('rs_') else rs_timm.switchable
    return random_statistics(make(name, **{**dict(resolutions=SIZES, num_classes=7), **kwargs}))


def assert_same(outputs, expected):
    expected = expected if isinstance(expected, (list, tuple)) else [expected]
    assert len(outputs) == len(expected)
    for output, target in zip(outputs, expected):
        np.testing.assert_allclose(output, target.numpy(), rtol=0, atol=TOLERANCE * target.abs().max().item())
