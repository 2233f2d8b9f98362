"""MREDTask: one training step of an RS-Net, on timm's `TrainingTask`."""
from contextlib import contextmanager, nullcontext
from functools import partial
from inspect import signature
from typing import Any, ContextManager, Dict, Iterable, Iterator, Mapping, Optional, Tuple

import torch
from timm.task import TrainingTask
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from rs_timm.layers import check_resolutions, get_resolutions, is_switchable, set_idle_gradients, use_resolution
from rs_timm.loss import MODES, dense_mred_loss, ensemble_weights, mred_loss

from .cpu.kernels import OwnKernels

__all__ = ['MREDTask']

Images = Mapping[int, torch.Tensor]  # resolution of a BatchNorm set -> [N, 3, H, W]


class MREDTask(TrainingTask):
    """Forward through all resolutions and the MRED loss; owns the ensemble scores alpha.

    The keys of a batch name BatchNorm sets; the images may have another size, as in progressive training.

    >>> import timm, rs_timm
    >>> task = MREDTask(timm.create_model('rs_resnet18', num_classes=10, resolutions=(64, 32)))
    >>> batch = {r: torch.randn(2, 3, r, r) for r in (64, 32)}
    >>> task(batch, torch.tensor([1, 7]))['loss'].backward()

    Args:
        model: a switchable network, or a plain one that then shares its BatchNorms (the ablation of Section 4.2).
        mode: which distillations, see `rs_timm.loss.mred_loss`.
        smoothing: label smoothing.
        resolutions: sizes in pixels; only for a plain network, which does not know them.
        lean: keep the activations of the largest resolution alone, and compute those of the others again during the
            backward pass; the gradients stay the same.
        own_kernels: `OwnKernels` where they are faster, or need less memory; else torch's alone.
        own_answers: the probabilities at the largest resolution take the place of the targets, for pictures without
            labels; the network stays in evaluation mode, since a teacher drops nothing.
        device, dtype, verbose: as in timm.

    Raises:
        ValueError: an unknown mode, or a plain network without `resolutions`.

    Source: Section 3.3, Figure 2.
    """

    def __init__(
            self,
            model: nn.Module,
            mode: str = 'full',
            smoothing: float = 0.,
            resolutions: Optional[Iterable[int]] = None,
            lean: bool = False,
            own_kernels: bool = True,
            own_answers: bool = False,
            device: Optional[torch.device] = None,
            dtype: Optional[torch.dtype] = None,
            verbose: bool = True,
    ) -> None:
        super().__init__(device=device, dtype=dtype, verbose=verbose)
        if mode not in MODES:
            raise ValueError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}.")
        self.mode, self.smoothing, self.own_answers = mode, smoothing, own_answers
        self.resolutions = _resolutions(model, resolutions)
        self.trainable_module = _Branches(model, len(self.resolutions), lean, own_kernels)
        if is_switchable(model):
            set_idle_gradients(model, 'none')  # a step uses every set

    def forward(self, input: Images, target: torch.Tensor) -> Dict[str, Any]:
        """Loss and its parts for one batch.

        Args:
            input: resolution of a set -> images [N, 3, H, W]; every set must be there.
            target: class indices [N] or probabilities [N, C]; for segmentation a mask of the largest size [N, H, W].

        Returns:
            'loss', 'classification', 'ensemble', 'distillation' (scalars), 'output' (logits of the largest resolution
            [N, C], which timm's scripts expect) and 'logits' (of all; for segmentation [N, C, h, w]).
        """
        if tuple(sorted(input, reverse=True)) != self.resolutions:
            raise ValueError(f'the batch has the resolutions {tuple(input)}, a step needs each of {self.resolutions}.')
        try:
            logits = self.trainable_module(dict(input))
        except ValueError as error:  # BatchNorm's, in training on one value per channel
            if len(target) > 1 or 'value per channel' not in str(error):
                raise
            raise ValueError(f'one picture at {min(x.shape[-1] for x in input.values())} px gives a BatchNorm one '
                             'value per channel, which has no variance: train with more pictures per process and part '
                             '(batch_size, accumulate), or larger resolutions.') from error
        if self.own_answers:
            target = logits[self.resolutions[0]].detach().float().softmax(dim=1)
        loss = dense_mred_loss if target.ndim == 3 else mred_loss
        losses = loss(logits, target, self.alpha, self.mode, self.smoothing)
        return dict(losses, output=logits[self.resolutions[0]], logits=logits)

    def train(self, mode: bool = True) -> 'MREDTask':
        return super().train(mode and not self.own_answers)

    @property
    def alpha(self) -> nn.Parameter:
        """Raw scores of the ensemble [S], largest resolution first."""
        return self._branches().alpha

    def ensemble_weights(self, ema: bool = False) -> Dict[int, float]:
        """Resolution -> its weight in the ensemble."""
        return dict(zip(self.resolutions, ensemble_weights(self._branches(ema).alpha.detach()).tolist()))

    def prepare_distributed(self, device_ids: Optional[list] = None, **ddp_kwargs: Any) -> 'MREDTask':
        """Wrap network and alpha in DDP; each process keeps running statistics of its own, to be averaged later."""
        known = signature(DistributedDataParallel).parameters
        name = 'forward_sync_buffers' if 'forward_sync_buffers' in known else 'broadcast_buffers'
        ddp_kwargs = {name: False, **ddp_kwargs}
        self.trainable_module = DistributedDataParallel(self.trainable_module, device_ids=device_ids, **ddp_kwargs)
        return self

    def compile(self, backend: str = 'inductor', mode: Optional[str] = None, **compile_kwargs: Any) -> nn.Module:
        """Compile the network, one graph per resolution; call it after `setup_ema`. Evaluation stays eager."""
        self._branches().compile_runs(backend=backend, mode=mode, **compile_kwargs)
        return self.get_eval_model()

    def get_eval_model(self, module: Optional[nn.Module] = None, ema: bool = False) -> Optional[nn.Module]:
        """The network itself, without the wrappers of training."""
        if ema and not self.has_ema():
            return None
        return self._branches(ema).model

    def get_task_state(self, module: Optional[nn.Module] = None, ema: bool = False) -> Dict[str, Any]:
        return {'alpha': self._branches(ema).alpha.detach().clone()}

    def load_task_state(
            self,
            state: Optional[Dict[str, Any]],
            strict: bool = True,
            module: Optional[nn.Module] = None,
            ema: bool = False,
    ) -> None:
        if state is None:
            if strict:
                raise ValueError('the checkpoint has no task state, which holds alpha: strict=False starts it anew.')
            return
        with torch.no_grad():
            self._branches(ema).alpha.copy_(state['alpha'])

    def _branches(self, ema: bool = False) -> '_Branches':
        module = self.get_trainable_module(ema=ema)
        return getattr(module, 'module', module)  # out of DDP or ModelEmaV3


