"""What was measured about training, by question, model and number of resolutions."""
import csv
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, NamedTuple, Sequence, Tuple

from benchmarks import environment

__all__ = ['QUANTITIES', 'Quantity', 'by_count', 'growing', 'merge', 'read', 'rows_of']

Row = Dict[str, str]
_KEY = ('question', 'model', 'sizes', 'batch', 'dtype')  # of a measurement
Points = Dict[int, float]  # number of resolutions S -> value


class Quantity(NamedTuple):
    """A figure made of the ratio of a row."""

    label: str
    question: str
    file: str = 'training_cost'
    value: Callable[[float], float] = float
    digits: int = 2


QUANTITIES = (
    Quantity('time of the step / of S steps of stock networks', 'separate', digits=3),
    Quantity("time of the paper's step / of the step", 'paper', value=lambda ratio: 1 / ratio),
    Quantity('pictures per second / those of S separate loaders', 'against separate loaders', 'data_pipeline'),
    Quantity('peak of tensors / stock step at the largest size', 'memory, tensors'),
    Quantity('the same, lean', 'memory, tensors, lean'),
    Quantity('resident memory / stock step at the largest size', 'memory, resident'),
    Quantity('the same, lean', 'memory, resident, lean'),
)


def read(name: str) -> List[Row]:
    """The rows of a table of results; none if nothing was measured."""
    path = environment.RESULTS / f'{name}.csv'
    if not path.is_file():
        return []
    with path.open(newline='', encoding='utf-8') as stream:
        return list(csv.DictReader(stream))


def merge(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write `rows` in the place of those of the same measurement."""
    new = {tuple(str(row[key]) for key in _KEY) for row in rows}
    kept: List[Mapping[str, Any]] = []
    if path.is_file():
        with path.open(newline='') as stream:
            kept = [row for row in csv.DictReader(stream) if tuple(row[key] for key in _KEY) not in new]
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w', newline='') as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows([*kept, *rows])


def rows_of(quantity: Quantity) -> List[Row]:
    return [row for row in read(quantity.file) if row['question'] == quantity.question]


def by_count(quantity: Quantity) -> Dict[Tuple[str, int], Points]:
    """(Model or pipeline, batch) -> the values at each S that was measured."""
    found: Dict[Tuple[str, int], Points] = {}
    for row in rows_of(quantity):
        name = row['pipeline'] if 'pipeline' in row else row['model']
        points = found.setdefault((name, int(row['batch'])), {})
        points[len(row['sizes'].split())] = quantity.value(float(row['ratio']))
    return found


def growing(found: Dict[Tuple[str, int], Points]) -> Dict[Tuple[str, int], Points]:
    """Those of several S: the rest says nothing about growth."""
    return {key: points for key, points in found.items() if len(points) > 1}
