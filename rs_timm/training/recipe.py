"""`Recipe`: everything that decides the result of a training run."""
import ast
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Dict, Mapping, Tuple

from rs_timm.layers import check_resolutions
from rs_timm.loss import MODES

__all__ = ['Recipe']

_CHOICES = {
    'task': ('classification', 'segmentation'),
    'train': ('all', 'head', 'bn'),
    'crop': ('shared', 'per_resolution'),
    'mred': tuple(MODES),
    'sched': ('cosine', 'onecycle', 'step', 'multistep', 'poly', 'tanh'),
    'precision': ('float32', 'bfloat16', 'float16'),
}
_MANY = float('inf')
_RANGES = {
    'epochs': (1, _MANY), 'batch_size': (1, _MANY), 'accumulate': (1, _MANY), 'limit_batches': (0, _MANY),
    'lr': (0, _MANY), 'private_lr': (0, _MANY), 'weight_decay': (0, _MANY), 'clip_grad': (0, _MANY),
    'warmup_epochs': (0, _MANY), 'smoothing': (0, 1), 'ema': (0, 1), 'progressive': (0, 1), 'hflip': (0, 1),
    're_prob': (0, 1), 'crop_pct': (0.01, 1), 'same_size': (0, _MANY), 'ignore_label': (0, 255),
}
_WITHOUT_MASKS = {  # what is not there for segmentation, and its value when it is off
    'same_size': 0, 'crop': 'shared', 'flip': 'shared', 'resize': 'loader', 'auto_augment': '', 're_prob': 0.,
    'mixup': 0., 'cutmix': 0., 'crop_pct': 1.,
}


