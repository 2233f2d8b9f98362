"""ONNX Runtime, a small package: on the CPU, or by one of its execution providers."""
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional

import numpy as np
import onnxruntime

from . import Network, Settings

__all__ = ['OnnxRuntimeEngine']

_CPU = 'CPUExecutionProvider'


class OnnxRuntimeEngine:
    """One `InferenceSession` a network, all graph optimisations on.

    Args:
        settings: precision 'float32', or 'int8' (of quantised networks); threads None: all cores; device: the name of
            a provider, as in 'CUDAExecutionProvider' or 'CUDA'; options: of the provider, by its own names; cache_dir
            is not used: TensorRT and others have options of their own for that.

    Raises:
        ValueError: a provider that is not there.
    """

    name = 'onnxruntime'
    any_batch_from = 2  # of a single picture, MobileNetV2 took 1.1 times as long in a network of dynamic batch

    def __init__(self, settings: Settings) -> None:
        self._threads, there = settings.threads, onnxruntime.get_available_providers()
        found = [name for name in there if (settings.device or 'CPU').lower() in (
            name.lower(), name.lower().removesuffix('executionprovider'))]
        if not found:
            raise ValueError(f'ONNX Runtime has no provider {settings.device!r} here: it has {", ".join(there)}.')
        self._provider = found[0]
        self._providers = [(self._provider, dict(settings.options or {}))]
        if self._provider != _CPU:
            self._providers.append((_CPU, {}))  # of operators that the provider does not have

    def versions(self) -> Dict[str, str]:
        device = {} if self._provider == _CPU else {'device': self._provider}
        return {'onnxruntime': onnxruntime.__version__, **device}

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        # threads that wait for the next call spin, and take the cores from the network of another resolution: without
        # this, calls that alternated between two sizes took up to three times as long
        options.add_session_config_entry('session.force_spinning_stop', '1')
        if batch is not None:
            options.add_free_dimension_override_by_name('batch', batch)
        session = _load(network, options, self._providers)
        if session.get_providers()[0] != self._provider:
            raise ValueError(f'ONNX Runtime fell back to {session.get_providers()[0]}: {self._provider} cannot start.')
        name = session.get_inputs()[0].name

        def run(images: np.ndarray) -> np.ndarray:
            return session.run(None, {name: images})[0]

        return run


def _load(network: Any, options: Any, providers: Any) -> Any:
    """Load a network from a file: of one in memory, an InferenceSession keeps the bytes beside its own weights."""
    if isinstance(network, (str, PathLike)):
        return onnxruntime.InferenceSession(fspath(network), options, providers=providers)
    with TemporaryDirectory(prefix='rs_timm_') as folder:
        path = Path(folder, 'network.onnx')
        path.write_bytes(network.SerializeToString())
        return _load(path, options, providers)
