"""The generated tables about the runtime: latency, price, memory, agreement; load curve; cascade."""
import math
from typing import Callable, Dict, Iterable, Iterator, List, Optional, Sequence, Tuple

from benchmarks.runtime.figures import madds_of_model
from benchmarks.store import NOT_MEASURED, Row, markdown, read, section

_EAGER = 'timm eager'


def _distinct(rows: Iterable[Row], *columns: str) -> List[Tuple[str, ...]]:
    return list(dict.fromkeys(tuple(row[column] for column in columns) for row in rows))


def _groups(rows: Sequence[Row], *columns: str) -> Iterator[Tuple[Tuple[str, ...], List[Row]]]:
    """The rows that have the same values in `columns`, in order of first appearance."""
    for values in _distinct(rows, *columns):
        yield values, [row for row in rows if tuple(row[column] for column in columns) == values]


def _environment(row: Row) -> str:
    return (f"{row['device']}, {row['threads']} threads, openvino {row['openvino']}, onnxruntime {row['onnxruntime']}, "
            f"torch {row['torch']}, timm {row['timm']}")


@section('runtime_latency', question='latency')
def latency_section(rows: Sequence[Row]) -> str:
    """A table for each network: median ms at each resolution, and how many times as fast as timm."""
    parts = []
    for (model, weights), own in _groups(rows, 'model', 'weights'):
        sizes = [size for (size,) in _distinct(own, 'resolution')]
        header = ['', *(f'{size} px' for size in sizes)]
        parts += [f'`{model}` ({weights} weights), median ms of one picture, and in brackets how many times as fast as '
                  'stock timm:', markdown(header, _latency_lines(own, sizes))]
    parts.append(f'Batch 1, all in turns in one run; {_environment(rows[0])}.')
    return '\n\n'.join(parts)


@section('runtime_latency', question='latency', part='network')
def summary_section(rows: Sequence[Row]) -> str:
    """For README.md: the network alone, as an engine's user meets it, beside stock timm."""
    sizes = sorted({int(row['resolution']) for row in rows}, reverse=True)
    lines = []
    for (model, engine, precision), own in _groups(rows, 'model', 'engine', 'precision'):
        if engine == 'torch':
            continue
        found = {int(row['resolution']): row for row in own}
        lines.append([f'`{model}`', f'{engine} {precision}', *(_cell(found.get(size), engine) for size in sizes)])
    header = ['network', 'engine', *(f'{size} px' for size in sizes)]
    return markdown(header, lines) + (
        '\n\nMedian ms of one picture, preprocessing apart, and in brackets how many times as fast as the same network '
        f'of stock timm in eager mode at the same size, timed in turns in one run; {_environment(rows[0])}.')


def _latency_lines(rows: Sequence[Row], sizes: Sequence[str]) -> List[List[str]]:
    lines = []
    names = dict(network='', preprocessing=', preprocessing alone', total=', preprocessing included')
    for part, name in names.items():
        for (engine, precision, _), own in _groups(rows, 'engine', 'precision', 'part'):
            found = {row['resolution']: row for row in own if row['part'] == part}
            if found:
                cells = [_cell(found.get(size), engine) for size in sizes]
                lines.append([f'{engine} {precision}'.strip() + name, *cells])
    return lines


def _cell(row: Optional[Row], engine: str) -> str:
    if row is None:
        return NOT_MEASURED
    speed = '' if engine == _EAGER else f" ({float(row['ratio']):.1f})"
    return f"{float(row['p50_ms']):.2f}{speed}"


@section('runtime_latency', question='latency', part='network')
def scaling_section(rows: Sequence[Row]) -> str:
    """Time saved against multiply-adds saved: latency(r) / latency(largest) over MAdds(r) / MAdds(largest)."""
    sizes = sorted({int(row['resolution']) for row in rows}, reverse=True)
    lines = []
    for (model, engine, precision), own in _groups(rows, 'model', 'engine', 'precision'):
        times = {int(row['resolution']): float(row['p50_ms']) for row in own}
        cells = [_scaling(model, times, size, sizes[0]) for size in sizes[1:]]
        lines.append([f'`{model}`', f'{engine} {precision}', *cells])
    return markdown(['network', 'engine', *(f'{size} px' for size in sizes[1:])], lines) + (
        f'\n\nlatency(r) / latency({sizes[0]}) divided by MAdds(r) / MAdds({sizes[0]}): 1 is proportional.')


