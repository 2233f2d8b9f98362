"""A model of Triton's repository: the server's own protobuf reads the configuration, and the file does what it says."""
import importlib.util
from pathlib import Path

import numpy as np
import pytest
import timm

import rs_timm
from tests.exported import SIZES, network

pytest.importorskip('onnx')
onnxruntime = pytest.importorskip('onnxruntime')
tritonclient = pytest.importorskip('tritonclient')
text_format = pytest.importorskip('google.protobuf.text_format')

from rs_timm.export.triton import export_triton  # noqa: E402
from rs_timm.format.info import ModelInfo  # noqa: E402


@pytest.fixture(scope='module')
def messages():
    """tritonclient's model_config_pb2, without the rest of tritonclient.grpc, which needs grpcio."""
    file = Path(tritonclient.__path__[0]) / 'grpc' / 'model_config_pb2.py'
    spec = importlib.util.spec_from_file_location('model_config_pb2', file)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def read(messages, folder):
    return text_format.Parse((folder / 'config.pbtxt').read_text(), messages.ModelConfig())


def test_the_configuration_is_what_the_file_does(random_statistics, messages, tmp_path):
    names = ('a "quoted" one', 'back\\slash', 'Käse\nnoch Käse', '香', 'e', 'f', 'g')
    folder = export_triton(network(random_statistics), tmp_path / 'repository', name='tiny', max_batch=3,
                           metadata=dict(label_names=names, license='für alle, "frei"\\'))
    config = read(messages, folder)
    assert folder == tmp_path / 'repository' / 'tiny' and (config.name, config.max_batch_size) == ('tiny', 3)
    assert config.backend == 'onnxruntime'
    session = onnxruntime.InferenceSession(folder / '1' / 'model.onnx')
    for declared, actual in ((config.input, session.get_inputs()), (config.output, session.get_outputs())):
        assert [(tensor.name, tensor.data_type) for tensor in declared] == [
            (tensor.name, messages.TYPE_FP32) for tensor in actual]
        assert all(list(one.dims) == [side if isinstance(side, int) else -1 for side in other.shape[1:]]
                   for one, other in zip(declared, actual))
    assert [warmup.inputs['images'].dims[-1] for warmup in config.model_warmup] == list(SIZES)
    for warmup in config.model_warmup:
        assert warmup.inputs['images'].zero_data and warmup.inputs['images'].data_type == messages.TYPE_FP32
        for batch in (warmup.batch_size, config.max_batch_size):
            x = np.zeros((batch, *warmup.inputs['images'].dims), np.float32)
            assert session.run(None, {'images': x})[0].shape == (batch, *config.output[0].dims)
    labels = (folder / config.output[0].label_filename).read_text(encoding='utf-8').splitlines()
    assert labels == [' '.join(name.split()) for name in names]
    info = ModelInfo.from_json(config.parameters['rs_timm'].string_value)
    assert info.resolutions == SIZES and info.license == 'für alle, "frei"\\' and info.label_names is None


def test_the_command_compares_and_replaces_nothing(cli, random_statistics, messages, tmp_path):
    saved = str(rs_timm.hub.save_pretrained(network(random_statistics), tmp_path / 'saved'))
    status, out, _ = cli('export', saved, '--triton-repository', tmp_path / 'models')
    (folder,) = (tmp_path / 'models').iterdir()
    assert status == 0 and read(messages, folder).name == folder.name and out.count('differs from PyTorch') == 3
    assert ':' not in folder.name
    for arguments, words in (
            (['--triton-repository', tmp_path / 'models'], f'{folder} exists'),
            (['--triton-repository', tmp_path / 'other', '--choice', 'input'], '--choice are for files'),
            (['net.onnx', '--triton-repository', tmp_path / 'other'], 'name either the file'),
            ([], 'name either the file')):
        status, _, error = cli('export', saved, *arguments)
        assert status == 2 and words in error
    assert not (tmp_path / 'other').exists()


def test_what_is_no_name_or_no_batch(tmp_path):
    model = timm.create_model('rs_resnet18', resolutions=(64, 48))
    for options, words in ((dict(name='../up'), 'is no name of a model'), (dict(max_batch=0), 'at least one picture')):
        with pytest.raises(ValueError, match=words):
            export_triton(model, tmp_path / 'models', **options)
    assert not (tmp_path / 'models').exists()
