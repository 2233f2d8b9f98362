"""An exported file is the network: in every engine, at every size, with one copy of the weights."""
import io
import math
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import rs_timm
from rs_timm.analysis import parameter_counts
from rs_timm.layers import switchable_layers
from tests.exported import ENGINES, SIZES, TOLERANCE, UNSEEN, assert_same, engine, images, network

onnx = pytest.importorskip('onnx')

from onnx import numpy_helper  # noqa: E402

from rs_timm.export import export_onnx, max_difference, onnx_file, onnx_model, split_onnx  # noqa: E402
from rs_timm.runtime import Session, extract_onnx, read_info, read_model  # noqa: E402

NOT_SQUARE = ((32, 64), (64, 33), (47, 48))


@pytest.fixture
def model(random_statistics):
    return network(random_statistics)


class Unusual(nn.Module):
    """All that a chain of convolution and BatchNorm is not."""

    def __init__(self):
        super().__init__()
        self.first = nn.BatchNorm2d(3, affine=False)  # in front of any convolution, without gamma and beta
        self.conv = nn.Conv2d(3, 8, 3, groups=1, bias=True)
        self.one, self.two = nn.BatchNorm2d(8, eps=0.1), nn.BatchNorm2d(8)  # after one and the same convolution
        self.depthwise = nn.Conv2d(8, 16, 3, groups=8, bias=False)
        self.twice = nn.BatchNorm2d(16)
        self.up = nn.ConvTranspose2d(16, 6, 2)
        self.after_up = nn.BatchNorm2d(6)
        self.vector = nn.BatchNorm1d(6)
        self.fc = nn.Linear(6, 7)

    def forward(self, x):
        x = self.first(x)
        x = self.one(self.conv(x)) + self.two(self.conv(x)).relu()
        x = self.twice(self.depthwise(x))
        y = self.depthwise(x[:, :8])
        x = self.twice(y).mean() + y.mean() + x  # y is read by others than its BatchNorm
        x = self.after_up(self.up(x)).mean((2, 3))
        return self.fc(self.vector(x))


@pytest.fixture
def unusual():
    torch.manual_seed(0)
    model = rs_timm.convert_switchable_bn(Unusual(), SIZES)
    for layer in switchable_layers(model):
        for tensor in layer.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(0.5, 1.5)
    return model.eval()


@pytest.mark.parametrize('name', ENGINES)
@pytest.mark.parametrize('interpolation', ['params', 'affine', 'nearest'])
@torch.no_grad()
def test_one_file_is_the_network_at_every_size(random_statistics, interpolation, name):
    model = network(random_statistics, interpolation=interpolation)
    run = engine(name, onnx_model(model))
    squares = [(batch, size, size) for size in (*SIZES, *UNSEEN) for batch in (1, 3)]
    for batch, height, width in [*squares, *((2, *sides) for sides in NOT_SQUARE)]:
        x = images(batch, height, width)
        assert_same(run(images=x.numpy()), model(x))


@pytest.mark.parametrize('size, neighbour', [(32, 33), (48, 47), (64, 60), (40, 41), (56, 57)])
@torch.no_grad()
def test_neighbouring_sizes_differ_by_far_more_than_the_tolerance(model, size, neighbour):
    outputs = []
    for resolution in (size, neighbour):
        with rs_timm.use_resolution(model, resolution):
            outputs.append(model(images(2, size)))
    assert (outputs[0] - outputs[1]).abs().max() > 50 * TOLERANCE * outputs[0].abs().max()


@pytest.mark.parametrize('name', ENGINES)
@pytest.mark.parametrize('resolutions', [(48,), (64, 32)])
@torch.no_grad()
def test_one_and_two_sets(random_statistics, resolutions, name):
    for interpolation in ('params', 'nearest'):
        model = network(random_statistics, resolutions=resolutions, interpolation=interpolation)
        run = engine(name, onnx_model(model))
        for size in (32, 40, 48, 49, 64, 70):
            assert_same(run(images=images(2, size).numpy()), model(images(2, size)))


