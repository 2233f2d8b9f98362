"""How the cost of training grows with the number of resolutions, as a picture: `python -m benchmarks.training.plot`."""
from pathlib import Path
from typing import Any, Dict, Optional

from matplotlib.figure import Figure

from benchmarks import environment
from benchmarks.figure_files import save
from benchmarks.training.results import QUANTITIES, Points, by_count, growing

__all__ = ['plot']

Lines = Dict[str, Points]
_SEPARATE, _PAPER, _LOADERS, _TENSORS, _LEAN = QUANTITIES[:5]


def plot(path: Optional[Path] = None) -> Path:
    """Draw the four panels; what was not measured stays empty."""
    path = path or environment.RESULTS / 'training_cost.png'
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axes = figure.subplots(2, 2)
    for panel, quantity in zip(axes.flat, (_SEPARATE, _PAPER, _LOADERS)):
        _draw(panel, quantity.label, {name: points for (name, _), points in growing(by_count(quantity)).items()})
    lean = {f'{name}, lean': points for (name, _), points in growing(by_count(_LEAN)).items()}
    ordinary = {name: points for (name, _), points in growing(by_count(_TENSORS)).items()}
    _draw(axes.flat[3], _TENSORS.label, {**ordinary, **lean})
    save(figure, path.with_suffix(''))
    return path


def _draw(axes: Any, title: str, lines: Lines) -> None:
    axes.axhline(1., color='0.7', linewidth=1)
    colours: Dict[str, str] = {}
    for name, points in sorted(lines.items(), key=lambda line: (line[0].endswith(', lean'), line[0])):
        colour = colours.setdefault(name.removesuffix(', lean'), f'C{len(colours)}')
        style = '--' if name.endswith(', lean') else '-'
        axes.plot(*zip(*sorted(points.items())), marker='o', color=colour, linestyle=style, label=name)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel='resolutions, S', xticks=range(1, 6))
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize=8, frameon=False, loc='lower right', ncol=2 if len(lines) > 3 else 1)  # below 1 is room


if __name__ == '__main__':
    print(f'wrote {plot()}')
