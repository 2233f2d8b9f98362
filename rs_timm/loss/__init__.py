"""Multi-resolution ensemble distillation as pure functions of `{resolution: logits}`."""
from .mred import (
    MODES,
    classification_loss,
    distillation_loss,
    ensemble_logits,
    ensemble_loss,
    ensemble_weights,
    mred_loss,
)

__all__ = [
    'MODES',
    'classification_loss',
    'distillation_loss',
    'ensemble_logits',
    'ensemble_loss',
    'ensemble_weights',
    'mred_loss',
]
