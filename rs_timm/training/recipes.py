"""The recipes, each with its run card: command, hardware, and the top-1 that is expected and that was reached."""
import json
import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Dict, Mapping, Tuple, Type

from timm.models import get_pretrained_cfg, is_model

from .recipe import Recipe

__all__ = ['RECIPES', 'get_recipe']

_logger = logging.getLogger(__name__)
_CAMVID = (
    'sky', 'building', 'pole', 'road', 'pavement', 'tree', 'sign', 'fence', 'car', 'pedestrian', 'bicyclist')
_NYUDV2 = (
    'wall', 'floor', 'cabinet', 'bed', 'chair', 'sofa', 'table', 'door', 'window', 'bookshelf', 'picture', 'counter',
    'blinds', 'desk', 'shelves', 'curtain', 'dresser', 'pillow', 'mirror', 'floor mat', 'clothes', 'ceiling', 'books',
    'refrigerator', 'television', 'paper', 'towel', 'shower curtain', 'box', 'whiteboard', 'person', 'night stand',
    'toilet', 'sink', 'lamp', 'bathtub', 'bag', 'other structure', 'other furniture', 'other prop')


@dataclass(frozen=True)
class RSResNet18ImageNet(Recipe):
    """rs_resnet18 on ImageNet as in Section 4.1 of the paper; the rest follows its public code.

    The code feeds pictures in [0, 1] without mean and std, draws the flip per size, does not zero-initialise the last
    BatchNorm of a block, and decays BatchNorm parameters and alpha too.

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_resnet18 --data DIR --recipe rs_resnet18_in1k
        expected  top-1 73.1 / 72.2 / 71.1 / 68.7 / 64.1 at 224 / 192 / 160 / 128 / 96 (paper, Table 2)
        reached   not run
    """

    model_args: Tuple[str, ...] = ('zero_init_last=False',)
    decay_norm: bool = True
    flip: str = 'per_resolution'
    mean: Tuple[float, ...] = (0., 0., 0.)
    std: Tuple[float, ...] = (1., 1., 1.)


@dataclass(frozen=True)
class RSResNet50ImageNet(RSResNet18ImageNet):
    """rs_resnet50 on ImageNet, with the settings of `RSResNet18ImageNet`.

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_resnet50 --data DIR --recipe rs_resnet50_in1k
        expected  top-1 79.3 / 78.8 / 77.9 / 76.3 / 72.7 at 224 / 192 / 160 / 128 / 96 (paper, Table 2)
        reached   not run
    """


@dataclass(frozen=True)
class RSMobileNetV2ImageNet(RSResNet18ImageNet):
    """rs_mobilenetv2 on ImageNet: 150 epochs from 0.05, weight decay 4e-5 (Section 4.1).

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_mobilenetv2 --data DIR --recipe rs_mobilenetv2_in1k
        expected  top-1 73.0 / 72.2 / 71.1 / 68.8 / 63.9 at 224 / 192 / 160 / 128 / 96 (paper, Table 2)
        reached   not run
    """

    model_args: Tuple[str, ...] = ()
    epochs: int = 150
    lr: float = 0.05
    weight_decay: float = 4e-5


@dataclass(frozen=True)
class Imagenette(Recipe):
    """Ten classes from random initialisation in a few hours on two CPU cores.

    Not the paper's settings: one cycle of SGD with Nesterov, label smoothing, 15 epochs at 128..64 and 4 at the real
    sizes, larger crops.

    Run card:
        command   rs-timm train rs_resnet18 --data imagenette --recipe imagenette
        hardware  two CPU cores with bfloat16 instructions
        expected  top-1 at least 88 / 87 / 81 at 224 / 160 / 96
        reached   not run
    """

    epochs: int = 19
    progressive: float = 15 / 19
    batch_size: int = 64
    opt: str = 'sgd'
    lr: float = 0.015
    weight_decay: float = 2e-3
    sched: str = 'onecycle'
    warmup_epochs: float = 4.
    smoothing: float = 0.1
    crop_scale: Tuple[float, ...] = (0.25, 1.)
    precision: str = 'bfloat16'
    channels_last: bool = True


