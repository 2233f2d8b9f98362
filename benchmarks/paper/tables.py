"""The paper's tables as Markdown: what was measured, and below or beside it what the paper has."""
from functools import partial
from itertools import zip_longest
from statistics import mean
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from benchmarks import published
from benchmarks.paper.curves import INTERPOLATIONS
from benchmarks.paper.samples import (
    COLUMNS_2,
    COLUMNS_3,
    COLUMNS_4,
    COLUMNS_5,
    COLUMNS_6,
    COLUMNS_7,
    COLUMNS_HALF_7,
    COLUMNS_LONG_7,
    COLUMNS_PILOT_7,
    KINDS_AND_TRIALS,
    Column,
    Results,
    Sample,
    madds_of,
    measured_table,
    parameters,
    published_table,
    sample,
    seeds_note,
    signed,
    titles,
)
from benchmarks.runs import LONG
from benchmarks.store import CLASSES, FILES, NOT_MEASURED, RUNS, by_columns, markdown, measured_or_note

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


def comparison(
        results: Results,
        columns: Sequence[Column],
        figures: Optional[Mapping[str, published.Figures]] = None,
        source: str = '',
        difference: str = 'the gain over the I-Nets',
        madds: bool = False,
        foot: Sequence[Sequence[str]] = (),
) -> str:
    """Top-1 of several ways to train, then the paper's figures if it has some.

    Args:
        results: of a preset.
        columns: the ways; the first is the base.
        figures: key of a column in `benchmarks.published` -> its figures.
        source: where the paper has them.
        difference: name of what stands in brackets.
        madds, foot: see `measured_table`.
    """
    return '\n\n'.join([
        f'{measured_on(results)}: top-1 in percent, and in brackets {difference}.',
        measured_table(results, columns, madds=madds, foot=foot),
        seeds_note(results, columns),
        *([f'{PAPER} ({source} on ImageNet):', published_table(columns, figures)] if figures else []),
    ])


def figure_4_table(results: Results) -> str:
    """Shared against private BatchNorms."""
    return comparison(results, COLUMNS_4, published.FIGURE_4, 'Figure 4, left; mobilenetv2')


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
    return markdown(['right at', *header, 'paper: right at', *paper], lines)


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

_FROM_FIRST = 'the difference from the first column'


def table_5(results: Results) -> str:
    """Kinds of distillation."""
    return comparison(results, COLUMNS_5, published.KINDS, 'Table 5, resnet18', _FROM_FIRST)


def distillations(results: Results) -> str:
    """All kinds of distillation, a line each, and how far each is from full MRED on average over the sizes."""
    lines = []
    for column in KINDS_AND_TRIALS:
        gains = [sample(results, column, size).gain(sample(results, KINDS_AND_TRIALS[0], size))
                 for size in results.sizes]
        overall = Sample({seed: mean(gain.values[seed] for gain in gains) for seed in gains[0].values})
        seeds = len(results.run_sample(column.run, 'parameters').values)
        lines.append([column.label, *(sample(results, column, size).text() for size in results.sizes),
                      signed(overall.mean) if overall else NOT_MEASURED, str(seeds)])
    header = ['distillation', *(f'{size} px' for size in results.sizes), 'mean difference from full MRED', 'seeds']
    return (f'{measured_on(results)}: top-1 in percent. The difference is that of the same seeds.\n\n'
            + measured_or_note(header, lines))


def table_6_brief(results: Results) -> str:
    """Table 6 without the paper's figures."""
    return comparison(results, COLUMNS_6, difference=_FROM_FIRST)


def table_6(results: Results) -> str:
    """One crop or several, one resolution or several."""
    count = len(results.sizes)
    return comparison(results, COLUMNS_6, published.TABLE_6, 'Table 6, resnet18', _FROM_FIRST,
                      foot=[['networks', '1', '1', f'{count}', f'{count}']])


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
        markdown(_far_header(tuple(published.TABLE_8_MADDS), published.RESOLUTIONS[0]), [
            *([label, *(f'{figures[size]:.1f}' for size in published.TABLE_8_MADDS)]
              for label, figures in (('FixRes', published.TABLE_8['FixRes']), ('RS-Net', published.TABLE_8['rs_net']))),
            ['MAdds, M', *(str(cost) for cost in published.TABLE_8_MADDS.values())],
        ]),
    ])


def _far_header(sizes: Tuple[int, ...], largest: int) -> List[str]:
    return ['tested at', *(f'{size} px ({size / largest:.2f})' for size in sizes)]


# Table 3

