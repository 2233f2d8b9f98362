"""Learned quantisation as functions of tensors: nearest levels, the basis that fits best, gradients past both.

Values come in rows [R, n]. A row has a basis v of b scalars; its levels are the 2^b sums v . c over the codes c, which
are -1/1 for weights and 0/1 for activations. Code number i has the bits of i, the lowest first.

Source: LQ-Nets (Zhang et al., ECCV 2018), Section 3; the paper uses it for its Table 3.
"""
from contextlib import contextmanager
from typing import Any, Iterator, Optional, Tuple

import torch

__all__ = [
    'BITS',
    'REGULARISATION',
    'ClippedStraightThrough',
    'StraightThrough',
    'activation_basis',
    'check_bits',
    'code_table',
    'fit_basis',
    'look_up',
    'nearest',
    'normal_equations',
    'quantize_activation',
    'quantize_rows',
    'quantize_weight',
    'rows_of',
    'shaped_as',
    'solve_basis',
    'sorted_levels',
    'traced_activation',
    'untraced',
    'weight_basis',
    'wide',
]

BITS = range(1, 9)
REGULARISATION = 1e-4
_QUANTILE = 0.6745  # 75 % of a normal distribution lie below it
_CHUNK = 1 << 22  # values at once, where each takes b + 1 floats more


def check_bits(name: str, bits: int) -> None:
    """Raise ValueError for an impossible number of bits."""
    if isinstance(bits, bool) or not isinstance(bits, int) or bits not in BITS:
        also = ', or None for full precision' if name == 'act_bits' else ''
        raise ValueError(f'{name} {bits!r}: it must be a whole number from {BITS[0]} to {BITS[-1]}{also}.')


def weight_basis(bits: int, kernel_area: int, out_channels: int) -> torch.Tensor:
    """The initial basis [bits] of weights with He's initialisation.

    >>> weight_basis(2, 9, 2)
    tensor([0.1124, 0.2248])
    """
    scale = _QUANTILE * (2. / (kernel_area * out_channels)) ** 0.5
    return scale * 2. ** torch.arange(bits) / 2 ** (bits - 1)


def activation_basis(bits: int) -> torch.Tensor:
    """The initial basis [bits] of normalised, rectified activations.

    >>> activation_basis(2)
    tensor([0.4497, 0.8993])
    """
    return _QUANTILE * 2. / (2 ** bits - 1) * 2. ** torch.arange(bits)


def code_table(bits: int, signed: bool, like: torch.Tensor) -> torch.Tensor:
    """The codes [2^bits, bits], as numbers: -1/1 if signed, else 0/1."""
    numbers = torch.arange(1 << bits, device=like.device).unsqueeze(1)
    digits = torch.bitwise_and(torch.bitwise_right_shift(numbers, torch.arange(bits, device=like.device)), 1)
    codes = digits.to(like.dtype)
    return 2. * codes - 1. if signed else codes


def sorted_levels(basis: torch.Tensor, signed: bool) -> Tuple[torch.Tensor, torch.Tensor]:
    """Levels [R, 2^b] in ascending order, and the number of the code of each [R, 2^b]; `basis` is [R, b].

    >>> levels, numbers = sorted_levels(torch.tensor([[1., 3.]]), signed=True)
    >>> levels.tolist(), numbers.tolist()
    ([[-4.0, -2.0, 2.0, 4.0]], [[0, 1, 2, 3]])
    """
    table = code_table(basis.shape[1], signed, basis)
    levels = (basis.unsqueeze(1) * table).sum(-1)  # not a matmul: its rounding would depend on the number of rows
    return torch.sort(levels, stable=True, dim=-1, descending=False)


def nearest(x: torch.Tensor, levels: torch.Tensor) -> torch.Tensor:
    """Positions [R, n] of the nearest of the ascending `levels` [R, L]; half way, of the lower one."""
    thresholds = (levels[:, 1:] + levels[:, :-1]) / 2
    if thresholds.shape[1] <= 3:  # up to two bits: comparing with all of them is faster than a search
        positions = (x > thresholds[:, 0:1]).to(torch.uint8)
        for index in range(1, thresholds.shape[1]):
            positions += x > thresholds[:, index:index + 1]
        return positions.long()
    if thresholds.shape[0] == 1:
        return torch.bucketize(x, thresholds[0])
    return torch.searchsorted(thresholds, x)


