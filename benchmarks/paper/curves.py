"""What the pictures and some tables show, as numbers by key: {label: {x: Sample}}, only what was measured."""
import re
from statistics import mean
from typing import Dict, List, Mapping, Optional, Sequence, Tuple

from benchmarks.paper.samples import COLUMNS_2, COLUMNS_4, Column, Results, Sample, sample
from benchmarks.runs import prefix
from benchmarks.store import EPOCHS, FEATURES, NORMS

Curve = Dict[int, Sample]  # size in pixels, or epoch -> what was measured there
Steps = Tuple[List[float], List[float]]  # values and the shares at or below them

INTERPOLATIONS = ('params', 'affine', 'nearest', 'recalibrated')  # how the set of an unseen size is made
NORM_TENSORS = {'weight': 'scale γ', 'bias': 'bias β', 'running_mean': 'mean µ', 'running_var': 'variance σ²'}
CROPS = {'crops of 8 to 100 %': '', 'crops of 30 to 100 %': 'crop30_'}  # what begins the names of the runs
BASES = 'individual'  # what the interaction of resolutions is measured against
LADDER = {
    'untouched': 'untouched',
    'recalibrated': 'statistics recalibrated, the old ones weighing most',
    'replaced': 'statistics replaced',
    'bn': 'BatchNorms trained (MRED)',
    'full': 'everything trained (MRED)',
}


def _measured(curves: Mapping[str, Mapping[int, Sample]]) -> Dict[str, Curve]:
    kept = {label: {x: y for x, y in curve.items() if y} for label, curve in curves.items()}
    return {label: curve for label, curve in kept.items() if curve}


def _columns(results: Results, columns: Sequence[Column]) -> Dict[str, Curve]:
    sizes = results.sizes
    return _measured({
        column.title(sizes): {size: sample(results, column, size) for size in sizes} for column in columns})


def figure_1(results: Results) -> Dict[str, Curve]:
    """Top-1 at each size of the columns of Table 2."""
    return _columns(results, COLUMNS_2)


def figure_4(results: Results) -> Dict[str, Curve]:
    """Top-1 at each size with shared and with private BatchNorms."""
    return _columns(results, COLUMNS_4)


def dense(results: Results) -> Dict[str, Curve]:
    """Top-1 at the dense sizes: every I-Net, and the RS-Net for each way in which the sets of unseen sizes are made."""
    every = sorted({*results.preset.dense, *results.sizes}, reverse=True)
    curves: Dict[str, Curve] = {
        f'I-{size}': {r: results.sample(f'individual_{size}', r) for r in every} for size in results.sizes}
    for sets in INTERPOLATIONS:
        curves[f'RS-Net, {sets}'] = {r: results.sample('rs_net', r, sets=sets) for r in every}
    curves['RS-Net'] = {r: results.sample('rs_net', r) for r in results.sizes}
    return _measured(curves)


def ladder(results: Results) -> Dict[str, Curve]:
    """Step from ordinary weights -> top-1 at each size."""
    return _measured({words: {size: results.sample(run, size) for size in results.sizes}
                      for run, words in LADDER.items()})


# The train-test discrepancy

def features(results: Results) -> Dict[int, Dict[str, Dict[str, Steps]]]:
    """Largest and smallest size -> training -> 'test' and 'train' crops -> the distribution of the pooled features.

    A value is the mean over the seeds at the same share.
    """
    found: Dict[int, Dict[str, Dict[str, Steps]]] = {}
    for size in (results.sizes[0], results.sizes[-1]):
        for label, run in ((f'I-{size}', f'individual_{size}'), ('parallel', 'parallel')):
            rows = results.of(FEATURES, run=run, resolution=size)
            for crops in ('test', 'train') if rows else ():
                at: Dict[float, List[float]] = {}
                for row in rows:
                    if row['crops'] == crops:
                        at.setdefault(float(row['share']), []).append(float(row['value']))
                steps = [mean(values) for values in at.values()], list(at)
                found.setdefault(size, {}).setdefault(label, {})[crops] = steps
    return found


