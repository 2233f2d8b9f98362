"""The processes of a distributed run; alone, a process is the first of one."""
import os
from typing import Any, List

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

__all__ = ['gather', 'is_first_process', 'join_processes', 'process_count', 'process_rank']


def join_processes(device: str) -> torch.device:
    """Meet the processes that torchrun or Slurm started, if any, and return the device of this one.

    Args:
        device: 'cpu', 'cuda', or 'auto' for CUDA if there is any.

    Raises:
        ValueError: CUDA is asked for and not there.
    """
    name = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    if name.startswith('cuda') and not torch.cuda.is_available():
        raise ValueError(f'device {device!r}: this machine has no CUDA device; use cpu.')
    return torch.device(name) if dist.is_initialized() else torch.device(init_distributed_device_so(name)['device'])


def process_count() -> int:
    return dist.get_world_size() if dist.is_initialized() else 1


def process_rank() -> int:
    return dist.get_rank() if dist.is_initialized() else int(os.environ.get('RANK', 0))


def is_first_process() -> bool:
    """Whether this process is the one that writes and reports."""
    return process_rank() == 0


def gather(value: Any) -> List[Any]:
    """What each process passed, in the order of their ranks; all of them must call it."""
    values = [value]
    if dist.is_initialized():
        values = [None] * process_count()
        dist.all_gather_object(values, value)
    return values
