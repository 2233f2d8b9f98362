"""Checkpoints that are whole or not there, the two last of a run, and the random states that make it go on exactly."""
import io
import logging
import os
import random
from hashlib import sha256
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional, Union

import numpy as np
import torch

from rs_timm.atomic import write_bytes

from .processes import gather, is_first_process
from .recipe import Recipe

__all__ = [
    'check_same_run',
    'checkpoint_files',
    'common_checkpoint',
    'load_checkpoint',
    'random_state',
    'save_checkpoint',
    'set_random_state',
]

PathOrStr = Union[str, 'os.PathLike[str]']

_logger = logging.getLogger(__name__)
_PREVIOUS = 'previous.pth'


def save_checkpoint(path: PathOrStr, state: Mapping[str, Any]) -> None:
    """Write `state`, made of tensors and plain values, atomically, with a digest of it.

    The file that was there before is kept beside it as `previous.pth`.

    Args:
        path: the file; the folder must exist.
        state: must load again with `weights_only=True`: tensors, numbers, strings, and dicts, lists, tuples of them.

    Raises:
        OSError: the disk is full or not writable; the file that was there is untouched.
    """
    buffer = io.BytesIO()  # a full disk is then met by write_bytes alone
    torch.save(dict(state, digest=_digest(state)), buffer)
    path = Path(path)
    if path.is_file():
        _keep(path)
    write_bytes(path, buffer.getbuffer())


def _keep(path: Path) -> None:
    """Give a file its second name, so that there is always one that is whole."""
    kept = path.with_name(_PREVIOUS)
    link = path.with_name(f'.{_PREVIOUS}.{os.getpid()}')
    try:
        os.link(path, link)
        os.replace(link, kept)
    except OSError:  # a file system without links
        os.replace(path, kept)


def _digest(state: Any) -> str:
    """A digest of tensors, containers of them and plain values; that of a pickle would not be stable."""
    found = sha256()

    def add(value: Any) -> None:
        if isinstance(value, torch.Tensor):
            found.update(f'{value.dtype}{tuple(value.shape)}'.encode())
            found.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
        elif isinstance(value, Mapping):
            found.update(b'{')
            for key, part in value.items():
                found.update(repr(key).encode())
                add(part)
            found.update(b'}')
        elif isinstance(value, (list, tuple)):
            found.update(b'(')
            for part in value:
                add(part)
            found.update(b')')
        else:
            found.update(f'{value!r};'.encode())

    add(state)
    return found.hexdigest()


def load_checkpoint(path: PathOrStr, check: bool = True) -> Dict[str, Any]:
    """Read a checkpoint to the CPU; pickled code is not run.

    Args:
        path: the file.
        check: compare the content with its digest, about a second for each gigabyte. Earlier versions wrote none.

    Raises:
        ValueError: the file is no checkpoint of this package, or is not as it was written.
        FileNotFoundError: no such file.
    """
    try:
        state = torch.load(path, map_location='cpu', weights_only=True)
    except FileNotFoundError:
        raise
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise ValueError(f'{path}: not a checkpoint of rs-timm train ({reason}).') from error
    if not isinstance(state, dict) or 'position' not in state:
        raise ValueError(f'{path}: holds no position in a training run; weights alone are the matter of --init.')
    digest = state.pop('digest', None)
    if check and digest is not None and digest != _digest(state):
        raise ValueError(f'{path}: damaged: what it holds is not what was written.')
    return state


def common_checkpoint(path: PathOrStr) -> Optional[Dict[str, Any]]:
    """Read the checkpoint that every process has at `path`, or return None where none has one; all must call it.

    Where it cannot be read, the one before it is taken, and a warning says so.

    Raises:
        ValueError: on every process: some lack the file, theirs are of different updates, or one cannot be read.
    """
    path, state, found, damage = Path(path), None, 'none', ''
    for file in checkpoint_files(path):
        try:
            state = load_checkpoint(file)
            found = 'after {epoch} epochs, {update} updates'.format_map(state['position'])
            break
        except (OSError, ValueError) as error:
            damage = damage or str(error)
            found = damage
    each = gather((str(path.resolve()), found))
    if len({what for _, what in each}) > 1:
        ranks = '; '.join(f'rank {rank}: {place}: {what}' for rank, (place, what) in enumerate(each))
        raise ValueError(f'the processes do not have the same checkpoint ({ranks}): give them an output folder (--out) '
                         f'that all machines share, or copy {path.name} to all of them.')
    if state is None and found != 'none':
        raise ValueError(found)
    if damage and is_first_process():
        _logger.warning('%s The run goes on from the checkpoint before it, %s.', damage, found)
        os.replace(path, path.with_name('damaged.pth'))  # else it would take the place of the one before it
    return state


def checkpoint_files(path: PathOrStr) -> List[Path]:
    """The checkpoint of a run and the one before it, as far as they are there."""
    return [file for file in (Path(path), Path(path).with_name(_PREVIOUS)) if file.is_file()]


def check_same_run(path: PathOrStr, state: Mapping[str, Any], own: Mapping[str, Any], recipe: Recipe) -> None:
    """Refuse a checkpoint that a run cannot go on from as if it had never stopped.

    Args:
        path: the checkpoint, for the message.
        state: its content; what earlier versions did not note is not compared.
        own: `Trainer.state_dict()` of the run that wants to go on.
        recipe: its settings.

    Raises:
        ValueError: settings, network, processes or training pictures differ; the message says how.
    """
    differences = recipe.differences(state['recipe'])
    if differences:
        changes = ', '.join(f'{name} {theirs!r}, now {mine!r}' for name, (mine, theirs) in differences.items())
        raise ValueError(f'{path} is of a run with other settings ({changes}): use those, or another output folder.')
    if _shapes(own) != _shapes(state):
        raise ValueError(f'{path} is of another network, or of data with other classes: use another output folder.')
    theirs, mine = len(state['random']), len(own['random'])
    if theirs != mine:
        raise ValueError(f'{path} is of a run with {theirs} process(es), this one has {mine}: start as many.')
    for key, differ in (('pictures', 'in number ({}, now {})'), ('class_names', 'in their classes'),
                        ('picture_names', 'in their names')):
        if state.get(key, own[key]) != own[key]:
            how = differ.format(state[key], own[key])
            raise ValueError(f'{path} is of a run whose training pictures differ {how}, and order and schedule depend '
                             'on them: use those pictures (--data, --splits), or another output folder.')


def _shapes(state: Mapping[str, Any]) -> Dict[str, torch.Size]:
    return {name: value.shape for name, value in state['state_dict'].items()}


def random_state() -> Dict[str, Any]:
    """The states of the generators of python, numpy, torch and every CUDA device."""
    name, keys, *rest = np.random.get_state(legacy=True)
    return dict(
        python=random.getstate(),
        numpy=(name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        torch=torch.get_rng_state(),
        cuda=torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    )


def set_random_state(state: Mapping[str, Any]) -> None:
    """Go on with the random numbers that follow `state`, see `random_state`."""
    version, internal, gauss = state['python']
    random.setstate((version, tuple(internal), gauss))
    name, keys, *rest = state['numpy']
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state['torch'])
    if torch.cuda.is_available() and len(state['cuda']) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state['cuda'])
