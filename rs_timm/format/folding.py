"""Constants of one resolution put in place of the choice, in an ONNX graph."""
from collections import Counter
from typing import Dict, List, Mapping, Optional, Set, Tuple

import numpy as np
import onnx
from onnx import numpy_helper

from .graph import IMAGES, PREFIX, info_of, set_info

__all__ = ['fold_affine']

_Arrays = Dict[str, np.ndarray]


def fold_affine(
        model: onnx.ModelProto,
        affine: Mapping[str, np.ndarray],
        resolution: int,
        batch: Optional[int],
        fold: bool,
) -> onnx.ModelProto:
    """A copy of `model` for one resolution, in which `affine` replaces all that makes the choice.

    Args:
        model: as exported; it is not changed.
        affine: name of a tensor that the choice computes -> its value, float32 [1, C, 1, 1].
        resolution: height and width in pixels.
        batch: images in a batch; None: any number.
        fold: multiply them into the convolutions in front.
    """
    nodes = [_copy(node) for node in model.graph.node if not node.name.startswith(PREFIX)]
    constants: _Arrays = dict(affine)
    if fold:
        nodes, folded = _fold_convolutions(nodes, model.graph, affine)
        constants.update(folded)
    plain = onnx.ModelProto()
    for name in ('ir_version', 'producer_name', 'producer_version', 'domain', 'model_version'):
        setattr(plain, name, getattr(model, name))
    plain.opset_import.extend(model.opset_import)
    plain.metadata_props.extend(model.metadata_props)
    info = info_of(model)
    madds = {r: count for r, count in info.madds.items() if r == resolution}
    set_info(plain, info.replace(resolutions=(resolution,), choice='fixed', madds=madds, alpha=None))
    plain.graph.name = model.graph.name
    plain.graph.node.extend(nodes)
    _add_interface(plain.graph, model.graph, resolution, batch)
    _add_constants(plain.graph, model.graph, constants)
    return plain


def _copy(node: onnx.NodeProto) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    return copy


def _fold_convolutions(
        nodes: List[onnx.NodeProto],
        graph: onnx.GraphProto,
        affine: Mapping[str, np.ndarray],
) -> Tuple[List[onnx.NodeProto], _Arrays]:
    """Fold each `Conv -> Mul by scale -> Add shift` into the convolution -> nodes, and new weights by name."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    producers = {name: node for node in nodes for name in node.output}
    readers = Counter(name for node in nodes for name in node.input)
    readers.update(output.name for output in graph.output)
    users = {node.input[0]: node for node in nodes if node.op_type == 'Add' and node.input[-1] in affine}
    gone: Set[int] = set()
    arrays: _Arrays = {}
    for mul in nodes:
        if mul.op_type != 'Mul' or mul.input[-1] not in affine:
            continue
        conv, add = producers.get(mul.input[0]), users[mul.output[0]]
        if conv is None or readers[mul.input[0]] > 1 or not _is_foldable(conv, weights):
            continue
        arrays.update(_fold_one(conv, affine[mul.input[1]], affine[add.input[1]], weights))
        conv.output[0] = add.output[0]
        gone |= {id(mul), id(add)}
    return [node for node in nodes if id(node) not in gone], arrays


def _is_foldable(node: onnx.NodeProto, weights: Mapping[str, onnx.TensorProto]) -> bool:
    return node.op_type == 'Conv' and all(name in weights for name in node.input[1:] if name)


def _fold_one(
        conv: onnx.NodeProto,
        scale: np.ndarray,
        shift: np.ndarray,
        weights: Mapping[str, onnx.TensorProto],
) -> _Arrays:
    """Give `conv` weights and bias of its own; in: float32 [1, C, 1, 1]."""
    weight = numpy_helper.to_array(weights[conv.input[1]])
    bias = shift.reshape(-1)
    if len(conv.input) > 2 and conv.input[2]:
        bias = bias + numpy_helper.to_array(weights[conv.input[2]]) * scale.reshape(-1)
    names = [f'{conv.output[0]}/{name}' for name in ('weight', 'bias')]  # a weight may be shared by convolutions
    del conv.input[1:]
    conv.input.extend(names)
    return dict(zip(names, (weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias)))


def _add_interface(
        plain: onnx.GraphProto,
        graph: onnx.GraphProto,
        resolution: int,
        batch: Optional[int],
) -> None:
    """Inputs and outputs of a network for square images of one size."""
    (images,) = (value for value in graph.input if value.name == IMAGES)
    plain.input.add().CopyFrom(images)
    plain.output.extend(graph.output)
    for value in (*plain.input, *plain.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if batch is None:
            dimension.dim_param = 'batch'
        else:
            dimension.dim_value = batch
    for dimension in plain.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = resolution


def _add_constants(plain: onnx.GraphProto, graph: onnx.GraphProto, constants: Mapping[str, np.ndarray]) -> None:
    """The weights that the nodes read, no others."""
    read = {name for node in plain.node for name in node.input}
    plain.initializer.extend(tensor for tensor in graph.initializer if tensor.name in read)
    plain.initializer.extend(
        numpy_helper.from_array(array, name) for name, array in constants.items() if name in read)
