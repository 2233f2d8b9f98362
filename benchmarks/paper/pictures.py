"""The pictures of why it works (Figures 3, 5, 6 and 9, Appendix A); which pictures there are; and the files."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import published
from benchmarks.paper import curves, figures
from benchmarks.paper.curves import BASES, CROPS, NORM_TENSORS, alphas, effects, features, norms
from benchmarks.paper.figures import PAPER_GROUND, by_resolution, caption, curve, name_missing
from benchmarks.paper.samples import Results, load, shown_presets
from benchmarks.store import NOT_MEASURED, save_figure


def draw_features(results: Results) -> Figure:
    """The distribution of the pooled features with test crops and with training crops; two sizes."""
    found = features(results)
    figure = Figure(figsize=(5.2 * len(found), 4.2), layout='constrained')
    for axes, (size, own) in zip(figure.subplots(1, len(found), squeeze=False)[0], found.items()):
        for label, crops in own.items():
            colour = '#1f77b4' if label == 'parallel' else '#444444'
            for kind, (values, shares) in crops.items():
                axes.plot(values, shares, '-' if kind == 'test' else '--', color=colour, linewidth=1.3,
                          label=f'{label} ({kind})')
        name_missing(axes, (f'I-{size}', 'parallel'), own)
        axes.set(xlabel='value of a pooled feature', ylabel='share of values at or below')
        axes.set_title(f'tested at {size} px', fontsize=9)
        axes.set_xlim(0, 1.05 * max(_share(values, shares, 0.98) for crops in own.values()
                                    for values, shares in crops.values()))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc='lower right')
    caption(figure, results, 'Distribution of the pooled features, test pictures cropped as in the test and as in '
                             'training', bars=False)
    return figure


def _share(values: List[float], shares: List[float], share: float) -> float:
    return next(value for value, s in zip(values, shares) if s >= share)


def draw_effects(results: Results) -> Figure:
    """Gains of parallel training over the I-Nets: a group of bars a combination, a row for each range of crops."""
    found = {words: effects(results, begin) for words, begin in CROPS.items()}
    found = {words: gains for words, gains in found.items() if several_measured(gains)}
    figure = Figure(figsize=(12, 0.9 + 3.2 * len(found)), layout='constrained')
    colours = by_resolution(results.sizes)
    rows = figure.subplots(len(found), 1, squeeze=False, sharey=True)[:, 0]
    for axes, (words, gains) in zip(rows, found.items()):
        _bars(axes, gains, colours)
        axes.set_ylabel('change of top-1, points')
        axes.set_title(f'{words}; {_bases(results, CROPS[words])}', fontsize=8)
        axes.margins(y=0.15)
    rows[-1].set_xlabel('trained in parallel with, px')
    handles, labels = _distinct(rows)
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8, frameon=False)
    caption(figure, results, 'Parallel training without distillation against the I-Net of each size', bars=False)
    return figure


def several_measured(gains: Dict[str, Dict[int, Optional[float]]]) -> bool:
    """Whether there are combinations to compare."""
    return sum(any(value is not None for value in own.values()) for own in gains.values()) > 1


def _bars(axes: Axes, gains: Dict[str, Dict[int, Optional[float]]], colours: Dict[int, Any]) -> None:
    width = 0.18
    for group, own in enumerate(gains.values()):
        for i, (size, value) in enumerate(own.items()):
            x = group + (i - (len(own) - 1) / 2) * width
            if value is None:
                continue
            axes.bar(x, value, 0.9 * width, color=colours[size], label=f'{size} px')
            axes.annotate(f'{value:+.1f}', (x, value), (0, 2 if value >= 0 else -2), textcoords='offset points',
                          ha='center', va='bottom' if value >= 0 else 'top', fontsize=6)
    axes.axhline(0, color='black', linewidth=0.8)
    names = [_folded(label) + _lack(own) for label, own in gains.items()]
    axes.set_xticks(range(len(gains)), names, fontsize=7.5)
    axes.set_xlim(-0.6, len(gains) - 0.4)
    axes.grid(alpha=0.3, axis='y')


def _lack(own: Dict[int, Optional[float]]) -> str:
    missing = sum(value is None for value in own.values())
    return '' if not missing else '\n(not measured)' if missing == len(own) else f'\n({missing} not measured)'


def _folded(label: str) -> str:
    """Two sizes to a line."""
    parts = label.split(' & ')
    return ' &\n'.join(' & '.join(parts[i:i + 2]) for i in range(0, len(parts), 2))


def _bases(results: Results, begin: str) -> str:
    tops = {size: results.sample(f'{begin}{BASES}_{size}', size) for size in results.sizes}
    return ', '.join(f'I-{size}: {top.mean:.1f} %' if top else f'I-{size}: not measured' for size, top in tops.items())


def _distinct(rows: Any) -> Any:
    found: Dict[str, Any] = {}
    for axes in rows:
        found.update({label: handle for handle, label in zip(*axes.get_legend_handles_labels()) if label not in found})
    order = sorted(found, key=lambda label: -int(label.split()[0]))
    return [found[label] for label in order], order


def draw_norms(results: Results) -> Figure:
    """Means over the channels of the BatchNorm sets, block by block; a column for each BatchNorm of a block."""
    found = norms(results)
    colours = by_resolution(results.sizes)
    figure = Figure(figsize=(4.2 * len(found), 8.4), layout='constrained')
    panels = figure.subplots(len(NORM_TENSORS), len(found), squeeze=False, sharex='col')
    for column, (position, tensors) in enumerate(found.items()):
        for row, (tensor, words) in enumerate(NORM_TENSORS.items()):
            axes = panels[row][column]
            for size, values in tensors[tensor].items():
                axes.plot(range(1, len(values) + 1), values, '.-', color=colours[size], label=f'{size} px', linewidth=1)
            axes.set_ylabel(words)
            axes.ticklabel_format(axis='y', useOffset=False)
            axes.grid(alpha=0.3)
        panels[0][column].set_title(f'{position} of each block', fontsize=9)
        blocks = max(len(values) for values in tensors['weight'].values())
        panels[-1][column].set(xlabel='block', xticks=range(1, blocks + 1, max(1, blocks // 8)))
    handles, labels = panels[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc='outside lower center', ncols=len(labels), fontsize=8, frameon=False)
    caption(figure, results, 'What the BatchNorm sets hold, mean over the channels; parallel training', bars=False)
    return figure


def draw_alphas(results: Results) -> Figure:
    """Weights of the resolutions in the ensemble by epoch, and on the right those that the paper ends with."""
    found = alphas(results)
    colours = by_resolution(results.sizes)
    network = results.preset.network if results.preset.network in published.ALPHA else 'resnet18'
    figure = Figure(figsize=(7, 4.4), layout='constrained')
    axes = figure.subplots()
    last = max(epoch for points in found.values() for epoch in points)
    sparse = max(1, last // 15)
    marked = (last - 1) % sparse, sparse  # of many epochs, not every one gets a mark, but the last does
    for size, points in found.items():
        curve(axes, points, f'{size} px', color=colours[size], markevery=marked, errorevery=marked)
    place = last + max(1., 0.08 * last)
    for size, r, weight in zip(results.sizes, published.RESOLUTIONS, published.ALPHA[network]):
        axes.plot(place, weight, 'D', color=colours[size], markerfacecolor='white', markersize=6)
        axes.annotate(f'{r} px', (place, weight), (8, 0), textcoords='offset points', va='center', fontsize=7.5)
    right = place + 0.12 * (last + 1)
    axes.axvspan((last + place) / 2, right, color=PAPER_GROUND, zorder=0)
    axes.plot([], [], 'D', color='gray', markerfacecolor='white', label=f'published: end of {network} on ImageNet')
    axes.set(xlabel='epoch', ylabel='weight α in the ensemble', ylim=(-0.02, None), xlim=(None, right))
    axes.set_xticks([epoch for epoch in axes.get_xticks() if epoch == int(epoch) and 1 <= epoch <= last])
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, ncols=3, loc='upper center', bbox_to_anchor=(0.5, -0.16), frameon=False)
    caption(figure, results, 'Weights of the resolutions in the ensemble (RS-Net)')
    return figure


# Files

@dataclass(frozen=True)
class Picture:
    """A picture of the results of a preset.

    Attributes:
        data: what it shows; empty: nothing was measured, and it is not drawn.
        draw: makes the figure.
        words: for those who cannot see it.
    """

    data: Callable[[Results], Mapping[Any, Any]]
    draw: Callable[[Results], Figure]
    words: str


def _effects(results: Results) -> Dict[str, Any]:
    found = {words: curves.effects(results, begin) for words, begin in curves.CROPS.items()}
    return {words: gains for words, gains in found.items() if several_measured(gains)}


PICTURES: Dict[str, Picture] = {
    'figure1': Picture(curves.figure_1, figures.draw_figure_1, 'top-1 against multiply-adds, measured and published'),
    'figure4': Picture(curves.figure_4, figures.draw_figure_4, 'top-1 with shared and with private BatchNorms'),
    'dense': Picture(curves.dense, figures.draw_dense, 'top-1 of I-Nets and RS-Net at trained and unseen sizes'),
    'figure3': Picture(curves.features, draw_features, 'distribution of the pooled features'),
    'figure9': Picture(_effects, draw_effects, 'gains of parallel training over the I-Nets'),
    'figure6': Picture(curves.norms, draw_norms, 'means of the BatchNorm sets by block and resolution'),
    'alpha': Picture(curves.alphas, draw_alphas, 'weights of the resolutions in the ensemble by epoch'),
}
BRIEF_PICTURES = {'figure9': PICTURES['figure9']}
LADDER_PICTURES = {'ladder': Picture(curves.ladder, figures.draw_ladder, 'top-1 from ordinary weights after each step')}


def drawable(folder: Path) -> Dict[str, Callable[[], Figure]]:
    """File name without suffix -> draws it; only what there are results of."""
    found: Dict[str, Callable[[], Figure]] = {}
    for results in [*shown_presets(folder), load('brief', folder), load('ladder', folder)]:
        own = dict(brief=BRIEF_PICTURES, ladder=LADDER_PICTURES).get(results.preset.name, PICTURES)
        for name, picture in own.items():
            if picture.data(results):
                found[_stem(name, results)] = partial(picture.draw, results)
    return found


def _stem(name: str, results: Results) -> str:
    return f'paper_{name}' if name in LADDER_PICTURES else f'paper_{name}_{results.preset.name}'


def write_pictures(folder: Path) -> List[str]:
    """Draw what there are results of beside them, as PNG and SVG, and remove pictures of what is no longer there."""
    figures = drawable(folder)
    for path in [*folder.glob('paper_*.png'), *folder.glob('paper_*.svg')]:
        if path.stem not in figures:
            path.unlink()
    for stem, draw in figures.items():
        save_figure(draw(), folder / stem)
    return list(figures)


def as_markdown(name: str, results: Results, folder: str) -> str:
    """The picture in a document from which `folder` leads to the results, or 'not measured'."""
    picture = {**PICTURES, **LADDER_PICTURES}[name]
    if not picture.data(results):
        return f'Picture: {NOT_MEASURED}.'
    path = f'{folder}/{_stem(name, results)}'
    return f'![{picture.words}]({path}.png)\n\n([as SVG]({path}.svg))'
