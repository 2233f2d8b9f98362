"""The paper's tables as Markdown: what was measured, and below or beside it what the paper has."""
from itertools import zip_longest
from typing import List, Mapping, Sequence, Tuple

from benchmarks import published
from benchmarks.markdown import measured_or_note, table
from benchmarks.paper.aggregate import Results, madds_of
from benchmarks.paper.columns import (
    COLUMNS_2,
    COLUMNS_4,
    COLUMNS_5,
    COLUMNS_6,
    COLUMNS_RATES,
    Column,
    measured_table,
    parameters,
    published_table,
    seeds_note,
)
from benchmarks.paper.curves import INTERPOLATIONS
from benchmarks.store import RUNS

__all__ = ['PAPER', 'dense_table', 'figure_4_table', 'measured_on', 'rates_table', 'table_1', 'table_2',
           'table_2_small', 'table_5', 'table_6', 'table_8']

PAPER = '**Published** in the paper, not measured here'


def measured_on(results: Results) -> str:
    """What a table of this preset was measured on."""
    pictures = sorted({row['pictures'] for row in results.rows[RUNS] if row['pictures']})
    count = f', tested on {" or ".join(pictures)} pictures' if pictures else ''
    return f'**Measured**: {results.preset.about} (preset `{results.preset.name}`{count})'


def _network(results: Results) -> str:
    """Whose published figures stand beside those of a preset."""
    return results.preset.network if results.preset.network in published.TABLE_2 else 'resnet18'


def table_2(results: Results) -> str:
    """Top-1 and top-5 of the four ways to train, with multiply-adds and parameters."""
    network = _network(results)
    foot = [['parameters, millions (2^20)', '', *(parameters(results, column) for column in COLUMNS_2)]]
    top1, top5 = ({what: tuple(pair[i] for pair in pairs) for what, pairs in published.TABLE_2[network].items()}
                  for i in (0, 1))
    madds = published.MADDS[network]
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets the gain over the I-Nets.',
        measured_table(results, COLUMNS_2, madds=True, foot=foot),
        'Top-5:',
        measured_table(results, COLUMNS_2, 'top5', madds=True),
        seeds_note(results, COLUMNS_2),
        f'{PAPER} (Table 2, {network} on ImageNet): top-1, then top-5.',
        published_table(COLUMNS_2, top1, madds),
        published_table(COLUMNS_2, top5, madds),
    ])


def table_2_small(results: Results) -> str:
    """Top-1 alone."""
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets the gain over the I-Nets.',
        measured_table(results, COLUMNS_2, madds=True),
        seeds_note(results, COLUMNS_2),
    ])


def figure_4_table(results: Results) -> str:
    """Shared against private BatchNorms."""
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets the gain over the I-Nets.',
        measured_table(results, COLUMNS_4),
        seeds_note(results, COLUMNS_4),
        f'{PAPER} (Figure 4, left; mobilenetv2 on ImageNet):',
        published_table(COLUMNS_4, published.FIGURE_4),
    ])


def rates_table(results: Results) -> str:
    """Private BatchNorms at the rate of the shared weights, and at S times that."""
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets the gain over the I-Nets.',
        measured_table(results, COLUMNS_RATES),
        seeds_note(results, COLUMNS_RATES),
    ])


def dense_table(results: Results) -> str:
    """Every I-Net, and the RS-Net with the sets of unseen sizes made in several ways, at the dense sizes."""
    sizes = results.sizes
    lines = []
    for size in sorted({*results.preset.dense, *sizes}, reverse=True):
        own = [results.sample(f'individual_{r}', size).text() for r in sizes]
        if size in sizes:
            ours = [results.sample('rs_net', size).text(), *['' for _ in INTERPOLATIONS]]
        else:
            ours = ['', *(results.sample('rs_net', size, sets=sets).text() for sets in INTERPOLATIONS)]
        lines.append([f'{size} px', *own, *ours])
    header = ['tested at', *(f'I-{size}' for size in sizes), 'RS-Net, own sets', *INTERPOLATIONS]
    return measured_or_note(header, lines)


# Table 1

