"""torch, eager: needs no export; its networks share all weights but the BatchNorms."""
from copy import deepcopy
from importlib.metadata import version
from typing import Any, Dict, Optional

import numpy as np
import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rs_timm.export import model_info, onnx_model
from rs_timm.export.network import default_torch_state
from rs_timm.layers import extract

from . import Network, Settings

__all__ = ['TorchEngine', 'TorchModel', 'prepare']

_DTYPES = {'float32': torch.float32, 'bfloat16': torch.bfloat16}


class TorchEngine:
    """Runs plain modules in inference mode, channels last, where they are (CPU or GPU).

    Args:
        settings: precision 'float32', or 'bfloat16': all but the BatchNorms in bfloat16; threads: None leaves torch as
            it is, a number is set with `torch.set_num_threads`, for the whole process; device and options are refused,
            since the model is where it is; cache_dir is not used.
    """

    name = 'torch'
    any_batch_from = 1

    def __init__(self, settings: Settings) -> None:
        if settings.device is not None or settings.options:
            raise ValueError('the torch engine runs a model where it is: move it, as in model.to(device).')
        if settings.threads is not None:
            torch.set_num_threads(settings.threads)
        self._dtype = _DTYPES[settings.precision]

    def versions(self) -> Dict[str, str]:
        return {name: version(name) for name in ('torch', 'timm')}

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        device = next(network.parameters()).device

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x = torch.from_numpy(images).to(device, self._dtype, memory_format=torch.channels_last)
                if torch.is_autocast_enabled(device.type):  # of the caller, for work of its own
                    with torch.autocast(device.type, enabled=False):
                        return network(x).float().cpu().numpy()
                return network(x).float().cpu().numpy()

        return run


class TorchModel:
    """A torch model for the torch engine: its networks share all weights but the BatchNorms with one another.

    A copy is made, so that the session stays as it is when the model changes.
    """

    def __init__(self, model: Any, precision: str) -> None:
        self.info = model_info(model)
        self.name = self.info.name
        self._model = prepare(model, precision)

    def graph(self) -> Any:
        return onnx_model(self._model)

    def network(self, resolution: int) -> Any:
        """The network that `rs_timm.extract` gives, but all except the BatchNorms has the very tensors of the copy."""
        plain = extract(self._model, resolution)
        modules = dict(self._model.named_modules())
        for name, module in plain.named_modules():
            shared = modules.get(name)
            if shared is not None and not isinstance(module, _BatchNorm):  # those have other names, or are switchable
                module._parameters.update(shared._parameters)
                module._buffers.update(shared._buffers)
        return plain


def prepare(model: Any, precision: str) -> Any:
    """A copy of a network in evaluation mode, channels last.

    In 'bfloat16' all is bfloat16 but the BatchNorms, whose statistics would suffer.
    """
    with default_torch_state():
        copy = deepcopy(model).eval().requires_grad_(False)
        for module in copy.modules():
            dtype = torch.float32 if isinstance(module, _BatchNorm) else _DTYPES[precision]
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None and tensor.is_floating_point():
                        tensors[name] = tensor.to(dtype)
        return copy.to(memory_format=torch.channels_last)
