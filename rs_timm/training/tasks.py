"""Classification and segmentation as tasks: the loaders of a run, the measure, and the networks for it."""
import os
from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Callable, Dict, Iterable, List, Optional, Tuple, Type

import timm
import torch
from timm.data import Mixup
from timm.models import model_entrypoint
from torch import nn

from rs_timm import segmentation
from rs_timm.data import MultiResLoader, create_mask_loader, create_multires_loader
from rs_timm.data.folders import hold_out, open_split, open_unlabelled
from rs_timm.evaluation import evaluate, evaluate_agreement, evaluate_masks

from .processes import process_count, process_rank
from .recipe import Recipe

__all__ = ['TASKS', 'Loaders', 'MaskLoaders', 'Task', 'UnlabelledLoaders', 'task_of']


class Loaders:
    """Training and evaluation loaders for the sizes of any epoch: one pair for each phase of progressive training.

    Args:
        data: folder with a sub-folder for each split.
        recipe: augmentation, sizes, batch size, seed.
        splits: names of the splits to train and to evaluate on.
        device: where the batches go; the CPU by default.
        workers: processes that read pictures.
        skip_corrupt: leave out pictures that cannot be read.

    Raises:
        ValueError: the batch does not divide among processes and parts, or there is no data.
    """

    def __init__(
            self,
            data: str,
            recipe: Recipe,
            splits: Tuple[str, ...] = ('train', 'val'),
            device: Optional[torch.device] = None,
            workers: int = 4,
            skip_corrupt: bool = False,
    ) -> None:
        self.data, self.recipe, self.splits = os.path.normpath(data), recipe, splits
        shares = process_count() * recipe.accumulate
        if recipe.batch_size % shares:
            raise ValueError(f'batch_size {recipe.batch_size} is no multiple of {shares}: each of {process_count()} '
                             f'process(es) takes its share of each of {recipe.accumulate} part(s) (accumulate).')
        self.common: Dict[str, Any] = dict(
            batch_size=recipe.batch_size // shares,
            seed=recipe.seed,
            num_workers=workers,
            mean=recipe.mean,
            std=recipe.std,
            interpolation=recipe.interpolation,
            mode=recipe.resize,
            device=device or torch.device('cpu'),
            channels_last=recipe.channels_last,
            skip_corrupt=skip_corrupt,
            rank=process_rank(),
            world_size=process_count(),
        )
        self._made: Dict[bool, MultiResLoader] = {}
        self._digest = ''
        self._parts: Tuple[Any, ...] = ()  # with val_fraction: the pictures to train on, and those kept aside
        self._mixup: Optional[Mixup] = None
        self.class_names = self._class_names()
        if recipe.mixup or recipe.cutmix:  # after the label smoothing of the loss there is none left to do
            self._mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0., num_classes=len(self.class_names))

    def _class_names(self) -> List[str]:
        """Names of the classes, in the order of their indices; those of the evaluation split must agree."""
        names = []
        for split, loader in zip(self.splits, (self.training(0), self.evaluation(self.recipe.resolutions))):
            reader = getattr(loader.dataset, 'reader', None)
            if getattr(reader, 'root', None) == self.data:  # timm then takes all pictures, those of other splits too
                raise ValueError(f'{self.data}: it has no folder for the split {split!r}; expected {self.data}/{split}/'
                                 'CLASS/PICTURE.')
            indices = getattr(reader, 'class_to_idx', None)
            if not indices:
                raise ValueError(f'{self.data}: its classes are not known; expected {self.data}/{split}/CLASS/PICTURE.')
            names.append(sorted(indices, key=indices.get))
        if names[0] != names[1]:
            raise ValueError(f'{self.data}: the splits {self.splits} differ in their classes ({len(names[0])} and '
                             f'{len(names[1])}): they need the same sub-folders.')
        return names[0]

    def training(self, epoch: int) -> MultiResLoader:
        """The loader for the sizes of `epoch`; set its epoch before use."""
        recipe = self.recipe
        return self._loader(
            True,
            recipe.resolutions if recipe.same_size else recipe.sizes(epoch).values(),
            crop=recipe.crop,
            same_size=recipe.same_size,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.hflip,
            flip=recipe.flip,
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment or None,
            re_prob=recipe.re_prob,
            mixup=self._mixup,
        )

    def picture_count(self) -> int:
        """The number of pictures to train on."""
        return self._made[True].num_samples

    def picture_names(self) -> str:
        """A digest of the names of the training pictures, in order."""
        if not self._digest:
            names = '\n'.join(self._file_names())
            self._digest = sha256(names.encode(errors='surrogateescape')).hexdigest()
        return self._digest

    def _file_names(self) -> List[str]:
        """The names of the training pictures; none where those must be read for them, as on the Hugging Face Hub."""
        dataset: Any = self._made[True].dataset
        return dataset.filenames(basename=True) if hasattr(dataset.reader, 'samples') else []

    def updates_per_epoch(self) -> int:
        """The number of steps of the optimizer in an epoch."""
        updates = len(self._made[True]) // self.recipe.accumulate  # equal for all sizes
        if not updates:
            raise ValueError(f'the data has fewer pictures than one batch of {self.recipe.batch_size}: use a smaller '
                             'batch_size.')
        return min(updates, self.recipe.limit_batches or updates)

    def evaluation(self, sizes: Iterable[int], crop_pct: Optional[float] = None) -> MultiResLoader:
        """The loader of the pictures that the network is measured on: each size resized once, as it will be in use."""
        if crop_pct is not None:
            self._made.pop(False, None)  # the one that there was has another crop
        return self._loader(False, sizes, crop_pct=crop_pct or self.recipe.crop_pct, mode='loader')

    def _loader(self, is_training: bool, sizes: Iterable[int], **kwargs: Any) -> MultiResLoader:
        sizes = tuple(sorted(set(sizes), reverse=True))
        made = self._made.get(is_training)
        if made is None or made.resolutions != sizes or made.mixup is not kwargs.get('mixup'):
            source = self._source(is_training) if made is None else made.dataset  # the folder is listed once
            made = self._made[is_training] = self._create(
                source, sizes, split=self.splits[not is_training], is_training=is_training, **kwargs)
        return made

    def _source(self, is_training: bool) -> Any:
        """The folder with the splits; or a part of the first split, if the other is kept aside to measure on."""
        fraction = self.recipe.val_fraction
        if fraction and not self._parts:
            self._parts = hold_out(open_split(self.data, self.splits[0]), fraction, self.recipe.seed)
        return self._parts[not is_training] if fraction else self.data

    def _create(self, source: Any, sizes: Tuple[int, ...], **kwargs: Any) -> MultiResLoader:
        return create_multires_loader(source, sizes, channels=self.recipe.channels, **{**self.common, **kwargs})


