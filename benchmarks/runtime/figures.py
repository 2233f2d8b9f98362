"""The figures of the runtime, drawn from its tables of results."""
from functools import cache
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import timm
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

import rs_timm  # noqa: F401 (registers the models)
from benchmarks.environment import RESULTS
from benchmarks.runtime.networks import LITE0
from benchmarks.store import Row, by_columns, read, save_figure
from rs_timm.analysis import madds


def _numbers(rows: Sequence[Row], column: str) -> List[float]:
    return [float(row[column]) for row in rows]


def latency_figure(rows: Sequence[Row], madds: Callable[[str, int], float]) -> Figure:
    """Latency against multiply-adds, a panel for each network, a line for each engine and precision.

    Args:
        rows: of runtime_latency.csv.
        madds: (model, resolution) -> multiply-adds.
    """
    rows = by_columns(rows, question='latency', part='network')
    models = list(dict.fromkeys(row['model'] for row in rows))
    figure = Figure(figsize=(4.4 * len(models) + 2., 4.2), layout='constrained')
    for axis, model in zip(figure.subplots(1, len(models), squeeze=False)[0], models):
        cases = list(dict.fromkeys((row['engine'], row['precision']) for row in by_columns(rows, model=model)))
        for engine, precision in cases:
            line = by_columns(rows, model=model, engine=engine, precision=precision)
            x = [madds(model, int(row['resolution'])) / 1e6 for row in line]
            style = '--' if engine == 'timm eager' else '-'
            axis.plot(x, _numbers(line, 'p50_ms'), style, marker='.', label=f'{engine} {precision}')
        axis.set(xscale='log', yscale='log', xlabel='million multiply-adds', title=model)
        axis.set_ylabel('median latency, ms')
        _proportional(axis)
        _plain_ticks(axis.xaxis, axis.yaxis)
        axis.grid(alpha=0.3, which='both')
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc='outside right center', fontsize=8)
    _caption(figure, rows[0], 'one picture, network alone; 224 to 96 px')
    return figure


def _plain_ticks(*axes: Any) -> None:
    """1, 2, 5, 10, 20 ... on logarithmic axes, in place of powers of ten."""
    for axis in axes:
        axis.set_major_locator(LogLocator(subs=(1., 2., 5.)))
        axis.set_major_formatter(FuncFormatter(lambda value, position: f'{value:g}'))
        axis.set_minor_formatter(NullFormatter())


def _proportional(axis: Any) -> None:
    """A gray line of time proportional to multiply-adds, through the slowest point."""
    lines = axis.get_lines()
    x = [float(value) for value in lines[0].get_xdata()]
    top = max(float(max(line.get_ydata())) for line in lines)
    axis.plot(x, [top * value / max(x) for value in x], ':', color='gray', label='proportional to multiply-adds')


def load_figure(rows: Sequence[Row]) -> Figure:
    """Load, answers in time, resolution, and right answers in time over the time of the run."""
    policies = list(dict.fromkeys(row['policy'] for row in rows))
    parts = [row for row in rows if row['second'] != 'all']
    figure = Figure(figsize=(7, 8.5), layout='constrained')
    load, in_time, size, right = figure.subplots(4, 1, sharex=True)
    width = float(parts[1]['second']) - float(parts[0]['second'])
    first = by_columns(parts, policy=policies[0])
    edges = [*_numbers(first, 'second'), float(first[-1]['second']) + width]
    load.stairs([float(r['arrivals']) / width / float(r['capacity']) for r in first], edges, color='black')
    load.axhline(1., color='gray', linewidth=0.8)
    load.set(ylabel='requests, of what the\nlargest size can carry', ylim=(0, None))
    for policy, style in zip(policies, ('o-', 's-', '^--')):  # lines that lie upon another stay visible
        line = by_columns(parts, policy=policy)
        seconds = [float(row['second']) + width / 2 for row in line]
        for axis, column in ((in_time, 'in_time'), (right, 'right_in_time')):
            shares = [100. * float(row[column]) / max(1., float(row['arrivals'])) for row in line]
            axis.plot(seconds, shares, style, markersize=4, label=policy)
        size.plot(seconds, _numbers(line, 'mean_resolution'), style, markersize=4, label=policy)
    in_time.set(ylabel='answered in time, %', ylim=(-3, 103))
    size.set(ylabel='mean resolution, px')
    right.set(ylabel='right and in time, %', ylim=(-3, 103), xlabel='second at which the request came')
    for axis in figure.axes:
        axis.grid(alpha=0.3)
    in_time.legend(fontsize=8, loc='center right')
    _caption(figure, rows[0], f"in time: within {float(rows[0]['deadline_ms']):.0f} ms")
    return figure


