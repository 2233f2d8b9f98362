"""Semantic segmentation: RefineNet on switchable encoders, its metrics and pictures. Importing this registers them."""
from . import rs_refinenet
from .metrics import class_ious, confusion_matrix, predicted_classes, segmentation_scores, upsampled
from .overlay import class_colours, comparison, overlay
from .refinenet import RefineNet
from .rs_refinenet import SEGMENTATION_RESOLUTIONS, RSRefineNet, load_encoder

__all__ = [
    'RSRefineNet',
    'RefineNet',
    'SEGMENTATION_RESOLUTIONS',
    'class_colours',
    'class_ious',
    'comparison',
    'confusion_matrix',
    'load_encoder',
    'overlay',
    'predicted_classes',
    'rs_refinenet',
    'segmentation_scores',
    'upsampled',
]
