"""`train`: a network, a folder of pictures and a recipe, in one call."""
import json
import logging
import sys
import time
from dataclasses import asdict
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Sequence, Tuple

import torch
import torch.distributed as dist
from timm.data import Mixup
from timm.utils.distributed import init_distributed_device_so
from torch import nn
from tqdm import tqdm

from rs_timm.data import create_multires_loader

from .build import build_model, create_optimizer
from .checkpoint import write_atomically
from ._simple_evaluate import evaluate
from .loop import Position, Trainer
from .recipes import Recipe
from .report import epoch_table, plot_curves, write_csv
from .schedule import create_schedule
from .task import MREDTask

__all__ = ['train']

_logger = logging.getLogger(__name__)


def train(
        model: str,
        data: str,
        recipe: Recipe,
        output: str,
        resume: bool = False,
        device: str = 'auto',
        workers: int = 4,
        splits: Tuple[str, str] = ('train', 'val'),
        checkpoint_minutes: float = 5.,
        compile: bool = False,
        sync_bn: bool = False,
        tensorboard: bool = False,
        skip_corrupt: bool = False,
        progress: bool = True,
) -> List[Dict[str, Any]]:
    """Train `model` on the pictures in `data`; under torchrun, on all its processes.

    Written to `output`: last.pth (the checkpoint), recipe.json, log.csv, curves.png, and at the end model.safetensors.

    Args:
        model: a registered `rs_*` name, or any BatchNorm network of timm.
        data: folder with one subfolder per split and class, or another data set that timm's factory knows.
        recipe: what decides the result, see `get_recipe`.
        output: folder, made if it is not there.
        resume: go on from the checkpoint in `output`; without one, start.
        device: 'cpu', 'cuda' or 'auto'.
        workers: processes that read pictures, per training process.
        splits: names of the splits to train and to evaluate on.
        checkpoint_minutes: time between checkpoints within an epoch.
        compile: use torch.compile.
        sync_bn: BatchNorm statistics over all processes; CUDA alone.
        tensorboard: write event files to `output`.
        skip_corrupt: leave out pictures that cannot be read, and count them, instead of stopping.
        progress: show a bar, where the standard error is a terminal.

    Returns:
        One row for each epoch and resolution, as in log.csv.

    Raises:
        ValueError: what cannot be trained, or a folder with a checkpoint of another run.
    """
    folder = Path(output)
    if (folder / 'last.pth').is_file() and not resume:
        raise ValueError(f'{folder} holds a run already: add --resume to go on with it, or choose another --output.')
    where = _start_processes(device)
    torch.manual_seed(recipe.seed)
    loaders = _Loaders(data, recipe, splits, where, workers, skip_corrupt)
    task = _create_task(model, recipe, loaders.num_classes, where, sync_bn, compile)
    optimizer = create_optimizer(task, recipe)
    if recipe.ema:
        task.setup_ema(decay=recipe.ema, use_warmup=True)
    if compile:
        task.compile()
    if dist.is_initialized():
        task.prepare_distributed(device_ids=[where] if where.type == 'cuda' else None)
    updates = loaders.updates_per_epoch()
    folder.mkdir(parents=True, exist_ok=True)
    reporter = _Reporter(folder, progress)
    trainer = Trainer(
        task,
        recipe,
        optimizer,
        create_schedule(optimizer, recipe, updates),
        loaders.train,
        partial(_evaluate, task=task, loaders=loaders),
        folder,
        report=reporter.epoch,
        progress=reporter.update,
        checkpoint_minutes=checkpoint_minutes,
    )
    if resume and trainer.resume():
        _logger.info('going on at epoch %d, update %d', trainer.position.epoch + 1, trainer.position.update)
    if _is_first():
        write_atomically(folder / 'recipe.json', json.dumps(dict(model=model, **asdict(recipe)), indent=2).encode())
    rows = trainer.fit()
    if _is_first():
        _finish(task, rows, folder)
    return rows


def _start_processes(device: str) -> torch.device:
    name = ('cuda' if torch.cuda.is_available() else 'cpu') if device == 'auto' else device
    if dist.is_initialized():
        return torch.device(name)
    return torch.device(init_distributed_device_so(name)['device'])


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _create_task(
        name: str,
        recipe: Recipe,
        num_classes: int,
        device: torch.device,
        sync_bn: bool,
        compile: bool,
) -> MREDTask:
    model = build_model(name, recipe, num_classes).to(device)
    if recipe.channels_last:
        model = model.to(memory_format=torch.channels_last)
    if sync_bn and dist.is_initialized():
        if device.type != 'cuda':
            raise ValueError('sync_bn needs CUDA: SyncBatchNorm of torch runs there alone.')
        model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
    resolutions = recipe.resolutions if recipe.shared_bn else None
    task = MREDTask(model, recipe.mred, recipe.smoothing, resolutions, recipe.lean, device=device)
    return task.to(device)