@dataclass(frozen=True)
class ImagenetteStart(Imagenette):
    """The first of two stages: an ordinary network at 128 pixels, whose weights `ImagenetteMRED` goes on with.

    An epoch at 128 pixels costs about an eighth of one at 224 to 96, so most of the way is gone at one size. From
    random initialisation; 10 of the 18 epochs at 96 pixels.

    Run card:
        command   rs-timm train rs_resnet18 --data imagenette --recipe imagenette_start --out runs/start
        hardware  two CPU cores with bfloat16 instructions
        expected  a start for imagenette_mred
        reached   rs_resnet18: top-1 84.7 at 128, in 56 minutes, of which the cores did other work for about half. With
                  --epochs 30 --batch-size 128 --weight-decay 1e-3 --resize device on an NVIDIA H200, which other runs
                  shared: rs_resnet18 86.6, rs_resnet50 84.6, rs_mobilenetv2 79.5, in 1.5, 2.2 and 2.3 minutes
    """

    resolutions: Tuple[int, ...] = (128,)
    epochs: int = 18
    progressive: float = 0.56
    progressive_resolutions: Tuple[int, ...] = (96,)
    lr: float = 0.08
    weight_decay: float = 8e-4
    warmup_epochs: float = 3.


@dataclass(frozen=True)
class ImagenetteMRED(Imagenette):
    """The second of two stages: private BatchNorms for all sizes and MRED, from the weights of `ImagenetteStart`.

    Every set starts as a copy of the one of the first stage. The rate is for the sum of five losses.

    Run card:
        command   rs-timm train rs_resnet18 --data imagenette --recipe imagenette_mred
                  --init runs/start/model/model.safetensors --out runs/mred
        hardware  two CPU cores with bfloat16 instructions
        expected  top-1 at least 88 / 87 / 81 at 224 / 160 / 96: more epochs than two
        reached   rs_resnet18: top-1 84.2 / 84.5 / 84.8 / 84.0 / 80.5 at 224 / 192 / 160 / 128 / 96, in 38 minutes, of
                  which the cores did other work for a third. With --epochs 10 --batch-size 128 --lr 0.02
                  --weight-decay 2.5e-3 --warmup-epochs 1 --resize device on an NVIDIA H200, which other runs shared,
                  the rs_resnet18 that the package ships (the others: docs/train.md); weights/manifest.json has what
                  they reach
    """

    goes_on_from = 'imagenette_start'

    epochs: int = 2
    progressive: float = 0.
    lr: float = 0.008
    weight_decay: float = 1e-3
    warmup_epochs: float = 0.3


@dataclass(frozen=True)
class Finetune(Recipe):
    """Own classes, from a network that knows many: for one to three thousand pictures, on two CPU cores.

    Mean, std and interpolation are those of the weights in `init`. A part of the training pictures is kept aside: the
    epochs are measured on it, the best one is returned, and DIR/val, where there is one, stays untouched for
    `rs-timm eval`. All sizes are trained at one crop, so that one is right for all of them afterwards; which one, the
    pictures kept aside say.

    Run card:
        command   rs-timm train tf_efficientnet_lite0 --init rs_efficientnet_lite0 --data DIR --recipe finetune
        hardware  two CPU cores
        expected  not known: it depends on the pictures
        reached   with --epochs 3 on 1,000 pictures of clothes, those kept aside included: top-1 86.1 / 87.0 / 86.8 /
                  86.1 / 85.0 at 224 / 192 / 160 / 128 / 96 on 341 others, in 9 minutes of one core (mean of two
                  seeds; benchmarks/finetune.py); with --resolutions 224 160 96 87.5 / 87.3 / 83.4 on 2,409
                  others (mean of two seeds); the 8 epochs were not run
    """

    goes_on_from = 'rs_efficientnet_lite0'
    input_of_init = True

    head: str = 'zero'
    epochs: int = 8
    batch_size: int = 32
    opt: str = 'adamw'
    lr: float = 7e-4
    weight_decay: float = 0.01
    warmup_epochs: float = 0.5
    smoothing: float = 0.1
    statistics: str = 'running'
    val_fraction: float = 0.15
    patience: int = 3
    crop_scale: Tuple[float, ...] = (0.35, 1.)
    crop_choices: Tuple[float, ...] = (1., 0.875, 0.75)
    channels_last: bool = True


