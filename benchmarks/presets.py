"""The scales at which the paper's experiments run: its own on ImageNet, and one that two CPU cores carry.

Learning rates of the small presets. The loss of S resolutions is a sum of S cross-entropies (Equation 2), so that its
gradient is about S times that of an individual network. Equal rates would therefore be unfair to one side: what is
held equal is the rate on the *mean* of the S losses, MEAN_LR. Since S * lr(mean) = lr(sum), a run with S resolutions
uses MEAN_LR / S, and MEAN_DECAY * S for the weight decay, whose effect is the product of both. A private BatchNorm set
gets the gradient of one loss alone, so that its rate is MEAN_LR itself (`private_lr` = S). (The long schedules of the
paper need no such care: the scale of the gradient is absorbed by the norm of the weights within some epochs, and it
uses 0.1 everywhere; the ImageNet presets do so too.) The preset `pilot` tries half and twice the rate for each kind of
loss, and tests/test_benchmarks_runs.py fails when MEAN_LR is not the best of what the pilot measured.
"""
from dataclasses import dataclass, field, replace
from typing import Dict, Mapping, Tuple

from rs_timm.training import Recipe, get_recipe

KINDS = ('individual', 'parallel', 'mred')  # of losses: one resolution; several; several with distillation
MEAN_LR: Dict[str, float] = {'individual': 0.15, 'parallel': 0.15, 'mred': 0.15}
MEAN_DECAY = 4e-4


@dataclass(frozen=True)
class Preset:
    """A scale: which network on which data, with which settings.

    Attributes:
        name: as on the command line.
        model: what is trained.
        recipe_name: of `rs_timm.training.RECIPES`, which `recipe` was made from.
        recipe: settings of the RS-Net; a run edits them.
        dense: sizes in pixels of Figure 4, trained and not.
        far: sizes of Table 8.
        data: what it is trained and tested on, in words.
        classes: outputs of the network.
        about: one line for tables.
        mean_lr: kind of loss -> learning rate on the mean of the losses; empty: the recipe's rate for all.
        private_rates: private BatchNorm sets move at `mean_lr`, since each gets the gradient of one loss alone.
        aside: share of the training pictures that is tested on in place of the test split; of videos, their ends.
    """

    name: str
    model: str
    recipe_name: str
    recipe: Recipe
    dense: Tuple[int, ...] = ()
    far: Tuple[int, ...] = ()
    data: str = 'ImageNet'
    classes: int = 1000
    about: str = ''
    mean_lr: Mapping[str, float] = field(default_factory=dict)
    private_rates: bool = False
    aside: float = 0.

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """The trained sizes in pixels, largest first."""
        return self.recipe.resolutions

    @property
    def network(self) -> str:
        """The network's name in `benchmarks.published`."""
        return self.model.removeprefix('rs_')


def _imagenet(network: str) -> Preset:
    name = f'rs_{network}_in1k'
    recipe = get_recipe(name)
    return Preset(
        name=f'imagenet_{network}',
        model=f'rs_{network}',
        recipe_name=name,
        recipe=recipe,
        dense=(448, 384, 352, 288, 256, 240, *range(224, 95, -16), 80, 64),
        far=(64, 128, 224, 288, 352, 384, 448),
        about=f'{network} on ImageNet, {recipe.epochs} epochs: the settings of the paper',
    )


