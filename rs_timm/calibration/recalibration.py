"""BatchNorm statistics from pictures, for the resolutions that a network was not trained at."""
import random
import warnings
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Callable, ContextManager, Dict, Iterable, Iterator, Mapping, Optional, Tuple

import torch
from torch import nn

from rs_timm.layers import (
    SwitchableBatchNorm2d,
    check_resolutions,
    get_resolutions,
    insert_resolution,
    remove_resolution,
    use_resolution,
)

from .batches import Images, pictures, rebatch

__all__ = [
    'Moments', 'add_resolution', 'collect_moments', 'moments_of', 'pool_statistics', 'recalibrate', 'sets_of',
    'statistics_of', 'write_statistics']

Sets = Dict[str, nn.Module]  # name of the layer -> its BatchNorm for one resolution
Statistics = Dict[str, Tuple[torch.Tensor, torch.Tensor]]  # name of the layer -> mean and variance, each [C], float64

FEW_IMAGES = 1000  # fewer, with more than the share below: a warning
SAFE_SHARE = 0.05  # of new statistics in the blend


@dataclass(frozen=True)
class Moments:
    """Number of values per channel, their mean [C], and their sum of squared deviations from it [C]; float64."""

    count: float
    mean: torch.Tensor
    deviation: torch.Tensor

    def pooled(self, other: 'Moments') -> 'Moments':
        """The moments of both collections as one (Chan, Golub and LeVeque, 1983)."""
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        between = self.count * share * delta.square()
        return Moments(count, self.mean + share * delta, self.deviation + other.deviation + between)

    @property
    def unbiased(self) -> torch.Tensor:
        """The variance [C] that torch keeps in `running_var`."""
        return self.deviation / max(self.count - 1, 1)


def moments_of(x: torch.Tensor) -> Moments:
    """The moments of `x`, [N, C] or [N, C, ...], over all dimensions but the second."""
    x = x.detach() if x.dtype == torch.float64 else x.detach().float()
    dims = [d for d in range(x.ndim) if d != 1]
    mean = x.mean(dims, keepdim=True)
    x = x - mean  # squares of deviations: no cancellation where the mean is large
    rounding = x.mean(dims)
    mean, rounding, square = torch.stack([mean.flatten(), rounding, x.square().mean(dims)]).cpu().double()
    count = x.numel() // x.shape[1]
    return Moments(count, mean + rounding, count * (square - rounding.square()))


def recalibrate(
        model: nn.Module,
        images: Images,
        resolutions: Optional[Iterable[int]] = None,
        num_images: Optional[int] = 1000,
        prior_images: float = 100000,
        batch_size: int = 64,
) -> Dict[int, int]:
    """Set the BatchNorm statistics of `model` to the exact mean and variance over `images`, blended with the old ones.

    In place. Only the running means and variances of the sets for `resolutions` change; after an error nothing has.

    >>> import torch, timm
    >>> from rs_timm.calibration import recalibrate
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 32))
    >>> recalibrate(model, torch.randn(500, 3, 64, 64), resolutions=[32])
    {32: 500}

    Every layer sees pictures that the layers before it have normalised by the statistics of their own batch of
    `batch_size`, as in training (batches of a loader are joined and cut to that size). The moments of the batches are
    pooled exactly, in float64, and at the end with the old statistics. So with one batch and `prior_images=0` the
    result is what a forward pass in training mode with momentum 1 leaves, unbiased variance included.

    No setting brought a gain that 500 pictures can show (see the table in docs/recalibrate.md), so the default keeps
    nearly all of the old statistics. Lower `prior_images` with pictures of all classes only, and compare on held-out
    ones.

    To normalise by the old statistics during the pass would be worse: every layer then corrects what the layers before
    it correct as well, and with `prior_images=0` accuracy fell to chance.

    Args:
        model: a switchable network, or a wrapper of one.
        images: normalised pictures of the kind the network is for, drawn at random over its classes, in one of four
            forms:
            a tensor [N, C, H, W];
            a DataLoader, list or other re-iterable of batches, where a batch is a tensor [N, C, H, W], a tuple or list
            that starts with one, or a mapping {resolution: tensor};
            a mapping {resolution: tensor or batches};
            a function that takes a resolution and returns batches (to read a folder at each size).
            Pictures larger than a resolution are scaled down to it (bilinear, antialiased), as one crop is resized for
            all sizes in training; smaller ones are refused.
        resolutions: sizes in pixels that have a set of their own; None means all of the model's.
        num_images: how many pictures are used for each resolution, the first that come; None means all.
        prior_images: the old statistics count as if they had been seen on so many pictures; 0 replaces them.
        batch_size: pictures that go through the network together (the last batch has up to twice as many).

    Returns:
        Resolution -> number of pictures that were used.

    Raises:
        ValueError: no pictures, a wrong shape or channel count, a resolution without a set, statistics that are not
            finite.

    Source: Wu and Johnson, Rethinking "Batch" in BatchNorm (2021), section 3 (precise statistics).
    """
    model = _unwrap(model)
    wanted = _wanted(model, resolutions)
    _check_numbers(num_images, prior_images, batch_size)
    if isinstance(images, Iterator):
        raise ValueError(
            f'images is a {type(images).__name__}, which can be read only once, and every resolution reads it: pass a '
            'list, a DataLoader, a tensor, or a function resolution -> batches.')
    before = {resolution: statistics_of(sets_of(model, resolution)) for resolution in wanted}
    used: Dict[int, int] = {}
    try:
        with _evaluating(model), torch.no_grad():
            for resolution in wanted:
                with _random_state_kept(model):
                    batches = rebatch(pictures(images, resolution, num_images), batch_size)
                    moments, used[resolution] = collect_moments(model, batches, resolution)
                prior = prior_images / used[resolution]
                write_statistics(sets_of(model, resolution), pool_statistics(before[resolution], moments, prior))
    except BaseException:
        for resolution, statistics in before.items():
            write_statistics(sets_of(model, resolution), statistics)
        raise
    _warn_if_few(used, prior_images)
    return used


