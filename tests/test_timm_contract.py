"""rs_* models are timm models: what timm asks of a model, with the stock network that `extract` gives as the oracle."""
import inspect
import warnings

import pytest
import timm
import torch
import torch.fx.experimental.optimization
from timm.models import FeatureInfo, get_pretrained_cfg, group_parameters
from timm.optim import create_optimizer_v2, param_groups_layer_decay
from timm_version import OLD_TIMM
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

import rs_timm
from rs_timm.layers import switchable_layers

SIZES = (64, 48, 32)
SMALL = ('rs_resnet18', 'rs_mobilenetv2')
MODELS = ('rs_resnet18', 'rs_resnet50', 'rs_mobilenetv2')
ALL = ('rs_resnet18', 'rs_resnet34', 'rs_resnet50', 'rs_resnet101', 'rs_mobilenetv2', 'rs_efficientnet_lite0',
       'rs_efficientnet_lite1')
LQ = ('rs_resnet18_w2a2', 'rs_resnet18_w2a32', 'rs_resnet50_w2a2', 'rs_resnet50_w2a32')  # test_quantization_models
STOCK = {name: name.removeprefix('rs_') for name in ALL[:4]} | {
    'rs_mobilenetv2': 'mobilenetv2_100', **{name: name.replace('rs_', 'tf_') for name in ALL[5:]}}


def create(name='rs_resnet18', **kwargs):
    return timm.create_model(name, **{'resolutions': SIZES, 'num_classes': 7, **kwargs})


def image(size, batch=2, channels=3):
    return torch.randn(batch, channels, size, size)


