"""An exported file read without torch, and the plain network that it is at one resolution."""
import numpy as np
import pytest
import torch

import rs_timm
from rs_timm.runtime import ModelInfo
from tests.exported import ENGINES, SIZES, UNSEEN, assert_same, engine, images, network

onnx = pytest.importorskip('onnx')

from onnx import numpy_helper  # noqa: E402

from rs_timm.export import onnx_model  # noqa: E402
from rs_timm.runtime import extract_onnx, read_info  # noqa: E402


@pytest.fixture
def model(random_statistics):
    return network(random_statistics)


@pytest.fixture
def proto(model):
    return onnx_model(model)


def weights(proto):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in proto.graph.initializer}


def dimensions(value):
    return [d.dim_value or d.dim_param for d in value.type.tensor_type.shape.dim]


@pytest.mark.parametrize('name', ENGINES)
@pytest.mark.parametrize('fold', [True, False])
@pytest.mark.parametrize('interpolation', ['params', 'affine', 'nearest'])
@torch.no_grad()
def test_specialised_is_extracted(random_statistics, interpolation, fold, name):
    model = network(random_statistics, interpolation=interpolation)
    proto = onnx_model(model)
    for resolution in (*SIZES, *UNSEEN):
        x = images(2, resolution)
        plain = extract_onnx(proto, resolution, batch=2, fold=fold)
        assert_same(engine(name, plain)(images=x.numpy()), rs_timm.extract(model, resolution)(x))


def test_files_that_store_the_first_variances_too(proto):
    """They are 1: the unit of the others."""
    earlier = onnx.ModelProto()
    earlier.CopyFrom(proto)
    (table,) = (tensor for tensor in earlier.graph.initializer if tensor.name == 'rs_timm/variance')
    others = numpy_helper.to_array(table)
    assert len(others) == len(SIZES) - 1
    table.CopyFrom(numpy_helper.from_array(np.concatenate([np.ones_like(others[:1]), others]), table.name))
    for resolution in (*SIZES, 40):
        assert weights(extract_onnx(earlier, resolution)).keys() == weights(extract_onnx(proto, resolution)).keys()
        for name, values in weights(extract_onnx(proto, resolution)).items():
            np.testing.assert_array_equal(weights(extract_onnx(earlier, resolution))[name], values)


@pytest.mark.parametrize('base, fold, layers', [
    ('test_resnet', True, 0),
    ('test_resnet', False, 'all'),
    ('rs_mobilenetv2', True, 0),
    ('resnetv2_18', True, 'some'),  # normalises in front of the convolution
])
def test_nothing_of_the_choice_is_left(random_statistics, base, fold, layers):
    model = network(random_statistics, base, resolutions=(64, 32))
    proto = onnx_model(model)
    plain = extract_onnx(proto, 48, batch=1, fold=fold)
    onnx.checker.check_model(plain, full_check=True)
    names = [node.name for node in plain.graph.node] + [t.name for t in plain.graph.initializer]
    assert not [name for name in names if name.startswith('rs_timm/')]
    read = {name for node in plain.graph.node for name in node.input}
    made = {name for node in plain.graph.node for name in node.output}
    assert {t.name for t in plain.graph.initializer} <= read
    assert made <= read | {output.name for output in plain.graph.output}
    affine = sum(node.op_type == 'Mul' and node.input[1].endswith('.scale') for node in plain.graph.node)
    total = len(rs_timm.layers.switchable_layers(model))
    assert affine == total if layers == 'all' else affine == 0 if layers == 0 else 0 < affine < total


def test_weights_stay_shared_unless_folded(proto):
    shared = {name: value for name, value in weights(proto).items() if name.endswith('weight')}
    assert len(shared) > 5
    for resolution in (64, 40):
        plain = weights(extract_onnx(proto, resolution, fold=False))
        assert all(np.array_equal(plain[name], value) for name, value in shared.items())


def test_sizes_and_batch_are_fixed_as_asked(proto):
    one = extract_onnx(proto, 48, batch=3)
    assert [dimensions(v) for v in (*one.graph.input, *one.graph.output)] == [[3, 3, 48, 48], [3, 7]]
    any_batch = extract_onnx(proto, 40)
    assert dimensions(any_batch.graph.input[0]) == ['batch', 3, 40, 40]
    assert dimensions(any_batch.graph.output[0]) == ['batch', 7]


@torch.no_grad()
def test_the_input_resolution_is_gone(model):
    plain = extract_onnx(onnx_model(model, choice='input'), 40, batch=2)
    assert [value.name for value in plain.graph.input] == ['images']
    assert_same(engine('onnxruntime', plain)(images=images(2, 40).numpy()), rs_timm.extract(model, 40)(images(2, 40)))


