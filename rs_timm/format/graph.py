"""The exported file without torch: what it says, and the plain network that it is at one resolution.

All of it that makes the choice has names under `PREFIX`: the tables of BatchNorm sets, one row a resolution, largest
first, one column a channel of the whole network; and the nodes that blend rows and hand a scale and a shift to each
layer. The layers themselves are `y = x * scale + shift`. So a reader needs to know nothing of the network.
"""
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple, Union

import numpy as np

from rs_timm.interpolation import blend, bracket, scale_and_shift
from rs_timm.resolutions import check_resolutions

from .info import METADATA_KEY, ModelInfo

__all__ = ['IMAGES', 'PREFIX', 'info_of', 'read_info', 'read_model', 'set_info', 'specialise']

IMAGES = 'images'
PREFIX = 'rs_timm/'
_Affine = Dict[str, np.ndarray]  # name of a scale or a shift -> float32 [1, C, 1, 1], for images


def read_model(path: Union[str, 'PathLike[str]']) -> Any:
    """The `onnx.ModelProto` in a file, with its weights.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: a file that is not ONNX.
    """
    return _load(path, with_weights=True)


def read_info(path: Union[str, 'PathLike[str]']) -> ModelInfo:
    """What the file says about itself.

    >>> read_info('rs_resnet18.onnx').resolutions       # doctest: +SKIP
    (224, 192, 160, 128, 96)

    Args:
        path: as `rs_timm.export_onnx` wrote it.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: a file that is not ONNX, or that rs_timm did not write.
    """
    return info_of(_load(path, with_weights=False), fspath(path))


def info_of(model: Any, name: str = 'the model') -> ModelInfo:
    """The description in an `onnx.ModelProto`; `name` is for errors."""
    for entry in model.metadata_props:
        if entry.key == METADATA_KEY:
            return ModelInfo.from_json(entry.value)
    raise ValueError(f'{name} has no metadata {METADATA_KEY!r}: it was not written by rs_timm.export_onnx or rs-timm '
                     'export, which make it.')


def set_info(model: Any, info: ModelInfo) -> None:
    """Write the description into an `onnx.ModelProto`, in place of an earlier one; other metadata stays."""
    others = [(entry.key, entry.value) for entry in model.metadata_props if entry.key != METADATA_KEY]
    del model.metadata_props[:]
    for key, value in [(METADATA_KEY, info.to_json()), *others]:
        model.metadata_props.add(key=key, value=value)


def _load(path: Union[str, 'PathLike[str]'], with_weights: bool) -> Any:
    onnx = _onnx()
    file = Path(path)
    if not file.is_file():
        kind = 'a directory' if file.is_dir() else 'no such file'
        raise FileNotFoundError(f'{file}: {kind}; expected a file that rs-timm export wrote.')
    try:
        return onnx.load(file, format='protobuf', load_external_data=with_weights)
    except OSError:
        raise
    except Exception as error:  # protobuf has its own hierarchy
        raise ValueError(f'{file} is not an ONNX file: {error}.') from error


def _onnx() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise ImportError("reading an exported file needs onnx: pip install 'rs_timm[onnx]'.") from error
    return onnx


def specialise(model: Any, resolution: int, batch: Optional[int] = None, fold: bool = True) -> Any:
    """The plain network that an exported one is at `resolution`, trained or not, for square images of that size.

    What `extract` is in torch; an engine then sees a network of static shape without a trace of the choice.

    >>> plain = specialise(read_model('rs_resnet18.onnx'), 144, batch=1)        # doctest: +SKIP

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
    from .folding import fold_affine  # not with this module: that one needs onnx

    (resolution,) = check_resolutions((resolution,))
    if batch is not None:
        check_resolutions((batch,))
    info = info_of(model)
    if info.choice == 'fixed' and info.resolutions != (resolution,):
        raise ValueError(f'the file is the plain network for {info.resolutions[0]} alone, not for {resolution}: '
                         'specialise the one file with all BatchNorm sets.')
    return fold_affine(model, _affine(model, info, resolution), resolution, batch, fold)


def _affine(model: Any, info: ModelInfo, resolution: int) -> _Affine:
    """Scale and shift of every layer at `resolution`, by the name under which the layer reads them."""
    if info.choice == 'fixed':
        return {}
    tables = dict(_tables(model))
    if not tables:
        raise ValueError(f'{info.name} has lost its BatchNorm sets: some tool changed the file. Export it again.')
    upper, lower, t = bracket(info.resolutions, resolution)
    if info.interpolation == 'params':
        tables['variance'] = _with_unit(tables.get('variance'), tables['gamma'])
    first, second = ({name: table[info.resolutions.index(r)] for name, table in tables.items()} for r in (upper, lower))
    blended = blend(first, second, t, info.interpolation)
    if info.interpolation == 'params':
        blended = dict(zip(('scale', 'shift'), scale_and_shift(**blended)))
    parts = dict(_split(model, blended))
    return {**parts, **dict(_reshaped(model, parts))}


def _tables(model: Any) -> Iterator[Tuple[str, np.ndarray]]:
    """Name without prefix -> float64 [resolutions, channels]."""
    from onnx import numpy_helper

    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix(PREFIX)
        if name in ('gamma', 'beta', 'mean', 'variance', 'scale', 'shift') and name != tensor.name:
            yield name, numpy_helper.to_array(tensor).astype(np.float64)


def _with_unit(variance: Optional[np.ndarray], gamma: np.ndarray) -> np.ndarray:
    """The variances with their first row, which is 1 everywhere and not stored; files of an earlier form store it."""
    missing = len(gamma) - (0 if variance is None else len(variance))
    return np.concatenate([np.ones((missing, gamma.shape[1])), *([] if variance is None else [variance])])


def _split(model: Any, vectors: Dict[str, np.ndarray]) -> Iterator[Tuple[str, np.ndarray]]:
    from onnx import numpy_helper

    sizes = next(t for t in model.graph.initializer if t.name == f'{PREFIX}channels')
    ends = np.cumsum(numpy_helper.to_array(sizes))[:-1]
    for node in model.graph.node:
        kind = node.name.removeprefix(f'{PREFIX}split_')
        if kind in vectors:
            for name, part in zip(node.output, np.split(vectors[kind].astype(np.float32), ends)):
                yield name, part.reshape(1, -1, 1, 1)


def _reshaped(model: Any, parts: _Affine) -> Iterator[Tuple[str, np.ndarray]]:
    """For the layers that normalise something else than images."""
    for node in model.graph.node:
        if node.op_type == 'Reshape' and node.name.startswith(PREFIX) and node.input[0] in parts:
            part = parts[node.input[0]]
            rank = int(node.input[1].rpartition('_')[2])
            yield node.output[0], part.reshape(1, -1, *[1] * (rank - 2))
