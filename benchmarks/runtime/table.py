"""Results as CSV, in which the rows of a unit of work (question, model, case) replace those of the same unit."""
import csv
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence, Tuple

__all__ = ['Row', 'is_done', 'put', 'read']

Row = Dict[str, str]


def read(path: Path) -> List[Row]:
    """The rows; none if there is no file."""
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def is_done(path: Path, **values: Any) -> bool:
    """Whether the table has rows, and all of them have these values."""
    rows = read(path)
    return bool(rows) and all(row.get(name) == _text(value) for row in rows for name, value in values.items())


def put(path: Path, rows: Sequence[Mapping[str, Any]], unit: Tuple[str, ...]) -> None:
    """Write `rows` in place of those that have the same values in the columns `unit`; the file appears whole."""
    new = [{name: _text(value) for name, value in row.items()} for row in rows]
    replaced = {tuple(row.get(name, '') for name in unit) for row in new}
    kept = [row for row in read(path) if tuple(row.get(name, '') for name in unit) not in replaced]
    names = list(dict.fromkeys(name for row in (*new, *kept) for name in row))
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix('.part')
    with temporary.open('w', newline='', encoding='utf-8') as stream:
        writer = csv.DictWriter(stream, fieldnames=names, lineterminator='\n')
        writer.writeheader()
        writer.writerows([*kept, *new])
    temporary.replace(path)


def _text(value: Any) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)
