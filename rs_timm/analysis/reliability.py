"""Does a confidence mean what it says? Reliability in bins, and the expected calibration error."""
from dataclasses import dataclass

import numpy as np

__all__ = ['Reliability', 'expected_calibration_error', 'reliability']


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
    if confidence.min() < 0 or confidence.max() > 1 + 1e-6 or np.isnan(confidence).any():
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
