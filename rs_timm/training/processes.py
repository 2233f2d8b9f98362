"""The processes of a run: which one this is, what all of them know, and how they are asked to stop."""
import os
import signal
import threading
import time
from contextlib import contextmanager
from types import FrameType
from typing import Any, Dict, Iterator, List, Optional

import torch
import torch.distributed as dist
from timm.utils.distributed import init_distributed_device_so

__all__ = [
    'StopSignals', 'Stopped', 'gather', 'is_first_process', 'join_processes', 'process_count', 'process_rank',
]

# Slurm, Ctrl-C and pkill signal torchrun and its workers, and torchrun then passes it on to the workers, within
# milliseconds; on a busy machine later. A person who presses Ctrl-C again has waited for longer.
_SAME_WISH_SECONDS = 2.


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
    """The values that the processes passed, in the order of their ranks; all of them must call it."""
    values = [value]
    if dist.is_initialized():
        values = [None] * process_count()
        dist.all_gather_object(values, value)
    return values


class Stopped(SystemExit):
    """A signal asked the run to stop, and all that it had done is saved; the exit status is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals:
    """A context that notes the first signal in `received`; a second one interrupts at once, as usual.

    Signals within two seconds of the first are the same wish, which came on several ways, and are ignored.

    >>> with StopSignals() as signals:
    ...     signals.received
    0
    """

    def __init__(self) -> None:
        self.received = 0
        self._received_at = 0.
        self._obey_at_once = False
        self._before: Dict[int, object] = {}

    def __enter__(self) -> 'StopSignals':
        if threading.current_thread() is threading.main_thread():  # elsewhere python has no signals
            self._before = {n: signal.signal(n, self._note) for n in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def stop_at_once(self) -> Iterator[None]:
        """A context in which a signal raises `Stopped` on the spot, since everything is saved already."""
        self._obey_at_once = True
        try:
            if self.received:
                raise Stopped(self.received)
            yield
        finally:
            self._obey_at_once = False

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        if self._obey_at_once:
            raise Stopped(number)
        now = time.monotonic()
        if not self.received:
            self.received, self._received_at = number, now
        elif now - self._received_at >= _SAME_WISH_SECONDS:
            raise KeyboardInterrupt
