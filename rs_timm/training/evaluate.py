"""Top-1 and top-5 at every resolution asked for, and of their ensemble, in one pass over the data."""
import csv
from contextlib import nullcontext
from itertools import islice
from os import PathLike
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rs_timm.data import MultiResLoader
from rs_timm.layers import is_switchable, use_resolution
from rs_timm.loss import ensemble_logits

__all__ = ['evaluate', 'results_rows', 'results_table', 'write_results_csv']

Row = Union[int, str]  # a resolution in pixels, or 'ensemble'
Results = Dict[Row, Dict[str, float]]
ENSEMBLE = 'ensemble'


@torch.no_grad()
def evaluate(
        model: nn.Module,
        loader: MultiResLoader,
        resolutions: Optional[Sequence[int]] = None,
        alpha: Optional[Mapping[int, float]] = None,
        amp_dtype: Optional[torch.dtype] = None,
        device: Union[None, str, torch.device] = None,
        limit_batches: Optional[int] = None,
) -> Results:
    """Measure `model` at several resolutions, seen in training or not, in one pass over `loader`.

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

    Returns:
        {resolution, largest first, and perhaps 'ensemble': {'top1', 'top5' in percent, 'loss' (mean cross-entropy),
        'count' (pictures)}}. With fewer than five classes, top5 is 100.

    Raises:
        ValueError: a resolution that the loader lacks, an `alpha` that does not fit, or no picture with a label.
    """
    sizes = _sizes(resolutions, loader)
    weights = _weights(model, sizes, alpha)
    network = _unwrapped(model)
    device = torch.device(device) if device is not None else _device_of(network)
    rows: List[Row] = [*sizes, *([ENSEMBLE] if weights else [])]
    totals = torch.zeros(len(rows), 4, dtype=torch.float64, device=device)  # hits in 1, hits in 5, loss, count
    was_training = network.training
    network.eval()
    try:
        for images, target in islice(loader, limit_batches):
            target = target.to(device)
            logits = {size: _logits(network, images[size].to(device), size, amp_dtype) for size in sizes}
            measured: List[torch.Tensor] = list(logits.values())
            if weights:
                measured.append(ensemble_logits({size: logits[size] for size in weights}, _scores(weights, device)))
            totals += torch.stack([_sums(row, target) for row in measured])
    finally:
        network.train(was_training)
    if loader.world_size > 1:
        dist.all_reduce(totals)
    return _results(rows, totals)


def _sizes(resolutions: Optional[Sequence[int]], loader: MultiResLoader) -> Tuple[int, ...]:
    if loader.is_training:
        raise ValueError('the loader gives random crops: make one with is_training=False for evaluation.')
    sizes = tuple(sorted(loader.resolutions if resolutions is None else set(resolutions), reverse=True))
    missing = [size for size in sizes if size not in loader.resolutions]
    if missing or not sizes:
        raise ValueError(f'resolutions {missing or ()}: the loader gives {loader.resolutions}; make it with all the '
                         'sizes to measure.')
    return sizes


def _weights(
        model: nn.Module,
        sizes: Sequence[int],
        alpha: Optional[Mapping[int, float]],
) -> Optional[Dict[int, float]]:
    """The ensemble's weights, largest resolution first; None if there is no ensemble to measure."""
    given = alpha is not None
    if alpha is None:
        metadata = getattr(_unwrapped(model), 'checkpoint_metadata', None) or {}
        alpha = metadata.get('alpha')
    if not alpha:
        return None
    weights = dict(sorted(((int(size), float(weight)) for size, weight in alpha.items()), reverse=True))
    missing = [size for size in weights if size not in sizes]
    if missing and given:
        raise ValueError(f'alpha has weights for {missing}, which are not measured: measured are {tuple(sizes)}.')
    if missing:
        return None
    if min(weights.values()) < 0. or abs(sum(weights.values()) - 1.) > 1e-3:
        raise ValueError(f'alpha {weights}: the weights of an ensemble are positive and add up to 1; take the softmax '
                         'of raw scores first.')
    return weights


def _scores(weights: Mapping[int, float], device: torch.device) -> torch.Tensor:
    return torch.tensor(list(weights.values()), device=device).log()  # softmax gives the weights back


def _unwrapped(model: nn.Module) -> nn.Module:
    """Without DDP, whose forward exchanges buffers: shards may be uneven, and a last batch one process's own."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def _device_of(model: nn.Module) -> torch.device:
    return next((tensor.device for tensor in model.parameters()), torch.device('cpu'))


def _logits(
        model: nn.Module,
        images: torch.Tensor,
        resolution: int,
        amp_dtype: Optional[torch.dtype],
) -> torch.Tensor:
    with torch.autocast(images.device.type, dtype=amp_dtype) if amp_dtype else nullcontext():
        if not is_switchable(model):
            return model(images).float()
        with use_resolution(model, resolution):
            return model(images).float()


def _sums(logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """[hits in the first, hits in the first five, summed cross-entropy, pictures], float64, over the labelled ones."""
    labelled = target >= 0
    logits, target = logits[labelled], target[labelled]
    hits = logits.topk(min(5, logits.shape[1]), dim=1).indices == target[:, None]
    loss = F.cross_entropy(logits.double(), target, reduction='sum')
    return torch.stack([hits[:, 0].sum().double(), hits.sum().double(), loss, labelled.sum().double()])


def _results(rows: Sequence[Row], totals: torch.Tensor) -> Results:
    if not totals[0, 3]:
        raise ValueError('no picture with a label was read: is the data in ROOT/val/CLASS/PICTURE?')
    results = {}
    for row, (top1, top5, loss, count) in zip(rows, totals.tolist()):
        results[row] = dict(top1=100. * top1 / count, top5=100. * top5 / count, loss=loss / count, count=int(count))
    return results


def results_table(results: Mapping[Row, Mapping[str, float]]) -> str:
    """The results as text, a line for each resolution.

    >>> print(results_table({224: dict(top1=75., top5=92.5, loss=1.01, count=40)}))
    resolution    top1    top5    loss  pictures
           224   75.00   92.50  1.0100        40
    """
    lines = [f'{"resolution":>10} {"top1":>7} {"top5":>7} {"loss":>7} {"pictures":>9}']
    for row, values in results.items():
        shares = f'{values["top1"]:7.2f} {values["top5"]:7.2f}'
        lines.append(f'{row:>10} {shares} {values["loss"]:7.4f} {values["count"]:9d}')
    return '\n'.join(lines)


def results_rows(results: Mapping[Row, Mapping[str, float]], model: str, **columns: Any) -> List[Dict[str, Any]]:
    """The results as rows with the columns of timm's `validate.py`, and `loss` and `count`.

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
    """Write the rows of `results_rows` as CSV with a header."""
    with open(path, 'w', newline='', encoding='utf-8') as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
