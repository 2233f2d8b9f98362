"""A switchable network inside everything that people wrap around a network."""
import copy
import io
import pickle
import threading
import warnings
from contextlib import nullcontext

import pytest
import timm
import torch
import torch.distributed as dist
import torch.distributed.fsdp
from timm.layers import convert_sync_batchnorm
from timm.utils import ModelEmaV2, ModelEmaV3
from timm_version import OLD_TIMM
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint
from two_processes import run_two

import rs_timm
from rs_timm.layers import switchable_layers

SIZES = (64, 48, 32)
MODELS = ('rs_resnet18', 'rs_mobilenetv2')


def create(name='rs_resnet18', **kwargs):
    return timm.create_model(name, **{'resolutions': SIZES, 'num_classes': 5, **kwargs})


@pytest.fixture
def model(random_statistics):
    return random_statistics(create())


def image(size, batch=2):
    return torch.randn(batch, 3, size, size)


def follows(network, reference, sizes=(64, 32, 40)):
    """Whether `network` equals the plain networks that `reference` has, at sizes with a set and without."""
    for size in sizes:
        x = image(size)
        with torch.no_grad():
            torch.testing.assert_close(network(x), rs_timm.extract(reference, size)(x), rtol=1e-5, atol=1e-5)


# Copies

@pytest.mark.parametrize('copy_of', [
    copy.deepcopy,
    lambda m: pickle.loads(pickle.dumps(m)),
    lambda m: torch.load(save_to_memory(m), weights_only=False),
    lambda m: copy.deepcopy(copy.deepcopy(m)),
], ids=['deepcopy', 'pickle', 'torch.save', 'twice'])
@pytest.mark.parametrize('make', [
    create,
    lambda: rs_timm.switchable('test_resnet', SIZES, num_classes=5),
    lambda: rs_timm.convert_switchable_bn(timm.create_model('test_resnet', num_classes=5), SIZES),
], ids=['rs_resnet18', 'switchable', 'convert'])
def test_copies_are_equal_and_independent(make, copy_of, random_statistics):
    model = random_statistics(make())
    rs_timm.set_resolution(model, 40)
    twin = copy_of(model)
    assert type(twin) is type(model) and rs_timm.get_resolution(twin) == 40
    rs_timm.set_resolution(twin, 48)
    assert rs_timm.get_resolution(model) == 40
    rs_timm.set_resolution(model, None)
    follows(model, model)
    follows(twin, model, sizes=(48,))
    random_statistics(twin, seed=1)
    rs_timm.set_resolution(twin, None)
    follows(twin, twin)
    follows(model, model)


def save_to_memory(model):
    buffer = io.BytesIO()
    torch.save(model, buffer)
    buffer.seek(0)
    return buffer


def test_a_copy_made_between_backward_and_step_trains_on():
    model = create().train()
    model(image(48)).mean().backward()
    twin = copy.deepcopy(model)
    optimizer = torch.optim.SGD(twin.parameters(), 0.1, weight_decay=0.1)
    twin(image(32)).mean().backward()
    optimizer.step()
    assert not torch.equal(twin.conv1.weight, model.conv1.weight)


# Averages of weights

@pytest.mark.parametrize('update', ['v3', 'v3-no-foreach', 'v2', 'swa', 'data', 'load'])
def test_an_average_sees_new_weights_at_unseen_sizes_too(update, model, random_statistics):
    """Interpolated sets are cached: an update in place must not leave an old one behind."""
    if update == 'swa':
        ema = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    elif update == 'v2':
        ema = ModelEmaV2(model, decay=0.5)
    else:
        ema = ModelEmaV3(model, decay=0.5, foreach=update != 'v3-no-foreach')
    network = ema.module
    follows(network, model)
    rs_timm.set_resolution(network, 40)
    for seed in range(1, 3):
        random_statistics(model, seed)
        if update == 'data':
            for mine, theirs in zip(network.state_dict().values(), model.state_dict().values()):
                mine.data.copy_(theirs)
        elif update == 'load':
            network.load_state_dict(model.state_dict())
        else:
            ema.update_parameters(model) if update == 'swa' else ema.update(model)
        network.eval()  # as any evaluation begins
        x = image(40)
        reference = copy.deepcopy(network)  # copies drop the cache
        with torch.no_grad():
            assert torch.equal(network(x), reference(x))


