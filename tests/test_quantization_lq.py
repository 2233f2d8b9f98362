"""The quantisers against brute force in float64: nearest level, least squares, alternation, gradients."""
from itertools import product

import pytest
import torch

from rs_timm.quantization import LQConv2d, quantize_activation, quantize_weight
from rs_timm.quantization.lq import (
    activation_basis,
    fit_basis,
    nearest,
    normal_equations,
    quantize_rows,
    solve_basis,
    weight_basis,
)

CASES = [(bits, signed) for bits in (1, 2, 3, 4, 8) for signed in (True, False)]


def values(rows, count, signed, seed=0):
    x = torch.randn(rows, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return x if signed else x.relu()


def bases(rows, bits, seed=1):
    """Bases that are not powers of two, some with a negative entry."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(rows, bits, generator=generator, dtype=torch.float64) * torch.tensor([[1.], [-1.]]).repeat(
        rows, 1)[:rows]


def all_codes(bits, signed):
    return torch.tensor(list(product((-1., 1.) if signed else (0., 1.), repeat=bits)), dtype=torch.float64)


@pytest.mark.parametrize('bits, signed', CASES)
def test_each_value_becomes_the_nearest_of_all_sums(bits, signed):
    x, basis = values(3, 200, signed), bases(3, bits)
    quantized = quantize_rows(x, basis, signed)
    for row in range(3):
        sums = all_codes(bits, signed) @ basis[row]
        distances = (x[row, :, None] - sums).abs()
        torch.testing.assert_close((x[row] - quantized[row]).abs(), distances.amin(1))
        assert (quantized[row, :, None] - sums).abs().amin(1).max() < 1e-12


def test_half_way_between_two_levels_the_lower_one_is_taken():
    assert nearest(torch.tensor([[0.5, 1.5, 0.5001]]), torch.tensor([[0., 1., 2.]])).tolist() == [[0, 1, 1]]


@pytest.mark.parametrize('bits', range(1, 9))
def test_start_values_are_those_of_the_formulas(bits):
    n = 9 * 64
    torch.testing.assert_close(
        weight_basis(bits, 9, 64).tolist(), [0.6745 * (2 / n) ** 0.5 * 2 ** j / 2 ** (bits - 1) for j in range(bits)])
    torch.testing.assert_close(
        activation_basis(bits).tolist(), [0.6745 * 2 / (2 ** bits - 1) * 2 ** j for j in range(bits)])


def codes_of(x, basis, signed):
    """[n, b] for one row, by trying all codes."""
    table = all_codes(basis.shape[1], signed)
    return table[(x[0, :, None] - table @ basis[0]).abs().argmin(1)]


@pytest.mark.parametrize('bits, signed', [(b, s) for b in (1, 2, 3) for s in (True, False)])
def test_the_solution_is_the_least_squares_optimum(bits, signed):
    x, basis = values(1, 300, signed), bases(1, bits)
    codes = codes_of(x, basis, signed)
    gram, moment = normal_equations(x, basis, signed)
    torch.testing.assert_close(gram[0], codes.T @ codes)
    torch.testing.assert_close(moment[0], codes.T @ x[0])
    for regularisation in (1e-4, 10.):
        target = torch.cat([x[0], regularisation ** 0.5 * basis[0]])
        design = torch.cat([codes, regularisation ** 0.5 * torch.eye(bits, dtype=torch.float64)])
        expected = torch.linalg.lstsq(design, target.unsqueeze(1), driver='gelsd').solution[:, 0]
        torch.testing.assert_close(solve_basis(gram, moment, basis, regularisation)[0], expected)


def test_many_values_are_summed_in_parts(monkeypatch):
    x, basis = values(2, 1000, True), bases(2, 2)
    whole = normal_equations(x, basis, True)
    monkeypatch.setattr('rs_timm.quantization.lq._CHUNK', 64)
    for a, b in zip(normal_equations(x, basis, True), whole):
        torch.testing.assert_close(a, b)


def test_a_bit_that_no_value_has_keeps_its_place():
    x, basis = torch.tensor([[0.1, 0.2, 0.3]]), torch.tensor([[0.25, 100.]])
    solution = solve_basis(*normal_equations(x, basis, False), basis)
    assert solution[0, 1] == 100 and solution.isfinite().all()


@pytest.mark.parametrize('bits, signed', [(b, s) for b in (1, 2, 3, 4) for s in (True, False)])
@pytest.mark.parametrize('momentum', [0., 0.9])
def test_alternation_never_raises_the_error(bits, signed, momentum):
    """With the codes held, the error is convex in the basis; with the basis held, the nearest levels are best.

    The regularisation pulls to the basis before, so that it raises no error either.
    """
    x, basis = values(4, 500, signed), bases(4, bits)
    errors = []
    for _ in range(30):
        errors.append((x - quantize_rows(x, basis, signed)).square().sum(1))
        best = solve_basis(*normal_equations(x, basis, signed), basis)
        basis = momentum * basis + (1 - momentum) * best
    steps = torch.stack(errors).diff(dim=0)
    assert steps.max() < 1e-9 and steps.min() < -1e-3


@pytest.mark.parametrize('bits', [1, 2, 3])
def test_a_fit_reaches_the_distortion_of_the_best_quantiser_of_normal_values(bits):
    """Max (1960): mean squared errors of optimal quantisers of N(0, 1). Ours has b degrees of freedom: as good for
    b <= 2, where symmetry leaves no more."""
    optimum = {1: 0.3634, 2: 0.1175, 3: 0.03454}[bits]
    x = torch.randn(2, 100_000, generator=torch.Generator().manual_seed(0))
    scaled = torch.tensor([[1.], [3e-3]]) * x
    error = (scaled - quantize_rows(scaled, fit_basis(scaled, bits, steps=30), True)).square().mean(1)
    ratio = error / torch.tensor([1., 9e-6]) / optimum
    assert ((ratio > 0.98) & (ratio < (1.03 if bits < 3 else 1.2))).all(), ratio


# Gradients

def test_gradients_by_hand():
    x = torch.tensor([-1., 0., 0.4, 2.9, 3., 3.1], requires_grad=True).view(1, 1, 1, 6).detach().requires_grad_()
    conv = LQConv2d(1, 1, 1, bias=False, weight_bits=1, act_bits=2)
    with torch.no_grad():
        conv.weight.fill_(-0.3)
        conv.weight_basis.fill_(0.5)
        conv.act_basis.copy_(torch.tensor([1., 2.]))
    y = conv(x)
    assert y.flatten().tolist() == [-0.5 * level for level in (0, 0, 0, 3, 3, 3)]
    upstream = torch.arange(1., 7.).view(1, 1, 1, 6)
    y.backward(upstream)
    # the weight's gradient is that of its quantised value; the input's is cut off below 0 and above the top level 3
    assert conv.weight.grad.item() == sum(u * level for u, level in zip(range(1, 7), (0, 0, 0, 3, 3, 3)))
    assert x.grad.flatten().tolist() == [0, -1., -1.5, -2., -2.5, 0]


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16])
def test_values_keep_dtype_and_memory_format(dtype):
    x = torch.randn(2, 3, 5, 4).to(dtype)
    for quantize, basis in ((quantize_activation, torch.tensor([0.3, 0.7])), (quantize_weight, torch.rand(2, 2))):
        plain, last = quantize(x, basis), quantize(x.to(memory_format=torch.channels_last), basis)
        assert plain.dtype == dtype and torch.equal(plain, last)
        assert plain.is_contiguous() and last.is_contiguous(memory_format=torch.channels_last)
