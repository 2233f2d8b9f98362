"""`Recipe`: everything that decides the result of a training run."""
import ast
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Callable, ClassVar, Dict, Mapping, Optional, Sequence, Tuple

import torch

from rs_timm.crops import check_crop_pct
from rs_timm.data.multires import check_crops, check_normalisation
from rs_timm.layers import check_resolutions
from rs_timm.loss import MODES

__all__ = ['Recipe', 'document', 'setting']

_MANY = math.inf
_NOT_FOR_MODEL_ARGS = {  # what create_model would get twice, or what is not a matter of the network
    'num_classes': 'it is the number of classes in the data',
    'resolutions': 'give them as resolutions (--resolutions)',
    'pretrained': 'give the weights as init (--init)',
    'checkpoint_path': 'give the file as init (--init)',
}


def setting(
        default: Any,
        help: str,
        choices: Sequence[str] = (),
        range: Optional[Tuple[float, float]] = None,
        **segmentation: Any,
) -> Any:
    """A field of a dataclass that is an option of the command line too; its metadata says what it means and allows.

    Args:
        default: a value, or a function that makes one.
        help: a line, as in `--help`.
        choices: all values there are.
        range: smallest and largest value; an infinite one is no value itself.
        segmentation: the one value that segmentation allows, where it does not know others.
    """
    metadata = dict(help=help, choices=tuple(choices), range=range, **segmentation)
    if callable(default):
        return field(default_factory=default, metadata=metadata)
    return field(default=default, metadata=metadata)


def document(cls: Callable[..., Any]) -> Any:
    """A decorator that lists the fields of a dataclass under Args in its docstring, where `help` looks for them."""
    lines = [f'        {each.name}: {each.metadata["help"]}' for each in fields(cls)]  # type: ignore[arg-type]
    cls.__doc__ = f'{cls.__doc__}'.replace('Args:', '\n'.join(['Args:', *lines]), 1)
    return cls