def equal(a, b):
    """`torch.equal` for tensors, sequences and dicts of tensors."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key]) for key in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(equal, a, b))
    return torch.equal(a, b)


# Forward and backward

@pytest.mark.parametrize('name', ALL)
def test_stock_architecture(name):
    """Same parameters as the stock network, but for the private sets; in every set the same parameters."""
    with torch.device('meta'):
        model, stock = timm.create_model(name), timm.create_model(STOCK[name])
    expected = {}
    bns = {key for key, module in stock.named_modules() if isinstance(module, _BatchNorm)}
    for key, value in stock.state_dict().items():
        layer, _, tensor = key.rpartition('.')
        names = [f'{layer}.{r}.{tensor}' for r in model.resolutions] if layer in bns else [key]
        expected.update(dict.fromkeys(names, value.shape))
    assert {key: value.shape for key, value in model.state_dict().items()} == expected


@pytest.mark.parametrize('name', MODELS)
def test_forward_equals_the_extracted_network(name, random_statistics):
    model = random_statistics(create(name))
    for size in (*SIZES, 40, 72, 24):
        x = image(size)
        plain = rs_timm.extract(model, size)
        assert type(plain) is type(timm.create_model(STOCK[name]))
        assert plain.pretrained_cfg['architecture'] == STOCK[name]
        assert torch.equal(model(x), plain(x))
        assert torch.equal(model.forward_features(x), plain.forward_features(x))
        features = plain.forward_features(x)
        assert torch.equal(
            model.forward_head(features, pre_logits=True), plain.forward_head(features, pre_logits=True))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('size', SIZES)
def test_backward_gives_every_parameter_a_gradient(name, size, random_statistics):
    model = random_statistics(create(name)).train()
    plain = rs_timm.extract(model, size)
    x = image(size, batch=4)
    for network in (model, plain):
        torch.manual_seed(0)
        network(x).square().mean().backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    own = dict(model.named_parameters())
    for key, p in plain.named_parameters():
        layer, _, tensor = key.rpartition('.')
        mine = own[key] if key in own else own[f'{layer}.{size}.{tensor}']
        assert torch.equal(mine.grad, p.grad), key
    bns = [bn for layer in switchable_layers(model) for r, bn in layer.items() if r != str(size)]
    idle = [p for bn in bns for p in bn.parameters()]
    assert len(idle) == 2 * 2 * len(switchable_layers(model))
    assert all((p.grad == 0).all() for p in idle)


def test_training_changes_the_statistics_of_the_set_in_use_alone():
    model = create().train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model(image(48, batch=4))
    changed = {key.split('.')[-2] for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {'48'}


# Optimizers: a set that a step did not use stays exactly as it is

def sets_of(model):
    return {r: [t.clone() for layer in switchable_layers(model) for t in layer[str(r)].state_dict().values()]
            for r in model.resolutions}


def moved(before, after):
    return {r for r in before if not equal(before[r], after[r])}


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)


def backward(model, size):
    model(image(size, batch=4)).square().mean().backward()


def steps(model, optimizer, *used, **zero_grad):
    """A step for each of `used`, sizes whose gradients are added up: their sets move, and no other."""
    for sizes in used:
        before = sets_of(model)
        for size in sizes:
            backward(model, size)
        optimizer.step()
        optimizer.zero_grad(**zero_grad)
        assert moved(before, sets_of(model)) == set(sizes)


TIMM_OPTIMIZERS = ('momentum', 'adamw', 'lamb', 'rmsproptf', 'nadamw', 'lion', 'adafactor', 'lookahead_sgd', 'muon')


@pytest.mark.parametrize('make', [sgd, adamw], ids=['sgd', 'adamw'])
@pytest.mark.parametrize('set_to_none', [True, False])
def test_idle_sets_neither_drift_nor_decay(make, set_to_none):
    """Momentum of an earlier step must not move a set either; of accumulated gradients all move that had one."""
    model = create().train()
    steps(model, make(model), (64,), (32,), (48,), (32,), (32,), (64,), (48,), (64, 32), (48, 48), (32, 64),
          (64, 48, 32), set_to_none=set_to_none)


@pytest.mark.parametrize('opt', TIMM_OPTIMIZERS)
def test_idle_sets_under_timms_optimizers(opt):
    model = rs_timm.switchable('test_resnet', SIZES, num_classes=7).train()  # small: muon computes in bfloat16
    optimizer = create_optimizer_v2(model, opt=opt, lr=1e-3, weight_decay=0.1, filter_bias_and_bn=False)
    steps(model, optimizer, (64,), (32,), (48,), (32,), (64,))


def test_one_backward_through_several_resolutions_moves_them_all():
    model = create().train()
    optimizer = sgd(model)
    for sizes in ((64, 32), (48, 64), SIZES):
        before = sets_of(model)
        optimizer.zero_grad()
        sum(model(image(size, batch=4)).square().mean() for size in sizes).backward()
        optimizer.step()
        assert moved(before, sets_of(model)) == set(sizes)


def test_a_set_moves_as_in_a_network_of_its_own():
    """The steps of one set are those of the plain network, whatever happened to the others in between."""
    model = create().train()
    for layer in switchable_layers(model):
        layer.requires_grad_(True)
    for name, p in model.named_parameters():
        p.requires_grad_('.64.' in name or '.32.' in name)  # shared weights stay
    plain = rs_timm.extract(model, 64)
    for module in plain.modules():
        for p in module.parameters(recurse=False):
            p.requires_grad_(isinstance(module, _BatchNorm))
    optimizers = sgd(model), sgd(plain)
    for _ in range(3):
        x = image(64, batch=4)
        for network, optimizer in zip((model, plain), optimizers):
            optimizer.zero_grad()
            network(x).square().mean().backward()
            optimizer.step()
        optimizers[0].zero_grad()
        backward(model, 32)
        optimizers[0].step()
    assert equal(list(rs_timm.extract(model, 64).state_dict().values()), list(plain.state_dict().values()))


def test_idle_sets_under_a_gradient_scaler():
    """Also after a step that the scaler skipped since a gradient was infinite."""
    model = create().train()
    optimizer, scaler = sgd(model), torch.amp.GradScaler('cpu', init_scale=4.)
    for size, spoiled in ((64, False), (32, True), (48, False), (64, True), (32, False)):
        before = sets_of(model)
        optimizer.zero_grad()
        scaler.scale(model(image(size, batch=4)).square().mean()).backward()
        if spoiled:
            next(model.parameters()).grad.fill_(float('inf'))
        scaler.step(optimizer)
        scaler.update()
        parameters = {r: ts for r, ts in sets_of(model).items() if r != size}
        assert equal(parameters, {r: ts for r, ts in before.items() if r != size})


def test_gradients_that_were_thrown_away_leave_no_trace():
    model = create().train()
    optimizer = sgd(model)
    backward(model, 64)
    optimizer.zero_grad()  # no step
    steps(model, optimizer, (32,))


@pytest.mark.parametrize('keyword', [True, False])
def test_idle_sets_when_the_step_runs_a_closure(keyword):
    model = create().train()
    optimizer = sgd(model)
    for size in (64, 32, 48):
        before = sets_of(model)

        def closure(size=size):
            optimizer.zero_grad()
            loss = model(image(size, batch=4)).square().mean()
            loss.backward()
            return loss

        assert optimizer.step(closure=closure) if keyword else optimizer.step(closure)
        assert moved(before, sets_of(model)) == {size}


def test_a_closure_adds_to_gradients_that_are_there():
    """As Lightning steps while it accumulates: every set that had a gradient since the last step moves."""
    model = create().train()
    for optimizer in (sgd(model), torch.optim.LBFGS(model.parameters(), lr=0.01, max_iter=2)):
        before = sets_of(model)
        optimizer.zero_grad()
        backward(model, 64)
        optimizer.step(lambda: backward(model, 48) or torch.zeros(()))
        assert moved(before, sets_of(model)) >= {64, 48}
        assert 32 not in moved(before, sets_of(model))


class Adam:
    """An optimizer that is none of torch's, and so runs no hooks; gradients stay, as zeros, as in fastai."""

    def __init__(self, model):
        self.state = {p: (torch.zeros_like(p), torch.zeros_like(p)) for p in model.parameters()}

    @torch.no_grad()
    def step(self):
        for p, (mean, square) in self.state.items():
            if p.grad is not None:
                mean.lerp_(p.grad, 0.1)
                square.lerp_(p.grad.square(), 0.01)
                p.mul_(0.999).sub_(0.01 * mean / (square.sqrt() + 1e-5))

    def zero_grad(self):
        for p in self.state:
            if p.grad is not None:
                p.grad.zero_()