def test_statistics_made_anew_for_one_size_are_missed_at_the_others():
    model = create()
    loader = [image(48) for _ in range(2)]
    torch.optim.swa_utils.update_bn(loader, model.train())
    with pytest.warns(UserWarning, match='for 64, 32 px got no picture.*recalibrate'):
        model.eval()
    torch.optim.swa_utils.update_bn([image(size) for size in SIZES], model.train())
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model.eval()


def test_a_fresh_average_equals_its_source(model):
    ema = ModelEmaV3(model)
    follows(ema, model)
    ema.module.set_resolution(32)
    assert model.get_resolution() is None


def test_weights_made_in_inference_mode(random_statistics):
    with torch.inference_mode():
        model = random_statistics(create())
        follows(model, model)
        random_statistics(model, 1).eval()
        follows(model, model)


def test_a_set_made_in_inference_mode_serves_gradients_later(model):
    with torch.inference_mode():
        model(image(40))
        model.set_resolution(56)
    for size in (40, 56):
        x = image(size).requires_grad_()
        model(x).sum().backward()
        assert x.grad.abs().sum() > 0


# Distributed

SCENARIOS = {  # name -> the sizes of each step, for both processes, and options of DDP
    'resolution a step': (([[64], [32], [48], [32]],) * 2, {}),
    'bucket views': (([[64], [32], [48], [32]],) * 2, dict(gradient_as_bucket_view=True)),
    'resolution a rank': (([[64], [32], [48]], [[32], [32], [64]]), {}),
    'accumulation': (([[64, 32], [48, 48], [32, 64]],) * 2, {}),
}


def ddp_worker(rank, folder):
    results = {name: ddp_train(sizes[rank], options) for name, (sizes, options) in SCENARIOS.items()}
    torch.save(results, f'{folder}/{rank}.pt')


def ddp_train(steps, options):
    """Train; return the sets that moved in each step, and the parameters."""
    torch.manual_seed(0)
    model = DistributedDataParallel(create(), **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    moved = []
    for step, sizes in enumerate(steps):
        before = {key: p.detach().clone() for key, p in model.named_parameters()}
        optimizer.zero_grad(set_to_none=step % 2 == 0)
        for size in sizes[:-1]:
            with model.no_sync():
                model(image(size)).square().mean().backward()
        model(image(sizes[-1])).square().mean().backward()
        optimizer.step()
        changed = {key.split('.')[-2] for key, p in model.named_parameters() if not torch.equal(p, before[key])}
        moved.append({size for size in SIZES if str(size) in changed})
    rs_timm.set_resolution(model, 40)
    model.eval()(image(40))
    return dict(moved=moved, parameters=dict(model.module.state_dict()))


def test_ddp(tmp_path):
    """Without find_unused_parameters; idle sets stay, the processes agree."""
    run_two(ddp_worker, tmp_path)
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in range(2))
    for name, (sizes, _) in SCENARIOS.items():
        used = [{*a, *b} for a, b in zip(*sizes)]
        assert first[name]['moved'] == second[name]['moved'] == used, name
        for key, value in first[name]['parameters'].items():
            if 'running' not in key and 'num_batches' not in key:  # those are broadcast at the next forward
                assert torch.equal(value, second[name]['parameters'][key]), (name, key)


def test_fully_sharded(tmp_path):
    """FSDP2 steps parameters of its own, which no mark reaches: idle sets must have no gradient at all."""
    fully_shard = getattr(torch.distributed.fsdp, 'fully_shard', None) or pytest.skip('torch 2.6')
    dist.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    try:
        model = rs_timm.switchable('test_resnet', SIZES).train()
        fully_shard(model, mesh=dist.device_mesh.init_device_mesh('cpu', (1,)))
        optimizer = torch.optim.AdamW(model.parameters(), 0.01, weight_decay=0.1)
        for size in (64, 32, 64):
            before = {key: p.full_tensor().detach().clone() for key, p in model.named_parameters()}
            optimizer.zero_grad()
            model(image(size)).square().mean().backward()
            optimizer.step()
            changed = {key for key, p in model.named_parameters() if not torch.equal(p.full_tensor(), before[key])}
            assert {int(r) for r in map(str, SIZES) if any(f'.{r}.' in key for key in changed)} == {size}
    finally:
        dist.destroy_process_group()


