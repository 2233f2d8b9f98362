"""BatchNorm statistics from pictures."""
from .recalibration import add_resolution, recalibrate

__all__ = ['add_resolution', 'recalibrate']
