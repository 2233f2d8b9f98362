"""Measures of a network at its resolutions: agreement of the sizes, calibration, BatchNorm sets, features.

Agreement and calibration are functions of arrays of predictions; the others look into the network.
"""
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple

import numpy as np
import torch
from torch import nn

from rs_timm.layers import BN_TENSORS, SwitchableBatchNorm2d, is_switchable, use_resolution

__all__ = [
    'NEVER', 'Means', 'Reliability', 'class_accuracy', 'complementarity', 'distribution',
    'expected_calibration_error', 'norm_means', 'pooled_features', 'reliability', 'sensitivity',
    'sufficient_for_classes', 'sufficient_resolution']

NEVER = 0  # in place of a resolution: no size suffices
Rights = Mapping[int, np.ndarray]  # resolution in pixels -> which pictures are classified correctly, bool [N]
Means = Dict[str, Dict[int, Dict[str, float]]]  # layer -> resolution -> tensor of the BatchNorm -> mean


def complementarity(right: Rights) -> Dict[int, Dict[int, float]]:
    """Share of the pictures that are right at one resolution and wrong at another, in percent.

    >>> right = {224: np.array([True, True, False, False]), 96: np.array([True, False, True, False])}
    >>> complementarity(right)
    {224: {96: 25.0}, 96: {224: 25.0}}

    Args:
        right: resolution -> bool [N], for the same pictures in the same order.

    Returns:
        {right at: {wrong at: percent}}; the pairs of a resolution with itself are left out.

    Source: Table 1.
    """
    return {
        a: {b: float(100. * (right[a] & ~right[b]).sum() / len(right[a])) for b in right if b != a}
        for a in right
    }


def sufficient_resolution(right: Rights) -> np.ndarray:
    """The smallest resolution at which each picture is classified correctly, int64 [N]; `NEVER` (0) if at none.

    A picture may still be wrong at a larger one: that is what `complementarity` counts.

    >>> sufficient_resolution({224: np.array([True, True, False]), 96: np.array([True, False, False])})
    array([ 96, 224,   0])
    """
    smallest = np.full(len(next(iter(right.values()))), NEVER)
    for resolution in sorted(right, reverse=True):
        smallest[right[resolution]] = resolution
    return smallest


def class_accuracy(right: Rights, target: np.ndarray, num_classes: int) -> Dict[int, np.ndarray]:
    """Top-1 of each class at each resolution, in percent, float64 [C]; nan for a class without pictures.

    >>> class_accuracy({96: np.array([True, False, True])}, np.array([0, 0, 2]), 3)
    {96: array([ 50.,  nan, 100.])}
    """
    count = np.bincount(target, minlength=num_classes)
    with np.errstate(invalid='ignore'):
        return {r: 100. * np.bincount(target[hits], minlength=num_classes) / count for r, hits in right.items()}


def sensitivity(accuracy: Mapping[int, np.ndarray]) -> Dict[int, np.ndarray]:
    """Top-1 of each class minus its top-1 at the largest resolution, in points, [C].

    >>> sensitivity({224: np.array([90., 80.]), 96: np.array([70., 80.])})[96]
    array([-20.,   0.])
    """
    largest = max(accuracy)
    return {r: values - accuracy[largest] for r, values in accuracy.items()}


def sufficient_for_classes(accuracy: Mapping[int, np.ndarray], tolerance: float = 1.) -> np.ndarray:
    """The smallest resolution from which on a class stays within `tolerance` points of its top-1 at the largest, [C].

    From which on: every larger resolution is within the tolerance too, so that one lucky size does not count. A class
    without pictures gets `NEVER` (0).

    >>> accuracy = {224: np.array([90., 80.]), 160: np.array([85., 79.5]), 96: np.array([90., 79.])}
    >>> sufficient_for_classes(accuracy)
    array([224,  96])

    Args:
        accuracy: as returned by `class_accuracy`.
        tolerance: points of top-1.

    Raises:
        ValueError: a tolerance below 0, or nan.
    """
    if not tolerance >= 0:
        raise ValueError(f'tolerance is {tolerance:g}: give points of top-1, 0 or more.')
    loss = {r: -points for r, points in sensitivity(accuracy).items()}
    order = sorted(accuracy, reverse=True)
    smallest = np.where(np.isnan(accuracy[order[0]]), NEVER, order[0])
    still = ~np.isnan(accuracy[order[0]])
    for resolution in order[1:]:
        still = still & (np.nan_to_num(loss[resolution], nan=np.inf) <= tolerance)
        smallest[still] = resolution
    return smallest


@dataclass(frozen=True)
class Reliability:
    """Confidence against accuracy in B bins of equal width.

    Attributes:
        edges: of the bins, [B + 1], from 0 to 1.
        count: pictures in each bin, [B].
        confidence: mean confidence in each bin, [B], 0 to 1; nan in an empty bin.
        accuracy: share of correct predictions in each bin, [B], 0 to 1; nan in an empty bin.
    """

    edges: np.ndarray
    count: np.ndarray
    confidence: np.ndarray
    accuracy: np.ndarray

    @property
    def error(self) -> float:
        """The expected calibration error, 0 to 1: the mean gap of confidence and accuracy, weighted by `count`."""
        filled = self.count > 0
        gaps = np.abs(self.confidence[filled] - self.accuracy[filled])
        return float((self.count[filled] * gaps).sum() / self.count.sum())