def _scaling(model: str, times: Dict[int, float], size: int, largest: int) -> str:
    if not {size, largest} <= set(times):
        return NOT_MEASURED
    cost = madds_of_model(model, size) / madds_of_model(model, largest)
    return f'{times[size] / times[largest] / cost:.2f}'


@section('runtime_latency', question='price')
def price_section(rows: Sequence[Row]) -> str:
    """What being switchable costs in the same engine, what one graph costs, and the switch."""
    sizes = sorted({int(row['resolution']) for row in rows}, reverse=True)
    lines = []
    for part, words in (('specialised', 'session / plain network'), ('one graph', "memory='shared' / session")):
        for (model, engine, precision), own in _groups(rows, 'model', 'engine', 'precision'):
            ratios = {int(row['resolution']): float(row['ratio']) for row in own if row['part'] == part}
            cells = [f'{ratios[size]:.3f}' if size in ratios else NOT_MEASURED for size in sizes]
            lines.append([words, f'`{model}`', f'{engine} {precision}', *cells])
    header = ['ratio of times', 'network', 'engine', *(f'{size} px' for size in sizes)]
    return '\n\n'.join([markdown(header, lines), *_switch(), f'Medians of turns in one run; {_environment(rows[0])}.'])


def _switch() -> List[str]:
    rows = read('runtime_latency', question='switch')
    lines = []
    for (model, engine, precision), own in _groups(rows, 'model', 'engine', 'precision'):
        value = {(row['part'], row['resolution']): float(row['value']) for row in own}
        sizes = [size for (size,) in _distinct(own, 'resolution') if size]
        lines.append([f'`{model}`', f'{engine} {precision}',
                      *(f'{value[part, ""]:.1f} us' for part in ('set_resolution', 'switch and dispatch')),
                      *(', '.join(f'{value[part, size]:.0f} us at {size} px' for size in sizes)
                        for part in ('first call', 'first call, engine alone'))])
    header = ['network', 'engine', '`set_resolution`', 'with all that a session does around a call',
              'first call after a switch takes longer by', 'the same without a session (cold caches)']
    return [markdown(header, lines)] if lines else []


@section('runtime_latency', question='memory')
def memory_section(rows: Sequence[Row]) -> str:
    """Resident memory of processes that serve all five resolutions."""
    names = {'separate': 'five separate networks', 'session': 'session', 'shared': "session, memory='shared'"}
    lines = []
    for (model, engine, precision), own in _groups(rows, 'model', 'engine', 'precision'):
        found = {row['part']: row for row in own}
        baseline = min(float(row['baseline']) for row in own)
        cells = [f"{float(found[part]['value']):.0f} ({float(found[part]['ratio']):.2f})" if part in found else ''
                 for part in names]
        lines.append([f'`{model}`', f'{engine} {precision}', f'{baseline:.0f}', *cells])
    return markdown(['network', 'engine', 'imports alone', *names.values()], lines) + (
        '\n\nResident MiB of a fresh process after each resolution has answered; in brackets what is there beyond the '
        'imports, in proportion to five separate networks.')


@section('runtime_latency', question='agreement')
def agreement_section(rows: Sequence[Row]) -> str:
    """Top-1 agreement with torch in float32, and top-1."""
    parts = []
    for (model, weights), own in _groups(rows, 'model', 'weights'):
        sizes = [size for (size,) in _distinct(own, 'resolution')]
        exact = {row['resolution']: float(row['top1']) for row in own if row['engine'] == _EAGER}
        lines = []
        for (engine, precision), same in _groups(own, 'engine', 'precision'):
            found = {row['resolution']: row for row in same}
            cells = [_agreement(found[size], None if engine == _EAGER else exact[size]) for size in sizes]
            lines.append([f'{engine} {precision}', *cells])
        parts += [f"`{model}` ({weights}), {own[0]['calls']} pictures: agreement with torch float32 on the first class "
                  'in percent; in brackets top-1, and what it gains or loses against torch float32:',
                  markdown(['', *(f'{size} px' for size in sizes)], lines)]
    return '\n\n'.join([*parts, f'{_environment(rows[0])}.'])