@pytest.mark.parametrize('name', ENGINES)
@pytest.mark.parametrize('base', ['rs_mobilenetv2', *(
    pytest.param(name, marks=pytest.mark.slow) for name in ('tf_efficientnet_lite0', 'repvgg_a0'))])
@torch.no_grad()
def test_families(random_statistics, base, name):
    model = network(random_statistics, base, resolutions=(64, 32))
    run = engine(name, onnx_model(model))
    for height, width in ((64, 64), (32, 32), (48, 48), (64, 35)):
        x = images(2, height, width)
        assert_same(run(images=x.numpy()), model(x))


@pytest.mark.parametrize('name', ENGINES)
@torch.no_grad()
def test_unusual_networks(unusual, name):
    proto = onnx_model(unusual)
    for size in (64, 40, 32):
        x = images(2, size)
        for graph in (proto, extract_onnx(proto, size), extract_onnx(proto, size, fold=False)):
            assert_same(engine(name, graph)(images=x.numpy()), unusual(x))


@pytest.mark.parametrize('name', ENGINES)
@torch.no_grad()
def test_the_resolution_as_an_input(model, name):
    run = engine(name, onnx_model(model, choice='input'))
    x = images(2, 48)
    for resolution in (*SIZES, *UNSEEN):
        with rs_timm.use_resolution(model, resolution):
            expected = model(x)
        assert_same(run(images=x.numpy(), resolution=torch.tensor(float(resolution)).numpy()), expected)


@torch.no_grad()
def test_several_outputs(random_statistics, tmp_path):
    model = network(random_statistics, 'rs_resnet18', features_only=True, out_indices=(1, 3))
    file = export_onnx(model, tmp_path / 'features.onnx')
    proto = read_model(file)
    assert [output.name for output in proto.graph.output] == ['features_0', 'features_1']
    assert (read_info(file).task, read_info(file).num_classes) == ('features', 0)
    x = images(1, 48)
    for graph in (proto, extract_onnx(proto, 48)):
        assert_same(engine('onnxruntime', graph)(images=x.numpy()), model(x))
    assert max_difference(model, file, 64) < TOLERANCE


def test_one_copy_of_the_weights(random_statistics):
    model = network(random_statistics, 'rs_resnet18', num_classes=1000, resolutions=(224, 192, 160, 128, 96))
    proto = onnx_model(model)
    constants = [numpy_helper.to_array(tensor) for tensor in proto.graph.initializer]
    floats = sum(constant.size for constant in constants if constant.dtype == np.float32)
    counts = parameter_counts(model)
    sets = 2 * sum(counts.private.values())  # as many means and variances as gammas and betas
    first_variances = counts.private[224] // 2  # are the unit of the others
    assert 0 < floats - counts.shared - (sets - first_variances) < 100  # the choice itself


@pytest.mark.parametrize('base, allowed', [
    ('rs_resnet18', 1.05), pytest.param('rs_mobilenetv2', 1.05 + 0.039, marks=pytest.mark.slow)])
def test_the_file_is_hardly_larger_than_a_plain_network(random_statistics, base, allowed):
    """As torch exports that: BatchNorms folded, nothing added, which is the smallest it can be."""
    model = network(random_statistics, base, num_classes=1000, resolutions=(224, 192, 160, 128, 96))
    bare = onnx_model(model, metadata=dict(label_names=None, label_descriptions=None))
    plain = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # the exporter is deprecated
        torch.onnx.export(rs_timm.extract(model, 224), (torch.zeros(1, 3, 224, 224),), plain, dynamo=False)
    assert bare.ByteSize() < allowed * len(plain.getvalue())
    assert onnx_model(model).ByteSize() < allowed * extract_onnx(onnx_model(model), 224).ByteSize()


