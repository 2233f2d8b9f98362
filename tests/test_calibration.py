"""Recalibrated statistics are the exact moments of the pictures, pooled with the old ones; nothing else changes."""
import random
import warnings
from copy import deepcopy
from pathlib import Path

import pytest
import timm
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset

import rs_timm
from benchmarks.environment import RESULTS
from benchmarks.recalibration import expectations, read_table
from rs_timm.calibration import add_resolution, recalibrate
from rs_timm.calibration.recalibration import moments_of
from rs_timm.layers import switchable_layers

RESOLUTIONS = (64, 48, 32)

pytestmark = pytest.mark.filterwarnings('ignore:BatchNorm statistics of only')


def pictures(count, size=32, channels=3, seed=1):
    return torch.randn(count, channels, size, size, generator=torch.Generator().manual_seed(seed))


def statistics(model, resolution):
    sets = [layer.set_for(resolution) for layer in switchable_layers(model)]
    return [tensor.clone() for bn in sets for tensor in (bn.running_mean, bn.running_var)]


def assert_close(found, expected, **tolerance):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, **tolerance)


@pytest.fixture
def model(random_statistics):
    return random_statistics(timm.create_model('rs_resnet18', resolutions=RESOLUTIONS, num_classes=5))


@pytest.fixture
def one_layer():
    """A network whose only BatchNorm sees its input, whatever the statistics."""
    torch.manual_seed(0)
    return rs_timm.convert_switchable_bn(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (64, 32))


# The numbers

@pytest.mark.parametrize('shape', [(7, 3), (7, 3, 5), (7, 3, 4, 6), (1, 3, 1, 1)])
@pytest.mark.parametrize('offset', [0., 1e4])
def test_moments_of_unequal_batches_are_those_of_all_values(shape, offset):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float32) + offset
    pooled = None
    for part in x.split([1] * (len(x) > 1) + [len(x) - (len(x) > 1)]):
        pooled = moments_of(part) if pooled is None else pooled.pooled(moments_of(part))
    values = x.double().transpose(0, 1).reshape(3, -1)
    assert pooled.count == values.shape[1]
    torch.testing.assert_close(pooled.mean, values.mean(1), rtol=1e-6, atol=1e-6)
    if values.shape[1] > 1:
        torch.testing.assert_close(pooled.unbiased, values.var(1), rtol=1e-5, atol=1e-9)
    else:
        assert torch.equal(pooled.unbiased, torch.zeros(3, dtype=torch.float64))


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_050', 'tf_efficientnet_lite0', 'regnetx_002'])
def test_one_batch_without_prior_is_torchs_own_training_pass(name, random_statistics):
    model = random_statistics(rs_timm.switchable(name, RESOLUTIONS)).double()
    plain = rs_timm.extract(model, 48).train()
    for module in plain.modules():
        if isinstance(module, _BatchNorm):
            module.momentum = 1.
        elif isinstance(module, (nn.Dropout, timm.layers.DropPath)):
            module.eval()
    x = pictures(10, 48).double()
    plain(x)
    recalibrate(model, x, [48], prior_images=0)
    batch_norms = [m for m in plain.modules() if isinstance(m, _BatchNorm)]
    expected = [tensor for bn in batch_norms for tensor in (bn.running_mean, bn.running_var)]
    assert_close(statistics(model, 48), expected, rtol=1e-9, atol=1e-11)