def look_up(table: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Entries [R, n] of each row of `table` [R, L] at its `positions` [R, n]."""
    if table.shape[0] == 1:
        return torch.take(table, positions)
    return table.gather(1, positions)


def quantize_rows(x: torch.Tensor, basis: torch.Tensor, signed: bool) -> torch.Tensor:
    """Each value of `x` [R, n] replaced by the nearest level of its row's `basis` [R, b].

    >>> quantize_rows(torch.tensor([[-5., 0.5, 1.5, 9.]]), torch.tensor([[1., 2.]]), signed=False)
    tensor([[0., 0., 1., 3.]])
    """
    levels, _ = sorted_levels(basis, signed)
    return look_up(levels, nearest(x, levels))


def normal_equations(
        x: torch.Tensor,
        basis: torch.Tensor,
        signed: bool,
        positions: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """B^T B [R, b, b] and B^T x [R, b] in float64, where B [n, b] holds the codes that `basis` gives to `x` [R, n].

    `positions` are those of the nearest levels, if they are known.
    """
    levels, numbers = sorted_levels(basis, signed)
    positions = nearest(x, levels) if positions is None else positions
    codes = code_table(basis.shape[1], signed, basis)[numbers]  # [R, L, b]
    gram, moment = 0., 0.
    width = max(1, _CHUNK // len(x))
    with torch.autocast(x.device.type, enabled=False):
        for part, places in zip(x.split(width, dim=1), positions.split(width, dim=1)):
            rows = [look_up(codes[:, :, bit].contiguous(), places) for bit in range(basis.shape[1])]
            stacked = torch.stack([*rows, part], dim=1)  # [R, b + 1, n]
            products = torch.bmm(stacked[:, :-1], stacked.transpose(1, 2)).double()
            gram, moment = gram + products[:, :, :-1], moment + products[:, :, -1]
    return gram, moment  # type: ignore[return-value]


def solve_basis(
        gram: torch.Tensor,
        moment: torch.Tensor,
        basis: torch.Tensor,
        regularisation: float = REGULARISATION,
) -> torch.Tensor:
    """The basis [R, b] that minimises |x - B v|^2 + regularisation * |v - basis|^2, with the codes B held.

    The second term decides where the codes do not: for a bit that no value has, or two that always agree.
    """
    eye = torch.eye(gram.shape[-1], dtype=torch.float64, device=gram.device)
    right = moment + regularisation * basis.double()
    solution, _ = torch.linalg.solve_ex(gram + regularisation * eye, right.unsqueeze(-1))
    return solution.squeeze(-1).to(basis.dtype)


def fit_basis(x: torch.Tensor, bits: int, steps: int = 10) -> torch.Tensor:
    """A basis [R, bits] for the weights `x` [R, n]: codes and basis in turn (QEM), from the spread of each row."""
    spread = _QUANTILE * x.square().mean(1, keepdim=True).sqrt()
    basis = spread * (2. ** torch.arange(bits, device=x.device) / 2 ** (bits - 1)).to(x.dtype)
    for _ in range(steps):
        basis = solve_basis(*normal_equations(x, basis, signed=True), basis)
    return basis


def quantize_weight(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`weight` [out, ...] with each value replaced by the nearest level of its output channel; `basis` is [out, b].

    >>> quantize_weight(torch.tensor([[[[0.4]], [[-3.]]]]), torch.tensor([[1., 2.]])).flatten()
    tensor([ 1., -3.])
    """
    return shaped_as(quantize_rows(rows_of(weight, len(weight)), wide(basis), True), weight)


def quantize_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`x` of any shape with each value replaced by the nearest level of the one `basis` [b].

    >>> quantize_activation(torch.tensor([0.4, 1.6, 7.]), torch.tensor([1., 2.]))
    tensor([0., 2., 3.])
    """
    return shaped_as(quantize_rows(rows_of(x, 1), wide(basis).unsqueeze(0), False), x)


def _is_nhwc(x: torch.Tensor) -> bool:
    """Whether `x` is channels last; a 1 x 1 kernel, which is both, must not become so, nor its output."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def rows_of(x: torch.Tensor, count: int) -> torch.Tensor:
    """The values of `x` in rows [count, n], as they lie in memory."""
    return wide(x.permute(0, 2, 3, 1) if _is_nhwc(x) else x).reshape(count, -1)


def shaped_as(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Undo `rows_of`: the `rows` in the shape and memory format of `x`."""
    rows = rows.to(x.dtype)
    if _is_nhwc(x):
        return rows.reshape(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return rows.reshape(x.shape)


def wide(x: torch.Tensor) -> torch.Tensor:
    """Return `x` in float32 at least: levels and thresholds are compared there."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def untraced() -> Iterator[None]:
    """Keep what is computed in the block, from buffers and weights, a constant of the graph that is being traced."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[arg-type]


def traced_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`quantize_activation` in comparisons with constants, which every exporter knows."""
    with untraced():
        levels = sorted_levels(wide(basis.detach()).unsqueeze(0), signed=False)[0][0]
        thresholds, values = ((levels[1:] + levels[:-1]) / 2).tolist(), levels.tolist()
    quantized = torch.full_like(x, values[0])
    for threshold, value in zip(thresholds, values[1:]):
        quantized = torch.where(x > threshold, value, quantized)
    return quantized


class StraightThrough(torch.autograd.Function):
    """The value `quantized`, whose gradient goes to `x` as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantized: torch.Tensor) -> torch.Tensor:
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, None]:  # type: ignore[override]
        return grad, None


class ClippedStraightThrough(torch.autograd.Function):
    """The value `quantized`, whose gradient goes to `x` where that is in [0, top]; what is clipped gets none."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, quantized: torch.Tensor, top: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward((x >= 0) & (x <= top))
        return quantized.view_as(quantized)

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> Tuple[torch.Tensor, None, None]:  # type: ignore[override]
        (inside,) = ctx.saved_tensors
        return grad * inside, None, None
