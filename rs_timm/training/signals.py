"""SIGTERM and SIGINT as a wish to stop, to be obeyed where nothing is lost."""
import signal
import threading
import time
from contextlib import contextmanager
from types import FrameType
from typing import Dict, Iterator, Optional

__all__ = ['StopSignals', 'Stopped']

# Slurm, Ctrl-C and pkill signal torchrun and its workers, and torchrun then passes it on to the workers, within
# milliseconds; on a busy machine later. A person who presses Ctrl-C again has waited for longer.
_SAME_WISH_SECONDS = 2.


class Stopped(SystemExit):
    """A signal asked the run to stop, and all that it had done is saved; the exit status is 128 + the signal."""

    def __init__(self, number: int) -> None:
        super().__init__(128 + number)


class StopSignals:
    """While it is entered, notes the first signal in `received`; a second one interrupts at once, as usual.

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
        """Within: everything is saved already, so a signal raises `Stopped` on the spot."""
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
