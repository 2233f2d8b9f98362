"""Resolution-switchable networks for timm: one set of weights, one BatchNorm set per input resolution.

Importing the package registers the `rs_*` models, at once or as soon as timm is imported.

>>> import timm, rs_timm
>>> model = timm.create_model('rs_resnet18').eval()
>>> model.resolutions
(224, 192, 160, 128, 96)

A process that serves an exported file with `rs_timm.runtime` never imports torch or timm, nor needs them installed.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

from ._register import register_models

if TYPE_CHECKING:
    from .adaptation import adapt
    from .calibration import add_resolution, recalibrate
    from .export import export_onnx
    from .hub import from_pretrained, push_to_hub, save_pretrained
    from .layers import (
        SwitchableBatchNorm2d,
        convert_switchable_bn,
        extract,
        get_resolution,
        get_resolutions,
        is_switchable,
        remove_resolution,
        set_interpolation,
        set_resolution,
        use_resolution,
    )
    from .models import pack, switchable
    from .runtime import choose_crops

__version__ = '0.1.0.dev0'

__all__ = [
    'SwitchableBatchNorm2d',
    'adapt',
    'add_resolution',
    'choose_crops',
    'convert_switchable_bn',
    'export_onnx',
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

_HOMES = {  # part of the package -> the public names that live there; everything else lives in layers
    'adaptation': ('adapt',),
    'calibration': ('add_resolution', 'recalibrate'),
    'export': ('export_onnx',),
    'hub': ('from_pretrained', 'push_to_hub', 'save_pretrained'),
    'models': ('pack', 'switchable'),
    'runtime': ('choose_crops',),
}
_PARTS = (
    'adaptation', 'analysis', 'calibration', 'data', 'evaluation', 'export', 'format', 'hub', 'labels', 'layers',
    'loading', 'loss', 'models', 'predict', 'quantization', 'runtime', 'segmentation', 'training')
_HOME_OF = {name: part for part, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import a part, or the home of a public name, when it is first asked for (PEP 562)."""
    if name in _PARTS:
        return import_module(f'{__name__}.{name}')
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(f"{__name__}.{_HOME_OF.get(name, 'layers')}"), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__, *_PARTS})


register_models()
