"""LQConv2d: an ordinary convolution for everybody else; bases move with the optimizer's step, weights are quantised
once."""
import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint
from two_processes import run_two

from rs_timm.quantization import LQConfig, LQConv2d, quantize_, quantize_activation, quantize_weight
from rs_timm.quantization.lq import normal_equations, solve_basis


def make(act_bits=2, seed=0):
    torch.manual_seed(seed)
    return LQConv2d(6, 5, 3, padding=1, weight_bits=2, act_bits=act_bits)


def step(conv, *inputs, lr=0.1):
    optimizer = torch.optim.SGD([conv.weight], lr=lr)
    sum(conv(x).square().mean() for x in inputs).backward()
    optimizer.step()
    optimizer.zero_grad()


def pictures(*sizes):
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(2, 6, size, size, generator=generator).relu() for size in sizes]


@pytest.fixture
def count(monkeypatch):
    """How often weights were quantised."""
    calls, quantize = [], LQConv2d._quantize

    def counting(self, learn):
        calls.append(learn)
        return quantize(self, learn)

    monkeypatch.setattr(LQConv2d, '_quantize', counting)
    return calls


@pytest.mark.parametrize('act_bits', [None, 2])
@pytest.mark.parametrize('training', [True, False])
def test_output_is_the_convolution_of_quantised_operands(act_bits, training):
    conv = make(act_bits).train(training)
    (x,) = pictures(7)
    operand = x if act_bits is None else quantize_activation(x, conv.act_basis)
    expected = F.conv2d(operand, quantize_weight(conv.weight, conv.weight_basis), conv.bias, padding=1)
    assert torch.equal(conv(x), expected)


@pytest.mark.parametrize('kernel', [1, 3])
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_the_output_has_the_memory_format_of_the_input(kernel, memory_format):
    conv = LQConv2d(6, 5, kernel, act_bits=2).to(memory_format=memory_format)
    plain = nn.Conv2d(6, 5, kernel).to(memory_format=memory_format)
    x = torch.randn(2, 6, 8, 8).to(memory_format=memory_format)
    assert conv(x).stride() == plain(x).stride()


def test_a_step_moves_the_bases_a_tenth_of_the_way_to_the_joint_optimum():
    """Over all passes of the step, of whatever size; the weights' equations count once."""
    conv, inputs = make(), pictures(8, 6, 4)
    weight, before_w, before_a = conv.weight.detach().clone(), conv.weight_basis.clone(), conv.act_basis.clone()
    step(conv, *inputs)
    best_w = solve_basis(*normal_equations(weight.reshape(5, -1), before_w, True), before_w)
    torch.testing.assert_close(conv.weight_basis, 0.9 * before_w + 0.1 * best_w)
    joint = torch.cat([x.flatten() for x in inputs]).unsqueeze(0)
    best_a = solve_basis(*normal_equations(joint, before_a[None], False), before_a[None])[0]
    torch.testing.assert_close(conv.act_basis, 0.9 * before_a + 0.1 * best_a)
    assert not torch.equal(before_a, conv.act_basis) and not torch.equal(before_w, conv.weight_basis)


def bases(conv):
    return torch.cat([conv.weight_basis.flatten(), conv.act_basis])


def test_what_moves_no_basis():
    conv, inputs = make(), pictures(8)
    before = bases(conv).clone()
    sum(conv(x).mean() for x in inputs).backward()
    assert torch.equal(bases(conv), before)  # no step
    other = nn.Parameter(torch.ones(1))
    other.grad = torch.ones(1)
    torch.optim.SGD([other], 0.1).step()
    assert torch.equal(bases(conv), before)  # the step of another optimizer
    conv = make().eval()
    step(conv, *inputs)
    assert torch.equal(bases(conv), before)  # evaluation mode
    conv = make().requires_grad_(False)
    conv.bias.requires_grad_(True)
    optimizer = torch.optim.SGD(conv.parameters(), 0.1)
    conv(inputs[0]).mean().backward()
    optimizer.step()
    assert torch.equal(bases(conv), before)  # frozen weights


def test_a_closure_moves_them_too():
    conv, (x,) = make(), pictures(8)
    before, optimizer = bases(conv).clone(), torch.optim.SGD([conv.weight], 0.1)

    def closure():
        optimizer.zero_grad()
        loss = conv(x).mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert not torch.equal(bases(conv), before)


@pytest.mark.parametrize('reentrant', [False, True])
def test_a_block_that_is_run_again_in_backward_counts_once(reentrant):
    plain, rerun = make(), make()
    inputs = [x.requires_grad_() for x in pictures(8, 6)]
    for conv in (plain, rerun):
        optimizer = torch.optim.SGD([conv.weight], lr=0.1)
        call = conv if conv is plain else lambda x, conv=conv: checkpoint(conv, x, use_reentrant=reentrant)
        for _ in range(2):
            optimizer.zero_grad()
            sum(call(x).square().mean() for x in inputs).backward()
            optimizer.step()
    torch.testing.assert_close(bases(rerun), bases(plain), rtol=0, atol=0)
    assert torch.equal(rerun.weight, plain.weight)


# Quantised once

def test_once_a_step_whatever_the_number_of_passes(count):
    conv, inputs = make(), pictures(8, 6, 4)
    for steps in range(1, 4):
        step(conv, *inputs)
        assert len(count) == steps


