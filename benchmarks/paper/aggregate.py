"""What was measured for a preset, over the seeds: rows made with the planned settings, and nothing else.

A row counts when its settings are those of the run of its name today. Whatever was made with other ones (--epochs, a
recipe that has changed since) is left out, so that a table never mixes what cannot be compared; `Results.left_out`
names it.
"""
import math
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import mean, stdev
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple

import numpy as np
import timm

import rs_timm  # noqa: F401 (registers the models)
from benchmarks.markdown import NOT_MEASURED
from benchmarks.presets import PRESETS, Preset
from benchmarks.runs import Run, runs, settings
from benchmarks.store import ACCURACY, MASKS, RIGHT, RUNS, TABLES, Row, Table, by_columns, read, unpacked
from rs_timm.analysis import complementarity, madds
from rs_timm.training import Recipe

__all__ = ['PAPER_PRESETS', 'Results', 'Sample', 'load', 'madds_of', 'shown_presets', 'signed']

RunOf = Callable[[str], Optional[Run]]
PAPER_PRESETS = tuple(name for name in PRESETS if name == 'small' or name.startswith('imagenet_'))


@dataclass(frozen=True)
class Sample:
    """A quantity under several seeds; empty if nobody measured it.

    >>> Sample({'0': 71., '1': 73.}).text(), Sample({'0': 71.}).text(), Sample({}).text()
    ('72.0 ± 1.4', '71.0', 'not measured')

    Attributes:
        values: seed -> value.
    """

    values: Mapping[str, float] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.values)

    @property
    def mean(self) -> float:
        return mean(self.values.values())

    @property
    def std(self) -> float:
        """The standard deviation over the seeds (n - 1 in the denominator); nan for one seed."""
        return stdev(self.values.values()) if len(self.values) > 1 else math.nan

    def text(self, digits: int = 1) -> str:
        """'mean ± standard deviation', the value alone for one seed, or 'not measured'."""
        if not self:
            return NOT_MEASURED
        spread = f' ± {self.std:.{digits}f}' if len(self.values) > 1 else ''
        return f'{self.mean:.{digits}f}{spread}'

    def gain_text(self, base: 'Sample') -> str:
        """The sample, and in brackets the difference of its mean from that of `base`.

        >>> Sample({'0': 71.}).gain_text(Sample({'0': 70.5, '1': 71.}))
        '71.0 (+0.2)'
        """
        if not self:
            return NOT_MEASURED
        return f'{self.text()} ({signed(self.mean - base.mean) if base else NOT_MEASURED})'


def signed(value: float) -> str:
    """One digit and a sign; nothing is -0.0.

    >>> signed(-0.04), signed(-0.06)
    ('+0.0', '-0.1')
    """
    return f'{round(value, 1) + 0.:+.1f}'


@dataclass(frozen=True)
class Results:
    """The rows of a preset that count.

    Attributes:
        preset: which.
        runs: by name.
        rows: table -> its rows, in the order of the file.
        left_out: rows of the table of runs that do not count.
    """

    preset: Preset
    runs: Mapping[str, Run]
    rows: Mapping[Table, Sequence[Row]]
    left_out: Sequence[Row] = ()

    @property
    def sizes(self) -> Tuple[int, ...]:
        """The trained sizes, largest first."""
        return self.preset.resolutions

    def of(self, table: Table, **values: Any) -> List[Row]:
        """The rows in which each named column has the given value."""
        return by_columns(self.rows[table], **values)

    def sample(self, run: str, resolution: Any, column: str = 'top1', sets: str = 'own') -> Sample:
        """A column of the table of accuracies, or of that of masks, at a size, or of the 'ensemble'."""
        if column in MASKS.columns:
            found = self.of(MASKS, run=run, resolution=resolution)
        else:
            found = self.of(ACCURACY, run=run, resolution=resolution, sets=sets)
        return Sample({row['seed']: float(row[column]) for row in found})

    def run_sample(self, run: str, column: str) -> Sample:
        """A column of the table of runs."""
        return Sample({row['seed']: float(row[column]) for row in self.of(RUNS, run=run)})

    def wrong_elsewhere(self, right: Tuple[str, int], wrong: Tuple[str, int]) -> Sample:
        """Share of the pictures that are right in one (run, size) and wrong in another, in percent, seed by seed.

        Raises:
            ValueError: the two were measured on different numbers of pictures.
        """
        first, second = (self._rights(*where) for where in (right, wrong))
        shares = {}
        for seed in [seed for seed in first if seed in second]:
            pair = {0: first[seed], 1: second[seed]}
            if len(pair[0]) != len(pair[1]):
                raise ValueError(f'{right[0]} and {wrong[0]} of seed {seed} were measured on {len(pair[0])} and '
                                 f'{len(pair[1])} pictures: measure both on the same ones (benchmarks.run --again).')
            shares[seed] = complementarity(pair)[0][1]
        return Sample(shares)

    def _rights(self, run: str, resolution: int) -> Dict[str, np.ndarray]:
        return {row['seed']: unpacked(row['right'], int(row['pictures']))
                for row in self.of(RIGHT, run=run, resolution=resolution)}


def load(preset: str, folder: Path, run_of: Optional[RunOf] = None) -> Results:
    """The results of a preset.

    Args:
        preset: name, of `benchmarks.presets.PRESETS`.
        folder: with the CSV files; what is not there was not measured.
        run_of: what a name means; by default, what `benchmarks.runs.runs` has under it.
    """
    chosen = PRESETS[preset]
    planned = runs(chosen)
    find = run_of or planned.get
    own = {table: by_columns(read(table, folder), preset=preset) for table in TABLES}
    good = {(row['run'], row['seed']) for row in own[RUNS] if _as_planned(chosen, find(row['run']), row)}
    rows = {table: [row for row in found if (row['run'], row['seed']) in good] for table, found in own.items()}
    left_out = [row for row in own[RUNS] if (row['run'], row['seed']) not in good]
    return Results(chosen, planned, rows, left_out)


def _as_planned(preset: Preset, run: Optional[Run], row: Row) -> bool:
    return run is not None and row['settings'] == settings(run.recipe(preset, int(row['seed'])))


def shown_presets(folder: Path) -> List[Results]:
    """The small preset, and those of ImageNet as far as there are rows."""
    found = [load(name, folder) for name in PAPER_PRESETS]
    return [results for results in found if results.preset.name == 'small' or results.rows[RUNS]]


def madds_of(preset: Preset, resolution: int) -> float:
    """Millions of multiply-adds of the preset's network; counted, not measured."""
    return _madds(preset.model, preset.classes, preset.recipe, resolution) / 1e6


@cache
def _madds(model: str, classes: int, recipe: Recipe, resolution: int) -> int:
    return madds(timm.create_model(model, device='meta', num_classes=classes, **recipe.model_kwargs()), resolution)
