"""Registers the `rs_*` models: at once if timm is loaded, else as soon as it is.

timm's registry is a dictionary inside timm, so that somebody has to import timm first; `rs_timm.runtime`, which serves
exported files where there is no torch, must not be the one.
"""
import sys
from importlib import import_module
from types import ModuleType

import wrapt

__all__ = ['register_models']

_USE_TIMM = (  # the parts that import timm: where one of them is first to, the models wait until it is whole
    'adaptation', 'analysis', 'calibration', 'card', 'data', 'evaluation', 'export', 'hub', 'layers', 'loading',
    'models', 'quantization', 'runtime', 'segmentation', 'tensor_files', 'training')
_WITH_MODELS = ('models', 'segmentation')


def register_models() -> None:
    """Import the registering modules now, or once timm, and a part of this package that wanted it, are imported."""
    whole = set()

    def register(module: ModuleType) -> None:
        whole.add(module.__name__)
        begun = {name for part in _USE_TIMM if (name := f'rs_timm.{part}') in sys.modules}
        if 'timm' in whole and begun <= whole:
            for part in _WITH_MODELS:
                import_module(f'rs_timm.{part}')

    for name in ('timm', *(f'rs_timm.{part}' for part in _USE_TIMM)):
        wrapt.when_imported(name)(register)