def test_once_in_evaluation_and_again_after_each_change(count):
    conv, (x,) = make().eval(), pictures(8)
    for mode in (torch.no_grad(), torch.inference_mode(), torch.enable_grad()):
        with mode:
            conv(x)
    assert len(count) == 1
    changes = (
        lambda: conv.train().eval(),
        lambda: (conv.weight.data.mul_(2), conv.eval()),
        lambda: conv.load_state_dict(make(seed=1).state_dict()),
        lambda: conv.load_state_dict(make(seed=2).state_dict(), assign=True),
        lambda: conv.double().float(),
        lambda: nn.init.normal_(conv.weight),
        lambda: nn.init.ones_(conv.weight_basis),
    )
    for number, change in enumerate(changes, start=2):
        change()
        with torch.no_grad():
            y = conv(x)
        expected = quantize_weight(conv.weight, conv.weight_basis)
        assert len(count) == number
        assert torch.equal(y, F.conv2d(quantize_activation(x, conv.act_basis), expected, conv.bias, padding=1))


@pytest.mark.parametrize('options', [dict(fused=True), dict(foreach=True), dict(foreach=False)], ids=str)
def test_every_kind_of_optimizer_is_noticed(options):
    """Fused ones write into a parameter without raising its version."""
    conv, (x,) = make().eval(), pictures(8)
    conv(x).square().mean().backward()
    torch.optim.SGD([conv.weight], lr=10., **options).step()
    assert torch.equal(conv.quantized_weight(), quantize_weight(conv.weight, conv.weight_basis))


def test_weights_made_in_inference_mode_serve_in_training():
    conv, (x,) = make().eval(), pictures(8)
    with torch.inference_mode():
        conv(x)
    conv(x.clone().requires_grad_()).mean().backward()
    assert conv.weight.grad is not None


COPIES = dict(deepcopy=copy.deepcopy, pickle=lambda module: pickle.loads(pickle.dumps(module)))


@pytest.mark.parametrize('copy_of', COPIES.values(), ids=COPIES)
def test_copies_are_independent_and_learn(copy_of):
    conv, inputs = make(), pictures(8)
    conv(inputs[0])
    twin = copy_of(conv)
    before = bases(conv).clone()
    step(twin, *inputs)
    assert torch.equal(bases(conv), before) and not torch.equal(bases(twin), before)
    assert twin.weight is not conv.weight


def test_plain_weights_load_with_bases_that_fit_them():
    conv, source = make(), nn.Conv2d(6, 5, 3, padding=1)
    with torch.no_grad():
        source.weight.mul_(1000)  # far from where the bases start
    conv.load_state_dict(source.state_dict(), strict=True)
    error = (conv.quantized_weight() - conv.weight).square().mean() / conv.weight.square().mean()
    assert error < 0.15 and torch.equal(conv.act_basis, make().act_basis)


def test_an_incomplete_checkpoint_is_refused():
    state = make().state_dict()
    del state['act_basis']
    with pytest.raises(RuntimeError, match='act_basis'):
        make().load_state_dict(state)


def test_bfloat16_autocast_and_channels_last():
    conv, (x,) = make(), pictures(8)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        y = conv(x.bfloat16().to(memory_format=torch.channels_last))
        y.float().mean().backward()
    assert y.dtype == torch.bfloat16 and y.is_contiguous(memory_format=torch.channels_last)
    gram, moment = conv._pending['act_basis']
    expected = normal_equations(x.bfloat16().float().reshape(1, -1), conv.act_basis[None], False)
    torch.testing.assert_close((gram, moment), expected)


def test_compiled_output_and_gradient_are_the_eager_ones():
    conv, (x,) = make(), pictures(8)
    eager = copy.deepcopy(conv)
    compiled = torch.compile(conv, backend='aot_eager', fullgraph=True)
    for network in (compiled, eager):
        network(x).square().mean().backward()
    torch.testing.assert_close(conv.weight.grad, eager.weight.grad)
    for module in (conv, eager):
        torch.optim.SGD([module.weight], 0.1).step()
    torch.testing.assert_close(bases(conv), bases(eager))


# Processes

def network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3))
    return quantize_(model, LQConfig(2, 2)).double()


def train(model, batches):
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for batch in batches:
        optimizer.zero_grad()
        model(batch).square().mean().backward()
        optimizer.step()


def batches():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(3, 4, 3, 9, 9, generator=generator, dtype=torch.float64)


def one_rank(rank, path):
    model = nn.parallel.DistributedDataParallel(network(), broadcast_buffers=False)
    train(model, batches()[:, 2 * rank:2 * rank + 2])
    torch.save(model.module.state_dict(), f'{path}/{rank}.pt')


def test_two_processes_have_the_bases_of_one_with_the_joint_batch(tmp_path):
    run_two(one_rank, str(tmp_path))
    first, second = (torch.load(tmp_path / f'{rank}.pt') for rank in (0, 1))
    model = network()
    start = {key: value.clone() for key, value in model.state_dict().items()}
    train(model, batches())
    for key, value in model.state_dict().items():
        assert torch.equal(first[key], second[key]), key
        torch.testing.assert_close(first[key], value)
        assert not torch.equal(value, start[key])
