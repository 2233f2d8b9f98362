"""Registered and converted networks with quantised convolutions: all that holds for rs_ models, storage, training."""
import copy

import pytest
import timm
import torch
from safetensors.torch import load_file
from test_timm_contract import LQ, TRACER
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names
from training_run import make_pictures, run

import rs_timm
from rs_timm.analysis import madds
from rs_timm.hub import save_pretrained
from rs_timm.loading import load_model
from rs_timm.quantization import (
    LQConfig,
    dequantize,
    load_packed,
    pack_weights,
    packed_state_dict,
    quantize_,
    quantized_layers,
)
from rs_timm.quantization.packing import _pack, _unpack
from rs_timm.training import MREDTask, Recipe, get_recipe
from rs_timm.training.build import build_model
from rs_timm.training.checkpoint import load_checkpoint
from rs_timm.training.optimization import create_optimizer, create_schedule

SIZES = (64, 48, 32)
SMALL = ('rs_resnet18_w2a32', 'rs_resnet18_w2a2')
STOCK = dict(rs_resnet18_w2a32='resnet18', rs_resnet50_w2a32='resnet50', rs_resnet18_w2a2='resnetv2_18',
             rs_resnet50_w2a2='resnetv2_50')


def create(name=SMALL[0], **kwargs):
    return timm.create_model(name, **{'resolutions': SIZES, 'num_classes': 7, **kwargs})


def image(size, batch=2):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(size))


# As the other rs_ models

@pytest.mark.parametrize('name', LQ)
def test_which_convolutions_are_quantised(name):
    model, stock = create(name, device='meta'), timm.create_model(STOCK[name], num_classes=7, device='meta')
    convs = [key for key, m in stock.named_modules() if isinstance(m, nn.Conv2d)]
    ends = {convs[0], stock.default_cfg['classifier']}
    assert list(quantized_layers(model)) == [key for key in convs if key not in ends]
    assert {key: p.shape for key, p in rs_timm.extract(model, 64).named_parameters()} == {
        key: p.shape for key, p in stock.named_parameters()}
    for layer in quantized_layers(model).values():
        assert layer.weight_basis.shape == (layer.out_channels, 2)
        assert layer.act_basis is None if name.endswith('a32') else layer.act_basis.shape == (2,)


@pytest.mark.parametrize('name', SMALL)
def test_forward_features_and_extraction(name, random_statistics):
    model = random_statistics(create(name))
    for size in (64, 40, 32):
        x, plain = image(size), rs_timm.extract(model, size)
        assert type(plain) is type(timm.create_model(STOCK[name], device='meta'))
        assert torch.equal(model(x), plain(x))
    again = rs_timm.pack({r: rs_timm.extract(model, r) for r in SIZES})
    assert torch.equal(again(image(48)), model(image(48)))
    features = timm.create_model(name, features_only=True, resolutions=SIZES).eval()
    stock = timm.create_model(STOCK[name], features_only=True).eval()
    assert [f.shape for f in features(image(48))] == [f.shape for f in stock(image(48))]


def test_dequantised_it_is_a_stock_network(random_statistics):
    model = random_statistics(create())
    stock = timm.create_model('resnet18', num_classes=7).eval()
    stock.load_state_dict(dequantize(rs_timm.extract(model, 40)).state_dict(), strict=True)
    assert torch.equal(stock(image(40)), model(image(40)))
    with pytest.raises(ValueError, match='act_bits None'):
        dequantize(create('rs_resnet18_w2a2'))


@pytest.mark.parametrize('name', SMALL)
def test_every_parameter_has_a_gradient_also_when_traced(name, random_statistics):
    model = random_statistics(create(name)).train()
    model(image(48, 4)).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.eval().set_resolution(48)
    nodes = get_graph_node_names(model, tracer_kwargs=TRACER)
    traced = create_feature_extractor(
        model, train_return_nodes=nodes[0][-1:], eval_return_nodes=nodes[1][-1:], tracer_kwargs=TRACER)
    x = image(48)
    assert torch.equal(next(iter(traced.eval()(x).values())), model(x))
    scripted = torch.jit.script(model)
    torch.testing.assert_close(scripted(x), model(x), rtol=1e-4, atol=1e-5)


