"""Memory that compiling has freed, given back to the system."""
from functools import cache
from typing import Any, Optional

__all__ = ['give_back']


def give_back() -> None:
    """Let the C library return free memory, where it can be told to (glibc).

    Engines copy weights several times while they compile. What they free then stays with the process otherwise.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Optional[Any]:
    try:
        import ctypes  # not in every build of python

        return ctypes.CDLL(None).malloc_trim
    except (AttributeError, ImportError, OSError, TypeError):  # another C library; TypeError on Windows
        return None
