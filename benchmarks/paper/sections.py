"""The generated parts of docs/paper.md and the one of README.md: tables, figures in figures, and the list of runs."""
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Callable, Dict, List, Optional

from benchmarks import environment, published
from benchmarks.paper import market, pictures, tables
from benchmarks.paper.curves import (
    BASES,
    CROPS,
    LADDER,
    NORM_TENSORS,
    alphas,
    effects,
    features,
    norms,
    ordered_blocks,
    train_test_gap,
)
from benchmarks.paper.samples import COLUMNS_2, COLUMNS_RATES, Results, Sample, load, shown_presets, signed
from benchmarks.paper.tables import PAPER, measured_on
from benchmarks.presets import KINDS, MEAN_LR, PRESETS
from benchmarks.runs import Run, runs, settings
from benchmarks.store import NOT_MEASURED, RUNS, Row, markdown, measured_or_note

# Figures 3, 5, 6 and 9 and Appendix A

def features_table(results: Results) -> str:
    """How far the pooled features of pictures cropped as in training are from those cropped as in the test."""
    found = features(results)
    lines = []
    for size in (results.sizes[0], results.sizes[-1]):
        own = found.get(size, {})
        lines.append([f'{size} px', *(
            f'{train_test_gap(own[label]):.1f}' if label in own else NOT_MEASURED
            for label in (f'I-{size}', 'parallel'))])
    return (f'{measured_on(results)}: area between the two curves, in percent of the area left of that of the test '
            'crops; both up to a share of 99 %.\n\n'
            + measured_or_note(['resolution', 'I-Net of this size', 'parallel'], lines))


def effects_table(results: Results) -> str:
    """Parallel training of several combinations of sizes against the I-Nets, for both ranges of crops."""
    parts = [f'{measured_on(results)}: top-1 of parallel training minus that of the I-Net, in points.']
    for words, begin in CROPS.items():
        lines: List[List[str]] = [['I-Nets, top-1', *(
            results.sample(f'{begin}{BASES}_{size}', size).text() for size in results.sizes)]]
        for label, gains in effects(results, begin).items():
            lines.append([label, *(_gain(gains[size]) if size in gains else '' for size in results.sizes)])
        parts += [f'{words[0].upper()}{words[1:]}:',
                  measured_or_note(['trained with', *(f'{size} px' for size in results.sizes)], lines)]
    individual = published.TOP1['resnet18']['individual']
    theirs = ', '.join(
        f'{signed(top1 - individual[published.RESOLUTIONS.index(size)])} at {size} px'
        for size, top1 in published.PAIR.items())
    return '\n\n'.join([*parts, f'{PAPER} (Section 4.3, resnet18 on ImageNet, crops of 8 to 100 %, trained with '
                                f'{" & ".join(map(str, published.PAIR))}): {theirs}.'])


def _gain(value: Optional[float]) -> str:
    return NOT_MEASURED if value is None else signed(value)


def norms_table(results: Results) -> str:
    """In how many blocks the BatchNorm sets are in the order of their resolutions."""
    found = norms(results)
    text = (f'{measured_on(results)}, parallel training: blocks in which the mean over the channels rises or falls '
            'with the resolution throughout.')
    if not found:
        return f'{text}\n\n{NOT_MEASURED}'
    lines = []
    for tensor, words in NORM_TENSORS.items():
        counts = [ordered_blocks(found[position][tensor]) for position in found]
        lines.append([words, *(f'{ordered} of {blocks}' for ordered, blocks in counts)])
    return f'{text}\n\n' + markdown(['', *(f'{position} of a block' for position in found)], lines)


def alpha_table(results: Results) -> str:
    """The weights of the ensemble at the end, and what the ensemble reaches."""
    found = alphas(results)
    ends = {size: curve[max(curve)] for size, curve in found.items()}
    network = results.preset.network if results.preset.network in published.ALPHA else 'resnet18'
    lines = [['weight at the end', *(ends.get(size, Sample()).text(2) for size in results.sizes)]]
    paper = [['weight at the end', *(f'{weight:.2f}' for weight in published.ALPHA[network])]]
    ensemble, largest = results.sample('rs_net', 'ensemble'), results.sample('rs_net', results.sizes[0])
    return '\n\n'.join([
        f'{measured_on(results)}, RS-Net:',
        measured_or_note(['', *(f'{size} px' for size in results.sizes)], lines),
        f'Top-1 of the ensemble of all sizes, and in brackets the gain over {results.sizes[0]} px alone: '
        f'{ensemble.gain_text(largest)}.',
        f'{PAPER} (Appendix A, {network} on ImageNet):',
        markdown(['', *(f'{size} px' for size in published.RESOLUTIONS)], paper),
    ])


# The runs, and what minutes buy from ordinary weights

