"""What a network costs, what its BatchNorm sets hold, and what it gets right at which resolution; nothing trains."""
from .agreement import (
    NEVER,
    class_accuracy,
    complementarity,
    sensitivity,
    sufficient_for_classes,
    sufficient_resolution,
)
from .cost import ParameterCounts, activations, madds, parameter_counts
from .features import distribution, pooled_features
from .norms import norm_means
from .predictions import ENSEMBLE, Prediction, Predictions, predict
from .reliability import Reliability, expected_calibration_error, reliability

__all__ = [
    'ENSEMBLE',
    'NEVER',
    'ParameterCounts',
    'Prediction',
    'Predictions',
    'Reliability',
    'activations',
    'class_accuracy',
    'complementarity',
    'distribution',
    'expected_calibration_error',
    'madds',
    'norm_means',
    'parameter_counts',
    'pooled_features',
    'predict',
    'reliability',
    'sensitivity',
    'sufficient_for_classes',
    'sufficient_resolution',
]
