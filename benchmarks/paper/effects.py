"""What the paper shows in Figures 3, 5, 6 and 9 and in Appendix A, as Markdown."""
from typing import List, Optional

from benchmarks import published
from benchmarks.markdown import NOT_MEASURED, measured_or_note, table
from benchmarks.paper.aggregate import Results, Sample, signed
from benchmarks.paper.curves import (
    BASES,
    CROPS,
    NORM_TENSORS,
    alphas,
    effects,
    features,
    norms,
    ordered_blocks,
    train_test_gap,
)
from benchmarks.paper.tables import PAPER, measured_on

__all__ = ['alpha_table', 'effects_table', 'features_table', 'norms_table']


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
    return f'{text}\n\n' + table(['', *(f'{position} of a block' for position in found)], lines)


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
        table(['', *(f'{size} px' for size in published.RESOLUTIONS)], paper),
    ])
