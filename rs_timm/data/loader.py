"""The loader of pictures at S sizes, and the processes that decode for it."""
import os
import signal
import threading
from typing import Callable, Iterable, Iterator, List, Sequence, Tuple

import torch
from torch.utils.data import DataLoader

from rs_timm.pictures import ImageError

from .device import BatchFinisher, Images, prefetched
from .order import EpochBatches
from .samples import MultiResDataset, Sample, ViewBatch, collate_views

__all__ = ['MultiResLoader']


class MultiResLoader:
    """Iterates over ({resolution: float32 [N, C, resolution, resolution]}, target); see `create_multires_loader`.

    Attributes:
        resolutions: sizes in pixels, largest first.
        dataset: what the pictures come from.
        batch_size, rank, world_size, is_training: as given.
        mixup: timm's parameters, or None; `loader.mixup.mixup_enabled = False` turns it off.
        damaged: of the pass that runs or ran last, a line for each picture that could not be read.
    """

    def __init__(
            self,
            samples: MultiResDataset,
            order: EpochBatches,
            finisher: BatchFinisher,
            num_workers: int = 4,
            skip_corrupt: bool = False,
            collate: Callable[[Sequence[Sample]], ViewBatch] = collate_views,
    ) -> None:
        self.dataset = samples.dataset
        self.resolutions = finisher.resolutions
        self.mixup = finisher.mixup
        self.batch_size = order.batch_size
        self.rank = order.rank
        self.world_size = order.world_size
        self.is_training = order.is_training
        self.skip_corrupt = skip_corrupt
        self.damaged: List[str] = []
        self._order = order
        self._finisher = finisher
        cuda = finisher.device.type == 'cuda'
        self._stream = torch.cuda.Stream(finisher.device) if cuda else None
        self._loader = DataLoader(
            samples,
            batch_sampler=order,
            num_workers=num_workers,
            collate_fn=collate,
            pin_memory=cuda,
            persistent_workers=num_workers > 0,
            worker_init_fn=_obey_parent_alone,
            generator=torch.Generator(),  # else each pass would draw from the generator of the training run
        )

    def __len__(self) -> int:
        """Batches of a whole epoch on this rank, wherever the next pass starts."""
        return len(self._order)

    @property
    def num_samples(self) -> int:
        """Pictures in the data set, over all ranks."""
        return self._order.count

    @property
    def epoch(self) -> int:
        """The epoch of the pass that runs, or of the next one."""
        return self._order.epoch

    @property
    def corrupt_count(self) -> int:
        """The number of pictures that could not be read, in the pass that runs or ran last, on this rank."""
        return len(self.damaged)

    def set_epoch(self, epoch: int, start_batch: int = 0) -> None:
        """Say what the next pass is: the batches of `epoch` from `start_batch` on, exactly as in a pass from 0.

        Without it, a training pass that ends moves on to the following epoch.

        >>> loader.set_epoch(3, start_batch=40)  # doctest: +SKIP

        Raises:
            ValueError: a negative epoch, or a start behind the end of the epoch.
        """
        if epoch < 0 or not 0 <= start_batch <= len(self):
            raise ValueError(f'epoch {epoch}, start_batch {start_batch}: epochs count from 0, and start_batch is 0 to '
                             f'{len(self)}, the number of batches; was the batch size changed since?')
        self._order.epoch = epoch
        self._order.start_batch = start_batch

    def __iter__(self) -> Iterator[Tuple[Images, torch.Tensor]]:
        self.damaged = []
        epoch, start = self._order.epoch, self._order.start_batch
        batches = iter(self._loader)
        self._order.start_batch = 0
        yield from prefetched(self._finished(batches, epoch, start), self._finisher.device, self._stream)
        if self.is_training and self._order.epoch == epoch:
            self._order.epoch = epoch + 1

    def _finished(self, batches: Iterable[ViewBatch], epoch: int, start: int) -> Iterator[Tuple[Images, torch.Tensor]]:
        for number, batch in enumerate(batches, start):
            self._note(batch.damaged)
            if not batch.images and self.is_training:  # a substitute was looked for among all pictures
                raise ImageError(f'none of the {self.num_samples} pictures to train on can be read; the first: '
                                 f'{self.damaged[0]}')
            if batch.images:
                yield self._finisher(batch, self._order.seed, epoch, number, self.rank)

    def _note(self, damaged: Sequence[str]) -> None:
        self.damaged = list(dict.fromkeys((*self.damaged, *damaged))) if damaged else self.damaged
        if damaged and not self.skip_corrupt:
            raise ImageError(f'{damaged[0]} (repair or remove the file, or skip such files with skip_corrupt=True, '
                             '--skip-corrupt on the command line)')


def _obey_parent_alone(worker: int) -> None:
    """Let signals that are meant for the whole run reach the training process alone; call it in a worker.

    Ctrl-C and `timeout` signal the process group; Slurm, container runtimes and `pkill` signal every process. A reader
    that ended there would break the update that runs, before the training process could save. SIGTERM from the parent,
    which is how torch ends a reader that does not listen, still ends it; so does the end of the parent.

    Args:
        worker: number of the worker, as torch passes it.
    """
    if hasattr(os, 'setpgrp'):
        os.setpgrp()
    if hasattr(signal, 'sigwaitinfo'):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # of this thread, and of those that it starts
        threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
        pass
    os._exit(0)