_ENVIRONMENT = ('device', 'dtype', 'threads', 'python', 'torch', 'timm', 'rs_timm')


def duration(seconds: float) -> str:
    """
    >>> duration(0.4), duration(89.), duration(300.), duration(7500.)
    ('0 s', '89 s', '5.0 min', '2.1 h')
    """
    if seconds < 90:
        return f'{seconds:.0f} s'
    return f'{seconds / 60:.1f} min' if seconds < 5400 else f'{seconds / 3600:.1f} h'


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
    places = dict.fromkeys(map(_environment, results.rows[RUNS]))  # in order of appearance, each with a letter
    environments = {text: chr(ord('A') + i) for i, text in enumerate(places)}
    lines, waiting = [], []
    for name, run in results.runs.items():
        seeds = sorted({*map(str, run.seeds), *(seed for other, seed in made if other == name)}, key=int)
        lines += [[f'`{name}`', seed, _edits(results, row), row['epochs'], duration(float(row['train_seconds'])),
                   duration(float(row['measure_seconds'])), row['commit'], environments[_environment(row)]]
                  for seed in seeds if (row := made.get((name, seed)))]
        waiting += [f'`{name}`' + f' seed {seed}' * (seed != '0') for seed in seeds if (name, seed) not in made]
    header = ['run', 'seed', 'edits', 'epochs', 'training', 'measuring', 'commit', 'on']
    common = settings(results.preset.recipe)
    parts = [f'Preset `{results.preset.name}`: {results.preset.about}. Network `{results.preset.model}`, recipe '
             f'`{results.preset.recipe_name}` with `{common}`; edits are what a run has instead.']
    parts += [markdown(header, lines)] if lines else []
    parts += [f'{mark}: {text}.' for text, mark in environments.items()]
    if waiting:
        parts.append(f'Planned and {NOT_MEASURED}: {", ".join(waiting)}.')
    if results.left_out:
        names = ', '.join(f"`{row['run']}` seed {row['seed']} (`{_edits(results, row)}`)" for row in results.left_out)
        parts.append(f'Left out of all tables, since the settings are not those planned: {names}.')
    return '\n\n'.join(parts)


def _environment(row: Row) -> str:
    device, dtype, threads, python, *others = (row[name] for name in _ENVIRONMENT)
    versions = ', '.join(f'{name} {version}' for name, version in zip(_ENVIRONMENT[4:], others))
    return f'{device}, {dtype}, {threads} threads, Python {python}, {versions}'


def _edits(results: Results, row: Row) -> str:
    """What the settings of a run have that those of the preset's recipe lack; what only the latter have is default."""
    common, own = _pairs(settings(results.preset.recipe)), _pairs(row['settings'])
    changed = [f'{key}={value}' for key, value in own.items() if common.get(key) != value]
    return ' '.join([*changed, *(f'{key}=(default)' for key in common if key not in own)])


def _pairs(text: str) -> Dict[str, str]:
    return dict(part.split('=', 1) for part in text.split(' ') if '=' in part)


# The pilot

_TRIED = 3  # rates, before the best of them is called a choice


def pilot_results(folder: Path) -> Results:
    """Of all pilots, whatever `MEAN_LR` they were planned around."""
    return load('pilot', folder, _run_of)


def pilot_samples(folder: Path) -> Dict[str, Dict[float, Sample]]:
    """Kind of loss -> {rate on the mean of the losses, rising: top-1 averaged over the sizes}.

    Those that are planned now, and those that were planned, and made, around another `MEAN_LR`.
    """
    results = pilot_results(folder)
    made: Dict[str, Dict[float, Sample]] = {kind: {} for kind in KINDS}
    for name in dict.fromkeys([*results.runs, *(row['run'] for row in results.rows[RUNS])]):
        kind, _, rate = name.rpartition('_lr')
        run = _run_of(name)
        assert run is not None
        samples = [results.sample(name, size).values for size in run.recipe(results.preset).resolutions]
        made[kind][float(rate)] = Sample({
            seed: mean(values[seed] for values in samples) for seed in samples[0]
            if all(seed in values for values in samples)})
    return {kind: dict(sorted(found.items())) for kind, found in made.items()}


def _run_of(name: str) -> Optional[Run]:
    """The run of this name, whatever rate the preset has now."""
    kind, _, rate = name.rpartition('_lr')
    preset = PRESETS['pilot']
    return runs(replace(preset, mean_lr={**preset.mean_lr, kind: float(rate)})).get(name) if kind in KINDS else None


