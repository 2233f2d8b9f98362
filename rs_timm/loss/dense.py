"""MRED per pixel: logits of all resolutions at the size of the masks."""
from typing import Dict, Mapping

import torch
import torch.nn.functional as F

from .mred import mred_loss

__all__ = ['IGNORED', 'dense_mred_loss']

IGNORED = 255  # in a mask: this pixel has no class


def dense_mred_loss(
        logits: Mapping[int, torch.Tensor],
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
        logits: Mapping[int, torch.Tensor],
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
