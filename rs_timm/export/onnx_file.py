"""A switchable network -> one ONNX file with all its BatchNorm sets, or one plain file a resolution."""
import math
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Tuple, Union

import torch
from timm.utils import unwrap_model
from torch import nn

from rs_timm.atomic import replacing
from rs_timm.format.digest import set_digest
from rs_timm.format.graph import IMAGES, extract_onnx, import_onnx, read_info
from rs_timm.layers import check_resolutions, use_resolution

from .network import default_torch_state

__all__ = ['export_onnx', 'max_difference', 'onnx_model', 'split_onnx']

_Path = Union[str, 'PathLike[str]']
LIMIT = 2 ** 31 - 2 ** 20  # bytes of weights; protobuf ends at 2 GiB, and nodes and names need room too
_SMALL = 1024  # bytes


def export_onnx(
        model: nn.Module,
        path: _Path,
        *,
        choice: str = 'shape',
        metadata: Optional[Mapping[str, Any]] = None,
        opset: int = 17,
) -> Path:
    """Write `model`, with one copy of its shared weights and all its BatchNorm sets, as one ONNX file.

    Its input is `images` [N, C, H, W], float32, normalised; its output `logits`. Any batch, height and width will do:
    the graph chooses the set, or interpolates it, as the model itself does while it follows its input. Whether the
    model is pinned to a resolution plays no part; it is left as it is. `rs_timm.runtime` reads the file without torch.

    >>> import os, tempfile, timm, rs_timm
    >>> from rs_timm.runtime import read_info
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48))
    >>> file = export_onnx(model, os.path.join(tempfile.mkdtemp(), 'model.onnx'), metadata=dict(license='mit'))
    >>> read_info(file).resolutions, read_info(file).license
    ((64, 48), 'mit')

    Args:
        model: a switchable network, or a wrapper of one. One that gives several tensors has the outputs `features_0`
            and so on, one that gives a dictionary has its keys.
        path: NAME.onnx; written as a whole or not at all. Weights beyond 2 GB go to NAME.onnx.data.
        choice: what the graph takes the resolution from: 'shape' of the images, or 'input': a second input
            `resolution`, a float32 scalar in pixels.
        metadata: entries of `rs_timm.runtime.ModelInfo` to replace, such as label_names, mean, license.
        opset: of ai.onnx, 13 to 20.

    Returns:
        the file.

    Raises:
        ImportError: onnx is not installed.
        ValueError: a network that is not switchable, that ONNX cannot express, or whose graph depends on the size of
            its input; an unknown option.
    """
    file = _checked(path)
    _write(onnx_model(model, choice=choice, metadata=metadata, opset=opset), file)
    return file


def split_onnx(
        model: nn.Module,
        path: _Path,
        resolutions: Optional[Iterable[int]] = None,
        *,
        metadata: Optional[Mapping[str, Any]] = None,
        opset: int = 17,
) -> Dict[int, Path]:
    """Write one plain ONNX file a resolution, for tools that know nothing of the choice: NAME_224.onnx and so on.

    Height and width are fixed, the batch is not, and BatchNorm is folded into the convolutions.

    Args:
        model, metadata, opset: as in `export_onnx`. Networks whose graph depends on the size can be split.
        path: NAME.onnx.
        resolutions: pixels, trained or not; None: the trained ones.

    Returns:
        resolution -> file.
    """
    file = _checked(path)
    files = {}
    with default_torch_state():
        graph = _open(model, 'shape', metadata, opset)
        for resolution in check_resolutions(resolutions or graph.tables.resolutions):
            files[resolution] = file.with_name(f'{file.stem}_{resolution}.onnx')
            _write(extract_onnx(graph.build(resolution), resolution), files[resolution])
    return files


def onnx_model(
        model: nn.Module,
        *,
        choice: str = 'shape',
        metadata: Optional[Mapping[str, Any]] = None,
        opset: int = 17,
) -> Any:
    """Make the `onnx.ModelProto` that `export_onnx` writes; arguments and errors are the same."""
    with default_torch_state():
        graph = _open(model, choice, metadata, opset)
        return graph.build(graph.tables.resolutions[-1], any_size=True)


