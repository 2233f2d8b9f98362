"""Multi-resolution ensemble distillation (MRED): Equations 2 and 5 to 10 of the paper.

Everything here is a function of `{resolution: logits}`. The first resolution is the largest, and `alpha` holds one raw
score per resolution in that order. Logits are [N, C], or [N, C, ...] for dense prediction, all of one size: each
position is a sample then. (Positions stay behind the classes: with the classes next to each other in memory, the loss
of a mask of eleven classes took about twice as long on a CPU.) `dense_mred_loss` is for logits of several sizes.
"""
from functools import reduce
from operator import add
from typing import Callable, Dict, Mapping, Optional, Tuple

import torch
import torch.nn.functional as F

__all__ = [
    'IGNORED',
    'MODES',
    'classification_loss',
    'dense_mred_loss',
    'distillation_loss',
    'ensemble_logits',
    'ensemble_loss',
    'ensemble_weights',
    'mred_loss',
]

IGNORED = 255  # in a mask: this pixel has no class

Logits = Mapping[int, torch.Tensor]  # resolution in pixels -> [N, C, ...]
Mean = Callable[[torch.Tensor], torch.Tensor]  # the values of the samples, [N, ...] -> a scalar

# Who teaches the student at one resolution: does the ensemble, and which of the larger resolutions do?
MODES: Dict[str, Tuple[bool, str]] = {
    'none': (False, 'none'),  # parallel training, Section 3.1
    'vanilla': (True, 'none'),  # Equation 8
    'full': (True, 'all'),  # Equation 10
    'largest': (False, 'first'),  # Table 5, 'only distillations from p1'
    'larger': (False, 'all'),  # Table 5, 'only distillations from p1, p2, ..., pS-1'
}


def mred_loss(
        logits: Logits,
        target: torch.Tensor,
        alpha: torch.Tensor,
        mode: str = 'full',
        smoothing: float = 0.,
        mean: Mean = torch.mean,
) -> Dict[str, torch.Tensor]:
    """The training loss of an RS-Net, the sum of its three parts (Equation 9).

    The ensemble loss moves `alpha` alone and is part of every mode, so that the ensemble of any network can be
    measured. With one resolution the gradient is that of plain cross-entropy.

    >>> logits = {160: torch.randn(4, 10), 96: torch.randn(4, 10)}
    >>> losses = mred_loss(logits, torch.tensor([1, 0, 2, 9]), alpha=torch.zeros(2))
    >>> sorted(losses)
    ['classification', 'distillation', 'ensemble', 'loss']

    Args:
        logits: resolution in pixels -> [N, C] or [N, C, ...], in any order.
        target: class indices [N, ...], or probabilities [N, C, ...] as made by mixup.
        alpha: raw scores [S], largest resolution first; a softmax turns them into weights.
        mode: 'full' (Eq. 10), 'vanilla' (Eq. 8: the ensemble teaches every resolution), 'none' (parallel training), and
            two of Table 5 without the ensemble as teacher: 'largest' (p1 teaches all others) and 'larger' (every
            resolution teaches the smaller ones).
        smoothing: label smoothing in [0, 1) of the classification and ensemble losses.
        mean: makes one of the values of the samples [N, ...]; `dense_mred_loss` leaves out those without a label.

    Returns:
        Scalars 'loss', 'classification', 'ensemble' and 'distillation', in float32 or float64.

    Raises:
        ValueError: an unknown mode, no logits, or shapes that do not fit.

    Source: Equations 2 and 5 to 10.
    """
    _check(logits, target, alpha, mode)
    logits = {r: _at_least_float32(logits[r]) for r in sorted(logits, reverse=True)}
    log_p = {r: F.log_softmax(z, dim=1) for r, z in logits.items()}
    log_p0 = F.log_softmax(ensemble_logits(logits, alpha), dim=1)
    parts = dict(
        classification=classification_loss(log_p, target, smoothing, mean),
        ensemble=_cross_entropy(log_p0, target, smoothing, mean),
        distillation=distillation_loss(log_p, log_p0, mode, mean),
    )
    return dict(loss=parts['classification'] + parts['ensemble'] + parts['distillation'], **parts)


