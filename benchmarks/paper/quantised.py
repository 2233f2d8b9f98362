"""Table 3: quantised networks, as measured and as published, and what their files take."""
from functools import partial
from typing import List, Optional, Tuple

from benchmarks import published
from benchmarks.markdown import NOT_MEASURED, measured_or_note, table
from benchmarks.paper.aggregate import Results, signed
from benchmarks.store import FILES, by_columns

__all__ = ['table_3']

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
        _published(),
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


def _published() -> str:
    pairs = [(network, bits) for network, own in published.TABLE_3.items() for bits in own]
    header = ['tested at', *(f'{network} {bits}, {who}' for network, bits in pairs for who in ('I-Nets', 'RS-Net'))]
    lines: List[List[str]] = []
    for place, size in enumerate(published.RESOLUTIONS):
        line = [f'{size} px']
        for network, bits in pairs:
            base, ours = (published.TABLE_3[network][bits][what][place] for what in ('individual', 'rs_net'))
            line += [f'{base:.1f}', f'{ours:.1f} ({signed(ours - base)})']
        lines.append(line)
    return table(header, lines)
