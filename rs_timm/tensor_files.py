"""Safetensors files that others may read, as far as new files may be read here."""
from pathlib import Path
from typing import Dict, Union

import torch
from safetensors.torch import save_file

from rs_timm.atomic import replacing

__all__ = ['save_tensors']


def save_tensors(tensors: Dict[str, torch.Tensor], path: Union[str, Path]) -> None:
    """Write a safetensors file with the access rights of any new file; safetensors gives them to the owner alone.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'one.safetensors'
    >>> save_tensors({'one': torch.ones(1)}, file)

    Args:
        tensors: contiguous, none of which shares memory with another.
        path: is replaced, as a whole or not at all.
    """
    with replacing(path) as new:
        new.touch()
        mode = new.stat().st_mode
        save_file(tensors, new, metadata={'format': 'pt'})
        new.chmod(mode)
