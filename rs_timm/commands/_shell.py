"""What every command owes to its shell: an exit status, one line for an error, and peace with pipes and odd names."""
import argparse
import os
import sys
import traceback
import warnings
from typing import Any, Callable

__all__ = ['FAILED', 'PARTLY_FAILED', 'printable', 'report', 'run_command']

PARTLY_FAILED = 1
FAILED = 2
_INTERRUPTED = 130  # as a shell reports a process that a signal ended: 128 + SIGINT
_CLOSED_PIPE = 141  # 128 + SIGPIPE


def run_command(run: Callable[[argparse.Namespace], int], args: argparse.Namespace) -> int:
    """Call `run(args)` and return the exit status; errors become one line on stderr (`args.debug`: a traceback)."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, 'reconfigure'):  # file names that are no text, a terminal that is not UTF-8
            stream.reconfigure(errors='backslashreplace')
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning  # type: ignore[assignment]
            status = run(args)
            sys.stdout.flush()
        return status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the interpreter's own flush at exit
        return _CLOSED_PIPE
    except KeyboardInterrupt:
        return _INTERRUPTED
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        else:
            report(f'error: {_message(error)}')
        return FAILED


def report(text: str) -> None:
    """One line on stderr."""
    print(f'rs-timm: {text}', file=sys.stderr)


def printable(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


def _message(error: Exception) -> str:
    text = printable(' '.join(str(error).split()))
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f'{type(error).__name__}: {text or "no message"} (--debug shows where)'


def _show_warning(message: Any, *args: Any) -> None:
    report(f'warning: {printable(" ".join(str(message).split()))}')
