"""Files of tensors: safetensors that others may read, and weights from any source, with errors that name it."""
import os
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, Mapping, Union

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from timm.models import is_model, load_state_dict
from torch import nn

from rs_timm.atomic import replacing

__all__ = ['check_values', 'read_state_dict', 'read_weights', 'save_tensors']

_EXPECTED = 'expected a .safetensors or .pth file with a state dict'
_WITH_FRACTIONS = ('.weight', '.bias', '.running_mean', '.running_var')
_WEIGHTS = 'model.safetensors'  # in a folder that save_pretrained or timm wrote


def save_tensors(tensors: Dict[str, torch.Tensor], path: Union[str, Path]) -> None:
    """Write a safetensors file with the access rights of any new file; safetensors gives them to the owner alone.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'one.safetensors'
    >>> save_tensors({'one': torch.ones(1)}, file)

    Args:
        tensors: contiguous, none of which shares memory with another.
        path: is replaced, as a whole or not at all.

    Raises:
        OSError: the disk's own, such as a full one.
    """
    with replacing(path) as new:
        new.touch()
        mode = new.stat().st_mode
        try:
            save_file(tensors, new, metadata={'format': 'pt'})
        except SafetensorError as error:  # it hides what the disk says
            code = re.search(r'os error (\d+)', str(error))
            if code is None:
                raise
            raise OSError(int(code[1]), os.strerror(int(code[1])), str(path)) from error
        new.chmod(mode)


def read_state_dict(file: Union[str, Path]) -> Dict[str, Any]:
    """Key -> tensor of a checkpoint (the EMA weights, where there are some). Pickled objects are not opened.

    Raises:
        ValueError: no such file, a directory, an empty, truncated, hostile or other file.
    """
    if not os.path.isfile(file):
        raise ValueError(f"{file}: {'a directory' if os.path.isdir(file) else 'no such file'}; {_EXPECTED}.")
    if not os.path.getsize(file):
        raise ValueError(f'{file}: the file is empty; {_EXPECTED}.')
    try:
        _check_archive(file)
        tensors = {str(key): value for key, value in load_state_dict(str(file)).items()
                   if isinstance(value, torch.Tensor)}
    except Exception as error:  # each format has its own errors for damaged files
        raise ValueError(f'{file}: {_reason(error)}; {_EXPECTED}.') from error
    if not tensors:
        raise ValueError(f'{file}: it holds no tensors by name; {_EXPECTED}.')
    return tensors


def _check_archive(file: Union[str, Path]) -> None:
    """Compare what torch.save has packed with its checksums, which torch.load does not look at.

    Files of other formats pass, and so do entries with the checksum 0: torch writes that where it is told to compute
    none.

    Raises:
        zipfile.BadZipFile: flipped bytes.
    """
    with open(file, 'rb') as stream:
        if stream.read(4) != b'PK\3\4':
            return
        with zipfile.ZipFile(stream) as archive:
            for entry in archive.infolist():
                if entry.CRC:
                    with archive.open(entry) as content:
                        while content.read(1 << 20):
                            pass


def _reason(error: Exception) -> str:
    causes = ' '.join(str(e) for e in (error, error.__cause__) if e is not None)
    found = re.search(r'GLOBAL:? (?P<name>[\w.]+)|[uU]nsupported global[^\w]+(?P<other>[\w.]+)', causes)
    if found:
        name = found['name'] or found['other']
        return f'it holds a pickled object ({name}), which could run code and is not opened'
    return f"not readable ({type(error).__name__}: {' '.join(str(error).split())[:200]})"


def read_weights(source: str) -> Dict[str, Any]:
    """The state dict that `--init` and the weights of an encoder name.

    Args:
        source: a file, a folder with model.safetensors, or a model name that has weights ('resnet18.a1_in1k',
            'local-dir:runs/first/model').

    Raises:
        ValueError: no such file, folder or name, or a file that cannot be read; the message names it.
    """
    if Path(source).is_dir() and not is_model(source):
        if not Path(source, _WEIGHTS).is_file():
            raise ValueError(f'{source}: there is no {_WEIGHTS} in this folder; name the file with the weights.')
        return read_state_dict(Path(source, _WEIGHTS))
    if Path(source).is_file():
        return read_state_dict(source)
    if len(Path(source).parts) > 1 and ':' not in source:
        raise ValueError(f'{source}: there is no such file or folder.')
    try:
        return dict(timm.create_model(source, pretrained=True).state_dict())
    except RuntimeError as error:
        raise ValueError(f'{source!r} is neither a file nor a model name with weights: {error}') from error


def check_values(state: Mapping[str, torch.Tensor], model: nn.Module, source: str) -> None:
    """Refuse weights that torch would load without a word: not finite, or whole numbers where fractions belong.

    Args:
        state: with the names that `model` or its plain network uses.
        model: what they are for.
        source: the file, for the message.

    Raises:
        ValueError: which tensor is wrong, and how.
    """
    own = model.state_dict()
    for key, value in state.items():  # a plain network's names of BatchNorms are not those of a switchable one
        if not value.is_floating_point():
            fractions = own[key].is_floating_point() if key in own else key.endswith(_WITH_FRACTIONS)
            if fractions:
                raise ValueError(f'{source}: {key} is stored as {value.dtype}, expected a floating-point type.')
        elif not value.isfinite().all():
            raise ValueError(f'{source}: {key} is not finite: the file is damaged, or its training had failed.')
