"""Switchable networks as files that engines read: one ONNX file with all BatchNorm sets, or one a resolution."""
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .metadata import model_info
    from .onnx_file import export_onnx, onnx_model, split_onnx
    from .parity import max_difference
    from .torch_program import export_torch

__all__ = ['export_onnx', 'export_torch', 'max_difference', 'model_info', 'onnx_model', 'split_onnx']

_HOMES = {  # everything else lives in onnx_file
    'export_torch': 'torch_program',
    'max_difference': 'parity',
    'model_info': 'metadata',
}


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first asked for (PEP 562): a description needs no onnx."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    try:
        module = import_module(f"{__name__}.{_HOMES.get(name, 'onnx_file')}")
    except ModuleNotFoundError as error:
        if error.name != 'onnx':
            raise
        raise ImportError(f"{name} needs onnx: pip install 'rs_timm[onnx]'.") from error
    value = globals()[name] = getattr(module, name)
    return value
