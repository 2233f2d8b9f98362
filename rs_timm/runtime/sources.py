"""The sources of a session's networks: an exported file, or a torch model."""
import os
import sys
import tempfile
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Protocol, Union

from rs_timm.format.digest import check_graph
from rs_timm.format.graph import extract_onnx, info_of, read_model_and_digest
from rs_timm.format.info import ModelInfo

__all__ = ['ExportedFile', 'Source', 'is_torch_model', 'open_source']


class Source(Protocol):
    """A switchable network that gives the plain network of each resolution."""

    @property
    def name(self) -> str:
        """The file, as it was given, or the name of the model: for errors."""

    @property
    def info(self) -> ModelInfo:
        """The description of the network."""

    def graph(self) -> Any:
        """The network with all its sets as an `onnx.ModelProto`."""

    def network(self, resolution: int) -> Any:
        """The plain network of one resolution, for any batch, as `Engine.compile` takes it."""


class ExportedFile:
    """A file that `rs_timm.export_onnx` wrote. It is read again for each network: none stays in memory.

    All networks are of the file as it was when this was made: one that has changed since is an error.

    Args:
        path: of the file.
        check_digest: compare what the file holds with the digest in it.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: another kind of file, or a damaged one.
    """

    def __init__(self, path: Union[str, 'PathLike[str]'], check_digest: bool = True) -> None:
        self.name = fspath(path)
        self.path = Path(os.path.abspath(path))
        if not self.path.exists():
            raise FileNotFoundError(
                f'{self.name}: no such file. A session takes an exported file or a torch model, not the name of a '
                f"model: write a file with 'rs-timm export {self.name} FILE.onnx', or give "
                f"timm.create_model('{self.name}', pretrained=True).")
        graph, self.digest = read_model_and_digest(self.path)
        if check_digest:
            check_graph(graph, self.name)
        self.info = info_of(graph, self.name)

    def graph(self) -> Any:
        try:
            graph, digest = read_model_and_digest(self.path)
        except (OSError, ValueError):
            digest = ''
        if digest != self.digest:
            raise ValueError(f'{self.name} is gone or has changed since the session was opened, whose networks are '
                             'all of the file as it was: open a new session.')
        return graph

    def network(self, resolution: int) -> Any:
        try:
            return extract_onnx(self.graph(), resolution)
        except (AttributeError, IndexError, KeyError, StopIteration, TypeError, UnicodeDecodeError) as error:
            raise ValueError(f'{self.name} is damaged: its graph is none that rs-timm export writes ({error}).'
                             ) from error


class ExportedModel(ExportedFile):
    """A torch model, exported to a temporary file that goes when this does."""

    def __init__(self, model: Any) -> None:
        from rs_timm.export import export_onnx  # needs torch

        self._folder = tempfile.TemporaryDirectory(prefix='rs_timm_')
        super().__init__(export_onnx(model, Path(self._folder.name) / 'model.onnx'), check_digest=False)
        self.name = self.info.name


def is_torch_model(model: Any) -> bool:
    """Whether it is an `nn.Module`; torch is not imported to find out."""
    torch = sys.modules.get('torch')
    return torch is not None and isinstance(model, torch.nn.Module)


def open_source(model: Any, engine: str, precision: str, check_digest: bool = True) -> Source:
    """Open the source from which `engine` gets its networks.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: neither a path nor a torch model; a file that rs_timm did not write, or that is damaged.
    """
    if engine == 'torch':
        from .engines._torch import TorchModel  # needs torch

        return TorchModel(model, precision)
    if is_torch_model(model):
        return ExportedModel(model)
    if isinstance(model, (str, PathLike)):
        return ExportedFile(model, check_digest)
    raise ValueError(f'a session takes the path of an exported file, or a torch model, not a {type(model).__name__}.')
