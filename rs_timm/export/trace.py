"""Tracing: a plain network -> an ONNX graph with its BatchNorms in place, each of a known layer.

The exporter is torch's TorchScript-based one. The newer one (dynamo=True) takes 10 to 40 times as long on networks of
dynamic height and width, and does not get through those that pad as TensorFlow does; both give the same graph.
"""
import io
import warnings
from dataclasses import dataclass
from typing import Any, List, Optional, Sequence

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from rs_timm.runtime.graph import IMAGES

__all__ = ['Traced', 'trace']


@dataclass(frozen=True)
class Traced:
    """A graph as the exporter wrote it.

    Attributes:
        model: holds the weights.
        nodes: in order of execution.
        layers: for each node the layer whose BatchNormalization it is, or None.
    """

    model: onnx.ModelProto
    nodes: List[onnx.NodeProto]
    layers: List[Optional[str]]


def trace(plain: nn.Module, layers: Sequence[str], example: torch.Tensor, outputs: Sequence[str], opset: int) -> Traced:
    """The ONNX graph of `plain`, for any batch, height and width.

    Args:
        plain: in evaluation mode, on the CPU; its BatchNorms are overwritten.
        layers: names of its BatchNorms.
        example: images [N, C, H, W].
        outputs: names.
        opset: of ai.onnx.

    Raises:
        ValueError: the exporter cannot express the network.
    """
    _number(plain, layers)
    model = onnx.load_from_string(_export(plain, example, outputs, opset))
    nodes = _without_identities(model.graph)
    gammas = {tensor.name: tensor for tensor in model.graph.initializer}
    return Traced(model, nodes, [
        layers[int(numpy_helper.to_array(gammas[node.input[1]])[0])] if node.op_type == 'BatchNormalization' else None
        for node in nodes])


def _number(plain: nn.Module, layers: Sequence[str]) -> None:
    """Make gamma of each layer its number: the exporter may rename and merge tensors, their values stay."""
    for number, name in enumerate(layers):
        bn: Any = plain.get_submodule(name)
        bn.weight, bn.bias = (nn.Parameter(torch.full_like(bn.running_mean, value)) for value in (number, 0))


def _export(plain: nn.Module, example: torch.Tensor, outputs: Sequence[str], opset: int) -> bytes:
    dynamic = {IMAGES: {0: 'batch', 2: 'height', 3: 'width'}, **{name: {0: 'batch'} for name in outputs}}
    buffer = io.BytesIO()
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter('ignore')  # of deprecation, and of values that become constants: parity tests see those
        try:
            torch.onnx.export(
                plain,
                (example,),
                buffer,  # type: ignore[arg-type]
                input_names=[IMAGES],
                output_names=list(outputs),
                opset_version=opset,
                dynamic_axes=dynamic,
                training=torch.onnx.TrainingMode.PRESERVE,  # else BatchNorms are folded away
                dynamo=False,
            )
        except Exception as error:  # the exporter, and what it calls, raise many kinds
            raise ValueError(f'torch cannot export {type(plain).__name__} to ONNX opset {opset}: {error}') from error
    return buffer.getvalue()


def _without_identities(graph: onnx.GraphProto) -> List[onnx.NodeProto]:
    """The nodes; constants that the exporter found equal, and stored once, are read without a detour."""
    source = {tensor.name: tensor.name for tensor in graph.initializer}
    kept = []
    for node in graph.node:
        if node.op_type == 'Identity' and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        else:
            node.input[:] = [source.get(name, name) for name in node.input]
            kept.append(node)
    return kept
