"""Where a Session's networks come from: an exported file, or a torch model."""
import sys
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Protocol, Union

import rs_timm  # not its parts: what needs torch is imported only when a torch model is given
from rs_timm.format.graph import info_of, read_model, specialise
from rs_timm.format.info import ModelInfo

__all__ = ['ExportedFile', 'Source', 'is_torch_model', 'open_source']


class Source(Protocol):
    """A switchable network that gives the plain network of each resolution."""

    @property
    def info(self) -> ModelInfo:
        """What the network says about itself."""

    def graph(self) -> Any:
        """The network with all its sets as an `onnx.ModelProto`."""

    def network(self, resolution: int) -> Any:
        """The plain network of one resolution, for any batch, as `Engine.compile` takes it."""


class ExportedFile:
    """A file that `rs_timm.export_onnx` wrote. It is read again for each network: none stays in memory.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: another kind of file.
    """

    def __init__(self, path: Union[str, 'PathLike[str]']) -> None:
        self.path = Path(path)
        if not self.path.exists():
            raise FileNotFoundError(
                f'{self.path}: no such file. A session takes an exported file or a torch model, not the name of a '
                f"model: write a file with 'rs-timm export {self.path} FILE.onnx', or give "
                f"timm.create_model('{self.path}', pretrained=True).")
        self.info = info_of(self.graph(), str(self.path))

    def graph(self) -> Any:
        return read_model(self.path)

    def network(self, resolution: int) -> Any:
        return specialise(self.graph(), resolution)


class ExportedModel(ExportedFile):
    """A torch model, exported to a temporary file that goes when this does."""

    def __init__(self, model: Any) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix='rs_timm_')
        super().__init__(rs_timm.export_onnx(model, Path(self._folder.name) / 'model.onnx'))


class TorchModel:
    """A torch model for the torch engine: its networks share all weights but the BatchNorms with one another.

    A copy is made, so that the session stays as it is when the model changes.
    """

    def __init__(self, model: Any, precision: str) -> None:
        from .engines._torch import prepare

        self.info = rs_timm.export.model_info(model)
        self._model = prepare(model, precision)

    def graph(self) -> Any:
        return rs_timm.export.onnx_model(self._model)

    def network(self, resolution: int) -> Any:
        from .engines._torch import shared_extract

        return shared_extract(self._model, resolution)


def is_torch_model(model: Any) -> bool:
    """Whether it is an `nn.Module`; torch is not imported to find out."""
    torch = sys.modules.get('torch')
    return torch is not None and isinstance(model, torch.nn.Module)


def open_source(model: Any, engine: str, precision: str) -> Source:
    """What gives `engine` its networks.

    Raises:
        ImportError: onnx is not installed.
        FileNotFoundError: no such file.
        ValueError: neither a path nor a torch model; a file that rs_timm did not write.
    """
    if engine == 'torch':
        return TorchModel(model, precision)
    if is_torch_model(model):
        return ExportedModel(model)
    if isinstance(model, (str, PathLike)):
        return ExportedFile(model)
    raise ValueError(f'a session takes the path of an exported file, or a torch model, not a {type(model).__name__}.')
