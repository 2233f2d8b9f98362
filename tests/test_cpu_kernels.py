"""Our own kernels: torch's values and gradients, ours only where they are said to be faster, and no copy by ReLU6."""
import math
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rs_timm  # noqa: F401
from rs_timm.training.cpu import kernels
from rs_timm.training.cpu.kernels import OwnKernels, input_gradient, pays, weight_gradient
from rs_timm.training.task import MREDTask

SHAPES = [  # kernel, stride, padding, input
    (1, 1, 0, (5, 5)), (1, 2, 0, (6, 5)), (3, 1, 1, (4, 4)), (3, 2, 1, (8, 7)), (3, 2, 0, (7, 9)),
    ((1, 3), 1, (0, 1), (4, 6)), ((3, 2), (2, 1), (1, 0), (5, 4)), (3, 1, 2, (2, 1)),
]


def pair(value):
    return value if isinstance(value, tuple) else (value, value)


@pytest.fixture
def always(monkeypatch):
    """The product for every shape, as far as it is implemented."""
    monkeypatch.setattr(kernels, 'pays', lambda *args: True)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('kernel, stride, padding, size', SHAPES)
def test_it_is_the_gradient_of_the_convolution(kernel, stride, padding, size, memory_format):
    torch.manual_seed(0)
    x = torch.randn(3, 4, *size, dtype=torch.float64).to(memory_format=memory_format)
    weight = torch.randn(5, 4, *pair(kernel), dtype=torch.float64, requires_grad=True)
    y = nn.functional.conv2d(x, weight, None, stride, padding)
    grad = torch.randn_like(y)
    expected, = torch.autograd.grad(y, weight, grad)
    torch.testing.assert_close(weight_gradient(x, grad, pair(kernel), pair(stride), pair(padding)), expected)


def test_a_part_of_a_larger_tensor():
    whole = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    weight = torch.randn(3, 4, 1, 1, dtype=torch.float64, requires_grad=True)
    x = whole[:, 4:]
    y = nn.functional.conv2d(x, weight)
    expected, = torch.autograd.grad(y, weight, torch.ones_like(y))
    torch.testing.assert_close(weight_gradient(x, torch.ones_like(y), (1, 1), (1, 1), (0, 0)), expected)


