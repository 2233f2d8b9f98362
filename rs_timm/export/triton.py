"""A switchable network -> a model of a repository of NVIDIA's Triton Inference Server: one model, any size.

Triton's backend for ONNX Runtime takes inputs of free height and width, so that the one file with all sets serves as it
is, and its switch stays in the graph; Triton puts requests of equal size into batches by itself.
"""
import json
import re
from os import PathLike
from pathlib import Path
from typing import Any, List, Mapping, Optional, Union

from torch import nn

from rs_timm.atomic import replacing_folder
from rs_timm.format.graph import IMAGES, import_onnx
from rs_timm.format.info import METADATA_KEY, ModelInfo

from .network import model_info
from .onnx_file import export_onnx

__all__ = ['MODEL_FILE', 'export_triton', 'triton_name']

MODEL_FILE = Path('1') / 'model.onnx'  # version and file, as Triton expects them by default
_LABELS = 'labels.txt'


def export_triton(
        model: nn.Module,
        repository: Union[str, 'PathLike[str]'],
        *,
        name: Optional[str] = None,
        max_batch: int = 8,
        metadata: Optional[Mapping[str, Any]] = None,
        opset: int = 17,
) -> Path:
    """Write `model` as REPOSITORY/NAME: `config.pbtxt`, `1/model.onnx` and, for a classifier, `labels.txt`.

    The input is `images` [N, C, H, W], float32, normalised, of any size; each trained size is warmed up when Triton
    loads the model. The description, without the names of the classes, is the parameter `rs_timm` of the model.

    >>> import tempfile, timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48), num_classes=2)
    >>> folder = export_triton(model, tempfile.mkdtemp())
    >>> folder.name, sorted(path.name for path in folder.iterdir())
    ('rs_resnet18', ['1', 'config.pbtxt', 'labels.txt'])

    Args:
        model: a switchable network, or a wrapper of one.
        repository: a folder, made if need be; what is in it besides NAME stays.
        name: of the model; None: as it is called, without what file systems mind.
        max_batch: pictures that Triton may put together.
        metadata, opset: as in `export_onnx`.

    Returns:
        the folder REPOSITORY/NAME, written as a whole or not at all; an earlier one is replaced.

    Raises:
        ImportError: onnx is not installed.
        ValueError: as of `export_onnx`; a name that is none, or no room for a picture.
    """
    if max_batch < 1:
        raise ValueError(f'max_batch {max_batch}: at least one picture.')
    name = triton_name(model) if name is None else name
    if not re.fullmatch(r'[\w-][\w.-]*', name):
        raise ValueError(f'{name!r} is no name of a model: use letters, digits, _, - and dots.')
    folder = Path(repository) / name
    folder.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(folder) as new:
        graph = import_onnx().load(export_onnx(model, new / MODEL_FILE, metadata=metadata, opset=opset),
                                   load_external_data=False).graph
        info = model_info(model).replace(**(metadata or {}))
        labelled = info.task == 'classification' and info.num_classes > 0
        if labelled:
            labels = (' '.join(info.label(index).split()) for index in range(info.num_classes))
            (new / _LABELS).write_text(''.join(f'{label}\n' for label in labels), encoding='utf-8')
        (new / 'config.pbtxt').write_text(_config(name, graph, info, max_batch, labelled), encoding='utf-8')
    return folder


def triton_name(model: nn.Module) -> str:
    """The name of a model in a repository: what the network is called, with _ for what file systems mind."""
    return re.sub(r'[^\w.-]|^\.', '_', model_info(model).name)


def _config(name: str, graph: Any, info: ModelInfo, max_batch: int, labelled: bool) -> str:
    """The text of config.pbtxt, a `ModelConfig` of Triton's model_config.proto."""
    lines = [f'name: {_text(name)}', 'backend: "onnxruntime"', f'max_batch_size: {max_batch}']
    for kind, values in (('input', graph.input), ('output', graph.output)):
        for value in values:
            label = f' label_filename: {_text(_LABELS)}' * (labelled and kind == 'output')
            lines.append(f'{kind} {{ name: {_text(value.name)} data_type: TYPE_FP32 dims: {_dims(value)}{label} }}')
    lines.append('dynamic_batching { }')
    for size in info.resolutions:
        dims = [info.channels, size, size]
        lines.append(f'model_warmup {{ name: "{size} px" batch_size: 1 inputs {{ key: {_text(IMAGES)} '
                     f'value {{ data_type: TYPE_FP32 dims: {dims} zero_data: true }} }} }}')
    description = info.replace(label_names=None, label_descriptions=None).to_json()
    lines.append(f'parameters {{ key: {_text(METADATA_KEY)} value {{ string_value: {_text(description)} }} }}')
    return '\n'.join(lines) + '\n'


def _dims(value: Any) -> List[int]:
    """Dimensions of a tensor behind the first, which is the batch; -1 where they are free."""
    dims = value.type.tensor_type.shape.dim
    return [dim.dim_value if dim.HasField('dim_value') else -1 for dim in dims[1:]]


def _text(value: str) -> str:
    """A string of protobuf's text format: its octets beyond ASCII escaped."""
    escaped = json.dumps(value, ensure_ascii=False).encode()
    return ''.join(chr(octet) if octet < 128 else f'\\{octet:03o}' for octet in escaped)
