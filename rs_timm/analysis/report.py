"""One page of HTML about a network on somebody's pictures: what each resolution gets right, and what that costs.

The page is one file without a script or a link, readable on a phone; every text is escaped on its way in. Its plots are
narrow, with panels below each other; they need matplotlib (`rs_timm[plot]`).
"""
import base64
import io
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Dict, Iterable, List, Mapping, Optional, Sequence, Tuple

import numpy as np

from .measures import (
    NEVER,
    Means,
    Reliability,
    class_accuracy,
    complementarity,
    reliability,
    sensitivity,
    sufficient_for_classes,
    sufficient_resolution,
)
from .predictions import ENSEMBLE, Predictions, Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ['Subject', 'analysis_page', 'picture_rows', 'require_matplotlib']

_SHOWN_CLASSES = 20
_WIDTH = 4.4  # of a plot, inches
_NORM_NAMES = {'weight': 'scale γ', 'bias': 'bias β', 'running_mean': 'mean µ', 'running_var': 'variance σ²'}
_STYLE = '''
body { font: 16px/1.5 system-ui, sans-serif; max-width: 44rem; margin: 0 auto; padding: 0 1rem 3rem; color: #1a1a1a;
       background: #fff }
h1 { font-size: 1.5rem; overflow-wrap: anywhere } h2 { font-size: 1.2rem; margin-top: 2.2rem }
p { overflow-wrap: anywhere }
.scroll { overflow-x: auto }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums }
th, td { padding: 0.25rem 0.5rem; border-bottom: 1px solid #ddd; text-align: right; white-space: nowrap }
th { white-space: normal; vertical-align: bottom }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: #fff; padding-left: 0;
                                white-space: normal; min-width: 5.5rem; max-width: 9rem }
img { max-width: 100%; height: auto; display: block; margin: 0.8rem 0 }
summary { cursor: pointer; padding: 0.5rem 0 }
small { color: #555 }
'''


class Html(str):
    """Text that is HTML already; every other string is escaped when it gets into a page.

    >>> paragraph('a < b')
    '<p>a &lt; b</p>'
    >>> paragraph(Html('<b>bold</b>'))
    '<p><b>bold</b></p>'
    """


@dataclass(frozen=True)
class Subject:
    """The subject of a report, besides the predictions.

    Attributes:
        name: of the network.
        facts: lines about network, data and settings.
        trained: sizes in pixels with a BatchNorm set of their own.
        madds: resolution -> multiply-adds of one picture.
        class_names: of all outputs, in order.
        norms: as returned by `norm_means`.
        tolerance: points of top-1 that a class may lose at a size that suffices for it.
    """

    name: str
    facts: Sequence[str]
    trained: Sequence[int]
    madds: Mapping[int, float]
    class_names: Sequence[str]
    norms: Means = field(default_factory=dict)
    tolerance: float = 1.


def analysis_page(subject: Subject, predictions: Predictions) -> str:
    """The report as HTML, with its pictures in it."""
    parts = [
        Html('\n'.join(paragraph(fact) for fact in subject.facts)),
        _accuracy(subject, predictions),
        _complementarity(predictions),
        _pictures(predictions),
        _classes(subject, predictions),
        _calibration(predictions),
    ]
    if subject.norms:
        parts.append(section(
            'What the BatchNorm sets hold',
            paragraph('Means over the channels of each layer. Sets that lie on top of each other could be one.'),
            picture(_norm_plot(subject.norms), 'means of the BatchNorm sets by layer and resolution'),
        ))
    return page(f'{subject.name}: what each resolution gets right', parts)


