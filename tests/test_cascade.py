"""The cascade answers as its parts do, and its fit is the best that there is: against brute force."""
import itertools
import json
import math

import numpy as np
import pytest

from rs_timm.runtime.policy.cascade import (
    Cascade,
    CascadeFit,
    combine_logits,
    confidence,
    fit_temperature,
    stage_weights,
)
from rs_timm.runtime.policy.cascade_fit import Stages, fit_cascade, separating_thresholds

SIZES = (32, 48, 64)
COSTS = {32: 1., 48: 2.5, 64: 4.}
ALPHA = {64: 0.5, 48: 0.2, 32: 0.3}


def logits_of(count, classes=3, seed=0, sizes=SIZES):
    """Logits that get better with size, and their targets."""
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes, count)
    clean = 2. * np.eye(classes)[targets]
    return {size: (clean + rng.normal(0, 96 / size, (count, classes))).astype(np.float32) for size in sizes}, targets


def photos(count):
    return [np.full((4, 4, 3), index, np.uint8) for index in range(count)]


class Pictures:
    """Stands for a session: the number of a picture is in its pixels, logits are in a table, calls are written down."""

    def __init__(self, logits, alpha=None):
        self.logits, self.calls = logits, []
        self.info = type('Info', (), dict(alpha=alpha))

    def preprocess(self, images, resolution):
        return np.array([image[0, 0, 0] for image in images], np.float32)[:, None, None, None]

    def run(self, x, resolution=None):
        chosen = x[:, 0, 0, 0].astype(int)
        self.calls.append((resolution, chosen.tolist()))
        return self.logits[resolution][chosen]


def answers(logits, thresholds, temperatures, combine, sizes=SIZES):
    """Picture by picture, as the docstring says."""
    count = len(logits[sizes[0]])
    result, answered = [], []
    for index in range(count):
        for stage, size in enumerate(sizes):
            seen = [logits[s][index:index + 1] for s in sizes[:stage + 1]]
            weights = {'last': [0.] * stage + [1.], 'mean': [1.] * (stage + 1), 'alpha': [ALPHA[s] for s in sizes]}
            mixed = np.average(seen, axis=0, weights=weights[combine][:stage + 1])
            p = np.exp(mixed / temperatures[size])
            if size == sizes[-1] or (p / p.sum()).max() >= thresholds[size]:
                result.append(mixed[0]), answered.append(size)
                break
    return np.array(result), answered


@pytest.mark.parametrize('combine', ['last', 'mean', 'alpha'])
@pytest.mark.parametrize('max_batch', [1, 8])
def test_each_picture_gets_what_it_would_get_alone(combine, max_batch):
    logits, _ = logits_of(37)
    thresholds, temperatures = {32: 0.9, 48: 0.8}, {32: 1.5, 48: 0.7, 64: 1.}
    session = Pictures(logits, ALPHA)
    cascade = Cascade(session, SIZES[::-1], thresholds, temperatures, combine, max_batch=max_batch)
    result = cascade(photos(37))
    expected, answered = answers(logits, thresholds, temperatures, combine)
    assert result.answered.tolist() == answered and len(set(answered)) == 3
    np.testing.assert_allclose(result.logits, expected, rtol=1e-5, atol=1e-5)
    ready = {size: np.arange(37, dtype=np.float32)[:, None, None, None] for size in SIZES}
    np.testing.assert_array_equal(cascade.run(ready).logits, result.logits)


def test_only_the_unsure_go_on_in_full_batches():
    logits, _ = logits_of(37)
    session = Pictures(logits)
    result = Cascade(session, SIZES, 0.9, max_batch=8)(photos(37))
    seen = {size: [i for r, chosen in session.calls for i in chosen if r == size] for size in SIZES}
    assert seen[32] == list(range(37))
    assert seen[48] == np.flatnonzero(result.answered > 32).tolist()
    assert seen[64] == np.flatnonzero(result.answered > 48).tolist()
    for size in SIZES:
        lengths = [len(chosen) for r, chosen in session.calls if r == size]
        assert lengths[:-1] == [8] * (len(lengths) - 1) and lengths[-1] <= 8


@pytest.mark.parametrize('threshold, used', [(1e-6, {32}), (1.5, {64})])
def test_thresholds_at_the_ends(threshold, used):
    logits, _ = logits_of(5)
    result = Cascade(Pictures(logits), SIZES, threshold)(photos(5))
    assert set(result.answered) == used and result.shares() == {next(iter(used)): 1.}
    np.testing.assert_array_equal(result.logits, logits[next(iter(used))])


