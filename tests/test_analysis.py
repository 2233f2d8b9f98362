"""Analyses against brute force and closed forms."""
from io import BytesIO
from itertools import product

import numpy as np
import pytest
import timm
import torch

import rs_timm
from rs_timm.analysis import (
    ENSEMBLE,
    NEVER,
    Predictions,
    class_accuracy,
    complementarity,
    distribution,
    expected_calibration_error,
    norm_means,
    pooled_features,
    predict,
    reliability,
    sensitivity,
    sufficient_for_classes,
    sufficient_resolution,
)

SIZES = (64, 48, 32)


@pytest.fixture
def right():
    generator = np.random.default_rng(0)
    return {r: generator.random(200) < share for r, share in zip(SIZES, (0.8, 0.7, 0.5))}


class Batches(list):
    """Three batches at four sizes, with pictures that have no label among them."""

    def __init__(self, sizes=(64, 48, 40, 32)):
        generator = torch.Generator().manual_seed(0)
        labels = torch.tensor([[3, 1, -1, 0], [6, 5, 4, 2], [-1, 0, 1, 6]])
        super().__init__(({r: torch.randn(4, 3, r, r, generator=generator) for r in sizes}, label) for label in labels)


@pytest.fixture
def model(random_statistics):
    return random_statistics(rs_timm.switchable('test_resnet', SIZES, num_classes=7))


def test_complementarity_is_the_count_of_pairs(right):
    found = complementarity(right)
    for a, b in product(SIZES, SIZES):
        if a == b:
            assert b not in found[a]
            continue
        assert found[a][b] == 100 * sum(x and not y for x, y in zip(right[a], right[b])) / 200
        gap = 100 * (right[a].mean() - right[b].mean())  # what both get right cancels
        assert found[a][b] - found[b][a] == pytest.approx(gap)


def test_the_smallest_sufficient_size_of_each_picture(right):
    found = sufficient_resolution(right)
    for i in range(200):
        hits = [r for r in SIZES if right[r][i]]
        assert found[i] == (min(hits) if hits else NEVER)
    assert (found == min(SIZES)).sum() == right[min(SIZES)].sum()


def test_class_accuracy_and_sensitivity(right):
    target = np.random.default_rng(1).integers(0, 5, 200)
    target[target == 3] = 4  # class 3 has no pictures
    found = class_accuracy(right, target, 5)
    for r, label in product(SIZES, (0, 1, 2, 4)):
        assert found[r][label] == pytest.approx(100 * right[r][target == label].mean())
        assert sensitivity(found)[r][label] == pytest.approx(found[r][label] - found[64][label])
    assert np.isnan(found[64][3])
    counts = np.bincount(target, minlength=5)
    assert np.nansum(found[48] * counts) / 200 == pytest.approx(100 * right[48].mean())  # classes add up to the whole


@pytest.mark.parametrize('accuracy, tolerance, expected', [
    ((90, 90, 90), 1, 32),
    ((90, 89, 88), 1, 48),
    ((90, 89, 88), 2, 32),
    ((90, 85, 90), 1, 64),  # right again at the smallest size alone: luck
    ((90, 95, 89), 1, 32),  # better than at the largest is no loss
    ((float('nan'),) * 3, 1, NEVER),
])
def test_the_smallest_sufficient_size_of_a_class(accuracy, tolerance, expected):
    values = {r: np.array([value], dtype=float) for r, value in zip(SIZES, accuracy)}
    assert sufficient_for_classes(values, tolerance).tolist() == [expected]
    with pytest.raises(ValueError, match='tolerance is nan'):
        sufficient_for_classes(values, float('nan'))


def test_calibration_error_by_brute_force():
    generator = np.random.default_rng(2)
    confidence = generator.random(500).astype(np.float32)
    right = generator.random(500) < confidence ** 2
    error = 0.
    for low in range(15):
        bin = [(c, hit) for c, hit in zip(confidence.astype(float), right) if low / 15 < c <= (low + 1) / 15]
        if bin:
            error += len(bin) / 500 * abs(sum(c for c, _ in bin) - sum(hit for _, hit in bin)) / len(bin)
    assert expected_calibration_error(confidence, right) == pytest.approx(100 * error)
    found = reliability(confidence, right)
    assert found.count.sum() == 500 and len(found.edges) == 16


