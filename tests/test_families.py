"""`switchable` over the families of timm: each equals its extracted networks, however it is called."""
import pytest
import timm
import torch

import rs_timm
from rs_timm.layers import switchable_layers

# a small member of each kind of family (one of those that are alike), with sizes (large, unseen, small) it can take
SIZES = dict.fromkeys((
    'regnetx_002',
    'regnety_002',
    'efficientnet_b0',
    'tf_efficientnet_lite0',
    'mobilenetv3_small_050',
    'mobilenetv4_conv_small_035',
    'mnasnet_small',
    'mixnet_s',
    'tinynet_e',
    'lcnet_035',
    'ghostnet_050',
    'repghostnet_050',
    'densenet121',
    'seresnet18',
    'ecaresnet26t',
    'skresnet18',
    'resnest14d',
    'resnetv2_50',
    'rexnet_100',
    'repvgg_a0',
    'mobileone_s0',
    'gernet_s',
    'cs3darknet_s',
    'selecsls42',
    'ese_vovnet19b_slim',
    'hgnetv2_b0',
    'fastvit_t8',
    'repvit_m0_9',
    'efficientvit_b0',
    'starnet_s1',
    'fasternet_t0',
    'mobilevitv2_050',
), (64, 48, 32))
SIZES['dla46_c'] = SIZES['hrnet_w18_small'] = (128, 96, 64)
SIZES['vgg11_bn'] = (64, 48, 32)
SIZES['inception_v3'] = (128, 112, 96)

SMALLER = {'vgg11_bn': dict(mlp_ratio=1 / 64)}  # of its 130 million parameters, 120 million are in the head

REFUSED = {
    'dm_nfnet_f0': 'no BatchNorm.*weight-standardised',
    'nf_regnet_b0': 'no BatchNorm.*weight-standardised',
    'convnext_atto': 'no BatchNorm.*LayerNorm2d',
    'resnetv2_50d_gn': 'no BatchNorm.*GroupNormAct',
    'resnetv2_50d_evos': 'no BatchNorm.*EvoNorm2dS0',
    'poolformerv2_s12': 'no BatchNorm.*GroupNorm1',
    'vit_tiny_patch16_224': r'vit_tiny_patch16_224 has a fixed input size \(224x224\)',
    'levit_128s': r'fixed input size \(224x224\)',
    'efficientformer_l1': r'fixed input size \(224x224\)',
    'maxvit_nano_rw_256': r'fixed input size \(256x256\)',
}


def equal(a, b):
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b)


def image(size):
    return torch.randn(1, 3, size, size)


# built of the layers of the others, in another order
ALIKE = {'regnetx_002', 'mnasnet_small', 'mixnet_s', 'tinynet_e', 'lcnet_035', 'repghostnet_050', 'seresnet18',
         'ecaresnet26t', 'skresnet18', 'gernet_s', 'selecsls42', 'hgnetv2_b0', 'repvit_m0_9', 'starnet_s1',
         'fasternet_t0', 'rexnet_100', 'inception_v3', 'dla46_c'}


@pytest.mark.parametrize('name', [
    pytest.param(name, marks=pytest.mark.slow) if name in ALIKE else name for name in SIZES])
def test_family(name, random_statistics):
    large, unseen, small = SIZES[name]
    plain_bns = len([m for m in timm.create_model(name, device='meta').modules()
                     if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)])
    model = rs_timm.switchable(name, (large, small), num_classes=3, **SMALLER.get(name, {}))
    random_statistics(model)
    layers = switchable_layers(model)
    assert len(layers) == plain_bns and all(len(layer) == 2 for layer in layers)
    calls = [model.__class__.__call__, model.__class__.forward_features]
    if hasattr(model, 'forward_intermediates'):
        calls.append(lambda m, x: m.forward_intermediates(x))
    plain = {size: rs_timm.extract(model, size) for size in (large, unseen, small)}
    assert type(plain[large]) is type(timm.create_model(name, device='meta'))
    with torch.inference_mode():
        for call, stock_call in zip(calls, [lambda m, x: m(x), lambda m, x: m.forward_features(x), calls[-1]]):
            for size in (small, large, small) if call is calls[0] else (large, small):
                x = image(size)
                assert equal(call(model, x), stock_call(plain[size], x)), (stock_call, size)
        x = image(unseen)
        assert torch.equal(model(x), plain[unseen](x))
        x = image(large)
        seen = {}
        for r in (small, unseen, large):
            model.set_resolution(r)
            seen[r] = model(x)
            assert torch.equal(seen[r], plain[r](x))
        assert not torch.equal(seen[large], seen[small])


