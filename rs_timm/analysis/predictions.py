"""The predictions for each picture at each of several resolutions, from which every analysis here starts."""
from dataclasses import dataclass
from io import BytesIO
from os import PathLike
from typing import Dict, Iterable, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from rs_timm.evaluation import ENSEMBLE, Row, ensemble_weights, pass_over, with_ensemble

__all__ = ['ENSEMBLE', 'Prediction', 'Predictions', 'Row', 'predict']

Batch = Tuple[Mapping[int, torch.Tensor], torch.Tensor]  # {resolution: images [N, 3, H, W]}, target [N]


@dataclass(frozen=True)
class Prediction:
    """The predictions for N pictures at one resolution.

    Attributes:
        label: predicted class, int64 [N]; -1 where the logits are not finite.
        confidence: probability of that class, float32 [N], 0 to 1.
        in_top5: whether the true class is among the five most probable ones, bool [N].
        loss: cross-entropy, float32 [N], nats.
    """

    label: np.ndarray
    confidence: np.ndarray
    in_top5: np.ndarray
    loss: np.ndarray


FIELDS = ('label', 'confidence', 'in_top5', 'loss')


@dataclass(frozen=True)
class Predictions:
    """The predictions at every resolution, largest first, for the same N pictures in the same order.

    >>> at_96 = Prediction(np.array([0, 1]), np.array([0.9, 0.6]), np.array([True, True]), np.array([0.1, 1.2]))
    >>> Predictions(np.array([0, 0]), {96: at_96}).right(96)
    array([ True, False])

    Attributes:
        target: true class, int64 [N].
        at: resolution in pixels, or 'ensemble' -> `Prediction`.
    """

    target: np.ndarray
    at: Mapping[Row, Prediction]

    def __post_init__(self) -> None:
        assert all(len(own.label) == len(self.target) for own in self.at.values())

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """The sizes in pixels, largest first."""
        return tuple(sorted((row for row in self.at if isinstance(row, int)), reverse=True))

    def right(self, row: Row) -> np.ndarray:
        """A mask of the pictures that are classified correctly at a resolution, or by the ensemble, bool [N]."""
        return self.at[row].label == self.target

    def rights(self) -> Dict[int, np.ndarray]:
        """Resolution, largest first -> which pictures are classified correctly, bool [N]."""
        return {resolution: self.right(resolution) for resolution in self.resolutions}

    def accuracy(self, row: Row) -> Dict[str, float]:
        """'top1' and 'top5' in percent, 'loss' (mean cross-entropy), 'count' (pictures)."""
        own, count = self.at[row], len(self.target)
        top1, top5 = (100. * hits.sum() / count for hits in (self.right(row), own.in_top5))
        return dict(top1=float(top1), top5=float(top5), loss=float(own.loss.mean(dtype=np.float64)), count=count)

    def to_bytes(self) -> bytes:
        """A compressed .npz archive; `Predictions.load` reads it back."""
        arrays = {f'{field}.{row}': getattr(own, field) for row, own in self.at.items() for field in FIELDS}
        stream = BytesIO()
        np.savez_compressed(stream, target=self.target, **arrays)
        return stream.getvalue()

    @classmethod
    def load(cls, file: Union[str, 'PathLike[str]', BytesIO]) -> 'Predictions':
        """Read what `to_bytes` gave."""
        with np.load(file) as archive:
            rows = [key.partition('.')[2] for key in archive.files if key.startswith('label.')]
            found = {row: Prediction(*(archive[f'{field}.{row}'] for field in FIELDS)) for row in rows}
            return cls(archive['target'], {row if row == ENSEMBLE else int(row): own for row, own in found.items()})


def predict(
        model: nn.Module,
        loader: Iterable[Batch],
        resolutions: Sequence[int],
        alpha: Optional[Mapping[int, float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
        progress: bool = False,
) -> Predictions:
    """Run `model` over `loader` at each of `resolutions`, and note the prediction for each labelled picture.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', num_classes=10, resolutions=(64, 32))
    >>> batch = {r: torch.randn(4, 3, r, r) for r in (64, 48, 32)}, torch.tensor([1, 2, 3, 4])
    >>> predict(model, [batch], (64, 48)).accuracy(48)['count']
    4

    Args:
        model: a switchable network, or a plain one; it is left in the mode it was in.
        loader: gives ({resolution: images [N, 3, H, W]}, target [N]), as `create_multires_loader` does with
            `is_training=False`; a negative target means no label.
        resolutions: sizes in pixels, trained or not.
        alpha: weight of each resolution in an ensemble (Equation 5), which is then predicted too.
        amp_dtype: run the network under autocast with this type.
        progress: show a bar, where the standard error is a terminal.

    Raises:
        ValueError: no picture with a label, or an `alpha` that does not fit.
    """
    sizes = sorted(resolutions, reverse=True)
    weights = ensemble_weights(model, sizes, alpha or {})
    targets: List[torch.Tensor] = []
    rows: List[Row] = [*sizes, *([ENSEMBLE] if weights else [])]
    parts: Dict[Row, List[Tuple[torch.Tensor, ...]]] = {row: [] for row in rows}

    def note(logits: Dict[int, torch.Tensor], target: torch.Tensor) -> None:
        labelled = target >= 0
        target = target[labelled]
        targets.append(target.cpu())
        for row, z in with_ensemble({size: z[labelled] for size, z in logits.items()}, weights).items():
            top = z.topk(min(5, z.shape[1]), dim=1).indices
            finite = z.isfinite().all(dim=1)
            in_top5 = (top == target[:, None]).any(dim=1) & finite
            loss = F.cross_entropy(z, target, reduction='none')
            fields = torch.where(finite, top[:, 0], -1), z.softmax(dim=1).amax(dim=1), in_top5, loss  # as in Prediction
            parts[row].append(tuple(field.cpu() for field in fields))

    pass_over(loader, model, sizes, note, amp_dtype, progress=progress)
    if not sum(map(len, targets)):
        raise ValueError('no picture with a label was read: is the data in ROOT/val/CLASS/PICTURE?')
    at = {row: Prediction(*(torch.cat(field).numpy() for field in zip(*found))) for row, found in parts.items()}
    return Predictions(torch.cat(targets).numpy(), at)
