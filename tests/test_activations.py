"""ReLU6 in place: torch's values and gradients, without torch's copy of the input."""
import math
from contextlib import nullcontext

import pytest
import timm
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import rs_timm  # noqa: F401
from rs_timm.training import task
from rs_timm.training.cpu.activations import LeanActivations
from rs_timm.training.task import MREDTask

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
    with LeanActivations():
        ours, our_grad, copies, in_place = forward_backward(act, dtype)
    assert copies == 0 and in_place
    torch.testing.assert_close(ours, y, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(our_grad, grad, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize('act', IN_PLACE, ids=str)
def test_what_needs_no_gradient_is_in_place_as_before(act):
    with LeanActivations():
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
    with LeanActivations():
        ours = gradients()
    assert all(map(torch.equal, ours, expected))


@pytest.mark.parametrize('act', [nn.ReLU6(), nn.Hardtanh()], ids=str)
def test_what_is_not_in_place_keeps_its_input(act):
    x = torch.randn(4, requires_grad=True) * 9
    before = x.detach().clone()
    with LeanActivations():
        assert act(x) is not x
    assert torch.equal(x, before)


def test_it_knows_what_it_concerns():
    assert LeanActivations.concerns(timm.create_model('rs_mobilenetv2'))
    assert not LeanActivations.concerns(timm.create_model('rs_resnet18'))
    assert not LeanActivations.concerns(nn.Sequential(nn.ReLU6()))


@pytest.mark.parametrize('name, expected', [('rs_mobilenetv2', LeanActivations), ('rs_resnet18', nullcontext)])
def test_beside_cpus_only_networks_with_relu6_pay_for_it(name, expected):
    training = MREDTask(timm.create_model(name, num_classes=3, resolutions=(64, 32)))
    assert type(training.trainable_module._functions(torch.empty(1, device='meta'))) is expected
    assert type(training.trainable_module._functions(torch.empty(1))) is task._OnCPU


def step(lean):
    """Gradients of a step of MRED, and the bytes that its forward pass keeps for the backward pass."""
    torch.manual_seed(0)
    model = timm.create_model('rs_mobilenetv2', num_classes=3, resolutions=(64, 32))
    training = MREDTask(model, lean=lean).train()
    kept = {}

    def note(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        loss = training({r: torch.randn(4, 3, r, r) for r in (64, 32)}, torch.tensor([0, 1, 2, 1]))['loss']
    loss.backward()
    return {name: p.grad for name, p in training.named_parameters()}, sum(kept.values())


def test_a_step_of_mobilenetv2_has_the_same_gradients_and_keeps_a_quarter_less(monkeypatch):
    ours, less = step(lean=False)
    again, _ = step(lean=True)
    monkeypatch.setattr(task._OnCPU, 'table', {})
    expected, more = step(lean=False)
    weights = sum(p.numel() for p in timm.create_model('rs_mobilenetv2', num_classes=3).parameters()) * 4
    assert less - weights < 0.78 * (more - weights)
    for name, grad in expected.items():
        assert torch.equal(ours[name], grad) and torch.equal(again[name], grad), name
