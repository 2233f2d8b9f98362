"""Checkpoints that are either whole or not there, and the random states that make a resumed run exact."""
import io
import os
import random
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Union

import numpy as np
import torch

from rs_timm.atomic import write_bytes

from .processes import gather
from .recipe import Recipe

__all__ = [
    'check_same_run',
    'common_checkpoint',
    'load_checkpoint',
    'random_state',
    'save_checkpoint',
    'set_random_state',
]

PathOrStr = Union[str, 'os.PathLike[str]']


def save_checkpoint(path: PathOrStr, state: Mapping[str, Any]) -> None:
    """Write `state`, made of tensors and plain values, atomically.

    Args:
        path: the file; the folder must exist.
        state: must load again with `weights_only=True`: tensors, numbers, strings, and dicts, lists, tuples of them.

    Raises:
        OSError: the disk is full or not writable; the file that was there is untouched.
    """
    buffer = io.BytesIO()  # a full disk is then met by write_bytes alone
    torch.save(dict(state), buffer)
    write_bytes(path, buffer.getbuffer())


def load_checkpoint(path: PathOrStr) -> Dict[str, Any]:
    """Read a checkpoint to the CPU; pickled code is not run.

    Raises:
        ValueError: the file is no checkpoint of this package.
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
    return state


def common_checkpoint(path: PathOrStr) -> Optional[Dict[str, Any]]:
    """Read the checkpoint that every process has at `path`, or return None where none has one; all must call it.

    Raises:
        ValueError: on every process: some lack the file, theirs are of different updates, or one cannot be read.
    """
    path, state, found = Path(path), None, 'none'
    try:
        if path.is_file():
            state = load_checkpoint(path)
            found = 'after {epoch} epochs, {update} updates'.format_map(state['position'])
    except (OSError, ValueError) as error:
        found = str(error)
    each = gather((str(path.resolve()), found))
    if len({what for _, what in each}) > 1:
        ranks = '; '.join(f'rank {rank}: {place}: {what}' for rank, (place, what) in enumerate(each))
        raise ValueError(f'the processes do not have the same checkpoint ({ranks}): give them an output folder (--out) '
                         f'that all machines share, or copy {path.name} to all of them.')
    if state is None and found != 'none':
        raise ValueError(found)
    return state


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