def test_data_parallel_replicas(model):
    """DataParallel needs CUDA; what it does is replicate modules by this hook, and run the copies in threads."""
    model(image(40))
    follows(nn.DataParallel(model), model)  # without CUDA it calls the module
    replica = copy.copy(model)
    replica._modules = {}

    def replicate(module):
        twin = module._replicate_for_data_parallel()
        for name, child in module._modules.items():
            twin._modules[name] = None if child is None else replicate(child)
        for name, value in (*module._parameters.items(), *module._buffers.items()):
            setattr(twin, name, None if value is None else value.detach().clone())
        return twin

    replica = replicate(model)
    errors = []

    def run():
        try:
            follows(replica, model)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert errors == []
    rs_timm.set_resolution(nn.DataParallel(model), 32)
    assert model.get_resolution() == 32


def test_data_parallel_gives_zeros_and_they_are_taken_away():
    model = create().train()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    before = copy.deepcopy(model.state_dict())
    for layer in switchable_layers(model):
        layer._replicate_for_data_parallel()
    for key, p in model.named_parameters():
        p.grad = torch.zeros_like(p) if '.48.' in key or '.32.' in key else torch.ones_like(p)
    optimizer.step()
    moved = {key for key, value in model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key, _ in model.named_parameters() if '.48.' not in key and '.32.' not in key}


@pytest.mark.parametrize('name, convert', [
    ('rs_resnet18', nn.SyncBatchNorm.convert_sync_batchnorm),  # it drops the activation of timm's BatchNormAct2d
    ('rs_resnet18', convert_sync_batchnorm),
    ('rs_mobilenetv2', convert_sync_batchnorm),
], ids=['torch', 'timm', 'timm-with-activations'])
def test_sync_bn_conversion(name, convert, random_statistics):
    model = random_statistics(create(name))
    expected = copy.deepcopy(model)
    synced = convert(model).eval()
    bns = [bn for layer in switchable_layers(synced) for bn in layer.children()]
    assert bns and all(isinstance(bn, nn.SyncBatchNorm) for bn in bns)
    assert synced.state_dict().keys() == expected.state_dict().keys()
    follows(synced, expected)
    synced.set_resolution(40)
    x = image(40)
    assert torch.equal(synced(x), expected(x))


def test_sync_bn_networks_can_be_converted(random_statistics):
    plain = nn.SyncBatchNorm.convert_sync_batchnorm(timm.create_model('resnet18', num_classes=5))
    model = random_statistics(rs_timm.convert_switchable_bn(plain, SIZES))
    follows(model, model)


# Feature wrappers

@pytest.mark.parametrize('feature_cls', ['list', 'dict', 'hook', 'getter', 'fx'])
def test_wrappers_without_methods_are_switched_by_the_functions(feature_cls, random_statistics):
    features = timm.create_model('rs_resnet18', features_only=True, feature_cls=feature_cls, resolutions=SIZES)
    random_statistics(features)
    x = image(64)
    outputs = {}
    for r in (64, 48, 40):
        rs_timm.set_resolution(features, r)
        assert rs_timm.get_resolution(features) == r and rs_timm.get_resolutions(features) == SIZES
        out = features(x)
        outputs[r] = list(out.values() if isinstance(out, dict) else out)
    with rs_timm.use_resolution(features, 64):
        out = features(x)
        assert all(map(torch.equal, outputs[64], out.values() if isinstance(out, dict) else out))
    assert rs_timm.get_resolution(features) == 40
    assert not torch.equal(outputs[64][-1], outputs[48][-1])
    assert not torch.equal(outputs[40][-1], outputs[48][-1])


def test_two_models_in_one_are_both_switched(model):
    pair = nn.ModuleList([model, create(resolutions=(64, 32))])
    rs_timm.set_resolution(pair, 32)
    assert [m.get_resolution() for m in pair] == [32, 32]
    with rs_timm.use_resolution(pair, 64):
        assert [m.get_resolution() for m in pair] == [64, 64]
    assert [m.get_resolution() for m in pair] == [32, 32]


def test_a_network_that_calls_another_one_goes_on_at_its_own_size(model, random_statistics):
    other, small = random_statistics(create(), seed=5), image(32)
    expected = {size: rs_timm.extract(network, size) for network, size in ((model, 64), (other, 32))}
    seen = []
    model.layer2.register_forward_pre_hook(lambda module, args: seen.append(other(small)))
    x = image(64)
    assert torch.equal(model(x), expected[64](x))
    assert torch.equal(seen[0], expected[32](small))


# Compilers and exporters

class Counter:
    """A backend that counts the graphs that it is given."""

    def __init__(self):
        self.graphs = 0

    def __call__(self, graph, inputs):
        self.graphs += 1
        return graph.forward


