"""Tables of results: CSV files in which the rows of a job replace those of the same job, and nothing else moves."""
import base64
import csv
import fcntl
import io
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Mapping, Sequence, Tuple

import numpy as np

from rs_timm.atomic import write_bytes

__all__ = ['ACCURACY', 'EPOCHS', 'FEATURES', 'FILES', 'KEY', 'MASKS', 'NORMS', 'RIGHT', 'RUNS', 'TABLES', 'Row',
           'Table', 'by_columns', 'packed', 'put', 'read', 'unpacked']

KEY = ('preset', 'run', 'seed')  # the columns that identify a job
Row = Dict[str, str]


@dataclass(frozen=True)
class Table:
    """A CSV file of results: its name, and its columns behind those of `KEY`."""

    name: str
    columns: Tuple[str, ...]

    def path(self, folder: Path) -> Path:
        return folder / f'{self.name}.csv'


# train_seconds (of a recalibration, if nothing is trained) and measure_seconds are wall time, pauses of the process
# included
RUNS = Table('paper_runs', (
    'model', 'recipe', 'settings', 'epochs', 'parameters', 'pictures', 'train_seconds', 'measure_seconds', 'commit',
    'device', 'dtype', 'threads', 'python', 'torch', 'timm', 'rs_timm'))
ACCURACY = Table('paper_accuracy', ('sets', 'resolution', 'top1', 'top5', 'loss', 'ece'))
RIGHT = Table('paper_right', ('resolution', 'pictures', 'right'))
EPOCHS = Table('paper_epochs', ('epoch', 'resolution', 'top1', 'loss', 'train_loss', 'alpha', 'seconds'))
NORMS = Table('paper_norms', ('layer', 'resolution', 'weight', 'bias', 'running_mean', 'running_var'))
FEATURES = Table('paper_features', ('resolution', 'crops', 'share', 'value'))
FILES = Table('paper_files', ('kind', 'bytes'))
MASKS = Table('paper_masks', ('resolution', 'pixel_accuracy', 'mean_accuracy', 'mean_iou'))
TABLES = (RUNS, ACCURACY, RIGHT, EPOCHS, NORMS, FEATURES, MASKS, FILES)


def read(table: Table, folder: Path) -> List[Row]:
    """The rows of a table; none if nothing was measured yet."""
    path = table.path(folder)
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def put(table: Table, folder: Path, key: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace the rows of the job `key` by `rows`; the file is written whole, or stays as it was.

    Jobs stand in alphabetical order, the rows of a job in the order given. Queues that run side by side take turns.
    """
    new = [{**key, **{column: _text(row[column]) for column in table.columns}} for row in rows]
    folder.mkdir(parents=True, exist_ok=True)
    with _locked(folder):
        kept = [row for row in read(table, folder) if any(row[name] != key[name] for name in KEY)]
        merged = sorted([*kept, *new], key=lambda row: [row[name] for name in KEY])  # stable
        stream = io.StringIO()
        writer = csv.DictWriter(stream, fieldnames=[*KEY, *table.columns], lineterminator='\n')
        writer.writeheader()
        writer.writerows(merged)
        write_bytes(table.path(folder), stream.getvalue().encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """One writer at a time: the lock is on the folder itself, leaves no file, and ends with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _text(value: Any) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def packed(right: np.ndarray) -> str:
    """Booleans [N] as text, eight to a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """The inverse of `packed`, bool [count].

    >>> unpacked(packed(np.array([True, False, True])), 3)
    array([ True, False,  True])
    """
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


def by_columns(rows: Sequence[Row], **values: Any) -> List[Row]:
    """The rows in which each named column has the given value."""
    return [row for row in rows if all(row[name] == str(value) for name, value in values.items())]
