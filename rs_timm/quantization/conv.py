"""`LQConv2d`: a convolution whose weights, and input if wanted, are quantised with learned levels."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import torch
from timm.layers import register_notrace_module
from torch import nn

from .lq import (
    activation_basis,
    fit_basis,
    look_up,
    nearest,
    normal_equations,
    quantize_rows,
    sorted_levels,
    weight_basis,
)
from .step import Equations, Pending, watch
from .straight_through import ClippedStraightThrough, StraightThrough

__all__ = ['LQConv2d', 'quantize_activation', 'quantize_weight']


def quantize_weight(weight: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`weight` [out, ...] with each value replaced by the nearest level of its output channel; `basis` is [out, b].

    >>> quantize_weight(torch.tensor([[[[0.4]], [[-3.]]]]), torch.tensor([[1., 2.]])).flatten()
    tensor([ 1., -3.])
    """
    return _as(quantize_rows(_rows(weight, len(weight)), _wide(basis), True), weight)


def quantize_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`x` of any shape with each value replaced by the nearest level of the one `basis` [b].

    >>> quantize_activation(torch.tensor([0.4, 1.6, 7.]), torch.tensor([1., 2.]))
    tensor([0., 2., 3.])
    """
    return _as(quantize_rows(_rows(x, 1), _wide(basis).unsqueeze(0), False), x)


def _is_nhwc(x: torch.Tensor) -> bool:
    """Whether it is channels last; a 1 x 1 kernel, which is both, must not become channels last, nor its output."""
    return x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)


def _rows(x: torch.Tensor, count: int) -> torch.Tensor:
    """The values of `x` in rows [count, n], as they lie in memory."""
    return _wide(x.permute(0, 2, 3, 1) if _is_nhwc(x) else x).reshape(count, -1)


def _as(rows: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """What `_rows` gave for `x`, in the shape and memory format of `x`."""
    rows = rows.to(x.dtype)
    if _is_nhwc(x):
        return rows.reshape(x.permute(0, 2, 3, 1).shape).permute(0, 3, 1, 2)
    return rows.reshape(x.shape)


def _wide(x: torch.Tensor) -> torch.Tensor:
    """In float32 at least: levels and thresholds are compared there."""
    return x if x.dtype == torch.float64 else x.float()


@contextmanager
def _untraced() -> Iterator[None]:
    """What is computed here from buffers and weights is a constant of the graph that is being traced."""
    state = torch._C._get_tracing_state()
    torch._C._set_tracing_state(None)  # type: ignore[arg-type]
    try:
        yield
    finally:
        torch._C._set_tracing_state(state)  # type: ignore[arg-type]


def _traced_activation(x: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """`quantize_activation` in comparisons with constants, which every exporter knows."""
    with _untraced():
        levels = sorted_levels(_wide(basis.detach()).unsqueeze(0), signed=False)[0][0]
        thresholds, values = ((levels[1:] + levels[:-1]) / 2).tolist(), levels.tolist()
    quantized = torch.full_like(x, values[0])
    for threshold, value in zip(thresholds, values[1:]):
        quantized = torch.where(x > threshold, value, quantized)
    return quantized


def _version(x: torch.Tensor) -> int:
    return 0 if x.is_inference() else x._version


class _Quantized(NamedTuple):
    """Quantised weights, and what they were made from."""

    sources: Tuple[torch.Tensor, ...]
    versions: Tuple[int, ...]
    weight: torch.Tensor

    def of(self, *sources: torch.Tensor) -> bool:
        same = all(mine is theirs for mine, theirs in zip(self.sources, sources))
        return same and self.versions == tuple(map(_version, sources))


@register_notrace_module
class LQConv2d(nn.Conv2d):
    """`nn.Conv2d` that computes with quantised weights; `weight` stays the full-precision one that is trained.

    A basis for each output channel (`weight_basis`) and, with `act_bits`, one for the input (`act_basis`) are buffers.
    In training mode the forward pass notes what the best bases for its values would be, and the step of the optimizer
    that moves `weight` moves the bases towards them (see `rs_timm.quantization.step`); between two steps they stand
    still, so that all resolutions of a step see the same network. Frozen weights have frozen bases.

    Quantised weights are made once for each version of the weights, however many forward passes use them.

    >>> conv = LQConv2d(8, 4, 3, weight_bits=2, act_bits=2)
    >>> conv(torch.randn(1, 8, 5, 5)).shape, conv.quantized_weight().unique().numel() <= 4 * 4
    (torch.Size([1, 4, 3, 3]), True)

    Args:
        args, kwargs: as for `nn.Conv2d`.
        weight_bits: 1 to 8.
        act_bits: 1 to 8, or None for an input in full precision.

    Source: LQ-Nets (Zhang et al., ECCV 2018), Sections 3.2 and 3.3.
    """

    weight_basis: torch.Tensor
    act_basis: Optional[torch.Tensor]

    def __init__(self, *args: Any, weight_bits: int = 2, act_bits: Optional[int] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._start(weight_bits, act_bits)

    @classmethod
    def of(cls, conv: nn.Conv2d, weight_bits: int, act_bits: Optional[int] = None) -> 'LQConv2d':
        """The quantised `conv`, with its parameters and hooks."""
        layer = cls.__new__(cls)
        layer.__dict__.update(conv.__dict__, _buffers=dict(conv._buffers))
        layer._start(weight_bits, act_bits)
        return layer

    def plain(self) -> nn.Conv2d:
        """An `nn.Conv2d` that has the quantised weights for its own; it knows nothing of a quantised input."""
        conv = nn.Conv2d.__new__(nn.Conv2d)
        own = ('_quantized', '_weight_pending', '_act_pending')
        conv.__dict__.update({key: value for key, value in self.__dict__.items() if key not in own})
        conv._buffers = {}
        weight = nn.Parameter(self.quantized_weight().clone(), requires_grad=self.weight.requires_grad)
        conv._parameters = dict(self._parameters, weight=weight)
        return conv

    def _start(self, weight_bits: int, act_bits: Optional[int]) -> None:
        like = dict(device=self.weight.device, dtype=self.weight.dtype)
        area = self.kernel_size[0] * self.kernel_size[1]
        basis = weight_basis(weight_bits, area, self.out_channels).repeat(self.out_channels, 1)
        self.register_buffer('weight_basis', basis.to(**like))
        self.register_buffer('act_basis', None if act_bits is None else activation_basis(act_bits).to(**like))
        self._forget()
        watch(self)

    def _forget(self) -> None:
        self._quantized: Optional[_Quantized] = None
        self._weight_pending = Pending()
        self._act_pending = Pending()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            act_basis = self.act_basis
            if act_basis is not None:
                x = quantize_activation(x, act_basis)
            weight = quantize_weight(self.weight, self.weight_basis)
        else:
            x, weight = self._operands(x)
        return self._conv_forward(x, weight, self.bias)

    @torch.jit.unused
    def _operands(self, x: torch.Tensor) -> Tuple[torch.Tensor, torch.Tensor]:
        if self.act_basis is not None:
            x = self._quantized_input(x)
        weight = self.quantized_weight()
        if torch.is_grad_enabled() and not torch.jit.is_tracing():
            weight = StraightThrough.apply(self.weight, weight)
        return x, weight

    def _learns(self) -> bool:
        """Whether this forward pass has a say in the bases; not when a checkpointed block is run again."""
        again = not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
        return self.training and self.weight.requires_grad and not (again or self.weight.is_meta)

    def _quantized_input(self, x: torch.Tensor) -> torch.Tensor:
        assert self.act_basis is not None
        if torch.jit.is_tracing():
            return _traced_activation(x, self.act_basis)
        with torch.no_grad():
            values, basis = _rows(x, 1), _wide(self.act_basis).unsqueeze(0)
            levels, _ = sorted_levels(basis, signed=False)
            positions = nearest(values, levels)
            quantized = _as(look_up(levels, positions), x)
            if self._learns():
                self._act_pending.add(*normal_equations(values, basis, False, positions))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return quantized
        return ClippedStraightThrough.apply(x, quantized, levels[0, -1])

    @torch.jit.unused
    def quantized_weight(self) -> torch.Tensor:
        """The weights [out, in / groups, kh, kw] that the convolution computes with; no gradient goes through it."""
        if torch.compiler.is_compiling():  # a compiled graph makes them itself
            return self._quantize(self._learns())
        if self._quantized is None or not self._quantized.of(self.weight, self.weight_basis):
            with torch.inference_mode(False), _untraced():
                weight = self._quantize(self._learns())
            sources = self.weight, self.weight_basis
            self._quantized = _Quantized(sources, tuple(map(_version, sources)), weight)
        return self._quantized.weight

    @torch.no_grad()
    def _quantize(self, learn: bool) -> torch.Tensor:
        rows, basis = _rows(self.weight, self.out_channels), _wide(self.weight_basis)
        levels, _ = sorted_levels(basis, signed=True)
        positions = nearest(rows, levels)
        if learn:
            self._weight_pending.add(*normal_equations(rows, basis, True, positions))
        return _as(look_up(levels, positions), self.weight)

    def pending(self) -> bool:
        """Whether there were training passes since the bases last moved."""
        return any(pending.equations for pending in (self._weight_pending, self._act_pending))

    def take_pending(self) -> Tuple[Optional[Equations], Optional[Equations]]:
        """The equations for the bases of weight and input, which are forgotten here."""
        return self._weight_pending.take(), self._act_pending.take()

    def move_bases(self, weight_basis: Optional[torch.Tensor], act_basis: Optional[torch.Tensor]) -> None:
        """Take new bases, unless None."""
        with torch.no_grad():
            if weight_basis is not None:
                self.weight_basis.copy_(weight_basis)
            if act_basis is not None:
                assert self.act_basis is not None
                self.act_basis.copy_(act_basis)

    def train(self, mode: bool = True) -> nn.Module:
        """As in torch; also has the weights quantised anew: some writes leave no trace (`p.data.copy_()`)."""
        self._quantized = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        """As in torch; to the weights of a plain convolution a basis is fitted, the input's starts anew."""
        weight = state_dict.get(f'{prefix}weight')
        plain = f'{prefix}weight_basis' not in state_dict and weight is not None and weight.shape == self.weight.shape
        if plain:
            with torch.no_grad():
                rows = _wide(weight).reshape(self.out_channels, -1)
                state_dict[f'{prefix}weight_basis'] = fit_basis(rows, self.weight_basis.shape[1])
            if self.act_basis is not None:
                state_dict.setdefault(f'{prefix}act_basis', activation_basis(len(self.act_basis)))
        super()._load_from_state_dict(state_dict, prefix, *args)
        self._forget()

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica._forget()
        return replica

    def __getstate__(self) -> Dict[str, Any]:
        own: List[str] = ['_quantized', '_weight_pending', '_act_pending']
        return {key: value for key, value in self.__dict__.items() if key not in own}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        watch(self)

    def extra_repr(self) -> str:
        inputs = '' if self.act_basis is None else f', act_bits={len(self.act_basis)}'
        return f'{super().extra_repr()}, weight_bits={self.weight_basis.shape[1]}{inputs}'
