"""A file of predictions that grows by whole parts: a run may be killed at any moment, and go on with what is missing.

While a run lasts, FILE.parts holds its results, each part written in one step under a name of its own, so that several
processes, also of several machines with a common file system, need not talk to one another. Who finds that nothing is
missing puts the parts together as FILE, in the order of the pictures. FILE.run.json says what made it.
"""
import json
import os
import uuid
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Sequence, Set, TypeVar, Union

from .rows import Prediction, format_of

__all__ = ['Output']

_TRIES = 5  # another process that merges takes away folders and temporary files
_T = TypeVar('_T')


class Output:
    """The predictions of a list of pictures, in a file.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'rows.jsonl'
    >>> output = Output(file, ['a.jpg', 'b.jpg'], dict(model='rs_resnet18', resolution=160))
    >>> output.write([Prediction('b.jpg', 160, (3,), ('cat',), (0.75,))])
    >>> sorted(output.done()), output.merge()
    (['b.jpg'], False)
    >>> output.write([Prediction('a.jpg', 160, error='not a picture')])
    >>> output.merge(), [row.file for row in output.rows()]
    (True, ['a.jpg', 'b.jpg'])

    Args:
        path: the file; .jsonl or .parquet.
        names: of the pictures, each another one; they say the order of the rows.
        settings: what decides the rows: plain values.

    Raises:
        ImportError: the format needs a package that is not installed.
        ValueError: an unknown ending; two pictures of the same name; a file that other settings, or other programs,
            have made.
    """

    def __init__(
            self,
            path: Union[str, 'PathLike[str]'],
            names: Sequence[str],
            settings: Mapping[str, Any],
    ) -> None:
        self.path = Path(path)
        self.parts = self.path.with_name(f'{self.path.name}.parts')
        self.card = self.path.with_name(f'{self.path.name}.run.json')
        self.positions = _positions(names)
        self._format = format_of(self.path)
        self._known: Dict[str, List[str]] = {}  # part -> the pictures in it
        _again(lambda: self._check(json.loads(json.dumps(dict(settings)))))

    def _check(self, settings: Dict[str, Any]) -> None:
        if not self.card.exists():
            if self.path.exists():
                raise ValueError(f'{self.path} exists, and there is no {self.card.name} that says how it was made: '
                                 'choose another file, or move it away.')
            self.parts.mkdir(parents=True, exist_ok=True)
            with self._temporary(self.card.name) as temporary:
                temporary.write_text(json.dumps(settings, indent=1) + '\n', encoding='utf-8')
                _commit(temporary, self.card)
            return
        made = json.loads(self.card.read_text(encoding='utf-8'))
        changes = [f'{key} {made.get(key)!r}, now {settings.get(key)!r}'
                   for key in {**made, **settings} if made.get(key) != settings.get(key)]
        if changes:
            raise ValueError(f'{self.path} is of a run with other settings ({", ".join(changes)}): use those, or '
                             'another file.')
        self.parts.mkdir(exist_ok=True)

    def done(self) -> Set[str]:
        """The pictures whose rows are there, from this and from earlier runs."""
        found: Set[str] = set()
        for part in self._part_files():  # before the file: what another process merges meanwhile is in one of them
            try:
                found.update(self._names_in(part))
            except FileNotFoundError:
                continue
        return found | self._merged()

    def write(self, rows: Iterable[Prediction]) -> None:
        """Keep rows: all of them, or none if the process is killed or the disk is full."""
        kept = list(rows)

        def attempt() -> None:
            self.parts.mkdir(exist_ok=True)
            with self._temporary('part') as temporary:
                self._format.write(temporary, kept)
                _commit(temporary, self.parts / f'{uuid.uuid4().hex}{self.path.suffix}')

        _again(attempt)

    def merge(self) -> bool:
        """Make the file of its parts, if no picture is missing; returns whether it is complete now.

        Several processes may do so at a time: they write the same. Parts that come meanwhile, from processes with
        further pictures, stay.
        """
        return _again(self._merge)

    def _merge(self) -> bool:
        parts = self._part_files()
        try:
            found = self._merged().union(*map(self._names_in, parts))
            if not found.issuperset(self.positions):
                return self._merged().issuperset(self.positions)
            if parts:
                with self._temporary(self.path.name) as temporary:
                    self._format.write(temporary, self._rows(parts, set()))
                    if not all(part.exists() for part in parts):
                        raise FileNotFoundError(f'{self.parts}: parts are gone.')
                    _commit(temporary, self.path)
        except FileNotFoundError:  # another process was faster, and has removed the parts
            if self._merged().issuperset(self.positions):
                return True
            raise
        self._clear(parts)
        return True

    def _clear(self, parts: Iterable[Path]) -> None:
        """Remove what is merged, and what killed processes left half written; who still writes it does so again."""
        for path in (*parts, *self.parts.glob('.*')):
            with suppress(OSError):
                path.unlink()
        with suppress(OSError):  # there are other parts in it
            self.parts.rmdir()

    def rows(self) -> Iterator[Prediction]:
        """All rows: those of the file, then those of the parts in the order of their first pictures; each once."""
        seen: Set[str] = set()
        try:
            yield from self._rows(self._part_files(), seen)
        except FileNotFoundError:  # another process has merged the parts
            yield from self._rows([], seen)

    def _rows(self, files: Iterable[Path], seen: Set[str]) -> Iterator[Prediction]:
        parts = sorted(files, key=lambda part: self.positions.get(self._first(part), -1))
        for source in ([self.path] if self.path.exists() else []) + parts:
            for row in self._format.read(source):
                if row.file not in seen:
                    seen.add(row.file)
                    yield row

    def _first(self, part: Path) -> str:
        return next((row.file for row in self._format.read(part)), '')

    def _part_files(self) -> List[Path]:
        return list(self.parts.glob(f'*{self.path.suffix}'))

    def _names_in(self, part: Path) -> List[str]:
        if part.name not in self._known:
            self._known[part.name] = [row.file for row in self._format.read(part)]
        return self._known[part.name]

    def _merged(self) -> Set[str]:
        return {row.file for row in self._format.read(self.path)} if self.path.exists() else set()

    def _temporary(self, name: str) -> '_Temporary':
        return _Temporary(self.parts / f'.{name}.{uuid.uuid4().hex}')


def _commit(temporary: Path, path: Path) -> None:
    """Let a finished file take its name, in one step, once it is on the disk."""
    with temporary.open('r+b') as stream:  # Windows syncs only what may be written
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def _again(attempt: Callable[[], _T]) -> _T:
    """Try again where another process has taken a folder or file away."""
    for _ in range(_TRIES - 1):
        with suppress(FileNotFoundError):
            return attempt()
    return attempt()


class _Temporary:
    """A path for what is not finished yet; what is left there goes at the end."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *error: Any) -> None:
        self.path.unlink(missing_ok=True)


def _positions(names: Sequence[str]) -> Dict[str, int]:
    positions = {name: position for position, name in enumerate(names)}
    if len(positions) < len(names):
        twice = next(name for position, name in enumerate(names) if positions[name] != position)
        raise ValueError(f'two pictures are called {twice!r}: their rows could not be told apart; was an input given '
                         'twice?')
    return positions
