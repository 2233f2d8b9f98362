"""A set for an unseen size lies between its neighbours (Section 4.3), in the sense of its mode."""
import numpy as np
import pytest
import timm
import torch

import rs_timm
from rs_timm.interpolation import INTERPOLATIONS, blend, bracket, interpolate_bn, set_weights
from rs_timm.layers import input_resolution, switchable_layers

SIZES = (64, 48, 32)


def random_bn(channels: int = 7) -> dict:
    return dict(
        weight=torch.randn(channels, dtype=torch.float64),
        bias=torch.randn(channels, dtype=torch.float64),
        running_mean=torch.randn(channels, dtype=torch.float64),
        running_var=torch.rand(channels, dtype=torch.float64) + 0.5,
    )


def apply_bn(x: torch.Tensor, bn: dict, eps: float = 1e-5) -> torch.Tensor:
    return (x - bn['running_mean']) / torch.sqrt(bn['running_var'] + eps) * bn['weight'] + bn['bias']


@pytest.mark.parametrize('resolution, expected', [
    (64, (64, 64, 0.)), (48, (48, 48, 0.)), (32, (32, 32, 0.)),
    (60, (64, 48, 0.25)), (50, (64, 48, 0.875)), (40, (48, 32, 0.5)),
    (16, (32, 32, 0.)), (1000, (64, 64, 0.)),
])
def test_bracket_names_the_neighbours_and_the_share_of_the_lower(resolution, expected):
    assert bracket(SIZES, resolution) == expected
    upper, lower, t = bracket(SIZES, resolution)
    if upper != lower:
        assert upper * (1 - t) + lower * t == resolution