@document
@dataclass(frozen=True)
class Recipe:
    """The settings of a run; each of them is an option of `rs-timm train`.

    >>> recipe = Recipe(epochs=2, resolutions=(64, 96))
    >>> recipe.epochs, recipe.resolutions
    (2, (96, 64))

    Args:

    Raises:
        ValueError: a value outside its range; the message names the field.
    """

    goes_on_from: ClassVar[str] = ''  # the recipe of the first stage, or a network, whose weights `init` takes
    input_of_init: ClassVar[bool] = False  # mean, std and interpolation are those that the weights of `init` know

    # Network
    resolutions: Tuple[int, ...] = setting(
        (224, 192, 160, 128, 96), "sizes in pixels that get a BatchNorm set; one: the paper's I-Net")
    shared_bn: bool = setting(False, 'the ablation with one BatchNorm set for all sizes')
    model_args: Tuple[str, ...] = setting((), 'further arguments of the network, as in zero_init_last=False')
    init: str = setting(
        '', 'start from these weights: a model name that has some, a file, or a folder with model.safetensors')
    head: str = setting(
        'random', 'a classifier that starts anew, since init has one for other classes: random, or zero',
        choices=('random', 'zero'))
    train: str = setting(
        'all', 'all; head: classifier and BatchNorms; bn: BatchNorms alone; smaller: those of the smaller sizes',
        choices=('all', 'head', 'bn', 'smaller'))
    # Loss
    mred: str = setting('full', 'which distillations: full, vanilla, none, largest, larger', choices=tuple(MODES))
    smoothing: float = setting(0., 'label smoothing', range=(0, 1))
    # Optimisation
    epochs: int = setting(120, 'passes over the training pictures', range=(1, _MANY))
    batch_size: int = setting(256, 'pictures per update, over all processes and parts', range=(1, _MANY))
    accumulate: int = setting(1, 'parts in which the batch of a process goes through the network', range=(1, _MANY))
    opt: str = setting('momentum', 'name of a timm optimizer; momentum is SGD without Nesterov, sgd with it')
    lr: float = setting(0.1, 'learning rate, at its peak', range=(0, _MANY))
    private_lr: float = setting(
        1., 'learning rate of private BatchNorms / lr; S losses give shared weights S gradients, a set one',
        range=(0, _MANY))
    momentum: float = setting(
        0.9, 'of the optimizer; onecycle moves it by 0.05 up and down, and so for 0.9 beta1 of Adam and its like',
        range=(0, 1))
    weight_decay: float = setting(1e-4, 'of convolutions and linear layers', range=(0, _MANY))
    decay_norm: bool = setting(False, 'weight decay on BatchNorms, biases and alpha too')
    clip_grad: float = setting(0., 'largest norm of the gradient; 0: none', range=(0, _MANY))
    ema: float = setting(
        0., 'decay of a moving average of the weights, which is then evaluated and returned; 0: none', range=(0, 1))
    sched: str = setting(
        'cosine', 'cosine, onecycle, step, multistep, poly or tanh; moves with every update',
        choices=('cosine', 'onecycle', 'step', 'multistep', 'poly', 'tanh'))
    warmup_epochs: float = setting(0., 'epochs up to the full learning rate', range=(0, _MANY))
    warmup_lr: float = setting(1e-5, 'learning rate at the start of the warm-up; not for onecycle', range=(0, _MANY))
    min_lr: float = setting(0., 'learning rate at the end of cosine, poly, tanh', range=(0, _MANY))
    decay_epochs: float = setting(30., 'epochs between the steps of step', range=(0.01, _MANY))
    decay_milestones: Tuple[int, ...] = setting((30, 60, 85, 95, 105), 'epochs of the steps of multistep')
    decay_rate: float = setting(0.1, 'factor of a step; power of poly', range=(0, _MANY))
    progressive: float = setting(
        0., 'share of the epochs, the first ones, in which the sets are fed with smaller pictures', range=(0, 1))
    progressive_resolutions: Tuple[int, ...] = setting((), 'sizes of those; by default 4/7 of the real ones')
    statistics: str = setting(
        'batch', 'what BatchNorms use in training: batch, or running, which then stay as they were at the start',
        choices=('batch', 'running'))
    # Data
    val_fraction: float = setting(
        0., 'share of the training pictures of each class that is kept aside: epochs are measured on these, in place '
        'of the second of the splits, and the best one is returned; 0: none, and the last one', range=(0, 0.5),
        segmentation=0.)
    patience: int = setting(
        0, 'epochs without a better one, by val_fraction, after which training ends; 0: it does not', range=(0, _MANY))
    crop_scale: Tuple[float, ...] = setting((0.08, 1.), 'area of the random crop / area of the picture, from and to')
    crop_ratio: Tuple[float, ...] = setting((3 / 4, 4 / 3), 'aspect ratio of the random crop, from and to')
    crop: str = setting(
        'shared', 'shared by all sizes, or drawn per_resolution (Table 6, multi-crop)',
        choices=('shared', 'per_resolution'), segmentation='shared')
    same_size: int = setting(
        0, 'size in pixels that all sets are trained with (Table 6, single-resolution); 0: each with its own',
        range=(0, _MANY), segmentation=0)
    hflip: float = setting(0.5, 'probability of a horizontal flip', range=(0, 1))
    flip: str = setting(
        'shared', "shared by all sizes, or drawn per_resolution, as in the paper's public code",
        choices=('shared', 'per_resolution'), segmentation='shared')
    resize: str = setting(
        'loader', 'in training; loader: each size straight from the crop; device: from the largest, on the device',
        choices=('loader', 'device'), segmentation='loader')
    interpolation: str = setting('bilinear', 'bilinear, bicubic')
    crop_pct: float = setting(
        0.875, 'side of the central crop / shorter side, in evaluation', range=(0.01, 1), segmentation=1.)
    crop_choices: Tuple[float, ...] = setting(
        (), 'the one that is best on the pictures of val_fraction, on average over the sizes, takes the place of '
        'crop_pct after training; none: it stays', segmentation=())
    mean: Tuple[float, ...] = setting(
        (0.485, 0.456, 0.406),
        'of the red, green and blue values in [0, 1], which is subtracted; for gray, in_chans=1, their average')
    std: Tuple[float, ...] = setting((0.229, 0.224, 0.225), 'by which they are divided then; likewise')
    color_jitter: float = setting(0., 'as in timm; 0: none', range=(0, _MANY))
    auto_augment: str = setting('', 'a policy of timm, such as rand-m6-mstd0.5', segmentation='')
    re_prob: float = setting(0., 'probability of random erasing', range=(0, 1), segmentation=0.)
    mixup: float = setting(0., 'alpha of mixup; 0: none', range=(0, _MANY), segmentation=0.)
    cutmix: float = setting(0., 'alpha of cutmix; 0: none', range=(0, _MANY), segmentation=0.)
    task: str = setting(
        'classification', 'classification; segmentation of pictures with masks; or adaptation to pictures without '
        'labels, by what the largest size answers', choices=('classification', 'segmentation', 'adaptation'))
    labels: Tuple[str, ...] = setting((), 'names of the classes in masks, in the order of their values')
    ignore_label: int = setting(255, 'value in masks of pixels without a class', range=(0, 255))
    # Numerics
    precision: str = setting(
        'float32', 'float32, bfloat16 or float16, through autocast', choices=('float32', 'bfloat16', 'float16'))
    channels_last: bool = setting(False, 'memory format of images and weights')
    sync_bn: bool = setting(False, 'BatchNorm statistics over all processes; CUDA alone')
    lean: bool = setting(False, 'memory of the largest resolution alone, about a fifth slower')
    own_kernels: bool = setting(
        True, "gradients of convolutions on CPUs, and of ReLU6, in the faster of two ways; off: torch's alone")
    seed: int = setting(0, 'of everything random', range=(0, _MANY))
    limit_batches: int = setting(
        0, 'at most so many updates an epoch, and batches an evaluation; 0: all', range=(0, _MANY))

    def __post_init__(self) -> None:
        for each in fields(Recipe):
            self._check(each.name, each.metadata)
        for name, length in (('crop_scale', 2), ('crop_ratio', 2), ('mean', 3), ('std', 3)):
            if len(getattr(self, name)) != length:
                raise ValueError(f'{name} {getattr(self, name)}: it takes {length} numbers.')
        check_normalisation(self.mean, self.std)
        check_crops(self.crop_scale, self.crop_ratio)
        object.__setattr__(self, 'resolutions', check_resolutions(self.resolutions))
        if self.small_epochs == self.epochs:
            raise ValueError(f'progressive {self.progressive}: it leaves none of the {self.epochs} epochs at the real '
                             'sizes: use more epochs, or progressive 0 (--progressive 0).')
        if self.progressive_resolutions:
            small = check_resolutions(self.progressive_resolutions)
            if len(small) != len(self.resolutions):
                raise ValueError(f'progressive_resolutions {small}: name one size for each of {self.resolutions}.')
            object.__setattr__(self, 'progressive_resolutions', small)
        if self.same_size and self.progressive:
            raise ValueError(f'same_size {self.same_size} with progressive {self.progressive}: the sizes of an epoch '
                             'are those of one or the other.')
        for crop in self.crop_choices:
            check_crop_pct(crop)
        for name in ('patience', 'crop_choices'):
            if getattr(self, name) and not self.val_fraction:
                raise ValueError(f'{name} {getattr(self, name)}: there are no pictures kept aside to decide on: set '
                                 f'val_fraction, as in --val-fraction 0.15, or no {name}.')
        for key, value in self.model_kwargs().items():
            if key in _NOT_FOR_MODEL_ARGS:
                raise ValueError(f'model_args {key}={value!r}: {_NOT_FOR_MODEL_ARGS[key]}.')
        if self.task == 'adaptation':
            self._check_adaptation()
        if self.task == 'segmentation' and not self.labels:
            raise ValueError('labels is empty: segmentation needs the names of its classes, in the order of the mask '
                             'values.')
        if self.task == 'segmentation' and self.channels != 3:
            raise ValueError(f'model_args in_chans={self.channels}: segmentation is trained on RGB.')

    def _check(self, name: str, rules: Mapping[str, Any]) -> None:
        """Refuse a value that the metadata of its field do not allow."""
        value = getattr(self, name)
        if rules['choices'] and value not in rules['choices']:
            raise ValueError(f"{name} {value!r} is unknown: use one of {', '.join(rules['choices'])}.")
        if rules['range'] is not None:
            low, high = rules['range']
            if not (low <= value <= high and math.isfinite(value)):
                raise ValueError(f'{name} {value}: it must be in [{low:g}, {high:g}{"]" if high < _MANY else ")"}.')
        if self.task == 'segmentation' and value != rules.get('segmentation', value):
            raise ValueError(f"{name} {value!r} is for classification: segmentation takes {rules['segmentation']!r}.")

    def _check_adaptation(self) -> None:
        """Refuse what would move the largest size, which teaches, or leaves nobody to teach."""
        for name, needed in dict(train='smaller', statistics='running', shared_bn=False, crop_choices=()).items():
            if getattr(self, name) != needed:
                raise ValueError(f'{name} {getattr(self, name)!r}: adaptation takes {needed!r}, since the largest size '
                                 'teaches the others and stays as it is.')
        if len(self.resolutions) < 2:
            raise ValueError(f'resolutions {self.resolutions}: adaptation needs the largest size, which teaches, and '
                             'smaller ones.')
        if not self.val_fraction:
            raise ValueError('val_fraction 0: adaptation needs pictures kept aside, on which it decides what to keep: '
                             'set it, as in --val-fraction 0.1.')

    def check_start(self) -> None:
        """Refuse to start a second stage from random weights: its few epochs and small rate do not train a network."""
        if self.goes_on_from and not self.init:
            raise ValueError('init is empty: this recipe goes on from trained weights, such as those of '
                             f"'{self.goes_on_from}'. Give them, as in --init NAME or --init runs/start/model, or "
                             'choose a recipe that starts from random weights.')

    @property
    def small_epochs(self) -> int:
        """The number of epochs, the first ones, that feed the sets with smaller pictures."""
        return round(self.progressive * self.epochs)

    @property
    def channels(self) -> int:
        """The channels of the pictures: 3, or what `model_args` has as in_chans, as 1 for gray."""
        return int(self.model_kwargs().get('in_chans', 3))

    def sizes(self, epoch: int) -> Dict[int, int]:
        """Resolution of a BatchNorm set -> size in pixels of the pictures that it is fed with in `epoch` (from 0).

        >>> Recipe(progressive=0.8).sizes(0)
        {224: 128, 192: 112, 160: 96, 128: 80, 96: 64}
        """
        if epoch >= self.small_epochs:
            return {r: self.same_size or r for r in self.resolutions}
        small = self.progressive_resolutions
        for multiple in () if small else (16, 1):  # whole feature maps where the sizes are large enough
            small = tuple(-(-r * 4 // (7 * multiple)) * multiple for r in self.resolutions)
            if len(set(small)) == len(small):
                break
        return dict(zip(self.resolutions, small))

    def measured_sets(self, epoch: int) -> Dict[int, int]:
        """Size in pixels -> the BatchNorm set that is measured at it after `epoch`: of several, the first.

        >>> Recipe(resolutions=(64, 48), same_size=32).measured_sets(0)
        {32: 64}
        """
        return {size: resolution for resolution, size in reversed(list(self.sizes(epoch).items()))}

    @property
    def amp_dtype(self) -> Optional[torch.dtype]:
        """What autocast computes in; None: float32 throughout."""
        return None if self.precision == 'float32' else getattr(torch, self.precision)

    def model_kwargs(self) -> Dict[str, Any]:
        """`model_args` as keyword arguments; values are Python literals, or strings."""
        return dict(_key_value(text) for text in self.model_args)

    def debug(self) -> 'Recipe':
        """The twin on the same path that finishes in a minute on a CPU: a few steps on small pictures.

        Never so small that a strided convolution meets a map of one pixel (below 17 px in a ResNet): torch 2.14.1
        on a CPU then gives bfloat16 weight gradients out of memory that nobody has written.
        """
        return replace(
            self,
            resolutions=tuple(r // 4 + 8 for r in self.resolutions),
            same_size=self.same_size and self.same_size // 4 + 8,
            epochs=2,
            progressive=0.5 if self.progressive else 0.,
            progressive_resolutions=(),
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