def test_idle_sets_hold_still_under_optimizers_without_hooks():
    model = create().train()
    rs_timm.layers.set_idle_gradients(model, 'none')  # 'auto' gives zeros in the first backward pass
    steps(model, Adam(model), (64,), (64,), (48,), (32, 64), (48,))


@pytest.mark.parametrize('idle_gradients, without', [('auto', (0, 2)), ('none', (2, 2)), ('zero', (0, 0))])
def test_who_gets_a_gradient_is_a_choice(idle_gradients, without):
    model = create().train()
    rs_timm.layers.set_idle_gradients(model, idle_gradients)
    for sets in without:  # after the first backward pass, and a later one
        model.zero_grad()
        backward(model, 48)
        missing = [key for key, p in model.named_parameters() if p.grad is None]
        assert len(missing) == sets * 2 * len(switchable_layers(model))
    with pytest.raises(ValueError, match='auto, none, zero'):
        rs_timm.layers.set_idle_gradients(model, 'some')


def test_two_optimizers_step_what_is_theirs():
    model = create().train()
    norms = {p for layer in switchable_layers(model) for p in layer.parameters()}
    optimizers = (torch.optim.SGD(norms, 0.1, 0.9, weight_decay=0.1),
                  torch.optim.AdamW([p for p in model.parameters() if p not in norms], 0.01))
    for sizes in ((64,), (32, 48), (64,)):
        before, shared = sets_of(model), model.conv1.weight.detach().clone()
        for size in sizes:
            backward(model, size)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        assert moved(before, sets_of(model)) == set(sizes) and not torch.equal(shared, model.conv1.weight)


def test_other_parameters_of_the_optimizer_are_not_touched():
    model, other = create().train(), nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([*model.parameters(), other], lr=0.1, weight_decay=0.5)
    other.grad = torch.zeros(3)
    backward(model, 64)
    optimizer.step()
    torch.testing.assert_close(other.detach(), torch.full((3,), 0.95))


