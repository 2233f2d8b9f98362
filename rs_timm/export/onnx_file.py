"""A switchable network -> one ONNX file with all its BatchNorm sets."""
from os import PathLike
from pathlib import Path
from typing import Any, Mapping, Optional, Sequence, Tuple, Union

import onnx
import torch
from onnx import helper
from timm.utils import unwrap_model
from torch import nn

from rs_timm import __version__
from rs_timm.analysis.cost import image_channels
from rs_timm.layers import extract
from rs_timm.runtime.graph import IMAGES, set_info

from .choice import RESOLUTION, Choice, apply_affine
from .metadata import describe
from .tables import make_tables
from .trace import Traced, trace
from .write import write_model

__all__ = ['export_onnx', 'onnx_model']

OPSETS = range(13, 21)  # from the first with the operators of the choice, to the last that the exporter knows


def export_onnx(
        model: nn.Module,
        path: Union[str, 'PathLike[str]'],
        *,
        choice: str = 'shape',
        metadata: Optional[Mapping[str, Any]] = None,
        output_names: Optional[Sequence[str]] = None,
        opset: int = 17,
) -> Path:
    """Write `model` with all its BatchNorm sets as one ONNX file, and return the file.

    >>> import os, tempfile, timm, rs_timm
    >>> from rs_timm.runtime import read_info
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48))
    >>> file = rs_timm.export_onnx(model, os.path.join(tempfile.mkdtemp(), 'model.onnx'))
    >>> read_info(file).resolutions
    (64, 48)
    """
    proto = onnx_model(model, choice=choice, metadata=metadata, output_names=output_names, opset=opset)
    return write_model(proto, path)


def onnx_model(
        model: nn.Module,
        *,
        choice: str = 'shape',
        metadata: Optional[Mapping[str, Any]] = None,
        output_names: Optional[Sequence[str]] = None,
        opset: int = 17,
) -> onnx.ModelProto:
    """What `export_onnx` writes, in memory."""
    model = unwrap_model(model)
    tables = make_tables(model)
    plain = extract(model, tables.resolutions[0]).eval().float().cpu().requires_grad_(False)
    example = torch.zeros(2, image_channels(plain), *(tables.resolutions[-1],) * 2)
    outputs = _outputs(plain, example)
    names = _names(outputs, output_names)
    info = describe(model, example.shape[1], outputs, choice).replace(**(metadata or {}))
    traced = trace(plain, list(tables.layers), example, names, opset)
    proto = helper.make_model(
        _graph(traced, Choice(tables, choice), info.channels, dict(zip(names, outputs))),
        opset_imports=[helper.make_opsetid('', opset)],
        ir_version=traced.model.ir_version,
        producer_name='rs_timm',
        producer_version=__version__,
    )
    set_info(proto, info)
    return proto


@torch.no_grad()
def _outputs(plain: nn.Module, example: torch.Tensor) -> Tuple[torch.Tensor, ...]:
    outputs = plain(example)
    return (outputs,) if isinstance(outputs, torch.Tensor) else tuple(outputs)


def _names(outputs: Sequence[torch.Tensor], given: Optional[Sequence[str]]) -> Sequence[str]:
    if given is None:
        return ('logits',) if len(outputs) == 1 else [f'features_{i}' for i in range(len(outputs))]
    if len(given) != len(outputs):
        raise ValueError(f'{len(given)} output_names for {len(outputs)} outputs: give one an output.')
    return given


def _graph(
        traced: Traced,
        choice: Choice,
        channels: int,
        outputs: Mapping[str, torch.Tensor],
) -> onnx.GraphProto:
    """The choice in front, and its results in place of the BatchNorms."""
    graph = onnx.GraphProto(name='rs_timm')
    graph.node.extend(choice.nodes)
    for node, layer in zip(traced.nodes, traced.layers):
        graph.node.extend([node] if layer is None else apply_affine(node, layer))
    read = {name for node in graph.node for name in node.input}
    graph.initializer.extend([*choice.constants, *(t for t in traced.model.graph.initializer if t.name in read)])
    graph.input.append(_tensor(IMAGES, ['batch', channels, 'height', 'width']))
    if RESOLUTION in read:
        graph.input.append(_tensor(RESOLUTION, []))
    for name, output in outputs.items():
        sides = [f'{name}_{side}' for side in ('height', 'width')] if output.ndim == 4 else output.shape[2:]
        graph.output.append(_tensor(name, ['batch', *output.shape[1:2], *sides]))
    return graph


def _tensor(name: str, shape: Sequence[Union[int, str]]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
