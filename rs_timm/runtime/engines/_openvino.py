"""OpenVINO: on a CPU the fastest of the engines, and for GPUs and NPUs of Intel; a network for each static shape."""
from collections import deque
from os import PathLike, fspath
from typing import Any, Deque, Dict, Optional, Tuple

import numpy as np
import openvino

from . import Network, Settings

__all__ = ['OpenVinoEngine']

_HINTS = {'float32': 'f32', 'bfloat16': 'bf16', 'int8': 'f32'}  # of the parts of an int8 network that are not quantised


class OpenVinoEngine:
    """Compiles for latency: one stream, static shapes.

    Args:
        settings: precision 'float32', 'bfloat16' (where the CPU has it) or 'int8' (of quantised networks); threads on
            the CPU, None: all cores; device 'CPU', 'GPU', 'NPU', 'AUTO', 'AUTO:GPU,CPU' and so on; options: properties
            of OpenVINO for the device, by its own names; cache_dir: a folder that keeps compiled networks.

    Raises:
        ValueError: a device that this machine, or a precision that its CPU, does not have.
    """

    name = 'openvino'
    any_batch_from = None  # MobileNetV2 took 1.2 times as long in a network of dynamic batch

    def __init__(self, settings: Settings) -> None:
        precision, threads, device, options, cache_dir = settings
        self._core, self._device = openvino.Core(), device or 'CPU'
        there = (*self._core.available_devices, 'AUTO')
        if self._device.partition(':')[0] not in {*there, *(name.partition('.')[0] for name in there)}:
            raise ValueError(f'OpenVINO has no device {device!r} on this machine: it has {", ".join(there)}.')
        on_cpu = self._device == 'CPU'
        if threads is not None and not on_cpu:
            raise ValueError(f'threads={threads} are for the device CPU, not for {device}.')
        if precision == 'bfloat16' and on_cpu and 'BF16' not in self._core.get_property(
                'CPU', 'OPTIMIZATION_CAPABILITIES'):
            raise ValueError('this CPU has no bfloat16 arithmetic, so that OpenVINO cannot run in bfloat16: take '
                             'float32 or int8.')
        self._config: Dict[str, Any] = {
            'INFERENCE_PRECISION_HINT': _HINTS[precision], 'PERFORMANCE_HINT': 'LATENCY', **(options or {})}
        if on_cpu:
            self._config.setdefault('NUM_STREAMS', 1)
        if threads is not None:
            self._config['INFERENCE_NUM_THREADS'] = threads
        if cache_dir is not None:
            self._config['CACHE_DIR'] = str(cache_dir)

    def versions(self) -> Dict[str, str]:
        return {'openvino': openvino.__version__, **({} if self._device == 'CPU' else {'device': self._device})}

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        path = fspath(network) if isinstance(network, (str, PathLike)) else None
        model = self._core.read_model(network.SerializeToString() if path is None else path)
        shape = model.input(0).get_partial_shape()
        shape[0] = -1 if batch is None else batch
        model.reshape(shape)
        return _Requests(self._core.compile_model(model, self._device, self._config))


class _Requests:
    """A compiled network with as many infer requests as there were calls at a time: one must not run twice at once."""

    def __init__(self, compiled: Any) -> None:
        self._compiled = compiled
        self._free: Deque[Any] = deque()
        self._interrupted: Deque[Tuple[Any, np.ndarray]] = deque()  # may still run, and read their images

    def __call__(self, images: np.ndarray) -> np.ndarray:
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        try:  # request.infer() does the same, with 0.1 ms of Python around it
            request.set_input_tensor(openvino.Tensor(images, shared_memory=True))
            request.start_async()
            request.wait()
            result = request.get_output_tensor().data.copy()
        except BaseException:  # such as KeyboardInterrupt out of a signal handler, at any point of the above
            self._interrupted.append((request, images))
            while self._interrupted and self._interrupted[0][0].wait_for(0):
                self._interrupted.popleft()
            raise
        self._free.append(request)
        return result