def test_frozen_parameters_stay_without_gradient():
    model = create().train().requires_grad_(False)
    model.get_classifier().requires_grad_(True)
    backward(model, 48)
    assert {key for key, p in model.named_parameters() if p.grad is not None} == {'fc.weight', 'fc.bias'}


def test_layer_decay_and_groups():
    """Private sets belong to the group of the layer that they replace, and escape weight decay as a BatchNorm does."""
    model, stock = create(), timm.create_model('resnet18', num_classes=7)
    for coarse in (True, False):
        groups, expected = (group_parameters(m, m.group_matcher(coarse=coarse), reverse=True) for m in (model, stock))
        assert set(groups) == set(model.state_dict()) - {k for k, _ in model.named_buffers()}
        bns = {key for key, module in stock.named_modules() if isinstance(module, _BatchNorm)}
        for key, group in expected.items():
            layer, _, tensor = key.rpartition('.')
            for own in [f'{layer}.{r}.{tensor}' for r in SIZES] if layer in bns else [key]:
                assert groups[own] == group
    decayed = [p for g in create_optimizer_v2(model, 'adamw', weight_decay=0.1).param_groups if g['weight_decay']
               for p in g['params']]
    assert all(p.ndim > 1 for p in decayed) and decayed
    by_layer = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    assert sum(len(g['params']) for g in by_layer) == len(list(model.parameters()))
    assert model.no_weight_decay() == stock.no_weight_decay() if hasattr(stock, 'no_weight_decay') else True


# Constructor

@pytest.mark.parametrize('name', SMALL)
@pytest.mark.parametrize('kwargs', [
    dict(in_chans=1), dict(in_chans=5), dict(num_classes=0), dict(global_pool='max'), dict(global_pool='avgmax'),
    dict(num_classes=0, global_pool=''), dict(output_stride=16), dict(output_stride=8), dict(drop_rate=0.3),
    dict(drop_path_rate=0.2), dict(act_layer='silu'), dict(scriptable=True), dict(exportable=True),
    dict(dtype=torch.float64),
], ids=str)
def test_keywords_mean_what_they_mean_in_timm(name, kwargs, random_statistics):
    model = random_statistics(create(name, **kwargs))
    stock = timm.create_model(STOCK[name], **{'num_classes': 7, **kwargs}).eval()
    plain = rs_timm.extract(model, 48)
    stock.load_state_dict(plain.state_dict(), strict=True)
    x = image(48, channels=kwargs.get('in_chans', 3)).to(kwargs.get('dtype', torch.float32))
    y = model(x)
    assert torch.equal(y, stock(x)) and torch.equal(y, plain(x))
    assert y.dtype == kwargs.get('dtype', torch.float32)


def test_drop_path_is_there_and_acts_in_training():
    model, stock = create(drop_path_rate=0.5), timm.create_model('resnet18', drop_path_rate=0.5)
    rates = [[m.drop_prob for m in network.modules() if hasattr(m, 'drop_prob')] for network in (model, stock)]
    assert rates[0] == rates[1] and max(rates[0]) == 0.5


def test_zero_initialised_gammas_survive_in_every_set():
    model = create(zero_init_last=True)
    for r in SIZES:
        assert (model.layer1[0].bn2[str(r)].weight == 0).all()


@pytest.mark.parametrize('name', (*ALL, 'rs_switchable'))
def test_an_unknown_keyword_is_a_type_error(name):
    with pytest.raises(TypeError, match='no_such_keyword'):
        timm.create_model(name, no_such_keyword=1)


@pytest.mark.parametrize('resolutions', [(), (0,), (-32, 64), (64, 64), (64.5,), ('a',), True, None], ids=repr)
@pytest.mark.parametrize('name', ['rs_resnet18', 'rs_mobilenetv2', 'rs_switchable'])
def test_bad_resolutions_are_refused(name, resolutions):
    if resolutions is None:  # timm drops keywords that are None
        assert timm.create_model(name, resolutions=None).resolutions == (224, 192, 160, 128, 96)
        return
    with pytest.raises(ValueError, match='resolution'):
        timm.create_model(name, resolutions=resolutions)


