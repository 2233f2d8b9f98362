"""Results as CSV files, in which new rows replace those of the same unit of work; and how they are shown.

A unit is what some columns identify: a question, network and case; a run with its seed; or the whole file. Figures are
written with six digits. Whatever nobody measured is `NOT_MEASURED` in a table.
"""
import base64
import csv
import fcntl
import io
import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from benchmarks import environment
from rs_timm.atomic import write_bytes

NOT_MEASURED = 'not measured'
Row = Dict[str, str]


def read(file: Union[str, Path], **values: Any) -> List[Row]:
    """Read the rows in which each named column has the given value; none if nothing was measured yet.

    Args:
        file: path of a CSV file, or the name of one of benchmarks/results.
        values: column -> value; none: all rows.
    """
    path = file if isinstance(file, Path) else environment.RESULTS / f'{file}.csv'
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as stream:
        return by_columns(list(csv.DictReader(stream)), **values)


def by_columns(rows: Iterable[Row], **values: Any) -> List[Row]:
    """The rows in which each named column has the given value."""
    return [row for row in rows if all(row.get(name) == text(value) for name, value in values.items())]


def put(
        path: Path,
        rows: Sequence[Mapping[str, Any]],
        unit: Sequence[str] = (),
        order: Optional[Callable[[Row], Any]] = None,
        gone: Iterable[Tuple[str, ...]] = (),
) -> None:
    """Write `rows` in place of those of the same units; the file appears whole, and writers take turns.

    Args:
        path: the CSV file.
        rows: column -> value.
        unit: columns that identify a unit of work; none: the whole file is one.
        order: sorting key of the rows; None: new ones come last.
        gone: values of `unit` whose rows go, besides those of `rows`.
    """
    new = [{name: text(value) for name, value in row.items()} for row in rows]
    replaced = {tuple(row.get(name, '') for name in unit) for row in new} | set(gone)
    path.parent.mkdir(parents=True, exist_ok=True)
    with _locked(path.parent):
        merged = [*(row for row in read(path) if tuple(row.get(name, '') for name in unit) not in replaced), *new]
        stream = io.StringIO()
        names = dict.fromkeys(name for row in (*new, *merged) for name in row)
        writer = csv.DictWriter(stream, fieldnames=list(names), lineterminator='\n')
        writer.writeheader()
        writer.writerows(sorted(merged, key=order) if order else merged)
        write_bytes(path, stream.getvalue().encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one writer in at a time: the lock is on the folder itself, leaves no file, and ends with its holder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def text(value: Any) -> str:
    """A value as it stands in the files."""
    return f'{value:.6g}' if isinstance(value, float) else str(value)


# The paper's runs

KEY = ('preset', 'run', 'seed')  # the columns that identify a job


@dataclass(frozen=True)
class Table:
    """A CSV file about the paper's runs: its name, and its columns behind those of `KEY`."""

    name: str
    columns: Tuple[str, ...]

    def read(self, folder: Path, **values: Any) -> List[Row]:
        """Read the rows in which each named column has the given value."""
        return read(folder / f'{self.name}.csv', **values)

    def put(self, folder: Path, key: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the rows of the job `key`. Jobs stand in alphabetical order, the rows of one in the order given."""
        path = folder / f'{self.name}.csv'
        new = [{**key, **{column: row[column] for column in self.columns}} for row in rows]
        if new or path.is_file():
            put(path, new, KEY, lambda row: [row[name] for name in KEY], [tuple(key[name] for name in KEY)])


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
CLASSES = Table('paper_classes', ('resolution', 'label', 'pixels', 'iou'))
TABLES = (RUNS, ACCURACY, RIGHT, EPOCHS, NORMS, FEATURES, MASKS, CLASSES, FILES)


def packed(right: np.ndarray) -> str:
    """Booleans [N] as text, eight to a byte."""
    return base64.b64encode(np.packbits(right).tobytes()).decode()


def unpacked(text: str, count: int) -> np.ndarray:
    """Booleans [count] from the text that `packed` made.

    >>> unpacked(packed(np.array([True, False, True])), 3)
    array([ True, False,  True])
    """
    return np.unpackbits(np.frombuffer(base64.b64decode(text), np.uint8), count=count).astype(bool)


# Markdown and figures

def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table.

    >>> print(markdown(['size', 'top-1'], [['96', '61.5']]))
    | size | top-1 |
    | --- | --- |
    | 96 | 61.5 |
    """
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in [header, ['---'] * len(header), *rows])


def measured_or_note(
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        labels: int = 1,
        foot: Sequence[Sequence[str]] = (),
) -> str:
    """A Markdown table, or one line in its place if nobody measured any of it.

    >>> print(measured_or_note(['size', 'top-1'], [['96', NOT_MEASURED]]))
    Table: not measured.

    Args:
        header: headings.
        rows: what could be measured.
        labels: how many columns in front are not measured but named or counted.
        foot: further rows of what is not measured.
    """
    lines = list(rows)
    if {cell for line in lines for cell in line[labels:]} <= {NOT_MEASURED, ''}:
        return f'Table: {NOT_MEASURED}.'
    return markdown(header, [*lines, *foot])


def section(*files: str, **values: Any) -> Callable[[Callable[..., str]], Callable[[], str]]:
    """Make a generated part of a document of a function of the rows of `files`; 'not measured' if the first has none.

    Args:
        files: names in benchmarks/results; the function gets the rows of each.
        values: column -> value of the rows that are wanted.
    """
    def decorate(write: Callable[..., str]) -> Callable[[], str]:
        def written() -> str:
            first, *others = (read(name, **values) for name in files)
            return write(first, *others) if first else NOT_MEASURED

        return written

    return decorate


def save_figure(figure: Any, path: Path) -> List[Path]:
    """Write the matplotlib figure as PATH.png and PATH.svg; the same figure always gives the same SVG."""
    from matplotlib import rc_context
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f'{path.name}{suffix}') for suffix in ('.png', '.svg')]
    with rc_context({'svg.hashsalt': path.name, 'svg.fonttype': 'path'}):
        figure.savefig(files[0], dpi=130, metadata=dict(Software=None))
        figure.savefig(files[1], metadata=dict(Date=None, Creator=None))
    return files