def reliability(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> Reliability:
    """Sort predictions into `bins` by their confidence.

    >>> found = reliability(np.array([0.55, 0.58, 0.95]), np.array([True, False, True]), bins=10)
    >>> found.count.tolist(), float(found.accuracy[5])
    ([0, 0, 0, 0, 0, 2, 0, 0, 0, 1], 0.5)

    Args:
        confidence: probability of the predicted class, [N], 0 to 1.
        right: whether the prediction is correct, bool [N].
        bins: their number; a bin holds its upper edge, not its lower one.

    Raises:
        ValueError: no predictions, or a confidence outside [0, 1].

    Source: Guo et al., On Calibration of Modern Neural Networks (2017), Equations 1 to 3, with their 15 bins.
    """
    confidence = np.asarray(confidence, dtype=np.float64)
    if not len(confidence):
        raise ValueError('confidence is empty: there is no prediction to judge.')
    if not (confidence.min() >= 0 and confidence.max() <= 1 + 1e-6):  # nan fails too
        raise ValueError(f'confidence reaches from {confidence.min():g} to {confidence.max():g}: it must be a '
                         'probability, 0 to 1; take the softmax of the logits first.')
    edges = np.linspace(0., 1., bins + 1)
    index = np.clip(np.ceil(confidence * bins).astype(int) - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    with np.errstate(invalid='ignore'):
        means = (np.bincount(index, weights=w, minlength=bins) / count for w in (confidence, right))
        return Reliability(edges, count, *means)


def expected_calibration_error(confidence: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """The expected calibration error in percent; see `reliability`.

    >>> round(expected_calibration_error(np.array([0.8, 0.8, 0.8, 0.8]), np.array([True, True, False, False])), 6)
    30.0
    """
    return 100. * reliability(confidence, right, bins).error


def norm_means(model: nn.Module) -> Means:
    """The mean over the channels of each tensor of each BatchNorm set.

    >>> import timm, rs_timm
    >>> means = norm_means(timm.create_model('rs_resnet18', resolutions=(64, 32)))
    >>> means['layer1.0.bn1'][64]
    {'weight': 1.0, 'bias': 0.0, 'running_mean': 0.0, 'running_var': 1.0}

    Args:
        model: a switchable network; a plain one has no sets and gives nothing.

    Returns:
        {layer, in the order of the network: {resolution in pixels, largest first: {'weight' (gamma), 'bias' (beta),
        'running_mean' (mu), 'running_var' (sigma squared): mean}}}; a tensor that a layer lacks is left out.

    Source: Section 4.3, Figure 6.
    """
    layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, SwitchableBatchNorm2d)}
    return {
        name: {
            r: {key: float(t.detach().double().mean()) for key in BN_TENSORS
                if isinstance(t := getattr(layer.set_for(r), key, None), torch.Tensor)}
            for r in sorted(map(int, layer.keys()), reverse=True)}
        for name, layer in layers.items()
    }


@torch.no_grad()
def pooled_features(
        model: nn.Module,
        batches: Iterable[torch.Tensor],
        resolution: int,
        amp_dtype: Optional[torch.dtype] = None,
) -> np.ndarray:
    """The outputs of the global average pooling, float32 [N, C], in evaluation.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 32))
    >>> pooled_features(model, [torch.randn(2, 3, 32, 32)], 32).shape
    (2, 512)

    Args:
        model: a network of timm, switchable or not.
        batches: images [N, 3, H, W].
        resolution: which BatchNorm set to use, pixels.
        amp_dtype: run the network under autocast with this type.
    """
    found: List[torch.Tensor] = []
    network: Any = model
    was_training = model.training
    model.eval()
    try:
        for x in batches:
            pinned: Any = use_resolution(model, resolution) if is_switchable(model) else nullcontext()
            with pinned, torch.autocast(x.device.type, dtype=amp_dtype, enabled=amp_dtype is not None):
                found.append(network.forward_head(network.forward_features(x), pre_logits=True).float().cpu())
    finally:
        model.train(was_training)
    if not found:
        raise ValueError('there are no batches: the distribution of no features is not defined.')
    return torch.cat(found).numpy()


def distribution(values: np.ndarray, points: int = 101) -> Tuple[np.ndarray, np.ndarray]:
    """The cumulative distribution function F of `values`, of any shape, as a curve: x and F(x), each [points].

    The shares 0 to 1 are evenly spaced; x is the smallest value with at least that share at or below it.

    >>> x, share = distribution(np.array([[4., 1.], [2., 3.]]), points=5)
    >>> x.tolist(), share.tolist()
    ([1.0, 1.0, 2.0, 3.0, 4.0], [0.0, 0.25, 0.5, 0.75, 1.0])

    Source: Section 3.2, Figure 3.
    """
    if not np.isfinite(values).all():
        raise ValueError('values are not finite (nan or infinity): they have no distribution.')
    ordered, shares = np.sort(values, axis=None), np.linspace(0., 1., points)
    rank = np.ceil(np.round(shares * ordered.size, 9)).astype(int)  # rounded: 0.1 * 30 is not quite 3
    return ordered[np.maximum(rank - 1, 0)], shares
