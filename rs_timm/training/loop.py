"""The training loop: an epoch, an update, and how a run stops and goes on without losing anything."""
import logging
import math
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Callable, ContextManager, Dict, List, Mapping, Optional, Sequence, Set, Tuple, Union

import torch
import torch.distributed as dist
from timm.scheduler.scheduler import Scheduler
from timm.utils import distribute_bn
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from rs_timm.data import MultiResLoader
from rs_timm.evaluation import ENSEMBLE, evaluate

from .build import resized
from .checkpoint import check_same_run, random_state, save_checkpoint, set_random_state
from .optimization import OneCycle
from .processes import Stopped, StopSignals, gather, is_first_process, process_rank
from .recipe import Recipe
from .report import LOSSES, Reporter, headline
from .task import MREDTask
from .tasks import Loaders

__all__ = ['NonFiniteError', 'Position', 'Trainer']

_logger = logging.getLogger(__name__)

Part = Tuple[Dict[int, torch.Tensor], torch.Tensor]  # {size: images [N, C, size, size]}, target


class NonFiniteError(RuntimeError):
    """The loss or a weight is no longer a number; the message has the step."""


@dataclass
class Position:
    """The place that a run has reached."""

    epoch: int = 0  # complete ones
    batch: int = 0  # of the loader, used in this epoch
    update: int = 0  # of the weights, in the whole run
    sums: Dict[str, float] = field(default_factory=dict)  # of the losses of this epoch's updates, and their 'count'
    seconds: float = 0.  # spent on training in this epoch

    def means(self) -> Dict[str, float]:
        """The mean of each loss over this epoch's updates so far."""
        return {name: self.sums.get(name, math.nan) / self.sums.get('count', 1.) for name in LOSSES}


