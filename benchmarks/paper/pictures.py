"""Which pictures there are, whether there is anything to draw, and the files."""
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping

from matplotlib.figure import Figure

from benchmarks.figure_files import save
from benchmarks.markdown import NOT_MEASURED
from benchmarks.paper import curves, figures, inside_figures
from benchmarks.paper.aggregate import Results, load, shown_presets
from benchmarks.paper.listing import ladder

__all__ = ['PICTURES', 'Picture', 'drawable', 'markdown', 'write_pictures']


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
    return {words: gains for words, gains in found.items() if inside_figures.several_measured(gains)}


PICTURES: Dict[str, Picture] = {
    'figure1': Picture(curves.figure_1, figures.draw_figure_1, 'top-1 against multiply-adds, measured and published'),
    'figure4': Picture(curves.figure_4, figures.draw_figure_4, 'top-1 with shared and with private BatchNorms'),
    'dense': Picture(curves.dense, figures.draw_dense, 'top-1 of I-Nets and RS-Net at trained and unseen sizes'),
    'figure3': Picture(curves.features, inside_figures.draw_features, 'distribution of the pooled features'),
    'figure9': Picture(_effects, inside_figures.draw_effects, 'gains of parallel training over the I-Nets'),
    'figure6': Picture(curves.norms, inside_figures.draw_norms, 'means of the BatchNorm sets by block and resolution'),
    'alpha': Picture(curves.alphas, inside_figures.draw_alphas, 'weights of the resolutions in the ensemble by epoch'),
}
LADDER_PICTURES = {'ladder': Picture(ladder, figures.draw_ladder, 'top-1 from ordinary weights after each step')}


def drawable(folder: Path) -> Dict[str, Callable[[], Figure]]:
    """File name without suffix -> draws it; only what there are results of."""
    found: Dict[str, Callable[[], Figure]] = {}
    for results in [*shown_presets(folder), load('ladder', folder)]:
        pictures = LADDER_PICTURES if results.preset.name == 'ladder' else PICTURES
        for name, picture in pictures.items():
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
        save(draw(), folder / stem)
    return list(figures)


def markdown(name: str, results: Results, folder: str) -> str:
    """The picture in a document from which `folder` leads to the results, or 'not measured'."""
    picture = {**PICTURES, **LADDER_PICTURES}[name]
    if not picture.data(results):
        return f'Picture: {NOT_MEASURED}.'
    path = f'{folder}/{_stem(name, results)}'
    return f'![{picture.words}]({path}.png)\n\n([as SVG]({path}.svg))'