def _open(model: nn.Module, choice: str, metadata: Optional[Mapping[str, Any]], opset: int) -> Any:
    import_onnx()
    from .onnx_graph import SwitchableGraph  # not with this module: that one needs onnx

    return SwitchableGraph(unwrap_model(model), choice, metadata, opset)


def _checked(path: _Path) -> Path:
    """The file, if it can be one: ValueError for a directory, and for a name that does not end in .onnx."""
    file = Path(path)
    if file.is_dir() or file.suffix != '.onnx':
        raise ValueError(f"{file} is {'a directory' if file.is_dir() else 'no name of an ONNX file'}: name a file that "
                         'ends in .onnx.')
    return file


def _write(model: Any, file: Path) -> None:
    """Write a model, with its digest, as a whole or not at all.

    Weights beyond `LIMIT` go to NAME.onnx.data, which has to stay there.
    """
    set_digest(model)
    file.parent.mkdir(parents=True, exist_ok=True)
    with replacing(file) as new:
        if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LIMIT:
            data = file.with_name(f'{file.name}.data')
            with replacing(data) as new_data:
                _move_weights(model, new_data, data.name)
        new.write_bytes(model.SerializeToString())


def _move_weights(model: Any, file: Path, name: str) -> None:
    """Write the weights into `file`, and let the model say that they lie in `name` beside it.

    Small constants stay: engines read shapes before they read weights.
    """
    external = import_onnx().TensorProto.EXTERNAL
    with file.open('wb') as stream:
        for tensor in (t for t in model.graph.initializer if len(t.raw_data) >= _SMALL):
            entries = dict(location=name, offset=stream.tell(), length=stream.write(tensor.raw_data))
            tensor.ClearField('raw_data')
            tensor.data_location = external
            for key, value in entries.items():
                tensor.external_data.add(key=key, value=str(value))


def max_difference(model: nn.Module, file: _Path, resolution: int, batch: int = 2) -> float:
    """The largest difference between `file` in ONNX Runtime and `model` in torch, on random images of a resolution.

    It is relative to the largest absolute value of the output in question; float32 arithmetic in another order gives
    about 1e-6. Where one of them is not a number, it is infinite.

    Args:
        model: as exported, in evaluation mode, on the CPU; it follows its input meanwhile.
        file: as written by `export_onnx` or `split_onnx`.
        resolution: pixels.
        batch: images.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is not one of ours.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("the check needs ONNX Runtime: pip install 'rs_timm[onnxruntime]'.") from error
    info = read_info(file)
    images, expected = answers(model, resolution, batch, info.channels)
    feeds: Dict[str, Any] = {IMAGES: images.numpy()}
    if info.choice == 'input':
        feeds['resolution'] = torch.tensor(float(resolution), dtype=torch.float32).numpy()
    session = onnxruntime.InferenceSession(fspath(file), providers=['CPUExecutionProvider'])
    return relative_difference(expected, map(torch.from_numpy, session.run(None, feeds)))


def answers(model: nn.Module, resolution: int, batch: int, channels: int) -> Tuple[torch.Tensor, List[torch.Tensor]]:
    """Random images of a resolution, and what `model` gives for them while it follows its input."""
    with default_torch_state(), use_resolution(model, None):
        images = torch.randn(batch, channels, resolution, resolution, generator=torch.Generator().manual_seed(0))
        outputs = unwrap_model(model)(images)
    if isinstance(outputs, torch.Tensor):
        return images, [outputs]
    return images, list(outputs.values() if isinstance(outputs, dict) else outputs)


def relative_difference(expected: Iterable[torch.Tensor], outputs: Iterable[torch.Tensor]) -> float:
    """The largest difference of tensors in proportion to the largest value of each; infinite for what is no number."""
    differences = [((a - b).abs().max() / a.abs().max().clamp(min=1e-12)).item()
                   for a, b in zip(expected, outputs, strict=True)]
    return max(difference if math.isfinite(difference) else math.inf for difference in differences)
