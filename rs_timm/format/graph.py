"""The exported file without torch: what it says, and the plain network that it is at one resolution.

All of it that makes the choice has names under `PREFIX`: the tables of BatchNorm sets, one row a resolution, largest
first, one column a channel of the whole network; and the nodes that blend rows and hand a scale and a shift to each
layer. The layers themselves are `y = x * scale + shift`. So a reader needs to know nothing of the network.
"""
import hashlib
from collections import Counter
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Set, Tuple, Union

import numpy as np

from rs_timm.crops import crop_at
from rs_timm.interpolation import blend, bracket, scale_and_shift
from rs_timm.resolutions import check_resolutions

from .digest import DIGEST_KEY
from .info import METADATA_KEY, ModelInfo

__all__ = ['IMAGES', 'PREFIX', 'extract_onnx', 'import_onnx', 'info_of', 'read_info', 'read_model',
           'read_model_and_digest', 'set_info']

IMAGES = 'images'
PREFIX = 'rs_timm/'
_TABLES = ('gamma', 'beta', 'mean', 'variance', 'scale', 'shift')
_Arrays = Dict[str, np.ndarray]


def import_onnx() -> Any:
    """The package `onnx`, which reading and writing exported files needs and nothing else does.

    Raises:
        ImportError: it is not installed; the message names the extra.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError("an exported file is written and read with onnx: pip install 'rs_timm[onnx]'.") from error
    return onnx


def read_model(path: Union[str, 'PathLike[str]']) -> Any:
    """The `onnx.ModelProto` in a file, with its weights.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: a file that is not ONNX.
    """
    return read_model_and_digest(path)[0]


def read_model_and_digest(path: Union[str, 'PathLike[str]']) -> Tuple[Any, str]:
    """Read a model as `read_model` does, and the SHA-256 of the very bytes that were read, weights beside it too."""
    return _load(path, with_weights=True)


def read_info(path: Union[str, 'PathLike[str]']) -> ModelInfo:
    """The description that a file has of itself.

    >>> read_info('rs_resnet18.onnx').resolutions       # doctest: +SKIP
    (224, 192, 160, 128, 96)

    Args:
        path: as `rs_timm.export_onnx` wrote it.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: a file that is not ONNX, or that rs_timm did not write.
    """
    return info_of(_load(path, with_weights=False)[0], fspath(path))


def _load(path: Union[str, 'PathLike[str]'], with_weights: bool) -> Tuple[Any, str]:
    onnx = import_onnx()
    file = Path(path)
    if not file.is_file():
        kind = 'a directory' if file.is_dir() else 'no such file'
        raise FileNotFoundError(f'{file}: {kind}; expected a file that rs-timm export wrote.')
    content = file.read_bytes()
    digest = hashlib.sha256(content)
    try:
        model = onnx.load_model_from_string(content)
        outside = [tensor for tensor in model.graph.initializer
                   if with_weights and tensor.data_location == onnx.TensorProto.EXTERNAL]
        if outside:
            onnx.load_external_data_for_model(model, str(file.parent))
            for tensor in outside:
                digest.update(tensor.raw_data)
        return model, digest.hexdigest()
    except OSError:
        raise
    except Exception as error:  # protobuf has its own hierarchy
        raise ValueError(f'{file} is not an ONNX file: {error}.') from error


def info_of(model: Any, name: str = 'the model') -> ModelInfo:
    """The description in an `onnx.ModelProto`; `name` is for errors."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return ModelInfo.from_json(entry.value, f'the metadata {METADATA_KEY!r} of {name}')
    raise ValueError(f'{name} has no metadata {METADATA_KEY!r}: it was not written by rs_timm.export_onnx or rs-timm '
                     'export, which make it.')