class _Branches(nn.Module):
    """The network at all its resolutions, and alpha: what DDP wraps, so that a step is one call of it."""

    def __init__(self, model: nn.Module, count: int, lean: bool, own_kernels: bool) -> None:
        super().__init__()
        self.model = model
        self.alpha = nn.Parameter(torch.zeros(count))
        self.lean = lean
        self._compiled: Any = None
        self._own_kernels = own_kernels
        self._has_relu6 = any(isinstance(m, nn.Hardtanh) and m.inplace for m in model.modules())

    def compile_runs(self, **kwargs: Any) -> None:
        self._compiled = torch.compile(self.model.forward, **kwargs)

    def forward(self, images: Dict[int, torch.Tensor]) -> Dict[int, torch.Tensor]:
        logits = {}
        kernels = self._kernels(images[max(images)])
        # Autograd goes backward through the branch that ran last first. Running the largest one last lets the lean mode
        # free its activations before it makes those of the next one.
        for resolution in sorted(images):
            run = partial(self._run, kernels, resolution)
            if self.lean and resolution != max(images) and torch.is_grad_enabled():
                run = partial(checkpoint, run, use_reentrant=False, context_fn=self._recompute_contexts)
            logits[resolution] = run(images[resolution])
        return {resolution: logits[resolution] for resolution in sorted(logits, reverse=True)}

    def _run(self, kernels: ContextManager, resolution: int, x: torch.Tensor) -> torch.Tensor:
        network = self._compiled or self.model
        switch = use_resolution(self.model, resolution) if is_switchable(self.model) else nullcontext()
        with switch, kernels:
            return network(x)

    def _kernels(self, x: torch.Tensor) -> ContextManager:
        on_cpu = x.device.type == 'cpu'
        if self._own_kernels and self._compiled is None and (on_cpu or self._has_relu6):
            return OwnKernels(self.lean, convolutions=on_cpu)
        return nullcontext()

    def _recompute_contexts(self) -> Tuple[ContextManager, ContextManager]:
        return nullcontext(), _frozen_statistics(self.model)


@contextmanager
def _frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorms in training mode that leave their running statistics alone: the first pass updated them already.

    They still read them as before, since a checkpoint must save the same tensors again.
    """
    before = [(m, m.momentum, m.num_batches_tracked) for m in model.modules()
              if isinstance(m, _BatchNorm) and m.track_running_stats]
    for bn, _, count in before:
        bn.momentum, bn.num_batches_tracked = 0., None if count is None else count.clone()
    try:
        yield
    finally:
        for bn, momentum, count in before:
            bn.momentum, bn.num_batches_tracked = momentum, count


def _resolutions(model: nn.Module, resolutions: Optional[Iterable[int]]) -> Tuple[int, ...]:
    if is_switchable(model):
        own = get_resolutions(model)
        if resolutions is not None and check_resolutions(resolutions) != own:
            raise ValueError(f'the network has the resolutions {own}, the task was given {tuple(resolutions)}: leave '
                             'them out.')
        return own
    if resolutions is None:
        raise ValueError(f'{type(model).__name__} has no switchable BatchNorm: pass the resolutions that it is to '
                         'share them for, or convert it with rs_timm.convert_switchable_bn(model, resolutions).')
    return check_resolutions(resolutions)