@pytest.mark.parametrize('confidence', [[], [0.5, 1.2], [-0.1], [float('nan')]])
def test_what_is_no_probability_is_refused(confidence):
    with pytest.raises(ValueError, match='confidence'):
        reliability(np.array(confidence), np.ones(len(confidence), dtype=bool))


def test_predictions_picture_by_picture(model):
    found = predict(model, Batches(), SIZES, {64: 0.7, 32: 0.3})
    assert found.target.tolist() == [3, 1, 0, 6, 5, 4, 2, 0, 1, 6]  # those with a label, in order
    model.eval()
    logits = {r: torch.cat([rs_timm.extract(model, r)(images[r])[target >= 0] for images, target in Batches()])
              for r in SIZES}
    logits[ENSEMBLE] = 0.7 * logits[64] + 0.3 * logits[32]
    for row, z in logits.items():
        said, p = found.at[row], z.softmax(1).detach()
        assert found.accuracy(row)['top1'] == pytest.approx(100 * (p.argmax(1).numpy() == found.target).mean())
        assert said.label.tolist() == p.argmax(1).tolist()
        assert said.confidence == pytest.approx(p.max(1).values.numpy(), abs=1e-6)
        assert said.loss == pytest.approx(-p.log()[range(10), found.target].numpy(), abs=1e-5)
        ranks = (p > p[range(10), found.target][:, None]).sum(1)
        assert said.in_top5.tolist() == (ranks < 5).tolist()


def test_predictions_leave_the_model_as_it_was(model):
    rs_timm.set_resolution(model.train(), 48)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    predict(model, Batches(), SIZES)
    assert model.training and rs_timm.get_resolution(model) == 48
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_predictions_without_labels_are_refused(model):
    images, target = Batches()[0]
    with pytest.raises(ValueError, match='no picture with a label'):
        predict(model, [(images, target.fill_(-1))], SIZES)


def test_predictions_are_saved_and_loaded(model):
    found = predict(model, Batches(), SIZES, {64: 0.5, 32: 0.5})
    again = Predictions.load(BytesIO(found.to_bytes()))
    assert list(again.at) == list(found.at) == [64, 48, 32, ENSEMBLE] and np.array_equal(again.target, found.target)
    for row, said in found.at.items():
        for name, values in vars(said).items():
            assert np.array_equal(getattr(again.at[row], name), values)


def test_norm_means_are_means_over_channels(model):
    found = norm_means(model)
    layers = {n: m for n, m in model.named_modules() if isinstance(m, rs_timm.SwitchableBatchNorm2d)}
    assert list(found) == list(layers)
    for name, layer in layers.items():
        assert list(found[name]) == list(SIZES)
        for r in SIZES:
            for key, value in found[name][r].items():
                assert value == pytest.approx(getattr(layer.set_for(r), key).detach().numpy().mean(), rel=1e-5)
    assert norm_means(timm.create_model('test_resnet')) == {}


def test_pooled_features_are_what_the_classifier_sees(model):
    x = torch.randn(5, 3, 48, 48)
    found = pooled_features(model.train(), x.split(2), 48)
    assert model.training
    plain = rs_timm.extract(model, 48).eval()
    assert torch.allclose(plain.fc(torch.from_numpy(found)), plain(x), atol=1e-6)
    with pytest.raises(ValueError, match='no batches'):
        pooled_features(model, [], 48)


def test_the_distribution_is_that_of_the_values():
    values = np.random.default_rng(3).exponential(size=(30, 10)).round(1)  # with ties
    x, share = distribution(values, points=61)
    assert x[0] == values.min() and x[-1] == values.max() and (np.diff(x) >= 0).all()
    for value, wanted in zip(x, share):
        assert (values <= value).mean() >= wanted - 1e-9  # at least that share, and no smaller value has it
        assert not wanted or (values < value).mean() < wanted
