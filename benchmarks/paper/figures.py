"""The look of all pictures, and those of accuracy: Figure 1 (against multiply-adds), Figure 4, dense sizes."""
from textwrap import wrap
from typing import Any, Dict, Iterable, Mapping, Sequence

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks import published
from benchmarks.paper import market
from benchmarks.paper.curves import INTERPOLATIONS, LADDER, Curve, dense, figure_1, figure_4, ladder
from benchmarks.paper.samples import COLUMNS_2, COLUMNS_4, Results, Sample, madds_of, titles
from benchmarks.store import NOT_MEASURED, RUNS

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


# Pictures

_NETWORKS = dict(resnet50=('ResNet50', '#7b3294'), mobilenetv2=('MobileNetV2', '#008837'),
                 resnet18=('ResNet18', '#c51b7d'))
_SLIMMABLE = {'S-MobileNetV2': ('x', 'black'), 'US-MobileNetV2': ('+', '#0050d0'),
              'individual widths': ('1', '#b05000')}  # of Table 4


def draw_figure_1(results: Results) -> Figure:
    """Top-1 against multiply-adds: ours, and the paper's own curves with the slimmable networks of its Table 4.

    Below them the paper's RS-Nets among what others have published.
    """
    curves = figure_1(results)
    figure = Figure(figsize=(10.5, 10.8), layout='constrained')
    panels = figure.subplot_mosaic([['ours', 'theirs'], ['market', 'market']], height_ratios=(1, 1.25))
    ours, theirs, others = panels.values()
    for label, points in curves.items():
        style = dict(linestyle='--', marker='s') if label == 'I-Nets' else {}
        curve(ours, {madds_of(results.preset, size): sample for size, sample in points.items()}, label, **style)
    name_missing(ours, titles(COLUMNS_2, results.sizes), curves)
    _name_sizes(ours, results, curves)
    ours.set_title('measured', fontsize=9)
    legend_below(ours)
    _published_curves(theirs)
    legend_below(theirs)
    market.draw(others, PAPER_GROUND)
    _log_costs(others, [20, 50, 100, 200, 500, 1000, 2000, 5000])
    as_published(others, 'RS-Nets of the paper and networks of others on ImageNet')
    for axes in panels.values():
        axes.set(xlabel='million multiply-adds of a picture', ylabel='top-1, %')
        axes.grid(alpha=0.3)
    caption(figure, results, 'Accuracy against multiply-adds: one network at several resolutions')
    return figure


def _name_sizes(axes: Axes, results: Results, curves: Dict[str, Curve]) -> None:
    """The size in pixels above the highest point of each."""
    axes.margins(y=0.12)
    for size in results.sizes:
        heights = [points[size].mean + (points[size].std if len(points[size].values) > 1 else 0.)
                   for points in curves.values() if size in points]
        if heights:
            axes.annotate(f'{size} px', (madds_of(results.preset, size), max(heights)), (0, 7), ha='center',
                          textcoords='offset points', fontsize=8)


def _published_curves(axes: Axes) -> None:
    for network, (name, colour) in _NETWORKS.items():
        x = published.MADDS[network]
        for what, words, style in (('rs_net', 'RS-Net', 'o-'), ('individual', 'I-Nets', 's--')):
            axes.plot(x, published.TOP1[network][what], style, color=colour, markersize=4, linewidth=1.3,
                      markerfacecolor=colour if what == 'rs_net' else 'white', label=f'{name}, {words}')
    for method, (marker, colour) in _SLIMMABLE.items():
        name = method if 'MobileNetV2' in method else f'MobileNetV2, {method}'
        axes.plot(*zip(*published.TABLE_4[method]), marker, color=colour, markersize=8, label=name)
    _log_costs(axes, [50, 100, 200, 500, 1000, 2000, 4000])
    as_published(axes, 'the paper on ImageNet, 224 to 96 px; slimmable: its Table 4')


def _log_costs(axes: Axes, ticks: Sequence[int]) -> None:
    axes.set_xscale('log')
    axes.set_xticks(ticks, map(str, ticks))
    axes.minorticks_off()


