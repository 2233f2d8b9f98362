"""Mean and variance of values that come in batches of unequal size: exact, in float64."""
from dataclasses import dataclass

import torch

__all__ = ['Moments', 'moments_of']


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