def cascade_figure(rows: Sequence[Row]) -> Figure:
    """Top-1 against measured time and against multiply-adds: single sizes, cascades, the ensemble."""
    figure = Figure(figsize=(10, 4.4), layout='constrained')
    kinds: Dict[str, List[Row]] = {'one size': by_columns(rows, kind='single')}
    for combine in dict.fromkeys(row['combine'] for row in by_columns(rows, kind='cascade')):
        name = {'last': 'cascade', 'alpha': 'cascade, logits weighted by alpha', 'mean': 'cascade, mean of the logits'}
        kinds[name[combine]] = by_columns(rows, kind='cascade', combine=combine)
    for row in by_columns(rows, kind='ensemble'):
        kinds[f"ensemble of {len(row['resolutions'].split())} sizes, {row['combine']}"] = [row]
    scales = dict(ms='measured ms a picture, one by one, preprocessing included', mmadds='mean million multiply-adds')
    for axis, (column, label) in zip(figure.subplots(1, 2, sharey=True), scales.items()):
        for (kind, line), marker in zip(kinds.items(), 'os^D*v'):
            ordered = sorted(line, key=lambda row: float(row[column]))
            axis.plot(_numbers(ordered, column), _numbers(ordered, 'top1'), marker=marker, label=kind, linewidth=1)
        for row in kinds['one size']:
            axis.annotate(row['resolutions'], (float(row[column]), float(row['top1'])), (3, -11),
                          textcoords='offset points', fontsize=7)
        axis.set(xscale='log', xlabel=label)
        _plain_ticks(axis.xaxis)
        axis.grid(alpha=0.3, which='both')
    figure.axes[0].set_ylabel('top-1, %')
    figure.axes[0].legend(fontsize=7, loc='lower right')
    _caption(figure, rows[0], f"{rows[0]['pictures']} pictures that the fit has not seen")
    return figure


def _caption(figure: Figure, row: Row, text: str) -> None:
    where = ', '.join(filter(None, (row.get('weights', ''), row['device'], f"{row['threads']} threads")))
    engine = f"{row['model']}, {row['engine']} {row['precision']}, " if row.get('question') is None else ''
    figure.suptitle(f'{engine}{text}\n{where}', fontsize=9)


@cache
def madds_of_model(model: str, resolution: int) -> int:
    """Multiply-adds of a registered network, or of 'lite0', with 1000 classes."""
    name = 'tf_efficientnet_lite0' if model == LITE0 else model
    return madds(timm.create_model(name, device='meta', num_classes=1000), resolution)


FIGURES: Dict[str, Tuple[Dict[str, str], Callable[[List[Row]], Figure]]] = {  # needed rows, how to draw them
    'runtime_latency': (dict(question='latency'), lambda rows: latency_figure(rows, madds_of_model)),
    'load_curve': ({}, load_figure),
    'cascade': ({}, cascade_figure),
    'cascade_lite0': ({}, cascade_figure),
}


def write_figures(results: Path = RESULTS, only: Optional[str] = None) -> List[str]:
    """Draw what there are results of, as PNG and SVG; returns the names."""
    drawn = []
    for name, (needed, draw) in FIGURES.items():
        rows = read(results / f'{name}.csv', **needed)
        if rows and only in (None, name):
            save_figure(draw(rows), results / name)
            drawn.append(name)
    return drawn