def test_scales_of_channels_that_hardly_vary(random_statistics):
    """The variance of the largest size is the unit: it may be tiny, or huge, beside those of the others."""
    model = network(random_statistics)
    with torch.no_grad():
        for layer in switchable_layers(model):
            layer['64'].running_var[::3] = 0.
            layer['64'].running_var[1::3] = 1e6
            layer['48'].running_var[2::3] = 0.
    proto = onnx_model(model)
    for size in (*SIZES, *UNSEEN):
        expected = model(images(1, size)).detach()
        for graph in (proto, extract_onnx(proto, size)):
            assert_same(engine('onnxruntime', graph)(images=images(1, size).numpy()), expected)


def test_the_graph_is_valid_and_small(model):
    proto = onnx_model(model)
    onnx.checker.check_model(proto, full_check=True)
    layers = sum(node.op_type == 'Conv' for node in proto.graph.node)
    choosing = [node for node in proto.graph.node if node.name.startswith('rs_timm/')]
    assert len(choosing) < 40 and layers > 5  # not a few nodes for each layer


def test_the_model_is_left_as_it_was(model):
    rs_timm.set_resolution(model, 48)
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    versions = [parameter._version for parameter in model.parameters()]
    attributes = {name: set(module.__dict__) for name, module in model.named_modules()}
    onnx_model(model)
    assert model.training and rs_timm.get_resolution(model) == 48
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert versions == [parameter._version for parameter in model.parameters()]
    assert attributes == {name: set(module.__dict__) for name, module in model.named_modules()}


@torch.no_grad()
def test_wrappers_and_other_precisions(model):
    x = images(2, 40)
    expected = model(x)
    wrapped = nn.DataParallel(model)
    assert_same(engine('onnxruntime', onnx_model(wrapped))(images=x.numpy()), expected)
    double = onnx_model(model.double())
    assert_same(engine('onnxruntime', double)(images=x.numpy()), expected)


@pytest.mark.parametrize('opset', [13, 20])
@torch.no_grad()
def test_opsets(model, opset):
    proto = onnx_model(model, opset=opset)
    assert [entry.version for entry in proto.opset_import] == [opset]
    onnx.checker.check_model(proto, full_check=True)
    assert_same(engine('onnxruntime', proto)(images=images(1, 40).numpy()), model(images(1, 40)))


@contextmanager
def state_of_the_caller(kind):
    if kind == 'meta':
        torch.set_default_dtype(torch.float64)
        torch.set_default_device('meta')
    try:
        with torch.autocast('cpu', torch.bfloat16, enabled=kind == 'autocast'), torch.inference_mode(
                kind == 'autocast'):
            yield
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


@pytest.mark.parametrize('kind', ['autocast', 'meta'])
def test_the_state_of_the_caller_does_not_reach_the_file(model, tmp_path, kind):
    plain = export_onnx(model, tmp_path / 'plain.onnx').read_bytes()
    split = split_onnx(model, tmp_path / 'split.onnx', (40,))[40].read_bytes()
    x = images(1, 40)
    with torch.no_grad():
        expected = model(x)
    with state_of_the_caller(kind):
        assert export_onnx(model, tmp_path / 'other.onnx').read_bytes() == plain
        assert split_onnx(model, tmp_path / 'other.onnx', (40,))[40].read_bytes() == split
        assert max_difference(model, tmp_path / 'other.onnx', 40) < TOLERANCE
        file = rs_timm.export.export_torch(model, tmp_path / 'other.pt2')
        outputs = [Session(model, name).run(x.numpy()) for name in ('torch', 'onnxruntime')]
    assert_same([torch.export.load(file).module()(x).detach()], expected)
    for output in outputs:
        assert_same([output], expected)


@pytest.mark.parametrize('where', ['model', 'file'])
def test_a_difference_that_is_no_number_is_infinite(model, tmp_path, where):
    """It is larger than any tolerance, in whatever way it is compared."""
    file = export_onnx(model, tmp_path / 'net.onnx')
    with torch.no_grad():
        model.get_classifier().bias[0] = float('nan')
    if where == 'file':
        file, model = export_onnx(model, file), rs_timm.switchable('test_resnet', SIZES, num_classes=7).eval()
    assert max_difference(model, file, 48) == math.inf