def dense_mred_loss(
        logits: Logits,
        masks: torch.Tensor,
        alpha: torch.Tensor,
        mode: str = 'full',
        smoothing: float = 0.,
) -> Dict[str, torch.Tensor]:
    """`mred_loss` in which every labelled pixel is a sample: means are over the labelled pixels of the batch.

    >>> logits = {64: torch.randn(2, 11, 16, 16), 32: torch.randn(2, 11, 8, 8)}
    >>> masks = torch.randint(11, (2, 64, 64))
    >>> sorted(dense_mred_loss(logits, masks, alpha=torch.zeros(2)))
    ['classification', 'distillation', 'ensemble', 'loss']

    Args:
        logits: resolution in pixels -> [N, K, h, w], of any h and w.
        masks: class of each pixel of the largest input [N, H, W]; 255: none, the pixel is left out.
        alpha, mode, smoothing: see `mred_loss`.

    Returns:
        As `mred_loss`; all zero, with zero gradients, where no pixel is labelled.

    Raises:
        ValueError: a class that the logits do not have, or shapes that do not fit.

    Source: Appendix B, Figure 7.
    """
    labelled = masks != IGNORED
    full = _of_mask_size(logits, masks, labelled)
    classes = masks.long().where(labelled, 0)
    count = labelled.sum().clamp_min(1)
    return mred_loss(full, classes, alpha, mode, smoothing, lambda values: (values * labelled).sum() / count)


def _of_mask_size(
        logits: Logits,
        masks: torch.Tensor,
        labelled: torch.Tensor,
) -> Dict[int, torch.Tensor]:
    """Bring all logits to the size of the masks, bilinear: {r: float32 [N, K, H, W]}."""
    for resolution, z in logits.items():
        if z.ndim != 4 or masks.ndim != 3 or len(z) != len(masks):
            raise ValueError(f'logits {tuple(z.shape)} of {resolution} for masks {tuple(masks.shape)}: expected [N, K, '
                             'h, w] and [N, H, W]; is this a network for segmentation?')
    classes = masks[labelled]
    num_classes = next(iter(logits.values())).shape[1]
    if len(classes) and not 0 <= int(classes.min()) <= int(classes.max()) < num_classes:
        raise ValueError(f'the masks have classes from {int(classes.min())} to {int(classes.max())}, the network '
                         f'{num_classes}: they are 0 to {num_classes - 1}, and {IGNORED} for none.')
    return {resolution: F.interpolate(z.float().contiguous(), size=masks.shape[-2:], mode='bilinear',
                                      align_corners=False) for resolution, z in logits.items()}


def classification_loss(
        log_p: Logits,
        target: torch.Tensor,
        smoothing: float = 0.,
        mean: Mean = torch.mean,
) -> torch.Tensor:
    """Equation 2: the cross-entropies of all resolutions, added up. `log_p` holds log-probabilities [N, C, ...]."""
    return torch.stack([_cross_entropy(lp, target, smoothing, mean) for lp in log_p.values()]).sum()


def ensemble_weights(alpha: torch.Tensor) -> torch.Tensor:
    """The importance of each resolution [S], positive with sum 1, from raw scores [S] (Section 3.3)."""
    return alpha.softmax(dim=0)


def ensemble_logits(logits: Logits, alpha: torch.Tensor) -> torch.Tensor:
    """Equation 5: z0 [N, C, ...], the weighted mean of the logits; a gradient reaches `alpha` [S] alone."""
    order = sorted(logits, reverse=True)
    weights = ensemble_weights(_at_least_float32(alpha))
    return reduce(add, (w * logits[r].detach() for w, r in zip(weights, order)))


def ensemble_loss(logits: Logits, target: torch.Tensor, alpha: torch.Tensor, smoothing: float = 0.) -> torch.Tensor:
    """Equation 6: cross-entropy of the ensemble; its gradient reaches `alpha` [S] alone."""
    return _cross_entropy(F.log_softmax(ensemble_logits(logits, alpha), dim=1), target, smoothing, torch.mean)


