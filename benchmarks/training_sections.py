"""The generated tables about training (cost of a step, gradients on CPUs, quantised steps and files), and the plot."""
from typing import Any, Callable, Dict, List, NamedTuple, Sequence, Tuple

from matplotlib.figure import Figure

from benchmarks import environment
from benchmarks.store import NOT_MEASURED, Row, markdown, read, save_figure, section

UNIT = ('question', 'model', 'sizes', 'batch', 'dtype')  # of training_cost.csv and cpu_gradients.csv
Points = Dict[int, float]  # number of resolutions S -> value


class Quantity(NamedTuple):
    """A figure made of the ratio of a row."""

    label: str
    question: str
    file: str = 'training_cost'
    value: Callable[[float], float] = float
    digits: int = 2

    def points(self) -> Dict[Tuple[str, int], Points]:
        """(Model or pipeline, batch) -> the values at each S that was measured."""
        found: Dict[Tuple[str, int], Points] = {}
        for row in read(self.file, question=self.question):
            own = found.setdefault((row['pipeline'] if 'pipeline' in row else row['model'], int(row['batch'])), {})
            own[len(row['sizes'].split())] = self.value(float(row['ratio']))
        return found

    def growth(self) -> Dict[Tuple[str, int], Points]:
        """The same of what was measured at several S: one alone says nothing about growth."""
        return {key: points for key, points in self.points().items() if len(points) > 1}


QUANTITIES = (
    Quantity('time of the step / of S steps of stock networks', 'separate', digits=3),
    Quantity("time of the paper's step / of the step", 'paper', value=lambda ratio: 1 / ratio),
    Quantity('pictures per second / those of S separate loaders', 'against separate loaders', 'data_pipeline'),
    Quantity('peak of tensors / stock step at the largest size', 'memory, tensors'),
    Quantity('the same, lean', 'memory, tensors, lean'),
    Quantity('resident memory / stock step at the largest size', 'memory, resident'),
    Quantity('the same, lean', 'memory, resident, lean'),
)
_SEPARATE, _PAPER, _LOADERS, _TENSORS, _LEAN = QUANTITIES[:5]
_GOALS = (
    ('time of the step / of five steps of stock networks', _SEPARATE, 'at most 1.00'),
    ("time of the paper's step / of the step", _PAPER, 'at least 2; rs_mobilenetv2 1.7'),
    ('peak of tensors, lean / stock step at 224 px', _LEAN, 'at most 1.1'),
)
_GRADIENTS = ('weight gradients, product everywhere', 'weight gradients, by the rule', 'weight gradients, best of both',
              'input gradients, depthwise with a stride', 'step')


@section('training_cost')
def training_section(rows: Sequence[Row]) -> str:
    """The goals at five resolutions, growth with their number, and the allocator."""
    places = sorted({f"{row['device']}, {row['dtype']}, {row['threads']} threads, torch {row['torch']}, timm "
                     f"{row['timm']}" for row in rows})
    goals = [[label, goal, f'`{name}`', str(batch), f'{points[5]:.{quantity.digits}f}']
             for label, quantity, goal in _GOALS for (name, batch), points in sorted(quantity.points().items())
             if 5 in points]
    best = max((points[5] for points in _LOADERS.points().values() if 5 in points), default=None)
    goals.append(['pictures per second / those of five separate loaders', 'at least 3', 'best mode', '32',
                  NOT_MEASURED if best is None else f'{best:.2f}'])
    growth = [[quantity.label, f'`{name}`' if name.startswith('rs_') else name, str(batch),
               *(f'{points[s]:.{quantity.digits}f}' if s in points else '' for s in range(1, 6))]
              for quantity in QUANTITIES for (name, batch), points in sorted(quantity.growth().items())]
    kept: Dict[Tuple[str, str], Dict[str, str]] = {}
    for row in rows:
        if row['question'].startswith('allocator'):
            kept.setdefault((row['model'], row['batch']), {})[row['question']] = f"{float(row['ratio']):.2f}"
    allocator = [[f'`{name}`', batch, ratios['allocator'], ratios['allocator, resident']]
                 for (name, batch), ratios in sorted(kept.items())]
    return '\n\n'.join([
        markdown(['five resolutions, 224 to 96 px', 'goal', 'model', 'batch', 'measured'], goals),
        markdown(['by the number of resolutions', 'of', 'batch', *(f'S = {count}' for count in range(1, 6))], growth),
        markdown(['the allocator keeps freed memory / gives it back', 'batch', 'time', 'resident memory'], allocator),
        'Both sides of a ratio have the same precision and memory format, but for the paper\'s step (float32, NCHW). '
        f'Medians over the rounds of a run, in which the sides take turns; {"; ".join(places)}.',
    ])