class Trainer:
    """A run: `fit` goes from where it is to the last epoch.

    Args:
        task: model and loss, on the device.
        recipe: the settings.
        optimizer: over the parameters of the task.
        schedule: see `create_schedule`.
        loaders: of the run's data.
        output: folder of the checkpoint, last.pth.
        reporter: where to tell how it goes; on the first process alone.
        checkpoint_minutes: time between checkpoints within an epoch; there is one at its end anyway.
        measure: `evaluate`, or `evaluate_masks`.
    """

    def __init__(
            self,
            task: MREDTask,
            recipe: Recipe,
            optimizer: torch.optim.Optimizer,
            schedule: Union[Scheduler, OneCycle],
            loaders: Loaders,
            output: Path,
            reporter: Optional[Reporter] = None,
            checkpoint_minutes: float = 5.,
            measure: Callable[..., Mapping[Union[int, str], Mapping[str, float]]] = evaluate,
    ) -> None:
        self.task, self.recipe, self.optimizer, self.schedule = task, recipe, optimizer, schedule
        self.loaders, self.reporter, self.measure = loaders, reporter, measure
        self.path = Path(output) / 'last.pth'
        self.checkpoint_seconds = 60 * checkpoint_minutes
        self.scaler = torch.amp.GradScaler(task.device.type, enabled=recipe.precision == 'float16')
        self.position = Position()
        self.rows: List[Dict[str, Any]] = []  # one for each complete epoch and resolution
        self.best: Dict[str, Any] = {}  # with val_fraction: the best epoch, its score, and the state of the task then
        self.signals = StopSignals()
        self._saved_at = time.monotonic()
        self._named_damaged: Set[str] = set()

    def fit(self) -> List[Dict[str, Any]]:
        """Train to the last epoch; returns one row for each epoch and resolution.

        With pictures kept aside (`Recipe.val_fraction`) the network is then that of the best epoch on these.

        Raises:
            NonFiniteError: the loss is inf or nan; the last checkpoint is from before that.
            Stopped: SIGTERM or SIGINT came; everything is saved.
        """
        with self.signals:
            while self.position.epoch < self.recipe.epochs and not self._stale():
                self._train_epoch()
                self._save(must=True)
                with self.signals.stop_at_once():
                    results = self._evaluate()
                self._close_epoch(results)
        if self.best:
            _logger.info('the network is that of epoch %d of %d, the best on the pictures kept aside: %s %.2f, mean of '
                         'all sizes', self.best['epoch'], self.position.epoch, headline(self.rows[-1])[1],
                         self.best['score'])
            ema = self.task.has_ema()
            names = ('state_dict_ema', 'task_state_ema') if ema else ('state_dict', 'task_state')
            self.task.load_checkpoint_state(*(self.best['state'][name] for name in names), ema=ema)
        return self.rows

    def _stale(self) -> bool:
        """Whether `patience` epochs brought nothing better."""
        patience = self.recipe.patience
        return bool(patience and self.best) and self.position.epoch - self.best['epoch'] >= patience

    def _keep_best(self, epoch: int) -> None:
        """Remember the network after `epoch` if none was better at its sizes, on average; of equal ones the later."""
        metric, _ = headline(self.rows[-1])
        found = [row[metric] for row in self.rows if row['epoch'] == epoch and row['resolution'] != ENSEMBLE]
        score = sum(found) / len(found)
        if epoch > self.recipe.small_epochs and score >= self.best.get('score', -math.inf):
            state = self.task.get_checkpoint_state(ema=self.task.has_ema())
            self.best = dict(epoch=epoch, score=score, state={
                part: {name: value.detach().clone() for name, value in tensors.items()}
                for part, tensors in state.items()})

    def _train_epoch(self) -> None:
        position, parts = self.position, self.recipe.accumulate
        loader, updates = self.loaders.training(position.epoch), self.loaders.updates_per_epoch()
        loader.set_epoch(position.epoch, start_batch=position.batch)
        self.task.train()
        if self.recipe.statistics == 'running':
            for module in self.task.modules():
                if isinstance(module, _BatchNorm):
                    module.eval()
        batches, started = iter(loader), time.monotonic()
        for update in range(position.batch // parts, updates):
            losses = self.update([next(batches) for _ in range(parts)])
            for name, value in dict(losses, count=1.).items():
                position.sums[name] = position.sums.get(name, 0.) + value
            position.batch += parts
            position.update += 1
            now = time.monotonic()
            position.seconds, started = position.seconds + now - started, now
            if self.reporter:
                self.reporter.update(position.epoch, update + 1, updates, position.means())
            self._save_or_stop()
        self._warn_of_damaged(loader, 'training')

    def update(self, parts: Sequence[Part]) -> Dict[str, float]:
        """Make one step of the optimizer, and return the losses, means over the parts of a batch and the processes.

        Raises:
            NonFiniteError: the loss is inf or nan; the weights are as they were.
        """
        self.schedule.step_update(self.position.update)
        self.optimizer.zero_grad()
        total = torch.zeros(len(LOSSES), device=self.task.device)
        for index, (images, target) in enumerate(parts):
            batch = dict(zip(self.task.resolutions, (images[size] for size in sorted(images, reverse=True))))
            with self.task.no_sync() if index + 1 < len(parts) else nullcontext():
                with self._autocast():
                    losses = self.task(batch, target)
                self.scaler.scale(losses['loss'] / len(parts)).backward()
            total += torch.stack([losses[name].detach() for name in LOSSES]).float() / len(parts)
        if dist.is_initialized():
            dist.all_reduce(total.div_(dist.get_world_size()))
        values = dict(zip(LOSSES, total.tolist()))
        if not math.isfinite(values['loss']):  # before the weights are touched
            self._not_finite(f"the loss is {values['loss']}")
        if self.recipe.clip_grad:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.task.get_clip_parameters(), self.recipe.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.task.update_ema(step=self.position.update + 1)
        return values

    def _autocast(self) -> ContextManager:
        """The precision of the recipe; float32 leaves everything as it is."""
        dtype = self.recipe.amp_dtype
        return torch.autocast(self.task.device.type, dtype=dtype, enabled=dtype is not None)

    def _not_finite(self, what: str) -> None:
        raise NonFiniteError(f'{what} at step {self.position.update} (epoch {self.position.epoch + 1}). The last good '
                             f'checkpoint, {self.path}, is kept: try a lower lr, clip_grad, or precision float32.')

    def _evaluate(self) -> Mapping[Union[int, str], Mapping[str, float]]:
        """Measure the network, or its moving average, at the sizes of this epoch."""
        ema = self.task.has_ema()
        if dist.is_initialized():
            for average in {False, ema}:
                distribute_bn(self.task.get_eval_model(ema=average), dist.get_world_size(), reduce=True)
        sets = self.recipe.measured_sets(self.position.epoch)
        weights = self.task.ensemble_weights(ema=ema)
        loader = self.loaders.evaluation(sets)
        with self._autocast():
            results = self.measure(
                resized(self.task.get_eval_model(ema=ema), sets),
                loader,
                alpha={size: weights[r] for size, r in sets.items()} if 1 < len(weights) == len(sets) else {},
                limit_batches=self.recipe.limit_batches or None,
                progress=bool(self.reporter and self.reporter.progress),
            )
        self._warn_of_damaged(loader, 'evaluation')
        return results

    def _warn_of_damaged(self, loader: MultiResLoader, purpose: str) -> None:
        """Name pictures that no process could read after an epoch, each of them once in a run."""
        if not loader.skip_corrupt:
            return
        lines = [line for damaged in gather(loader.damaged) for line in damaged]
        new = [line for line in dict.fromkeys(lines) if line not in self._named_damaged]
        self._named_damaged.update(new)
        if new and is_first_process():
            _logger.warning('%d pictures could not be read in %s, the first: %s', len(new), purpose, new[0])

    def _close_epoch(self, results: Mapping[Union[int, str], Mapping[str, float]]) -> None:
        position = self.position
        sets: Dict[Any, Any] = dict(self.recipe.measured_sets(position.epoch))
        weights = self.task.ensemble_weights(ema=self.task.has_ema())
        for size, measured in results.items():
            resolution = sets.get(size, size)
            self.rows.append(dict(
                epoch=position.epoch + 1,
                resolution=resolution,
                size=size,
                **{key: value for key, value in measured.items() if key != 'count'},
                alpha=weights.get(resolution, math.nan),
                **{f'train_{name}': value for name, value in position.means().items()},
                lr=self.optimizer.param_groups[0]['lr'],
                seconds=round(position.seconds, 1),
            ))
        self.position = Position(epoch=position.epoch + 1, update=position.update)
        if self.recipe.val_fraction:
            self._keep_best(self.position.epoch)
        self._save(must=True)
        if self.reporter:
            self.reporter.epoch(self.rows)

    def _save_or_stop(self) -> None:
        """Between two updates. All processes decide as one: the random state of each is part of a checkpoint."""
        due = time.monotonic() - self._saved_at >= self.checkpoint_seconds
        flags = torch.tensor([self.signals.received, int(due and is_first_process())], device=self.task.device)
        if dist.is_initialized():
            dist.all_reduce(flags, op=dist.ReduceOp.MAX)
        stop, due = flags.tolist()
        if stop or due:
            self._save(must=bool(stop))
        if stop:
            _logger.warning('signal %d: saved %s at update %d; --resume goes on from there', stop, self.path,
                            self.position.update)
            raise Stopped(stop)

    def _save(self, must: bool) -> None:
        """Write the checkpoint; unless it must succeed, a full disk is reported and the next one may have more luck."""
        state = self.state_dict()
        self._saved_at = time.monotonic()
        if not is_first_process():
            return
        for key, value in state['state_dict'].items():
            if value.is_floating_point() and not value.isfinite().all():
                self._not_finite(f'{key} is not finite')
        try:
            save_checkpoint(self.path, state)
        except OSError as error:
            if must:
                raise
            _logger.warning('%s could not be written (%s); the one before it is still there', self.path, error)

    def state_dict(self) -> Dict[str, Any]:
        """All that a run needs to go on as if it had never stopped; all processes must call it."""
        state = self.task.get_checkpoint_state()
        if self.task.has_ema():
            state.update(self.task.get_checkpoint_state(ema=True))
        return dict(
            state,
            optimizer=self.optimizer.state_dict(),
            schedule=self.schedule.state_dict(),
            scaler=self.scaler.state_dict(),
            random=gather(random_state()),
            buffers=gather({k: v.cpu() for k, v in self._buffers().items()}) if dist.is_initialized() else [],
            position=asdict(self.position),
            rows=self.rows,
            best=self.best,
            recipe=asdict(self.recipe),
            pictures=self.loaders.picture_count(),
            picture_names=self.loaders.picture_names(),
            class_names=self.loaders.class_names,
        )

    def _buffers(self) -> Dict[str, torch.Tensor]:
        """The running statistics of the network and of its average, which differ between processes within an epoch."""
        models = {'': self.task.get_eval_model(), 'ema.': self.task.get_eval_model(ema=True)}
        return {prefix + name: buffer for prefix, model in models.items() if model is not None
                for name, buffer in model.named_buffers()}

    def resume(self, state: Mapping[str, Any]) -> None:
        """Go back to a checkpoint.

        Args:
            state: of `state_dict`; see `common_checkpoint`.

        Raises:
            ValueError: it is of another run; the message says in what.
        """
        check_same_run(self.path, state, self.state_dict(), self.recipe)
        self.task.load_checkpoint_state(state['state_dict'], state['task_state'])
        if self.task.has_ema():
            self.task.load_checkpoint_state(state['state_dict_ema'], state['task_state_ema'], ema=True)
        self.optimizer.load_state_dict(state['optimizer'])
        self.schedule.load_state_dict(state['schedule'])
        self.scaler.load_state_dict(state['scaler'])
        self.position, self.rows = Position(**state['position']), state['rows']
        self.best = dict(state.get('best', {}))  # earlier versions had none, or called the score top1
        if 'top1' in self.best:
            self.best['score'] = self.best.pop('top1')
        set_random_state(state['random'][process_rank()])
        if state.get('buffers'):
            with torch.no_grad():
                for name, buffer in self._buffers().items():
                    buffer.copy_(state['buffers'][process_rank()][name])
        if self.reporter and self.rows and not self.position.batch:
            self.reporter.epoch(self.rows)  # a kill may have come between checkpoint and log
