"""Pixel accuracy, mean accuracy and mean IoU, all from one matrix of counts."""
from typing import Dict

import torch
import torch.nn.functional as F

__all__ = ['class_ious', 'confusion_matrix', 'predicted_classes', 'segmentation_scores', 'upsampled']


def upsampled(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits [N, K, h, w] -> [N, K, height, width], bilinear (Appendix B)."""
    return F.interpolate(logits, size=(height, width), mode='bilinear', align_corners=False)


def predicted_classes(logits: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Logits [N, K, h, w] -> the most likely class of each pixel, int64 [N, height, width]."""
    return upsampled(logits.float(), height, width).argmax(dim=1)


def confusion_matrix(predicted: torch.Tensor, target: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Counts of the pixels of class i (row) that are predicted as class j (column): int64 [K, K].

    Whole numbers, so that the sum over batches and processes is exact. Pixels whose target is no class in
    [0, num_classes) are left out.

    >>> confusion_matrix(torch.tensor([0, 1, 1, 0]), torch.tensor([0, 0, 1, 255]), num_classes=2)
    tensor([[1, 1],
            [0, 1]])

    Args:
        predicted: classes in [0, num_classes), of any shape.
        target: of the same shape.
        num_classes: K.
    """
    assert predicted.shape == target.shape
    target = target.long()
    counted = (target >= 0) & (target < num_classes)
    cells = target[counted] * num_classes + predicted[counted].long()
    return torch.bincount(cells, minlength=num_classes ** 2).view(num_classes, num_classes)


def class_ious(matrix: torch.Tensor) -> torch.Tensor:
    """Intersection over union of each class in percent, float64 [K]; nan where no pixel has that class."""
    matrix = matrix.double()
    pixels, predicted, hits = matrix.sum(1), matrix.sum(0), matrix.diagonal()
    return torch.where(pixels > 0, 100. * hits / (pixels + predicted - hits), torch.nan)


def segmentation_scores(matrix: torch.Tensor) -> Dict[str, float]:
    """Pixel accuracy, mean accuracy and mean IoU, in percent, and the number of labelled pixels.

    With n_ij pixels of class i predicted as j, and t_i = sum_j n_ij: sum_i n_ii / sum_i t_i; the mean of n_ii / t_i;
    the mean of n_ii / (t_i + sum_j n_ji - n_ii). The means are over the classes that occur in the ground truth.

    >>> scores = segmentation_scores(torch.tensor([[2, 2], [0, 4]]))
    >>> scores['pixel_accuracy'], scores['mean_accuracy'], round(scores['mean_iou'], 2)
    (75.0, 75.0, 58.33)

    Args:
        matrix: of `confusion_matrix`, added up over all pictures.

    Raises:
        ValueError: no labelled pixel.

    Source: Long et al., Fully Convolutional Networks for Semantic Segmentation, Section 5; Table 7.
    """
    pixels, hits = matrix.sum(1).double(), matrix.diagonal().double()
    if not pixels.sum():
        raise ValueError('no labelled pixel was read: are all mask values the ignored one?')
    return dict(
        pixel_accuracy=(100. * hits.sum() / pixels.sum()).item(),
        mean_accuracy=(100. * hits / pixels)[pixels > 0].mean().item(),
        mean_iou=class_ious(matrix).nanmean().item(),
        count=int(matrix.sum()),
    )
