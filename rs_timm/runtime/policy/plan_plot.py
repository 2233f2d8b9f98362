"""A plan as a picture: accuracy against milliseconds, the front drawn in. Needs matplotlib (`rs_timm[plot]`)."""
import math
from os import PathLike
from typing import Any, Dict, List, Optional, Sequence, Union

from rs_timm.atomic import replacing

from .plan import Plan, PlanPoint

__all__ = ['plot_plan']

_COLOURS = ('#0072b2', '#d55e00', '#009e73', '#cc79a7', '#e69f00', '#56b4e9')  # told apart by most eyes
_MARKERS = {'float32': 'o', 'bfloat16': 's', 'int8': '^'}
_AXES = {'p95': 'p95 of a call, ms', 'mean': 'mean of calls, ms'}
_MEASURES = {'top1': 'top-1, %', 'agreement': 'agreement with the reference, %'}


def plot_plan(
        plan: Plan,
        path: Union[str, 'PathLike[str]'],
        chosen: Optional[PlanPoint] = None,
        ms: Optional[float] = None,
) -> None:
    """Draw accuracy against time: the front as a line with names, other points, and in grey those that were dropped.

    Args:
        plan: the plan. With cascades there are two panels: by p95, and by mean.
        path: of the picture; its ending says the format.
        chosen: a point to ring.
        ms: a budget to draw in.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a plot needs matplotlib: pip install 'rs_timm[plot]'.") from error

    panels = ('p95', 'mean') if any(point.cascade for point in plan.points) else ('p95',)
    figure = Figure(figsize=(8.5 * len(panels), 5.6), layout='constrained')
    FigureCanvasAgg(figure)
    axes: Sequence[Any] = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    kinds = sorted({(point.model, point.engine) for point in (*plan.points, *plan.dropped)})
    colours = {kind: _COLOURS[index % len(_COLOURS)] for index, kind in enumerate(kinds)}
    for axis, by in zip(axes, panels):
        _panel(axis, plan, by, colours)
        if ms is not None and by == 'p95':
            axis.axvline(ms, color='0.4', linewidth=1, linestyle=':')
            axis.annotate(f'{ms:g} ms', (ms, 1), xycoords=('data', 'axes fraction'), xytext=(3, -11),
                          textcoords='offset points', fontsize=8, color='0.3')
        if chosen is not None:
            axis.plot([chosen.milliseconds(by)], [chosen.accuracy], 'o', markersize=15, markerfacecolor='none',
                      color='black')
    axes[0].set_ylabel(_MEASURES[plan.measure])
    _legend(axes[0], plan, colours)
    figure.suptitle(f'{", ".join(plan.models)}: {plan.pictures} pictures, {plan.machine.get("cpu", "")}', fontsize=10)
    with replacing(path) as new:
        figure.savefig(new, dpi=130)


def _panel(axis: Any, plan: Plan, by: str, colours: Dict[Any, str]) -> None:
    from matplotlib.ticker import LogLocator

    front = plan.front(by)
    axis.plot([point.milliseconds(by) for point in front], [point.accuracy for point in front], color='0.25',
              linewidth=1.2, zorder=1)
    for gone in plan.dropped:
        axis.plot([gone.p95_ms], [gone.accuracy], _MARKERS[gone.precision], color='0.8', markersize=5, zorder=0)
    for point in plan.points:
        colour = colours[point.model, point.engine]
        marker = 'D' if point.cascade else _MARKERS[point.precision]
        axis.plot([point.milliseconds(by)], [point.accuracy], marker, markersize=7, color=colour, zorder=3,
                  markerfacecolor=colour if point in front else 'white')
    axis.set_xscale('log')
    axis.set_xlabel(_AXES[by])
    axis.xaxis.set_major_formatter('{x:g}')
    axis.xaxis.set_minor_locator(LogLocator(subs=(1.5, 2, 3, 5, 7)))
    axis.xaxis.set_minor_formatter('{x:g}')
    axis.tick_params(axis='x', which='both', labelsize=8)
    axis.grid(alpha=0.25, which='both')
    axis.margins(x=0.15, y=0.12)
    _labels(axis, plan, front, by)


def _labels(axis: Any, plan: Plan, front: Sequence[PlanPoint], by: str) -> None:
    """Names above and to the left of the line, where no points are; each above the one before."""
    low, high = min(point.accuracy for point in plan.points), max(point.accuracy for point in plan.points)
    line = 0.038 * max(1., high - low)  # the height of a line of text in accuracy, about
    height = -math.inf
    for point in front:
        height = max(point.accuracy + 0.4 * line, height + line)
        shifted = height > point.accuracy + line
        axis.annotate(
            _name(plan, point), (point.milliseconds(by), point.accuracy), xycoords='data', fontsize=7, color='0.15',
            xytext=(point.milliseconds(by) * 0.94, height), textcoords='data', ha='right', va='bottom', zorder=4,
            arrowprops=dict(arrowstyle='-', color='0.6', linewidth=0.6, shrinkB=3) if shifted else None)
    axis.set_ylim(top=max(axis.get_ylim()[1], height + 2 * line))


def _name(plan: Plan, point: PlanPoint) -> str:
    parts: List[str] = [point.model] if len(plan.models) > 1 else []
    return ' '.join([*parts, point.precision, point.sizes])


def _legend(axis: Any, plan: Plan, colours: Dict[Any, str]) -> None:
    from matplotlib.lines import Line2D

    several = len(plan.models) > 1
    handles = [Line2D([], [], linestyle='none', marker='o', color=colour,
                      label=f'{model} {engine}' if several else engine) for (model, engine), colour in colours.items()]
    used = {point.precision for point in (*plan.points, *plan.dropped)}
    handles += [Line2D([], [], linestyle='none', marker=marker, color='0.3', label=precision)
                for precision, marker in _MARKERS.items() if precision in used]
    if any(point.cascade for point in plan.points):
        handles.append(Line2D([], [], linestyle='none', marker='D', color='0.3', label='cascade'))
    handles.append(Line2D([], [], color='0.25', label='front'))
    if plan.dropped:
        handles.append(Line2D([], [], linestyle='none', marker='o', color='0.8', label='stopped early'))
    axis.legend(handles=handles, fontsize=8, loc='lower right')