def test_deep_layers_pool_what_a_training_pass_of_each_batch_sees(model):
    x = pictures(24)
    plain = rs_timm.extract(model, 32).double().train()
    inputs = {name: [] for name, module in plain.named_modules() if isinstance(module, _BatchNorm)}
    for name, kept in inputs.items():
        plain.get_submodule(name).register_forward_pre_hook(lambda module, args, kept=kept: kept.append(args[0]))
    for part in x.double().split(8):
        plain(part)
    recalibrate(model.double(), x, [32], prior_images=0, batch_size=8)
    for name, kept in inputs.items():
        values = torch.cat(kept).transpose(0, 1).flatten(1)
        bn = model.get_submodule(name).set_for(32)
        torch.testing.assert_close(bn.running_mean, values.mean(1), rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(bn.running_var, values.var(1), rtol=1e-9, atol=1e-11)


def test_prior_has_the_closed_form_of_a_pooled_variance(one_layer):
    bn = one_layer[1].set_for(32)
    bn.running_mean.fill_(2.)
    bn.running_var.fill_(5.)
    x, prior = pictures(8), 24
    values = nn.functional.conv2d(x.double(), one_layer[0].weight.double()).transpose(0, 1).reshape(4, -1)
    n = values.shape[1]
    m = n * prior / 8
    mean = (n * values.mean(1) + m * 2) / (n + m)
    square = (n - 1) * values.var(1) + (m - 1) * 5 + n * (values.mean(1) - mean) ** 2 + m * (2 - mean) ** 2
    recalibrate(one_layer, x, [32], prior_images=prior)
    assert_close(statistics(one_layer, 32), [mean.float(), (square / (n + m - 1)).float()], rtol=1e-5, atol=1e-6)


def test_shared_layer_pools_all_its_calls():
    bn = nn.BatchNorm2d(3)
    model = rs_timm.convert_switchable_bn(nn.Sequential(nn.Conv2d(3, 3, 1), bn, nn.ReLU(), bn), (32,)).double()
    plain = rs_timm.extract(model, 32).train()
    x = pictures(4).double()
    first = plain[0](x)
    second = plain[2](plain[1](first))
    values = torch.cat([first, second]).transpose(0, 1).flatten(1)
    recalibrate(model, x, prior_images=0)
    assert_close(statistics(model, 32)[:2], [values.mean(1), values.var(1)], rtol=1e-9, atol=1e-11)


# Which pictures, in which form

def test_the_batches_of_the_loader_do_not_matter(model):
    x = pictures(29)
    results = []
    for sizes in ([29], [1] * 29, [4, 0, 20, 5], [9, 9, 9, 2]):
        own = deepcopy(model)
        assert recalibrate(own, x.split(sizes), [32], batch_size=8) == {32: 29}
        results.append(statistics(own, 32))
    for result in results[1:]:
        assert_close(result, results[0], rtol=0, atol=0)


def test_every_form_of_images_gives_the_same(model):
    x, labels = pictures(12), torch.zeros(12)
    forms = {
        'tensor': x,
        'list of tensors': [x[:5], x[5:]],
        'loader of pairs': DataLoader(TensorDataset(x, labels), batch_size=5),
        'loader of triples': [(x[:5], labels, labels), [x[5:], labels]],
        'mapping of tensors': {32: x, 64: None},
        'mapping of loaders': {32: DataLoader(TensorDataset(x, labels), batch_size=4)},
        'batches keyed by resolution': [({32: x[:5], 64: pictures(5, 64)}, labels), {32: x[5:]}],
        'function': lambda resolution: (part for part in x.split(resolution // 8)),
    }
    expected = None
    for form in forms.values():
        own = deepcopy(model)
        recalibrate(own, form, [32])
        expected = expected or statistics(own, 32)
        assert_close(statistics(own, 32), expected, rtol=0, atol=0)
    assert any(not torch.equal(a, b) for a, b in zip(statistics(model, 32), expected))


def test_larger_pictures_are_scaled_to_each_resolution(model):
    x = pictures(6, 64)
    own, by_hand = deepcopy(model), deepcopy(model)
    recalibrate(own, x)
    small = {r: nn.functional.interpolate(x, (r, r), mode='bilinear', antialias=True) for r in (48, 32)}
    recalibrate(by_hand, {64: x, **small})
    for resolution in RESOLUTIONS:
        assert_close(statistics(own, resolution), statistics(by_hand, resolution), rtol=0, atol=0)


def test_non_square_pictures_of_several_shapes(one_layer):
    parts = [pictures(3)[..., :16].repeat(1, 1, 2, 1), pictures(2).repeat(1, 1, 1, 2)[..., :16, :]]  # 64x16, 16x64
    recalibrate(one_layer, parts, [32], prior_images=0)
    values = [nn.functional.conv2d(part, one_layer[0].weight).transpose(0, 1).flatten(1) for part in parts]
    values = torch.cat(values, 1)
    assert_close(statistics(one_layer, 32), [values.mean(1), values.var(1)], rtol=1e-4, atol=1e-5)


def test_num_images_takes_the_first_pictures_and_reads_no_further(model):
    x, read = pictures(20), []

    def batches(resolution):
        for part in x.split(4):
            read.append(len(part))
            yield part

    own = deepcopy(model)
    assert recalibrate(own, batches, [32], num_images=10) == {32: 10}
    assert sum(read) == 12
    recalibrate(model, x[:10], [32])
    assert_close(statistics(own, 32), statistics(model, 32), rtol=0, atol=0)


def test_shuffling_loader_shows_each_resolution_the_same_pictures_and_moves_no_random_state(model):
    seen = {}

    class Images(torch.utils.data.Dataset):
        def __len__(self):
            return 12

        def __getitem__(self, index):
            return index, random.random()

    def batches(resolution):
        for index, draws in DataLoader(Images(), batch_size=4, shuffle=True):
            seen.setdefault(resolution, []).append((index.tolist(), draws.tolist()))
            yield pictures(4, resolution)

    before, before_python = torch.get_rng_state(), random.getstate()
    recalibrate(model, batches, num_images=8)
    assert seen[64] == seen[48] == seen[32]
    assert torch.equal(torch.get_rng_state(), before) and random.getstate() == before_python


# What stays as it was

def test_only_running_statistics_of_the_wanted_sets_change(model):
    model.bn1['32'].train()
    model.layer1.train()
    model.conv1.weight.requires_grad_(False)
    model.set_resolution(48)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    trainable = [p.requires_grad for p in model.parameters()]
    hooks = [len(m._forward_pre_hooks) for m in model.modules()]
    recalibrate(model, pictures(6, 64), [64, 32])
    changed = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    expected = {key for key in before if key.split('.')[-2] in ('64', '32') and '.running_' in key}
    assert changed == expected
    assert [m.training for m in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trainable
    assert [len(m._forward_pre_hooks) for m in model.modules()] == hooks
    assert all(p.grad is None for p in model.parameters())
    assert model.get_resolution() == 48


def test_interpolated_sets_follow(model):
    x = pictures(1, 40)
    with torch.no_grad():
        before = model(x)
        recalibrate(model, pictures(6, 48), [48], prior_images=0)
        assert not torch.equal(model(x), before)
        assert torch.equal(model(x), rs_timm.extract(model, 40)(x))


def broken_loader(resolution):
    yield pictures(3, resolution)
    if resolution == 48:
        raise OSError('disk gone')


def with_nan(resolution):
    x = pictures(3, resolution)
    x[0, 0, 0, 0] = float('nan') if resolution == 32 else 0.
    return [x]


@pytest.mark.parametrize(('images', 'error'), [(broken_loader, OSError), (with_nan, ValueError)])
def test_error_half_way_leaves_the_model_as_it_was(model, images, error):
    model.train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    state = torch.get_rng_state()
    with pytest.raises(error, match='disk gone|bn1.*not finite'):
        recalibrate(model, images)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(m.training for m in model.modules()) and model.get_resolution() is None
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(bn._forward_pre_hooks for layer in switchable_layers(model) for bn in layer.values())


# Every kind of network and wrapper

def test_batch_norm_1d_and_sync(random_statistics):
    stem, head = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)], [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.BatchNorm1d(4)]
    model = random_statistics(rs_timm.convert_switchable_bn(nn.Sequential(*stem, *head), (32,)))
    synced = nn.SyncBatchNorm.convert_sync_batchnorm(deepcopy(model))
    x = pictures(9)
    for own in (model, synced):
        recalibrate(own, x, prior_images=0)
    assert_close(statistics(synced, 32), statistics(model, 32), rtol=0, atol=0)
    plain = rs_timm.extract(model, 32).train()
    features = plain[:4](x)
    assert_close(statistics(model, 32)[2:], [features.mean(0), features.var(0)], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('wrap', [
    lambda m: nn.DataParallel(m),
    lambda m: torch.compile(m, backend='eager'),
    lambda m: timm.utils.ModelEmaV3(m).module,
    lambda m: (m.compile(backend='eager'), m(pictures(1)), m)[2],
], ids=['DataParallel', 'compiled', 'EMA', 'compiled in place'])
@torch.no_grad()
def test_wrappers(model, wrap):
    x, expected = pictures(6), deepcopy(model)
    recalibrate(expected, x, [32])
    wrapped = wrap(model)
    recalibrate(wrapped, x, [32])
    assert_close(statistics(wrapped, 32), statistics(expected, 32), rtol=0, atol=0)


def test_memory_format_and_autocast_change_rounding_alone(model):
    x, expected = pictures(16), deepcopy(model)
    recalibrate(expected, x, [32], prior_images=0)
    last = deepcopy(model).to(memory_format=torch.channels_last)
    recalibrate(last, x.to(memory_format=torch.channels_last), [32], prior_images=0)
    assert_close(statistics(last, 32), statistics(expected, 32), rtol=1e-4, atol=1e-4)
    with torch.autocast('cpu', torch.bfloat16):
        recalibrate(model, x, [32], prior_images=0)
    assert all(value.dtype == torch.float32 for value in statistics(model, 32))
    assert_close(statistics(model, 32), statistics(expected, 32), rtol=0.1, atol=0.05)


def test_layers_that_do_not_run_and_statistics_that_do_not_exist(one_layer):
    class Partly(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.BatchNorm2d(3), nn.BatchNorm2d(3)
            self.batch = nn.BatchNorm2d(3, track_running_stats=False)

        def forward(self, x):
            return self.batch(self.used(x))

    model = rs_timm.convert_switchable_bn(Partly(), (32,))
    recalibrate(model, pictures(4) + 7, prior_images=0)
    assert (model.used.set_for(32).running_mean > 6).all()
    assert torch.equal(model.idle.set_for(32).running_mean, torch.zeros(3))


# Errors and warnings say what to do

@pytest.mark.parametrize(('images', 'options', 'message'), [
    ([], {}, 'no picture for resolution 64'),
    (torch.empty(0, 3, 64, 64), {}, 'no picture'),
    (iter([pictures(2, 64)]), {}, 'list_iterator.*read only once'),
    ((x for x in [pictures(2, 64)]), {}, 'generator.*read only once'),
    (pictures(2, 64, channels=1), {}, r'1 channels.*takes 3'),
    (pictures(2, 32), {}, r'32x32 are too small for resolution 64.*resolutions='),
    (pictures(2, 64)[0], {}, r'float tensor \[N, C, H, W\]'),
    (torch.zeros(2, 3, 64, 64, dtype=torch.uint8), {}, 'uint8.*normalised'),
    (['a.jpg'], {}, 'is str'),
    ([()], {}, 'is tuple'),
    (7, {}, 'images is a int'),
    ({64: pictures(2, 64)}, {}, r'no pictures for resolution 48, only for \(64,\)'),
    ([{64: pictures(2, 64)}], {}, r'a batch has no pictures for resolution 48'),
    (pictures(2, 64), dict(resolutions=[40]), r'resolution 40.*\(64, 48, 32\).*add_resolution'),
    (pictures(2, 64), dict(resolutions=[]), 'resolutions is empty'),
    (pictures(2, 64), dict(num_images=0), 'num_images is 0.*None for all'),
    (pictures(2, 64), dict(batch_size=0), 'batch_size is 0'),
    (pictures(2, 64), dict(prior_images=-1), 'prior_images is -1'),
    (pictures(2, 64), dict(prior_images=float('nan')), 'prior_images is nan'),
])
def test_bad_arguments(model, images, options, message):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        recalibrate(model, images, **options)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_one_value_per_channel_has_no_variance():
    model = rs_timm.convert_switchable_bn(nn.Sequential(nn.Flatten(), nn.Linear(12, 4), nn.BatchNorm1d(4)), (2,))
    with pytest.raises(ValueError, match=r'2: .*one value.*more pictures'):
        recalibrate(model, pictures(1, 2), prior_images=0)


def test_plain_network_is_refused():
    with pytest.raises(ValueError, match='no switchable BatchNorm'):
        recalibrate(timm.create_model('resnet18'), pictures(2))


@pytest.mark.filterwarnings('always')
def test_few_pictures_with_a_large_share_are_warned_about(model):
    with pytest.warns(UserWarning, match=r'only 6 pictures at resolution 64 have a share of 50%'):
        recalibrate(model, pictures(6, 64), prior_images=6)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        recalibrate(model, pictures(6, 64))


def test_the_page_states_what_was_measured():
    page = Path(__file__).resolve().parent.parent / 'docs' / 'recalibrate.md'
    stated = [line.strip() for line in page.read_text(encoding='utf-8').splitlines()]
    for line in expectations(read_table(RESULTS / 'recalibration.csv')):
        assert line.strip() in stated


# One more resolution

def test_add_resolution_is_insert_then_recalibrate(model):
    x, by_hand = pictures(6, 40), deepcopy(model)
    rs_timm.layers.insert_resolution(by_hand, 40)
    assert_close(statistics(by_hand, 40), statistics(model, 40), rtol=0, atol=0)  # the interpolated set
    added = deepcopy(model)
    add_resolution(added, 40)
    assert all(torch.equal(a, b) for a, b in zip(added.state_dict().values(), by_hand.state_dict().values()))
    recalibrate(by_hand, x, [40], prior_images=3)
    add_resolution(model, 40, x, prior_images=3)
    assert model.resolutions == (64, 48, 40, 32)
    assert list(model.state_dict()) == list(by_hand.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), by_hand.state_dict().values()))


@pytest.mark.parametrize(('resolution', 'images', 'options', 'message'), [
    (48, None, {}, '48 has a BatchNorm set already'),
    (40, pictures(2, 32), {}, 'too small'),
    (40, broken_loader, dict(prior_images=-1), 'prior_images'),
    (40, None, dict(prior_images=5), 'prior_images.*needs images'),
])
def test_add_resolution_that_fails_leaves_the_model_as_it_was(model, resolution, images, options, message):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        add_resolution(model, resolution, images, **options)
    assert model.resolutions == RESOLUTIONS and list(model.state_dict()) == list(before)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