_TRAININGS = (('I-Nets', 'individual_{size}', 'individual'), ('parallel', 'parallel', 'parallel'),
              ('RS-Net', 'rs_net', 'rs_net'))


def table_1(results: Results) -> str:
    """Right at the size of the row and wrong at that of the column: ours, and the paper's by position beside it."""
    parts = [f'{measured_on(results)}; on the right of each table: {PAPER} (Table 1, resnet18 on ImageNet).']
    for training in _TRAININGS:
        column = Column(*training)
        parts += [f'{column.label}: share of the pictures, in percent, that are right at the size of the row and wrong '
                  'at that of the column.', _table_1(results, column)]
    return '\n\n'.join([*parts, seeds_note(results, [Column(*training) for training in _TRAININGS])])


def _table_1(results: Results, column: Column) -> str:
    ours, theirs = _shares(results, column), _published_shares(column)
    header = [*(f'wrong at {size} px' for size in results.sizes)]
    paper = [*(f'{size} px' for size in published.RESOLUTIONS)]
    blank = ['' for _ in range(len(header) + 1)]
    lines = [[*(mine or blank), *(his or blank)] for mine, his in zip_longest(ours, theirs)]
    return table(['right at', *header, 'paper: right at', *paper], lines)


def _shares(results: Results, column: Column) -> List[List[str]]:
    sizes = results.sizes
    where = {size: (column.run_at(size, sizes), size) for size in sizes}
    return [[f'{a} px', *('' if a == b else results.wrong_elsewhere(where[a], where[b]).text() for b in sizes)]
            for a in sizes]


def _published_shares(column: Column) -> List[List[str]]:
    lines = []
    for i, (size, shares) in enumerate(published.TABLE_1[column.published].items()):
        cells = [f'{share:.1f}' for share in shares]
        lines.append([f'{size} px', *cells[:i], '', *cells[i:]])
    return lines


# Tables 5, 6 and 8

def table_5(results: Results) -> str:
    """Kinds of distillation."""
    return _ablation(results, COLUMNS_5, 'Table 5', published.KINDS)


def table_6(results: Results) -> str:
    """One crop or several, one resolution or several."""
    count = len(results.sizes)
    return _ablation(results, COLUMNS_6, 'Table 6', published.TABLE_6, [['networks', '1', '1', f'{count}', f'{count}']])


def _ablation(
        results: Results,
        columns: Sequence[Column],
        name: str,
        figures: Mapping[str, published.Figures],
        foot: Sequence[Sequence[str]] = (),
) -> str:
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets the difference from the first column.',
        measured_table(results, columns, foot=foot),
        seeds_note(results, columns),
        f'{PAPER} ({name}, resnet18 on ImageNet):',
        published_table(columns, figures),
    ])


def table_8(results: Results) -> str:
    """Sizes far from the trained ones; sizes without a set of their own use interpolated ones ('params')."""
    sizes = results.preset.far
    largest = results.sizes[0]
    ours = [results.sample('rs_net', size, sets='own' if size in results.sizes else 'params') for size in sizes]
    lines = [
        [f'I-{largest}', *(results.sample(f'individual_{largest}', size).text() for size in sizes)],
        ['RS-Net', *(sample.text() for sample in ours)],
    ]
    cost = ['MAdds, M', *(f'{madds_of(results.preset, size):.1f}' for size in sizes)]
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent.',
        measured_or_note(_far_header(sizes, largest), lines, foot=[cost]),
        f'{PAPER} (Table 8, resnet50 on ImageNet):',
        table(_far_header(tuple(published.TABLE_8_MADDS), published.RESOLUTIONS[0]), [
            *([label, *(f'{figures[size]:.1f}' for size in published.TABLE_8_MADDS)]
              for label, figures in (('FixRes', published.TABLE_8['FixRes']), ('RS-Net', published.TABLE_8['rs_net']))),
            ['MAdds, M', *(str(cost) for cost in published.TABLE_8_MADDS.values())],
        ]),
    ])


def _far_header(sizes: Tuple[int, ...], largest: int) -> List[str]:
    return ['tested at', *(f'{size} px ({size / largest:.2f})' for size in sizes)]
