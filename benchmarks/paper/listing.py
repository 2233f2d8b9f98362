"""Which runs were made, with what, and how long they took; and what minutes buy from ordinary weights."""
from typing import Dict, List, Sequence

from benchmarks.markdown import NOT_MEASURED, measured_or_note, table
from benchmarks.paper.aggregate import Results
from benchmarks.paper.curves import Curve
from benchmarks.runs import settings
from benchmarks.store import RUNS, Row

__all__ = ['LADDER', 'duration', 'ladder', 'ladder_table', 'runs_table']

LADDER = {
    'untouched': 'untouched',
    'recalibrated': 'statistics recalibrated, the old ones weighing most',
    'replaced': 'statistics replaced',
    'bn': 'BatchNorms trained (MRED)',
    'full': 'everything trained (MRED)',
}
_ENVIRONMENT = ('device', 'dtype', 'threads', 'python', 'torch', 'timm', 'rs_timm')


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(89.), duration(300.), duration(7500.)
    ('0 s', '89 s', '5.0 min', '2.1 h')
    """
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.1f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


def ladder(results: Results) -> Dict[str, Curve]:
    """Step -> top-1 at each size, as far as it was measured."""
    curves = {words: {size: results.sample(run, size) for size in results.sizes} for run, words in LADDER.items()}
    kept = {words: {size: sample for size, sample in curve.items() if sample} for words, curve in curves.items()}
    return {words: curve for words, curve in kept.items() if curve}


def ladder_table(results: Results) -> str:
    """Top-1 at each size after each step, and the wall time that the step took."""
    lines = []
    for run, words in LADDER.items():
        start = {size: results.sample('untouched', size) for size in results.sizes}
        own = {size: results.sample(run, size) for size in results.sizes}
        cells = [own[size].text() if run == 'untouched' else own[size].gain_text(start[size]) for size in results.sizes]
        seconds = results.run_sample(run, 'train_seconds')
        lines.append([words, *cells, duration(seconds.mean) if seconds else NOT_MEASURED])
    recipe = results.preset.recipe
    return (f'**Measured**: {results.preset.about}. Top-1 in percent, and in brackets the gain over the untouched '
            f'network. Training: {recipe.limit_batches} updates of {recipe.batch_size} pictures.\n\n'
            + measured_or_note(['', *(f'{size} px' for size in results.sizes), 'wall time'], lines))


def runs_table(results: Results) -> str:
    """The runs that were made: how each differs from the preset, epochs, wall time, commit, versions; then the rest."""
    made = {(row['run'], row['seed']): row for row in results.rows[RUNS]}
    environments = _environments(results.rows[RUNS])
    lines, waiting = [], []
    for name, run in results.runs.items():
        seeds = sorted({*map(str, run.seeds), *(seed for other, seed in made if other == name)}, key=int)
        lines += [_line(results, name, made[name, seed], environments) for seed in seeds if (name, seed) in made]
        waiting += [f'`{name}`' + f' seed {seed}' * (seed != '0') for seed in seeds if (name, seed) not in made]
    header = ['run', 'seed', 'edits', 'epochs', 'training', 'measuring', 'commit', 'on']
    common = settings(results.preset.recipe)
    parts = [f'Preset `{results.preset.name}`: {results.preset.about}. Network `{results.preset.model}`, recipe '
             f'`{results.preset.recipe_name}` with `{common}`; edits are what a run has instead.']
    parts += [table(header, lines)] if lines else []
    parts += [f'{mark}: {text}.' for text, mark in environments.items()]
    if waiting:
        parts.append(f'Planned and {NOT_MEASURED}: {", ".join(waiting)}.')
    if results.left_out:
        names = ', '.join(f"`{row['run']}` seed {row['seed']} (`{_edits(results, row)}`)" for row in results.left_out)
        parts.append(f'Left out of all tables, since the settings are not those planned: {names}.')
    return '\n\n'.join(parts)


def _environments(rows: Sequence[Row]) -> Dict[str, str]:
    """Device and versions in words -> a letter, in order of appearance."""
    texts = dict.fromkeys(map(_environment, rows))
    return {text: chr(ord('A') + i) for i, text in enumerate(texts)}


def _environment(row: Row) -> str:
    device, dtype, threads, python, *others = (row[name] for name in _ENVIRONMENT)
    versions = ', '.join(f'{name} {version}' for name, version in zip(_ENVIRONMENT[4:], others))
    return f'{device}, {dtype}, {threads} threads, Python {python}, {versions}'


def _line(results: Results, name: str, row: Row, environments: Dict[str, str]) -> List[str]:
    return [
        f'`{name}`',
        row['seed'],
        _edits(results, row),
        row['epochs'],
        duration(float(row['train_seconds'])),
        duration(float(row['measure_seconds'])),
        row['commit'],
        environments[_environment(row)],
    ]


def _edits(results: Results, row: Row) -> str:
    """What the settings of a run have that those of the preset's recipe lack; what only the latter have is default."""
    common, own = _pairs(settings(results.preset.recipe)), _pairs(row['settings'])
    changed = [f'{key}={value}' for key, value in own.items() if common.get(key) != value]
    return ' '.join([*changed, *(f'{key}=(default)' for key in common if key not in own)])


def _pairs(text: str) -> Dict[str, str]:
    return dict(part.split('=', 1) for part in text.split(' ') if '=' in part)