def test_one_picture_needs_no_list():
    logits, _ = logits_of(1)
    assert Cascade(Pictures(logits), SIZES)(photos(1)[0]).logits.shape == (1, 3)


@pytest.mark.parametrize('options, words', [
    (dict(thresholds={32: 0.9}), r'thresholds .*\(32, 48\).*\[48\]'),
    (dict(thresholds={32: 0.9, 48: 0.9, 64: 0.9}), r'\[64\]'),
    (dict(thresholds=0.), 'positive'),
    (dict(temperatures={32: 1., 48: 1., 64: -1.}), 'temperatures -1.0 at 64'),
    (dict(combine='best'), "combine 'best'.*'last', 'mean', 'alpha'"),
    (dict(combine='alpha'), 'has none'),
    (dict(combine='alpha', alpha={32: 1.}), r'\[48, 64\]'),
    (dict(combine='alpha', alpha={32: 0., 48: 1., 64: 0.}), 'smallest'),
    (dict(resolutions=()), 'empty'),
    (dict(max_batch=0), 'max_batch 0'),
])
def test_a_cascade_that_does_not_fit_together(options, words):
    with pytest.raises(ValueError, match=words):
        Cascade(Pictures({}), **{'resolutions': SIZES, **options})


def test_tensors_that_do_not_fit_together():
    cascade = Cascade(Pictures({}), SIZES)
    with pytest.raises(ValueError, match=r'\[48, 64\] px are missing'):
        cascade.run({32: np.zeros((1, 3, 32, 32))})
    for counts in ((1, 2, 2), (0, 0, 0)):
        with pytest.raises(ValueError, match='number of pictures'):
            cascade.run({size: np.zeros(count) for size, count in zip(SIZES, counts)})
    with pytest.raises(ValueError, match='no pictures'):
        cascade([])
    with pytest.raises(ValueError, match=r'cascade.run\('):
        cascade(np.zeros((2, 3, 32, 32), np.float32))


# calibration

def test_confidence_is_the_largest_probability():
    logits = np.random.default_rng(0).normal(0, 30, (50, 7)).astype(np.float32)
    for temperature in (0.1, 1., 40.):
        p = np.exp(logits.astype(np.longdouble) / temperature)
        np.testing.assert_allclose(confidence(logits, temperature), (p / p.sum(1, keepdims=True)).max(1), rtol=1e-9)


def test_temperature_is_the_minimum_of_the_cross_entropy():
    logits, targets = logits_of(300)
    def cross_entropy(temperature):
        z = logits[48].astype(float) / temperature
        return (np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), targets]).mean()

    found = fit_temperature(logits[48], targets)
    grid = np.geomspace(0.05, 20, 4001)
    assert found == pytest.approx(grid[np.argmin([cross_entropy(t) for t in grid])], rel=2e-3)
    assert fit_temperature(7. * logits[48], targets) == pytest.approx(7. * found, rel=1e-5)


def test_temperature_of_the_degenerate_ends():
    eye = np.eye(3)
    assert fit_temperature(eye, np.arange(3)) == pytest.approx(1e-3)  # never wrong: as sure as can be
    assert fit_temperature(eye, (np.arange(3) + 1) % 3) == pytest.approx(1e3)  # always wrong: as unsure as can be


def test_combination_of_stages():
    parts = [np.array([[1., 2.]]), np.array([[3., 0.]])]
    assert combine_logits(parts, stage_weights((32, 64), 'last')).tolist() == [[3., 0.]]
    assert combine_logits(parts, stage_weights((32, 64), 'mean')).tolist() == [[2., 1.]]
    weighted = combine_logits(parts, stage_weights((32, 64), 'alpha', ALPHA))
    np.testing.assert_allclose(weighted, (0.3 * parts[0] + 0.5 * parts[1]) / 0.8)


# the search

def test_thresholds_separate_in_every_way_and_not_at_a_value():
    values = np.array([0.3, 0.9, np.nextafter(0.9, 1), 0.3, 1.])
    thresholds = separating_thresholds(values, 100)
    counts = [(values >= t).sum() for t in thresholds]
    assert counts == [5, 3, 2, 1, 0]
    few = separating_thresholds(np.linspace(0.1, 0.9, 1000), 11)
    counts = [(np.linspace(0.1, 0.9, 1000) >= t).sum() for t in few]
    assert counts == list(range(1000, -1, -100))


