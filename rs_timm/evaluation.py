"""Evaluation at several resolutions in one pass over the data; accuracy, masks and analyses consume its logits."""
import csv
import warnings
from contextlib import nullcontext
from itertools import islice
from os import PathLike
from typing import Any, Callable, Dict, Iterable, List, Mapping, Optional, Sequence, Sized, Tuple, Union

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from rs_timm.layers import is_switchable, learned_alpha, use_resolution
from rs_timm.loss import ensemble_logits
from rs_timm.segmentation import confusion_matrix, segmentation_scores, upsampled

__all__ = [
    'ENSEMBLE', 'Row', 'confusion_matrices', 'evaluate', 'evaluate_agreement', 'evaluate_masks', 'masks_table',
    'pass_over', 'results_rows', 'results_table', 'with_ensemble', 'write_results_csv',
]

ENSEMBLE = 'ensemble'
Row = Union[int, str]  # a resolution in pixels, or 'ensemble'
Results = Dict[Row, Dict[str, float]]


@torch.no_grad()
def pass_over(
        loader: Iterable[Tuple[Mapping[int, torch.Tensor], Any]],
        model: nn.Module,
        sizes: Sequence[int],
        consume: Callable[[Dict[int, torch.Tensor], Any], None],
        amp_dtype: Optional[torch.dtype] = None,
        device: Union[None, str, torch.device] = None,
        limit_batches: Optional[int] = None,
        progress: bool = False,
) -> None:
    """Give `consume` the logits of every batch at each of `sizes`, float32, and its target on the same device.

    The model is in evaluation mode, and then in the one it was in; its pin is lent and given back.

    Args:
        loader: gives ({resolution: images [N, C, H, W]}, target).
        model: a switchable network, or a plain one.
        sizes: in pixels, trained or not.
        consume: called with ({size: logits}, target).
        amp_dtype: run the network under autocast with this type; without it, as the caller's autocast says.
        device: where the network runs; by default, where its first parameter is.
        limit_batches: the first batches alone.
        progress: show a bar, where the standard error is a terminal.
    """
    # Without DDP, whose forward exchanges buffers: shards may be uneven, and a last batch one process's own.
    network = model.module if isinstance(model, DistributedDataParallel) else model
    where = device_of(network, device)
    switchable, was_training = is_switchable(network), network.training
    batches = len(loader) if isinstance(loader, Sized) else None
    total = limit_batches if batches is None else min(batches, limit_batches or batches)
    bar = tqdm(total=total, unit='batch', leave=False, disable=None if progress else True)
    unusable: Dict[int, int] = dict.fromkeys(sizes, 0)
    network.eval()
    try:
        for images, target in islice(loader, limit_batches):
            logits = {}
            for size in sizes:
                pinned: Any = use_resolution(network, size) if switchable else nullcontext()
                with pinned, torch.autocast(where.type, dtype=amp_dtype) if amp_dtype else nullcontext():
                    logits[size] = network(images[size].to(where)).float()
                unusable[size] += int(not logits[size].isfinite().all())
            consume(logits, target.to(where))
            bar.update()
    finally:
        bar.close()
        network.train(was_training)
    where_not = ', '.join(str(size) for size, batches_of_it in unusable.items() if batches_of_it)
    if where_not:
        warnings.warn(f'the network gives values that are not finite at {where_not} px; such predictions count as '
                      'wrong. Its weights are damaged, or the precision is too low: try float32.', stacklevel=3)


def device_of(model: nn.Module, device: Union[None, str, torch.device] = None) -> torch.device:
    """The device that was asked for, else that of the first parameter."""
    if device is not None:
        return torch.device(device)
    return next((tensor.device for tensor in model.parameters()), torch.device('cpu'))


