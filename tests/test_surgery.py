"""Every transformation has an inverse: convert and extract, extract and pack, insert and remove."""
import copy

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import rs_timm
from rs_timm.layers import insert_resolution, switchable_layers

SIZES = (64, 48, 32)


def equal_states(a, b):
    a, b = a.state_dict(), b.state_dict()
    return list(a) == list(b) and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def model(random_statistics):
    return random_statistics(timm.create_model('rs_resnet18', num_classes=4, resolutions=SIZES))


@pytest.mark.parametrize('name', ['resnet18', 'mobilenetv2_100'])
def test_conversion_changes_no_output_and_extract_undoes_it(name, random_statistics):
    plain = random_statistics(timm.create_model(name, num_classes=4))
    switchable = rs_timm.convert_switchable_bn(copy.deepcopy(plain), SIZES)
    for size in (*SIZES, 40):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(switchable(x), plain(x))
        assert equal_states(rs_timm.extract(switchable, size), plain)


def test_extract_shares_nothing_and_keeps_modes(model):
    model.conv1.weight.requires_grad_(False)
    model.train()
    model.layer1.eval()
    plain = rs_timm.extract(model, 40)
    assert plain.training and plain.bn1.training and not plain.layer1[0].bn1.training
    assert not plain.conv1.weight.requires_grad and plain.bn1.weight.requires_grad
    before = copy.deepcopy(model.state_dict())
    for tensor in plain.state_dict().values():
        tensor.zero_()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_extract_leaves_no_trace_of_the_switch(model):
    plain = rs_timm.extract(model, 48)
    assert not rs_timm.is_switchable(plain)
    assert not any(m._forward_pre_hooks for m in plain.modules())
    torch.jit.script(plain)


def test_pack_is_the_inverse_of_extract(model):
    parts = {size: rs_timm.extract(model, size) for size in model.resolutions}
    packed = rs_timm.pack(parts)
    assert equal_states(packed, model)
    for size, part in parts.items():
        assert equal_states(rs_timm.extract(packed, size), part)


def test_pack_gives_what_switchable_gives(random_statistics, tmp_path):
    model = random_statistics(rs_timm.switchable('test_resnet', SIZES, num_classes=4, interpolation='affine'))
    packed = rs_timm.pack({size: rs_timm.extract(model, size) for size in SIZES}, interpolation='affine')
    assert type(packed) is type(model) and packed.resolutions == SIZES
    timm.models.save_for_hf(packed, tmp_path, model_args=packed._model_args)  # timm before 1.0.31 needs to be told
    restored = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    for size in (64, 40):
        packed.set_resolution(size)
        x = torch.randn(2, 3, size, size)
        assert torch.equal(packed(x), model(x)) and torch.equal(restored(x), model(x))


def test_pack_takes_layers_and_networks_that_timm_did_not_make():
    layer = rs_timm.pack({size: nn.BatchNorm2d(4) for size in SIZES})
    assert type(layer) is rs_timm.SwitchableBatchNorm2d and layer.selector.resolutions == SIZES
    first = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    assert rs_timm.pack({64: first, 48: copy.deepcopy(first)}).resolutions == (64, 48)


def test_pack_names_the_first_shared_weight_that_differs(model):
    parts = {size: rs_timm.extract(model, size) for size in SIZES}
    with torch.no_grad():
        parts[32].layer2[0].conv1.weight[0] += 1
        parts[32].fc.bias[0] += 1
    with pytest.raises(ValueError, match=r'layer2\.0\.conv1\.weight differs.*64 and 32'):
        rs_timm.pack(parts)


def test_pack_refuses_other_architectures_and_switchable_models(model):
    first = rs_timm.extract(model, 64)
    with pytest.raises(ValueError, match='differs between the models for 64 and 32'):
        rs_timm.pack({64: first, 32: timm.create_model('resnet34', num_classes=4)})
    with pytest.raises(ValueError, match='64 is switchable already'):
        rs_timm.pack({64: model, 32: first})
    with pytest.raises(ValueError, match='empty'):
        rs_timm.pack({})


