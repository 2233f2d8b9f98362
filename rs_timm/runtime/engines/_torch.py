"""torch, eager: needs no export; its networks share all weights but the BatchNorms."""
from copy import deepcopy
from importlib.metadata import version
from typing import Any, Dict, Optional

import numpy as np

import rs_timm

from . import Network

__all__ = ['TorchEngine', 'prepare', 'shared_extract']


class TorchEngine:
    """Runs plain modules in inference mode, channels last, where they are (CPU or GPU).

    Args:
        precision: 'fp32', or 'bf16': all but the BatchNorms in bfloat16.
        threads: None leaves torch as it is; a number is set with `torch.set_num_threads`, for the whole process.
    """

    name = 'torch'
    any_batch_from = 1

    def __init__(self, precision: str = 'fp32', threads: Optional[int] = None) -> None:
        import torch

        if threads is not None:
            torch.set_num_threads(threads)
        self._dtype = torch.bfloat16 if precision == 'bf16' else torch.float32

    def versions(self) -> Dict[str, str]:
        return {name: version(name) for name in ('torch', 'timm')}

    def compile(self, network: Any, batch: Optional[int]) -> Network:
        import torch

        device = next(network.parameters()).device

        def run(images: np.ndarray) -> np.ndarray:
            with torch.inference_mode():
                x = torch.from_numpy(images).to(device, self._dtype, memory_format=torch.channels_last)
                return network(x).float().cpu().numpy()

        return run


def prepare(model: Any, precision: str) -> Any:
    """A copy of a switchable network, of which `shared_extract` takes its parts.

    Evaluation mode, channels last; in 'bf16' all is bfloat16 but the BatchNorms, whose statistics would suffer.
    """
    import torch
    from torch.nn.modules.batchnorm import _BatchNorm

    dtype = torch.bfloat16 if precision == 'bf16' else torch.float32
    copy = deepcopy(model).eval().requires_grad_(False)
    for module in copy.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None and tensor.is_floating_point():
                    tensors[name] = tensor.to(torch.float32 if isinstance(module, _BatchNorm) else dtype)
    return copy.to(memory_format=torch.channels_last)


def shared_extract(model: Any, resolution: int) -> Any:
    """`rs_timm.extract(model, resolution)`, but for the BatchNorms with the very tensors of `model`."""
    from torch.nn.modules.batchnorm import _BatchNorm

    plain = rs_timm.extract(model, resolution)
    modules = dict(model.named_modules())
    for name, module in plain.named_modules():
        shared = modules.get(name)
        if shared is not None and not isinstance(module, _BatchNorm):  # those have other names, or are switchable
            module._parameters.update(shared._parameters)
            module._buffers.update(shared._buffers)
    return plain