@section('cpu_gradients')
def gradients_section(rows: Sequence[Row]) -> str:
    """Our gradients against torch's, on a CPU."""
    cells: Dict[Tuple[str, ...], Dict[str, str]] = {}
    for row in rows:
        key = tuple(row[column] for column in ('model', 'sizes', 'batch', 'dtype'))
        cells.setdefault(key, {})[row['question']] = f"{float(row['ratio']):.2f}"
    lines = [[f'`{name}`', f"{sizes.split()[0]} to {sizes.split()[-1]}", batch, dtype,
              *(found.get(question, '') for question in _GRADIENTS)]
             for (name, sizes, batch, dtype), found in sorted(cells.items())]
    places = sorted({f"{row['device']}, matrix units: {row['matrix_units']}, {row['threads']} threads, torch "
                     f"{row['torch']}" for row in rows})
    return (f"{markdown(['time / that of torch', 'px', 'batch', 'dtype', *_GRADIENTS], lines)}\n\nSums over the "
            f'layers; the whole step is the median of interleaved rounds. {"; ".join(places)}.')


@section('quantization_cost')
def quantised_step_section(rows: Sequence[Row]) -> str:
    """Seconds of a step, quantised and not, and their ratio."""
    lines = [[f"`{row['model']}`", row['against'], row['dtype'],
              *(f'{float(row[column]):.2f}' for column in ('quantised_s', 'full_s', 'ratio'))] for row in rows]
    first = rows[0]
    return (f"{markdown(['network', 'against', 'dtype', 'step, s', 'full precision, s', 'ratio'], lines)}\n\nBatch "
            f"{first['batch']} at {first['sizes'].replace(' ', ', ')} px, medians of {first['rounds']} rounds; "
            f"{first['device']}, {first['threads']} threads, torch {first['torch']}, timm {first['timm']}.")


@section('quantization_size', head='int8')
def quantised_size_section(rows: Sequence[Row]) -> str:
    """Bytes of one switchable network and of separate ones, packed, with the classifier in int8."""
    lines = [[f"`{row['model']}`", row['classes'], f"{int(row['full_bytes']) / 1e6:.2f}",
              f"{int(row['packed_bytes']) / 1e6:.2f}", row['times_smaller'],
              f"{int(row['separate_packed_bytes']) / 1e6:.2f}", row['separate_over_switchable']] for row in rows]
    count = len(rows[0]['resolutions'].split(' '))
    return markdown(['network', 'classes', 'float32 file, MB', 'packed, MB', 'times smaller',
                     f'{count} separate packed networks, MB', 'times the switchable one'], lines)


SECTIONS: Dict[str, Callable[[], str]] = {
    'training': training_section,
    'gradients': gradients_section,
    'quantization_cost': quantised_step_section,
    'quantization_size': quantised_size_section,
}


def plot() -> List[str]:
    """Draw how the cost of training grows with the number of resolutions, if it was measured; returns the name."""
    if not read('training_cost'):
        return []
    figure = Figure(figsize=(9, 6.5), layout='constrained')
    axes = figure.subplots(2, 2)
    for panel, quantity in zip(axes.flat, (_SEPARATE, _PAPER, _LOADERS)):
        _draw(panel, quantity.label, {name: points for (name, _), points in quantity.growth().items()})
    lean = {f'{name}, lean': points for (name, _), points in _LEAN.growth().items()}
    _draw(axes.flat[3], _TENSORS.label, {**{name: points for (name, _), points in _TENSORS.growth().items()}, **lean})
    save_figure(figure, environment.RESULTS / 'training_cost')
    return ['training_cost']


def _draw(axes: Any, title: str, lines: Dict[str, Points]) -> None:
    axes.axhline(1., color='0.7', linewidth=1)
    colours: Dict[str, str] = {}
    for name, points in sorted(lines.items(), key=lambda line: (line[0].endswith(', lean'), line[0])):
        colour = colours.setdefault(name.removesuffix(', lean'), f'C{len(colours)}')
        style = '--' if name.endswith(', lean') else '-'
        axes.plot(*zip(*sorted(points.items())), marker='o', color=colour, linestyle=style, label=name)
    axes.set_title(title, fontsize=10)
    axes.set(xlabel='resolutions, S', xticks=range(1, 6))
    axes.set_ylim(bottom=0)
    if lines:
        axes.legend(fontsize=8, frameon=False, loc='lower right', ncol=2 if len(lines) > 3 else 1)  # below 1 is room