def with_ensemble(logits: Mapping[Any, torch.Tensor], weights: Mapping[int, float]) -> Dict[Row, torch.Tensor]:
    """The logits, and under 'ensemble' their weighted mean (Equation 5), where there are weights.

    >>> with_ensemble({96: torch.tensor([[1.]]), 64: torch.tensor([[3.]])}, {96: 0.5, 64: 0.5})['ensemble']
    tensor([[2.]])
    """
    rows: Dict[Row, torch.Tensor] = dict(logits)
    if weights:
        some = next(iter(logits.values()))
        scores = torch.tensor(list(weights.values()), device=some.device).log()  # softmax gives the weights back
        rows[ENSEMBLE] = ensemble_logits({size: logits[size] for size in weights}, scores)
    return rows


def ensemble_weights(
        model: nn.Module,
        sizes: Sequence[int],
        alpha: Optional[Mapping[int, float]] = None,
) -> Dict[int, float]:
    """The ensemble's weights, largest resolution first; empty if there is no ensemble to measure.

    Args:
        model: its `checkpoint_metadata['alpha']` is taken, if its resolutions are all among `sizes`.
        sizes: those that are measured.
        alpha: weights in place of the model's; empty: no ensemble.

    Raises:
        ValueError: weights for sizes that are not measured, or that are no weights.
    """
    given = alpha is not None
    if alpha is None:
        alpha = learned_alpha(model.module if isinstance(model, DistributedDataParallel) else model)
    weights = dict(sorted(((int(size), float(weight)) for size, weight in alpha.items()), reverse=True))
    missing = [size for size in weights if size not in sizes]
    if missing and given:
        raise ValueError(f'alpha has weights for {missing}, which are not measured: measured are {tuple(sizes)}.')
    if missing or not weights:
        return {}
    if not (all(weight >= 0. for weight in weights.values()) and abs(sum(weights.values()) - 1.) <= 1e-3):
        raise ValueError(f'alpha {weights}: the weights of an ensemble are positive and add up to 1; take the softmax '
                         'of raw scores first.')
    return weights


def _sizes(resolutions: Optional[Sequence[int]], loader: Any) -> Tuple[int, ...]:
    if loader.is_training:
        raise ValueError('the loader gives random crops: make one with is_training=False for evaluation.')
    sizes = tuple(sorted(loader.resolutions if resolutions is None else set(resolutions), reverse=True))
    missing = [size for size in sizes if size not in loader.resolutions]
    if missing or not sizes:
        raise ValueError(f'resolutions {missing or ()}: the loader gives {loader.resolutions}; make it with all the '
                         'sizes to measure.')
    return sizes


def evaluate(
        model: nn.Module,
        loader: Any,
        resolutions: Optional[Sequence[int]] = None,
        alpha: Optional[Mapping[int, float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
        device: Union[None, str, torch.device] = None,
        limit_batches: Optional[int] = None,
        progress: bool = False,
) -> Results:
    """Measure a classifier at several resolutions, seen in training or not, in one pass over `loader`.

    In a distributed run each process measures its shard, the counts are added up, and all processes return the same.

    >>> loader = create_multires_loader('imagenet', (224, 144), split='val', batch_size=64)  # doctest: +SKIP
    >>> evaluate(model, loader)[144]['top1']                                                # doctest: +SKIP

    Args:
        model: a switchable network (its pin is lent and given back), or a plain one.
        loader: of `create_multires_loader`, not for training.
        resolutions: sizes in pixels, of those in the loader; all of them by default.
        alpha: weight of each resolution in the ensemble (Equation 5), which is then measured too; by default
            `model.checkpoint_metadata['alpha']`, if its resolutions are all measured. An empty one: no ensemble.
        amp_dtype: run the network under autocast with this type; without it, as the caller's autocast says.
        device: where the network runs; by default, where its first parameter is.
        limit_batches: measure the first batches alone.
        progress: show a bar, where the standard error is a terminal.

    Returns:
        {resolution, largest first, and perhaps 'ensemble': {'top1', 'top5' in percent, 'loss' (mean cross-entropy),
        'count' (pictures)}}. With fewer than five classes, top5 is 100.

    Raises:
        ValueError: a resolution that the loader lacks, an `alpha` that does not fit, or no picture with a label.
    """
    sizes = _sizes(resolutions, loader)
    weights = ensemble_weights(model, sizes, alpha)
    rows: List[Row] = [*sizes, *([ENSEMBLE] if weights else [])]
    # hits in the first, hits in the first five, summed cross-entropy, labelled pictures
    totals = torch.zeros(len(rows), 4, dtype=torch.float64, device=device_of(model, device))

    def add(logits: Dict[int, torch.Tensor], target: torch.Tensor) -> None:
        labelled = target >= 0
        for row, z in zip(totals, with_ensemble(logits, weights).values()):
            z, own = z[labelled], target[labelled]
            hits = (z.topk(min(5, z.shape[1]), dim=1).indices == own[:, None]) & z.isfinite().all(dim=1)[:, None]
            loss = F.cross_entropy(z.double(), own, reduction='sum')
            row += torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss, labelled.sum().double()])

    pass_over(loader, model, sizes, add, amp_dtype, device, limit_batches, progress)
    if loader.world_size > 1:
        dist.all_reduce(totals)
    if not totals[0, 3]:
        raise ValueError('no picture with a label was read: is the data in ROOT/val/CLASS/PICTURE?')
    return {row: dict(top1=100. * top1 / count, top5=100. * top5 / count, loss=loss / count, count=int(count))
            for row, (top1, top5, loss, count) in zip(rows, totals.tolist())}


