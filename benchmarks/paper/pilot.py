"""Which learning rate the pilot chose for each kind of loss."""
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import Dict, List, Optional

from benchmarks.markdown import measured_or_note
from benchmarks.paper.aggregate import Results, Sample, load
from benchmarks.presets import KINDS, MEAN_LR, PRESETS
from benchmarks.runs import Run, runs
from benchmarks.store import RUNS

__all__ = ['pilot_choice', 'pilot_results', 'pilot_samples', 'pilot_table']

_TRIED = 3  # rates, before the best of them is called a choice


def pilot_results(folder: Path) -> Results:
    """Of all pilots, whatever `MEAN_LR` they were planned around."""
    return load('pilot', folder, _run_of)


def pilot_samples(folder: Path) -> Dict[str, Dict[float, Sample]]:
    """Kind of loss -> {rate on the mean of the losses, rising: top-1 averaged over the sizes}.

    Those that are planned now, and those that were planned, and made, around another `MEAN_LR`.
    """
    results = pilot_results(folder)
    names = dict.fromkeys([*results.runs, *(row['run'] for row in results.rows[RUNS])])
    made: Dict[str, Dict[float, Sample]] = {kind: {} for kind in KINDS}
    for name in names:
        kind, _, rate = name.rpartition('_lr')
        made[kind][float(rate)] = _mean_over_sizes(results, name)
    return {kind: dict(sorted(found.items())) for kind, found in made.items()}


def _run_of(name: str) -> Optional[Run]:
    """The run of this name, whatever rate the preset has now."""
    kind, _, rate = name.rpartition('_lr')
    if kind not in KINDS:
        return None
    preset = PRESETS['pilot']
    return runs(replace(preset, mean_lr={**preset.mean_lr, kind: float(rate)})).get(name)


def _mean_over_sizes(results: Results, name: str) -> Sample:
    run = _run_of(name)
    assert run is not None
    samples: List[Sample] = [results.sample(name, size) for size in run.recipe(results.preset).resolutions]
    seeds = [seed for seed in samples[0].values if all(seed in sample.values for sample in samples)]
    return Sample({seed: mean(sample.values[seed] for sample in samples) for seed in seeds})


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
