"""How the pictures look: colours by meaning, error bars, captions."""
from textwrap import wrap
from typing import Any, Dict, Iterable, Mapping, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.markdown import NOT_MEASURED
from benchmarks.paper.aggregate import Results, Sample
from benchmarks.store import RUNS

__all__ = ['COLOURS', 'PAPER_GROUND', 'as_published', 'by_resolution', 'caption', 'curve', 'legend_below',
           'name_missing', 'sizes_axis']

COLOURS = {
    'I-Nets': '#444444', 'parallel': '#1f77b4', 'parallel, private BNs': '#1f77b4', 'RS-Net': '#d62728',
    'parallel, shared BNs': '#2ca02c',
}
_OTHER = '#e69f00'  # the largest I-Net, used at all sizes
PAPER_GROUND = '#f3efe2'  # behind whatever is published and was not measured here


def curve(axes: Axes, points: Mapping[Any, Sample], label: str, **style: Any) -> None:
    """A line through the means of the samples; a bar shows the standard deviation where there are several seeds."""
    order = sorted(points)
    spread = [points[x].std if len(points[x].values) > 1 else 0. for x in order]
    style = {'color': COLOURS.get(label, _OTHER), 'marker': 'o', 'markersize': 4, 'linewidth': 1.4, **style}
    axes.errorbar(order, [points[x].mean for x in order], spread if any(spread) else None, label=label, capsize=2.5,
                  elinewidth=0.9, **style)


def name_missing(axes: Axes, labels: Iterable[str], curves: Mapping[str, Any]) -> None:
    """In the legend: the curves that nobody has measured."""
    for label in labels:
        if label not in curves:
            axes.plot([], [], color=COLOURS.get(label, _OTHER), linestyle=':', label=f'{label}: {NOT_MEASURED}')


def by_resolution(sizes: Sequence[int]) -> Dict[int, Any]:
    """A colour for each size, dark for the largest."""
    order = sorted(sizes, reverse=True)
    return {size: colormaps['viridis'](0.9 * i / max(len(order) - 1, 1)) for i, size in enumerate(order)}


def sizes_axis(axes: Axes, sizes: Sequence[int]) -> None:
    """Resolutions on the horizontal axis, the trained ones as ticks."""
    axes.set_xticks(sorted(sizes), [str(size) for size in sorted(sizes)])
    axes.set_xlabel('resolution, px')
    axes.grid(alpha=0.3)


def as_published(axes: Axes, title: str) -> None:
    """Mark a panel as the paper's: its own background, and words in the title."""
    axes.set_facecolor(PAPER_GROUND)
    axes.set_title(f'PUBLISHED, not measured here\n{title}', fontsize=9)


def legend_below(axes: Axes, columns: int = 2) -> None:
    axes.legend(fontsize=7.5, ncols=columns, loc='upper center', bbox_to_anchor=(0.5, -0.16), frameon=False)


def caption(figure: Figure, results: Results, text: str, bars: bool = True) -> None:
    """What is seen, and on what it was measured; bars are explained where there are any."""
    jobs = results.rows[RUNS]
    several = len(jobs) > len({row['run'] for row in jobs})
    width = int(13 * figure.get_figwidth())  # letters of this size to an inch, with room at the sides
    lines = [*wrap(text, width), *wrap(results.preset.about, width)]
    if bars and several:
        note = 'bars: ± standard deviation over the seeds'
        joined = f'{lines[-1]}; {note}'
        lines[-1:] = [joined] if len(joined) <= width else [lines[-1], note]
    figure.suptitle('\n'.join(lines), fontsize=9)
