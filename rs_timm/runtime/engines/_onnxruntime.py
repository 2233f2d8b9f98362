"""ONNX Runtime on the CPU: a small package; one session for each resolution."""
from os import PathLike, fspath
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional

import numpy as np
import onnxruntime

from . import Network

__all__ = ['OnnxRuntimeEngine']


class OnnxRuntimeEngine:
    """One `InferenceSession` a network, all graph optimisations on.

    Args:
        precision: 'float32', or 'int8' (of quantised networks).
        threads: per network; None: all cores.
    """

    name = 'onnxruntime'
    any_batch_from = 2  # of a single picture, MobileNetV2 took 1.1 times as long in a network of dynamic batch

    def __init__(self, precision: str = 'float32', threads: Optional[int] = None) -> None:
        self._threads = threads

    def versions(self) -> Dict[str, str]:
        return {'onnxruntime': onnxruntime.__version__}

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = self._threads or 0
        # threads that wait for the next call spin, and take the cores from the network of another resolution: without
        # this, calls that alternated between two sizes took up to three times as long
        options.add_session_config_entry('session.force_spinning_stop', '1')
        if batch is not None:
            options.add_free_dimension_override_by_name('batch', batch)
        session = _load(network, options)
        name = session.get_inputs()[0].name

        def run(images: np.ndarray) -> np.ndarray:
            return session.run(None, {name: images})[0]

        return run


def _load(network: Any, options: Any) -> Any:
    """Load a network from a file: of one in memory, an InferenceSession keeps the bytes beside its own weights."""
    if isinstance(network, (str, PathLike)):
        return onnxruntime.InferenceSession(fspath(network), options, providers=['CPUExecutionProvider'])
    with TemporaryDirectory(prefix='rs_timm_') as folder:
        path = Path(folder, 'network.onnx')
        path.write_bytes(network.SerializeToString())
        return _load(path, options)