def test_initialisation_is_that_of_the_stock_network():
    """Zero for the last gamma of a block in 2/32; bases that suit He's initialisation."""
    model = create()
    assert all((block.bn2[str(r)].weight == 0).all() for r in SIZES for block in model.layer1)
    layer = model.layer4[1].conv2
    error = (layer.quantized_weight() - layer.weight).square().mean() / layer.weight.square().mean()
    assert error < 0.2  # 0.1175 is the best that two bits can do for normal values


@pytest.mark.parametrize('bits', [dict(weight_bits=0), dict(weight_bits=9), dict(weight_bits=None), dict(act_bits=2.5),
                                  dict(weight_bits=True)], ids=str)
def test_bad_numbers_of_bits(bits):
    with pytest.raises(ValueError, match='from 1 to 8'):
        LQConfig(**bits)


def test_any_network_and_what_is_refused():
    model = rs_timm.switchable('test_resnet', SIZES)
    keys = set(dict(model.named_parameters()))
    parameters = {id(p) for p in model.parameters()}
    quantize_(model, LQConfig(3, 4), filter_fn=lambda name, module: 'layer' in name)
    assert set(dict(model.named_parameters())) == keys and {id(p) for p in model.parameters()} == parameters
    assert quantized_layers(model) and all('layer' in name for name in quantized_layers(model))
    with pytest.raises(ValueError, match='quantised already'):
        quantize_(model)
    with pytest.raises(ValueError, match='no convolution'):
        quantize_(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Linear(4, 2)))
    with pytest.raises(ValueError, match='is a Conv2dSame'):
        quantize_(timm.create_model('tf_efficientnet_lite0', device='meta'))


def test_fitted_bases_are_better_than_the_start_for_trained_weights():
    plain = timm.create_model('test_resnet')
    with torch.no_grad():
        for m in plain.modules():
            if isinstance(m, nn.Conv2d):
                m.weight.mul_(5)
    errors = []
    for fit in (True, False):
        layers = quantized_layers(quantize_(copy.deepcopy(plain), fit=fit)).values()
        errors.append(sum((m.quantized_weight() - m.weight).square().sum() for m in layers))
    assert errors[0] < 0.5 * errors[1]


@pytest.mark.parametrize('name', SMALL)
def test_the_exported_file_computes_the_same(name, tmp_path, random_statistics):
    """Quantised weights are its weights; a quantised input is a chain of comparisons."""
    pytest.importorskip('onnx')
    runtime = pytest.importorskip('onnxruntime')
    model = random_statistics(create(name))
    session = runtime.InferenceSession(str(rs_timm.export_onnx(model, tmp_path / 'model.onnx')))
    for size in (64, 40, 32):
        (logits,) = session.run(['logits'], {'images': image(size).numpy()})
        expected = model(image(size)).detach()
        # a value that rounding moves across a threshold changes its level
        error = (torch.from_numpy(logits) - expected).abs().mean() / expected.abs().mean()
        assert error < (1e-5 if name.endswith('a32') else 0.05)


@pytest.mark.parametrize('name', SMALL)
def test_cost_is_that_of_the_stock_network(name):
    """Counted on the meta device, where there are no values to quantise."""
    model = create(name, device='meta')
    stock = timm.create_model(STOCK[name], num_classes=7, device='meta')
    assert madds(model, 48) == madds(rs_timm.switchable(stock, SIZES), 48)
    assert model.train()(torch.empty(2, 3, 48, 48, device='meta')).shape == (2, 7)


# Storage