@pytest.mark.parametrize('name', [
    'regnety_002', 'tf_efficientnet_lite0', 'mobilenetv3_small_050', 'densenet121', 'repvgg_a0', 'mobileone_s0',
    *(pytest.param(name, marks=pytest.mark.slow) for name in ('fastvit_t8', 'cs3darknet_s', 'dla46_c', 'selecsls42')),
    'hrnet_w18_small', 'ghostnet_050',
])
def test_features_of_a_family(name, random_statistics):
    """Wrappers never call the network itself: its first layers must notice the size."""
    if name.startswith('hrnet') and not hasattr(timm.create_model(name), 'forward_intermediates'):
        with pytest.raises(ValueError, match='stage1.*timm 1.0.31 or later can'):
            timm.create_model('rs_switchable', base=name, features_only=True)
        return
    large, unseen, small = SIZES[name]
    stock = timm.create_model(name, features_only=True).eval()
    features = timm.create_model('rs_switchable', base=name, features_only=True, resolutions=(large, small))
    random_statistics(features)
    with torch.inference_mode():
        for size in (small, large, unseen, small):
            x = image(size)
            followed = features(x)
            with rs_timm.use_resolution(features, size):
                pinned = features(x)
            other = large if size == small else small
            with rs_timm.use_resolution(features, other):
                assert not equal(features(x), pinned)
            assert equal(followed, pinned)
            assert [f.shape for f in followed] == [f.shape for f in stock(x)]


@pytest.mark.parametrize('name', [
    'regnety_002', 'tf_efficientnet_lite0', 'ese_vovnet19b_slim', 'repvgg_a0', 'ghostnet_050', 'dla46_c',
])
def test_features_of_a_family_by_its_own_wrapper(name, random_statistics):
    large, unseen, small = SIZES[name]
    features = random_statistics(rs_timm.switchable(name, (large, small), features_only=True))
    assert features.resolutions == (large, small)
    with torch.inference_mode():
        for size in (small, large, unseen, small):
            x = image(size)
            followed = features(x)
            assert equal(followed, rs_timm.extract(features, size)(x))
            with features.use_resolution(large if size == small else small):
                assert not equal(features(x), followed)


@pytest.mark.parametrize('name', REFUSED)
def test_a_refusal_says_why(name):
    model = timm.create_model(name, device='meta')
    with pytest.raises(ValueError, match=REFUSED[name]):
        rs_timm.switchable(model, (64, 32))


@pytest.mark.parametrize('name', [
    'repvgg_a0', *(pytest.param(name, marks=pytest.mark.slow) for name in ('mobileone_s0', 'tresnet_m', 'fastvit_t8'))])
def test_families_that_script_in_timm_script_here(name, random_statistics):
    model = rs_timm.switchable(timm.create_model(name, num_classes=3, scriptable=True), (64, 32))
    random_statistics(model).set_resolution(32)
    scripted, x = torch.jit.script(model), image(32)
    with torch.inference_mode():
        torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-4)


def test_one_training_step_of_any_family():
    for name in ('mobilenetv3_small_050', 'repvgg_a0', 'ese_vovnet19b_slim'):
        model = rs_timm.switchable(name, (64, 32), num_classes=3).train()
        optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
        for size in (64, 32):
            idle = [p.detach().clone() for layer in switchable_layers(model)
                    for p in layer[str(96 - size)].parameters()]
            optimizer.zero_grad()
            model(torch.randn(4, 3, size, size)).square().mean().backward()
            optimizer.step()
            after = [p for layer in switchable_layers(model) for p in layer[str(96 - size)].parameters()]
            assert all(map(torch.equal, idle, after))
