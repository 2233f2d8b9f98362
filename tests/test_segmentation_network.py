"""RefineNet: its blocks against the formulas, its parameters against a count by hand, the switch against `extract`."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F

import rs_timm
from rs_timm.segmentation import RefineNet
from rs_timm.segmentation.refinenet import ChainedResidualPooling, MultiResolutionFusion, ResidualConvUnit

SIZES = (64, 48, 32)
NAMES = ('rs_refinenet_resnet18', 'rs_refinenet_mobilenetv2')


def create(name=NAMES[0], **kwargs):
    return timm.create_model(name, **{'resolutions': SIZES, 'num_classes': 5, 'features': 8, **kwargs})


def randomised(module, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            p.normal_(0, 0.1, generator=generator)
    return module


def image(*size, batch=1):
    return torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(sum(size)))


# Structure

def test_parameters_of_the_paper():
    """Convolutions between 256 channels as the unit; BatchNorm's affine pair once a set. Table 7 says 118.31M and
    118.20M: the first are the parameters with three sets, the second those with one set plus its running statistics."""
    with torch.device('meta'):
        model = timm.create_model('rs_refinenet_resnet101', num_classes=40, resolutions=(352, 224, 96))
        encoder = timm.create_model('resnet101', num_classes=0)
    unit = 9 * 256 ** 2
    projections = 8 * 2 + 4 + 2 + 1  # 2048 -> 512, 1024 -> 256, 512 -> 256, 256 -> 256
    deepest = 4 * (4 + 4 + 2)  # at 512 channels: two units, four poolings, one unit; two convolutions a unit
    third = 4 * 4 + 4 + (2 + 1) + 4 + 2  # units on both inputs, fusion, poolings, the unit of the result
    finer = 2 * (4 + 4 + (1 + 1) + 4 + 2)
    weights = unit * (projections + deepest + third + finer + 4)  # and two units before the classifier
    biases = 3 * 512 + (2 * 512 + 2 * 256 + 256) + 2 * 5 * 256 + 2 * 256  # of the first convolution of each unit
    classifier = 9 * 256 * 40 + 40
    affine = sum(p.numel() for name, p in encoder.named_parameters() if p.ndim == 1)
    plain = sum(p.numel() for p in encoder.parameters()) + weights + biases + classifier
    count = sum(p.numel() for p in model.parameters())
    assert count == plain + 2 * affine and round(count / 1e6, 2) == 118.31
    one_set = rs_timm.extract(model, 352)
    statistics = sum(b.numel() for name, b in one_set.named_buffers() if 'running' in name)
    assert sum(p.numel() for p in one_set.parameters()) == plain
    assert round((plain + statistics) / 1e6, 2) == 118.20


def test_residual_conv_unit():
    unit, x = ResidualConvUnit(3), torch.randn(2, 3, 5, 6)
    inner = F.conv2d(x.clamp(min=0), unit.conv1.weight, unit.conv1.bias, padding=1).clamp(min=0)
    torch.testing.assert_close(unit(x), x + F.conv2d(inner, unit.conv2.weight, padding=1))


def test_fusion_resizes_to_the_first_input():
    fusion, fine, coarse = MultiResolutionFusion((2, 3), 4), torch.randn(1, 2, 5, 7), torch.randn(1, 3, 3, 4)
    resized = F.interpolate(fusion.convs[1](coarse), size=(5, 7), mode='bilinear')
    torch.testing.assert_close(fusion([fine, coarse]), fusion.convs[0](fine) + resized)


def test_chained_pooling_sees_two_pixels_further_with_each_pooling():
    """With convolutions that pass the middle pixel, stage k is the maximum over a window of 4 k + 1."""
    pooling = ChainedResidualPooling(1)
    for conv in pooling.convs:
        torch.nn.init.dirac_(conv.weight)
    x = torch.randn(1, 1, 30, 30)
    stages = [F.max_pool2d(x.relu(), 4 * k + 1, stride=1, padding=2 * k) if k else x.relu() for k in range(5)]
    torch.testing.assert_close(pooling(x), torch.stack(stages).sum(0))


def test_every_input_reaches_the_output():
    """No map of the encoder, and no block, is left out."""
    plain = randomised(rs_timm.extract(create(drop_rate=0.), 64)).eval()
    expected = plain(image(64, 64))
    for index in range(4):
        changed = copy.deepcopy(plain)
        with torch.no_grad():
            changed.project[index].weight.mul_(-1)
        assert (changed(image(64, 64)) - expected).abs().max() > 1e-6


# The switch

@pytest.mark.parametrize('name', NAMES)
def test_forward_equals_the_extracted_network(name, random_statistics):
    model = random_statistics(randomised(create(name)))
    for size in (*SIZES, 40, 72):
        plain = rs_timm.extract(model, size)
        assert type(plain) is RefineNet and not rs_timm.is_switchable(plain)
        assert torch.equal(model(image(size, size)), plain(image(size, size)))
    wide = image(36, 64)  # sqrt(36 * 64) = 48
    assert torch.equal(model(wide), rs_timm.extract(model, 48)(wide))
    model.set_resolution(32)
    assert torch.equal(model(wide), rs_timm.extract(model, 32)(wide))
    again = rs_timm.pack({r: rs_timm.extract(model, r) for r in SIZES})
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


@pytest.mark.parametrize('name', NAMES)
def test_training_moves_one_set_and_every_parameter_has_a_gradient(name):
    model = randomised(create(name)).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(image(48, 48, batch=4)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    changed = {key.split('.')[-2] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {'48'}


# Weights

def test_encoder_weights_of_a_classifier(tmp_path, random_statistics):
    classifier = random_statistics(timm.create_model('rs_resnet18', resolutions=SIZES, num_classes=3))
    torch.save(classifier.state_dict(), tmp_path / 'weights.pth')
    model = create(encoder_weights=str(tmp_path / 'weights.pth')).eval()
    own, state = model.encoder.state_dict(), classifier.state_dict()
    assert set(state) - set(own) == {'fc.weight', 'fc.bias'}
    assert all(torch.equal(value, state[key]) for key, value in own.items())
    with pytest.raises(ValueError, match='weights.pth: not the weights of this encoder'):
        create('rs_refinenet_mobilenetv2', encoder_weights=str(tmp_path / 'weights.pth'))
    with pytest.raises(ValueError, match="'nothing' is neither a file nor a model name"):
        create(encoder_weights='nothing')


def test_save_and_restore(tmp_path, random_statistics):
    classifier = timm.create_model('rs_resnet18', resolutions=SIZES)
    torch.save(classifier.state_dict(), tmp_path / 'weights.pth')
    model = random_statistics(create(encoder_weights=str(tmp_path / 'weights.pth')))
    rs_timm.save_pretrained(model, tmp_path / 'saved', model_config=dict(label_names=list('abcde')))
    (tmp_path / 'weights.pth').unlink()
    restored = timm.create_model(f'local-dir:{tmp_path}/saved', pretrained=True).eval()
    assert restored.resolutions == SIZES and restored.task == 'segmentation'
    assert torch.equal(restored(image(48, 48)), model(image(48, 48)))
    assert timm.create_model(f'local-dir:{tmp_path}/saved').num_classes == 5
    other = timm.create_model(f'local-dir:{tmp_path}/saved', pretrained=True, num_classes=7).eval()
    assert torch.equal(other.forward_features(image(48, 48)), model.forward_features(image(48, 48)))
    assert other(image(48, 48)).shape[1] == 7


# Bad input

def test_too_small_an_image():
    with pytest.raises(ValueError, match='the input is 31x64 pixels: each side needs at least 32'):
        create()(image(31, 64))


def test_an_encoder_with_other_strides():
    encoder = timm.create_model('resnet18', features_only=True)
    with pytest.raises(ValueError, match=r'maps at the strides \(2, 4, 8, 16, 32\)'):
        RefineNet(encoder)


def test_features_only_is_refused():
    with pytest.raises(RuntimeError, match='its encoder, rs_resnet18, has features'):
        create(features_only=True)


# Other people's decoders

def test_the_encoder_works_in_segmentation_models_pytorch():
    smp = pytest.importorskip('segmentation_models_pytorch')
    model = smp.Unet('tu-rs_resnet18', encoder_weights=None, classes=5, resolutions=SIZES)
    assert rs_timm.get_resolutions(model) == SIZES
    rs_timm.set_resolution(model, 32)
    pinned = model.eval()(image(64, 64))
    plain = rs_timm.extract(model, 32)
    assert pinned.shape == (1, 5, 64, 64) and torch.equal(plain(image(64, 64)), pinned)
