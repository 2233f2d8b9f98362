"""A digest of what an exported file computes: flipped bytes in weights give other answers, and no engine sees it."""
from hashlib import sha256
from typing import Any

__all__ = ['DIGEST_KEY', 'check_graph', 'graph_digest', 'set_digest']

DIGEST_KEY = 'rs_timm_digest'  # of its entry in metadata_props


def graph_digest(model: Any) -> str:
    """A hash of the nodes of an `onnx.ModelProto` in their order, and of its weights by name.

    It is of values, not of the bytes that a version of protobuf makes of them: how and where the weights are stored
    plays no part, nor do metadata.

    Args:
        model: with its weights; those in other files have been read.
    """
    found = sha256()
    for entry in model.opset_import:
        found.update(f'{entry.domain or "ai.onnx"} {entry.version}\n'.encode())
    _add_graph(found, model.graph)
    return f'sha256:{found.hexdigest()}'


def _add_graph(found: Any, graph: Any) -> None:
    for value in (*graph.input, *graph.output):
        shape = [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        found.update(f'{value.name!r} {value.type.tensor_type.elem_type} {shape}\n'.encode())
    for node in graph.node:
        found.update(f'{node.op_type!r} {list(node.input)} {list(node.output)}\n'.encode())
        for attribute in sorted(node.attribute, key=lambda a: a.name):
            a = attribute
            plain = a.type, a.i, a.f.hex(), a.s, list(a.ints), [f.hex() for f in a.floats], list(a.strings)
            found.update(f'{a.name!r} {plain}\n'.encode())
            for tensor in (*([a.t] if a.HasField('t') else []), *a.tensors):
                _add_tensor(found, tensor)
            for inner in (*([a.g] if a.HasField('g') else []), *a.graphs):
                _add_graph(found, inner)
    for tensor in sorted(graph.initializer, key=lambda t: t.name):
        _add_tensor(found, tensor)


def _add_tensor(found: Any, tensor: Any) -> None:
    from onnx.numpy_helper import to_array

    array = to_array(tensor)
    found.update(f'{tensor.name!r} {array.dtype} {array.shape}\n'.encode())
    found.update(array.tobytes())


def set_digest(model: Any) -> None:
    """Write its digest into an `onnx.ModelProto`, in place of an earlier one."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != DIGEST_KEY]
    del model.metadata_props[:]
    for key, value in [*others, (DIGEST_KEY, graph_digest(model))]:
        model.metadata_props.add(key=key, value=value)


def check_graph(model: Any, name: str) -> None:
    """Compare a model that was read with the digest in its metadata; one without, of an earlier version, is believed.

    Args:
        model: `onnx.ModelProto`, with its weights.
        name: the file, for errors.

    Raises:
        ValueError: it is not as it was written.
    """
    kept = next((entry.value for entry in model.metadata_props if entry.key == DIGEST_KEY), None)
    if kept is None:
        return
    try:
        same = graph_digest(model) == kept
    except (AttributeError, RuntimeError, TypeError, UnicodeError, ValueError):  # tensors that are none any more
        same = False
    if not same:
        raise ValueError(f'{name} is damaged, or some tool has changed it: its weights and nodes are not those of the '
                         'digest in its metadata. Export it again; check_digest=False takes it as it is.')