def test_conversion_is_refused_twice_and_without_batch_norm(model):
    with pytest.raises(ValueError, match=r'switchable already, for \(64, 48, 32\)'):
        rs_timm.convert_switchable_bn(model, SIZES)
    with pytest.raises(ValueError, match='no BatchNorm layer .it uses LayerNorm'):
        rs_timm.convert_switchable_bn(nn.Sequential(nn.Conv2d(3, 4, 3), nn.LayerNorm(4)), SIZES)


def test_a_module_used_twice_stays_one():
    bn = nn.BatchNorm2d(4)
    net = nn.Sequential(nn.Conv2d(3, 4, 1), bn, nn.Conv2d(4, 4, 1), bn)
    rs_timm.convert_switchable_bn(net, (8, 4))
    assert net[1] is net[3] and len(switchable_layers(net)) == 1


def test_the_activation_of_a_batch_norm_stays():
    net = nn.Sequential(nn.Conv2d(3, 4, 1), BatchNormAct2d(4, act_layer=nn.ReLU6))
    x = 100 * torch.randn(8, 3, 8, 8)
    expected = net.eval()(x)
    rs_timm.convert_switchable_bn(net, (8, 4))
    assert torch.equal(net(x), expected) and expected.max() == 6.


def test_hooks_on_a_batch_norm_stay_once():
    bn = nn.BatchNorm2d(4)
    seen = []
    bn.register_forward_hook(lambda *args: seen.append(1))
    net = rs_timm.convert_switchable_bn(nn.Sequential(nn.Conv2d(3, 4, 1), bn), (8, 4)).eval()
    net(torch.randn(1, 3, 4, 4))
    assert seen == [1]


def test_insert_and_remove_are_inverse(model):
    before = copy.deepcopy(model.state_dict())
    x = torch.randn(2, 3, 40, 40)
    expected = model(x)
    insert_resolution(model, 40)
    assert model.resolutions == (64, 48, 40, 32)
    torch.testing.assert_close(model(x), expected)
    assert list(model.bn1) == ['64', '48', '40', '32'] and model.bn1['40'].weight.requires_grad
    model.train()(torch.randn(2, 3, 40, 40))  # a set of its own may be trained
    rs_timm.remove_resolution(model, 40)
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[key], before[key]) for key in before)


def test_insert_works_in_training_mode_and_leaves_it(model):
    model.train()
    model.layer1[0].bn1['48'].eval()
    insert_resolution(model, 40)
    assert model.layer1[0].bn1.training and not model.layer1[0].bn1['48'].training


def test_insert_and_remove_refuse_what_is_there_or_not(model):
    with pytest.raises(ValueError, match='48 has a BatchNorm set already'):
        insert_resolution(model, 48)
    with pytest.raises(ValueError, match=r'40 has no BatchNorm set; the model has \(64, 48, 32\)'):
        rs_timm.remove_resolution(model, 40)
    for size in (64, 48):
        rs_timm.remove_resolution(model, size)
    with pytest.raises(ValueError, match='32 is the only resolution'):
        rs_timm.remove_resolution(model, 32)


@pytest.mark.parametrize('name, units', [('rs_resnet18', 11.18), ('rs_resnet50', 24.58), ('rs_mobilenetv2', 3.47)])
def test_parameter_counts_are_those_of_table_2(name, units):
    model = timm.create_model(name, device='meta')
    private = sum(p.numel() for layer in switchable_layers(model) for p in layer.parameters())
    total = sum(p.numel() for p in model.parameters())
    stock = timm.create_model(model.stock_architecture, device='meta')
    assert round(total / 2 ** 20, 2) == units
    assert total - private * 4 / 5 == sum(p.numel() for p in stock.parameters())
