"""Pictures for a report on a phone: narrow, with panels below each other. They need matplotlib (`rs_timm[plot]`)."""
import io
from typing import TYPE_CHECKING, Any, Dict, List, Mapping, Sequence, Tuple

import numpy as np

from .reliability import Reliability

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['accuracy_plot', 'class_plot', 'norm_plot', 'png', 'reliability_plot', 'require_matplotlib',
           'sufficient_plot']

_WIDTH = 4.4  # inches
_NORM_NAMES = {'weight': 'scale γ', 'bias': 'bias β', 'running_mean': 'mean µ', 'running_var': 'variance σ²'}


def require_matplotlib() -> None:
    """Say so early where it is missing.

    Raises:
        ValueError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError('the pictures of a report need matplotlib: pip install "rs_timm[plot]".') from error


def png(figure: 'Figure') -> bytes:
    """The figure as a PNG file."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=160, metadata=dict(Software=None))
    return stream.getvalue()


def _panels(count: int, height: float) -> Tuple['Figure', List['Axes']]:
    """A figure with `count` panels below each other, each `height` inches high."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height * count), layout='constrained')
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _colours(resolutions: Sequence[int]) -> Dict[int, Any]:
    """Dark for the largest."""
    from matplotlib import colormaps

    return {r: colormaps['viridis'](0.9 * i / max(len(resolutions) - 1, 1)) for i, r in enumerate(resolutions)}


def accuracy_plot(top1: Mapping[int, float], madds: Mapping[int, float], trained: Sequence[int]) -> 'Figure':
    """Top-1 in percent against multiply-adds; sizes with BatchNorm sets of their own are filled.

    Args:
        top1: resolution in pixels -> percent.
        madds: resolution -> multiply-adds of one picture.
        trained: the sizes with sets of their own.
    """
    figure, (axes,) = _panels(1, 3.4)
    order = sorted(top1)
    axes.plot([madds[r] / 1e6 for r in order], [top1[r] for r in order], color='tab:red', linewidth=1.2)
    for r in order:
        face = 'tab:red' if r in trained else 'white'
        axes.plot(madds[r] / 1e6, top1[r], 'o', color='tab:red', markerfacecolor=face, markersize=5)
        axes.annotate(f'{r}', (madds[r] / 1e6, top1[r]), textcoords='offset points', xytext=(5, -10), fontsize=8)
    axes.margins(0.1)
    axes.set_xlabel('multiply-adds of a picture, millions')
    axes.set_ylabel('top-1, %')
    axes.grid(alpha=0.3)
    return figure


def sufficient_plot(shares: Mapping[str, float]) -> 'Figure':
    """Bars: what share of the pictures, in percent, each size is the smallest that suffices for.

    Args:
        shares: label, in the order of the bars -> percent.
    """
    figure, (axes,) = _panels(1, 0.7 + 0.33 * len(shares))
    labels = list(shares)[::-1]
    bars = axes.barh(labels, [shares[label] for label in labels], color='tab:blue')
    axes.bar_label(bars, fmt='%.1f %%', padding=3, fontsize=8)
    axes.set_xlim(0, 1.2 * max(*shares.values(), 1.))
    axes.set_xlabel('share of the pictures, %')
    return figure


def class_plot(accuracy: Mapping[int, np.ndarray], names: Sequence[str]) -> 'Figure':
    """A map of top-1 in percent: a row for each class, a column for each resolution.

    Args:
        accuracy: resolution -> percent for each class, [C].
        names: of the classes, C.
    """
    figure, (axes,) = _panels(1, 1. + 0.26 * len(names))
    order = sorted(accuracy, reverse=True)
    values = np.stack([accuracy[r] for r in order], axis=1)  # [C, S]
    axes.imshow(values, cmap='RdYlGn', vmin=0, vmax=100, aspect='auto')
    axes.set_xticks(range(len(order)), [str(r) for r in order], fontsize=8)
    axes.set_yticks(range(len(names)), [_short(name) for name in names], fontsize=8)
    axes.xaxis.tick_top()
    for row, column in np.ndindex(*values.shape):
        colour = 'white' if abs(values[row, column] - 50) > 35 else 'black'  # the ends of the map are dark
        axes.text(column, row, f'{values[row, column]:.0f}', ha='center', va='center', fontsize=7, color=colour)
    return figure


def _short(text: str, length: int = 24) -> str:
    text = text.replace('$', r'\$')  # else matplotlib reads mathematics between two of them
    return text if len(text) <= length else f'{text[:length - 3]}...'


def reliability_plot(found: Mapping[int, Reliability]) -> 'Figure':
    """Accuracy against confidence at each resolution; on the diagonal, a confidence means what it says."""
    figure, panels = _panels(len(found), 2.7)
    for axes, (resolution, bins) in zip(panels, found.items()):
        filled = bins.count > 0
        width = bins.edges[1] - bins.edges[0]
        shade = 0.25 + 0.75 * bins.count[filled] / bins.count.max()
        left = bins.edges[:-1][filled]
        for x, height, alpha in zip(left, bins.accuracy[filled], shade):
            axes.bar(x, height, width, align='edge', color='tab:blue', alpha=alpha, edgecolor='white')
        axes.plot(bins.confidence[filled], bins.accuracy[filled], 'o', color='black', markersize=3)
        axes.plot([0, 1], [0, 1], '--', color='tab:grey', linewidth=1)
        axes.set_title(f'{resolution} px: error {100 * bins.error:.1f} %', fontsize=9)
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.set_ylabel('accuracy')
    panels[-1].set_xlabel('confidence (dark bars: many pictures)')
    return figure


def norm_plot(means: Mapping[str, Mapping[int, Mapping[str, float]]]) -> 'Figure':
    """What the BatchNorm sets hold, layer by layer: a line for each resolution.

    Args:
        means: as returned by `norm_means`.
    """
    tensors = [name for name in _NORM_NAMES if any(name in sets for layer in means.values() for sets in layer.values())]
    figure, panels = _panels(len(tensors), 2.2)
    resolutions = sorted({r for layer in means.values() for r in layer}, reverse=True)
    colours = _colours(resolutions)
    for axes, tensor in zip(panels, tensors):
        for r in resolutions:
            values = [layer[r].get(tensor, np.nan) for layer in means.values() if r in layer]
            axes.plot(range(1, len(values) + 1), values, '.-', color=colours[r], label=f'{r} px', linewidth=1.,
                      markersize=3)
        axes.set_ylabel(_NORM_NAMES[tensor])
        axes.grid(alpha=0.3)
    panels[0].legend(fontsize=7, ncols=3)
    panels[-1].set_xlabel('BatchNorm layer, in the order of the network')
    return figure
