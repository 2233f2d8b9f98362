"""Registers the `rs_*` models: at once if timm is loaded, else as soon as it is.

timm's registry is a dictionary inside timm, so that somebody has to import timm first; `rs_timm.runtime`, which serves
exported files where there is no torch, must not be the one.
"""
import sys
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Optional

__all__ = ['WITHOUT_TORCH', 'register_models']

WITHOUT_TORCH = (  # the parts that never import torch or timm, or only when a command wants them
    '__main__', '_register', 'atomic', 'cli', 'commands', 'format', 'interpolation', 'pictures', 'predict',
    'resolutions', 'runtime')
_PARTS_WITH_MODELS = ('models', 'segmentation')


def register_models() -> None:
    """Import the registering modules now, or once timm or a part of this package that uses it has been imported."""
    if sys.modules.get('timm') is not None:  # None: somebody has blocked it
        _import_models()
    elif not any(isinstance(finder, _AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, _AfterTimm())


def _import_models() -> None:
    for part in _PARTS_WITH_MODELS:
        import_module(f'rs_timm.{part}')


class _AfterTimm(MetaPathFinder):
    """Adds one thing to do after the first module of interest that is run; finding it is left to the others."""

    def find_spec(self, fullname: str, path: Any, target: Optional[ModuleType] = None) -> Optional[ModuleSpec]:
        if fullname != 'timm' and not _needs_timm(fullname):
            return None
        others = (finder for finder in sys.meta_path if finder is not self)
        spec = next(filter(None, (finder.find_spec(fullname, path, target) for finder in others)), None)
        if spec is not None and spec.loader is not None:
            spec.loader = _ThenRegister(spec.loader, self)
        return spec


def _needs_timm(fullname: str) -> bool:
    package, _, rest = fullname.partition('.')
    return package == 'rs_timm' and rest.partition('.')[0] not in WITHOUT_TORCH


class _ThenRegister(Loader):
    """The module's own loader, with our models imported when it is done."""

    def __init__(self, loader: Loader, finder: _AfterTimm) -> None:
        self.loader = loader
        self.finder = finder

    def create_module(self, spec: ModuleSpec) -> Optional[ModuleType]:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        assert module.__spec__ is not None
        if self.finder in sys.meta_path:
            sys.meta_path.remove(self.finder)
        module.__spec__.loader = module.__loader__ = self.loader  # resources and inspect see the real one
        self.loader.exec_module(module)
        _import_models()

    def __getattr__(self, name: str) -> Any:
        """What runpy (`python -m`, which runs the code by itself) and others ask of a loader."""
        return getattr(self.loader, name)