# files

@torch.no_grad()
def test_split_files_are_the_extracted_networks(model, tmp_path):
    files = split_onnx(model, tmp_path / 'net.onnx', (64, 40))
    assert files == {64: tmp_path / 'net_64.onnx', 40: tmp_path / 'net_40.onnx'}
    for resolution, file in files.items():
        plain = read_model(file)
        assert not [node.name for node in plain.graph.node if node.name.startswith('rs_timm/')]
        x = images(3, resolution)
        assert_same(engine('onnxruntime', plain)(images=x.numpy()), rs_timm.extract(model, resolution)(x))
        assert (read_info(file).choice, read_info(file).resolutions) == ('fixed', (resolution,))
    assert set(split_onnx(model, tmp_path / 'all.onnx')) == set(SIZES)


class Patches(nn.Module):
    """Cuts its input into 2 x 2 patches: with sizes that it computes in Python."""

    def __init__(self):
        super().__init__()
        self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Linear(4, 7)

    def forward(self, x):
        x = self.bn(self.conv(x))
        height, width = int(x.shape[2]) // 2, int(x.shape[3]) // 2
        return self.fc(x.reshape(-1, 4, height, 2, width, 2).amax((3, 5)).mean((2, 3)))


@torch.no_grad()
def test_a_graph_that_depends_on_the_size_is_refused_and_can_be_split(random_statistics, tmp_path):
    model = random_statistics(rs_timm.convert_switchable_bn(Patches(), SIZES))
    with pytest.raises(ValueError, match='Patches computes with the size .*split_onnx'):
        export_onnx(model, tmp_path / 'net.onnx')
    for resolution, file in split_onnx(model, tmp_path / 'net.onnx').items():
        assert max_difference(model, file, resolution) < TOLERANCE


@torch.no_grad()
def test_weights_beyond_the_limit_lie_beside_the_file(model, tmp_path, monkeypatch):
    whole = export_onnx(model, tmp_path / 'whole.onnx')
    monkeypatch.setattr(onnx_file, 'LIMIT', 1000)
    file = export_onnx(model, tmp_path / 'parts.onnx')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['parts.onnx', 'parts.onnx.data', 'whole.onnx']
    assert file.stat().st_size < whole.stat().st_size / 2
    (tmp_path / 'moved').mkdir()
    for path in tmp_path.glob('parts.*'):
        path.rename(tmp_path / 'moved' / path.name)
    moved = tmp_path / 'moved' / 'parts.onnx'
    assert read_info(moved) == read_info(whole)
    stored, expected = (
        {tensor.name: numpy_helper.to_array(tensor) for tensor in read_model(path).graph.initializer}
        for path in (moved, whole))
    assert stored.keys() == expected.keys() and all(np.array_equal(stored[name], expected[name]) for name in stored)
    assert max_difference(model, moved, 40) < TOLERANCE


def test_an_earlier_file_stays_until_the_new_one_is_whole(model, tmp_path, monkeypatch):
    file = export_onnx(model, tmp_path / 'net.onnx')
    before = file.read_bytes()
    monkeypatch.setattr(Path, 'write_bytes', lambda self, data: (self.touch(), 1 / 0))
    with pytest.raises(ZeroDivisionError):
        export_onnx(model, file, opset=16)
    assert file.read_bytes() == before and list(tmp_path.iterdir()) == [file]


# what the file says