def pilot_choice(folder: Path) -> Dict[str, float]:
    """Kind of loss -> the rate that was best, of those kinds of which three rates were measured, `MEAN_LR` among them.

    The best has the highest top-1, averaged over the sizes (and the seeds). A rate counts once every kind was tried
    with it: a wider search for one kind would be an advantage of its own.
    """
    chosen = {}
    tried = pilot_samples(folder)
    for kind, samples in tried.items():
        measured = {rate: sample.mean for rate, sample in samples.items()
                    if all(other.get(rate) for other in tried.values())}
        if len(measured) >= _TRIED and MEAN_LR[kind] in measured:
            chosen[kind] = max(measured, key=lambda rate: measured[rate])
    return chosen


def pilot_table(folder: Path) -> str:
    """Top-1 of the pilot for each kind of loss and rate."""
    names = dict(individual='one resolution', parallel='several', mred='several, distilled')
    results = pilot_results(folder)
    rows = []
    for kind, samples in pilot_samples(folder).items():
        for rate, sample in samples.items():
            run = f'{kind}_lr{rate:g}'
            of_largest = results.sample(run, results.sizes[0])
            devices = dict.fromkeys(row['device'].split(' ')[0] for row in results.of(RUNS, run=run))
            used = ' (used)' if rate == MEAN_LR[kind] else ''
            mean_text = '' if of_largest and kind == KINDS[0] else sample.text()
            rows.append([names[kind], f'{rate:g}{used}', of_largest.text(), mean_text, ', '.join(devices)])
    sizes = ', '.join(map(str, results.sizes))
    heads = ['loss', 'learning rate on the mean of the losses', f'top-1 at {results.sizes[0]} px, %',
             f'mean over {sizes} px, %', 'on']
    return measured_or_note(heads, rows, 2)


# Parts of the documents

_FROM_DOCS, _FROM_ROOT = '../benchmarks/results', 'benchmarks/results'
Part = Callable[[Results], str]


def _picture(name: str, folder: str = _FROM_DOCS) -> Part:
    return lambda results: pictures.as_markdown(name, results, folder)


def _section(*parts: Part, preset: str = '') -> Callable[[], str]:
    """The parts, for a preset; else for the small one and for every one of ImageNet of which there are results."""
    def write() -> str:
        found = [load(preset, environment.RESULTS)] if preset else shown_presets(environment.RESULTS)
        return '\n\n'.join(part(results) for results in found for part in parts)

    return write


def runs_section() -> str:
    """All planned runs."""
    folder = environment.RESULTS
    others = ('brief', 'quantised', 'quantised_equal_starts', 'camvid_pilot', 'camvid')
    found = [*shown_presets(folder), load('ladder', folder), pilot_results(folder),
             *(load(name, folder) for name in others)]
    return '\n\n'.join(map(runs_table, found))


SECTIONS: Dict[str, Callable[[], str]] = {
    'paper': _section(
        lambda results: tables.comparison(results, COLUMNS_2, madds=True),
        _picture('figure1', _FROM_ROOT),
        market.in_short,
        lambda _: "All tables and figures, the paper's beside them, and the runs behind them: "
                  '[docs/paper.md](docs/paper.md).',
        preset='small'),
    'paper_table2': _section(_picture('figure1'), tables.table_2),
    'paper_market': market.summary,
    'paper_figure4': _section(_picture('figure4'), tables.figure_4_table),
    'paper_dense': _section(_picture('dense'), tables.measured_on, tables.dense_table),
    'paper_table1': _section(tables.table_1),
    'paper_table5': _section(tables.table_5),
    'paper_distillations': _section(tables.distillations, preset='brief'),
    'paper_table6': _section(tables.table_6),
    'paper_table6_brief': _section(tables.table_6_brief, preset='brief'),
    'paper_table8': _section(tables.table_8),
    'paper_figure3': _section(_picture('figure3'), features_table),
    'paper_figure9': _section(_picture('figure9'), effects_table),
    'paper_figure9_brief': _section(_picture('figure9'), effects_table, preset='brief'),
    'paper_figure6': _section(_picture('figure6'), norms_table),
    'paper_alpha': _section(_picture('alpha'), alpha_table),
    'paper_ladder': _section(ladder_table, _picture('ladder'), preset='ladder'),
    'paper_table3': _section(tables.table_3, preset='quantised'),
    'paper_table3_equal_starts': _section(tables.table_3_equal_starts, preset='quantised_equal_starts'),
    'paper_pilot7': _section(tables.pilot_7, preset='camvid_pilot'),
    'paper_rates7': _section(tables.rates_and_epochs_7, preset='camvid_pilot'),
    'paper_table7': _section(tables.table_7, tables.cost_of_resnet101, preset='camvid'),
    'paper_pilot': lambda: pilot_table(environment.RESULTS),
    'paper_rates': _section(lambda results: tables.comparison(results, COLUMNS_RATES), preset='small'),
    'paper_runs': runs_section,
}