@dataclass(frozen=True)
class Recipe:
    """The settings of a run; each of them is an option of `rs-timm train`.

    >>> recipe = Recipe(epochs=2, resolutions=(64, 96))
    >>> recipe.epochs, recipe.resolutions
    (2, (96, 64))

    Args:
        resolutions: sizes in pixels that get a BatchNorm set; one: the paper's I-Net
        shared_bn: the ablation with one BatchNorm set for all sizes
        model_args: further arguments of the network, as in zero_init_last=False
        init: start from these weights: a model name that has some, a file, or a folder with model.safetensors
        train: all; head: classifier and BatchNorms; bn: BatchNorms alone
        mred: which distillations: full, vanilla, none, largest, larger
        smoothing: label smoothing
        epochs: passes over the training pictures
        batch_size: pictures per update, over all processes and parts
        accumulate: parts in which the batch of a process goes through the network
        opt: name of a timm optimizer; momentum is SGD without Nesterov, sgd with it
        lr: learning rate, at its peak
        private_lr: learning rate of private BatchNorms / lr; S losses give shared weights S gradients, a set one
        momentum: of the optimizer; onecycle moves it by 0.05 up and down, and so for 0.9 beta1 of Adam and its like
        weight_decay: of convolutions and linear layers
        decay_norm: weight decay on BatchNorms, biases and alpha too
        clip_grad: largest norm of the gradient; 0: none
        ema: decay of a moving average of the weights, which is then evaluated and returned; 0: none
        sched: cosine, onecycle, step, multistep, poly or tanh; moves with every update
        warmup_epochs: epochs up to the full learning rate
        warmup_lr: learning rate at the start of the warm-up; not for onecycle
        min_lr: learning rate at the end of cosine, poly, tanh
        decay_epochs: epochs between the steps of step
        decay_milestones: epochs of the steps of multistep
        decay_rate: factor of a step; power of poly
        progressive: share of the epochs, the first ones, in which the sets are fed with smaller pictures
        progressive_resolutions: sizes of those; by default 4/7 of the real ones
        crop_scale: area of the random crop / area of the picture, from and to
        crop_ratio: aspect ratio of the random crop, from and to
        crop: shared by all sizes, or drawn per_resolution (Table 6, multi-crop)
        same_size: size in pixels that all sets are trained with (Table 6, single-resolution); 0: each with its own
        hflip: probability of a horizontal flip
        flip: shared by all sizes, or drawn per_resolution, as in the paper's public code
        resize: in training; loader: each size straight from the crop; device: from the largest, on the device
        interpolation: bilinear, bicubic
        crop_pct: side of the central crop / shorter side, in evaluation
        mean: of the red, green and blue values in [0, 1], which is subtracted; for gray, in_chans=1, their average
        std: by which they are divided then; likewise
        color_jitter: as in timm; 0: none
        auto_augment: a policy of timm, such as rand-m6-mstd0.5
        re_prob: probability of random erasing
        mixup: alpha of mixup; 0: none
        cutmix: alpha of cutmix; 0: none
        task: classification, or segmentation of pictures with masks
        labels: names of the classes in masks, in the order of their values
        ignore_label: value in masks of pixels without a class
        precision: float32, bfloat16 or float16, through autocast
        channels_last: memory format of images and weights
        sync_bn: BatchNorm statistics over all processes; CUDA alone
        lean: memory of the largest resolution alone, about a fifth slower
        seed: of everything random
        limit_batches: at most so many updates an epoch, and batches an evaluation; 0: all

    Raises:
        ValueError: a value outside its range; the message names the field.
    """

    goes_on_from: ClassVar[str] = ''  # the recipe of the first stage, whose weights this one takes by `init`

    # Network
    resolutions: Tuple[int, ...] = (224, 192, 160, 128, 96)
    shared_bn: bool = False
    model_args: Tuple[str, ...] = ()
    init: str = ''
    train: str = 'all'
    # Loss
    mred: str = 'full'
    smoothing: float = 0.
    # Optimisation
    epochs: int = 120
    batch_size: int = 256
    accumulate: int = 1
    opt: str = 'momentum'
    lr: float = 0.1
    private_lr: float = 1.
    momentum: float = 0.9
    weight_decay: float = 1e-4
    decay_norm: bool = False
    clip_grad: float = 0.
    ema: float = 0.
    sched: str = 'cosine'
    warmup_epochs: float = 0.
    warmup_lr: float = 1e-5
    min_lr: float = 0.
    decay_epochs: float = 30.
    decay_milestones: Tuple[int, ...] = (30, 60, 85, 95, 105)
    decay_rate: float = 0.1
    progressive: float = 0.
    progressive_resolutions: Tuple[int, ...] = ()
    # Data
    crop_scale: Tuple[float, ...] = (0.08, 1.)
    crop_ratio: Tuple[float, ...] = (3 / 4, 4 / 3)
    crop: str = 'shared'
    same_size: int = 0
    hflip: float = 0.5
    flip: str = 'shared'
    resize: str = 'loader'
    interpolation: str = 'bilinear'
    crop_pct: float = 0.875
    mean: Tuple[float, ...] = (0.485, 0.456, 0.406)
    std: Tuple[float, ...] = (0.229, 0.224, 0.225)
    color_jitter: float = 0.
    auto_augment: str = ''
    re_prob: float = 0.
    mixup: float = 0.
    cutmix: float = 0.
    task: str = 'classification'
    labels: Tuple[str, ...] = ()
    ignore_label: int = 255
    # Numerics
    precision: str = 'float32'
    channels_last: bool = False
    sync_bn: bool = False
    lean: bool = False
    seed: int = 0
    limit_batches: int = 0

    def __post_init__(self) -> None:
        for field, allowed in _CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} {getattr(self, field)!r} is unknown: use one of {', '.join(allowed)}.")
        for field, (low, high) in _RANGES.items():
            if not low <= getattr(self, field) <= high:
                raise ValueError(f'{field} {getattr(self, field)}: it must be in [{low:g}, {high:g}].')
        for field, length in (('crop_scale', 2), ('crop_ratio', 2), ('mean', 3), ('std', 3)):
            if len(getattr(self, field)) != length:
                raise ValueError(f'{field} {getattr(self, field)}: it takes {length} numbers.')
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
        if self.task == 'segmentation':
            self._check_segmentation()
        self.model_kwargs()

    def _check_segmentation(self) -> None:
        if not self.labels:
            raise ValueError('labels is empty: segmentation needs the names of its classes, in the order of the mask '
                             'values.')
        for field, off in _WITHOUT_MASKS.items():
            if getattr(self, field) != off:
                raise ValueError(f'{field} {getattr(self, field)!r} is for classification: segmentation takes {off!r}.')
        if self.channels != 3:
            raise ValueError(f'model_args in_chans={self.channels}: segmentation is trained on RGB.')

    def check_start(self) -> None:
        """Refuse to start a second stage from random weights: its few epochs and small rate do not train a network."""
        if self.goes_on_from and not self.init:
            raise ValueError(f"init is empty: this recipe goes on from trained weights, those of '{self.goes_on_from}'."
                             ' Give them, as in --init runs/start/model/model.safetensors, or choose a recipe that '
                             'starts from random weights.')

    @property
    def small_epochs(self) -> int:
        """How many epochs, the first ones, feed the sets with smaller pictures."""
        return round(self.progressive * self.epochs)

    @property
    def channels(self) -> int:
        """Of the pictures: 3, or what `model_args` has as in_chans, as 1 for gray."""
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