def add_resolution(model: nn.Module, resolution: int, images: Optional[Images] = None, **kwargs: Any) -> None:
    """Give `model`, in place, a BatchNorm set for one more resolution: interpolated, with `images` recalibrated.

    >>> import timm
    >>> from rs_timm.calibration import add_resolution
    >>> model = timm.create_model('rs_resnet18', resolutions=(224, 160))
    >>> add_resolution(model, 192)
    >>> model.resolutions
    (224, 192, 160)

    Args:
        model: a switchable network, not yet wrapped or given to an optimizer.
        resolution: pixels; the inverse is `remove_resolution`.
        images, kwargs: as in `recalibrate`; the interpolated statistics are the prior.

    Raises:
        ValueError: there is such a set already, or as in `recalibrate`; the model is then as it was before.
    """
    if images is None and kwargs:
        raise ValueError(f"{', '.join(kwargs)}: options of a recalibration, which needs images.")
    insert_resolution(model, resolution)
    if images is None:
        return
    try:
        recalibrate(model, images, [resolution], **kwargs)
    except BaseException:
        remove_resolution(model, resolution)
        raise


def collect_moments(
        model: nn.Module,
        batches: Iterable[torch.Tensor],
        resolution: int,
) -> Tuple[Dict[str, Moments], int]:
    """Return the moments of the input of each BatchNorm over `batches` at `resolution`, and the number of pictures.

    The running statistics are left at those of the last batch: the caller puts them in order.
    """
    moments: Dict[str, Moments] = {}
    sets = sets_of(model, resolution)
    where = next(model.parameters())
    stem = next((m for m in model.modules() if m is not model and 'rs_selector' in m.__dict__), None)
    channels = stem.in_channels if isinstance(stem, nn.Conv2d) else None

    def collect(name: str) -> Callable[..., None]:
        def hook(bn: nn.Module, args: Tuple[torch.Tensor, ...]) -> None:
            batch = moments_of(args[0])
            moments[name] = moments[name].pooled(batch) if name in moments else batch
            bn.running_mean.copy_(batch.mean)
            bn.running_var.copy_(batch.deviation / batch.count)  # biased: what training normalises by
        return hook

    handles = [bn.register_forward_pre_hook(collect(name)) for name, bn in sets.items()]
    count = 0
    try:
        with use_resolution(model, resolution), _eager():
            for x in batches:
                if channels not in (None, x.shape[1]):
                    raise ValueError(f'images have {x.shape[1]} channels (shape {list(x.shape)}), the network takes '
                                     f'{channels}.')
                model(x.to(where.device, where.dtype))
                count += len(x)
    finally:
        for handle in handles:
            handle.remove()
    if not count:
        raise ValueError(f'images has no picture for resolution {resolution}: an empty loader, folder or list?')
    if not moments:
        raise ValueError(f'no BatchNorm of {type(model).__name__} ran at resolution {resolution}: pass the network '
                         'itself, not an exported or scripted form of it.')
    return moments, count