def draw_figure_4(results: Results) -> Figure:
    """Shared against private BatchNorms: ours, and the paper's."""
    figure = Figure(figsize=(10.5, 4.8), layout='constrained')
    ours, theirs = figure.subplots(1, 2)
    curves = figure_4(results)
    for label, points in curves.items():
        style = dict(linestyle='--', marker='s') if label == 'I-Nets' else {}
        curve(ours, points, label, **style)
    name_missing(ours, titles(COLUMNS_4, results.sizes), curves)
    sizes_axis(ours, results.sizes)
    ours.set_title('measured', fontsize=9)
    names = {'individual': 'I-Nets', 'shared_bn': 'parallel, shared BNs', 'parallel': 'parallel, private BNs',
             'rs_net': 'RS-Net'}
    for what, label in names.items():
        style = dict(linestyle='--', marker='s') if label == 'I-Nets' else {}
        values = zip(published.RESOLUTIONS, published.FIGURE_4[what])
        curve(theirs, {size: Sample({'paper': value}) for size, value in values}, label, **style)
    sizes_axis(theirs, published.RESOLUTIONS)
    as_published(theirs, 'MobileNetV2 on ImageNet (Figure 4, left)')
    for axes in (ours, theirs):
        axes.set_ylabel('top-1, %')
        legend_below(axes)
    caption(figure, results, 'BatchNorms shared by the resolutions, or private')
    return figure


def draw_dense(results: Results) -> Figure:
    """Every I-Net and the RS-Net at the dense sizes; below it what other ways to make the unseen sets change."""
    curves = dense(results)
    figure = Figure(figsize=(8.5, 7.6), layout='constrained')
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.4, 1))
    colours = by_resolution(results.sizes)
    for size in results.sizes:
        if f'I-{size}' in curves:
            curve(axes, curves[f'I-{size}'], f'I-{size}', color=colours[size], linestyle='--', linewidth=1.1,
                  markersize=3, marker='s')
    line = {**curves.get('RS-Net, params', {}), **curves.get('RS-Net', {})}
    if line:
        curve(axes, line, "RS-Net, own sets, else 'params'", color='#d62728', linewidth=2.)
    axes.set_ylabel('top-1, %')
    axes.legend(fontsize=7.5, loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)
    _other_sets(below, curves)
    every = sorted({*results.preset.dense, *results.sizes})
    for panel in (axes, below):
        for size in results.sizes:
            panel.axvline(size, color='#d62728', linewidth=0.7, alpha=0.4)
        sizes_axis(panel, every)
    axes.set_xlabel('')
    below.tick_params(axis='x', rotation=90, labelsize=8)
    caption(figure, results, 'Sizes between and beyond the trained ones (vertical lines)')
    return figure


def _other_sets(axes: Axes, curves: Dict[str, Curve]) -> None:
    base = curves.get('RS-Net, params', {})
    for sets, (marker, colour) in zip(INTERPOLATIONS[1:], (('^', '#1f77b4'), ('v', '#e69f00'), ('*', '#2ca02c'))):
        points = {x: sample.mean - base[x].mean for x, sample in curves.get(f'RS-Net, {sets}', {}).items() if x in base}
        axes.plot(list(points), list(points.values()), marker, color=colour, markersize=6, label=f"'{sets}'")
    axes.axhline(0, color='#d62728', linewidth=1.4, label="'params'")
    axes.margins(y=0.2)
    axes.set_ylabel("RS-Net at unseen sizes:\ntop-1 against 'params', points", fontsize=8)
    axes.legend(fontsize=7.5, loc='center left', bbox_to_anchor=(1.01, 0.5), frameon=False)


def draw_ladder(results: Results) -> Figure:
    """From ordinary weights: top-1 at each size after each step."""
    figure = Figure(figsize=(7, 4.8), layout='constrained')
    axes = figure.subplots()
    styles = dict(zip(LADDER.values(), (('#444444', 's--'), ('#56b4e9', '^-'), ('#1f77b4', 'v-'), ('#e69f00', 'o-'),
                                        ('#d62728', 'o-'))))
    for words, points in ladder(results).items():
        colour, style = styles[words]
        curve(axes, points, words, color=colour, marker=style[0], linestyle=style[1:])
    sizes_axis(axes, results.sizes)
    axes.set_ylabel('top-1, %')
    legend_below(axes)
    caption(figure, results, 'From ordinary weights: what minutes buy')
    return figure