def test_one_resolution_is_a_plain_network(random_statistics):
    model = random_statistics(create(resolutions=48))
    x = image(80)
    assert torch.equal(model(x), rs_timm.extract(model, 48)(x))


@pytest.mark.parametrize('name', MODELS)
def test_meta_device_then_to_empty(name, random_statistics):
    model = create(name, device='meta')
    assert {p.device.type for p in model.parameters()} == {'meta'}
    source = random_statistics(create(name))
    model.to_empty(device='cpu').load_state_dict(source.state_dict())
    x = image(40)
    assert torch.equal(model.eval()(x), source(x))
    model = create(name, device='meta')
    model.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(model.eval()(x), source(x))


def test_meta_device_traces_shapes():
    with torch.device('meta'):
        model = create()
        assert model(torch.empty(2, 3, 48, 48)).shape == (2, 7)
        assert model.eval()(torch.empty(2, 3, 40, 40)).shape == (2, 7)


def test_double_and_half_precision_reach_interpolated_sets(random_statistics):
    model = random_statistics(create())
    model(image(40))
    for dtype in (torch.float64, torch.bfloat16, torch.float32):
        assert model.to(dtype)(image(40).to(dtype)).dtype == dtype


# Head

@pytest.mark.parametrize('name', SMALL)
def test_reset_classifier(name, random_statistics):
    model = random_statistics(create(name))
    plain = rs_timm.extract(model, 48)
    x = image(48)
    for args in ((0,), (0, 'max'), (0, ''), (5, 'avg')):
        torch.manual_seed(1)
        model.reset_classifier(*args)
        torch.manual_seed(1)
        plain.reset_classifier(*args)
        assert torch.equal(model(x), plain(x))
        assert model.num_classes == args[0]
    assert model.get_classifier().out_features == 5
    assert model.num_features == plain.num_features and model.head_hidden_size == plain.head_hidden_size


# Registry

def test_the_registry_lists_what_there_is():
    dense = {f"rs_refinenet_{name.removeprefix('rs_')}" for name in ALL[:5]} - {'rs_refinenet_resnet34'}
    assert set(timm.list_models('rs_*')) == {*ALL, *LQ, *dense, 'rs_switchable'}
    assert set(timm.list_models('rs_*', module='rs_resnet')) == set(ALL[:4])


TAGGED = [name for name in timm.list_models('rs_*', include_tags=True) if '.' in name]


@pytest.mark.parametrize('tagged', TAGGED)
def test_default_cfgs_describe_the_model(tagged):
    cfg = get_pretrained_cfg(tagged)
    model = timm.create_model(tagged, resolutions=SIZES, device='meta')
    assert cfg is not None and model.default_cfg['architecture'] == tagged.partition('.')[0]
    assert model.num_classes == cfg.num_classes
    state = model.state_dict()
    assert f'{cfg.first_conv}.weight' in state
    assert f'{cfg.classifier}.weight' in state or not cfg.num_classes
    with torch.device('meta'):
        features = model.eval().forward_features(torch.empty(1, *cfg.input_size))
    assert features.shape[-2:] == tuple(cfg.pool_size) and features.shape[1] == model.num_features


@pytest.mark.parametrize('name', ALL)
def test_signatures_and_docstrings(name):
    fn = timm.model_entrypoint(name)
    assert fn.__doc__ and list(inspect.signature(fn).parameters) == ['pretrained', 'kwargs']
    assert fn.__name__ == name


# Features

KINDS = [dict(), dict(feature_cls='list'), dict(feature_cls='dict'), dict(feature_cls='hook'),
         dict(feature_cls='getter'), dict(feature_cls='fx'), dict(out_indices=(1, 3)), dict(output_stride=16)]
FEATURES = [(name, kwargs) for name in SMALL for kwargs in KINDS
            if not (name == 'rs_mobilenetv2' and kwargs.get('feature_cls') in ('list', 'dict'))]  # nor has stock timm
FEATURES += [('rs_resnet50', dict()), ('rs_resnet50', dict(feature_cls='fx'))]


