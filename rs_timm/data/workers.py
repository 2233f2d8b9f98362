"""The processes that decode: when they end is decided by the process that reads from them."""
import os
import signal
import threading

__all__ = ['obey_parent_alone']


def obey_parent_alone(worker: int) -> None:
    """Let signals that are meant for the whole run reach the training process alone; call it in a worker.

    Ctrl-C and `timeout` signal the process group; Slurm, container runtimes and `pkill` signal every process. A reader
    that ended there would break the update that runs, before the training process could save. SIGTERM from the parent,
    which is how torch ends a reader that does not listen, still ends it; so does the end of the parent.

    Args:
        worker: number of the worker, as torch passes it.
    """
    if hasattr(os, 'setpgrp'):
        os.setpgrp()
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this thread, and of those that it starts
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
