"""Predictions as rows, and the two kinds of file that hold them: JSON lines and Parquet."""
import json
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, Mapping, Optional, Protocol, Tuple, Union

__all__ = ['FORMATS', 'Format', 'JsonLines', 'Parquet', 'Prediction', 'format_of']

_ROWS_AT_ONCE = 4096  # of a Parquet file


@dataclass(frozen=True)
class Prediction:
    """What a network says about a picture, or why it says nothing.

    Args:
        file: the name of the picture.
        resolution: pixels that the network ran at.
        classes: the most probable ones, the first one first.
        labels: their names.
        probabilities: theirs, six digits.
        error: what is wrong with the picture; there are no classes then.
    """

    file: str
    resolution: int
    classes: Tuple[int, ...] = ()
    labels: Tuple[str, ...] = ()
    probabilities: Tuple[float, ...] = ()
    error: Optional[str] = None


class Format(Protocol):
    """How rows are kept in a file."""

    def write(self, path: Path, rows: Iterable[Prediction]) -> None:
        """Make a new file of rows."""

    def read(self, path: Path) -> Iterator[Prediction]:
        """The rows of a file, in order."""


class JsonLines:
    """One JSON object a line, in ASCII.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'rows.jsonl'
    >>> JsonLines().write(file, [Prediction('cat.jpg', 160, (3,), ('cat',), (0.75,))])
    >>> print(file.read_text().strip())
    {"file":"cat.jpg","resolution":160,"classes":[3],"labels":["cat"],"probabilities":[0.75],"error":null}
    """

    def write(self, path: Path, rows: Iterable[Prediction]) -> None:
        with path.open('w', encoding='ascii') as stream:
            for row in rows:
                stream.write(json.dumps(asdict(row), separators=(',', ':')) + '\n')

    def read(self, path: Path) -> Iterator[Prediction]:
        with path.open(encoding='ascii') as stream:
            for line in stream:
                yield _row(json.loads(line))


class Parquet:
    """Columns of these names and types; needs pyarrow.

    Raises:
        ImportError: pyarrow is not installed.
    """

    def __init__(self) -> None:
        try:
            import pyarrow
            import pyarrow.parquet
        except ImportError as error:
            raise ImportError("a .parquet file needs pyarrow: pip install 'rs_timm[parquet]', or write a .jsonl "
                              'file.') from error
        self._arrow, self._parquet = pyarrow, pyarrow.parquet
        self._schema = pyarrow.schema([
            ('file', pyarrow.string()),
            ('resolution', pyarrow.int32()),
            ('classes', pyarrow.list_(pyarrow.int32())),
            ('labels', pyarrow.list_(pyarrow.string())),
            ('probabilities', pyarrow.list_(pyarrow.float64())),
            ('error', pyarrow.string()),
        ])

    def write(self, path: Path, rows: Iterable[Prediction]) -> None:
        rows = iter(rows)
        with self._parquet.ParquetWriter(path, self._schema) as writer:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(self._arrow.Table.from_pylist([asdict(row) for row in some], schema=self._schema))

    def read(self, path: Path) -> Iterator[Prediction]:
        with self._parquet.ParquetFile(path) as file:
            for batch in file.iter_batches(_ROWS_AT_ONCE):
                yield from map(_row, batch.to_pylist())


def _row(values: Mapping[str, Any]) -> Prediction:
    fields: Dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
    return Prediction(**fields)


FORMATS: Dict[str, Callable[[], Format]] = {'.jsonl': JsonLines, '.parquet': Parquet}


def format_of(path: Union[str, 'PathLike[str]']) -> Format:
    """The format that the ending of a file asks for.

    Raises:
        ImportError: it needs a package that is not installed.
        ValueError: another ending.
    """
    kind = FORMATS.get(Path(path).suffix.lower())
    if kind is None:
        raise ValueError(f"{path}: the ending says the format; use one of {', '.join(FORMATS)}.")
    return kind()
