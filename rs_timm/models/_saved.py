"""Saved networks, in a folder or a repository of the hub: what their config.json may say, and are their tensors whole.

Anybody may have written one: constructor arguments are checked before anything is built from them.
"""
import math
import re
from collections.abc import Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any, Iterator, Optional

import torch
from huggingface_hub import try_to_load_from_cache
from timm.models import is_model

from rs_timm.interpolation import INTERPOLATIONS
from rs_timm.resolutions import MAX_RESOLUTIONS, check_resolutions

if TYPE_CHECKING:
    from ._config import SavedConfig

__all__ = [
    'DamagedWeights', 'check_digest', 'check_model_args', 'check_part', 'comparing_digests', 'read_bytes',
    'read_config', 'saved_config', 'tensor_digest']

_MAX_BYTES = 1 << 25  # of a config.json: names and descriptions of 20,000 classes are a twentieth of it
_LARGEST = 1 << 17  # of a number in a config: there are no more classes
_LIMITS = dict(features=4096, in_chans=1024, output_stride=32, weight_bits=8, act_bits=8)
_NOT_NULL = ('base', 'encoder', 'interpolation', 'resolutions')

# Arguments that name no file and no repository, and with which a network of any size is built in bounded time. Depths
# and widths are not among them: they come with the name of an architecture.
_HARMLESS = {
    'base', 'encoder', 'resolutions', 'interpolation', 'encoder_weights', 'num_classes', 'in_chans', 'global_pool',
    'drop_rate', 'drop_path_rate', 'drop_block_rate', 'act_layer', 'norm_layer', 'aa_layer', 'pad_type', 'stem_type',
    'bn_eps', 'bn_momentum', 'avg_down', 'zero_init_last', 'replace_stem_pool', 'fix_stem', *_LIMITS}

_check_digest: ContextVar[bool] = ContextVar('check_digest', default=True)


class DamagedWeights(ValueError):
    """The tensors of a saved network are not those that were saved."""


def check_part(name: str, architecture: Any, switchable: bool) -> None:
    """Raise ValueError unless the argument `name` is a plain name of timm's registry, of a network that fits.

    Args:
        name: of the argument, for the message.
        architecture: its value; without 'hf-hub:' or 'local-dir:', which would load something else.
        switchable: whether an `rs_*` network is wanted, or one of timm's own.
    """
    plain = isinstance(architecture, str) and re.fullmatch(r'[\w-]+(\.[\w-]+)?', architecture) is not None
    if not plain or architecture.startswith('rs_') != switchable or not is_model(architecture.partition('.')[0]):
        kind = 'an rs_* classifier' if switchable else 'a network of timm itself'
        raise ValueError(f"{name} is {str(architecture)[:100]!r}: it must be the name of {kind}, as in "
                         f"timm.list_models('{'rs_*' if switchable else '*'}').")


def check_model_args(architecture: str, args: Mapping[str, Any]) -> None:
    """Raise ValueError unless the `model_args` of a config.json may be given to the constructor of `architecture`.

    >>> check_model_args('rs_switchable', dict(base='regnety_002', resolutions=[64, 48], in_chans=1))
    >>> check_model_args('rs_switchable', dict(base='hf-hub:someone/else'))
    Traceback (most recent call last):
    ValueError: model_args.base is 'hf-hub:someone/else': it must be the name of a network of timm itself, as in timm.list_models('*').

    Args:
        architecture: of the config, an `rs_*` name.
        args: key -> value as JSON has it.

    Raises:
        ValueError: an argument that is not known to be harmless (`checkpoint_path`, `layers`), a part that is no plain name of the
            registry, more than 64 resolutions, or a value that is no finite number, text, boolean or list of those.
    """  # noqa: E501
    if not isinstance(args, Mapping):
        raise ValueError(f'model_args is a {type(args).__name__}: it must be an object of names and values.')
    for key, value in args.items():
        name = f'model_args.{str(key)[:100]}'
        if key not in _HARMLESS or key == 'encoder_weights' and value is not None:
            raise ValueError(f'{name} is no argument of a network that is read from a file: remove it.')
        if value is None and key in _NOT_NULL:
            raise ValueError(f'{name} is null.')
        if key == 'base' and architecture == 'rs_switchable' or key == 'encoder':
            check_part(name, value, switchable=key == 'encoder')
        elif key == 'resolutions':
            if not isinstance(value, (list, tuple)) or len(value) > MAX_RESOLUTIONS:
                raise ValueError(f'{name} must be a list of at most {MAX_RESOLUTIONS} sizes in pixels.')
            try:
                check_resolutions(value)
            except ValueError as error:
                raise ValueError(f'{name}: {error}') from error
        elif key == 'interpolation' and value not in INTERPOLATIONS:
            raise ValueError(f"{name} is {str(value)[:100]!r}: it must be one of {', '.join(INTERPOLATIONS)}.")
        _check_value(name, value, _LIMITS.get(key, _LARGEST))


def _check_value(name: str, value: Any, largest: int, depth: int = 0) -> None:
    if isinstance(value, (list, tuple)) and len(value) <= 1000 and depth < 3:
        for entry in value:
            _check_value(name, entry, largest, depth + 1)
    elif isinstance(value, (int, float)) and not isinstance(value, bool):
        if not (math.isfinite(value) and abs(value) <= largest):
            raise ValueError(f'{name} has {str(value)[:100]}: a number must be finite, and no larger than {largest}.')
    elif not (value is None or isinstance(value, bool) or isinstance(value, str) and len(value) <= 100):
        raise ValueError(f'{name} has a {type(value).__name__}: it must be a number, a short text, true, false, null '
                         'or a list of those.')


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