@pytest.mark.parametrize('name, kwargs', FEATURES, ids=str)
def test_features_only(name, kwargs, random_statistics):
    features = random_statistics(timm.create_model(name, features_only=True, resolutions=SIZES, **kwargs))
    stock = timm.create_model(STOCK[name], features_only=True, **kwargs).eval()
    assert features.feature_info.channels() == stock.feature_info.channels()
    assert features.feature_info.reduction() == stock.feature_info.reduction()
    assert features.feature_info.module_name() == stock.feature_info.module_name()
    fx = kwargs.get('feature_cls') == 'fx'
    for size in (64, 32, 40):
        rs_timm.set_resolution(features, None)
        x = image(size)
        extracted = rs_timm.extract(features, size).state_dict() if not fx else plain_state(features, size)
        stock.load_state_dict(extracted, strict=True)
        assert equal(features(x), stock(x))
    for r in SIZES:  # a pinned one holds
        rs_timm.set_resolution(features, r)
        stock.load_state_dict(plain_state(features, r), strict=True)
        assert equal(features(image_of(48)), stock(image_of(48)))


def image_of(size):
    return torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))


def plain_state(model, resolution):
    """State dict of the plain network, made by hand from the sets."""
    layers = {key: m for key, m in model.named_modules() if isinstance(m, rs_timm.SwitchableBatchNorm2d)}
    state = {key: value for key, value in model.state_dict().items()
             if not any(key.startswith(f'{layer}.') for layer in layers)}
    for key, layer in layers.items():
        state.update({f'{key}.{name}': value for name, value in layer.set_for(resolution).state_dict().items()})
    return state


@pytest.mark.parametrize('name, kwargs', FEATURES, ids=str)
def test_features_train(name, kwargs):
    features = timm.create_model(name, features_only=True, resolutions=SIZES, **kwargs).train()
    out = features(image(48, batch=4))
    out = list(out.values()) if isinstance(out, dict) else out
    sum(o.square().mean() for o in out).backward()
    without = {key for key, p in features.named_parameters() if p.grad is None}
    stock = timm.create_model(STOCK[name], features_only=True, **kwargs)
    out = stock(image(48, batch=4))
    sum(o.square().mean() for o in (out.values() if isinstance(out, dict) else out)).backward()
    unused = {key.rpartition('.')[0] for key, p in stock.named_parameters() if p.grad is None}  # hooks keep the head
    assert all(any(key.startswith(f'{layer}.') for layer in unused) for key in without)


@pytest.mark.parametrize('name', MODELS)
def test_forward_intermediates(name, random_statistics):
    model = random_statistics(create(name))
    x = image(48)
    plain = rs_timm.extract(model, 48)
    assert equal(model.forward_intermediates(x), plain.forward_intermediates(x))
    final, intermediates = model.forward_intermediates(x)
    info = FeatureInfo(model.feature_info, len(model.feature_info))
    assert [i.shape[1] for i in intermediates] == info.channels()
    assert torch.equal(final, model.forward_features(x))
    options = dict(indices=[-1], intermediates_only=True), dict(indices=2), dict(stop_early=True, indices=[1])
    for kwargs in options:
        assert equal(model.forward_intermediates(x, **kwargs), plain.forward_intermediates(x, **kwargs))


@pytest.mark.parametrize('name', SMALL)
def test_prune_intermediate_layers(name, random_statistics):
    if name == 'rs_mobilenetv2' and OLD_TIMM:
        pytest.skip('the stock network fails, too')
    model = random_statistics(create(name))
    plain = rs_timm.extract(model, 48)
    assert model.prune_intermediate_layers([1, 2]) == plain.prune_intermediate_layers([1, 2])
    x = image(48)
    assert equal(model.forward_intermediates(x, indices=[1, 2]), plain.forward_intermediates(x, indices=[1, 2]))
    assert torch.equal(model.forward_features(x), plain.forward_features(x))


# Tracing

TRACER = dict(
    leaf_modules=timm.models.get_notrace_modules(),
    autowrap_functions=timm.models.get_notrace_functions(),
    param_shapes_constant=True,
)


def fx_model(model):
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=TRACER)
    return create_feature_extractor(
        model, train_return_nodes=[train_nodes[-1]], eval_return_nodes=[eval_nodes[-1]], tracer_kwargs=TRACER)