_FULL = 'full_precision'
# heading, run, how it is measured, how its file is stored
_COLUMNS: Tuple[Tuple[str, str, str, str], ...] = (
    ('RS-Net, full precision', _FULL, 'own', 'float16'),
    ("the same, the runtime's int8", _FULL, 'int8', ''),
    ('I-Nets, 2/32', 'w2a32_individual_{size}', 'own', 'packed'),
    ('RS-Net, 2/32', 'w2a32', 'own', 'packed'),
    ('RS-Net, 2/2', 'w2a2', 'own', 'packed'),
)


def table_3(results: Results) -> str:
    """Top-1 of full precision, of the runtime's int8, of 2/32 and of 2/2; bytes; then the paper's."""
    sizes = results.sizes
    lines = [[f'{size} px', *(_cell(results, run.format(size=size), sets, size) for _, run, sets, _ in _COLUMNS)]
             for size in sizes]
    one = [_bytes(results, run.format(size=sizes[0]), kind) for _, run, _, kind in _COLUMNS]
    several = [count and len(sizes) * count if '{size}' in run else count
               for count, (_, run, _, _) in zip(one, _COLUMNS)]
    whole = _bytes(results, _FULL, 'float32')
    kinds = [kind for _, _, _, kind in _COLUMNS]  # none: int8 is made when the float32 file is loaded
    for words, text in ((f'file or files for {len(sizes)} sizes, MB', _megabytes),
                        ('float32 file of the RS-Net / that', partial(_times, whole))):
        lines.append([words, *(text(count) if kind else '' for count, kind in zip(several, kinds))])
    headings = [heading for heading, _, _, _ in _COLUMNS]
    return '\n\n'.join([
        f'**Measured**: {results.preset.about}; weights/activations in bits; top-1 in percent, and in brackets the '
        'difference from full precision. I-Nets were trained at the largest and the smallest size.',
        measured_or_note(['tested at', *headings], lines),
        '**Published** in the paper, not measured here (Table 3, ImageNet): top-1, and in brackets the gain over the '
        'I-Nets.',
        _published_3(),
    ])


def _cell(results: Results, run: str, sets: str, size: int) -> str:
    if run not in results.runs:
        return ''  # nobody plans it
    sample = results.sample(run, size, sets=sets)
    return sample.text() if (run, sets) == (_FULL, 'own') else sample.gain_text(results.sample(_FULL, size))


def _bytes(results: Results, run: str, kind: str) -> Optional[int]:
    rows = by_columns(results.rows[FILES], run=run, kind=kind)
    return int(rows[0]['bytes']) if rows else None


def _megabytes(count: Optional[int]) -> str:
    return NOT_MEASURED if count is None else f'{count / 1e6:.2f}'


def _times(whole: Optional[int], count: Optional[int]) -> str:
    return NOT_MEASURED if whole is None or count is None else f'{whole / count:.1f}'


def _published_3() -> str:
    pairs = {f'{network} {bits}': own for network, found in published.TABLE_3.items() for bits, own in found.items()}
    lines = [[f'{size} px', *(cell for own in pairs.values()
                              for cell in _pair(own['individual'][place], own['rs_net'][place]))]
             for place, size in enumerate(published.RESOLUTIONS)]
    return markdown(['tested at', *(f'{name}, {who}' for name in pairs for who in ('I-Nets', 'RS-Net'))], lines)


def _pair(base: float, ours: float) -> Tuple[str, str]:
    return f'{base:.1f}', f'{ours:.1f} ({signed(ours - base)})'


def table_3_equal_starts(results: Results) -> str:
    """Top-1 of 2/32, I-Nets and RS-Net, that have equal starts, epochs and rates."""
    return comparison(results, COLUMNS_3)


# Table 7

QUANTITIES = {'mean_iou': 'mean IoU', 'pixel_accuracy': 'pixel accuracy', 'mean_accuracy': 'mean accuracy'}
_RESNET101 = 'resnet101_four_updates'


def table_7(results: Results) -> str:
    """Mean IoU, pixel accuracy and mean accuracy at each size, then the paper's."""
    tested = sorted({row['pictures'] for row in results.rows[RUNS] if row['run'] != _RESNET101})
    count = f', tested on {tested[0]} pictures' if tested else ''
    parts = [f'**Measured**: {results.preset.about}{count}; in percent, and in brackets the gain over the I-Nets.']
    for quantity, words in QUANTITIES.items():
        first = quantity == 'mean_iou'
        foot = [['parameters, millions (2^20)', '', *(parameters(results, column) for column in COLUMNS_7)]]
        parts += [f'{words[0].upper()}{words[1:]}:',
                  measured_table(results, COLUMNS_7, quantity, madds=first, foot=foot if first else ())]
    ensemble = ', '.join(f"{words} {results.sample('rs_net', 'ensemble', quantity).text()}"
                         for quantity, words in QUANTITIES.items())
    parts += [f'Ensemble of the RS-Net: {ensemble}.', seeds_note(results, COLUMNS_7),
              '**Published** in the paper, not measured here (Table 7; ResNet101, NYUDv2, 40 classes):', _published_7()]
    return '\n\n'.join(parts)