def test_the_file_is_left_as_it_was(proto):
    before = proto.SerializeToString(deterministic=True)
    extract_onnx(proto, 40)
    assert proto.SerializeToString(deterministic=True) == before


def test_a_plain_file_can_be_given_a_batch_but_no_other_size(proto):
    plain = extract_onnx(proto, 48)
    again = extract_onnx(plain, 48, batch=4)
    assert dimensions(again.graph.input[0]) == [4, 3, 48, 48] and weights(again).keys() == weights(plain).keys()
    with pytest.raises(ValueError, match='for 48 alone, not for 64'):
        extract_onnx(plain, 64)


@pytest.mark.parametrize('arguments', [dict(resolution=0), dict(resolution=48.5), dict(resolution=48, batch=0)])
def test_what_specialise_refuses(proto, arguments):
    with pytest.raises(ValueError, match='not a positive whole number'):
        extract_onnx(proto, **arguments)


# files that are not ours

@pytest.mark.parametrize('make, error, match', [
    (lambda file: None, FileNotFoundError, 'no such file'),
    (lambda file: file.mkdir(), FileNotFoundError, 'a directory'),
    (lambda file: file.write_bytes(b'no protobuf at all'), ValueError, 'not an ONNX file'),
    (lambda file: file.write_bytes(b''), ValueError, 'no metadata'),
    (lambda file: onnx.save(other(), file), ValueError, 'not written by rs_timm'),
])
def test_other_files(tmp_path, make, error, match):
    file = tmp_path / 'net.onnx'
    make(file)
    with pytest.raises(error, match=match) as info:
        read_info(file)
    assert 'net.onnx' in str(info.value)


def other():
    node = onnx.helper.make_node('Identity', ['a'], ['b'])
    value = onnx.helper.make_tensor_value_info
    kind = onnx.TensorProto.FLOAT
    return onnx.helper.make_model(
        onnx.helper.make_graph([node], 'other', [value('a', kind, [1])], [value('b', kind, [1])]))


# the description

def full_info():
    return ModelInfo(
        name='rs_resnet18.mine', resolutions=(32, 64), interpolation='nearest', choice='input', channels=1,
        mean=(0.25,), std=(0.5,), crop_pct=0.9, crop_mode='border', resize_interpolation='bicubic', num_classes=2,
        label_names=('ä', '\u732b'), label_descriptions={'ä': 'umlaut'}, license='mit', origin='https://example.org',
        madds={64: 10, 32: 3}, alpha={64: 0.75, 32: 0.25})


def test_the_description_survives_json():
    info = full_info()
    assert ModelInfo.from_json(info.to_json()) == info and info.resolutions == (64, 32)
    assert [info.label(i) for i in (0, 1)] == ['umlaut', '\u732b']
    assert ModelInfo(name='a', resolutions=(32,), num_classes=2).label(1) == 'class 1'


def test_entries_of_later_versions_are_passed_over():
    text = full_info().to_json()
    assert ModelInfo.from_json(text[:-1] + ', "colour": "blue"}') == full_info()


@pytest.mark.parametrize('text, match', [
    ('[1, 2', 'not a JSON object'),
    ('7', 'not a JSON object'),
    ('{"format": 3}', 'has format 3'),
    ('{}', 'has format None'),
    ('{"format": 1, "name": "a"}', 'lacks resolutions'),
])
def test_descriptions_that_cannot_be_read(text, match):
    with pytest.raises(ValueError, match=match):
        ModelInfo.from_json(text)


@pytest.mark.parametrize('changes, match', [
    (dict(interpolation='cubic'), 'params, affine, nearest'),
    (dict(choice='any'), 'shape, input, fixed'),
    (dict(resize_interpolation='64'), "resize_interpolation '64' is unknown: use one of nearest, box, bilinear"),
    (dict(crop_mode=''), "crop_mode '' is unknown: use one of center, squash, border"),
    (dict(task='detection'), 'classification, segmentation, features'),
    (dict(resolutions=()), 'empty'),
    (dict(mean=(0.1, 0.2)), 'for 1 channels'),
    (dict(label_names=('a',)), '1 label_names for 2 classes'),
    (dict(choice='fixed'), 'has one'),
    (dict(licence='mit'), 'no licence'),
])
def test_contradictions_are_refused(changes, match):
    with pytest.raises(ValueError, match=match):
        full_info().replace(**changes)
