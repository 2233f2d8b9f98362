"""The columns that the paper's tables compare, and how a table of them is made: measured, and as published."""
from dataclasses import dataclass
from typing import Dict, List, Mapping, Sequence, Tuple

from benchmarks import published
from benchmarks.markdown import NOT_MEASURED, measured_or_note, table
from benchmarks.paper.aggregate import Results, Sample, madds_of, signed

__all__ = ['COLUMNS_2', 'COLUMNS_4', 'COLUMNS_5', 'COLUMNS_6', 'COLUMNS_RATES', 'Column', 'measured_table',
           'parameters', 'published_table', 'sample', 'seeds_note', 'titles']


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
COLUMNS_6 = (
    Column('several resolutions, one crop', 'rs_net', 'rs_net'),
    Column('several resolutions, several crops', 'multi_crop', 'multi_crop'),
    Column('one resolution, several crops', 'single_resolution_{size}', 'single_resolution'),
    Column('one resolution, one crop', 'individual_{size}', 'individual'),
)
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
    return table(_header(titles(columns, published.RESOLUTIONS), bool(madds)), lines)


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