@dataclass(frozen=True)
class Adapt(Recipe):
    """The smaller sizes learn, from pictures without labels, what the largest one answers; see `rs_timm.adapt`.

    BatchNorm parameters of the smaller sizes move, and nothing else.

    Run card:
        command   rs-timm adapt MODEL --data DIR --out runs/adapted
        hardware  two CPU cores
        expected  not known: it depends on the network and the pictures
        reached   tf_efficientnet_lite1, fine-tuned at 240 px on 1,000 pictures of clothes: top-1 87.7 / 86.5 / 83.2 /
                  75.6 at 192 / 160 / 128 / 96 instead of 84.8 / 80.0 / 72.4 / 61.9 (docs/adapt.md)
    """

    task: str = 'adaptation'
    train: str = 'smaller'
    statistics: str = 'running'
    mred: str = 'none'
    epochs: int = 3
    batch_size: int = 32
    opt: str = 'adamw'
    lr: float = 1e-3
    weight_decay: float = 0.
    warmup_epochs: float = 0.2
    val_fraction: float = 0.1
    crop_scale: Tuple[float, ...] = (0.35, 1.)
    channels_last: bool = True


@dataclass(frozen=True)
class LQImageNet(Recipe):
    """The quantised networks on ImageNet: LQ-Nets' schedule (Section 4.1) and their weight decay, with MRED.

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_resnet18_w2a32 --data DIR --recipe lq_in1k
        expected  top-1 68.8 / 67.6 / 66.0 / 63.1 / 56.6 at 224 / 192 / 160 / 128 / 96 (paper, Table 3)
        reached   not run
    """

    opt: str = 'sgd'
    weight_decay: float = 5e-5
    sched: str = 'multistep'


@dataclass(frozen=True)
class LQImagenette(Imagenette):
    """A quantised network on ten classes at 128..64, on two CPU cores.

    The settings of `Imagenette`, not tuned for quantised weights; `--init` with full-precision weights is a start.

    Run card:
        command   rs-timm train rs_resnet18_w2a32 --data imagenette --recipe lq_imagenette
                  --init WEIGHTS --epochs 3 --warmup-epochs 0.5 --lr 0.008
        hardware  two CPU cores with bfloat16 instructions
        expected  about the top-1 of the weights it starts from; from scratch: nothing known
        reached   top-1 84.8 / 84.1 / 82.6 / 81.6 / 78.5 at 128 / 112 / 96 / 80 / 64 from a network with 84.4 / 83.5 /
                  82.1 / 80.6 / 76.7, in 28 minutes, of which the cores did other work for a third
    """

    resolutions: Tuple[int, ...] = (128, 112, 96, 80, 64)
    epochs: int = 15
    progressive: float = 0.


