"""What was measured for a preset, over the seeds, and the columns that the paper's tables compare.

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
from benchmarks import published
from benchmarks.presets import PRESETS, Preset
from benchmarks.runs import Run, runs, settings
from benchmarks.store import (
    ACCURACY,
    MASKS,
    NOT_MEASURED,
    RIGHT,
    RUNS,
    TABLES,
    Row,
    Table,
    by_columns,
    markdown,
    measured_or_note,
    unpacked,
)
from rs_timm.analysis import complementarity, madds
from rs_timm.training import Recipe

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

    def gain(self, base: 'Sample') -> 'Sample':
        """The difference from `base`, seed by seed, of the seeds that both have."""
        return Sample({seed: value - base.values[seed] for seed, value in self.values.items() if seed in base.values})

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
    own = {table: table.read(folder, preset=preset) for table in TABLES}
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


# Columns

@dataclass(frozen=True)
class Column:
    """One way to train, measured at each size.

    Attributes:
        label: heading; may contain {largest}.
        run: name of the run; may contain {size} and {largest}: another network for each size.
        published: its key in `benchmarks.published`; '': the paper has no such column.
    """

    label: str
    run: str
    published: str = ''

    def title(self, sizes: Sequence[int]) -> str:
        return self.label.format(largest=sizes[0])

    def run_at(self, size: int, sizes: Sequence[int]) -> str:
        return self.run.format(size=size, largest=sizes[0])


_I_NETS = Column('I-Nets', 'individual_{size}', 'individual')
_PARALLEL = Column('parallel', 'parallel', 'parallel')
_RS_NET = Column('RS-Net', 'rs_net', 'rs_net')
COLUMNS_2 = (_I_NETS, Column('I-{largest}', 'individual_{largest}', 'largest'), _PARALLEL, _RS_NET)
COLUMNS_4 = (_I_NETS, Column('parallel, shared BNs', 'shared_bn', 'shared_bn'),
             Column('parallel, private BNs', 'parallel', 'parallel'), _RS_NET)
COLUMNS_5 = (
    Column('full MRED', 'rs_net', 'rs_net'),
    Column('vanilla MRED', 'vanilla', 'vanilla'),
    Column('only from the largest', 'largest', 'largest'),
    Column('only from all larger ones', 'larger', 'larger'),
)
KINDS_AND_TRIALS = (
    *COLUMNS_5,
    Column('none (parallel)', 'parallel'),
    Column('full, temperature 2', 'temperature2'),
    Column('full, twice the weight', 'double'),
    Column('full, teachers learn too (no stop of the gradient)', 'mutual'),
    Column('full, ensemble with equal weights', 'equal_weights'),
    Column('full, ensemble weighted for each picture by entropy', 'by_entropy'),
    Column('full, teachers are a moving average of the network', 'ema_teacher'),
)
COLUMNS_6 = (
    Column('several resolutions, one crop', 'rs_net', 'rs_net'),
    Column('several resolutions, several crops', 'multi_crop', 'multi_crop'),
    Column('one resolution, several crops', 'single_resolution_{size}', 'single_resolution'),
    Column('one resolution, one crop', 'individual_{size}', 'individual'),
)
COLUMNS_7 = (*COLUMNS_2[:3], Column('vanilla MRED', 'vanilla', 'vanilla'), COLUMNS_2[3])
COLUMNS_3 = (_I_NETS, _RS_NET)
COLUMNS_PILOT_7 = (
    _I_NETS, _PARALLEL, _RS_NET,
    Column('distillation from half of the run on', 'late'),
    Column('a quarter of the distillation', 'quarter'),
    Column('only from all larger ones', 'larger'),
    Column('only from the largest', 'largest'),
    Column('RS-Net, twice the rate', 'rs_net_lr2'),
    Column('RS-Net, private sets at three times the rate', 'rs_net_private_lr3'),
)
COLUMNS_HALF_7 = (Column('I-Nets', 'half_individual_{size}'), Column('parallel', 'half_parallel'),
                  Column('RS-Net', 'half_rs_net'))
COLUMNS_LONG_7 = (Column('I-Nets', 'long_individual_{size}'), Column('parallel', 'long_parallel'),
                  Column('RS-Net', 'long_rs_net'))
COLUMNS_RATES = (_I_NETS, Column('parallel, one rate', 'one_rate_parallel'), _PARALLEL,
                 Column('RS-Net, one rate', 'one_rate_rs_net'), _RS_NET)


def titles(columns: Sequence[Column], sizes: Sequence[int]) -> List[str]:
    """The headings of columns."""
    return [column.title(sizes) for column in columns]


def sample(results: Results, column: Column, size: int, quantity: str = 'top1') -> Sample:
    """What a column holds at a size."""
    return results.sample(column.run_at(size, results.sizes), size, quantity)


def measured_table(
        results: Results,
        columns: Sequence[Column],
        quantity: str = 'top1',
        madds: bool = False,
        foot: Sequence[Sequence[str]] = (),
) -> str:
    """A line for each size; in brackets the difference from the first column.

    Args:
        results: of a preset.
        columns: the first is the base.
        quantity: column of the table of accuracies.
        madds: multiply-adds stand in front.
        foot: further lines.
    """
    sizes = results.sizes
    lines = []
    for size in sizes:
        base, *others = (sample(results, column, size, quantity) for column in columns)
        cost = [f'{madds_of(results.preset, size):.1f}'] if madds else []
        lines.append([f'{size} px', *cost, base.text(), *(other.gain_text(base) for other in others)])
    return measured_or_note(_header(titles(columns, sizes), madds), lines, 1 + madds, foot)


def published_table(columns: Sequence[Column], figures: Mapping[str, published.Figures], madds: Sequence[float] = ()
                    ) -> str:
    """The same of the paper's figures."""
    base = figures[columns[0].published]
    lines = []
    for i, size in enumerate(published.RESOLUTIONS):
        others = [figures[column.published][i] for column in columns[1:]]
        lines.append([f'{size} px', *([f'{madds[i]:.0f}'] if madds else []), f'{base[i]:.1f}',
                      *(f'{other:.1f} ({signed(other - base[i])})' for other in others)])
    return markdown(_header(titles(columns, published.RESOLUTIONS), bool(madds)), lines)


def _header(titles: Sequence[str], madds: bool) -> List[str]:
    return ['tested at', *(['MAdds, M'] if madds else []), *titles]


def parameters(results: Results, column: Column) -> str:
    """Parameters of all the networks that a column needs: in millions, and in the paper's units of 2^20."""
    names = dict.fromkeys(column.run_at(size, results.sizes) for size in results.sizes)
    counts = [results.run_sample(name, 'parameters') for name in names]
    if not all(counts):
        return NOT_MEASURED
    total = sum(count.mean for count in counts)
    return f'{total / 1e6:.2f} ({total / 2 ** 20:.2f})'


def seeds_note(results: Results, columns: Sequence[Column]) -> str:
    """How many seeds are behind each column; the least and the most, where its networks differ."""
    parts: Dict[str, Tuple[int, int]] = {}
    for column in columns:
        names = {column.run_at(size, results.sizes) for size in results.sizes}
        counts = [len(results.run_sample(name, 'parameters').values) for name in names]
        parts[column.title(results.sizes)] = min(counts), max(counts)
    if len(set(parts.values())) == 1:
        least, most = next(iter(parts.values()))
        return f'Seeds: {_range(least, most)}.'
    return 'Seeds: ' + ', '.join(f'{name} {_range(*counts)}' for name, counts in parts.items()) + '.'


def _range(least: int, most: int) -> str:
    return f'{least}' if least == most else f'{least} to {most}'