def test_metadata_of_a_network_of_timm(random_statistics, tmp_path):
    model = network(random_statistics, 'rs_resnet18', num_classes=3)
    model.pretrained_cfg.update(
        mean=(0.1, 0.2, 0.3), std=(1., 2., 3.), crop_pct=0.9, interpolation='bilinear', license='mit',
        label_names=['a', 'b', 'c'], label_descriptions={'b': 'the second'})
    model.checkpoint_metadata = dict(alpha={64: 0.5, 48: 0.3, 32: 0.2})
    info = read_info(export_onnx(model, tmp_path / 'net.onnx'))
    assert info.name == 'rs_resnet18' and info.resolutions == SIZES and info.interpolation == 'params'
    assert (info.mean, info.std, info.crop_pct) == ((0.1, 0.2, 0.3), (1., 2., 3.), 0.9)
    assert (info.resize_interpolation, info.crop_mode, info.channels) == ('bilinear', 'center', 3)
    assert [info.label(i) for i in range(3)] == ['a', 'the second', 'c']
    assert info.alpha == {64: 0.5, 48: 0.3, 32: 0.2} and set(info.madds) == set(SIZES)
    assert info.license is None  # random weights have none
    model.derived_from = 'timm/resnet18'
    assert read_info(export_onnx(model, tmp_path / 'net.onnx')).license == 'mit'


def test_metadata_of_other_networks(random_statistics, tmp_path):
    imagenet = read_info(export_onnx(network(random_statistics, num_classes=1000), tmp_path / 'a.onnx'))
    assert imagenet.label(281) == 'tabby, tabby cat' and imagenet.name == 'switchable:test_resnet'
    gray = network(random_statistics, 'rs_resnet18', in_chans=1)
    info = read_info(export_onnx(gray, tmp_path / 'b.onnx'))
    assert info.channels == 1 and info.mean == pytest.approx((sum(gray.pretrained_cfg['mean']) / 3,))
    plain = random_statistics(rs_timm.convert_switchable_bn(Patches().train(), (32,)))
    info = read_info(split_onnx(plain, tmp_path / 'c.onnx', metadata=dict(name='mine', license='cc0-1.0'))[32])
    assert (info.name, info.license, info.label_names, info.num_classes) == ('mine', 'cc0-1.0', None, 7)


# what is refused

class TwoInOne(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def forward(self, x):
        return x, [self.bn(self.conv(x))]


def plain_network(random_statistics):
    return rs_timm.extract(network(random_statistics), 48)


def without_statistics(random_statistics):
    return rs_timm.convert_switchable_bn(
        nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, track_running_stats=False)), SIZES)


def affine_without_gamma(random_statistics):
    layers = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4, affine=False))
    return rs_timm.convert_switchable_bn(layers, SIZES, interpolation='affine')


def nested(random_statistics):
    return rs_timm.convert_switchable_bn(TwoInOne(), SIZES)


@pytest.mark.parametrize('make, options, parts', [
    (plain_network, {}, ['no switchable BatchNorm']),
    (without_statistics, {}, ['1 has no running statistics', 'track_running_stats']),
    (affine_without_gamma, {}, ['set_interpolation', 'params']),
    (nested, {}, ['list', 'features_1']),
    (network, dict(choice='colour'), ["'colour'", 'shape, input']),
    (network, dict(opset=12), ['12', '13 to 20']),
    (network, dict(metadata=dict(licence='mit')), ['licence', 'license']),
    (network, dict(metadata=dict(label_names=['a'])), ['1 label_names', '7 classes']),
])
def test_what_cannot_be_exported(random_statistics, tmp_path, make, options, parts):
    with pytest.raises(ValueError) as info:
        export_onnx(make(random_statistics), tmp_path / 'net.onnx', **options)
    assert not list(tmp_path.iterdir())
    for part in parts:
        assert part in str(info.value)


@pytest.mark.parametrize('name', ['.', 'net', 'net.pt'])
def test_wrong_names(model, tmp_path, name):
    with pytest.raises(ValueError, match='.onnx'):
        export_onnx(model, tmp_path / name)


@torch.no_grad()
def test_a_wrong_number_of_channels_is_the_engines_error(model):
    run = engine('onnxruntime', onnx_model(model))
    with pytest.raises(Exception, match='images'):
        run(images=images(1, 48, channels=4).numpy())
