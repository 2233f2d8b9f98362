"""The named runs behind the paper's tables and figures: the recipe of a preset, and named edits.

>>> for name, run in runs(PRESETS['small']).items():  # doctest: +SKIP
...     print(name, run.edits)
"""
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

from benchmarks.presets import KINDS, MEAN_DECAY, MEAN_LR, PRESETS, Preset
from rs_timm.training import Recipe

# what runs are for, in the order in which a queue makes them
GROUPS = {
    'pilot': 'half and twice the learning rate for each kind of loss',
    'table2': 'Table 2, Table 1, Table 8, Figures 1, 3, 4, 6, Appendix A',
    'figure4': 'Figure 4, left: shared BatchNorms',
    'rates': 'one learning rate for shared weights and private BatchNorms',
    'table5': 'Table 5: kinds of distillation',
    'ladder': 'from ordinary weights: what minutes buy',
    'table6': 'Table 6: one crop or several, one resolution or several',
    'figure5': 'Figures 5 and 9: interaction of resolutions, crops of 8 to 100 %',
    'figure9': 'Figure 9: interaction of resolutions, crops of 30 to 100 %',
    'table3': 'Table 3: quantised networks',
    'table7': 'Table 7: semantic segmentation',
    'pilot5': 'Table 5: distillations that the package does not have',
    'pilot7': 'Table 7: what the RS-Net lacks, on training pictures kept aside',
}


@dataclass(frozen=True)
class Run:
    """One experiment: what of the preset's recipe is changed, and what is measured besides top-1 and top-5.

    Attributes:
        name: unique within a preset.
        group: one of `GROUPS`.
        edits: fields of `Recipe` -> value.
        seeds: those that are planned.
        dense: measured at the preset's dense sizes too.
        features: the distribution of the pooled features is kept (Figure 3).
        model: what is trained, if not the preset's.
        int8: measured as the runtime's int8 networks too.
        start: the run of this preset, with the same seed, whose weights this one starts from.
        trains: false: the network is measured as it is, or after `prior_images` of recalibration.
        prior_images: weight of the old statistics in a recalibration; None: none.
        trial: settings of a distillation that the package does not have, see `benchmarks.trials`.
    """

    name: str
    group: str
    edits: Mapping[str, Any] = field(default_factory=dict)
    seeds: Tuple[int, ...] = (0,)
    dense: bool = False
    features: bool = False
    model: str = ''
    start: str = ''
    int8: bool = False
    trains: bool = True
    prior_images: Optional[float] = None
    trial: Mapping[str, Any] = field(default_factory=dict)

    def recipe(self, preset: Preset, seed: int = 0, epochs: Optional[int] = None, debug: bool = False) -> Recipe:
        """The settings of this run; with `debug` those of its twin, which finishes in seconds."""
        edited = replace(preset.recipe, **{**_rates(preset, self.edits), **self.edits}, seed=seed)
        if debug:
            edited = replace(edited.debug(), precision='float32')  # seconds also where a CPU emulates bfloat16
        return replace(edited, epochs=epochs) if epochs else edited


def _rates(preset: Preset, edits: Mapping[str, Any]) -> Dict[str, float]:
    """Learning rates and weight decay of a sum of S losses, from those of their mean; see `benchmarks.presets`."""
    if not preset.mean_lr:
        return {}
    count = len(edits.get('resolutions', preset.resolutions))
    kind = KINDS[0] if count == 1 else KINDS[1] if edits.get('mred') == 'none' else KINDS[2]
    rates = dict(lr=round(preset.mean_lr[kind] / count, 6), weight_decay=round(MEAN_DECAY * count, 8))
    if preset.private_rates:
        rates['private_lr'] = 1. if edits.get('shared_bn') else float(count)
    return rates


def prefix(resolutions: Sequence[int]) -> str:
    """The part of a run's name that names its resolutions."""
    return '_'.join(map(str, resolutions))


def runs(preset: Preset) -> Dict[str, Run]:
    """The runs of a preset by name, those that matter most first."""
    of_preset = {'pilot': _pilot, 'brief': _brief, 'ladder': _ladder, 'camvid': _camvid, 'camvid_pilot': _camvid_pilot,
                 'quantised': _quantised, 'quantised_equal_starts': _equal_starts}
    return {run.name: run for run in of_preset.get(preset.name, _paper)(preset)}


