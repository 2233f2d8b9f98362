"""Saved networks, in a folder or a repository of the hub: their config.json, and whether their tensors are whole."""
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

import torch
from huggingface_hub import try_to_load_from_cache

if TYPE_CHECKING:
    from ._config import SavedConfig

__all__ = [
    'DamagedWeights', 'check_digest', 'comparing_digests', 'read_bytes', 'read_config', 'saved_config', 'tensor_digest']

_MAX_BYTES = 1 << 25  # of a config.json: names and descriptions of 20,000 classes are a twentieth of it
_check_digest: ContextVar[bool] = ContextVar('check_digest', default=True)


class DamagedWeights(ValueError):
    """The tensors of a saved network are not those that were saved."""


def read_bytes(path: Path, where: str) -> bytes:
    """Read a config.json: a regular file of a size that one can have, or ValueError."""
    if not path.is_file():
        raise ValueError(f'{path}: no such file; expected a folder that rs_timm.save_pretrained wrote.')
    with path.open('rb') as stream:
        text = stream.read(_MAX_BYTES + 1)
    if len(text) > _MAX_BYTES:
        raise ValueError(f'config.json of {where}: more than {_MAX_BYTES >> 20} MiB, which no network needs.')
    return text


def read_config(path: Path, where: str) -> 'SavedConfig':
    """Read config.json under the rules of `_config`, before anything is built from it.

    Args:
        path: of the file.
        where: the folder or repository, for messages.

    Raises:
        ValueError: what the file says that it may not, in one sentence.
    """
    from ._config import check_config  # pydantic takes its time to import

    return check_config(read_bytes(path, where), f'config.json of {where}')


def saved_config(cfg: Any, cache_dir: Optional[str] = None) -> Optional['SavedConfig']:
    """The config.json that timm has made the dict `cfg` from, a folder's or a repository's; None if there is none.

    Nothing is downloaded: timm has just read the file.

    Raises:
        ValueError: as `read_config`.
    """
    if not isinstance(cfg, Mapping):
        return None
    if cfg.get('source') == 'local-dir' and cfg.get('file'):
        path = Path(cfg['file'], 'config.json')  # timm has the folder here
        return read_config(path, cfg['file']) if path.is_file() else None
    if cfg.get('source') == 'hf-hub' and cfg.get('hf_hub_id'):
        repo_id, _, revision = cfg['hf_hub_id'].partition('@')
        cached = try_to_load_from_cache(repo_id, 'config.json', cache_dir=cache_dir, revision=revision or None)
        return read_config(Path(cached), cfg['hf_hub_id']) if isinstance(cached, str) else None
    return None


def tensor_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """A hash of names, types, shapes and values, whatever the order; config.json of a saved network holds it.

    >>> zero, one = torch.zeros(2), torch.ones(1)
    >>> tensor_digest({'a': zero, 'b': one}) == tensor_digest({'b': one, 'a': zero}) != tensor_digest({'a': one})
    True
    """
    digest = sha256()
    for key in sorted(tensors):
        tensor = tensors[key].detach().cpu().contiguous()
        digest.update(f'{key} {tensor.dtype} {tuple(tensor.shape)}\n'.encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy())
    return f'sha256:{digest.hexdigest()}'


@contextmanager
def comparing_digests(wanted: bool) -> Iterator[None]:
    """Choose whether loading inside compares the digests of saved tensors; not for huge files, say."""
    token = _check_digest.set(wanted)
    try:
        yield
    finally:
        _check_digest.reset(token)


def check_digest(tensors: Mapping[str, torch.Tensor], config: 'SavedConfig', where: str) -> None:
    """Raise DamagedWeights unless `tensors`, as they stand in the file, are those that `config` was written beside.

    Args:
        tensors: key -> tensor.
        config: of the network; one without a digest, of an earlier version or of timm, is believed.
        where: its folder or repository, for the message.
    """
    if config.rs_timm.digest and _check_digest.get() and tensor_digest(tensors) != config.rs_timm.digest:
        raise DamagedWeights(f'model.safetensors of {where} is damaged, or was exchanged: the digest of its tensors is '
                             'not the one in config.json. Get it again, or save the network again.')