class UnlabelledLoaders(Loaders):
    """The loaders of pictures without labels: of a folder, at any depth, or a tar file; a share is kept aside."""

    def _class_names(self) -> List[str]:
        self.training(0)
        return ['']

    def _source(self, is_training: bool) -> Any:
        if not self._parts:
            self._parts = hold_out(open_unlabelled(self.data), self.recipe.val_fraction, self.recipe.seed)
        return self._parts[not is_training]


class MaskLoaders(Loaders):
    """The loaders of pictures with masks; `rs_timm.data.MaskFolder` says how their folder is laid out."""

    def _class_names(self) -> List[str]:
        for loader in (self.training(0), self.evaluation(self.recipe.resolutions)):  # both splits must be there
            assert loader.dataset.classes == self.recipe.labels
        return list(self.recipe.labels)

    def _file_names(self) -> List[str]:
        dataset: Any = self._made[True].dataset
        return [file.name for pair in dataset.pairs for file in pair]

    def training(self, epoch: int) -> MultiResLoader:
        """The loader for the sizes of `epoch`; set its epoch before use."""
        recipe = self.recipe
        return self._loader(
            True,
            recipe.sizes(epoch).values(),
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.hflip,
            color_jitter=recipe.color_jitter or None,
        )

    def evaluation(self, sizes: Iterable[int], crop_pct: Optional[float] = None) -> MultiResLoader:
        """The loader of the pictures that the network is measured on, always the whole of them."""
        return self._loader(False, sizes)

    def _create(self, source: Any, sizes: Tuple[int, ...], **kwargs: Any) -> MultiResLoader:
        common = {key: value for key, value in self.common.items() if key != 'mode'}
        labels, ignored = self.recipe.labels, self.recipe.ignore_label
        return create_mask_loader(source, sizes, classes=labels, ignore_label=ignored, **common, **kwargs)


@dataclass(frozen=True)
class Task:
    """The loaders and the measure that come with what a network is trained for."""

    loaders: Type[Loaders]
    measure: Callable[..., Any]  # (model, loader, alpha=..., limit_batches=...) -> {resolution: {column: value}}
    network: str = 'classification'  # what the network is for

    def check(self, model: nn.Module) -> None:
        """Refuse a network that is for another task.

        Raises:
            ValueError: its name, its task and the names of networks for this one.
        """
        if task_of(model) != self.network:
            names = [known for known in timm.list_models('rs_*') if _task_of_name(known) == self.network]
            raise ValueError(f'{type(model).__name__} is for {task_of(model)}, the recipe for {self.network}: take one '
                             f'of {", ".join(names)}, or another recipe.')


TASKS = {
    'classification': Task(Loaders, evaluate),
    'segmentation': Task(MaskLoaders, evaluate_masks, 'segmentation'),
    'adaptation': Task(UnlabelledLoaders, evaluate_agreement),
}


def task_of(model: nn.Module) -> str:
    """The task of a network: 'classification' or 'segmentation'."""
    return getattr(model, 'task', 'classification')  # type: ignore[return-value]


def _task_of_name(name: str) -> str:
    dense = model_entrypoint(name).__module__.startswith(f'{segmentation.__name__}.')
    return 'segmentation' if dense else 'classification'