def _pilot(preset: Preset) -> Iterator[Run]:
    largest = preset.resolutions[:1]
    edits: Dict[str, Dict[str, Any]] = dict(zip(KINDS, (dict(resolutions=largest), dict(mred='none'), {})))
    for kind, own in edits.items():
        for factor in (0.5, 1., 2.):
            lr = round(factor * preset.mean_lr[kind] / len(own.get('resolutions', preset.resolutions)), 6)
            yield Run(f'{kind}_lr{factor * preset.mean_lr[kind]:g}', 'pilot', dict(own, lr=lr))


# Settings of `benchmarks.trials.Trial`.
TRIALS: Dict[str, Dict[str, Any]] = {
    'temperature2': dict(temperature=2.),
    'double': dict(weight=2.),
    'mutual': dict(mutual=True),
    'equal_weights': dict(ensemble='equal'),
    'by_entropy': dict(ensemble='entropy'),
    'ema_teacher': dict(ema_decay=0.98),
}


def _brief(preset: Preset) -> Iterator[Run]:
    yield from (run for run in _paper(preset) if run.group not in ('figure4', 'rates'))
    for name, trial in TRIALS.items():
        yield Run(name, 'pilot5', trial=trial)


def _ladder(preset: Preset) -> Iterator[Run]:
    yield Run('untouched', 'ladder', trains=False)
    yield Run('recalibrated', 'ladder', trains=False, prior_images=100000)
    yield Run('replaced', 'ladder', trains=False, prior_images=0)
    yield Run('bn', 'ladder', dict(train='bn', lr=1e-3))
    yield Run('full', 'ladder')


def _quantised(preset: Preset) -> Iterator[Run]:
    """The full-precision networks come first; 2/32 goes on from the ordinary one, 2/2 from a pre-activation one."""
    largest, smallest = preset.resolutions[0], preset.resolutions[-1]
    yield Run('full_precision', 'table3', dict(epochs=2, init='rs_resnet18.mred_imagenette'), int8=True)
    yield Run('w2a32', 'table3', model='rs_resnet18_w2a32', start='full_precision')
    for size in (largest, smallest):
        yield Run(f'w2a32_individual_{size}', 'table3', dict(resolutions=(size,)), model='rs_resnet18_w2a32',
                  start='full_precision')
    yield Run('preactivation', 'table3', dict(resolutions=(96,), epochs=8, lr=0.08), model='resnetv2_18')
    yield Run('w2a2', 'table3', model='rs_resnet18_w2a2', start='preactivation')


def _equal_starts(preset: Preset) -> Iterator[Run]:
    """All go on from one network, whose size is none of theirs."""
    yield Run('ordinary', 'table3', dict(resolutions=(80,), epochs=6, progressive=0.5, lr=MEAN_LR[KINDS[0]]),
              model='rs_resnet18')
    for size in reversed(preset.resolutions):
        yield Run(f'individual_{size}', 'table3', dict(resolutions=(size,)), start='ordinary')
    yield Run('rs_net', 'table3', start='ordinary')


def _camvid(preset: Preset) -> Iterator[Run]:
    for size in preset.resolutions:
        yield Run(f'individual_{size}', 'table7', dict(resolutions=(size,)))
    yield Run('rs_net', 'table7')
    yield Run('parallel', 'table7', dict(mred='none'))
    yield Run('vanilla', 'table7', dict(mred='vanilla'))
    few = dict(epochs=1, limit_batches=4, batch_size=2, lr=2e-4, warmup_epochs=0.5, init='', model_args=())
    yield Run('resnet101_four_updates', 'table7', few, model='rs_refinenet_resnet101')


LONG = 12  # epochs, four times those of the other runs of the pilot


def _camvid_pilot(preset: Preset) -> Iterator[Run]:
    """71 updates an epoch, 213 in all."""
    two = dict(seeds=(0, 1))
    yield Run('parallel', 'pilot7', dict(mred='none'), **two)
    yield Run('rs_net', 'pilot7', **two)
    yield Run('late', 'pilot7', trial=dict(first=106), **two)
    for size in preset.resolutions:
        yield Run(f'individual_{size}', 'pilot7', dict(resolutions=(size,)), **two)
    yield Run('larger', 'pilot7', dict(mred='larger'))
    yield Run('quarter', 'pilot7', trial=dict(weight=0.25))
    yield Run('largest', 'pilot7', dict(mred='largest'))
    yield Run('rs_net_lr2', 'pilot7', dict(lr=2 * preset.recipe.lr))
    half = dict(lr=preset.recipe.lr / 2)
    yield Run('half_rs_net', 'pilot7', half)
    yield Run('half_parallel', 'pilot7', dict(half, mred='none'))
    for size in preset.resolutions:
        yield Run(f'half_individual_{size}', 'pilot7', dict(half, resolutions=(size,)))
    yield Run('rs_net_private_lr3', 'pilot7', dict(private_lr=3.))
    long = dict(epochs=LONG)
    yield Run('long_rs_net', 'pilot7', long, **two)
    yield Run('long_parallel', 'pilot7', dict(long, mred='none'), **two)
    for size in preset.resolutions:
        yield Run(f'long_individual_{size}', 'pilot7', dict(long, resolutions=(size,)), **two)


