"""Table 7: semantic segmentation, as measured on CamVid and as published on NYUDv2."""
from typing import Dict, List, Tuple

from benchmarks import published
from benchmarks.markdown import NOT_MEASURED, table
from benchmarks.paper.aggregate import Results, signed
from benchmarks.paper.columns import COLUMNS_2, Column, measured_table, parameters, seeds_note
from benchmarks.store import RUNS

__all__ = ['QUANTITIES', 'cost_of_resnet101', 'table_7']

QUANTITIES = {'mean_iou': 'mean IoU', 'pixel_accuracy': 'pixel accuracy', 'mean_accuracy': 'mean accuracy'}
_PLACES = ('pixel_accuracy', 'mean_accuracy', 'mean_iou')  # of a figure in `published.TABLE_7`
_VANILLA = Column('vanilla MRED', 'vanilla', 'vanilla')
COLUMNS_7: Tuple[Column, ...] = (*COLUMNS_2[:3], _VANILLA, COLUMNS_2[3])
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
    parts += [f'Ensemble of the RS-Net: {_ensemble(results)}.', seeds_note(results, COLUMNS_7),
              '**Published** in the paper, not measured here (Table 7; ResNet101, NYUDv2, 40 classes):', _published()]
    return '\n\n'.join(parts)


def _ensemble(results: Results) -> str:
    found = {words: results.sample('rs_net', 'ensemble', quantity) for quantity, words in QUANTITIES.items()}
    return ', '.join(f'{words} {sample.text()}' for words, sample in found.items())


def _published() -> str:
    header = ['tested at', *(f'{who}, {words}' for words in QUANTITIES.values() for who in ('I-Nets', 'RS-Net'))]
    lines: List[List[str]] = []
    base, ours = published.TABLE_7['individual'], published.TABLE_7['rs_net']
    for size in base:
        line = [f'{size} px']
        for quantity in QUANTITIES:
            place = _PLACES.index(quantity)
            a, b = base[size][place], ours[size][place]
            line += [f'{a:.1f}', f'{b:.1f} ({signed(b - a)})']
        lines.append(line)
    counts: Dict[str, float] = published.TABLE_7_PARAMETERS
    return (f"{table(header, lines)}\n\nParameters: {counts['individual']:.2f} million in three I-Nets, "
            f"{counts['rs_net']:.2f} million in the RS-Net.")


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