def evaluate_agreement(
        model: nn.Module,
        loader: Any,
        resolutions: Optional[Sequence[int]] = None,
        alpha: Optional[Mapping[int, float]] = None,
        limit_batches: Optional[int] = None,
        progress: bool = False,
) -> Results:
    """Measure how often a classifier answers as it does at its largest size; no labels are needed.

    Args:
        model, loader, resolutions, limit_batches, progress: see `evaluate`.
        alpha: not used; there is no ensemble.

    Returns:
        {resolution, largest first: {'agreement' in percent, 'loss' (mean cross-entropy against the probabilities at the
        largest size), 'count' (pictures)}}.
    """
    sizes = _sizes(resolutions, loader)
    totals = torch.zeros(len(sizes), 3, dtype=torch.float64, device=device_of(model))

    def add(logits: Dict[int, torch.Tensor], target: torch.Tensor) -> None:
        own = logits[sizes[0]].double()
        for row, z in zip(totals, logits.values()):
            same = (z.argmax(1) == own.argmax(1)) & z.isfinite().all(dim=1)
            loss = F.cross_entropy(z.double(), own.softmax(1), reduction='sum')
            row += torch.stack([same.sum().double(), loss, same.new_tensor(len(same), dtype=torch.float64)])

    pass_over(loader, model, sizes, add, limit_batches=limit_batches, progress=progress)
    if loader.world_size > 1:
        dist.all_reduce(totals)
    return {size: dict(agreement=100. * same / count, loss=loss / count, count=int(count))
            for size, (same, loss, count) in zip(sizes, totals.tolist())}


def evaluate_masks(model: nn.Module, loader: Any, *args: Any, **kwargs: Any) -> Results:
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