def _paper(preset: Preset) -> Iterator[Run]:
    sizes = preset.resolutions
    two = dict(seeds=(0, 1))
    for size in sizes:
        edits = dict(resolutions=(size,))
        yield Run(f'individual_{size}', 'table2', edits, dense=True, features=size in (sizes[0], sizes[-1]), **two)
    yield Run('parallel', 'table2', dict(mred='none'), features=True, **two)
    yield Run('rs_net', 'table2', dense=True, **two)
    yield Run('shared_bn', 'figure4', dict(mred='none', shared_bn=True))
    if preset.private_rates:
        yield Run('one_rate_parallel', 'rates', dict(mred='none', private_lr=1.))
        yield Run('one_rate_rs_net', 'rates', dict(private_lr=1.))
    for mode in ('vanilla', 'largest', 'larger'):
        yield Run(mode, 'table5', dict(mred=mode))
    yield Run('multi_crop', 'table6', dict(crop='per_resolution'))
    for size in sizes:
        yield Run(f'single_resolution_{size}', 'table6', dict(crop='per_resolution', same_size=size))
    combinations = [(sizes[0], small) for small in sizes[1:]] + [sizes[:n] for n in range(3, len(sizes))]
    for chosen in combinations:
        yield Run(f'parallel_{prefix(chosen)}', 'figure5', dict(mred='none', resolutions=chosen))
    large_crops = dict(crop_scale=(0.3, 1.))
    for size in sizes:
        yield Run(f'crop30_individual_{size}', 'figure9', dict(large_crops, resolutions=(size,)))
    for chosen in [*combinations, sizes]:
        edits = dict(large_crops, mred='none', resolutions=chosen)
        yield Run(f'crop30_parallel_{prefix(chosen)}', 'figure9', edits)


def settings(recipe: Recipe) -> str:
    """All that differs from the defaults of `Recipe` but the seed, as text: what a row of results was made with."""
    default = asdict(Recipe())
    changes = {key: mine for key, (mine, _) in recipe.differences(default).items() if key not in ('seed', 'init')}
    return ' '.join(f'{key}={_text(value)}' for key, value in changes.items())


def _text(value: Any) -> str:
    return ','.join(f'{v:g}' if isinstance(v, float) else str(v) for v in value) if isinstance(value, tuple) else str(
        value)


@dataclass(frozen=True)
class Job:
    """A run with a seed: what is started, resumed and measured as one."""

    preset: Preset
    run: Run
    seed: int

    @property
    def model(self) -> str:
        """The name of the network."""
        return self.run.model or self.preset.model

    @property
    def key(self) -> Dict[str, str]:
        """The columns that identify its rows in every results file."""
        return dict(preset=self.preset.name, run=self.run.name, seed=str(self.seed))

    def __str__(self) -> str:
        return f'{self.preset.name}/{self.run.name}-s{self.seed}'


def jobs(presets: Sequence[str], names: Sequence[str] = (), seed: Optional[int] = None) -> List[Job]:
    """The planned jobs of some presets in the order of a queue: by group, then seed, then as they stand in `runs`.

    >>> [str(job) for job in jobs(['small'], ['figure4', 'rs_net'])]
    ['small/rs_net-s0', 'small/rs_net-s1', 'small/shared_bn-s0']

    Args:
        presets: names of `PRESETS`.
        names: of runs or `GROUPS`; none: all.
        seed: in place of the planned ones.

    Raises:
        ValueError: a name that is neither a run of these presets nor a group.
    """
    found = [(PRESETS[name], run) for name in presets for run in runs(PRESETS[name]).values()]
    known = {run.name for _, run in found} | set(GROUPS)
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f'run {unknown[0]!r} is unknown: --list shows those of {", ".join(presets)}; groups of them '
                         f'are {", ".join(GROUPS)}.')
    order = list(GROUPS)
    made = [
        Job(preset, run, number) for preset, run in found if not names or {run.name, run.group} & set(names)
        for number in (run.seeds if seed is None else (seed,))
    ]
    return sorted(made, key=lambda job: (order.index(job.run.group), job.seed))
