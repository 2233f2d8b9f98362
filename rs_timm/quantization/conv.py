"""`LQConv2d`: a convolution whose weights, and input if wanted, are quantised with learned levels.

The bases move with the step of the optimizer that moves their weights. The forward passes of a step, at all resolutions
and in all parts of an accumulated batch, add up the normal equations of the least-squares problem; after
`optimizer.step()` each basis goes a tenth of the way to the solution. So all passes of a step, those that activation
checkpointing runs again included, see the same levels; a step that is skipped moves no basis; and processes that train
together add up their equations in one reduction, so that they agree.
"""
from functools import cache
from typing import Any, Dict, List, NamedTuple, Optional, Tuple
from weakref import WeakSet

import torch
import torch.distributed as dist
from timm.layers import register_notrace_module
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from .lq import (
    ClippedStraightThrough,
    StraightThrough,
    activation_basis,
    check_bits,
    fit_basis,
    look_up,
    nearest,
    normal_equations,
    quantize_activation,
    quantize_weight,
    rows_of,
    shaped_as,
    solve_basis,
    sorted_levels,
    traced_activation,
    untraced,
    weight_basis,
    wide,
)

__all__ = ['LQConv2d']

MOMENTUM = 0.9  # of the moving average

# torch knows no way from an optimizer, which holds parameters, to the layers that they belong to
_LAYERS: 'WeakSet[LQConv2d]' = WeakSet()


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
    that moves `weight` moves the bases towards them (see the module); between two steps they stand
    still, so that all resolutions of a step see the same network. Frozen weights have frozen bases.

    Quantised weights are made once for each version of the weights, however many forward passes use them.

    >>> conv = LQConv2d(8, 4, 3, weight_bits=2, act_bits=2)
    >>> conv(torch.randn(1, 8, 5, 5)).shape, conv.quantized_weight().unique().numel() <= 4 * 4
    (torch.Size([1, 4, 3, 3]), True)

    Args:
        args, kwargs: as for `nn.Conv2d`.
        weight_bits: 1 to 8.
        act_bits: 1 to 8, or None for an input in full precision.

    Raises:
        ValueError: a number of bits outside of that.

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
        own = ('_quantized', '_pending')
        conv.__dict__.update({key: value for key, value in self.__dict__.items() if key not in own})
        conv._buffers = {}
        weight = nn.Parameter(self.quantized_weight().clone(), requires_grad=self.weight.requires_grad)
        conv._parameters = dict(self._parameters, weight=weight)
        return conv

    def _start(self, weight_bits: int, act_bits: Optional[int]) -> None:
        check_bits('weight_bits', weight_bits)
        if act_bits is not None:
            check_bits('act_bits', act_bits)
        like = dict(device=self.weight.device, dtype=self.weight.dtype)
        area = self.kernel_size[0] * self.kernel_size[1]
        basis = weight_basis(weight_bits, area, self.out_channels).repeat(self.out_channels, 1)
        self.register_buffer('weight_basis', basis.to(**like))
        self.register_buffer('act_basis', None if act_bits is None else activation_basis(act_bits).to(**like))
        self._forget()
        _watch(self)

    def _forget(self) -> None:
        self._quantized: Optional[_Quantized] = None
        # name of a basis -> normal equations (B^T B [R, b, b], B^T x [R, b]), summed since the last step
        self._pending: Dict[str, Tuple[torch.Tensor, torch.Tensor]] = {}

    def _note(self, name: str, gram: torch.Tensor, moment: torch.Tensor) -> None:
        if name in self._pending:
            gram, moment = gram + self._pending[name][0], moment + self._pending[name][1]
        self._pending[name] = gram, moment

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
            return traced_activation(x, self.act_basis)
        with torch.no_grad():
            values, basis = rows_of(x, 1), wide(self.act_basis).unsqueeze(0)
            levels, _ = sorted_levels(basis, signed=False)
            positions = nearest(values, levels)
            quantized = shaped_as(look_up(levels, positions), x)
            if self._learns():
                self._note('act_basis', *normal_equations(values, basis, False, positions))
        if not (torch.is_grad_enabled() and x.requires_grad):
            return quantized
        return ClippedStraightThrough.apply(x, quantized, levels[0, -1])

    @torch.jit.unused
    def quantized_weight(self) -> torch.Tensor:
        """The weights [out, in / groups, kh, kw] that the convolution computes with; no gradient goes through it."""
        if torch.compiler.is_compiling():  # a compiled graph makes them itself
            return self._quantize(self._learns())
        if self._quantized is None or not self._quantized.of(self.weight, self.weight_basis):
            with torch.inference_mode(False), untraced():
                weight = self._quantize(self._learns())
            sources = self.weight, self.weight_basis
            self._quantized = _Quantized(sources, tuple(map(_version, sources)), weight)
        return self._quantized.weight

    @torch.no_grad()
    def _quantize(self, learn: bool) -> torch.Tensor:
        rows, basis = rows_of(self.weight, self.out_channels), wide(self.weight_basis)
        levels, _ = sorted_levels(basis, signed=True)
        positions = nearest(rows, levels)
        if learn:
            self._note('weight_basis', *normal_equations(rows, basis, True, positions))
        return shaped_as(look_up(levels, positions), self.weight)

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode, and have the weights quantised anew: some writes leave no trace (`p.data.copy_()`)."""
        self._quantized = None
        return super().train(mode)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._forget()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: Dict[str, Any], prefix: str, *args: Any) -> None:
        """Load as torch does; to the weights of a plain convolution a basis is fitted, the input's starts anew."""
        weight = state_dict.get(f'{prefix}weight')
        plain = f'{prefix}weight_basis' not in state_dict and weight is not None and weight.shape == self.weight.shape
        if plain:
            with torch.no_grad():
                rows = wide(weight).reshape(self.out_channels, -1)
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
        return {key: value for key, value in self.__dict__.items() if key not in ('_quantized', '_pending')}

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        self._forget()
        _watch(self)

    def extra_repr(self) -> str:
        inputs = '' if self.act_basis is None else f', act_bits={len(self.act_basis)}'
        return f'{super().extra_repr()}, weight_bits={self.weight_basis.shape[1]}{inputs}'


def _watch(layer: LQConv2d) -> None:
    """Have optimizers move the bases of `layer` with its weights from now on."""
    _LAYERS.add(layer)
    _install_hook()


@cache
def _install_hook() -> None:
    """Register the hook, once per process, with the first quantised layer; it is inert for all other parameters."""
    register_optimizer_step_post_hook(_after_step)


@torch.no_grad()
def _after_step(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
    owners = {id(layer.weight): layer for layer in _LAYERS}
    # the optimizer's order is the same in all processes, and so are the layers with equations
    layers = [owners[id(p)] for group in optimizer.param_groups for p in group['params'] if id(p) in owners]
    _add_over_processes([tensor for layer in layers for pair in layer._pending.values() for tensor in pair])
    for layer in layers:
        layer._quantized = None  # fused optimizers write without raising a tensor's version
        for name, equations in layer._pending.items():
            basis = getattr(layer, name)
            rows = basis.view(-1, basis.shape[-1])
            rows.copy_(MOMENTUM * rows + (1 - MOMENTUM) * solve_basis(*equations, rows))
        layer._pending.clear()


def _add_over_processes(tensors: List[torch.Tensor]) -> None:
    if tensors and dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
        flat = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat)
        for tensor, part in zip(tensors, flat.split([tensor.numel() for tensor in tensors])):
            tensor.copy_(part.view_as(tensor))