@pytest.mark.parametrize('bits', range(1, 9))
@pytest.mark.parametrize('out', [1, 5, 8])
def test_packing_is_invertible_and_small(bits, out):
    codes = torch.randint(2 ** bits, (out, 3, 3, 2), dtype=torch.uint8)
    packed = _pack(codes, bits)
    assert torch.equal(_unpack(packed, out, bits), codes)
    assert packed.numel() == -(-out * bits // 8) * 18


@pytest.mark.parametrize('head', ['int8', 'float16', 'float32'])
@pytest.mark.parametrize('name', SMALL)
def test_a_packed_network_computes_what_its_file_says(name, head, tmp_path, random_statistics):
    """Of the original nothing but the first convolution and the classifier is rounded; packed again it is the same."""
    model = random_statistics(create(name))
    loaded = load_packed(create(name), pack_weights(model, tmp_path / 'a.safetensors', head)).eval()
    rounded = copy.deepcopy(model)
    first = next(m for m in rounded.modules() if isinstance(m, nn.Conv2d))
    with torch.no_grad():
        first.weight.copy_(first.weight.half())
        classifier = rounded.get_classifier().weight
        before = classifier.clone()
        classifier.copy_(loaded.get_classifier().weight)
    for size in (64, 40):
        assert torch.equal(loaded(image(size)), rounded(image(size)))
    largest = before.abs().flatten(1).amax(1).view(-1, *[1] * (before.ndim - 1))
    bound = {'int8': 0.51 / 127, 'float16': 2 ** -11, 'float32': 0.}[head]
    assert ((classifier - before).abs() <= bound * largest).all()
    again = pack_weights(loaded, tmp_path / 'b.safetensors', head)
    first, second = load_file(tmp_path / 'a.safetensors'), load_file(again)
    assert first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


@pytest.mark.parametrize('name', SMALL)
def test_folders_and_files(name, tmp_path, monkeypatch, random_statistics):
    monkeypatch.setattr('rs_timm.card._count', lambda model, resolution: 'not counted')
    model = random_statistics(create(name))
    sizes = {}
    for kind, options in dict(full={}, packed=dict(packed=True)).items():
        folder = save_pretrained(model, tmp_path / kind, **options)
        sizes[kind] = (folder / 'model.safetensors').stat().st_size
        restored = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
        expected = model if kind == 'full' else load_packed(create(name), folder / 'model.safetensors').eval()
        assert torch.equal(restored(image(48)), expected(image(48)))
    assert sizes['packed'] * 10 < sizes['full']
    with pytest.raises(ValueError, match='exclude'):
        save_pretrained(model, tmp_path / 'both', half=True, packed=True)


def test_the_command_line_reads_a_packed_file(tmp_path, random_statistics):
    """Resolutions and classes are those of the file."""
    file = pack_weights(random_statistics(create()), tmp_path / 'packed.safetensors')
    loaded = load_model('rs_resnet18_w2a32', checkpoint=str(file))
    assert loaded.resolutions == SIZES and loaded.num_classes == 7
    assert torch.equal(loaded(image(40)), load_packed(create(), file).eval()(image(40)))


def test_what_cannot_be_packed():
    with pytest.raises(ValueError, match="'int4' is unknown: use one of int8, float16, float32"):
        packed_state_dict(create(), head='int4')
    with pytest.raises(ValueError, match='no quantised convolution'):
        packed_state_dict(nn.Linear(2, 2))
    model = create()
    nn.init.constant_(model.conv1.weight, 1e6)
    with pytest.raises(ValueError, match=r'conv1.weight has values up to 1e\+06'):
        packed_state_dict(model)


@pytest.mark.parametrize('lost', ['layer1.0.conv1.weight_basis', 'fc.weight_scale'])
def test_half_a_packed_file_is_refused(lost):
    packed = packed_state_dict(create())
    del packed[lost]
    with pytest.raises(ValueError, match=f'{lost} is not'):
        create().load_state_dict(packed)


# Training

def test_full_precision_weights_are_a_start(tmp_path):
    source = timm.create_model('rs_resnet18', resolutions=SIZES, num_classes=7)
    torch.save(source.state_dict(), tmp_path / 'plain.pth')
    recipe = Recipe(resolutions=SIZES, init=str(tmp_path / 'plain.pth'))
    model = build_model('rs_resnet18_w2a32', recipe, 7)
    assert torch.equal(model.layer3[0].conv1.weight, source.layer3[0].conv1.weight)
    assert not torch.equal(model.layer3[0].conv1.weight_basis, create().layer3[0].conv1.weight_basis)


def test_the_recipe_has_lq_nets_schedule():
    """Section 4.1; Nesterov, and decay of the weights of convolutions and classifier alone."""
    recipe = get_recipe('lq_in1k')
    task = MREDTask(quantize_(rs_timm.switchable('test_resnet', SIZES), LQConfig(2, 2)))
    optimizer = create_optimizer(task, recipe)
    decayed = {id(p) for group in optimizer.param_groups if group['weight_decay'] for p in group['params']}
    assert decayed == {id(m.weight) for m in task.modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    assert {group['weight_decay'] for group in optimizer.param_groups} == {0., 5e-5}
    assert all(group['nesterov'] and group['momentum'] == 0.9 for group in optimizer.param_groups)
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=10)
    milestones = (0, 30, 60, 85, 95, 105, 120)
    for power, (first, end) in enumerate(zip(milestones, milestones[1:]), start=1):
        for epoch in (first, end - 1):
            schedule.step_update(10 * epoch)
            assert optimizer.param_groups[0]['lr'] == pytest.approx(10 ** -power)


@pytest.mark.parametrize('lean', [False, True])
def test_a_mred_step(lean):
    """Weights are quantised once; every basis moves; the lean mode gives the same gradients."""
    torch.manual_seed(0)
    model = quantize_(rs_timm.switchable('test_resnet', SIZES, num_classes=7), LQConfig(2, 2))
    images = {r: image(r, 4) for r in SIZES}
    results = []
    for mode in (lean, False):
        own = copy.deepcopy(model)
        before = {key: layer.act_basis.clone() for key, layer in quantized_layers(own).items()}
        task = MREDTask(own, lean=mode).train()
        optimizer = torch.optim.SGD(task.parameters(), 0.1)
        task(images, torch.tensor([0, 1, 2, 3]))['loss'].backward()
        gradients = [p.grad.clone() for p in task.parameters()]
        optimizer.step()
        assert not any(torch.equal(layer.act_basis, before[key]) for key, layer in quantized_layers(own).items())
        results.append([*gradients, *own.state_dict().values()])
    for a, b in zip(*results):
        torch.testing.assert_close(a, b)


@pytest.mark.slow
def test_resume_is_exact_bases_included(tmp_path):
    """A second run goes on from the first epoch of another: the same weights and bases."""
    data = make_pictures(tmp_path / 'data', train_each=4)
    settings = dict(model='rs_resnet18_w2a2', model_args=(), batch_size=4, progressive=0., opt='sgd')
    run(data, tmp_path / 'whole', epochs=2, sched='step', **settings)
    for epochs_in_a_call in (1, 2):
        stop_after(epochs_in_a_call, data, tmp_path / 'parts', settings)
    whole, parts = (load_checkpoint(tmp_path / name / 'last.pth')['state_dict'] for name in ('whole', 'parts'))
    assert any(key.endswith('act_basis') for key in whole)
    for key, value in whole.items():
        assert torch.equal(value, parts[key]), key


def stop_after(epochs, data, output, settings):
    """Run, or go on, until `epochs` epochs are done, as a signal would stop it."""
    from unittest import mock

    from rs_timm.training.loop import Trainer
    close = Trainer._close_epoch

    def closing(self, results):
        close(self, results)
        if self.position.epoch == epochs < self.recipe.epochs:
            raise KeyboardInterrupt

    with mock.patch.object(Trainer, '_close_epoch', closing):
        try:
            run(data, output, resume=output.exists(), epochs=2, sched='step', **settings)
        except KeyboardInterrupt:
            assert epochs == 1
