"""Pixel accuracy, mean accuracy and mean IoU at every resolution asked for, in one pass over pictures with masks."""
from itertools import islice
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
from torch import nn

from rs_timm.data import MultiResLoader
from rs_timm.loss import ensemble_logits
from rs_timm.segmentation import confusion_matrix, segmentation_scores, upsampled

from .evaluate import ENSEMBLE, Row, _device_of, _logits, _scores, _sizes, _unwrapped, _weights

__all__ = ['confusion_matrices', 'evaluate_masks', 'masks_table']

Results = Dict[Row, Dict[str, float]]


def evaluate_masks(model: nn.Module, loader: MultiResLoader, *args: Any, **kwargs: Any) -> Results:
    """Measure a network for segmentation, as `evaluate` measures a classifier.

    The logits of every resolution are resized to the picture's own size; the ensemble is their weighted mean there.

    >>> loader = create_mask_loader('camvid', (352, 96), split='val', ...)  # doctest: +SKIP
    >>> evaluate_masks(model, loader)[96]['mean_iou']                       # doctest: +SKIP

    Args:
        model: a switchable network, or a plain one.
        loader: of `create_mask_loader`, not for training.
        args, kwargs: as for `confusion_matrices`.

    Returns:
        {resolution, largest first, and perhaps 'ensemble': {'pixel_accuracy', 'mean_accuracy', 'mean_iou' in percent,
        'count' (labelled pixels)}}, see `segmentation_scores`.

    Raises:
        ValueError: as `evaluate`; or no labelled pixel.

    Source: Appendix B, Table 7.
    """
    matrices = confusion_matrices(model, loader, *args, **kwargs)
    return {row: segmentation_scores(matrix) for row, matrix in matrices.items()}


@torch.no_grad()
def confusion_matrices(
        model: nn.Module,
        loader: MultiResLoader,
        resolutions: Optional[Sequence[int]] = None,
        alpha: Optional[Mapping[int, float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
        device: Union[None, str, torch.device] = None,
        limit_batches: Optional[int] = None,
) -> Dict[Row, torch.Tensor]:
    """Count, at each resolution, the pixels of class i that are predicted as class j, in one pass over `loader`.

    In a distributed run each process counts its shard and the counts are added up: exact, since they are whole numbers
    and each picture is in one shard.

    Args:
        model, resolutions, alpha, amp_dtype, device, limit_batches: see `evaluate`.
        loader: of `create_mask_loader`, not for training.

    Returns:
        {resolution, largest first, and perhaps 'ensemble': int64 [K, K]}.
    """
    sizes = _sizes(resolutions, loader)
    weights = _weights(model, sizes, alpha)
    network = _unwrapped(model)
    device = torch.device(device) if device is not None else _device_of(network)
    count = len(loader.dataset.classes)  # type: ignore[attr-defined]
    rows: List[Row] = [*sizes, *([ENSEMBLE] if weights else [])]
    counts = torch.zeros(len(rows), count, count, dtype=torch.int64, device=device)
    scores = _scores(weights, device) if weights else None
    was_training = network.training
    network.eval()
    try:
        for images, masks in islice(loader, limit_batches):
            logits = {size: _logits(network, images[size].to(device), size, amp_dtype) for size in sizes}
            _check_logits(logits[sizes[0]], count)
            for index, mask in enumerate(masks.to(device)):
                own = {size: z[index:index + 1] for size, z in logits.items()}
                predictions = _predictions(own, weights, scores, mask.shape)
                counts += torch.stack([confusion_matrix(classes, mask, count) for classes in predictions])
    finally:
        network.train(was_training)
    if loader.world_size > 1:
        dist.all_reduce(counts)
    return dict(zip(rows, counts))


def _check_logits(logits: torch.Tensor, count: int) -> None:
    if logits.ndim != 4 or logits.shape[1] != count:
        raise ValueError(f'the network gives {tuple(logits.shape)}, expected [N, {count}, h, w]: it is not one for '
                         f'segmentation with {count} classes.')


def _predictions(
        logits: Mapping[int, torch.Tensor],
        weights: Optional[Mapping[int, float]],
        scores: Optional[torch.Tensor],
        size: Tuple[int, ...],
) -> List[torch.Tensor]:
    """The classes [H, W] of one picture at every resolution, and by the ensemble; from logits [1, K, h, w]."""
    full = {resolution: upsampled(z, size[0], size[1])[0] for resolution, z in logits.items()}
    measured = list(full.values())
    if weights and scores is not None:
        measured.append(ensemble_logits({resolution: full[resolution] for resolution in weights}, scores))
    return [z.argmax(dim=0) for z in measured]


def masks_table(results: Mapping[Row, Mapping[str, float]]) -> str:
    """The results as text, a line for each resolution.

    >>> print(masks_table({96: dict(pixel_accuracy=75., mean_accuracy=50.5, mean_iou=33.333, count=40)}))
    resolution  pixel acc.  mean acc.  mean IoU      pixels
            96       75.00      50.50     33.33          40
    """
    lines = [f'{"resolution":>10} {"pixel acc.":>11} {"mean acc.":>10} {"mean IoU":>9} {"pixels":>11}']
    for row, values in results.items():
        shares = f'{values["pixel_accuracy"]:11.2f} {values["mean_accuracy"]:10.2f} {values["mean_iou"]:9.2f}'
        lines.append(f'{row:>10} {shares} {values["count"]:11d}')
    return '\n'.join(lines)
