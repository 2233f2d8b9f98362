"""A switchable network -> one .pte file for ExecuTorch: a method for each resolution, one copy of the shared weights.

A phone compiles nothing and cannot choose sets by the shape of its input, so every resolution is a method of its own,
of fixed size. What they share is stored once as long as it is the same bytes: convolutions keep their weights, and each
BatchNorm becomes a scale and a shift per channel of its own (folded into the convolutions, every method would bring a
copy of all weights). XNNPACK runs both on the CPU of phones and desktops.
"""
import logging
import warnings
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any, Callable, Iterator, List, Mapping, Optional, Sequence, Union

import torch
from timm.utils import unwrap_model
from torch import nn

from rs_timm.atomic import replacing
from rs_timm.layers import extract, get_resolutions
from rs_timm.resolutions import check_resolutions

from .network import default_torch_state, model_info
from .onnx_file import answers, relative_difference

__all__ = ['export_executorch', 'method_difference', 'method_name', 'open_method']

DESCRIPTION = 'rs_timm'  # a method without inputs that gives the JSON of `rs_timm.format.info.ModelInfo`


def export_executorch(
        model: nn.Module,
        path: Union[str, 'PathLike[str]'],
        *,
        sizes: Optional[Sequence[int]] = None,
        metadata: Optional[Mapping[str, Any]] = None,
        fold: bool = False,
) -> Path:
    """Write `model` as one .pte file with a method `forward_224`, ... for each resolution; needs `rs_timm[executorch]`.

    Each method takes float32 images [1, C, r, r], normalised as the description says, and gives what `model` gives at
    that size. Two more methods take nothing: `rs_timm` gives the description, JSON as in `export_onnx`; `resolutions`
    the sizes in pixels, largest first.

    Args:
        model: a switchable network, or a wrapper of one; it is not changed.
        path: NAME.pte; written as a whole or not at all.
        sizes: resolutions in pixels, trained or interpolated; None: all that have a set.
        metadata: entries of the description to replace, as in `export_onnx`.
        fold: leave it to XNNPACK to fold each BatchNorm into its convolution: a little faster, but every size then has
            a copy of all weights of its own. For a file of one size.

    Raises:
        ImportError: ExecuTorch is not installed.
        ValueError: a network that is not switchable, or that torch.export or ExecuTorch cannot express.
    """
    file = Path(path)
    if file.suffix != '.pte':
        raise ValueError(f'{file} is no name of an ExecuTorch program: name a file that ends in .pte.')
    with _quiet(), default_torch_state():
        try:
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower
        except ImportError as error:
            raise ImportError(f"a .pte file needs ExecuTorch: pip install 'rs_timm[executorch]' ({error}).") from error
        model = unwrap_model(model)
        sizes = check_resolutions(get_resolutions(model) if sizes is None else sizes)
        info = model_info(model).replace(**(metadata or {}))
        methods = {method_name(size): _program(model, size, info.channels, fold) for size in sizes}
        constants = {DESCRIPTION: info.to_json(), 'resolutions': list(sizes)}
        try:
            program = to_edge_transform_and_lower(
                methods, partitioner=[XnnpackPartitioner()], constant_methods=constants).to_executorch()
        except Exception as error:  # many kinds
            raise ValueError(_refusal('ExecuTorch', model, error)) from error
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new, open(new, 'wb') as stream:
        program.write_to_file(stream)
    return file


def method_name(size: int) -> str:
    """The method of a .pte file that runs at a resolution in pixels.

    >>> method_name(224)
    'forward_224'
    """
    return f'forward_{size}'


def open_method(file: Union[str, 'PathLike[str]'], size: int) -> Callable[[torch.Tensor], List[torch.Tensor]]:
    """The method of a .pte file for a resolution: images [1, C, r, r] -> tensors, in ExecuTorch's runtime for Python.

    Raises:
        ImportError: ExecuTorch is not installed.
        ValueError: the file has no such method.
    """
    with _quiet():
        try:
            from executorch.runtime import Runtime
        except ImportError as error:
            raise ImportError(f"a .pte file needs ExecuTorch: pip install 'rs_timm[executorch]' ({error}).") from error
        program = Runtime.get().load_program(Path(file))
        name = method_name(size)
        if name not in program.method_names:
            raise ValueError(f'{file} has no {name}, but {", ".join(sorted(program.method_names))}.')
        method = program.load_method(name)
    return lambda images: list(method.execute([images]))


def method_difference(model: nn.Module, file: Union[str, 'PathLike[str]'], size: int) -> float:
    """The largest difference between a method of `file` and `model` in torch, as `rs_timm.export.max_difference`."""
    images, expected = answers(model, size, 1, model_info(model).channels)
    return relative_difference(expected, open_method(file, size)(images))


class _Affine(nn.Module):
    """BatchNorm in evaluation as a scale and a shift of each channel, and what timm puts behind it in one module.

    It is written as a depthwise convolution of 1 x 1, for which XNNPACK has a kernel that does both, and clamps, in one
    pass. As a multiplication and an addition, every one of them went through the whole tensor.
    """

    def __init__(self, bn: Any) -> None:
        super().__init__()
        scale = (bn.running_var.double() + bn.eps).rsqrt()
        scale = scale if bn.weight is None else scale * bn.weight.double()
        shift = -bn.running_mean.double() * scale
        shift = shift if bn.bias is None else shift + bn.bias.double()
        self.register_buffer('scale', scale.float()[:, None, None, None])  # [C, 1, 1, 1]
        self.register_buffer('shift', shift.float())
        self.act = getattr(bn, 'act', nn.Identity())  # of timm's BatchNormAct2d, whose drop does nothing in evaluation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(nn.functional.conv2d(x, self.scale, self.shift, groups=len(self.shift)))


def _program(model: nn.Module, size: int, channels: int, fold: bool) -> Any:
    plain = extract(model, size).cpu().float().eval().requires_grad_(False)
    for name, module in list(plain.named_modules()):
        if isinstance(module, nn.BatchNorm2d) and not fold:
            plain.set_submodule(name, _Affine(module))
    try:
        return torch.export.export(plain, (torch.zeros(1, channels, size, size),))
    except Exception as error:
        raise ValueError(_refusal('torch.export', model, error)) from error


def _refusal(tool: str, model: nn.Module, error: Exception) -> str:
    return f'{tool} cannot express {type(model).__name__}: {" ".join(str(error).split())[:300]}'


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep to ourselves what torchao and ExecuTorch say about their own parts while they are loaded."""
    previous = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logging.disable(previous)