@pytest.mark.parametrize('kernel, stride, padding, size', [
    (3, 2, 1, (8, 7)), (3, 2, 1, (2, 1)), (3, 2, 0, (7, 8)), (5, 2, 2, (6, 9)), (5, 3, 1, (10, 8)),
    ((3, 5), (2, 1), (0, 4), (5, 5)),
])
def test_the_input_gradient_of_a_depthwise_convolution(kernel, stride, padding, size):
    torch.manual_seed(0)
    x = torch.randn(2, 4, *size, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(4, 1, *pair(kernel), dtype=torch.float64)
    y = nn.functional.conv2d(x, weight, None, stride, padding, 1, 4)
    grad = torch.randn_like(y)
    expected, = torch.autograd.grad(y, x, grad)
    torch.testing.assert_close(input_gradient(grad, weight, size, pair(stride), pair(padding)), expected)


def test_depthwise_with_a_stride_in_bfloat16(monkeypatch):
    """Both gradients, against float64; torch's own input gradient, a plain loop, is not asked for."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 8, 3, 2, 1, groups=8, bias=False)
    x = torch.randn(4, 8, 9, 9, dtype=torch.bfloat16, requires_grad=True)
    called = []
    monkeypatch.setattr(kernels, 'input_gradient', lambda *args: called.append(1) or input_gradient(*args))
    with torch.autocast('cpu', torch.bfloat16), OwnKernels():
        y = conv(x)
    y.sum().backward()
    exact_x, exact_weight = (t.detach().bfloat16().double().requires_grad_() for t in (x, conv.weight))
    nn.functional.conv2d(exact_x, exact_weight, None, 2, 1, 1, 8).sum().backward()
    assert called and conv.weight.grad.dtype is torch.float32
    torch.testing.assert_close(x.grad.double(), exact_x.grad, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(conv.weight.grad.double(), exact_weight.grad, rtol=1e-2, atol=1e-1)


@pytest.mark.parametrize('name', ['rs_resnet18', 'rs_mobilenetv2'])
def test_a_step_has_the_gradients_of_the_ordinary_one(name, monkeypatch):
    def gradients(rule):
        monkeypatch.setattr(kernels, 'pays', rule)
        monkeypatch.setattr(kernels, 'spreads',
                            lambda x, weight, stride, padding, groups, dtype: rule() and groups > 1 and stride > (1, 1))
        torch.manual_seed(0)
        task = MREDTask(timm.create_model(name, num_classes=4, resolutions=(64, 32)).double())
        batch = {r: torch.randn(3, 3, r, r, dtype=torch.float64) for r in (64, 32)}
        task(batch, torch.tensor([0, 1, 2]))['loss'].backward()
        return {name: p.grad for name, p in task.named_parameters()}

    ordinary = gradients(lambda *args: False)
    for name, grad in gradients(lambda *args: True).items():
        torch.testing.assert_close(grad, ordinary[name], rtol=1e-7, atol=1e-9)


def test_it_obeys_autocast(always):
    conv = nn.Conv2d(8, 4, 3, padding=1, bias=False)
    x = torch.randn(2, 8, 6, 6)
    with torch.autocast('cpu', torch.bfloat16):
        expected = conv(x)
        with OwnKernels():
            y = conv(x)
    assert y.dtype is torch.bfloat16 and torch.equal(y, expected)
    y.float().sum().backward()
    assert conv.weight.grad.dtype is torch.float32


def test_other_convolutions_share_the_cast_of_autocast(monkeypatch):
    """One cast of a weight serves all resolutions, so that one gradient comes back to it."""
    monkeypatch.setattr(kernels, 'pays', lambda *args: False)
    conv = nn.Conv2d(8, 4, 1, bias=False)
    with torch.autocast('cpu', torch.bfloat16), OwnKernels():
        first, second = (conv(torch.randn(2, 8, size, size)) for size in (6, 4))
    casts = {y.grad_fn.next_functions[1][0] for y in (first, second)}
    assert len(casts) == 1


def kept_weights(conv, functions, sizes=(6, 4)):
    """Where the weights lie that a forward pass for each size keeps for the backward pass; and the outputs."""
    kept = []

    def note(tensor):
        if tensor.shape == conv.weight.shape:
            kept.append(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), torch.autocast('cpu', torch.bfloat16):
        outputs = []
        for size in sizes:
            with functions:
                outputs.append(conv(torch.ones(2, 8, size, size)))
    return kept, outputs


def test_all_resolutions_keep_one_cast_of_a_weight(always):
    conv = nn.Conv2d(8, 4, 1, bias=False)
    functions = OwnKernels()
    kept, _ = kept_weights(conv, functions)
    assert len(kept) == 2 and len(set(kept)) == 1 and kept[0] != conv.weight.data_ptr()
    with torch.no_grad():
        conv.weight.copy_(torch.ones(4, 8, 1, 1))
    assert all(y.eq(8).all() for y in kept_weights(conv, functions)[1])  # another weight is cast again


def test_lean_keeps_the_weight_itself(always):
    conv = nn.Conv2d(8, 4, 1, bias=False)
    kept, outputs = kept_weights(conv, OwnKernels(lean=True))
    assert kept == 2 * [conv.weight.data_ptr()]
    sum(y.float().sum() for y in outputs).backward()
    assert torch.equal(conv.weight.grad, torch.full((4, 8, 1, 1), 2. * (36 + 16)))


def test_a_weight_that_is_computed_keeps_no_place_among_the_casts(always):
    conv = nn.Conv2d(8, 4, 1, bias=False)
    weight = conv.weight * 2
    functions = OwnKernels()
    with functions, torch.autocast('cpu', torch.bfloat16):
        y = torch.conv2d(torch.ones(2, 8, 4, 4), weight)
    assert not functions.table[torch.conv2d].args[0]._copies
    y.float().sum().backward()
    assert torch.equal(conv.weight.grad, torch.full((4, 8, 1, 1), 2. * 32))


@pytest.mark.parametrize('lean', [False, True])
def test_the_gradients_of_all_resolutions_are_summed_in_float32(lean, always):
    """Each alone is a product in bfloat16; their sum is not rounded to it."""
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 4, 1, bias=False)
    batch = [torch.randn(2, 8, size, size) for size in (6, 4)]

    def gradient(*inputs):
        functions, conv.weight.grad = OwnKernels(lean), None
        with torch.autocast('cpu', torch.bfloat16):
            loss = 0.
            for x in inputs:
                with functions:
                    loss = loss + conv(x).float().square().sum()
        loss.backward()
        return conv.weight.grad

    both = gradient(*batch)
    assert torch.equal(both, gradient(batch[0]) + gradient(batch[1])) and not torch.equal(both, both.bfloat16().float())


def test_autocast_leaves_float64_alone(always):
    conv = nn.Conv2d(8, 4, 1, bias=False).double()
    with torch.autocast('cpu', torch.bfloat16), OwnKernels():
        assert conv(torch.randn(2, 8, 6, 6, dtype=torch.float64)).dtype is torch.float64


@pytest.mark.parametrize('conv', [
    nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 8, 3, dilation=2), nn.Conv2d(8, 8, 3),
    nn.Conv2d(8, 8, 3, padding='same', bias=False),
], ids=['groups', 'dilation', 'bias', 'padding by name'])
def test_other_convolutions_stay_with_torch(conv, monkeypatch):
    monkeypatch.setattr(kernels, 'pays', lambda *args: pytest.fail('it was considered'))
    with OwnKernels():
        conv(torch.randn(1, 8, 8, 8)).sum().backward()
    assert conv.weight.grad is not None


def test_what_needs_no_weight_gradient_stays_with_torch(monkeypatch):
    monkeypatch.setattr(kernels, 'pays', lambda *args: pytest.fail('it was considered'))
    conv = nn.Conv2d(8, 8, 1, bias=False)
    with OwnKernels(), torch.no_grad():
        conv(torch.randn(1, 8, 4, 4))
    conv.requires_grad_(False)
    with OwnKernels():
        conv(torch.randn(1, 8, 4, 4, requires_grad=True)).sum().backward()


def test_a_shape_that_is_no_picture_has_torchs_error():
    with pytest.raises(RuntimeError, match='channels'), OwnKernels():
        nn.Conv2d(8, 8, 1, bias=False)(torch.randn(1, 4, 4, 4))


def test_it_pays_for_small_maps_with_many_channels():
    def choice(channels, out, kernel, size, batch=64, stride=1, dtype=torch.float32):
        x, weight = torch.empty(batch, channels, size, size), torch.empty(out, channels, kernel, kernel)
        return pays(x, weight, (stride, stride), (kernel // 2,) * 2, dtype)

    assert choice(512, 512, 3, 4) and not choice(512, 512, 3, 14)  # more positions, the same weights
    assert choice(256, 512, 3, 8, stride=2) and not choice(64, 64, 3, 32)
    assert choice(2048, 512, 1, 7) and not choice(24, 144, 1, 28)
    assert not choice(512, 512, 7, 4)  # never measured
    sizes = [size for size in range(1, 40) if choice(512, 512, 3, size)]
    assert sizes == list(range(1, len(sizes) + 1))  # one threshold


def test_matrix_units_make_it_pay_sooner(monkeypatch):
    x, weight = torch.empty(64, 256, 8, 8), torch.empty(256, 256, 3, 3)
    chosen = {}
    for there in (False, True):
        monkeypatch.setattr(torch.cpu, '_is_amx_tile_supported', lambda there=there: there)
        chosen[there] = tuple(pays(x, weight, (1, 1), (1, 1), dtype) for dtype in (torch.bfloat16, torch.float32))
    assert chosen == {False: (False, False), True: (True, False)}


# ReLU6 in place

IN_PLACE = [nn.ReLU6(inplace=True), nn.Hardtanh(-2., 3., inplace=True)]
VALUES = [-math.inf, -7., -3., -2., -1., 0., 0.5, 3., 5.9, 6., 7., math.inf, math.nan]


class Copies(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten.clone.default
        return func(*args, **(kwargs or {}))


def forward_backward(act, dtype):
    x = torch.tensor(VALUES, dtype=dtype, requires_grad=True)
    with Copies() as copies:
        before = x * 1
        y = act(before)
    y.backward(torch.arange(1., len(VALUES) + 1, dtype=dtype))
    return y.detach(), x.grad, copies.count, y.data_ptr() == before.data_ptr()


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize('act', IN_PLACE, ids=str)
def test_values_and_gradients_are_torchs_without_its_copy(act, dtype):
    y, grad, copies, in_place = forward_backward(act, dtype)
    assert copies == 1 and in_place
    with OwnKernels():
        ours, our_grad, copies, in_place = forward_backward(act, dtype)
    assert copies == 0 and in_place
    torch.testing.assert_close(ours, y, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(our_grad, grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('act', IN_PLACE, ids=str)
def test_what_needs_no_gradient_is_in_place_as_before(act):
    with OwnKernels():
        x = torch.randn(4)
        assert act(x) is x
        with torch.no_grad():
            x = torch.randn(4, requires_grad=True) * 1
            assert act(x) is x
        with pytest.raises(RuntimeError, match='leaf'):
            act(torch.randn(4, requires_grad=True))


@pytest.mark.parametrize('act', IN_PLACE, ids=str)
def test_a_part_of_a_tensor_is_left_to_torch(act):
    def gradients():
        x = torch.linspace(-3., 9., 12, requires_grad=True)
        whole = x * 1
        act(whole[2:7])
        whole.pow(2).sum().backward()
        return whole.detach(), x.grad

    expected = gradients()
    with OwnKernels():
        ours = gradients()
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize('act', [nn.ReLU6(), nn.Hardtanh()], ids=str)
def test_what_is_not_in_place_keeps_its_input(act):
    x = torch.randn(4, requires_grad=True) * 9
    before = x.detach().clone()
    with OwnKernels():
        assert act(x) is not x
    assert torch.equal(x, before)


def test_beside_cpus_only_networks_with_relu6_in_place_pay_for_it():
    for network, expected in ((timm.create_model('rs_mobilenetv2', num_classes=3, resolutions=(64, 32)), OwnKernels),
                              (rs_timm.switchable('test_resnet', (64, 32), num_classes=3), nullcontext)):
        branches = MREDTask(network).trainable_module
        assert type(branches._kernels(torch.empty(1, device='meta'))) is expected
        assert type(branches._kernels(torch.empty(1))) is OwnKernels
        assert type(MREDTask(network, own_kernels=False).trainable_module._kernels(torch.empty(1))) is nullcontext


def step(**options):
    """Gradients of a step of MRED, and the bytes that its forward pass keeps for the backward pass."""
    torch.manual_seed(0)
    model = timm.create_model('rs_mobilenetv2', num_classes=3, resolutions=(64, 32))
    training = MREDTask(model, **options).train()
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = training({r: torch.randn(4, 3, r, r) for r in (64, 32)}, torch.tensor([0, 1, 2, 1]))['loss']
    loss.backward()
    return {name: p.grad for name, p in training.named_parameters()}, sum(kept.values())


def test_a_step_of_mobilenetv2_has_the_same_gradients_and_keeps_a_quarter_less():
    (ours, less), (again, _), (expected, more) = step(), step(lean=True), step(own_kernels=False)
    weights = sum(p.numel() for p in timm.create_model('rs_mobilenetv2', num_classes=3).parameters()) * 4
    assert less - weights < 0.78 * (more - weights)
    for name, grad in expected.items():
        torch.testing.assert_close(ours[name], grad, rtol=1e-3, atol=1e-5 + 1e-4 * float(grad.abs().max()))
        assert torch.equal(again[name], ours[name]), name
