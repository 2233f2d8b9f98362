"""The MRED loss against the paper's sums written out, and against its gradients in closed form."""
import math

import pytest
import torch
import torch.nn.functional as F

from rs_timm.loss import (
    MODES,
    classification_loss,
    distillation_loss,
    ensemble_logits,
    ensemble_loss,
    mred_loss,
)

RESOLUTIONS = (224, 192, 160, 128, 96)
TEACHERS = {  # s -> teachers of p_s; 0 is the ensemble, 1 the largest resolution
    'none': lambda s: [],
    'vanilla': lambda s: [0],
    'full': lambda s: list(range(s)),
    'largest': lambda s: [1] if s > 1 else [],
    'larger': lambda s: list(range(1, s)),
}


def factor(mode: str, count: int) -> float:
    return 2 / (count + 1) if mode in ('full', 'larger') else 1.


def problem(count=5, n=4, classes=3, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    logits = {r: torch.randn(n, classes, generator=generator, dtype=dtype).mul_(2).requires_grad_()
              for r in RESOLUTIONS[:count]}
    target = torch.randint(classes, (n,), generator=generator)
    alpha = torch.randn(count, generator=generator, dtype=dtype).requires_grad_()
    return logits, target, alpha


def soft(target, classes, seed=1):
    share = torch.rand(len(target), 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    one_hot = F.one_hot(target, classes).double()
    return share * one_hot + (1 - share) * one_hot.flip(0)


def brute_force(logits, target, alpha, mode, smoothing=0.):
    """Equations 1, 2 and 4 to 10, term by term with python floats."""
    order = sorted(logits, reverse=True)
    n, classes = logits[order[0]].shape
    scores = [math.exp(a) for a in alpha.tolist()]
    weights = [s / sum(scores) for s in scores]
    z = [None] + [logits[r].tolist() for r in order]
    z[0] = [[sum(w * z[s + 1][i][c] for s, w in enumerate(weights)) for c in range(classes)] for i in range(n)]

    def p(s, i, c):
        return math.exp(z[s][i][c]) / sum(math.exp(z[s][i][j]) for j in range(classes))

    def delta(i, c):
        y = float(target[i] == c) if target.ndim == 1 else float(target[i, c])
        return (1 - smoothing) * y + smoothing / classes

    def cross_entropy(s):
        return -sum(delta(i, c) * math.log(p(s, i, c)) for i in range(n) for c in range(classes)) / n

    def divergence(t, s):
        return sum(p(t, i, c) * math.log(p(t, i, c) / p(s, i, c)) for i in range(n) for c in range(classes)) / n

    students = range(1, len(order) + 1)
    parts = dict(
        classification=sum(cross_entropy(s) for s in students),
        ensemble=cross_entropy(0),
        distillation=factor(mode, len(order)) * sum(divergence(t, s) for s in students for t in TEACHERS[mode](s)),
    )
    return dict(parts, loss=sum(parts.values()))


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('count', [1, 2, 5])
@pytest.mark.parametrize('smoothing', [0., 0.1])
@pytest.mark.parametrize('is_soft', [False, True], ids=['index', 'soft'])
def test_equals_the_equations(mode, count, smoothing, is_soft):
    logits, target, alpha = problem(count)
    target = soft(target, 3) if is_soft else target
    expected = brute_force(logits, target, alpha, mode, smoothing)
    losses = mred_loss(logits, target, alpha, mode, smoothing)
    assert set(losses) == set(expected)
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value, abs=1e-12), name


@pytest.mark.parametrize('mode', MODES)
def test_gradients_in_closed_form(mode):
    """Cross-entropy gives (p - y) / N, each teacher (p_s - p_t) / N: nothing flows back through a teacher."""
    logits, target, alpha = problem()
    mred_loss(logits, target, alpha, mode)['loss'].backward()
    order = sorted(logits, reverse=True)
    p = [F.softmax(sum(w * logits[r] for w, r in zip(alpha.softmax(0), order)), dim=1)]
    p += [F.softmax(logits[r], dim=1) for r in order]
    y = F.one_hot(target, 3)
    for s, r in enumerate(order, start=1):
        taught = sum((p[s] - p[t] for t in TEACHERS[mode](s)), torch.zeros(()))
        expected = (p[s] - y + factor(mode, 5) * taught) / len(target)
        torch.testing.assert_close(logits[r].grad, expected.detach())


@pytest.mark.parametrize('mode', MODES)
def test_alpha_learns_from_the_ensemble_loss_alone(mode):
    logits, target, alpha = problem()
    whole, = torch.autograd.grad(mred_loss(logits, target, alpha, mode)['loss'], alpha)
    alone, = torch.autograd.grad(ensemble_loss(logits, target, alpha), alpha)
    assert alone.abs().max() > 1e-3
    torch.testing.assert_close(whole, alone, rtol=0, atol=0)


def test_gradcheck():
    """With the teachers held at fixed values, the analytic gradients are those of finite differences."""
    logits, target, alpha = problem(3)
    order = list(logits)
    fixed = {r: F.log_softmax(z.detach(), 1) for r, z in logits.items()}
    fixed0 = F.log_softmax(ensemble_logits(logits, alpha).detach(), 1)

    def with_fixed_teachers(*z):
        log_p = {r: F.log_softmax(value, 1) for r, value in zip(order, z)}
        total = classification_loss(log_p, target)
        for s, r in enumerate(order):
            for teacher in [fixed0, *(fixed[t] for t in order[:s])]:
                total = total + 2 / 4 * F.kl_div(log_p[r], teacher, reduction='batchmean', log_target=True)
        return total

    values = tuple(logits.values())
    assert torch.autograd.gradcheck(with_fixed_teachers, values)
    assert torch.autograd.gradcheck(lambda a: ensemble_loss(logits, target, a), (alpha,))
    for ours, theirs in zip(torch.autograd.grad(mred_loss(logits, target, alpha)['loss'], values),
                            torch.autograd.grad(with_fixed_teachers(*values), values)):
        torch.testing.assert_close(ours, theirs)


def test_one_resolution_is_plain_cross_entropy():
    logits, target, alpha = problem(1)
    mred_loss(logits, target, alpha)['loss'].backward()
    (z,) = logits.values()
    expected, = torch.autograd.grad(F.cross_entropy(z, target), z)
    torch.testing.assert_close(z.grad, expected)
    assert alpha.grad.item() == 0


@pytest.mark.parametrize('mode', MODES)
@pytest.mark.parametrize('is_soft', [False, True])
def test_positions_are_samples(mode, is_soft):
    """Logits [N, C, h, w] give what their rows [N * h * w, C] give."""
    generator = torch.Generator().manual_seed(5)
    logits = {r: torch.randn(2, 4, 3, 5, generator=generator, dtype=torch.float64) for r in (96, 64, 32)}
    shape = (2, 4, 3, 5) if is_soft else (2, 3, 5)
    target = torch.rand(shape, dtype=torch.float64) if is_soft else torch.randint(4, shape, generator=generator)
    alpha = torch.tensor([0.3, -1., 2.], dtype=torch.float64)

    def rows(x):
        return x.movedim(1, -1).flatten(0, -2)

    flat = rows(target) if is_soft else target.flatten()
    expected = mred_loss({r: rows(z) for r, z in logits.items()}, flat, alpha, mode, 0.1)
    for name, value in mred_loss(logits, target, alpha, mode, 0.1).items():
        torch.testing.assert_close(value, expected[name])


def test_the_order_of_the_dict_does_not_matter():
    logits, target, alpha = problem()
    shuffled = {r: logits[r] for r in (128, 224, 96, 160, 192)}
    for name, value in mred_loss(logits, target, alpha).items():
        torch.testing.assert_close(mred_loss(shuffled, target, alpha)[name], value)


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_summed_in_float32(dtype):
    logits, target, alpha = problem(dtype=torch.float32)
    halves = {r: (40 * z).to(dtype) for r, z in logits.items()}
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = mred_loss(halves, target, alpha)
    reference = mred_loss({r: z.double() for r, z in halves.items()}, target, alpha.double())
    for name, value in losses.items():
        assert value.dtype is torch.float32
        torch.testing.assert_close(value.double(), reference[name], rtol=1e-5, atol=1e-5)


def test_certain_predictions_stay_finite():
    logits = {64: torch.tensor([[1e4, -1e4]], requires_grad=True), 32: torch.tensor([[-1e4, 1e4]], requires_grad=True)}
    loss = mred_loss(logits, torch.tensor([0]), torch.zeros(2))['loss']
    loss.backward()
    assert loss.isfinite() and all(z.grad.isfinite().all() for z in logits.values())


def test_distillation_needs_no_ensemble_in_the_modes_without_it():
    logits, _, _ = problem()
    log_p = {r: F.log_softmax(z, 1) for r, z in logits.items()}
    for mode in ('none', 'largest', 'larger'):
        assert distillation_loss(log_p, None, mode).isfinite()


@pytest.mark.parametrize('change, message', [
    (dict(mode='half'), 'use one of none, vanilla, full, largest, larger'),
    (dict(logits={}), 'expected resolution ->'),
    (dict(logits={96: torch.zeros(4, 3), 64: torch.zeros(4, 2)}), 'one shape for all'),
    (dict(target=torch.zeros(3, dtype=torch.long)), r'class indices \(4,\) or probabilities \(4, 3\)'),
    (dict(alpha=torch.zeros(2)), 'one score for each of the 5 resolutions'),
])
def test_wrong_input_says_what_is_right(change, message):
    logits, target, alpha = problem()
    with pytest.raises(ValueError, match=message):
        mred_loss(**dict(dict(logits=logits, target=target, alpha=alpha), **change))
