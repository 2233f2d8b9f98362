"""The dial: what follows, what is pinned, what comes back."""
import pytest
import timm
import torch
from torch import nn

import rs_timm
from rs_timm.layers import ResolutionSelector, check_resolutions

SIZES = (64, 48, 32)


@pytest.fixture
def model(random_statistics):
    return random_statistics(timm.create_model('rs_resnet18', num_classes=4, resolutions=SIZES))


@pytest.fixture
def plain(model):
    return {size: rs_timm.extract(model, size) for size in SIZES}


def image(height, width=None):
    return torch.randn(2, 3, height, width or height)


def test_a_fresh_model_follows_its_input(model, plain):
    assert model.get_resolution() is None
    for size in (*SIZES, *SIZES[::-1]):
        x = image(size)
        assert torch.equal(model(x), plain[size](x))


def test_a_non_square_input_selects_by_area(model, plain):
    x = image(36, 64)  # sqrt(36 * 64) = 48
    assert torch.equal(model(x), plain[48](x))


@pytest.mark.parametrize('pinned', SIZES)
def test_a_pin_holds_whatever_the_input(model, plain, pinned):
    model.set_resolution(pinned)
    assert model.get_resolution() == pinned
    for size in (64, 40, 32):
        x = image(size)
        assert torch.equal(model(x), plain[pinned](x))
    model.set_resolution(None)
    x = image(32)
    assert torch.equal(model(x), plain[32](x))


def test_keyword_input_is_followed_too(model, plain):
    x = image(32)
    assert torch.equal(model(x=x), plain[32](x))


def test_the_partial_forwards_of_timm_follow(model, plain):
    x = image(48)
    features = model.forward_features(x)
    assert torch.equal(features, plain[48].forward_features(x))
    assert torch.equal(model.forward_head(features), plain[48](x))


def test_a_replaced_stem_still_follows(model, plain):
    model.conv1 = nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
    for network in plain.values():
        network.conv1 = model.conv1
    for size in SIZES:
        x = torch.randn(2, 1, size, size)
        assert torch.equal(model(x), plain[size](x))


def test_use_resolution_gives_back_what_was_set(model):
    model.set_resolution(48)
    with rs_timm.use_resolution(model, 32) as same:
        assert same is model and model.get_resolution() == 32
        with model.use_resolution(None):
            assert model.get_resolution() is None
        assert model.get_resolution() == 32
    assert model.get_resolution() == 48
    with pytest.raises(RuntimeError, match='inside'), rs_timm.use_resolution(model, 64):
        raise RuntimeError('inside')
    assert model.get_resolution() == 48


def test_the_selection_is_not_in_the_checkpoint(model):
    before = model.state_dict()
    model.set_resolution(32)
    after = model.state_dict()
    assert list(before) == list(after)
    other = timm.create_model('rs_resnet18', num_classes=4, resolutions=SIZES)
    other.load_state_dict(after)
    assert other.get_resolution() is None


def test_training_needs_a_set_of_its_own(model):
    model.train()
    with pytest.raises(ValueError, match=r'40 has no BatchNorm set.*\(64, 48, 32\)'):
        model(image(40))
    with pytest.raises(ValueError, match='16 has no BatchNorm set'):
        model(image(16))  # no silent training of the nearest set
    model.set_resolution(64)
    model(image(40))  # a pin to a trained set takes any input


@pytest.mark.parametrize('bad', [0, -32, 48.5, True, 'a'])
def test_bad_resolutions_are_refused(model, bad):
    with pytest.raises((ValueError, TypeError)):
        model.set_resolution(bad)
    assert model.get_resolution() is None


@pytest.mark.parametrize('bad, message', [
    ((), 'empty'), ((64, 64), 'duplicates'), ((64, 0), '0 is not'), ((64, 3.5), '3.5 is not'),
    ((10 ** 400,), 'resolution 100000000000: at most 32768'),
])
def test_bad_sets_of_resolutions_are_refused(bad, message):
    with pytest.raises(ValueError, match=message):
        check_resolutions(bad)


def test_the_number_of_sets_is_bounded():
    with pytest.raises(ValueError, match='65 resolutions: .* at most 64'):
        timm.create_model('rs_resnet18', resolutions=range(1, 66))


def test_resolutions_are_sorted_and_may_be_one():
    assert check_resolutions((32, 64, 48)) == SIZES
    assert timm.create_model('rs_resnet18', resolutions=64).resolutions == (64,)


def test_a_plain_network_is_told_how_to_become_switchable():
    with pytest.raises(ValueError, match='ResNet has no switchable BatchNorm.*convert_switchable_bn'):
        rs_timm.set_resolution(timm.create_model('resnet18'), 64)


def test_a_layer_refuses_what_is_no_batch_norm():
    with pytest.raises(TypeError, match='48 is a GroupNorm'):
        rs_timm.SwitchableBatchNorm2d({64: nn.BatchNorm2d(4), 48: nn.GroupNorm(2, 4)})


def test_the_selector_tells_its_state():
    selector = ResolutionSelector(SIZES)
    assert selector.current() == 64 and 'follows the input' in repr(selector)
    selector.pin(48)
    assert selector.current() == 48 and 'pinned at 48' in repr(selector)


@pytest.mark.parametrize('where', ['layer', 'set', 'global'])
def test_hooks_run_in_inference_too(model, where):
    layer, seen = model.bn1, []

    def hook(module, *args):
        seen.append(module)

    if where == 'global':
        handle = torch.nn.modules.module.register_module_forward_hook(hook)
    else:
        handle = (layer if where == 'layer' else layer['48']).register_forward_hook(hook)
    try:
        with torch.inference_mode():
            model(image(48))
    finally:
        handle.remove()
    assert (layer['48'] if where == 'set' else layer) in seen