def _agreement(row: Row, exact: Optional[float]) -> str:
    top1 = float(row['top1'])
    cost = '' if exact is None else f', {round(top1 - exact, 1) + 0.:+.1f}'
    return f"{float(row['value']):.1f} ({top1:.1f}{cost})"


@section('load_curve', second='all')
def load_section(rows: Sequence[Row]) -> str:
    """Totals of the load curve for each policy."""
    lines = []
    for row in rows:
        count = int(row['arrivals'])
        lines.append([row['policy'], row['arrivals'], *(
            f'{100 * int(row[column]) / count:.1f} %' for column in ('in_time', 'late', 'right', 'right_in_time')),
            f"{float(row['p95_ms']):.0f} ms", f"{float(row['mean_resolution']):.0f} px", row['switches']])
    header = ['policy', 'requests', 'in time', 'late', 'right', 'right and in time', 'p95', 'mean resolution',
              'switches']
    row = rows[0]
    return markdown(header, lines) + (
        f"\n\n`{row['model']}` ({row['weights']}), {row['engine']} {row['precision']}, one worker; in time is within "
        f"{float(row['deadline_ms']):.0f} ms; the largest size carries {float(row['capacity']):.0f} requests a second; "
        f'{_environment(row)}.')


@section('serving', question='load')
def serving_section(rows: Sequence[Row]) -> str:
    """What became of requests over HTTP, for each load and policy."""
    row = rows[0]
    lines = [[f"{one['load']} times", one['policy'], one['requests'], *(
        f"{100 * int(one[column]) / int(one['requests']):.1f} %" for column in (
            'in_time', 'right_in_time', 'late', 'refused')),
        str(int(one['failed']) + int(one['silent'])), f"{float(one['p95_ms']):.0f} ms",
        f"{float(one['mean_resolution']):.0f} px"] for one in sorted(rows, key=lambda one: float(one['load']))]
    header = ['load', 'served at', 'requests', 'in time', 'right and in time', 'late', 'refused', 'without an answer',
              'p95', 'mean size']
    price = {one['policy']: one for one in read('serving', question='overhead')}
    (median, alone), (worked, needed) = ([float(price[name][column]) for name in ('HTTP', 'in process')]
                                         for column in ('p50_ms', 'core_ms'))
    return markdown(header, lines) + (
        f"\n\n`{row['model']}` ({row['weights']}), {row['engine']} {row['precision']}; the largest size carries "
        f"{float(row['capacity']):.0f} requests a second over HTTP, with the client on the same machine; in time is "
        f"within {float(row['deadline_ms']):.0f} ms; {_environment(row)}, fastapi {row['fastapi']}, uvicorn "
        f"{row['uvicorn']}; {row['note']}.\n\nHTTP's own price: a photograph of 100 kB takes {median:.2f} ms over HTTP "
        f"and {alone:.2f} ms in process (medians, one after the other, in turns), {median - alone:.2f} ms more; of a "
        f"core the server needs {worked:.2f} ms for it, and a session {needed:.2f} ms: {worked - needed:.2f} ms more.")


def _cascades(rows: Sequence[Row]) -> str:
    """All single sizes, ensembles and cascades that were compared."""
    lines = [[
        row['kind'] + (f", {row['combine']}" if row['combine'] else ''),
        row['resolutions'].replace(' ', ', '),
        f"{float(row['top1']):.2f}",
        f"{float(row['ms']):.2f}",
        f"{float(row['ms_in_batches']):.2f}",
        f"{float(row['mmadds']):.0f}",
        ', '.join(f'{100 * float(share):.0f}' for share in row['answered'].split()),
    ] for row in rows]
    row = rows[0]
    header = ['', 'resolutions', 'top-1, %', 'ms', 'ms in batches', 'million MAdds', 'answered at each, %']
    return markdown(header, lines) + _saving(rows) + (
        f"\n\n`{row['model']}` ({row['weights']}), {row['engine']} {row['precision']}, {row['pictures']} pictures that "
        f"the fit has not seen; per picture, preprocessing included; batches of {row['batch']}; {_environment(row)}.")


