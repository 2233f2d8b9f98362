"""Memory that a training step frees stays with the process, for the next step."""
import ctypes
import os
import sys

__all__ = ['keep_freed_memory']

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of malloc.h
_OWN_SETTINGS = ('MALLOC_TRIM_THRESHOLD_', 'MALLOC_MMAP_THRESHOLD_', 'MALLOC_TOP_PAD_', 'GLIBC_TUNABLES')


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory, as PyTorch does on CUDA; for this whole process, and for the CPU.

    By default glibc gives the activations of a step back to the system, and the next step has to fault in every page
    of them again, zeroed. Now the process holds what it needed at its peak until it ends: for programs that train and
    do nothing else. `rs-timm train` calls this; results do not depend on it.

    >>> keep_freed_memory()  # doctest: +SKIP
    True

    Returns:
        Whether it was done; not where the C library is another one than glibc, or where the environment has settings of
        its own (MALLOC_TRIM_THRESHOLD_, MALLOC_MMAP_THRESHOLD_, MALLOC_TOP_PAD_, GLIBC_TUNABLES).
    """
    if not sys.platform.startswith('linux') or any(name in os.environ for name in _OWN_SETTINGS):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version'):
        return False
    largest = ctypes.c_int(2 ** 31 - 1)
    return bool(library.mallopt(_M_MMAP_THRESHOLD, ctypes.c_int(2 ** 30)) and
                library.mallopt(_M_TRIM_THRESHOLD, largest))