def _published_7() -> str:
    places = [('pixel_accuracy', 'mean_accuracy', 'mean_iou').index(quantity) for quantity in QUANTITIES]
    base, ours = published.TABLE_7['individual'], published.TABLE_7['rs_net']
    lines = [[f'{size} px', *(cell for place in places for cell in _pair(base[size][place], ours[size][place]))]
             for size in base]
    header = ['tested at', *(f'{who}, {words}' for words in QUANTITIES.values() for who in ('I-Nets', 'RS-Net'))]
    counts = published.TABLE_7_PARAMETERS
    return (f"{markdown(header, lines)}\n\nParameters: {counts['individual']:.2f} million in three I-Nets, "
            f"{counts['rs_net']:.2f} million in the RS-Net.")


def pilot_7(results: Results) -> str:
    """What was tried to find out what the RS-Net lacks: mean IoU, pixel accuracy, and IoU class by class."""
    columns = [column for column in COLUMNS_PILOT_7
               if results.of(RUNS, run=column.run_at(results.sizes[0], results.sizes))]
    if not columns:
        return NOT_MEASURED
    largest = results.sizes[0]
    parts = [f'{measured_on(results)}; in percent, and in brackets {_FROM_FIRST}.']
    for quantity in ('mean_iou', 'pixel_accuracy'):
        words = QUANTITIES[quantity]
        parts += [f'{words[0].upper()}{words[1:]}:', measured_table(results, columns, quantity)]
    shares = _class_samples(results, columns[0], largest, 'pixels')
    whole = sum(share.mean for share in shares.values())
    lines = []
    for label in sorted(shares, key=lambda label: -shares[label].mean):
        own = [_class_samples(results, column, largest, 'iou').get(label, Sample()) for column in columns]
        lines.append([f'{label} ({100 * shares[label].mean / whole:.1f} %)', own[0].text(),
                      *(sample.gain_text(own[0]) for sample in own[1:])])
    header = ['class (share of the pixels)', *titles(columns, results.sizes)]
    return '\n\n'.join([*parts, f'IoU of each class at {largest} px:', measured_or_note(header, lines),
                        seeds_note(results, columns)])


def rates_and_epochs_7(results: Results) -> str:
    """Mean IoU at half the rate, and after four times the epochs."""
    parts = [f'{measured_on(results)}, with one thing changed: mean IoU in percent, and in brackets the gain over the '
             'I-Nets.']
    for words, columns in (('Half the rate:', COLUMNS_HALF_7), (f'{LONG} epochs:', COLUMNS_LONG_7)):
        parts += [words, measured_table(results, columns, 'mean_iou'), seeds_note(results, columns)]
    return '\n\n'.join(parts)


def _class_samples(results: Results, column: Column, size: int, quantity: str) -> Dict[str, Sample]:
    """Class -> a column of the table of classes."""
    values: Dict[str, Dict[str, float]] = {}
    for row in results.of(CLASSES, run=column.run_at(size, results.sizes), resolution=size):
        values.setdefault(row['label'], {})[row['seed']] = float(row[quantity])
    return {label: Sample(own) for label, own in values.items()}


def cost_of_resnet101(results: Results) -> str:
    """What the network of the paper costs on this machine, from a run of four updates."""
    rows = results.of(RUNS, run=_RESNET101)
    if not rows:
        return f'rs_refinenet_resnet101, a training step: {NOT_MEASURED}.'
    row = rows[0]
    recipe = results.runs[_RESNET101].recipe(results.preset)
    seconds = float(row['train_seconds']) / recipe.limit_batches
    sizes = ', '.join(map(str, recipe.resolutions))
    return (f"`{row['model']}` (256 channels, {int(row['parameters']) / 1e6:.2f} million parameters with "
            f"{results.preset.classes} classes) trains with the same command: {seconds:.0f} s an update of "
            f"{recipe.batch_size} pictures at {sizes} px on {row['device']}, {row['dtype']}, {row['threads']} threads. "
            'It was not trained to the end.')