@pytest.fixture
def compiled(model):
    torch._dynamo.reset()
    counter = Counter()
    yield torch.compile(model, backend=counter, fullgraph=True), counter
    torch._dynamo.reset()


def test_compiled_and_pinned_is_one_graph_per_size(model, compiled):
    network, counter = compiled
    for _ in range(2):
        for r in SIZES:
            rs_timm.set_resolution(network, r)
            x = image(r)
            with torch.no_grad():
                assert torch.equal(network(x), rs_timm.extract(model, r)(x))
    assert counter.graphs == len(SIZES)


def test_compiled_and_following_settles(model, compiled):
    """torch may add graphs with dynamic sizes on the way; later rounds add none."""
    network, counter = compiled
    follows(network, model, SIZES)
    follows(network, model, SIZES)
    settled = counter.graphs
    assert settled <= 2 * len(SIZES)
    follows(network, model, SIZES)
    assert counter.graphs == settled


def test_compiled_at_an_unseen_size(model, compiled, random_statistics):
    network, counter = compiled
    rs_timm.set_resolution(network, 40)
    for seed in range(3):  # new weights, the same graph
        random_statistics(model, seed)
        x = image(40)
        with torch.no_grad():
            expected = rs_timm.extract(model, 40)(x)
            assert torch.equal(network(x), expected)
    assert counter.graphs == 1


@pytest.mark.parametrize('pin', [True, pytest.param(False, marks=pytest.mark.slow)])
def test_compiled_training(pin, model, compiled):
    network, counter = compiled
    network.train()
    eager = copy.deepcopy(model).train()
    for size in (64, 32):
        rs_timm.set_resolution(network, size if pin else None)
        x = image(size)
        network.zero_grad()
        eager.zero_grad()
        network(x).square().mean().backward()
        eager(x).square().mean().backward()
        assert torch.equal(model.conv1.weight.grad, eager.conv1.weight.grad)
        assert torch.equal(model.bn1[str(size)].weight.grad, eager.bn1[str(size)].weight.grad)


def test_compiled_training_moves_the_set_in_use_alone(model, compiled):
    network, _ = compiled
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), 0.1, momentum=0.9, weight_decay=0.1)
    for size in (64, 32, 64, 48):
        before = {r: model.bn1[str(r)].weight.detach().clone() for r in SIZES}
        optimizer.zero_grad()
        network(image(size)).square().mean().backward()
        optimizer.step()
        assert {r for r in SIZES if not torch.equal(before[r], model.bn1[str(r)].weight)} == {size}


# Gradient checkpointing

def gradients(model):
    return {key: p.grad.clone() for key, p in model.named_parameters() if p.grad is not None}


def same(a, b):
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=1e-4, atol=1e-6, msg=key)


def twins(network):
    """Two equal networks in training mode."""
    return network.train(), copy.deepcopy(network)


class Blocks(nn.Module):
    """A network, each stage checkpointed."""

    def __init__(self, model, reentrant):
        super().__init__()
        self.model, self.reentrant = model, reentrant

    def forward(self, x):
        m = self.model
        x = m.maxpool(m.act1(m.bn1(m.conv1(x))))
        for stage in (m.layer1, m.layer2, m.layer3, m.layer4):
            x = checkpoint(stage, x, use_reentrant=self.reentrant)
        return m.forward_head(x)


@pytest.mark.parametrize('reentrant', [True, False])
@pytest.mark.parametrize('pins', [True, False])
def test_checkpointed_gradients_while_the_selection_changes(reentrant, pins, random_statistics):
    """Several forwards at different sizes, one backward: every re-run block must take the set of its own forward."""
    plain, checkpointed = twins(random_statistics(create()))
    xs = {size: image(size) for size in SIZES}
    for network in (plain, Blocks(checkpointed, reentrant)):
        loss = 0
        for size, x in xs.items():
            rs_timm.set_resolution(network, size if pins else None)
            loss = loss + network(x).square().mean()
        rs_timm.set_resolution(network, 32 if pins else None)
        if not pins:
            with torch.no_grad():
                network(image(48))
        loss.backward()
    same(gradients(checkpointed), gradients(plain))


@pytest.mark.parametrize('name', MODELS)
@pytest.mark.parametrize('changed', [True, False])
def test_timms_checkpointing(name, changed, random_statistics):
    plain, checkpointed = twins(random_statistics(create(name)))
    checkpointed.set_grad_checkpointing()
    x = image(48, batch=4)
    for network in (plain, checkpointed):
        network.set_resolution(48)
        loss = network(x).square().mean()
        if changed:
            network.set_resolution(64)
        loss.backward()
    same(gradients(checkpointed), gradients(plain))