def set_info(model: Any, info: ModelInfo) -> None:
    """Write the description into an `onnx.ModelProto`, in place of an earlier one; other metadata stays."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [(METADATA_KEY, info.to_json()), *others]:
        model.metadata_props.add(key=key, value=value)


def extract_onnx(model: Any, resolution: int, batch: Optional[int] = None, fold: bool = True) -> Any:
    """The plain network that an exported one is at `resolution`, trained or not, for square images of that size.

    What `rs_timm.extract` is in torch: an engine then sees a network of static shape without a trace of the choice.

    >>> plain = extract_onnx(read_model('rs_resnet18.onnx'), 144, batch=1)        # doctest: +SKIP

    Args:
        model: `onnx.ModelProto` as `read_model` gives it; it is not changed.
        resolution: pixels; sizes without a set of their own get the interpolated one.
        batch: images in a batch; None: any number.
        fold: multiply scale and shift into the convolution in front, where there is one. False leaves all weights as
            they are, for engines that share them between resolutions, and every layer a multiplication and an addition.

    Returns:
        onnx.ModelProto: metadata of the one resolution, choice 'fixed'.

    Raises:
        ValueError: a resolution or batch that is no positive int; a file that has one resolution only, and not this.
    """
    onnx = import_onnx()
    (resolution,) = check_resolutions((resolution,))
    if batch is not None:
        check_resolutions((batch,))
    info = info_of(model)
    if info.choice == 'fixed' and info.resolutions != (resolution,):
        raise ValueError(f'the file is the plain network for {info.resolutions[0]} alone, not for {resolution}: '
                         'extract from the one file with all BatchNorm sets.')
    affine = {} if info.choice == 'fixed' else _affine(model, info, resolution)
    nodes = []
    for node in model.graph.node:
        if not node.name.startswith(PREFIX):
            nodes.append(onnx.NodeProto())
            nodes[-1].CopyFrom(node)
    constants = dict(affine)
    if fold:
        nodes, folded = _fold_convolutions(nodes, model.graph, affine)
        constants.update(folded)

    plain = onnx.ModelProto()
    for name in ('ir_version', 'producer_name', 'producer_version', 'domain', 'model_version'):
        setattr(plain, name, getattr(model, name))
    plain.opset_import.extend(model.opset_import)
    plain.metadata_props.extend(entry for entry in model.metadata_props if entry.key != DIGEST_KEY)
    madds = {r: count for r, count in info.madds.items() if r == resolution}
    crop = crop_at(info.crops or info.crop_pct, resolution)
    set_info(plain, info.replace(
        resolutions=(resolution,), choice='fixed', madds=madds, alpha=None, crop_pct=crop))
    plain.graph.name = model.graph.name
    plain.graph.node.extend(nodes)
    plain.graph.input.extend(value for value in model.graph.input if value.name == IMAGES)
    plain.graph.output.extend(model.graph.output)
    for value in (*plain.graph.input, *plain.graph.output):
        dimension = value.type.tensor_type.shape.dim[0]
        if batch is None:
            dimension.dim_param = 'batch'
        else:
            dimension.dim_value = batch
    for dimension in plain.graph.input[0].type.tensor_type.shape.dim[2:]:
        dimension.dim_value = resolution
    read = {name for node in nodes for name in node.input}
    plain.graph.initializer.extend(tensor for tensor in model.graph.initializer if tensor.name in read)
    plain.graph.initializer.extend(
        onnx.numpy_helper.from_array(array, name) for name, array in constants.items() if name in read)
    return plain


def _affine(model: Any, info: ModelInfo, resolution: int) -> _Arrays:
    """Scale and shift of every layer at `resolution`, by the name under which the layer reads them."""
    to_array = import_onnx().numpy_helper.to_array
    stored = {tensor.name.removeprefix(PREFIX): tensor for tensor in model.graph.initializer
              if tensor.name.startswith(PREFIX)}
    tables = {name: to_array(tensor).astype(np.float64) for name, tensor in stored.items() if name in _TABLES}
    if not tables:
        raise ValueError(f'{info.name} has lost its BatchNorm sets: some tool changed the file. Export it again.')
    if info.interpolation == 'params':  # the first variances are 1, and not stored but in files of format 1
        gamma, variances = tables['gamma'], tables.get('variance', np.empty((0, tables['gamma'].shape[1])))
        tables['variance'] = np.concatenate([np.ones_like(gamma[:len(gamma) - len(variances)]), variances])
    upper, lower, t = bracket(info.resolutions, resolution)
    first, second = ({name: table[info.resolutions.index(r)] for name, table in tables.items()} for r in (upper, lower))
    blended = blend(first, second, t, info.interpolation)
    if info.interpolation == 'params':
        blended = dict(zip(('scale', 'shift'), scale_and_shift(**blended)))

    ends = np.cumsum(to_array(stored['channels']))[:-1]
    parts: _Arrays = {}
    for node in model.graph.node:
        kind = node.name.removeprefix(f'{PREFIX}split_')
        if kind in blended:
            for name, part in zip(node.output, np.split(blended[kind].astype(np.float32), ends)):
                parts[name] = part.reshape(1, -1, 1, 1)
        elif node.op_type == 'Reshape' and node.name.startswith(PREFIX) and node.input[0] in parts:
            rank = int(node.input[1].rpartition('_')[2])  # of a layer that normalises something else than images
            parts[node.output[0]] = parts[node.input[0]].reshape(1, -1, *[1] * (rank - 2))
    return parts


def _fold_convolutions(nodes: List[Any], graph: Any, affine: Mapping[str, np.ndarray]) -> Tuple[List[Any], _Arrays]:
    """Fold each `Conv -> Mul by scale -> Add shift` into the convolution -> nodes, and new weights by name."""
    to_array = import_onnx().numpy_helper.to_array
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
        if conv is None or conv.op_type != 'Conv' or readers[mul.input[0]] > 1 or not all(
                name in weights for name in conv.input[1:] if name):
            continue
        scale, bias = affine[mul.input[1]].reshape(-1), affine[add.input[1]].reshape(-1)
        weight = to_array(weights[conv.input[1]])
        if len(conv.input) > 2 and conv.input[2]:
            bias = bias + to_array(weights[conv.input[2]]) * scale
        names = [f'{conv.output[0]}/{name}' for name in ('weight', 'bias')]  # a weight may be shared by convolutions
        del conv.input[1:]
        conv.input.extend(names)
        arrays.update(zip(names, (weight * scale.reshape(-1, *[1] * (weight.ndim - 1)), bias)))
        conv.output[0] = add.output[0]
        gone |= {id(mul), id(add)}
    return [node for node in nodes if id(node) not in gone], arrays