def pool_statistics(old: Statistics, moments: Mapping[str, Moments], prior: float) -> Statistics:
    """The statistics of every layer, old and measured ones pooled; `prior` is the old count relative to the new one.

    A layer that has not run keeps its old statistics.
    """
    blended = dict(old)
    for name, new in moments.items():
        if new.count < 2:
            raise ValueError(f'{name}: there is only one value per channel, which has no variance: use more pictures.')
        mean, variance = old[name]
        count = prior * new.count
        remembered = Moments(count, mean, variance * max(count - 1, 0))
        both = new.pooled(remembered) if prior else new
        blended[name] = both.mean, both.unbiased
        if not all(torch.isfinite(value).all() for value in blended[name]):
            raise ValueError(f'{name}: the mean or variance over the images is not finite: look for NaN or infinite '
                             'pixels, or use float32 instead of half precision.')
    return blended


def sets_of(model: nn.Module, resolution: int) -> Sets:
    return {
        name: bn for name, layer in model.named_modules() if isinstance(layer, SwitchableBatchNorm2d)
        if (bn := layer.set_for(resolution)).running_mean is not None
    }


def statistics_of(sets: Sets) -> Statistics:
    return {name: (_float64(bn.running_mean), _float64(bn.running_var)) for name, bn in sets.items()}


def _float64(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to('cpu', copy=True).double()


def write_statistics(sets: Sets, statistics: Statistics) -> None:
    with torch.no_grad():
        for name, (mean, variance) in statistics.items():
            sets[name].running_mean.copy_(mean)
            sets[name].running_var.copy_(variance)


def _wanted(model: nn.Module, resolutions: Optional[Iterable[int]]) -> Tuple[int, ...]:
    own = get_resolutions(model)
    wanted = own if resolutions is None else check_resolutions(resolutions)
    for resolution in wanted:
        if resolution not in own:
            raise ValueError(f'resolution {resolution} has no BatchNorm set to recalibrate; the model has {own}: use '
                             f'one of these, or add_resolution(model, {resolution}, images).')
    if not sets_of(model, wanted[0]):
        raise ValueError(f'{type(model).__name__} keeps no running statistics (track_running_stats=False): there is '
                         'nothing to recalibrate.')
    return wanted


def _check_numbers(num_images: Optional[int], prior_images: float, batch_size: int) -> None:
    for name, value in (('num_images', num_images), ('batch_size', batch_size)):
        if value is not None and (isinstance(value, bool) or int(value) != value or value < 1):
            raise ValueError(f'{name} is {value!r}: it must be a whole number of pictures, at least 1'
                             f"{', or None for all' if name == 'num_images' else ''}.")
    if not 0 <= prior_images < float('inf'):
        raise ValueError(f'prior_images is {prior_images!r}: it must be 0 (forget the old statistics) or a positive, '
                         'finite number of pictures.')


def _warn_if_few(used: Mapping[int, int], prior_images: float) -> None:
    resolution, count = min(used.items(), key=lambda item: item[1])
    share = count / (count + prior_images)
    if count < FEW_IMAGES and share > SAFE_SHARE:
        warnings.warn(
            f'BatchNorm statistics of only {count} pictures at resolution {resolution} have a share of {share:.0%}: '
            f'expect lower accuracy than before. Use {FEW_IMAGES} or more that are drawn over all classes, or a larger '
            f'prior_images (now {prior_images:g}), and compare on held-out pictures.', stacklevel=3)


def _unwrap(model: nn.Module) -> nn.Module:
    """Return the network itself, since one copy, on one device, collects."""
    while isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        model = model.module
    return getattr(model, '_orig_mod', model)  # torch.compile


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Turn dropout and stochastic depth off in the block; every module gets back the mode that it had."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _eager() -> ContextManager[Any]:
    """Run compiled networks eagerly in the block: a graph that was compiled before knows nothing of our hooks."""
    set_stance = getattr(torch.compiler, 'set_stance', None)  # torch 2.6
    return set_stance('force_eager') if set_stance else nullcontext()


@contextmanager
def _random_state_kept(model: nn.Module) -> Iterator[None]:
    """Restore the random state, which loaders that shuffle move: every resolution starts from the same one."""
    device = next(model.parameters()).device
    state = random.getstate()
    try:
        with torch.random.fork_rng([device] if device.type == 'cuda' else []):
            yield
    finally:
        random.setstate(state)