@pytest.mark.parametrize('sizes', [SIZES, (64,), (224, 192, 160, 128, 96)])
@pytest.mark.parametrize('mode', INTERPOLATIONS)
def test_the_weights_of_arrays_and_of_onnx_are_those_of_the_two_neighbours(sizes, mode):
    onnx, reference = pytest.importorskip('onnx'), pytest.importorskip('onnx.reference')
    from rs_timm.export.network import Tables
    from rs_timm.export.onnx_graph import RESOLUTION, Choice

    names = ('gamma', 'beta', 'mean', 'variance') if mode == 'params' else ('scale', 'shift')
    table = np.ones((len(sizes), 1), np.float32)
    choice = Choice(Tables(sizes, mode, {'bn': 1}, dict.fromkeys(names, table)), {'bn': 4}, 'input')
    weights = next(node.input[0] for node in choice.nodes if node.op_type == 'MatMul')
    graph = onnx.helper.make_graph(
        choice.nodes, 'weights', [onnx.helper.make_tensor_value_info(RESOLUTION, onnx.TensorProto.FLOAT, [])],
        [onnx.helper.make_tensor_value_info(weights, onnx.TensorProto.FLOAT, None)], list(choice.constants.values()))
    in_onnx = reference.ReferenceEvaluator(onnx.helper.make_model(graph))
    one_hot = [dict(weight=row) for row in np.eye(len(sizes))]
    for size in (*sizes, *(s + 1 for s in sizes), 20, 40, 56, 144, 300):
        upper, lower, t = bracket(sizes, size)
        expected = blend(one_hot[sizes.index(upper)], one_hot[sizes.index(lower)], t, mode)['weight']
        for kind in (np.array, lambda x: torch.tensor(x, dtype=torch.float64)):
            computed = set_weights(kind(float(size)), kind([float(s) for s in sizes]), mode)
            np.testing.assert_allclose(computed, expected, rtol=0, atol=1e-12)
        (computed,) = in_onnx.run([weights], {RESOLUTION: np.float32(size)})
        np.testing.assert_allclose(computed[0], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize('mode', INTERPOLATIONS)
def test_numpy_arrays_and_tensors_are_blended_alike(mode):
    upper, lower = random_bn(), random_bn()
    blended = interpolate_bn(upper, lower, 0.3, mode)
    arrays = interpolate_bn(*({k: v.numpy() for k, v in bn.items()} for bn in (upper, lower)), 0.3, mode)
    assert list(arrays) == list(blended)
    for name, array in arrays.items():
        np.testing.assert_allclose(array, blended[name], rtol=1e-12)


def test_params_mode_is_linear_in_each_tensor():
    upper, lower = random_bn(), random_bn()
    for t in (0., 0.3, 1.):
        blended = interpolate_bn(upper, lower, t)
        for name in upper:
            torch.testing.assert_close(blended[name], (1 - t) * upper[name] + t * lower[name])


def test_affine_mode_is_linear_in_the_output():
    upper, lower, x = random_bn(), random_bn(), torch.randn(11, 7, dtype=torch.float64)
    for t in (0., 0.3, 1.):
        blended = interpolate_bn(upper, lower, t, mode='affine')
        torch.testing.assert_close(apply_bn(x, blended), (1 - t) * apply_bn(x, upper) + t * apply_bn(x, lower))


def test_params_and_affine_differ():
    upper, lower, x = random_bn(), random_bn(), torch.randn(11, 7, dtype=torch.float64)
    params, affine = (apply_bn(x, interpolate_bn(upper, lower, 0.5, mode)) for mode in ('params', 'affine'))
    assert not torch.allclose(params, affine, rtol=1e-3)


def test_nearest_mode_takes_the_closer_set_and_the_larger_at_a_tie():
    upper, lower = random_bn(), random_bn()
    assert interpolate_bn(upper, lower, 0.4, 'nearest') == upper
    assert interpolate_bn(upper, lower, 0.5, 'nearest') == upper
    assert interpolate_bn(upper, lower, 0.6, 'nearest') == lower


@pytest.mark.parametrize('height, width, expected', [(224, 224, 224), (128, 200, 160), (1, 4, 2), (96, 97, 96)])
def test_a_non_square_input_counts_as_the_square_of_its_area(height, width, expected):
    assert input_resolution(height, width) == expected
    assert abs(expected ** 2 - height * width) <= expected  # the nearest whole number to the root


@pytest.fixture
def model(random_statistics):
    return random_statistics(timm.create_model('rs_resnet18', num_classes=4, resolutions=SIZES))


def logits(model, size, seed=0):
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        return model(x)


def test_an_unseen_size_uses_the_blended_set_in_every_layer(model):
    rs_timm.set_resolution(model, 40)
    for layer in switchable_layers(model):
        bn = layer.set_for(40)
        for name in ('weight', 'bias', 'running_mean', 'running_var'):
            torch.testing.assert_close(
                getattr(bn, name), (getattr(layer['48'], name) + getattr(layer['32'], name)) / 2)
        assert not any(p.requires_grad for p in bn.parameters())


@pytest.mark.parametrize('outside, nearest', [(24, 32), (96, 64)])
def test_outside_the_range_the_nearest_set_is_used(model, outside, nearest):
    expected = rs_timm.extract(model, nearest)
    x = torch.randn(2, 3, outside, outside)
    assert torch.equal(model(x), expected(x))


def test_interpolation_mode_can_be_changed_and_is_checked(model):
    outputs = {}
    for mode in ('params', 'affine', 'nearest'):
        rs_timm.set_interpolation(model, mode)
        outputs[mode] = logits(model, 40)
    assert not torch.allclose(outputs['params'], outputs['affine'])
    with rs_timm.use_resolution(model, 48):
        torch.testing.assert_close(outputs['nearest'], logits(model, 40))
    with pytest.raises(ValueError, match="'cubic'.*params, affine, nearest"):
        rs_timm.set_interpolation(model, 'cubic')


def test_a_cached_set_follows_its_neighbours(model):
    before = logits(model, 40)
    assert torch.equal(before, logits(model, 40))
    with torch.no_grad():
        for layer in switchable_layers(model):
            layer['48'].bias.add_(1.)
    after = logits(model, 40)
    assert not torch.allclose(before, after)
    assert torch.equal(after, rs_timm.extract(model, 40)(
        torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))))


def test_a_second_switch_to_an_unseen_size_makes_nothing(model):
    rs_timm.set_resolution(model, 40)
    made = [layer.set_for(40) for layer in switchable_layers(model)]
    rs_timm.set_resolution(model, 64)
    rs_timm.set_resolution(model, 40)
    logits(model, 40)
    assert all(a is b.set_for(40) for a, b in zip(made, switchable_layers(model)))
