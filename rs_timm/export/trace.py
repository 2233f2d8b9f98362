"""Tracing: a plain network -> an ONNX graph with its BatchNorms in place, each of a known layer.

The exporter is torch's TorchScript-based one. The newer one (dynamo=True) took 10 to 40 times as long on networks of
dynamic height and width, and did not get through those that pad as TensorFlow does; where both end, the graph is the
same.
"""
import io
import warnings
from dataclasses import dataclass
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import onnx
import torch
from onnx import numpy_helper
from torch import nn

from rs_timm.format.graph import IMAGES

__all__ = ['Traced', 'Tracer']


@dataclass(frozen=True)
class Traced:
    """A graph as the exporter wrote it, tidied.

    Attributes:
        nodes: in order of execution.
        layers: for each node the layer whose BatchNormalization it is, or None.
        constants: by name.
        ir_version: of the format.
    """

    nodes: List[onnx.NodeProto]
    layers: List[Optional[str]]
    constants: Dict[str, onnx.TensorProto]
    ir_version: int


@dataclass(frozen=True)
class Tracer:
    """Traces one network at several sizes.

    Args:
        plain: in evaluation mode, on the CPU; gamma and beta of its BatchNorms are overwritten.
        layers: names of its BatchNorms.
        outputs: names.
        opset: of ai.onnx.
    """

    plain: nn.Module
    layers: Sequence[str]
    outputs: Sequence[str]
    opset: int

    def __post_init__(self) -> None:
        """Make gamma of each layer its number: the exporter may rename and merge tensors, their values stay."""
        for number, name in enumerate(self.layers):
            bn: Any = self.plain.get_submodule(name)
            bn.weight, bn.bias = (nn.Parameter(torch.full_like(bn.running_mean, value)) for value in (number, 0))

    def trace(self, example: torch.Tensor, any_size: bool = True) -> Traced:
        """The graph that images [N, C, H, W] go through; with `any_size` as far as possible that of all sizes.

        Raises:
            ValueError: the exporter cannot express the network.
        """
        model = onnx.load_from_string(self._export(example, any_size))
        nodes, constants = _tidy(model.graph)
        return Traced(nodes, [self._layer(node, constants) for node in nodes], constants, model.ir_version)

    def check_any_size(self, traced: Traced, examples: Iterable[torch.Tensor]) -> None:
        """Trace again at other sizes: a network whose code computes with sizes in Python leaves other constants.

        Sizes that the network itself does not take are passed over.

        Raises:
            ValueError: the graphs differ, so that none of them holds for all sizes.
        """
        for example in examples:
            if not _takes(self.plain, example):
                continue
            again = self.trace(example)
            if again.nodes != traced.nodes or again.constants != traced.constants:
                height, width = example.shape[-2:]
                raise ValueError(
                    f'{type(self.plain).__name__} computes with the size of its input in Python, so that its graph at '
                    f'{height} x {width} px is another one: no one file holds for all sizes. Export one file a '
                    'resolution (rs_timm.export.split_onnx, rs-timm export --split).')

    def _layer(self, node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto]) -> Optional[str]:
        if node.op_type != 'BatchNormalization':
            return None
        return self.layers[int(numpy_helper.to_array(constants[node.input[1]])[0])]

    def _export(self, example: torch.Tensor, any_size: bool) -> bytes:
        batch = {0: 'batch'}
        buffer = io.BytesIO()
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter('ignore')  # deprecation, and sizes that become constants: check_any_size sees those
            try:
                torch.onnx.export(
                    self.plain,
                    (example,),
                    buffer,  # type: ignore[arg-type]
                    input_names=[IMAGES],
                    output_names=list(self.outputs),
                    opset_version=self.opset,
                    dynamic_axes={
                        IMAGES: {0: 'batch', 2: 'height', 3: 'width'} if any_size else batch,
                        **dict.fromkeys(self.outputs, batch),
                    },
                    training=torch.onnx.TrainingMode.PRESERVE,  # else BatchNorms are folded away
                    dynamo=False,
                )
            except Exception as error:  # the exporter, and what it calls, raise many kinds
                reason = str(error).strip().partition('\n')[0][:200]
                raise ValueError(
                    f'torch cannot export {type(self.plain).__name__} to ONNX opset {self.opset} for '
                    f'{"any size" if any_size else "this size"}: {reason}') from error
        return buffer.getvalue()


@torch.no_grad()
def _takes(plain: nn.Module, example: torch.Tensor) -> bool:
    try:
        plain(example)
    except Exception:  # any kind: layers that do not fit together
        return False
    return True


def _tidy(graph: onnx.GraphProto) -> Tuple[List[onnx.NodeProto], Dict[str, onnx.TensorProto]]:
    """Nodes that compute, and constants: each value stored once, and read without a detour."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    source = {name: name for name in constants}
    stored: Dict[bytes, str] = {}
    kept = []
    for node in graph.node:
        if node.op_type == 'Identity' and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == 'Constant' and node.attribute[0].name == 'value':
            tensor = node.attribute[0].t
            source[node.output[0]] = name = stored.setdefault(tensor.SerializeToString(), node.output[0])
            constants.setdefault(name, tensor).name = name
        else:
            node.input[:] = [source.get(name, name) for name in node.input]
            kept.append(node)
    return kept, constants