def brute_force(logits, targets, costs, combine, sizes, subsets):
    """(correct, mean cost) of every cascade that these pictures can tell apart."""
    chosen = [s for n in range(1, len(sizes) + 1) for s in itertools.combinations(sizes, n)] if subsets else [sizes]
    for subset in chosen:
        mixed = [combine_logits([logits[s] for s in subset[:n]], stage_weights(subset[:n], combine, ALPHA))
                 for n in range(1, len(subset) + 1)]
        sure = [confidence(m, fit_temperature(m, targets)) for m in mixed]
        correct = [m.argmax(1) == targets for m in mixed]
        prefix = np.cumsum([costs[s] for s in subset])
        for thresholds in itertools.product(*([*values, 2.] for values in sure[:-1])):
            right = paid = 0
            for i in range(len(targets)):
                stage = next((k for k, t in enumerate(thresholds) if sure[k][i] >= t), len(subset) - 1)
                right, paid = right + correct[stage][i], paid + prefix[stage]
            yield right, paid / len(targets)


@pytest.mark.parametrize('combine', ['last', 'mean', 'alpha'])
@pytest.mark.parametrize('subsets', [True, False])
@pytest.mark.parametrize('seed', range(4))
def test_the_fit_is_the_best_there_is(combine, subsets, seed):
    logits, targets = logits_of(8, seed=seed)
    points = set(brute_force(logits, targets, COSTS, combine, SIZES, subsets))
    options = dict(costs=COSTS, combine=combine, alpha=ALPHA, subsets=subsets)
    for budget in (1., 1.6, 2.7, 3.9, 5.5, 7.5):
        possible = [(-right, cost) for right, cost in points if cost <= budget + 1e-9]
        if not possible:
            with pytest.raises(ValueError, match='below the cheapest'):
                fit_cascade(logits, targets, budget=budget, **options)
            continue
        right, cost = min(possible)
        fit = fit_cascade(logits, targets, budget=budget, **options)
        assert (fit.accuracy, fit.cost) == (pytest.approx(-100. * right / 8), pytest.approx(cost))
    for wanted in range(1, 9):
        possible = [(cost, -right) for right, cost in points if right >= wanted]
        if not possible:
            with pytest.raises(ValueError, match=f'out of reach.*reaches {100 * max(points)[0] / 8:.2f} %'):
                fit_cascade(logits, targets, accuracy=100. * wanted / 8, **options)
            continue
        cost, right = min(possible)
        fit = fit_cascade(logits, targets, accuracy=100. * wanted / 8, **options)
        assert (fit.accuracy, fit.cost) == (pytest.approx(-100. * right / 8), pytest.approx(cost))


def test_four_resolutions_with_few_pictures_are_searched_in_full_too():
    sizes, costs = (32, 40, 48, 64), {32: 1., 40: 1.5, 48: 2.5, 64: 4.}
    logits, targets = logits_of(5, sizes=sizes, seed=2)
    points = list(brute_force(logits, targets, costs, 'last', sizes, True))
    fit = fit_cascade(logits, targets, budget=3., costs=costs)
    right, cost = min((-right, cost) for right, cost in points if cost <= 3. + 1e-9)
    assert (fit.accuracy, fit.cost) == (pytest.approx(-20. * right), pytest.approx(cost))


@pytest.mark.parametrize('combine', ['last', 'mean', 'alpha'])
def test_running_the_fitted_cascade_gives_what_the_fit_says(combine):
    logits, targets = logits_of(200, classes=5)
    fit = fit_cascade(logits, targets, budget=3., costs=COSTS, combine=combine, alpha=ALPHA)
    result = Cascade.fitted(Pictures(logits), fit)(photos(200))
    assert 100. * (result.logits.argmax(1) == targets).mean() == pytest.approx(fit.accuracy)
    assert result.shares() == {size: share for size, share in fit.shares.items() if share}
    prefix = dict(zip(fit.resolutions, np.cumsum([COSTS[size] for size in fit.resolutions])))
    assert np.mean([prefix[size] for size in result.answered]) == pytest.approx(fit.cost) and fit.cost <= 3.


