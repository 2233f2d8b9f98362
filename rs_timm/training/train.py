"""`train`: a network, a folder of pictures and a recipe, in one call."""
import json
import logging
import math
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple, Union

import torch
import torch.distributed as dist
from filelock import FileLock, Timeout
from timm.utils import random_seed
from torch import nn

from rs_timm.atomic import write_bytes
from rs_timm.evaluation import evaluate

from .build import build_model, check_start, freeze, resized, synchronized
from .checkpoint import checkpoint_files, common_checkpoint
from .loop import Trainer
from .optimization import create_optimizer, create_schedule
from .processes import gather, is_first_process, join_processes, process_rank
from .recipe import Recipe, document, setting
from .report import Reporter, plot_curves
from .task import MREDTask
from .tasks import TASKS, Loaders

__all__ = ['Options', 'Trained', 'train']

_logger = logging.getLogger(__name__)


def _default_workers() -> int:
    """The number of cores that the process has for itself, at most 16."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    return max(1, min(16, cores // int(os.environ.get('LOCAL_WORLD_SIZE', 1))))


@document
@dataclass(frozen=True)
class Options:
    """The place and the manner of a run; unlike the recipe, free to change when it goes on, but for `splits`.

    Args:

    Raises:
        ValueError: a value outside its range; the message names the field.
    """

    device: str = setting('auto', 'cpu, cuda, or auto for CUDA if there is any')
    workers: int = setting(_default_workers, 'processes that read pictures, per training process')
    splits: Tuple[str, ...] = setting(('train', 'val'), 'names of the splits to train and to evaluate on')
    checkpoint_minutes: float = setting(5., 'time between checkpoints within an epoch')
    compile: bool = setting(False, 'use torch.compile')
    skip_corrupt: bool = setting(False, 'go on at pictures that cannot be read, and count them')
    tensorboard: bool = setting(False, 'write event files')
    progress: bool = setting(True, 'a bar on a terminal, else a line a minute')

    def __post_init__(self) -> None:
        if len(self.splits) != 2:
            raise ValueError(f'splits {self.splits}: name two, to train and to evaluate on.')
        for name in ('workers', 'checkpoint_minutes'):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f'{name} {getattr(self, name)}: it must be in [0, inf).')


@dataclass(frozen=True)
class Trained:
    """The network that `train` returns, and how it came to be."""

    model: nn.Module  # the moving average, if the recipe has one; in evaluation mode
    rows: List[Dict[str, Any]]  # one for each epoch and resolution, as in log.csv
    class_names: List[str]  # in the order of the network's outputs


def train(
        model: Union[str, nn.Module],
        data: str,
        recipe: Recipe,
        output: str,
        resume: bool = False,
        options: Options = Options(),
) -> Trained:
    """Train `model` on the pictures in `data`; under torchrun, on all its processes.

    To `output` go last.pth (the checkpoint), previous.pth (the one before it), recipe.json, log.csv and curves.png.

    >>> recipe = get_recipe('imagenette', debug=True)                   # doctest: +SKIP
    >>> train('rs_resnet18', 'imagenette', recipe, 'runs/first').rows   # doctest: +SKIP

    Args:
        model: a registered `rs_*` name, or any BatchNorm network of timm; for adaptation, a switchable network with its
            weights, which is changed.
        data: folder with one sub-folder per split and class; for segmentation see `rs_timm.data.MaskFolder`; for
            adaptation a folder of pictures at any depth, or a tar file.
        recipe: what decides the result, see `get_recipe`.
        output: folder, made if it is not there.
        resume: go on from the checkpoint in `output`; without one, start.
        options: what does not decide the result.

    Raises:
        ValueError: what cannot be trained, a folder that holds a run already or that another run writes to, or one
            whose checkpoint is of another run or not the same for all processes.
        NonFiniteError: the loss is inf or nan.
        Stopped: a signal came, and the run is saved.
    """
    folder = Path(output)
    joined = not dist.is_initialized()
    device = join_processes(options.device)
    lock = FileLock(folder / '.lock', timeout=0)
    try:
        if any(gather(folder.is_dir())):
            _enter(folder, lock, starts=not resume)
        state = common_checkpoint(folder / 'last.pth') if resume else None
        if isinstance(model, str) and recipe.task == 'adaptation':
            raise ValueError(f'{model} is a name, and adaptation goes on from a network: use rs_timm.adapt, or rs-timm '
                             'adapt.')
        if not isinstance(model, str) and recipe.task != 'adaptation':
            raise ValueError(f'{type(model).__name__} is a network, and the recipe, for {recipe.task}, builds its own: '
                             'give the name of one, with its weights as init.')
        if isinstance(model, str) and state is None:
            check_start(model, recipe)
        elif state is not None and not recipe.init:
            recipe = replace(recipe, init=state['recipe'].get('init', ''))
        trainer = _create_trainer(model, data, recipe, folder, device, options, state, lock)
        if is_first_process():
            settings = dict(model=model if isinstance(model, str) else type(model).__name__, **asdict(trainer.recipe))
            write_bytes(folder / 'recipe.json', json.dumps(settings, indent=2).encode())
        rows = trainer.fit()
        task = trainer.task
        network: Any = task.get_eval_model(ema=task.has_ema())  # the one that was measured last
        if recipe.crop_choices:
            _set_crop(network, choose_crop(network, trainer.loaders, trainer.recipe))
        network.checkpoint_metadata = {'alpha': task.ensemble_weights(ema=task.has_ema())}
        trained = Trained(network.eval(), rows, trainer.loaders.class_names)
        if is_first_process():
            plot_curves(rows, folder / 'curves.png')
    finally:
        lock.release(force=True)
        if joined and dist.is_initialized():
            dist.destroy_process_group()
    return trained


def choose_crop(network: nn.Module, loaders: Loaders, recipe: Recipe) -> float:
    """The one of `recipe.crop_choices` with the best top-1 on the pictures kept aside, on average over the sizes.

    Of equally good ones the one nearest to `recipe.crop_pct`. All sizes were trained at the same crop, so that one is
    chosen for all, with the evidence of all.
    """
    sets = recipe.measured_sets(recipe.epochs)
    scores = {}
    for crop in recipe.crop_choices:
        results = evaluate(resized(network, sets), loaders.evaluation(sets, crop), list(sets), {}, recipe.amp_dtype,
                           limit_batches=recipe.limit_batches or None)
        scores[crop] = sum(row['top1'] for row in results.values()) / len(results)
    best = max(scores, key=lambda crop: (scores[crop], -abs(crop - recipe.crop_pct)))
    _logger.info('crop %g, by the pictures kept aside: top-1, mean of all sizes, %s', best,
                 ', '.join(f'{score:.2f} at {crop:g}' for crop, score in scores.items()))
    return best


def _set_crop(network: Any, crop_pct: float) -> None:
    network.pretrained_cfg = network.default_cfg = {**network.pretrained_cfg, 'crop_pct': crop_pct}


def _enter(folder: Path, lock: FileLock, starts: bool) -> None:
    """Keep other runs out of the folder; on every process, refuse one that another run writes to, or began in."""
    refusal, owner = '', folder / '.lock.owner'
    if is_first_process():
        try:
            lock.acquire()
            write_bytes(owner, f'process {os.getpid()} on {platform.node()}'.encode())
        except Timeout:
            by = f' ({owner.read_text()})' if owner.is_file() else ''
            refusal = f'{folder}: another run writes there{by}: wait for its end, or choose another output folder.'
    if starts and not refusal and checkpoint_files(folder / 'last.pth'):
        refusal = f'{folder} holds a run already: go on with it (--resume), or choose another output folder.'
    for message in filter(None, gather(refusal)):
        raise ValueError(message)


def _create_trainer(
        model: Union[str, nn.Module],
        data: str,
        recipe: Recipe,
        folder: Path,
        device: torch.device,
        options: Options,
        state: Optional[Dict[str, Any]],
        lock: FileLock,
) -> Trainer:
    """A new run, or one that is where the checkpoint `state` was, which has all weights."""
    kind = TASKS[recipe.task]
    loaders = kind.loaders(data, recipe, options.splits, device, options.workers, options.skip_corrupt)
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
    _enter(folder, lock, starts=state is None)
    if is_first_process():
        reporter = Reporter(folder, options.progress, options.tensorboard)
    trainer = Trainer(
        task, recipe, optimizer, schedule, loaders, folder, reporter, options.checkpoint_minutes,
        measure=kind.measure)
    if state is not None:
        trainer.resume(state)
        _logger.info('going on in epoch %d, after update %d', trainer.position.epoch + 1, trainer.position.update)
    return trainer


def _create_task(
        model: Union[str, nn.Module],
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
) -> MREDTask:
    if isinstance(model, str):
        model = build_model(model, recipe, num_classes)
    else:
        TASKS[recipe.task].check(model)
        freeze(model, recipe.train)
    model = model.to(device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if recipe.sync_bn and dist.is_initialized():
        model = synchronized(model, device)
    resolutions = recipe.resolutions if recipe.shared_bn else None
    task = MREDTask(model, recipe.mred, recipe.smoothing, resolutions, recipe.lean, recipe.own_kernels,
                    own_answers=recipe.task == 'adaptation', device=device)
    return task.to(device)