def _accuracy(subject: Subject, predictions: Predictions) -> Html:
    largest = predictions.resolutions[0]
    rows, top1 = [], {}
    order: List[Row] = [*predictions.resolutions, *([ENSEMBLE] if ENSEMBLE in predictions.at else [])]
    for row in order:
        values = predictions.accuracy(row)
        cost = subject.madds.get(row) if isinstance(row, int) else None
        share = f'{100 * cost / subject.madds[largest]:.0f} %' if cost else ''
        label = 'ensemble of the trained sizes' if row == ENSEMBLE else (
            f'{row} px' if row in subject.trained else f'{row} px (not trained)')
        rows.append([label, f"{values['top1']:.1f}", f"{values['top5']:.1f}",
                     f'{cost / 1e6:.1f}' if cost else '', share])
        if isinstance(row, int):
            top1[row] = values['top1']
    return section(
        'Accuracy and cost',
        table(['resolution', 'top-1, %', 'top-5, %', 'MAdds, M', 'cost'], rows),
        picture(_accuracy_plot(top1, subject.madds, subject.trained), 'top-1 against multiply-adds'),
        paragraph('One MAdd is one multiply-add of a convolution or linear layer. Open circles: sizes whose BatchNorm '
                  'set is made from those of its neighbours.'),
    )


def _complementarity(predictions: Predictions) -> Html:
    sizes = predictions.resolutions
    if len(sizes) < 2:
        return section('Do the resolutions complement each other?', paragraph('Only one resolution was measured.'))
    shares = complementarity(predictions.rights())
    largest = max(max(row.values()) for row in shares.values()) or 1.
    cells = [[f'{a} px', *('' if a == b else f'{shares[a][b]:.1f}' for b in sizes)] for a in sizes]
    shades = [[0., *(0. if a == b else 0.6 * shares[a][b] / largest for b in sizes)] for a in sizes]
    return section(
        'Do the resolutions complement each other?',
        paragraph('Share of the pictures, in percent, that are right at the resolution of the row and wrong at that of '
                  'the column.'),
        table(['right at', *(f'wrong at {r}' for r in sizes)], cells, shades),
    )


def _pictures(predictions: Predictions) -> Html:
    smallest = sufficient_resolution(predictions.rights())
    shares = {f'{r} px': 100. * float((smallest == r).mean()) for r in sorted(predictions.resolutions)}
    shares['at no size'] = 100. * float((smallest == NEVER).mean())
    rows, total = [], 0.
    for label, share in shares.items():
        total += share
        rows.append([label, f'{share:.1f}', f'{total:.1f}'])
    return section(
        'The smallest size that suffices, picture by picture',
        paragraph('The smallest resolution at which a picture is classified correctly. The last column adds up: what '
                  'one could reach by choosing the right size for every picture.'),
        picture(_sufficient_plot(shares), 'share of the pictures for which each size suffices'),
        table(['smallest size', 'share, %', 'up to here, %'], rows[:-1]),
    )


def _classes(subject: Subject, predictions: Predictions) -> Html:
    accuracy = class_accuracy(predictions.rights(), predictions.target, len(subject.class_names))
    sizes = predictions.resolutions
    suffices = sufficient_for_classes(accuracy, subject.tolerance)
    change = sensitivity(accuracy)[sizes[-1]]
    seen = np.flatnonzero(~np.isnan(change))
    order = seen[np.argsort(change[seen], kind='stable')]
    count = np.bincount(predictions.target, minlength=len(subject.class_names))
    rows = [[subject.class_names[c], f'{suffices[c]} px', f'{change[c]:+.0f}', *(
        f'{accuracy[r][c]:.0f}' for r in sizes), str(count[c])] for c in order]
    # what a phone shows without scrolling comes first
    header = ['class', 'suffices', 'change', *(f'{r} px' for r in sizes), 'pictures']
    worst = order[:_SHOWN_CLASSES]
    shown = _class_plot({r: accuracy[r][worst] for r in sizes}, [subject.class_names[c] for c in worst])
    text = (f'Top-1 in percent. Change: at {sizes[-1]} px against {sizes[0]} px, in points; the classes that suffer '
            f'most stand first. Suffices: the smallest size from which on a class loses at most {subject.tolerance:g} '
            'point(s). With few pictures of a class, one picture is many points.')
    listing = table(header, rows)
    parts = [listing] if len(rows) <= _SHOWN_CLASSES else [
        table(header, rows[:_SHOWN_CLASSES]), details(f'All {len(rows)} classes', listing)]
    return section('Which classes need a large size?', paragraph(text),
                   picture(shown, 'top-1 of the most sensitive classes at each resolution'), *parts)