def confusion_matrices(
        model: nn.Module,
        loader: Any,
        resolutions: Optional[Sequence[int]] = None,
        alpha: Optional[Mapping[int, float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
        device: Union[None, str, torch.device] = None,
        limit_batches: Optional[int] = None,
        progress: bool = False,
) -> Dict[Row, torch.Tensor]:
    """Count, at each resolution, the pixels of class i that are predicted as class j, in one pass over `loader`.

    In a distributed run each process counts its shard and the counts are added up: exact, since they are whole numbers
    and each picture is in one shard.

    Args:
        model, resolutions, alpha, amp_dtype, device, limit_batches, progress: see `evaluate`.
        loader: of `create_mask_loader`, not for training.

    Returns:
        {resolution, largest first, and perhaps 'ensemble': int64 [K, K]}. A warning names classes that no mask has.
    """
    sizes = _sizes(resolutions, loader)
    weights = ensemble_weights(model, sizes, alpha)
    count = len(loader.dataset.classes)
    rows: List[Row] = [*sizes, *([ENSEMBLE] if weights else [])]
    counts = torch.zeros(len(rows), count, count, dtype=torch.int64, device=device_of(model, device))

    def add(logits: Dict[int, torch.Tensor], masks: Iterable[torch.Tensor]) -> None:
        shape = tuple(logits[sizes[0]].shape)
        if len(shape) != 4 or shape[1] != count:
            raise ValueError(f'the network gives {shape}, expected [N, {count}, h, w]: it is not one for segmentation '
                             f'with {count} classes.')
        for index, mask in enumerate(masks):
            full = {size: upsampled(z[index:index + 1], *mask.shape)[0] for size, z in logits.items()}
            for matrix, z in zip(counts, with_ensemble(full, weights).values()):
                another = (mask.long() + 1) % count  # than the right class, where there is no prediction
                classes = torch.where(z.isfinite().all(dim=0), z.argmax(dim=0), another)
                matrix += confusion_matrix(classes, mask, count)

    pass_over(loader, model, sizes, add, amp_dtype, device, limit_batches, progress)
    if loader.world_size > 1:
        dist.all_reduce(counts)
    absent = [name for name, pixels in zip(loader.dataset.classes, counts[0].sum(dim=1)) if not pixels]
    if 0 < len(absent) < count and limit_batches is None:
        ignored = getattr(loader.dataset, 'ignore_label', None)
        warnings.warn(f'no mask has a pixel of {", ".join(map(repr, absent))}, which the mean IoU leaves out: '
                      f'is the ignored value of masks, {ignored}, theirs (ignore_label)?', stacklevel=2)
    return dict(zip(rows, counts))


def results_table(results: Mapping[Row, Mapping[str, float]]) -> str:
    """The results of `evaluate` as text, a line for each resolution.

    >>> print(results_table({224: dict(top1=75., top5=92.5, loss=1.01, count=40)}))
    resolution    top1    top5    loss  pictures
           224   75.00   92.50  1.0100        40
    """
    lines = [f'{"resolution":>10} {"top1":>7} {"top5":>7} {"loss":>7} {"pictures":>9}']
    for row, values in results.items():
        shares = f'{values["top1"]:7.2f} {values["top5"]:7.2f}'
        lines.append(f'{row:>10} {shares} {values["loss"]:7.4f} {values["count"]:9d}')
    return '\n'.join(lines)


def masks_table(results: Mapping[Row, Mapping[str, float]]) -> str:
    """The results of `evaluate_masks` as text, a line for each resolution.

    >>> print(masks_table({96: dict(pixel_accuracy=75., mean_accuracy=50.5, mean_iou=33.333, count=40)}))
    resolution  pixel acc.  mean acc.  mean IoU      pixels
            96       75.00      50.50     33.33          40
    """
    lines = [f'{"resolution":>10} {"pixel acc.":>11} {"mean acc.":>10} {"mean IoU":>9} {"pixels":>11}']
    for row, values in results.items():
        shares = f'{values["pixel_accuracy"]:11.2f} {values["mean_accuracy"]:10.2f} {values["mean_iou"]:9.2f}'
        lines.append(f'{row:>10} {shares} {values["count"]:11d}')
    return '\n'.join(lines)


def results_rows(results: Mapping[Row, Mapping[str, float]], model: str, **columns: Any) -> List[Dict[str, Any]]:
    """The results of `evaluate` as rows with the columns of timm's `validate.py`, and `loss` and `count`.

    Args:
        results: as returned by `evaluate`; for the ensemble, `img_size` is 'ensemble'.
        model: what to call it.
        columns: more columns, such as `param_count`, `crop_pct`, `interpolation`.
    """
    return [
        dict(
            model=model,
            top1=round(values['top1'], 4), top1_err=round(100. - values['top1'], 4),
            top5=round(values['top5'], 4), top5_err=round(100. - values['top5'], 4),
            img_size=row, **columns,
            loss=round(values['loss'], 6), count=values['count'],
        )
        for row, values in results.items()
    ]


def write_results_csv(path: Union[str, 'PathLike[str]'], rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows, such as those of `results_rows`, as CSV with a header."""
    with open(path, 'w', newline='', encoding='utf-8', errors='backslashreplace') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