class _Loaders:
    """The loaders of a run, one pair for each set of sizes."""

    def __init__(
            self,
            data: str,
            recipe: Recipe,
            splits: Tuple[str, str],
            device: torch.device,
            workers: int,
            skip_corrupt: bool,
    ) -> None:
        self.data, self.recipe, self.splits = data, recipe, splits
        self.rank, self.world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        parts = self.world_size * recipe.accumulate
        if recipe.batch_size % parts:
            raise ValueError(f'batch_size {recipe.batch_size} is no multiple of {parts}, the {self.world_size} process(es) '
                             f'times the {recipe.accumulate} part(s) of a batch.')
        self.batch_size = recipe.batch_size // parts
        self.common: Dict[str, Any] = dict(
            batch_size=self.batch_size,
            seed=recipe.seed,
            num_workers=workers,
            mean=recipe.mean,
            std=recipe.std,
            interpolation=recipe.interpolation,
            mode=recipe.resize,
            device=device,
            channels_last=recipe.channels_last,
            skip_corrupt=skip_corrupt,
            rank=self.rank,
            world_size=self.world_size,
        )
        self._made: Dict[Tuple[bool, Tuple[int, ...]], Any] = {}
        self.num_classes = len(self._train(recipe.sizes(0).values()).dataset.reader.class_to_idx)

    def train(self, epoch: int) -> Any:
        """The loader for the sizes of `epoch`."""
        return self._train(self.recipe.sizes(epoch).values())

    def _train(self, sizes: Iterable[int]) -> Any:
        recipe = self.recipe
        mixup = None
        if recipe.mixup or recipe.cutmix:
            mixup = Mixup(recipe.mixup, recipe.cutmix, label_smoothing=0., num_classes=self.num_classes)
        return self._loader(
            True,
            sizes,
            scale=recipe.crop_scale,
            ratio=recipe.crop_ratio,
            hflip=recipe.hflip,
            flip=recipe.flip,
            color_jitter=recipe.color_jitter or None,
            auto_augment=recipe.auto_augment or None,
            re_prob=recipe.re_prob,
            mixup=mixup,
        )

    def evaluation(self, sizes: Iterable[int]) -> Any:
        """The loader of the pictures that the network is measured on."""
        return self._loader(False, sizes, crop_pct=self.recipe.crop_pct)

    def _loader(self, is_training: bool, sizes: Iterable[int], **kwargs: Any) -> Any:
        key = is_training, tuple(sizes)
        if key not in self._made:
            for other in [k for k in self._made if k[0] == is_training]:
                del self._made[other]  # its workers too
            self._made[key] = create_multires_loader(
                self.data, key[1], split=self.splits[not is_training], is_training=is_training, **self.common, **kwargs)
        return self._made[key]

    def updates_per_epoch(self) -> int:
        updates = len(self.train(0)) // self.recipe.accumulate
        return min(updates, self.recipe.limit_batches or updates)


def _evaluate(model: nn.Module, sizes: Sequence[int], task: MREDTask, loaders: _Loaders) -> Mapping[Any, Any]:
    loader: Iterable[Any] = loaders.evaluation(sizes)
    if loaders.recipe.limit_batches:
        loader = islice(loader, loaders.recipe.limit_batches)
    weights = task.ensemble_weights(ema=task.has_ema()).values()
    return evaluate(model, loader, sizes, ensemble_alpha=dict(zip(sorted(sizes, reverse=True), weights)))


class _Reporter:
    """Shows and writes how a run goes; on the first process."""

    def __init__(self, folder: Path, progress: bool) -> None:
        self.folder = folder
        self.progress = progress and _is_first()
        self.bar: Any = None
        self.logged_at = time.monotonic()

    def update(self, position: Position, updates: int, losses: Dict[str, float]) -> None:
        """After an update: the bar on a terminal, a line a minute elsewhere."""
        if not self.progress:
            return
        done, loss = position.sums['count'], position.sums['loss'] / position.sums['count']
        if sys.stderr.isatty():
            if self.bar is None or self.bar.n >= updates:
                self.bar = tqdm(total=updates, desc=f'epoch {position.epoch + 1}', leave=False)
            self.bar.set_postfix(loss=f'{loss:.3f}', refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.logged_at > 60:
            self.logged_at = time.monotonic()
            _logger.info('epoch %d  %d/%d  loss %.3f  %.0f s', position.epoch + 1, done, updates, loss, position.seconds)

    def epoch(self, rows: List[Dict[str, Any]]) -> None:
        write_csv(rows, self.folder / 'log.csv')
        _logger.info(epoch_table(rows))


def _finish(task: MREDTask, rows: List[Dict[str, Any]], folder: Path) -> None:
    from safetensors.torch import save
    model = task.get_eval_model(ema=task.has_ema())
    state = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    write_atomically(folder / 'model.safetensors', save(state))
    plot_curves(rows, folder / 'curves.png')
