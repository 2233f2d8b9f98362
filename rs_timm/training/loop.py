"""The training loop: what changes while a run goes on, one epoch, one update, and how it stops and goes on."""
import logging
import math
import signal
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.distributed as dist
from timm.utils import distribute_bn
from torch import nn

from rs_timm.layers import extract, is_switchable, pack

from .checkpoint import load_checkpoint, random_state, save_checkpoint, set_random_state
from .recipes import Recipe
from .task import MREDTask

__all__ = ['NonFiniteLoss', 'Stopped', 'Trainer']

_logger = logging.getLogger(__name__)

LOSSES = ('loss', 'classification', 'ensemble', 'distillation')


class NonFiniteLoss(RuntimeError):
    """The loss or a weight is no longer a number; the message has the step."""


class Stopped(SystemExit):
    """A signal asked the run to stop, and it saved what it had."""


@dataclass
class Position:
    """How far a run is. `batch` counts the parts of batches that this epoch has used, `update` the whole run's updates."""

    epoch: int = 0
    batch: int = 0
    update: int = 0
    sums: Dict[str, float] = field(default_factory=dict)  # of the losses of this epoch's updates, and their 'count'
    seconds: float = 0.  # spent on this epoch


class Trainer:
    """A run: `fit` starts it, or goes on from its last checkpoint.

    Args:
        task: model and loss, on the device.
        recipe: the settings.
        optimizer: over `task.parameters()`.
        schedule: see `create_schedule`.
        train_loader: epoch -> loader of `{size: images}, target`, with `set_epoch(epoch, start_batch)`.
        evaluate: (model, sizes) -> {size or 'ensemble': {'top1': percent, ...}}, on all processes alike.
        output: folder of the checkpoint.
        report: called on the first process with the rows of all epochs, whenever one is complete.
        checkpoint_minutes: time between checkpoints within an epoch; there is one after each epoch anyway.
    """

    def __init__(
            self,
            task: MREDTask,
            recipe: Recipe,
            optimizer: torch.optim.Optimizer,
            schedule: Any,
            train_loader: Callable[[int], Any],
            evaluate: Callable[[nn.Module, Sequence[int]], Mapping[Any, Mapping[str, float]]],
            output: Path,
            report: Callable[[List[Dict[str, Any]]], None] = lambda rows: None,
            checkpoint_minutes: float = 5.,
            progress: Callable[[Position, int, Dict[str, float]], None] = lambda position, count, losses: None,
    ) -> None:
        self.task, self.recipe, self.optimizer, self.schedule = task, recipe, optimizer, schedule
        self.train_loader, self.evaluate, self.report, self.progress = train_loader, evaluate, report, progress
        self.path = Path(output) / 'last.pth'
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.device = task.device
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=recipe.precision == 'float16')
        self.position = Position()
        self.rows: List[Dict[str, Any]] = []
        self._signal = 0
        self._saved_at = time.monotonic()

    def fit(self) -> List[Dict[str, Any]]:
        """Train to the last epoch; returns one row per epoch and resolution.

        Raises:
            NonFiniteLoss: the loss is inf or nan; the last checkpoint is from before that.
            Stopped: SIGTERM or SIGINT came; everything is saved.
        """
        with self._listening():
            while self.position.epoch < self.recipe.epochs:
                self._train_epoch()
                self._finish_epoch()
        return self.rows

    def _train_epoch(self) -> None:
        recipe, position = self.recipe, self.position
        loader = self.train_loader(position.epoch)
        loader.set_epoch(position.epoch, start_batch=position.batch)
        updates = len(loader) // recipe.accumulate
        updates = min(updates, recipe.limit_batches or updates)
        if not updates:
            raise ValueError(f'the data has fewer pictures than one batch of {recipe.batch_size}: use a smaller batch_size.')
        self.task.train()
        batches = iter(loader)
        started = time.monotonic()
        while position.batch < updates * recipe.accumulate:
            losses = self._update([next(batches) for _ in range(recipe.accumulate)])
            now = time.monotonic()
            position.seconds, started = position.seconds + now - started, now
            for name, value in dict(losses, count=1.).items():
                position.sums[name] = position.sums.get(name, 0.) + value
            position.batch += recipe.accumulate
            position.update += 1
            self.progress(position, updates, losses)
            self._save_or_stop()

    def _update(self, parts: Sequence[Tuple[Dict[int, torch.Tensor], torch.Tensor]]) -> Dict[str, float]:
        """One step of the optimizer on a batch that comes in parts; returns the losses, means over the parts."""
        sets = self.task.resolutions
        self.schedule.step_update(self.position.update)
        self.optimizer.zero_grad()
        total = torch.zeros(len(LOSSES), device=self.device)
        for index, (images, target) in enumerate(parts):
            batch = {r: images[size] for r, size in zip(sets, sorted(images, reverse=True))}
            with self.task.no_sync() if index + 1 < len(parts) else nullcontext():
                with self.autocast():
                    losses = self.task(batch, target)
                self.scaler.scale(losses['loss'] / len(parts)).backward()
            total += torch.stack([losses[name].detach() for name in LOSSES]).float() / len(parts)
        values = total.tolist()
        if not math.isfinite(values[0]):
            raise NonFiniteLoss(f'the loss is {values[0]} at step {self.position.update} (epoch {self.position.epoch}); the '
                                f'last good checkpoint is {self.path}. Lower lr, clip the gradient, or use float32.')
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.task.get_clip_parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=self.position.update + 1)
        return dict(zip(LOSSES, values))

    def autocast(self) -> ContextManager:
        """The precision of the recipe; float32 leaves everything as it is."""
        dtype = getattr(torch, self.recipe.precision)
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not torch.float32)

    def _finish_epoch(self) -> None:
        position = self.position
        if dist.is_initialized():
            distribute_bn(self.task.get_eval_model(), dist.get_world_size(), reduce=True)
        sizes = self.recipe.sizes(position.epoch)
        model = self.task.get_eval_model(ema=self.task.has_ema())
        with self.autocast():
            results = self.evaluate(resized(model, sizes), sorted(sizes.values(), reverse=True))
        count = position.sums.get('count', 1.)
        means = {f'train_{name}': position.sums.get(name, math.nan) / count for name in LOSSES}
        weights = self.task.ensemble_weights(ema=self.task.has_ema())
        for resolution, size in [*sizes.items(), ('ensemble', 'ensemble')]:
            if size in results:
                self.rows.append(dict(
                    epoch=position.epoch + 1,
                    resolution=resolution,
                    size=size,
                    **{key: results[size][key] for key in ('top1', 'top5', 'loss') if key in results[size]},
                    alpha=weights.get(resolution, math.nan),
                    **means,
                    lr=self.optimizer.param_groups[0]['lr'],
                    seconds=round(position.seconds, 1),
                ))
        self.position = Position(epoch=position.epoch + 1, update=position.update)
        self._save(final=True)
        if _is_first():
            self.report(self.rows)

    def _save_or_stop(self) -> None:
        """All processes decide together, since each one's random state is part of a checkpoint."""
        due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
        flags = torch.tensor([self._signal, int(due and _is_first())], device=self.device)
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        stop, due = flags.tolist()
        if stop or due:
            self._save(final=bool(stop))
        if stop:
            _logger.warning('signal %d: saved %s at update %d; go on with --resume', stop, self.path, self.position.update)
            raise Stopped(128 + stop)

    def _save(self, final: bool) -> None:
        """Write the checkpoint. Within an epoch a full disk is reported and tried again later; else it is an error."""
        self._saved_at = time.monotonic()
        state = self.state_dict()
        if not _is_first():
            return
        broken = [k for k, v in state['state_dict'].items() if v.is_floating_point() and not v.isfinite().all()]
        if broken:
            raise NonFiniteLoss(f'{broken[0]} is not finite at step {self.position.update}; the last good checkpoint is '
                                f'{self.path}. Lower lr, clip the gradient, or use float32.')
        try:
            save_checkpoint(self.path, state)
        except OSError as error:
            if final:
                raise
            _logger.warning('%s could not be written (%s); the one before it is still there', self.path, error)

    def state_dict(self) -> Dict[str, Any]:
        """Everything that a run needs to go on as if it had never stopped; a collective call when distributed."""
        state = self.task.get_checkpoint_state()
        if self.task.has_ema():
            state.update(self.task.get_checkpoint_state(ema=True))
        return dict(
            state,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            random=_gather(random_state()),
            position=asdict(self.position),
            rows=self.rows,
            recipe=asdict(self.recipe),
        )

    def resume(self) -> bool:
        """Go back to the last checkpoint, if there is one.

        Raises:
            ValueError: it is of a run with other settings; the message names them.
        """
        if not self.path.is_file():
            return False
        state = load_checkpoint(self.path)
        self._check_same_run(state)
        self.task.load_checkpoint_state(state['state_dict'], state['task_state'])
        if self.task.has_ema():
            self.task.load_checkpoint_state(state['state_dict_ema'], state['task_state_ema'], ema=True)
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.load_state_dict(state['schedule'])
        self.scaler.load_state_dict(state['scaler'])
        self.position, self.rows = Position(**state['position']), state['rows']
        set_random_state(state['random'][dist.get_rank() if dist.is_initialized() else 0])
        return True

    def _check_same_run(self, state: Mapping[str, Any]) -> None:
        differences = {k: v for k, v in self.recipe.differences(state['recipe']).items()}
        if differences:
            changes = ', '.join(f'{name} {theirs!r} -> {mine!r}' for name, (mine, theirs) in differences.items())
            raise ValueError(f'{self.path} is of a run with other settings ({changes}): use those, or another output folder.')
        world_size = dist.get_world_size() if dist.is_initialized() else 1
        if len(state['random']) != world_size:
            raise ValueError(f"{self.path} is of a run with {len(state['random'])} processes, this one has {world_size}.")

    @contextmanager
    def _listening(self) -> Iterator[None]:
        """SIGTERM and SIGINT are noted, and obeyed between two updates."""
        def note(number: int, frame: Any) -> None:
            self._signal = number

        before = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def resized(model: nn.Module, sizes: Mapping[int, int]) -> nn.Module:
    """A copy of `model` whose BatchNorm sets stand under the sizes that they are fed with; the model itself if equal."""
    if not is_switchable(model) or all(r == size for r, size in sizes.items()):
        return model
    return pack({size: extract(model, r) for r, size in sizes.items()})


def _is_first() -> bool:
    return not dist.is_initialized() or dist.get_rank() == 0


def _gather(value: Any) -> List[Any]:
    if not dist.is_initialized():
        return [value]
    values: List[Optional[Any]] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values