def distillation_loss(
        log_p: Logits,
        log_p0: Optional[torch.Tensor],
        mode: str = 'full',
        mean: Mean = torch.mean,
) -> torch.Tensor:
    """Equations 8 and 10: KL divergences from teachers, through which no gradient goes, to the students.

    The factor 2 / (S + 1) of Equation 10 is that of 'full'. The paper gives none for the variants of Table 5: 'larger'
    drops terms of 'full' and keeps its factor, 'largest' swaps the teacher of 'vanilla' and keeps its factor, 1.

    Args:
        log_p: resolution -> log-probabilities [N, C, ...].
        log_p0: those of the ensemble [N, C, ...]; not needed by modes without it.
        mode, mean: see `mred_loss`.
    """
    from_ensemble, from_larger = MODES[mode]
    order = sorted(log_p, reverse=True)
    teachers = _Teachers()
    if from_ensemble:
        assert log_p0 is not None
        teachers.add(log_p0)
    terms = [log_p[order[0]].new_zeros(())]
    for r in order:
        terms += [mean(teachers.divergences(log_p[r]))] if teachers.count else []
        if from_larger == 'all' or from_larger == 'first' and r == order[0]:
            teachers.add(log_p[r])
    factor = 2 / (len(order) + 1) if from_larger == 'all' else 1.
    return factor * torch.stack(terms).sum()


class _Teachers:
    """A growing set of teachers. Sums over them are kept, so that S students cost S divergences, not S(S + 1) / 2."""

    def __init__(self) -> None:
        self.count = 0
        self.p: torch.Tensor
        self.p_log_p: torch.Tensor

    def add(self, log_p: torch.Tensor) -> None:
        log_p = log_p.detach()
        p = log_p.exp()
        p_log_p = (p * log_p.clamp_min(torch.finfo(log_p.dtype).min)).sum(dim=1)  # 0 where p is 0
        self.p, self.p_log_p = (self.p + p, self.p_log_p + p_log_p) if self.count else (p, p_log_p)
        self.count += 1

    def divergences(self, log_q: torch.Tensor) -> torch.Tensor:
        """Equation 7, added up over the teachers: sum of KL(teacher || q) for each sample, [N, ...]."""
        return self.p_log_p - (self.p * log_q).sum(dim=1)


def _cross_entropy(log_p: torch.Tensor, target: torch.Tensor, smoothing: float, mean: Mean) -> torch.Tensor:
    """Equation 1 for log-probabilities [N, C, ...] and class indices [N, ...] or probabilities [N, C, ...]."""
    if target.ndim == log_p.ndim:
        picked = (target * log_p).sum(dim=1)
    else:
        picked = log_p.gather(1, target.unsqueeze(1)).squeeze(1)
    if smoothing:
        picked = (1 - smoothing) * picked + smoothing * log_p.mean(dim=1)
    return -mean(picked)


def _at_least_float32(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _check(logits: Logits, target: torch.Tensor, alpha: torch.Tensor, mode: str) -> None:
    if mode not in MODES:
        raise ValueError(f"mode {mode!r} is unknown: use one of {', '.join(MODES)}.")
    shapes = {r: tuple(z.shape) for r, z in logits.items()}
    if not shapes or len(set(shapes.values())) != 1 or any(len(shape) < 2 for shape in shapes.values()):
        raise ValueError(f'logits {shapes}: expected resolution -> [N, C] or [N, C, ...], one shape for all.')
    full = next(iter(shapes.values()))
    indices = (full[0], *full[2:])
    if tuple(target.shape) not in (indices, full):
        raise ValueError(f'target {tuple(target.shape)}: expected class indices {indices} or probabilities {full}.')
    if tuple(alpha.shape) != (len(shapes),):
        raise ValueError(f'alpha {tuple(alpha.shape)}: expected one score for each of the {len(shapes)} resolutions '
                         f'{tuple(sorted(shapes, reverse=True))}.')
