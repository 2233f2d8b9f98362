"""Rows of predictions, and the two kinds of file that hold them: JSON lines and Parquet."""
import json
from dataclasses import asdict, dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Mapping, Optional, Tuple, Union

__all__ = ['FORMATS', 'Row', 'check_format', 'json_of', 'read_rows', 'row_of', 'write_rows']

FORMATS = ('.jsonl', '.parquet')
_ROWS_AT_ONCE = 4096  # of a Parquet file


@dataclass(frozen=True)
class Row:
    """A picture's classes as a network predicts them, or the reason why there are none.

    Args:
        file: the name of the picture.
        resolution: pixels that the network ran at.
        classes: the most probable ones, the first one first.
        labels: their names.
        probabilities: theirs, six digits.
        error: what is wrong with the picture, or with what the network makes of it; there are no classes then.
    """

    file: str
    resolution: int
    classes: Tuple[int, ...] = ()
    labels: Tuple[str, ...] = ()
    probabilities: Tuple[float, ...] = ()
    error: Optional[str] = None


def check_format(path: Union[str, 'PathLike[str]']) -> str:
    """The format that the ending of a file asks for: one of `FORMATS`.

    Raises:
        ImportError: it needs a package that is not installed.
        ValueError: another ending.
    """
    ending = Path(path).suffix.lower()
    if ending not in FORMATS:
        raise ValueError(f"{path}: the ending says the format; use one of {', '.join(FORMATS)}.")
    if ending == '.parquet':
        try:
            import pyarrow.parquet  # noqa: F401
        except ImportError as error:
            raise ImportError("a .parquet file needs pyarrow: pip install 'rs_timm[parquet]', or write a .jsonl "
                              'file.') from error
    return ending


def write_rows(path: Path, rows: Iterable[Row]) -> None:
    """Make a file of rows: JSON lines in ASCII, or Parquet with columns of the same names.

    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'rows.jsonl'
    >>> write_rows(file, [Row('cat.jpg', 160, (3,), ('cat',), (0.75,))])
    >>> print(file.read_text().strip())
    {"file":"cat.jpg","resolution":160,"classes":[3],"labels":["cat"],"probabilities":[0.75],"error":null}

    Raises:
        ImportError, ValueError: as for `check_format`.
    """
    if check_format(path) == '.jsonl':
        with path.open('w', encoding='ascii') as stream:
            stream.writelines(f'{json_of(asdict(row))}\n' for row in rows)
        return
    import pyarrow
    import pyarrow.parquet

    schema = pyarrow.schema([
        ('file', pyarrow.string()),
        ('resolution', pyarrow.int32()),
        ('classes', pyarrow.list_(pyarrow.int32())),
        ('labels', pyarrow.list_(pyarrow.string())),
        ('probabilities', pyarrow.list_(pyarrow.float64())),
        ('error', pyarrow.string()),
    ])
    rows = iter(rows)
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        while some := list(islice(rows, _ROWS_AT_ONCE)):
            writer.write_table(pyarrow.Table.from_pylist([asdict(row) for row in some], schema=schema))


def read_rows(path: Union[str, 'PathLike[str]']) -> Iterator[Row]:
    """The rows of a file, in order.

    Raises:
        ImportError, ValueError: as for `check_format`.
    """
    if check_format(path) == '.jsonl':
        with open(path, encoding='ascii') as stream:
            for number, line in enumerate(stream, 1):
                try:
                    yield row_of(json.loads(line))
                except ValueError as error:
                    raise ValueError(f'{path}, line {number}: not a row of predictions ({error}).') from error
        return
    import pyarrow.parquet

    with pyarrow.parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(_ROWS_AT_ONCE):
            yield from map(row_of, batch.to_pylist())


def json_of(value: Any) -> str:
    """JSON in one line of ASCII; a number that JSON has not, such as nan, is a ValueError."""
    return json.dumps(value, separators=(',', ':'), allow_nan=False)


def row_of(values: Mapping[str, Any]) -> Row:
    """The row that `dataclasses.asdict` made these values of; ValueError if it did not."""
    try:
        fields: Dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
        return Row(**fields)
    except (AttributeError, TypeError) as error:
        raise ValueError(str(error)) from error
