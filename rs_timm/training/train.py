"""`train`: a network, a folder of pictures and a recipe, in one call."""
import json
import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import torch
import torch.distributed as dist
from timm.utils import random_seed
from torch import nn

from .build import build_model, check_start, create_optimizer, synchronized
from .checkpoint import common_checkpoint, write_atomically
from .evaluate import evaluate
from .evaluate_masks import evaluate_masks
from .loaders import Loaders
from .loop import Trainer
from .mask_loaders import MaskLoaders
from .processes import gather, is_first_process, join_processes, process_rank
from .recipe import Recipe
from .report import Reporter, plot_curves
from .schedule import create_schedule
from .task import MREDTask

__all__ = ['Options', 'Trained', 'train']

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """Where and how a run takes place; unlike the recipe, free to change when it goes on, but for `splits`.

    Args:
        device: cpu, cuda, or auto for CUDA if there is any
        workers: processes that read pictures, per training process
        splits: names of the splits to train and to evaluate on
        checkpoint_minutes: time between checkpoints within an epoch
        compile: use torch.compile
        skip_corrupt: go on at pictures that cannot be read, and count them
        tensorboard: write event files
        progress: a bar on a terminal, else a line a minute
    """

    device: str = 'auto'
    workers: int = 4
    splits: Tuple[str, ...] = ('train', 'val')
    checkpoint_minutes: float = 5.
    compile: bool = False
    skip_corrupt: bool = False
    tensorboard: bool = False
    progress: bool = True

    def __post_init__(self) -> None:
        if len(self.splits) != 2:
            raise ValueError(f'splits {self.splits}: name two, to train and to evaluate on.')


@dataclass(frozen=True)
class Trained:
    """What `train` returns."""

    model: nn.Module  # the moving average, if the recipe has one; in evaluation mode
    rows: List[Dict[str, Any]]  # one for each epoch and resolution, as in log.csv
    class_names: List[str]  # in the order of the network's outputs


def train(
        model: str,
        data: str,
        recipe: Recipe,
        output: str,
        resume: bool = False,
        options: Options = Options(),
) -> Trained:
    """Train `model` on the pictures in `data`; under torchrun, on all its processes.

    To `output` go last.pth (the checkpoint), recipe.json, log.csv and curves.png.

    >>> recipe = get_recipe('imagenette', debug=True)                   # doctest: +SKIP
    >>> train('rs_resnet18', 'imagenette', recipe, 'runs/first').rows   # doctest: +SKIP

    Args:
        model: a registered `rs_*` name, or any BatchNorm network of timm.
        data: folder with one sub-folder per split and class; for segmentation see `rs_timm.data.MaskFolder`.
        recipe: what decides the result, see `get_recipe`.
        output: folder, made if it is not there.
        resume: go on from the checkpoint in `output`; without one, start.
        options: what does not decide the result.

    Raises:
        ValueError: what cannot be trained, a folder that holds a run already, or one whose checkpoint is of another
            run or not the same for all processes.
        NonFiniteError: the loss is inf or nan.
        Stopped: a signal came, and the run is saved.
    """
    folder = Path(output)
    joined = not dist.is_initialized()
    device = join_processes(options.device)
    try:
        state = _checkpoint(folder, resume)
        if state is None:
            check_start(model, recipe)
        elif not recipe.init:
            recipe = replace(recipe, init=state['recipe'].get('init', ''))
        trainer = _create_trainer(model, data, recipe, folder, device, options, state)
        if is_first_process():
            settings = dict(model=model, **asdict(trainer.recipe))
            write_atomically(folder / 'recipe.json', json.dumps(settings, indent=2).encode())
        rows = trainer.fit()
        trained = Trained(_trained_model(trainer.task), rows, trainer.loaders.class_names)
        if is_first_process():
            plot_curves(rows, folder / 'curves.png')
    finally:
        if joined and dist.is_initialized():
            dist.destroy_process_group()
    return trained


def _checkpoint(folder: Path, resume: bool) -> Optional[Dict[str, Any]]:
    """The checkpoint that all processes go on from; None for a start."""
    path = folder / 'last.pth'
    state = common_checkpoint(path) if resume else None
    if not resume and any(gather(path.is_file())):
        raise ValueError(f'{folder} holds a run already: go on with it (--resume), or choose another output folder.')
    return state


def _create_trainer(
        model: str,
        data: str,
        recipe: Recipe,
        folder: Path,
        device: torch.device,
        options: Options,
        state: Optional[Dict[str, Any]],
) -> Trainer:
    """A new run, or one that is where the checkpoint `state` was, which has all weights."""
    dense = recipe.task == 'segmentation'
    make_loaders = MaskLoaders if dense else Loaders
    loaders = make_loaders(data, recipe, options.splits, device, options.workers, options.skip_corrupt)
    random_seed(recipe.seed)  # all processes start from the same weights ...
    task = _create_task(model, recipe if state is None else replace(recipe, init=''), len(loaders.class_names), device)
    random_seed(recipe.seed, process_rank())  # ... and each drops paths of its own
    optimizer = create_optimizer(task, recipe)
    if recipe.ema:
        task.setup_ema(decay=recipe.ema, use_warmup=True)
    if options.compile:
        task.compile()
    if dist.is_initialized():
        task.prepare_distributed(device_ids=[device] if device.type == 'cuda' else None)
    schedule = create_schedule(optimizer, recipe, loaders.updates_per_epoch())
    reporter = None
    if is_first_process():
        folder.mkdir(parents=True, exist_ok=True)
        reporter = Reporter(folder, options.progress, options.tensorboard)
    trainer = Trainer(
        task, recipe, optimizer, schedule, loaders, folder, reporter, options.checkpoint_minutes,
        measure=evaluate_masks if dense else evaluate)
    if state is not None:
        trainer.resume(state)
        _logger.info('going on in epoch %d, after update %d', trainer.position.epoch + 1, trainer.position.update)
    return trainer


def _create_task(name: str, recipe: Recipe, num_classes: int, device: torch.device) -> MREDTask:
    model = build_model(name, recipe, num_classes).to(device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if recipe.sync_bn and dist.is_initialized():
        model = synchronized(model, device)
    resolutions = recipe.resolutions if recipe.shared_bn else None
    task = MREDTask(model, recipe.mred, recipe.smoothing, resolutions, recipe.lean, device=device)
    return task.to(device)


def _trained_model(task: MREDTask) -> nn.Module:
    """The network that was measured last; it knows its ensemble."""
    model: Any = task.get_eval_model(ema=task.has_ema())
    model.checkpoint_metadata = {'alpha': task.ensemble_weights(ema=task.has_ema())}
    return model.eval()
