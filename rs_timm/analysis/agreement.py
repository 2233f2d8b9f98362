"""Which resolution gets which picture right: complementarity, the smallest size that suffices, and classes."""
from typing import Dict, Mapping, Sequence

import numpy as np

__all__ = ['NEVER', 'class_accuracy', 'complementarity', 'sensitivity', 'sufficient_for_classes',
           'sufficient_resolution']

NEVER = 0  # in place of a resolution: no size suffices
Rights = Mapping[int, np.ndarray]  # resolution in pixels -> which pictures are classified correctly, bool [N]


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
    """
    loss = {r: -points for r, points in sensitivity(accuracy).items()}
    order: Sequence[int] = sorted(accuracy, reverse=True)
    smallest = np.where(np.isnan(accuracy[order[0]]), NEVER, order[0])
    still = ~np.isnan(accuracy[order[0]])
    for resolution in order[1:]:
        still = still & (np.nan_to_num(loss[resolution], nan=np.inf) <= tolerance)
        smallest[still] = resolution
    return smallest
