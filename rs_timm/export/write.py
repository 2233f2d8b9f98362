"""An ONNX graph -> a file that is there as a whole, or not at all."""
import os
from os import PathLike
from pathlib import Path
from typing import Union
from uuid import uuid4

import onnx

__all__ = ['check_name', 'write_model']

LIMIT = 2 ** 31 - 2 ** 20  # bytes of weights; protobuf ends at 2 GiB, and nodes and names need room too
_SMALL = 1024  # bytes


def check_name(path: Union[str, 'PathLike[str]']) -> Path:
    """The file, if it can be one: ValueError for a directory, and for a name that does not end in .onnx."""
    file = Path(path)
    if file.is_dir() or file.suffix != '.onnx':
        raise ValueError(f"{file} is {'a directory' if file.is_dir() else 'no name of an ONNX file'}: name a file that "
                         'ends in .onnx.')
    return file


def write_model(model: onnx.ModelProto, path: Union[str, 'PathLike[str]']) -> Path:
    """Write `model`, and return the file; an earlier one stays until all is written.

    Weights beyond `LIMIT` go to a second file beside it, NAME.onnx.data, which has to stay there.

    Raises:
        ValueError: as `check_name`.
        OSError: the disk's own.
    """
    file = check_name(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary, data = file.with_name(f'.{file.name}.{uuid4().hex}'), file.with_name(f'{file.name}.data')
    temporary_data = temporary.with_name(f'{temporary.name}.data')
    try:
        if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT:
            _move_weights(model, temporary_data, data.name)
            os.replace(temporary_data, data)
        temporary.write_bytes(model.SerializeToString())
        os.replace(temporary, file)
    finally:
        for left in (temporary, temporary_data):
            left.unlink(missing_ok=True)
    return file


def _move_weights(model: onnx.ModelProto, file: Path, name: str) -> None:
    """Write the weights into `file`, and let the model say that they lie in `name` beside it.

    Small constants stay: engines read shapes before they read weights.
    """
    with file.open('wb') as stream:
        for tensor in (t for t in model.graph.initializer if len(t.raw_data) >= _SMALL):
            entries = dict(location=name, offset=stream.tell(), length=stream.write(tensor.raw_data))
            tensor.ClearField('raw_data')
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))
