"""MRED in timm's own train.py: what stands in the place of its `ClassificationTask`, see `python -m rs_timm.run`."""
import warnings
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List

import timm.task
import torch
import torch.nn.functional as F
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy
from torch import nn

from rs_timm.loss import MODES

from .task import MREDTask

__all__ = ['ScriptTask', 'mred_in_scripts']


class ScriptTask(MREDTask):
    """`MREDTask` with the arguments of timm's `ClassificationTask`: a batch comes at the largest size alone.

    The other sizes are reduced from it where the network is, antialiased, after augmentation and normalisation.

    >>> import rs_timm
    >>> task = ScriptTask(rs_timm.switchable('test_resnet', (64, 48), num_classes=10), nn.CrossEntropyLoss())
    >>> sorted(task(torch.randn(2, 3, 64, 64), torch.tensor([1, 7]))['logits'])
    [48, 64]

    Args:
        model: a switchable network.
        criterion: cross-entropy, with label smoothing or for soft targets; MRED takes its smoothing.
        device, dtype, verbose: as in timm.
        mode: which distillations, see `rs_timm.loss.mred_loss`.

    Raises:
        ValueError: a criterion that is no cross-entropy; at a forward with images of another size.
    """

    def __init__(
            self,
            model: nn.Module,
            criterion: nn.Module,
            device: Any = None,
            dtype: Any = None,
            verbose: bool = True,
            mode: str = 'full',
    ) -> None:
        super().__init__(model, mode, _smoothing(criterion), device=device, dtype=dtype, verbose=verbose)
        self.to(self.device)  # alpha; the network is there

    def forward(self, input: Any, target: torch.Tensor) -> Dict[str, Any]:
        """The losses for images [N, 3, R, R] of the largest size R."""
        largest = self.resolutions[0]
        if tuple(input.shape[-2:]) != (largest, largest):
            raise ValueError(f'images of {tuple(input.shape[-2:])}: MRED reduces them from the largest size of the '
                             f'network, {largest}: --img-size {largest}, or --model-kwargs with other resolutions.')
        return super().forward({r: _reduced(input, r) for r in self.resolutions}, target)


def _reduced(images: torch.Tensor, size: int) -> torch.Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images.float(), (size, size), mode='bilinear', antialias=True).to(images.dtype)


def _smoothing(criterion: nn.Module) -> float:
    if isinstance(criterion, LabelSmoothingCrossEntropy):
        return criterion.smoothing
    if isinstance(criterion, nn.CrossEntropyLoss):
        return criterion.label_smoothing
    if isinstance(criterion, SoftTargetCrossEntropy):
        return 0.
    raise ValueError(f'{type(criterion).__name__}: MRED is made of cross-entropies; leave out --bce-loss and '
                     '--jsd-loss.')


@contextmanager
def mred_in_scripts(mode: str) -> Iterator[None]:
    """Give scripts that take `ClassificationTask` from timm.task a `ScriptTask` with this mode.

    Raises:
        ValueError: an unknown mode.
    """
    if mode not in MODES:
        raise ValueError(f"--mred {mode}: it is one of {', '.join(MODES)}.")
    made: List[ScriptTask] = []

    def make(*args: Any, **kwargs: Any) -> ScriptTask:
        made.append(ScriptTask(*args, **dict(kwargs, mode=mode)))
        return made[-1]

    original = timm.task.ClassificationTask
    timm.task.ClassificationTask = make  # type: ignore[misc, assignment]
    try:
        yield
        if not made:
            warnings.warn(f'--mred {mode} had no effect: the script trained without a ClassificationTask, as for '
                          'distillation from another network (--kd-model-name).', stacklevel=2)
    finally:
        timm.task.ClassificationTask = original  # type: ignore[misc]