def train_test_gap(curves: Mapping[str, Steps]) -> float:
    """The area between the two distributions, in percent of that left of the test crops' curve.

    Both without the last step: it ends at the maximum of a million values, which would weigh as one percent of them.

    >>> round(train_test_gap({'test': ([0., 1., 9.], [0., .5, 1.]), 'train': ([0., 1.1, 2.2], [0., .5, 1.])}), 6)
    10.0
    """
    (test, shares), (train, _) = curves['test'], curves['train']
    gap = [abs(a - b) for a, b in zip(test, train)]
    return 100. * _area(gap[:-1], shares[:-1]) / _area(test[:-1], shares[:-1])


def _area(values: Sequence[float], shares: Sequence[float]) -> float:
    return sum((b - a) * (x + y) / 2 for a, b, x, y in zip(shares, shares[1:], values, values[1:]))


# Interaction of resolutions

def combinations(results: Results, begin: str = '') -> Dict[str, Tuple[str, Tuple[int, ...]]]:
    """Label of a combination of sizes -> (the run that trains them in parallel, without distillation; the sizes)."""
    found = {}
    for name, run in results.runs.items():
        if name == f'{begin}parallel' or name.startswith(f'{begin}parallel_'):
            sizes = tuple(run.edits.get('resolutions', results.sizes))
            assert name.endswith(prefix(sizes)) or name == f'{begin}parallel'
            found[' & '.join(map(str, sizes))] = name, sizes
    return dict(sorted(found.items(), key=lambda item: len(item[1][1])))  # stable: in the order of the plan


def effects(results: Results, begin: str = '') -> Dict[str, Dict[int, Optional[float]]]:
    """Combination -> {size: top-1 of parallel training minus that of the I-Net of this size; None: not measured}."""
    gains: Dict[str, Dict[int, Optional[float]]] = {}
    for label, (run, sizes) in combinations(results, begin).items():
        pairs = {r: (results.sample(run, r), results.sample(f'{begin}{BASES}_{r}', r)) for r in sizes}
        gains[label] = {r: own.mean - base.mean if own and base else None for r, (own, base) in pairs.items()}
    return gains


# Inside of the networks

def norms(results: Results, run: str = 'parallel') -> Dict[str, Dict[str, Dict[int, List[float]]]]:
    """BatchNorm of a block ('bn1', ...) -> tensor -> {size: its mean over the channels in each block in turn}.

    The mean over the seeds. BatchNorms outside of blocks, and those of shortcuts, are left out, as in Figure 6.
    """
    found: Dict[str, Dict[str, Dict[int, Dict[str, List[float]]]]] = {}
    for row in results.of(NORMS, run=run):
        inside = re.fullmatch(r'(?:layer\d+|blocks)\..+\.(bn\d)', row['layer'])
        for tensor in NORM_TENSORS if inside else ():
            layers = found.setdefault(inside[1], {}).setdefault(tensor, {})  # type: ignore[index]
            layers.setdefault(int(row['resolution']), {}).setdefault(row['layer'], []).append(float(row[tensor]))
    return {
        position: {
            tensor: {r: [mean(values) for values in layers.values()] for r, layers in by_size.items()}
            for tensor, by_size in found[position].items()}
        for position in sorted(found)}


def ordered_blocks(by_size: Mapping[int, Sequence[float]]) -> Tuple[int, int]:
    """(Blocks in which the values rise or fall with the size throughout, blocks).

    >>> ordered_blocks({64: [1., 1.], 48: [2., 3.], 32: [3., 2.]})
    (1, 2)
    """
    blocks = list(zip(*(by_size[r] for r in sorted(by_size))))
    return sum(sorted(block) in (list(block), list(block)[::-1]) for block in blocks), len(blocks)


def alphas(results: Results, run: str = 'rs_net') -> Dict[int, Curve]:
    """Size -> {epoch: weight in the ensemble}; the last epoch is the end."""
    found: Dict[int, Dict[int, Dict[str, float]]] = {}
    for row in results.of(EPOCHS, run=run):
        if row['alpha'] not in ('', 'nan'):
            seeds = found.setdefault(int(row['resolution']), {}).setdefault(int(row['epoch']), {})
            seeds[row['seed']] = float(row['alpha'])
    return {size: {epoch: Sample(seeds) for epoch, seeds in curve.items()}
            for size, curve in sorted(found.items(), reverse=True)}
