"""Safetensors files that others may read, as far as new files may be read here."""
import stat
from pathlib import Path
from typing import Dict, Union

import torch
from safetensors.torch import save_file

__all__ = ['save_tensors']


def save_tensors(tensors: Dict[str, torch.Tensor], path: Union[str, Path]) -> None:
    """Write a safetensors file with the access rights of any new file; safetensors gives them to the owner alone.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'one.safetensors'
    >>> save_tensors({'one': torch.ones(1)}, file)

    Args:
        tensors: contiguous, none of which shares memory with another.
        path: is replaced.
    """
    path = Path(path)
    new = not path.exists()
    with path.open('ab'):
        mode = stat.S_IMODE(path.stat().st_mode)
    try:
        save_file(tensors, path, metadata={'format': 'pt'})
    except BaseException:
        if new:
            path.unlink(missing_ok=True)
        raise
    path.chmod(mode)