def test_more_budget_is_never_worse_and_beats_single_resolutions():
    logits, targets = logits_of(300, classes=5)
    budgets = [1., 1.5, 2., 3., 4., 5., 7.5]
    fits = [fit_cascade(logits, targets, budget=budget, costs=COSTS) for budget in budgets]
    accuracies = [fit.accuracy for fit in fits]
    assert accuracies == sorted(accuracies) and all(fit.cost <= b + 1e-9 for fit, b in zip(fits, budgets))
    for size in SIZES:
        alone = 100. * (logits[size].argmax(1) == targets).mean()
        assert fit_cascade(logits, targets, budget=COSTS[size], costs=COSTS).accuracy >= alone
        assert fit_cascade(logits, targets, accuracy=alone, costs=COSTS).cost <= COSTS[size] + 1e-9


def test_a_coarse_search_keeps_its_budget():
    logits, targets = logits_of(300, classes=5)
    exact = fit_cascade(logits, targets, budget=3., costs=COSTS)
    coarse = fit_cascade(logits, targets, budget=3., costs=COSTS, effort=8)
    assert coarse.cost <= 3. + 1e-9 and coarse.accuracy <= exact.accuracy


def test_costs_are_pixels_unless_given():
    logits, targets = logits_of(40)
    fit = fit_cascade(logits, targets, budget=0.25)
    assert (fit.resolutions, fit.cost) == ((32,), 0.25)


def test_a_fit_is_kept_in_a_file(tmp_path):
    logits, targets = logits_of(60)
    for combine in ('last', 'alpha'):
        fit = fit_cascade(logits, targets, budget=4., costs=COSTS, combine=combine, alpha=ALPHA)
        fit.save(tmp_path / 'cascade.json')
        assert CascadeFit.load(tmp_path / 'cascade.json') == fit


@pytest.mark.parametrize('change, words', [
    (dict(thresholds={'32': -1.}), 'thresholds'),
    (dict(thresholds={'32': float('nan')}), 'x.json: thresholds.32: input should be a finite number'),
    (dict(temperatures={'32': 1.}), 'temperatures .* for each of'),
    (dict(combine='alpha'), 'alpha'),
    (dict(resolutions=[32, 48.5]), r'resolutions\.1'),
    (dict(accuracy=101.), 'accuracy 101'),
    (dict(cost='1'), 'cost: input should be a valid number'),
    (dict(other=1), 'other: unexpected'),
])
def test_fits_with_values_that_cannot_be(tmp_path, change, words):
    fit = CascadeFit((32, 48), {32: 0.5}, {32: 1., 48: 1.}, 'last', None, 90., 1.5, {32: 0.5, 48: 0.5})
    fit.save(tmp_path / 'x.json')
    content = {**json.loads((tmp_path / 'x.json').read_text()), **change}
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words):
        CascadeFit.load(tmp_path / 'x.json')


@pytest.mark.parametrize('options, words', [
    (dict(), 'either budget'),
    (dict(budget=1., accuracy=90.), 'either budget'),
    (dict(accuracy=0.9), 'percent are meant'),
    (dict(accuracy=101.), 'percent are meant'),
    (dict(budget=1., costs={32: 1.}), r'costs \{32: 1.0\}'),
    (dict(budget=1., costs={**COSTS, 48: 0.}), 'positive'),
    (dict(budget=9., combine='product'), "'product'"),
    (dict(budget=9., combine='alpha'), 'weights of the ensemble'),
])
def test_wrong_arguments(options, words):
    logits, targets = logits_of(10)
    with pytest.raises(ValueError, match=words):
        fit_cascade(logits, targets, **options)


@pytest.mark.parametrize('change, words', [
    (lambda logits, targets: ({**logits, 48: logits[48][:5]}, targets), 'same pictures'),
    (lambda logits, targets: (logits, targets[:5]), 'same pictures'),
    (lambda logits, targets: (logits, targets + 1), 'from 0 to 2; they are'),
    (lambda logits, targets: (logits, targets * 1.), 'float64'),
    (lambda logits, targets: ({**logits, 48: logits[48] * math.nan}, targets), r'\[48\] px are not all finite'),
])
def test_wrong_logits(change, words):
    logits, targets = change(*logits_of(10))
    with pytest.raises(ValueError, match=words):
        fit_cascade(logits, targets, budget=9.)


def test_answered_is_the_first_that_is_sure():
    stages = Stages((32, 64), [np.array([0.2, 0.5, 0.9])], [np.ones(3, bool)] * 2, np.array([1., 5.]))
    assert stages.answered((0.5,)).tolist() == [1, 0, 0]
