"""Engines that run a network of one resolution. They know nothing of resolutions: a Session keeps one network for each.

Each has a `compile(network, batch)` that returns a function from images, float32 [N, C, r, r], to what the network
gives, float32 [N, ...]. That function may be called from several threads at a time.
"""
import warnings
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, Mapping, NamedTuple, Optional, Protocol, Sequence, Tuple

import numpy as np

__all__ = ['ENGINES', 'PRECISIONS', 'OLD_PRECISIONS', 'Engine', 'Network', 'check_precision', 'create_engine',
           'installed_engines']

ENGINES = ('openvino', 'onnxruntime', 'torch')  # the fastest on a CPU first
PRECISIONS = ('float32', 'bfloat16', 'int8')
OLD_PRECISIONS = {'fp32': 'float32', 'bf16': 'bfloat16', 'fp16': 'float16'}  # until 0.1
Network = Callable[[np.ndarray], np.ndarray]


class _Kind(NamedTuple):
    class_name: str
    precisions: Tuple[str, ...]
    remedy: str


_KINDS = {
    'openvino': _Kind('OpenVinoEngine', ('float32', 'bfloat16', 'int8'), "pip install 'rs_timm[openvino]'"),
    'onnxruntime': _Kind('OnnxRuntimeEngine', ('float32', 'int8'), "pip install 'rs_timm[onnxruntime]'"),
    'torch': _Kind('TorchEngine', ('float32', 'bfloat16'), 'pip install torch'),
}


class Settings(NamedTuple):
    """What an engine is made with; see `create_engine`."""

    precision: str
    threads: Optional[int] = None
    device: Optional[str] = None
    options: Optional[Mapping[str, Any]] = None
    cache_dir: Optional[Path] = None


class Engine(Protocol):
    """The interface of an engine, which `create_engine` makes.

    Attributes:
        name: one of `ENGINES`.
        any_batch_from: batches of this size and above run as fast in one network compiled for any batch; None: no
            batch does, each size wants a network of its own.
    """

    name: str
    any_batch_from: Optional[int]

    def versions(self) -> Dict[str, str]:
        """Package -> version, of all that decides how fast it is."""

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        """A function of images, float32 [N, C, r, r].

        Args:
            network: an `onnx.ModelProto` of static height and width, or the path of a network that this engine has
                written; for the torch engine a module.
            batch: N; None: any.
        """


def installed_engines() -> Tuple[str, ...]:
    """The engines that can be imported, in the order of `ENGINES`; nothing is imported to find out."""
    return tuple(name for name in ENGINES if _is_installed(name))


def _is_installed(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # sys.modules[name] is None, or has no __spec__: somebody has blocked it
        return False


def create_engine(
        name: Optional[str],
        precision: str,
        threads: Optional[int],
        of_torch: bool = False,
        device: Optional[str] = None,
        options: Optional[Mapping[str, Any]] = None,
        cache_dir: Optional[Path] = None,
) -> Engine:
    """The engine `name`, or the first of `ENGINES` that is installed, can do `precision` and has `device`.

    Args:
        name: one of `ENGINES`, or None.
        precision: one of `PRECISIONS`.
        threads: per network; None leaves it to the engine.
        of_torch: the network is a torch model, so that the torch engine can take it.
        device, options: by the engine's own names; None: the CPU.
        cache_dir: a folder for what the engine has compiled.

    Raises:
        ImportError: it, or any at all, is not installed; the message names the extra.
        ValueError: no such engine; a precision or a device that it does not have; less than one thread.
    """
    settings = Settings(check_precision(precision), threads, device, options, cache_dir)
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise ValueError(f'threads={threads!r}: give a positive whole number, or None to leave it to the engine.')
    if name is not None:
        return _create(name, settings, of_torch)
    able = _able(settings.precision, of_torch)
    if device is None:
        return _create(able[0], settings, of_torch)
    reasons = []
    for each in able:
        try:
            return _create(each, settings, of_torch)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError(' '.join(reasons))


def _create(name: str, settings: Settings, of_torch: bool) -> Engine:
    if name not in _KINDS:
        raise ValueError(f'engine {name!r} is unknown: choose one of {", ".join(ENGINES)}.')
    kind = _KINDS[name]
    if name == 'torch' and not of_torch:
        raise ValueError("the torch engine runs torch models, not exported files: give the session the model itself, "
                         "or take engine='openvino' or 'onnxruntime'.")
    if settings.precision not in kind.precisions:
        raise ValueError(
            f'the engine {name} cannot run in {settings.precision}: it can in {", ".join(kind.precisions)}.')
    if not _is_installed(name):
        raise ImportError(f'the engine {name} is not installed: {kind.remedy}.')
    return getattr(import_module(f'{__name__}._{name}'), kind.class_name)(settings)


def check_precision(precision: str) -> str:
    """Return the name of a precision, or raise ValueError unless it is one of `PRECISIONS`.

    The names of earlier versions, 'fp32' and 'bf16', go on working, with a DeprecationWarning.
    """
    if precision in OLD_PRECISIONS:
        warnings.warn(f'precision {precision!r} is called {OLD_PRECISIONS[precision]!r} now.', DeprecationWarning,
                      stacklevel=3)
        precision = OLD_PRECISIONS[precision]
    if precision not in PRECISIONS:
        raise ValueError(f'precision {precision!r} is unknown: choose one of {", ".join(PRECISIONS)}.')
    return precision


def _able(precision: str, of_torch: bool) -> Sequence[str]:
    """The installed engines that can do the precision."""
    able = [name for name in installed_engines()
            if precision in _KINDS[name].precisions and (of_torch or name != 'torch')]
    if not able:
        raise ImportError(
            f"no engine is installed that runs {'this model' if of_torch else 'an exported file'} in {precision}: "
            f"{_KINDS['openvino'].remedy} (the fastest on a CPU), or {_KINDS['onnxruntime'].remedy}.")
    return able
