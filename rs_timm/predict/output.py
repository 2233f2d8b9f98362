"""A file of predictions that grows batch by batch: a run may be killed at any moment, and go on with what is missing.

While a run lasts, FILE.partial holds its results: a line for each batch, which counts as a whole or, if a kill tore it,
not at all. When nothing is missing, they become FILE, in the order of the pictures. FILE.run.json says what made it.
"""
import json
import os
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from typing import Any, BinaryIO, Dict, Iterator, List, Mapping, Optional, Sequence, Set, Tuple, Union

from filelock import FileLock, Timeout

from rs_timm.atomic import replacing, write_bytes

from .rows import Row, check_format, json_of, read_rows, row_of, write_rows

__all__ = ['Output']


class Output:
    """The predictions of a list of pictures, in a file that one process at a time may write.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'rows.jsonl'
    >>> with Output(file, ['a.jpg', 'b.jpg'], dict(model='rs_resnet18', resolution=160)) as output:
    ...     output.append([Row('b.jpg', 160, (3,), ('cat',), (0.75,))])
    >>> with Output(file, ['a.jpg', 'b.jpg'], dict(model='rs_resnet18', resolution=160)) as output:
    ...     print(output.done)
    ...     output.append([Row('a.jpg', 160, error='not a picture')])
    ...     output.finish()
    {'b.jpg'}
    >>> [row.file for row in read_rows(file)]
    ['a.jpg', 'b.jpg']

    Args:
        path: the file; .jsonl or .parquet.
        names: of the pictures, each another one; they say the order of the rows.
        settings: what decides the rows: plain values.

    Attributes:
        done: the pictures that have a row.

    Raises:
        ImportError: the format needs a package that is not installed.
        ValueError: an unknown ending; two pictures of the same name. On entering: a file that another process writes,
            or that other settings, or other programs, have made.
    """

    def __init__(
            self,
            path: Union[str, 'PathLike[str]'],
            names: Sequence[str],
            settings: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self.partial = self.path.with_name(f'{self.path.name}.partial')
        self.card = self.path.with_name(f'{self.path.name}.run.json')
        self.done: Set[str] = set()
        self._settings: Dict[str, Any] = json.loads(json_of(dict(settings)))
        self._positions = {name: position for position, name in enumerate(names)}
        if len(self._positions) < len(names):
            twice = next(name for position, name in enumerate(names) if self._positions[name] != position)
            raise ValueError(f'two pictures are called {twice!r}: their rows could not be told apart; was an input '
                             'given twice?')
        check_format(self.path)
        self._lock = FileLock(self.path.with_name(f'.{self.path.name}.lock'), timeout=0)
        self._lines: List[Tuple[int, int]] = []  # position of the first picture of a line, and where the line begins
        self._stream: Optional[BinaryIO] = None

    def __enter__(self) -> 'Output':
        self.path.parent.mkdir(parents=True, exist_ok=True)
        lock = Path(self._lock.lock_file)
        try:
            self._lock.acquire()
        except Timeout:
            process = lock.read_text(encoding='ascii', errors='replace').strip() or 'of unknown number'
            raise ValueError(f'{self.path} is being written by another process ({process}): wait for it, or choose '
                             'another file.') from None
        try:
            lock.write_text(f'{os.getpid()}\n', encoding='ascii')
            self._check()
            if self.path.exists():
                self.done = {row.file for row in read_rows(self.path)}
            self._stream = self.partial.open('a+b', buffering=0)
            self._recover(self._stream)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: Any) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None
            if not self._lines:
                self.partial.unlink(missing_ok=True)
        self._lock.release()

    def _check(self) -> None:
        if not self.card.exists():
            if self.path.exists():
                raise ValueError(f'{self.path} exists, and there is no {self.card.name} that says how it was made: '
                                 'choose another file, or move it away.')
            write_bytes(self.card, (json.dumps(self._settings, indent=1) + '\n').encode())
            return
        try:
            made = dict(json.loads(self.card.read_bytes()))
        except (TypeError, ValueError) as error:
            raise ValueError(f'{self.card} does not say how {self.path.name} was made ({error}): choose another file, '
                             'or move both away.') from error
        changes = [f'{key} {made.get(key)!r}, now {self._settings.get(key)!r}'
                   for key in {**made, **self._settings} if made.get(key) != self._settings.get(key)]
        if changes:
            raise ValueError(f'{self.path} is of a run with other settings ({", ".join(changes)}): use those, or '
                             'another file.')

    def _recover(self, stream: BinaryIO) -> None:
        """Find the lines that earlier runs have left, and cut off what comes after the last whole one."""
        end = 0
        with self.partial.open('rb') as lines:
            for line in lines:
                try:
                    names = [row.file for row in _rows(line)]
                except ValueError:
                    break
                if not self.done.issuperset(names):  # else a kill came between making the file and removing this one
                    self._lines.append((self._positions.get(names[0], -1), end))
                    self.done.update(names)
                end += len(line)
        stream.truncate(end)

    def append(self, rows: Sequence[Row]) -> None:
        """Keep the rows of a batch: all of them, or none if the process is killed or the disk is full."""
        assert self._stream is not None and rows
        line = f'{json_of([asdict(row) for row in rows])}\n'.encode('ascii')
        start, written = self._stream.seek(0, os.SEEK_END), 0
        try:
            while written < len(line):
                written += self._stream.write(line[written:])
        except BaseException:
            self._stream.truncate(start)
            raise
        self._lines.append((self._positions.get(rows[0].file, -1), start))
        self.done.update(row.file for row in rows)

    def finish(self) -> None:
        """Make the file, now that no picture is missing: what was in it, then what came since, each in order."""
        assert self.done.issuperset(self._positions)
        if not self._lines and self.path.exists():
            return
        with replacing(self.path) as new:
            write_rows(new, self._all())
        self._lines.clear()

    def _all(self) -> Iterator[Row]:
        seen: Set[str] = set()
        if self.path.exists():
            for row in read_rows(self.path):
                seen.add(row.file)
                yield row
        with self.partial.open('rb') as stream:
            for _, start in sorted(self._lines):
                stream.seek(start)
                yield from (row for row in _rows(stream.readline()) if row.file not in seen)


def _rows(line: bytes) -> List[Row]:
    """The rows in a line of the partial file; ValueError if it is not whole."""
    values = json.loads(line)
    if not line.endswith(b'\n') or not isinstance(values, list) or not values:
        raise ValueError('torn')
    return [row_of(row) for row in values]