def _saving(rows: Sequence[Row]) -> str:
    """What the cascade costs that is the cheapest as good as the best size where it was fitted, if that is known."""
    known = [row for row in rows if row['top1_of_fit']]
    singles, cascades = ([row for row in known if row['kind'] == kind] for kind in ('single', 'cascade'))
    if not singles:
        return ''
    best = max(singles, key=lambda row: float(row['top1_of_fit']))
    as_good = [row for row in cascades if float(row['top1_of_fit']) >= float(best['top1_of_fit'])]
    if not as_good:
        return ''
    chosen = min(as_good, key=lambda row: float(row['ms_of_fit']))
    share, batched = (float(chosen[column]) / float(best[column]) for column in ('ms', 'ms_in_batches'))
    return (f"\n\nOn the half that was fitted on, {best['resolutions']} px is the best single size, and the cheapest "
            f"cascade that is as good there goes over {chosen['resolutions'].replace(' ', ', ')} px "
            f"({chosen['combine']}). On the other half it has {float(chosen['top1']):.1f} % where the single size has "
            f"{float(best['top1']):.1f} %, in {share:.2f} of its ms ({batched:.2f} in batches).")


cascade_section = section('cascade')(_cascades)
cascade_lite0_section = section('cascade_lite0')(_cascades)


@section('plan')
def plan_section(rows: Sequence[Row]) -> str:
    """The two searches, and what became of budgets that were chosen for."""
    parts = []
    for (model,), own in _groups(rows, 'model'):
        searches = {row['case']: row for row in own if row['part'] == 'search'}
        trials = [row for row in own if row['part'] == 'trial']
        whole = float(searches['exhaustive']['seconds']) if 'exhaustive' in searches else 0.
        lines = [[name, f"{float(row['seconds']):.0f} s",
                  f"{float(row['seconds']) / whole:.2f}" if whole else NOT_MEASURED,
                  row['answers'], row['points'], row['dropped']] for name, row in searches.items()]
        header = ['search', 'time of measuring', 'of the exhaustive', 'answers', 'measured to the end', 'stopped early']
        parts.append(markdown(header, lines))
        if trials:
            lost = [float(row['lost']) for row in trials]
            kept = sum(row['kept'] == 'True' for row in trials)
            budgets = [float(row['budget_ms']) for row in trials]
            parts.append(
                f'{len(trials)} budgets from {min(budgets):.2f} to {max(budgets):.2f} ms: what the plan chooses is at '
                f'most {max(lost):.2f} points less accurate than what the exhaustive search does, '
                f'{sum(lost) / len(lost):.2f} on average; its p95, measured afterwards, kept {kept} of the budgets.')
            share = float(searches['plan']['seconds']) / whole if whole and 'plan' in searches else math.inf
            reached = share <= 0.4 and max(lost) <= 1. and kept >= 0.95 * len(trials)
            parts.append('The goal, at most 0.4 of the time, 1 point lost and 19 of 20 budgets kept, is '
                         f'{"reached" if reached else "not reached"} in this run.')
        loads = [float(row['load']) for row in own]
        row = next(iter(searches.values()))
        parts.append(
            f"`{model}` at {row['sizes'].replace(' ', ', ')} px, all engines and precisions, {row['pictures']} "
            f'pictures of Imagenette; {_environment(row)}. Measured on a machine with other work to do (load '
            f'{min(loads):.1f} to {max(loads):.1f}): the milliseconds are of that load.')
    return '\n\n'.join(parts)


SECTIONS: Dict[str, Callable[[], str]] = {
    'runtime_summary': summary_section,
    'runtime_latency': latency_section,
    'runtime_scaling': scaling_section,
    'runtime_price': price_section,
    'runtime_memory': memory_section,
    'runtime_agreement': agreement_section,
    'load_curve': load_section,
    'serving': serving_section,
    'cascade': cascade_section,
    'cascade_lite0': cascade_lite0_section,
    'plan': plan_section,
}
