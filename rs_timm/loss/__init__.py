"""Multi-resolution ensemble distillation as pure functions of `{resolution: logits}`."""
from .mred import (
    IGNORED,
    MODES,
    classification_loss,
    dense_mred_loss,
    distillation_loss,
    ensemble_logits,
    ensemble_loss,
    ensemble_weights,
    mred_loss,
)

__all__ = [
    'IGNORED',
    'MODES',
    'classification_loss',
    'dense_mred_loss',
    'distillation_loss',
    'ensemble_logits',
    'ensemble_loss',
    'ensemble_weights',
    'mred_loss',
]