def _calibration(predictions: Predictions) -> Html:
    found = {r: reliability(predictions.at[r].confidence, predictions.right(r)) for r in predictions.resolutions}
    rows = []
    for r, bins in found.items():
        confidence, accuracy = predictions.at[r].confidence.mean(), predictions.right(r).mean()
        tendency = 'too sure' if confidence - accuracy > 0.01 else 'too modest' if accuracy - confidence > 0.01 else ''
        figures = [f'{100 * value:.1f}' for value in (bins.error, confidence, accuracy)]
        rows.append([f'{r} px', figures[0], tendency, *figures[1:]])
    return section(
        'Does a confidence mean what it says?',
        paragraph('Expected calibration error (ECE): the mean gap of confidence and accuracy over 15 bins. A cascade, '
                  'or a threshold on the confidence, needs a small one.'),
        table(['resolution', 'ECE, %', '', 'mean confidence, %', 'top-1, %'], rows),
        picture(_reliability_plot(found), 'accuracy against confidence at each resolution'),
    )


def picture_rows(predictions: Predictions, files: Optional[Sequence[str]] = None) -> List[Dict[str, object]]:
    """A row for each picture: what it is, and what is predicted at each resolution.

    >>> from rs_timm.analysis import Prediction
    >>> at = {96: Prediction(np.array([1]), np.array([0.5]), np.array([True]), np.array([0.7]))}
    >>> picture_rows(Predictions(np.array([1]), at), ['cat.jpg'])
    [{'picture': 'cat.jpg', 'target': 1, 'suffices': 96, 'label_96': 1, 'confidence_96': 0.5}]

    Args:
        predictions: the predictions.
        files: names of the pictures; without them, their numbers.
    """
    smallest = sufficient_resolution(predictions.rights())
    rows: List[Dict[str, object]] = []
    for i, target in enumerate(predictions.target.tolist()):
        row: Dict[str, object] = dict(
            picture=files[i] if files else i, target=target, suffices=int(smallest[i]) or 'none')
        for r in predictions.resolutions:
            row[f'label_{r}'] = int(predictions.at[r].label[i])
            row[f'confidence_{r}'] = round(float(predictions.at[r].confidence[i]), 4)
        rows.append(row)
    return rows


# The elements of the page

def _html(content: str) -> Html:
    return content if isinstance(content, Html) else Html(escape(content))


def page(title: str, parts: Iterable[Html]) -> str:
    """A whole document with a heading and its parts."""
    head = ('<meta charset="utf-8">\n<meta name="viewport" content="width=device-width, initial-scale=1">\n'
            f'<title>{escape(title)}</title>\n<style>{_STYLE}</style>')
    body = '\n'.join([f'<h1>{escape(title)}</h1>', *parts])
    return f'<!DOCTYPE html>\n<html lang="en">\n<head>\n{head}\n</head>\n<body>\n{body}\n</body>\n</html>\n'


def section(title: str, *parts: Html) -> Html:
    """A heading and what stands below it."""
    return Html('\n'.join([f'<section>\n<h2>{escape(title)}</h2>', *parts, '</section>']))


def paragraph(text: str) -> Html:
    """Text, or `Html` as it is, in a paragraph of its own."""
    return Html(f'<p>{_html(text)}</p>')


def details(summary: str, content: Html) -> Html:
    """Content that opens when a reader touches the summary; works without a script."""
    return Html(f'<details>\n<summary>{escape(summary)}</summary>\n{content}\n</details>')


def table(
        header: Sequence[str],
        rows: Iterable[Sequence[str]],
        shades: Optional[Sequence[Sequence[float]]] = None,
) -> Html:
    """A table that scrolls sideways on a narrow screen under its first column, which holds names and stays.

    Args:
        header: names of the columns.
        rows: cells.
        shades: how strongly to colour each cell, 0 to 1, in the shape of `rows`.
    """
    names = (escape(cell).replace('top-', 'top&#8209;') for cell in header)  # headings break at spaces alone
    lines = ['<tr>' + ''.join(f'<th>{name}</th>' for name in names) + '</tr>']
    for i, row in enumerate(rows):
        strengths = shades[i] if shades else [0.] * len(row)
        colours = [f' style="background: rgba(214, 69, 65, {s:.2f})"' if s else '' for s in strengths]
        cells = ''.join(f'<td{colour}>{_html(cell)}</td>' for colour, cell in zip(colours, row))
        lines.append(f'<tr>{cells}</tr>')
    body = '\n'.join(lines)
    return Html(f'<div class="scroll">\n<table>\n{body}\n</table>\n</div>')