@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
def test_checkpointed_features(feature_cls, random_statistics):
    if feature_cls == 'list' and OLD_TIMM:
        pytest.skip('the stock network of timm before 1.0.31 fails, too')
    features = timm.create_model('rs_resnet18', features_only=True, feature_cls=feature_cls, resolutions=SIZES)
    plain, checkpointed = twins(random_statistics(features))
    (checkpointed if feature_cls == 'list' else checkpointed.model).set_grad_checkpointing()
    xs = {size: image(size) for size in SIZES}
    for network in (plain, checkpointed):
        sum(f.square().mean() for x in xs.values() for f in network(x)).backward()
    same(gradients(checkpointed), gradients(plain))


@pytest.mark.parametrize('pin', [48, None])
def test_a_whole_model_in_one_checkpoint(pin, random_statistics):
    plain, checkpointed = twins(random_statistics(create()))
    x = image(48)
    for network, run in ((plain, plain), (checkpointed, lambda x: checkpoint(checkpointed, x, use_reentrant=False))):
        network.set_resolution(pin)
        loss = run(x).square().mean()
        network.set_resolution(64)
        loss.backward()
    same(gradients(checkpointed), gradients(plain))


def test_frozen_layers_do_not_hide_the_selection(random_statistics):
    """Checkpointing with a frozen stem: the input of the first block needs no gradient."""
    plain = random_statistics(create()).train()
    for module in (plain.conv1, plain.bn1):
        module.requires_grad_(False)
    checkpointed = copy.deepcopy(plain)
    x = image(48)
    for network in (plain, Blocks(checkpointed, False)):
        rs_timm.set_resolution(network, 48)
        loss = network(x).square().mean()
        rs_timm.set_resolution(network, 64)
        loss.backward()
    same(gradients(checkpointed), gradients(plain))


# Formats and threads

@pytest.mark.parametrize('name', MODELS)
def test_channels_last(name, random_statistics):
    model = random_statistics(create(name))
    expected = copy.deepcopy(model)
    model.to(memory_format=torch.channels_last)
    for size in (48, 40):
        x = image(size)
        y, plain = model.forward_features(x.to(memory_format=torch.channels_last)), expected.forward_features(x)
        assert y.is_contiguous(memory_format=torch.channels_last)
        # other kernels sum in another order: what that costs goes with the size of the summands, not of their sum
        torch.testing.assert_close(y, plain, rtol=1e-4, atol=1e-5 * max(1., plain.abs().max().item()))


@pytest.mark.parametrize('training', [True, False])
def test_autocast(training, model):
    model.train(training)
    x = image(48)
    plain = rs_timm.extract(model, 48)
    with torch.autocast('cpu', torch.bfloat16):
        y = model(x)
        expected = plain(x)
    assert y.dtype == torch.bfloat16 and torch.equal(y, expected)
    if training:
        y.float().square().mean().backward()
        assert [key for key, p in model.named_parameters() if p.grad is None] == []


@pytest.mark.parametrize('context', [torch.no_grad, torch.inference_mode, nullcontext])
def test_threads_at_different_sizes(context, model):
    """One network, one thread per size: what the input asks for belongs to the thread."""
    sizes = (64, 48, 40, 32)
    plain = {size: rs_timm.extract(model, size) for size in sizes}
    barrier, errors = threading.Barrier(len(sizes)), []

    def serve(size):
        try:
            with context():
                for _ in range(5):
                    x = image(size, batch=1)
                    barrier.wait(timeout=60)
                    assert torch.equal(model(x), plain[size](x)), size
        except BaseException as error:
            errors.append(error)
            barrier.abort()

    threads = [threading.Thread(target=serve, args=(size,)) for size in sizes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


def test_func_transforms_and_parametrizations(model):
    """functional_call with other weights: the private sets are ordinary parameters."""
    x = image(48)
    state = {key: value + 0.01 if value.is_floating_point() else value for key, value in model.state_dict().items()}
    y = torch.func.functional_call(model, state, (x,))
    twin = copy.deepcopy(model)
    twin.load_state_dict(state)
    assert torch.equal(y, twin(x))
    x = image(40)  # an interpolated set comes from the weights of the call, not from a cache
    model(x)
    assert torch.equal(torch.func.functional_call(model, state, (x,)), twin(x))
