"""Compilers and tracers beside the sizes and modes of test_wrappers.py: docs/compile.md is what these tests hold."""
import copy

import pytest
import timm
import torch

import rs_timm

SIZES = (64, 48, 32)


def create():
    return timm.create_model('rs_switchable', base='test_resnet', resolutions=SIZES, num_classes=5)


@pytest.fixture
def model(random_statistics):
    torch._dynamo.reset()
    yield random_statistics(create())
    torch._dynamo.reset()


def image(height, width=None):
    return torch.randn(2, 3, height, width or height)


def assert_follows(network, reference, shapes):
    for height, width in shapes:
        x = image(height, width)
        expected = rs_timm.extract(reference, rs_timm.layers.input_resolution(height, width))(x)
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5, msg=f'{height} x {width}')


# torch.compile

@pytest.mark.parametrize('called_before, grad', [
    (True, False), pytest.param(False, True, marks=pytest.mark.slow)])
def test_free_sizes_are_compiled_right(called_before, grad, model):
    """With and without a last eager call, whose set a graph must not keep."""
    if called_before:
        model(image(64))
    network = torch.compile(model, backend='eager', dynamic=True)
    with torch.set_grad_enabled(grad):
        assert_follows(network, model, [(64, 64), (40, 40), (48, 48), (36, 50), (40, 40)])


def test_marked_sides_are_compiled_right(model):
    network = torch.compile(model, backend='eager')
    for size in (64, 40, 48):
        x = image(size)
        for side in (2, 3):
            torch._dynamo.maybe_mark_dynamic(x, side)
        torch.testing.assert_close(network(x), rs_timm.extract(model, size)(x), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_unseen_sizes_past_the_limit_of_graphs(model):
    network = torch.compile(model, backend='eager')
    with torch._dynamo.config.patch(recompile_limit=2), torch.no_grad():
        assert_follows(network, model, [(64, 64), (40, 40), (56, 56), (36, 50), (32, 32), (40, 40)])


@pytest.mark.parametrize('dynamic', [True, None])
def test_an_unseen_size_in_one_graph_needs_its_set_first(dynamic, model):
    network = torch.compile(model, backend='eager', fullgraph=True, dynamic=dynamic)
    assert_follows(network, model, [(64, 64)])
    with pytest.raises(torch._dynamo.exc.Unsupported, match=r'outside the graph.*set_resolution\(model, size\)'):
        network(image(40))
    rs_timm.set_resolution(model, 40)
    rs_timm.set_resolution(model, None)
    assert_follows(network, model, [(40, 40), (48, 48), (40, 40)])


# Tracers

@pytest.mark.parametrize('trace', [
    lambda model, x: torch.export.export(model, (x,)).module(),
    torch.jit.trace,
], ids=['export', 'jit.trace'])
@pytest.mark.parametrize('pin, kept', [(None, 48), (64, 64), (40, 40)])
def test_a_trace_keeps_the_pinned_set_or_that_of_its_example(pin, kept, trace, model):
    model(image(64))
    model.set_resolution(pin)
    x = image(48)
    traced = trace(model, x)
    model.set_resolution(32)
    torch.testing.assert_close(traced(x), rs_timm.extract(model, kept)(x), rtol=1e-5, atol=1e-5)


def test_fx_in_training(model):
    model.train().set_resolution(48)
    plain = rs_timm.extract(model, 48)
    traced, x = torch.fx.symbolic_trace(model), image(48)
    y, expected = traced(x), plain(x)
    assert torch.equal(y, expected)
    y.square().mean().backward()
    expected.square().mean().backward()
    for key, p in plain.named_parameters():
        layer, _, name = key.rpartition('.')
        own = key if key in dict(traced.named_parameters()) else f'{layer}.48.{name}'
        assert torch.equal(traced.get_parameter(own).grad, p.grad), key


@pytest.mark.parametrize('pin', [48, None])
def test_functional_gradients_in_training(pin, model):
    model.train().set_resolution(pin)
    twin, x = copy.deepcopy(model), image(48)

    def loss(parameters):
        buffers = {key: value.clone() for key, value in model.named_buffers()}  # BatchNorm writes into them
        return torch.func.functional_call(model, (parameters, buffers), (x,)).square().mean()

    gradients = torch.func.grad(loss)(dict(model.named_parameters()))
    twin(x).square().mean().backward()
    for key, p in twin.named_parameters():
        torch.testing.assert_close(gradients[key], p.grad, rtol=1e-4, atol=1e-6)