@dataclass(frozen=True)
class RSRefineNetNYUDv2(Recipe):
    """rs_refinenet_resnet101 on NYUDv2: 795 training and 654 test pictures, 40 classes (Appendix B).

    Sizes, classes and split are the paper's. It gives no settings of the optimizer: these are ours. Mask values are 1
    to 40, and 0 for none.

    Run card:
        command   torchrun --nproc-per-node 4 -m rs_timm train rs_refinenet_resnet101 --data DIR --recipe
                  rs_refinenet_nyudv2 --splits train test --init resnet101.a1_in1k
        expected  mean IoU 44.1 / 42.6 / 32.1 at 352 / 224 / 96 (paper, Table 7)
        reached   not run
    """

    task: str = 'segmentation'
    labels: Tuple[str, ...] = _NYUDV2
    ignore_label: int = 0
    resolutions: Tuple[int, ...] = (352, 224, 96)
    epochs: int = 200
    batch_size: int = 16
    opt: str = 'adamw'
    lr: float = 2e-4
    weight_decay: float = 1e-2
    clip_grad: float = 1.
    sched: str = 'poly'
    decay_rate: float = 0.9  # the power, in timm's poly
    warmup_epochs: float = 5.
    crop_scale: Tuple[float, ...] = (0.25, 1.)
    crop_ratio: Tuple[float, ...] = (1., 16 / 9)  # around 4:3, the pictures' own, which evaluation squeezes to a square
    crop_pct: float = 1.
    color_jitter: float = 0.3

    def debug(self) -> 'Recipe':
        """The twin as of any recipe, with no size below the output stride of 32."""
        return replace(super().debug(), resolutions=tuple(r // 8 + 20 for r in self.resolutions))


@dataclass(frozen=True)
class RSRefineNetCamVid(RSRefineNetNYUDv2):
    """rs_refinenet_resnet18 on CamVid, 11 classes, at the paper's three sizes, on two CPU cores.

    The decoder has 64 channels: the maps of ResNet18 have a quarter of the channels of ResNet101's, for which the
    decoder of 256 was made.

    Run card:
        command   rs-timm train rs_refinenet_resnet18 --data camvid --recipe camvid --init rs_resnet18.mred_imagenette
        hardware  two CPU cores with bfloat16 instructions
        expected  not known: the paper has no CamVid
        reached   mean IoU 40.8 / 40.2 / 37.4 at 352 / 224 / 96 with --epochs 7 --warmup-epochs 1; the 60 epochs were
                  not run
    """

    labels: Tuple[str, ...] = _CAMVID
    ignore_label: int = 11
    model_args: Tuple[str, ...] = ('features=64', 'drop_rate=0.1')
    epochs: int = 60
    batch_size: int = 8
    lr: float = 1e-3
    precision: str = 'bfloat16'
    channels_last: bool = True


RECIPES: Dict[str, Type[Recipe]] = {
    'rs_resnet18_in1k': RSResNet18ImageNet,
    'rs_resnet50_in1k': RSResNet50ImageNet,
    'rs_mobilenetv2_in1k': RSMobileNetV2ImageNet,
    'imagenette': Imagenette,
    'imagenette_start': ImagenetteStart,
    'imagenette_mred': ImagenetteMRED,
    'finetune': Finetune,
    'adapt': Adapt,
    'lq_in1k': LQImageNet,
    'lq_imagenette': LQImagenette,
    'rs_refinenet_nyudv2': RSRefineNetNYUDv2,
    'camvid': RSRefineNetCamVid,
}


def get_recipe(name: str, debug: bool = False, **changes: Any) -> Recipe:
    """The recipe `name` with some fields changed; with `debug` its twin, before the changes.

    >>> get_recipe('imagenette', epochs=12).small_epochs
    9

    Fewer epochs than the recipe's own `progressive` needs lower it, so that one of them is at the real sizes; a
    `progressive` among the changes is taken as it is.

    >>> get_recipe('imagenette', epochs=2).progressive
    0.5

    Raises:
        ValueError: an unknown recipe or field, or a value outside its range.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown: use one of {', '.join(RECIPES)}.")
    unknown = sorted(set(changes) - {field.name for field in fields(Recipe)})
    if unknown:
        known = ', '.join(field.name for field in fields(Recipe))
        raise ValueError(f'a recipe has no field {unknown[0]!r}: it has {known}.')
    recipe = RECIPES[name]()
    recipe = recipe.debug() if debug else recipe
    recipe = replace(recipe, **{**_shorter_progressive(recipe, changes), **changes})
    of_init = _input_of(recipe.init) if recipe.input_of_init and recipe.init else {}
    return replace(recipe, **{key: value for key, value in of_init.items() if key not in changes})


def _input_of(init: str) -> Dict[str, Any]:
    """Mean, std and interpolation of the weights `init`, as far as they are known: those of a name, or of a folder."""
    config = Path(init.removeprefix('local-dir:')) / 'config.json'
    if config.is_file():
        cfg = json.loads(config.read_text(encoding='utf-8')).get('pretrained_cfg', {})
    elif is_model(init):
        cfg = get_pretrained_cfg(init).to_dict()
    else:
        _logger.warning('%s: the mean, std and interpolation that these weights know are not noted there: those of the '
                        'recipe are taken (--mean, --std, --interpolation)', init)
        return {}
    known = {key: cfg[key] for key in ('mean', 'std', 'interpolation') if cfg.get(key)}
    return {key: value if isinstance(value, str) else tuple(value) for key, value in known.items()}


def _shorter_progressive(recipe: Recipe, changes: Mapping[str, Any]) -> Dict[str, float]:
    """The share of `recipe`, where it would leave none of the epochs in `changes` at the real sizes."""
    epochs = changes.get('epochs', recipe.epochs)
    if 'progressive' in changes or epochs < 1 or round(recipe.progressive * epochs) < epochs:
        return {}
    share = (epochs - 1) / epochs
    _logger.warning('progressive %.3g would leave none of %d epochs at the real sizes: it is %.3g instead',
                    recipe.progressive, epochs, share)
    return {'progressive': share}
