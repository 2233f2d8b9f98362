"""Multiply-adds of a session's network at any size, counted in its graph. Needs `onnx`."""
from math import prod
from typing import Any, Callable, Dict, Sequence

from .graph import extract_onnx, import_onnx

__all__ = ['graph_madds', 'madds_of']

Shape = Sequence[int]
# output, inputs -> multiply-adds; the weights of a convolution are [out, in / groups, height, width]
_COUNTS: Dict[str, Callable[[Shape, Sequence[Shape]], int]] = {
    'Conv': lambda output, inputs: prod(output) * prod(inputs[1][1:]),
    'ConvTranspose': lambda output, inputs: prod(inputs[0]) * prod(inputs[1][1:]),
    'Gemm': lambda output, inputs: prod(output) * prod(inputs[0]) // output[0],
    'MatMul': lambda output, inputs: prod(output) * inputs[0][-1],
}


def madds_of(session: Any, resolution: int) -> int:
    """Multiply-adds per picture of `session` at a resolution in pixels, trained or not.

    Those of the trained sizes are in the model's file; those of other sizes are counted in the plain network of that
    size.
    """
    known = (session.info.madds or {}).get(resolution)
    if known is not None:
        return int(known)
    return graph_madds(extract_onnx(session.graph, resolution, 1))


def graph_madds(model: Any) -> int:
    """Multiply-adds of an ONNX graph of static shape: those of convolutions and matrix products.

    The convention of `rs_timm.analysis.madds`: one multiplication with its addition is one; BatchNorm, activations,
    pooling and element-wise operations count nothing.

    Args:
        model: an `onnx.ModelProto`.

    Raises:
        ValueError: a shape that is not static.
    """
    graph = import_onnx().shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: Dict[str, Shape] = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes.setdefault(value.name, tuple(dim.dim_value for dim in value.type.tensor_type.shape.dim))
    total = 0
    for node in graph.node:
        if node.op_type in _COUNTS:
            inputs, output = [shapes.get(name, (0,)) for name in node.input], shapes.get(node.output[0], (0,))
            if 0 in output or any(0 in shape for shape in inputs):
                raise ValueError(f'the shapes around node {node.name!r} are not static: extract_onnx makes them so.')
            total += _COUNTS[node.op_type](output, inputs)
    return total