def picture(figure: 'Figure', description: str) -> Html:
    """The figure as a PNG in the page itself, with a description for those who cannot see it."""
    stream = io.BytesIO()
    figure.savefig(stream, format='png', dpi=160, metadata=dict(Software=None))
    encoded = base64.b64encode(stream.getvalue()).decode()
    return Html(f'<img alt="{escape(description)}" src="data:image/png;base64,{encoded}">')


# The plots

def require_matplotlib() -> None:
    """Raise ValueError with the remedy where matplotlib is not installed: for callers who have long work ahead."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ValueError('the pictures of a report need matplotlib: pip install "rs_timm[plot]".') from error


def _panels(count: int, height: float) -> Tuple['Figure', List['Axes']]:
    """A figure with `count` panels below each other, each `height` inches high."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(_WIDTH, height * count), layout='constrained')
    return figure, list(figure.subplots(count, 1, squeeze=False)[:, 0])


def _accuracy_plot(top1: Mapping[int, float], madds: Mapping[int, float], trained: Sequence[int]) -> 'Figure':
    """Top-1 in percent against multiply-adds; sizes with BatchNorm sets of their own are filled."""
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


def _sufficient_plot(shares: Mapping[str, float]) -> 'Figure':
    """Bars from label to percent: the share of the pictures for which each size is the smallest that suffices."""
    figure, (axes,) = _panels(1, 0.7 + 0.33 * len(shares))
    labels = list(shares)[::-1]
    bars = axes.barh(labels, [shares[label] for label in labels], color='tab:blue')
    axes.bar_label(bars, fmt='%.1f %%', padding=3, fontsize=8)
    axes.set_xlim(0, 1.2 * max(*shares.values(), 1.))
    axes.set_xlabel('share of the pictures, %')
    return figure


def _class_plot(accuracy: Mapping[int, np.ndarray], names: Sequence[str]) -> 'Figure':
    """A map of top-1 in percent: a row for each class, a column for each resolution."""
    figure, (axes,) = _panels(1, 1. + 0.26 * len(names))
    order = sorted(accuracy, reverse=True)
    values = np.stack([accuracy[r] for r in order], axis=1)  # [C, S]
    axes.imshow(values, cmap='RdYlGn', vmin=0, vmax=100, aspect='auto')
    axes.set_xticks(range(len(order)), [str(r) for r in order], fontsize=8)
    short = (name if len(name) <= 24 else f'{name[:21]}...' for name in names)
    labels = [name.replace('$', r'\$') for name in short]  # else matplotlib reads mathematics between two of them
    axes.set_yticks(range(len(names)), labels, fontsize=8)
    axes.xaxis.tick_top()
    for row, column in np.ndindex(*values.shape):
        colour = 'white' if abs(values[row, column] - 50) > 35 else 'black'  # the ends of the map are dark
        axes.text(column, row, f'{values[row, column]:.0f}', ha='center', va='center', fontsize=7, color=colour)
    return figure


def _reliability_plot(found: Mapping[int, Reliability]) -> 'Figure':
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


def _norm_plot(means: Mapping[str, Mapping[int, Mapping[str, float]]]) -> 'Figure':
    """The means of the BatchNorm sets, layer by layer: a line for each resolution."""
    from matplotlib import colormaps

    tensors = [name for name in _NORM_NAMES if any(name in sets for layer in means.values() for sets in layer.values())]
    figure, panels = _panels(len(tensors), 2.2)
    resolutions = sorted({r for layer in means.values() for r in layer}, reverse=True)
    shades = np.linspace(0., 0.9, max(len(resolutions), 2))  # dark for the largest
    colours = {r: colormaps['viridis'](float(shade)) for r, shade in zip(resolutions, shades)}
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
