"""Resolution-switchable networks for timm: one set of weights, one BatchNorm set per input resolution.

Importing the package registers the `rs_*` models.

>>> import timm, rs_timm
>>> model = timm.create_model('rs_resnet18').eval()
>>> model.resolutions
(224, 192, 160, 128, 96)
"""
from .calibration import add_resolution, recalibrate
from .hub import from_pretrained, push_to_hub, save_pretrained
from .layers import (
    SwitchableBatchNorm2d,
    convert_switchable_bn,
    extract,
    get_resolution,
    get_resolutions,
    is_switchable,
    pack,
    remove_resolution,
    set_interpolation,
    set_resolution,
    use_resolution,
)
from .models import switchable

__version__ = '0.1.0.dev0'

__all__ = [
    'SwitchableBatchNorm2d',
    'add_resolution',
    'convert_switchable_bn',
    'extract',
    'from_pretrained',
    'get_resolution',
    'get_resolutions',
    'is_switchable',
    'pack',
    'push_to_hub',
    'recalibrate',
    'remove_resolution',
    'save_pretrained',
    'set_interpolation',
    'set_resolution',
    'switchable',
    'use_resolution',
]