@pytest.mark.parametrize('name', MODELS)
def test_fx_forward_and_backward(name, random_statistics):
    model = random_statistics(create(name))
    model.set_resolution(48)
    x = image(48)
    traced = fx_model(model)
    assert torch.equal(next(iter(traced(x).values())), model(x))
    traced.train()
    next(iter(traced(image(48, batch=4)).values())).mean().backward()
    assert [key for key, p in traced.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('trace', [
    lambda model: create_feature_extractor(model, {'fc': 'logits'}),
    lambda model: create_feature_extractor(model, {'fc': 'logits'}, tracer_kwargs=TRACER),
    torch.fx.symbolic_trace,
    torch.fx.experimental.optimization.fuse,
], ids=['torchvision', 'torchvision-leaf', 'torch.fx', 'fuse'])
def test_a_traced_graph_goes_on_switching(trace, random_statistics):
    model = random_statistics(create())
    traced = trace(model)
    for r, pin in ((64, None), (40, None), (32, None), (40, 40), (64, 32)):
        rs_timm.set_resolution(traced, pin)
        x = image(r)
        y = traced(x)
        assert torch.equal(y['logits'] if isinstance(y, dict) else y, rs_timm.extract(model, pin or r)(x))


def test_what_freezes_one_size_says_which(random_statistics):
    model = random_statistics(create())
    with torch.no_grad():
        model(image(48))
        for trace in (torch.jit.script, lambda m: torch.jit.trace(m, image(48), check_trace=False)):
            with pytest.warns(UserWarning, match='torch.jit.* keeps the BatchNorm sets for 48 px'):
                frozen = trace(model)
        with pytest.raises(ValueError, match='torch.jit.trace keeps the set of one size'):
            rs_timm.set_resolution(frozen, 32)
        model.set_resolution(48)  # chosen by the user: nothing to say
        with warnings.catch_warnings():
            warnings.simplefilter('error', UserWarning)
            torch.jit.trace(model, image(48), check_trace=False)
    plain = torch.fx.symbolic_trace(rs_timm.extract(model, 48))
    with pytest.raises(ValueError, match='a graph keeps the set of the size it was traced at'):
        rs_timm.set_resolution(plain, 32)


@pytest.mark.parametrize('name', ['rs_resnet18', *(pytest.param(name, marks=pytest.mark.slow) for name in MODELS[1:])])
def test_torchscript(name, random_statistics, tmp_path):
    model = random_statistics(create(name, scriptable=True))
    model.set_resolution(48)
    scripted = torch.jit.script(model)
    x = image(48)
    torch.testing.assert_close(scripted(x), rs_timm.extract(model, 48)(x), rtol=1e-4, atol=1e-5)
    scripted.save(str(tmp_path / 'model.pt'))
    loaded = torch.jit.load(str(tmp_path / 'model.pt'))
    for network in (scripted, loaded):
        for r in SIZES:
            rs_timm.set_resolution(network, r)
            x = image(r)
            torch.testing.assert_close(network(x), rs_timm.extract(model, r)(x), rtol=1e-4, atol=1e-5)
        with pytest.raises(ValueError, match='64, 48, 32.*not 40'):
            rs_timm.set_resolution(network, 40)
    with pytest.raises(ValueError, match='extract'):
        model.set_resolution(40)
        torch.jit.script(model)


def test_scripting_an_fx_model(random_statistics):
    model = random_statistics(create(scriptable=True))
    model.set_resolution(32)
    scripted = torch.jit.script(fx_model(model))
    x = image(32)
    torch.testing.assert_close(next(iter(scripted(x).values())), model(x), rtol=1e-4, atol=1e-5)


def test_scripted_features(random_statistics):
    features = timm.create_model(
        'rs_resnet18', features_only=True, feature_cls='fx', resolutions=SIZES, scriptable=True)
    features = random_statistics(features)
    rs_timm.set_resolution(features, 48)
    scripted = torch.jit.script(features)
    x = image(48)
    for a, b in zip(scripted(x), features(x)):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
