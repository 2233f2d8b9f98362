"""Cost, BatchNorm sets, and what a network gets right at which resolution; nothing trains."""
from .cost import ParameterCounts, activations, madds, parameter_counts
from .measures import (
    NEVER,
    Reliability,
    class_accuracy,
    complementarity,
    distribution,
    expected_calibration_error,
    norm_means,
    pooled_features,
    reliability,
    sensitivity,
    sufficient_for_classes,
    sufficient_resolution,
)
from .predictions import ENSEMBLE, Prediction, Predictions, predict

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
