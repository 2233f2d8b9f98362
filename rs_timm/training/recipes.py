"""Recipes: everything that decides the result of a training run, each with its run card."""
import ast
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Dict, Mapping, Optional, Tuple, Type

__all__ = ['RECIPES', 'Recipe', 'get_recipe']

TRAINABLE = ('all', 'head', 'bn')
PRECISIONS = ('float32', 'bfloat16', 'float16')


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; any of them can be given on the command line of `rs-timm train`.

    >>> recipe = get_recipe('imagenette', epochs=2, resolutions=(96, 64))
    >>> recipe.epochs, recipe.resolutions
    (2, (96, 64))

    Raises:
        ValueError: a value outside its range; the message names the field.
    """

    # Network
    resolutions: Tuple[int, ...] = (224, 192, 160, 128, 96)  # one: the paper's I-Net
    shared_bn: bool = False  # the ablation: one BatchNorm set for all sizes
    model_args: Tuple[str, ...] = ()  # further arguments of the network, such as zero_init_last=False
    init: str = ''  # start from these weights: a name of timm or rs_timm with weights, or a file
    train: str = 'all'  # 'bn': BatchNorms; 'head': those and the classifier; 'all'
    # Loss
    mred: str = 'full'
    smoothing: float = 0.  # label smoothing
    # Optimisation
    epochs: int = 120
    batch_size: int = 256  # pictures per update, over all processes and accumulated parts
    accumulate: int = 1  # parts in which a batch goes through the network
    opt: str = 'momentum'  # a name of timm.optim; 'momentum' is SGD without Nesterov
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm: bool = False  # weight decay on BatchNorm, biases and alpha too
    clip_grad: float = 0.  # largest norm of the gradient; 0: as it is
    ema: float = 0.  # decay of the moving average of the weights, which is then what is evaluated; 0: none
    sched: str = 'cosine'  # cosine, onecycle, step, multistep, poly, tanh
    warmup_epochs: float = 0.
    warmup_lr: float = 1e-5
    min_lr: float = 0.
    decay_epochs: float = 30.  # step
    decay_milestones: Tuple[int, ...] = (30, 60, 85, 95, 105)  # multistep
    decay_rate: float = 0.1  # step, multistep
    progressive: int = 0  # so many first epochs at smaller sizes: the same sets, fed with smaller pictures
    progressive_resolutions: Tuple[int, ...] = ()  # those sizes; empty: 4/7 of the real ones, rounded up to 16
    # Data
    crop_scale: Tuple[float, float] = (0.08, 1.)  # area of the random crop / area of the picture
    crop_ratio: Tuple[float, float] = (3 / 4, 4 / 3)  # its aspect ratio
    hflip: float = 0.5
    flip: str = 'shared'  # 'per_resolution': drawn for each size, as in the paper's public code
    resize: str = 'loader'  # 'device': the largest size is made by the loader, the others from it on the device
    interpolation: str = 'bilinear'
    crop_pct: float = 0.875  # evaluation
    mean: Tuple[float, ...] = (0.485, 0.456, 0.406)
    std: Tuple[float, ...] = (0.229, 0.224, 0.225)
    color_jitter: float = 0.
    auto_augment: str = ''  # a policy of timm, such as rand-m6-mstd0.5
    re_prob: float = 0.  # random erasing
    mixup: float = 0.
    cutmix: float = 0.
    # Numerics
    precision: str = 'float32'
    channels_last: bool = False
    sync_bn: bool = False  # BatchNorm statistics over all processes; CUDA alone
    lean: bool = False  # memory of the largest resolution alone
    seed: int = 0
    limit_batches: int = 0  # at most so many updates per epoch and batches per evaluation; 0: all

    def __post_init__(self) -> None:
        for field, allowed in (('train', TRAINABLE), ('precision', PRECISIONS)):
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} {getattr(self, field)!r} is unknown: use one of {', '.join(allowed)}.")
        for field in ('epochs', 'batch_size', 'accumulate'):
            if getattr(self, field) < 1:
                raise ValueError(f'{field} {getattr(self, field)}: it must be at least 1.')
        if not 0 <= self.progressive < self.epochs:
            raise ValueError(f'progressive {self.progressive}: it must leave at least one of the {self.epochs} epochs at the '
                             'real sizes.')
        if self.progressive_resolutions and len(self.progressive_resolutions) != len(self.resolutions):
            raise ValueError(f'progressive_resolutions {self.progressive_resolutions}: name one smaller size for each of '
                             f'{self.resolutions}.')

    def sizes(self, epoch: int) -> Dict[int, int]:
        """Resolution of a BatchNorm set -> size in pixels of the pictures that it is fed with in `epoch` (from 0)."""
        sets = sorted(self.resolutions, reverse=True)
        if epoch >= self.progressive:
            return {r: r for r in sets}
        small = sorted(self.progressive_resolutions, reverse=True) or [-(-r * 4 // (7 * 16)) * 16 for r in sets]
        return dict(zip(sets, small))

    def model_kwargs(self) -> Dict[str, Any]:
        """`model_args` as keyword arguments; values are Python literals, or strings."""
        return dict(_key_value(text) for text in self.model_args)

    def debug(self) -> 'Recipe':
        """The twin on the same path that finishes in a minute on a CPU: a few steps on small pictures."""
        small = tuple(r // 4 for r in self.resolutions)
        progressive = min(self.progressive, 1)
        return replace(
            self,
            resolutions=small,
            epochs=2,
            progressive=progressive,
            progressive_resolutions=tuple(r * 4 // 7 for r in small) if progressive else (),
            batch_size=8 * self.accumulate,
            warmup_epochs=min(self.warmup_epochs, 1),
            limit_batches=3,
        )

    def differences(self, other: Mapping[str, Any]) -> Dict[str, Tuple[Any, Any]]:
        """Field -> (mine, theirs) wherever the settings of another run, as made by `asdict`, differ.

        A field that the other run did not know yet had the value that is its default now.
        """
        mine, theirs = asdict(self), {**asdict(Recipe()), **other}
        return {key: (mine[key], theirs[key]) for key in mine if mine[key] != theirs[key]}


def _key_value(text: str) -> Tuple[str, Any]:
    key, separator, value = text.partition('=')
    if not (separator and key.isidentifier()):
        raise ValueError(f'model_args {text!r}: expected NAME=VALUE, such as zero_init_last=False.')
    try:
        return key, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return key, value


@dataclass(frozen=True)
class RSResNet18ImageNet(Recipe):
    """rs_resnet18 on ImageNet as in Section 4.1 of the paper; the rest follows its public code.

    The code feeds pictures in [0, 1] without mean and std, draws the flip per size, does not zero-initialise the last
    BatchNorm of a block, and decays BatchNorm parameters and alpha too.

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_resnet18 --data IMAGENET --recipe rs_resnet18_in1k
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
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_resnet50 --data IMAGENET --recipe rs_resnet50_in1k
        expected  top-1 79.3 / 78.8 / 77.9 / 76.3 / 72.7 at 224 / 192 / 160 / 128 / 96 (paper, Table 2)
        reached   not run
    """


@dataclass(frozen=True)
class RSMobileNetV2ImageNet(RSResNet18ImageNet):
    """rs_mobilenetv2 on ImageNet: 150 epochs from 0.05, weight decay 4e-5 (Section 4.1).

    Run card:
        command   torchrun --nproc-per-node 8 -m rs_timm train rs_mobilenetv2 --data IMAGENET --recipe rs_mobilenetv2_in1k
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
        hardware  two CPU cores with bfloat16 matrix units
        expected  top-1 at least 88 / 87 / 81 at 224 / 160 / 96
        reached   not run
    """

    epochs: int = 19
    progressive: int = 15
    batch_size: int = 64
    opt: str = 'sgd'
    lr: float = 0.03
    weight_decay: float = 5e-4
    sched: str = 'onecycle'
    warmup_epochs: float = 4.
    smoothing: float = 0.1
    crop_scale: Tuple[float, float] = (0.25, 1.)
    precision: str = 'bfloat16'
    channels_last: bool = True


RECIPES: Dict[str, Type[Recipe]] = {
    'rs_resnet18_in1k': RSResNet18ImageNet,
    'rs_resnet50_in1k': RSResNet50ImageNet,
    'rs_mobilenetv2_in1k': RSMobileNetV2ImageNet,
    'imagenette': Imagenette,
}


def get_recipe(name: str, debug: bool = False, **changes: Any) -> Recipe:
    """The recipe `name` with some fields changed; `debug` takes its twin before the changes.

    Raises:
        ValueError: an unknown recipe or field.
    """
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown: use one of {', '.join(RECIPES)}.")
    known = {field.name for field in fields(Recipe)}
    for field in changes:
        if field not in known:
            raise ValueError(f"a recipe has no field {field!r}: it has {', '.join(sorted(known))}.")
    recipe = RECIPES[name]()
    return replace(recipe.debug() if debug else recipe, **changes)