# One cycle of SGD with Nesterov as in the recipe, at the real sizes throughout. Crops of 8 to 100 % and no label
# smoothing are the paper's: both bear on what is measured (the train-test discrepancy; distillation and calibration).
_SMALL = get_recipe(
    'imagenette',
    resolutions=(128, 112, 96, 80, 64),
    epochs=8,
    lr=round(MEAN_LR['mred'] / 5, 6),
    private_lr=5.,
    progressive=0.,
    warmup_epochs=2.,
    smoothing=0.,
    crop_scale=(0.08, 1.),
    batch_size=64,
    precision='bfloat16',
)
_SMALL_PRESET = Preset(
    name='small',
    model='rs_resnet18',
    recipe_name='imagenette',
    recipe=_SMALL,
    dense=(256, 224, 192, 160, 144, *range(128, 39, -8)),
    far=(40, 72, 128, 160, 192, 224, 256),
    data='Imagenette',
    classes=10,
    about=f'ResNet18 on Imagenette (ten classes), {_SMALL.epochs} epochs from random initialisation',
    mean_lr=MEAN_LR,
    private_rates=True,
)
_PILOT_PRESET = Preset(
    name='pilot',
    model='rs_resnet18',
    recipe_name='imagenette',
    recipe=get_recipe('imagenette', resolutions=(64, 56, 48, 40, 32), epochs=3, lr=_SMALL.lr, private_lr=5.,
                      progressive=0., warmup_epochs=1., smoothing=0., crop_scale=(0.08, 1.), batch_size=64,
                      precision='bfloat16'),
    data='Imagenette',
    classes=10,
    about='the small preset at half the sizes, three epochs, to find the learning rate',
    mean_lr=MEAN_LR,
    private_rates=True,
)
# Every table of classifiers, for which `small` would take days, and distillations on trial. Tested on training pictures
# kept aside, since a distillation may be chosen by it.
_BRIEF_PRESET = Preset(
    name='brief',
    model='rs_resnet18',
    recipe_name='imagenette',
    recipe=replace(_PILOT_PRESET.recipe, resolutions=(64, 48, 32), epochs=4, lr=MEAN_LR['mred'] / 3, private_lr=3.),
    data='Imagenette',
    classes=10,
    about='ResNet18 on four fifths of the training pictures of Imagenette (ten classes), 4 epochs from random '
          'initialisation, tested on the last fifth',
    mean_lr=MEAN_LR,
    private_rates=True,
    aside=0.2,
)
# AdamW does not see the scale of a gradient, so that a sum of five losses needs no other rate than one. float32, since
# torch's bfloat16 kernels on CPUs are not to be trusted with all channel counts of this network. 64 updates of 32
# pictures are about five minutes of two cores.
_LADDER_PRESET = Preset(
    name='ladder',
    model='tf_efficientnet_lite0',
    recipe_name='imagenette',
    recipe=get_recipe('imagenette', epochs=1, limit_batches=64, batch_size=32, progressive=0., opt='adamw', lr=2e-4,
                      weight_decay=0.01, sched='cosine', warmup_epochs=0.2, smoothing=0., interpolation='bicubic',
                      mean=(0.5,) * 3, std=(0.5,) * 3, precision='float32'),
    data='Imagenette',
    classes=10,
    about='EfficientNet-Lite0 with its ImageNet weights, logits restricted to the ten classes of Imagenette',
)
# The encoder starts from the project's own weights. AdamW, so that one rate serves one loss and the sum of three.
_CAMVID_PRESET = Preset(
    name='camvid',
    model='rs_refinenet_resnet18',
    recipe_name='camvid',
    recipe=get_recipe('camvid', epochs=7, warmup_epochs=1., init='rs_resnet18.mred_imagenette'),
    data='CamVid',
    classes=11,
    about='RefineNet with 64 channels on ResNet18, CamVid (eleven classes), 7 epochs',
)
# Three epochs in batches of 4 are 213 updates, two thirds of those of `camvid`.
_CAMVID_PILOT_PRESET = Preset(
    name='camvid_pilot',
    model='rs_refinenet_resnet18',
    recipe_name='camvid',
    recipe=replace(_CAMVID_PRESET.recipe, resolutions=(96, 64, 48), epochs=3, batch_size=4),
    data='CamVid',
    classes=11,
    about='the network of the preset camvid at smaller sizes, 3 epochs, tested on the last fifth of each sequence of '
          'its training pictures',
    aside=0.2,
)
# From full-precision weights, so that few epochs do. Learning rates on the mean as in the small preset.
_QUANTISED_PRESET = Preset(
    name='quantised',
    model='rs_resnet18',
    recipe_name='lq_imagenette',
    recipe=get_recipe('lq_imagenette', epochs=3, warmup_epochs=0.5),
    data='Imagenette',
    classes=10,
    about='ResNet18 on Imagenette (ten classes), quantised from full-precision weights',
    mean_lr=dict.fromkeys(KINDS, 0.04),
)
# The same comparison with equal starts and private sets at the rate of an individual network, at smaller sizes.
_EQUAL_STARTS_PRESET = replace(
    _QUANTISED_PRESET,
    name='quantised_equal_starts',
    model='rs_resnet18_w2a32',
    recipe=replace(_QUANTISED_PRESET.recipe, resolutions=(96, 64, 48), epochs=2),
    about='ResNet18 2/32 on Imagenette (ten classes), 2 epochs from one ordinary network that was trained at 80 px',
    private_rates=True,
)
PRESETS: Dict[str, Preset] = {
    preset.name: preset
    for preset in (_SMALL_PRESET, _LADDER_PRESET, _PILOT_PRESET, _BRIEF_PRESET, _CAMVID_PRESET, _CAMVID_PILOT_PRESET,
                   _QUANTISED_PRESET, _EQUAL_STARTS_PRESET,
                   *map(_imagenet, ('resnet18', 'resnet50', 'mobilenetv2')))
}
