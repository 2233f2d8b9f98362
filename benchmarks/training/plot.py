"""The growth of the training cost with the number of resolutions as a picture, from benchmarks/results.

    python -m benchmarks.training_cost_plot
"""
import csv
from pathlib import Path
from typing import Any, Callable, Dict, List, Sequence, Tuple

import matplotlib

from benchmarks.environment import RESULTS

matplotlib.use('Agg')

Row = Dict[str, str]
Value = Callable[[Row], float]
PICTURE = RESULTS / 'training_cost.png'


def read(name: str) -> List[Row]:
    path = RESULTS / f'{name}.csv'
    if not path.is_file():
        return []
    with path.open(newline='') as stream:
        return list(csv.DictReader(stream))


def curves(rows: Sequence[Row], label: str, value: Value) -> Dict[str, List[Tuple[int, float]]]:
    """Value of the column `label` -> points (S, value), of the smallest batch that was measured at all S."""
    found: Dict[str, Dict[int, List[Tuple[int, float]]]] = {}
    for row in rows:
        point = len(row['sizes'].split()), value(row)
        found.setdefault(row[label], {}).setdefault(int(row['batch']), []).append(point)
    return {name: sorted(max(batches.values(), key=len)) for name, batches in found.items()}


def ratio(row: Row) -> float:
    return float(row['ratio'])


def plot(path: Path = PICTURE) -> None:
    """Draw the four panels; what was not measured stays empty."""
    from matplotlib import pyplot as plt

    cost, pipeline = read('training_cost'), read('data_pipeline')
    parts: Dict[str, List[Row]] = {}
    for row in cost:
        parts.setdefault(row['question'], []).append(row)
    loaders = [row for row in pipeline if row['question'] == 'against separate loaders']
    figure, axes = plt.subplots(2, 2, figsize=(9, 6.5), layout='constrained')
    one, two, three, four = axes.flat
    _draw(one, 'time of a step / S steps of stock networks', curves(parts.get('separate', []), 'model', ratio), 1.)
    _draw(two, "time of the paper's step / ours", curves(parts.get('paper', []), 'model', lambda r: 1 / ratio(r)), 1.)
    _draw(three, 'pictures per second / those of S loaders', curves(loaders, 'pipeline', ratio), 1.)
    lean = curves(parts.get('memory, tensors, lean', []), 'model', ratio)
    _draw(four, 'peak of tensors / stock network at 224 px', {
        **curves(parts.get('memory, tensors', []), 'model', ratio),
        **{f'{name}, lean': points for name, points in lean.items()},
    }, 1.)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw(axes: Any, title: str, lines: Dict[str, List[Tuple[int, float]]], at: float) -> None:
    axes.axhline(at, color='0.7', linewidth=1)
    colours: Dict[str, str] = {}
    for name, points in lines.items():
        colour = colours.setdefault(name.removesuffix(', lean'), f'C{len(colours)}')
        style = '--' if name.endswith(', lean') else '-'
        axes.plot(*zip(*points), marker='o', color=colour, linestyle=style, label=name)
    axes.set(title=title, xlabel='S, resolutions', xticks=range(1, 6))
    axes.title.set_size(10)
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize=8, frameon=False)


if __name__ == '__main__':
    plot()
    print(f'wrote {PICTURE}')
