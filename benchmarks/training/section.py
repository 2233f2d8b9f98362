"""The generated part of docs/train.md about the cost of a step."""
from typing import Callable, Dict, List, Tuple

from benchmarks.markdown import NOT_MEASURED, table
from benchmarks.training.results import QUANTITIES, Row, by_count, growing, read

__all__ = ['SECTIONS', 'gradients_section', 'training_section']

_GOALS = (
    ('time of the step / of five steps of stock networks', 0, 'at most 1.00'),
    ("time of the paper's step / of the step", 1, 'at least 2; rs_mobilenetv2 1.7'),
    ('peak of tensors, lean / stock step at 224 px', 4, 'at most 1.1'),
)
_GRADIENTS = ('weight gradients, product everywhere', 'weight gradients, by the rule', 'weight gradients, best of both',
              'input gradients, depthwise with a stride', 'step')


def training_section() -> str:
    """The goals at five resolutions, growth with their number, and the allocator."""
    rows = read('training_cost')
    if not rows:
        return NOT_MEASURED
    environments = sorted({_environment(row) for row in rows})
    return '\n\n'.join([
        table(['five resolutions, 224 to 96 px', 'goal', 'model', 'batch', 'measured'], _goals()),
        table(['by the number of resolutions', 'of', 'batch', *(f'S = {count}' for count in range(1, 6))], _growth()),
        _allocator(rows),
        'Both sides of a ratio have the same precision and memory format, but for the paper\'s step (float32, NCHW). '
        f'Medians over the rounds of a run, in which the sides take turns; {"; ".join(environments)}.',
    ])


def _environment(row: Row) -> str:
    return f"{row['device']}, {row['dtype']}, {row['threads']} threads, torch {row['torch']}, timm {row['timm']}"


def _goals() -> List[List[str]]:
    lines = []
    for label, index, goal in _GOALS:
        quantity = QUANTITIES[index]
        for (name, batch), points in sorted(by_count(quantity).items()):
            if 5 in points:
                lines.append([label, goal, f'`{name}`', str(batch), f'{points[5]:.{quantity.digits}f}'])
    best = max((points[5] for points in by_count(QUANTITIES[2]).values() if 5 in points), default=None)
    lines.append(['pictures per second / those of five separate loaders', 'at least 3', 'best mode', '32',
                  NOT_MEASURED if best is None else f'{best:.2f}'])
    return lines


def _growth() -> List[List[str]]:
    lines = []
    for quantity in QUANTITIES:
        for (name, batch), points in sorted(growing(by_count(quantity)).items()):
            cells = [f'{points[s]:.{quantity.digits}f}' if s in points else '' for s in range(1, 6)]
            lines.append([quantity.label, f'`{name}`' if name.startswith('rs_') else name, str(batch), *cells])
    return lines


def _allocator(rows: List[Row]) -> str:
    measured: Dict[Tuple[str, str], Dict[str, float]] = {}
    for row in rows:
        if row['question'].startswith('allocator'):
            kind = 'resident' if row['question'].endswith('resident') else 'time'
            measured.setdefault((row['model'], row['batch']), {})[kind] = float(row['ratio'])
    lines = [[f'`{name}`', batch, f"{ratios['time']:.2f}", f"{ratios['resident']:.2f}"]
             for (name, batch), ratios in sorted(measured.items())]
    return table(['the allocator keeps freed memory / gives it back', 'batch', 'time', 'resident memory'], lines)


def gradients_section() -> str:
    """Our gradients against torch's, on a CPU."""
    rows = read('cpu_gradients')
    if not rows:
        return NOT_MEASURED
    cells: Dict[Tuple[str, ...], Dict[str, str]] = {}
    for row in rows:
        key = tuple(row[column] for column in ('model', 'sizes', 'batch', 'dtype'))
        cells.setdefault(key, {})[row['question']] = f"{float(row['ratio']):.2f}"
    lines = [[f'`{name}`', f"{sizes.split()[0]} to {sizes.split()[-1]}", batch, dtype,
              *(found.get(question, '') for question in _GRADIENTS)]
             for (name, sizes, batch, dtype), found in sorted(cells.items())]
    environments = sorted({f"{row['device']}, matrix units: {row['matrix_units']}, {row['threads']} threads, torch "
                           f"{row['torch']}" for row in rows})
    return '\n\n'.join([
        table(['time / that of torch', 'px', 'batch', 'dtype', *_GRADIENTS], lines),
        f'Sums over the layers; the whole step is the median of interleaved rounds. {"; ".join(environments)}.',
    ])


SECTIONS: Dict[str, Callable[[], str]] = {'training': training_section, 'gradients': gradients_section}
