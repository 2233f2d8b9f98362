"""Duties of a command towards its shell: an exit status, one line for an error, a bar for a wait, odd names."""
import argparse
import os
import re
import sys
import traceback
import warnings
from contextlib import contextmanager
from typing import Any, Callable, Iterable, Iterator, Optional, Sized, TypeVar

__all__ = ['FAILED', 'PARTLY_FAILED', 'bar', 'printable', 'report', 'report_skipped', 'run_command', 'watched']

PARTLY_FAILED = 1
FAILED = 2
_INTERRUPTED = 130  # as a shell reports a process that a signal ended: 128 + SIGINT
_CLOSED_PIPE = 141  # 128 + SIGPIPE
T = TypeVar('T')


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
            report(f'error: {_in_options(_message(error), args)}')
        return FAILED


def report(text: str) -> None:
    """Print one line on stderr."""
    print(f'rs-timm: {text}', file=sys.stderr)


def report_skipped(messages: Iterable[str]) -> None:
    """Warn of each picture that was left out."""
    for message in messages:
        report(f'warning: skipped {message}')


def printable(text: str) -> str:
    """`text` with line breaks, control characters and undecodable bytes as escapes."""
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode('ascii') for c in text)


@contextmanager
def bar(total: Optional[int], unit: str, what: str = '') -> Iterator[Callable[[int], Any]]:
    """Show a bar where stderr is a terminal and tqdm is there; yields what is to be called with a count of units."""
    try:
        from tqdm import tqdm
    except ImportError:  # where exported files are served there may be none
        yield lambda count: None
        return
    with tqdm(desc=what or None, total=total, unit=unit, leave=False, disable=None) as shown:
        yield shown.update


def watched(items: Iterable[T], unit: str, what: str = '') -> Iterator[T]:
    """The `items`, with a bar where stderr is a terminal."""
    with bar(len(items) if isinstance(items, Sized) else None, unit, what) as advance:
        for item in items:
            yield item
            advance(1)


def _message(error: Exception) -> str:
    text = printable(' '.join(str(error).split()))
    if isinstance(error, (ValueError, OSError)) and text:
        return text
    return f'{type(error).__name__}: {text or "no message"} (--debug shows where)'


def _in_options(text: str, args: argparse.Namespace) -> str:
    """Replace the library's way to name an argument by the command's: if_none='smallest' -> --if-none smallest."""
    def option(match: 're.Match[str]') -> str:
        return f"--{match['name'].replace('_', '-')} {match['value'].strip(chr(39))}"

    names = '|'.join(map(re.escape, vars(args)))
    return re.sub(rf"(?<![\w.(-])(?P<name>{names})=(?P<value>'[^']*'|[\w.+-]*\w)", option, text)


def _show_warning(message: Any, *args: Any) -> None:
    report(f'warning: {printable(" ".join(str(message).split()))}')
