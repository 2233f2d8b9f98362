"""Private BatchNorm sets and the switch between them."""
from rs_timm.interpolation import BN_TENSORS, INTERPOLATIONS, bracket, interpolate_bn
from rs_timm.resolutions import check_resolutions, input_resolution

from ._state_dict import PAPER_RESOLUTIONS
from .convert import convert_switchable_bn, extract, insert_resolution, pack, remove_resolution
from .switch import (
    ResolutionSelector,
    get_interpolation,
    get_resolution,
    get_resolutions,
    is_switchable,
    learned_alpha,
    set_idle_gradients,
    set_interpolation,
    set_resolution,
    use_resolution,
)
from .switchable_bn import SwitchableBatchNorm2d, switchable_layers

__all__ = [
    'BN_TENSORS',
    'INTERPOLATIONS',
    'PAPER_RESOLUTIONS',
    'ResolutionSelector',
    'SwitchableBatchNorm2d',
    'bracket',
    'check_resolutions',
    'convert_switchable_bn',
    'extract',
    'get_interpolation',
    'get_resolution',
    'get_resolutions',
    'input_resolution',
    'insert_resolution',
    'interpolate_bn',
    'is_switchable',
    'learned_alpha',
    'pack',
    'remove_resolution',
    'set_idle_gradients',
    'set_interpolation',
    'set_resolution',
    'switchable_layers',
    'use_resolution',
]
