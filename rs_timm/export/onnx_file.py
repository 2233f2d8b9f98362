"""A switchable network -> one ONNX file with all its BatchNorm sets, or one plain file a resolution."""
from os import PathLike
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence, Union

import onnx
import torch
from onnx import helper
from timm.utils import unwrap_model
from torch import nn

from rs_timm import __version__
from rs_timm.analysis.cost import image_channels
from rs_timm.format.graph import IMAGES, set_info, specialise
from rs_timm.layers import check_resolutions, extract

from .choice import RESOLUTION, Choice, apply_affine
from .metadata import describe
from .probe import Probe, probe
from .tables import Tables, make_tables
from .trace import Traced, Tracer
from .write import check_name, write_model

__all__ = ['export_onnx', 'onnx_model', 'split_onnx']

_Path = Union[str, 'PathLike[str]']
_OPSETS = range(13, 21)  # from the first with the operators of the choice, to the last that the exporter knows
_CHOICES = ('shape', 'input')


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
    check_name(path)
    return write_model(onnx_model(model, choice=choice, metadata=metadata, opset=opset), path)


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
    file = check_name(path)
    source = _Source(model, 'shape', metadata, opset)
    files = {}
    for resolution in check_resolutions(resolutions or source.tables.resolutions):
        plain = specialise(source.proto(resolution), resolution)
        files[resolution] = write_model(plain, file.with_name(f'{file.stem}_{resolution}.onnx'))
    return files


def onnx_model(
        model: nn.Module,
        *,
        choice: str = 'shape',
        metadata: Optional[Mapping[str, Any]] = None,
        opset: int = 17,
) -> onnx.ModelProto:
    """What `export_onnx` writes, in memory."""
    source = _Source(model, choice, metadata, opset)
    return source.proto(source.tables.resolutions[-1], any_size=True)


class _Source:
    """What is read from a network once, whatever is written."""

    def __init__(self, model: nn.Module, choice: str, metadata: Optional[Mapping[str, Any]], opset: int) -> None:
        if choice not in _CHOICES:
            raise ValueError(f"choice {choice!r} is unknown: use one of {', '.join(_CHOICES)}.")
        if opset not in _OPSETS:
            raise ValueError(f'opset {opset} is not one of {_OPSETS[0]} to {_OPSETS[-1]}.')
        model = unwrap_model(model)
        self.choice, self.opset = choice, opset
        self.tables: Tables = make_tables(model)
        smallest = self.tables.resolutions[-1]
        plain = extract(model, smallest).eval().float().cpu().requires_grad_(False)
        self.channels = image_channels(plain)
        self.seen: Probe = probe(plain, self._example(smallest, smallest), self.tables.layers)
        self.info = describe(model, self.channels, list(self.seen.outputs.values()), choice).replace(**(metadata or {}))
        self.tracer = Tracer(plain, list(self.tables.layers), list(self.seen.outputs), opset)

    def _example(self, height: int, width: int) -> torch.Tensor:
        return torch.zeros(2, self.channels, height, width)

    def proto(self, resolution: int, any_size: bool = False) -> onnx.ModelProto:
        """The graph as traced at `resolution` px, which with `any_size` must be that of all sizes."""
        traced = self.tracer.trace(self._example(resolution, resolution), any_size)
        if any_size:
            largest = self.tables.resolutions[0]
            others = (largest, largest), (resolution + 1, largest + 3)  # the second with odd sides
            self.tracer.check_any_size(traced, [self._example(*sides) for sides in others])
        proto = helper.make_model(
            self._graph(traced),
            opset_imports=[helper.make_opsetid('', self.opset)],
            ir_version=traced.ir_version,
            producer_name='rs_timm',
            producer_version=__version__,
        )
        set_info(proto, self.info)
        return proto

    def _graph(self, traced: Traced) -> onnx.GraphProto:
        """The choice in front, and its results in place of the BatchNorms."""
        choice = Choice(self.tables, self.seen.ranks, self.choice)
        graph = onnx.GraphProto(name=self.info.name)
        graph.node.extend(choice.nodes)
        for node, layer in zip(traced.nodes, traced.layers):
            graph.node.extend([node] if layer is None else apply_affine(node, layer))
        read = {name for node in graph.node for name in node.input}
        graph.initializer.extend(choice.constants.values())
        graph.initializer.extend(tensor for name, tensor in traced.constants.items() if name in read)
        graph.input.append(_tensor(IMAGES, ['batch', self.channels, 'height', 'width']))
        if self.choice == 'input':
            graph.input.append(_tensor(RESOLUTION, []))
        graph.output.extend(_tensor(name, _axes(name, output)) for name, output in self.seen.outputs.items())
        return graph


def _axes(name: str, output: torch.Tensor) -> List[Union[int, str]]:
    return ['batch', *output.shape[1:2], *(f'{name}_{axis}' for axis in range(2, output.ndim))]


def _tensor(name: str, shape: Sequence[Union[int, str]]) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
