"""Serving an exported network without torch: what the file says, its plain network per resolution, and engines.

Importing this imports neither torch nor onnx nor an engine: each is imported when something needs it.
"""
import warnings
from typing import Any

from rs_timm.format.graph import extract_onnx, read_info, read_model
from rs_timm.format.info import ModelInfo

from .accuracy import evaluate_session
from .crop_choice import CropChoice, choose_crops
from .policy.budget import choose_resolution
from .policy.cascade import Cascade, CascadeFit
from .policy.cascade_fit import fit_cascade
from .policy.latency import LatencyTable, measure_latency
from .policy.load import LoadController
from .policy.plan import Plan
from .policy.planner import make_plan
from .preprocessing import Preprocessing
from .session import Session

__all__ = [
    'Cascade',
    'CascadeFit',
    'CropChoice',
    'LatencyTable',
    'LoadController',
    'ModelInfo',
    'Plan',
    'Preprocessing',
    'Session',
    'choose_crops',
    'choose_resolution',
    'evaluate_session',
    'extract_onnx',
    'fit_cascade',
    'make_plan',
    'measure_latency',
    'read_info',
    'read_model',
]


def measure(*args: Any, **kwargs: Any) -> LatencyTable:
    """Call `measure_latency`, which this was called until 0.1."""
    warnings.warn('rs_timm.runtime.measure is measure_latency now.', DeprecationWarning, stacklevel=2)
    return measure_latency(*args, **kwargs)


def specialise(*args: Any, **kwargs: Any) -> Any:
    """Call `extract_onnx`, which this was called until 0.1."""
    warnings.warn('rs_timm.runtime.specialise is extract_onnx now.', DeprecationWarning, stacklevel=2)
    return extract_onnx(*args, **kwargs)
