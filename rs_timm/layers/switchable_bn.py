"""SwitchableBatchNorm2d: one ordinary BatchNorm per resolution behind one switch (Equation 3 of the paper)."""
import warnings
from collections import deque
from copy import deepcopy
from inspect import signature
from typing import Any, Dict, List, Mapping, Optional, Tuple

import torch
from timm.layers import register_notrace_module
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _global_forward_hooks, _global_forward_pre_hooks

from rs_timm.interpolation import BN_TENSORS, bracket, interpolate_bn

from ._state_dict import adapt_bn_keys
from .idle import install_step_hook, mark_idle, watch_idle
from .switch import ResolutionSelector

__all__ = ['SwitchableBatchNorm2d', 'switchable_layers']

_NODE_KEY = 'rs_timm.resolution'
_REASON = {} if 'reason' not in signature(torch.compiler.disable).parameters else dict(  # it came with torch 2.8
    reason='the BatchNorm set of a size that was not trained is made outside the graph, at the first use: '
           'set_resolution(model, size) makes it beforehand')


def _versions(bn: nn.Module) -> Tuple[Tuple[int, int], ...]:
    """A value that changes whenever a tensor of `bn` is written in place or replaced."""
    tensors = [getattr(bn, name) for name in BN_TENSORS]
    return tuple((id(t), 0 if t.is_inference() else t._version) for t in tensors if t is not None)


def _forward_resolution() -> Optional[int]:
    """The resolution that a checkpointed block had in its forward pass, while backward re-runs it.

    Every call notes its resolution on the autograd node of its output; the nearest note upstream of the node that
    triggered the re-run belongs to the same forward pass.
    """
    queue = deque([torch._C._current_autograd_node()])
    seen = set()
    while queue:
        node = queue.popleft()
        if node is None or node in seen:
            continue
        seen.add(node)
        if _NODE_KEY in node.metadata:
            return node.metadata[_NODE_KEY]
        queue.extend(parent for parent, _ in node.next_functions)
    return None


@register_notrace_module
class SwitchableBatchNorm2d(nn.ModuleDict):
    """BatchNorm with a private set of (gamma, beta, mean, variance) for each input resolution.

    The sets are ordinary modules (`BatchNorm2d`, timm's `BatchNormAct2d` with its activation, `SyncBatchNorm`), stored
    under their resolution: state dict keys read `bn1.224.weight`. Which one runs is decided by a `ResolutionSelector`
    that all layers of a network share.

    >>> bn = SwitchableBatchNorm2d({224: nn.BatchNorm2d(8), 160: nn.BatchNorm2d(8)})
    >>> bn.selector.pin(160)
    >>> bn(torch.randn(2, 8, 20, 20)).shape
    torch.Size([2, 8, 20, 20])

    Args:
        sets: resolution in pixels -> BatchNorm module with the same number of channels.
        selector: shared switch; None makes a new one for the resolutions of `sets`.

    Raises:
        ValueError: no sets, or a resolution that is no positive int; in training mode, at a forward with a resolution
            that has no set of its own.
        TypeError: a module that is no BatchNorm.

    Source: Section 3.1 and Equation 3; unseen resolutions: Section 4.3.
    """

    scripted_set: str

    def __init__(self, sets: Mapping[int, nn.Module], selector: Optional[ResolutionSelector] = None) -> None:
        super().__init__()
        self.selector = selector or ResolutionSelector(sets)
        for resolution in self.selector.resolutions:
            if not isinstance(sets[resolution], _BatchNorm):
                raise TypeError(f'set {resolution} is a {type(sets[resolution]).__name__}: only BatchNorm modules have '
                                'private sets.')
            self[str(resolution)] = sets[resolution]
        self.scripted_set = str(self.selector.resolutions[0])
        self._made: Dict[Tuple[int, str], Tuple[Any, nn.Module]] = {}
        install_step_hook()

    @torch.jit.ignore
    def set_for(self, resolution: int) -> nn.Module:
        """The BatchNorm for `resolution` in pixels: the private one, or one made from its neighbours and cached."""
        bn = self._modules.get(str(resolution))
        return self._made_set(resolution) if bn is None else bn

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """Call as torch does; in inference without hooks go straight to the set, which saves two calls a layer."""
        if type(x) is torch.Tensor and not (
                self.training or torch.is_grad_enabled() or torch._C._get_tracing_state()):
            selector = self.selector
            resolution = selector.pinned or selector.followed.resolution or selector.resolutions[0]
            bn = self._modules.get(str(resolution))
            if bn is not None and not (
                    bn._forward_hooks or bn._forward_pre_hooks or self._forward_hooks or self._forward_pre_hooks
                    or _global_forward_hooks or _global_forward_pre_hooks):
                return bn.forward(x)
        return super().__call__(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if torch.jit.is_scripting():
            for name, bn in self.items():
                if name == self.scripted_set:
                    x = bn(x)
        else:
            x = self._switch(x)
        return x

    @torch.jit.unused
    def _switch(self, x: torch.Tensor) -> torch.Tensor:
        selector = self.selector
        resolution = selector.pinned or selector.followed.resolution or selector.resolutions[0]
        if isinstance(x, torch.fx.Proxy):  # a graph of any tracer calls the layer as a whole, and so goes on switching
            return x.tracer.create_proxy('call_module', x.tracer.path_of_module(self), (x,), {})
        if not torch.compiler.is_compiling():
            if torch.jit.is_tracing():
                self._warn_frozen(resolution, 'torch.jit.trace')
            if torch.is_grad_enabled():
                return self._switch_with_grad(x, resolution)
        return self._set_in_use(resolution)(x)

    def _switch_with_grad(self, x: torch.Tensor, resolution: int) -> torch.Tensor:
        if torch._C._current_graph_task_id() != -1:
            resolution = _forward_resolution() or resolution
        bn = self._set_in_use(resolution)
        if self.training and len(self) > 1:
            x = watch_idle(x, self.selector, bn, self.items())
        x = bn(x)
        if x.grad_fn is not None:
            x.grad_fn.metadata[_NODE_KEY] = resolution
        return x

    def _set_in_use(self, resolution: int) -> nn.Module:
        bn = self._modules.get(str(resolution))
        if bn is not None:
            if self.training and bn.momentum is None and not torch.compiler.is_compiling():
                self.selector.remade = True
            return bn
        if self.training:
            raise ValueError(
                f'resolution {resolution} has no BatchNorm set of its own, and training needs one: use an input of '
                f'{self.selector.resolutions}, pin one with set_resolution(), or add_resolution(model, {resolution}).')
        return self._made_set(resolution)

    @torch.jit.ignore
    def _made_set(self, resolution: int) -> nn.Module:
        upper, lower, t = bracket(self.selector.resolutions, resolution)
        if upper == lower:
            return self._modules[str(upper)]
        key = resolution, self.selector.interpolation
        if torch.compiler.is_compiling():
            return self._made[key][1] if key in self._made else self._made_outside_the_graph(key)
        return self._made_afresh(key)

    def _made_afresh(self, key: Tuple[int, str]) -> nn.Module:
        upper, lower, _ = bracket(self.selector.resolutions, key[0])
        versions = _versions(self._modules[str(upper)]) + _versions(self._modules[str(lower)])
        if key not in self._made or self._made[key][0] != versions:
            self._make(key, versions)
        return self._made[key][1]

    _made_outside_the_graph = torch.compiler.disable(_made_afresh, **_REASON)

    def _make(self, key: Tuple[int, str], versions: Any) -> None:
        resolution, interpolation = key
        upper, lower, t = bracket(self.selector.resolutions, resolution)
        bn = _blend(self._modules[str(upper)], self._modules[str(lower)], t, interpolation)
        if key in self._made:  # renewed in place, since a compiled graph may hold it
            self._made[key][1].load_state_dict(bn.state_dict())
            bn = self._made[key][1]
        self._made[key] = versions, bn

    def train(self, mode: bool = True) -> nn.Module:
        """Set the mode; `eval()` also renews the interpolated sets: some writes leave no trace (`p.data.copy_()`)."""
        super().train(mode)
        if not mode:
            if self.selector.remade:
                self._warn_unfed()
            for key, (versions, _) in list(self._made.items()):
                self._make(key, versions)
        return self

    def _warn_unfed(self) -> None:
        self.selector.remade = False  # one warning, not one a layer
        unfed = [name for name, bn in self.items() if bn.num_batches_tracked is not None and not bn.num_batches_tracked]
        if unfed:
            warnings.warn(
                f'BatchNorm statistics were made anew (update_bn, stochastic weight averaging), and the sets for '
                f"{', '.join(unfed)} px got no picture: they have mean 0 and variance 1 now. Feed every size, or use "
                'rs_timm.recalibrate(model, images, prior_images=0).', stacklevel=3)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        self._made.clear()
        self.selector.prepared.clear()
        return super()._apply(fn, recurse)

    def _load_from_state_dict(
            self,
            state_dict: Dict[str, Any],
            prefix: str,
            metadata: Any,
            strict: bool,
            missing_keys: List[str],
            *args: Any,
    ) -> None:
        warning = adapt_bn_keys(state_dict, prefix, self.selector.resolutions)
        if warning and self.selector.warned.get('load') is not missing_keys:  # a list that all layers of a load share
            self.selector.warned['load'] = missing_keys
            warnings.warn(warning, stacklevel=2)
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing_keys, *args)

    def _replicate_for_data_parallel(self) -> nn.Module:
        replica = super()._replicate_for_data_parallel()
        replica._made = {}  # the cache holds tensors of the original's device
        if self.training:
            mark_idle(self.selector, self.items())
        return replica

    def __prepare_scriptable__(self) -> nn.Module:
        resolution = self.selector.current()
        upper, lower, _ = bracket(self.selector.resolutions, resolution)
        if upper != lower:
            raise ValueError(f'TorchScript holds the private sets {self.selector.resolutions} alone: set_resolution() '
                             f'to one of them, or script extract(model, {resolution}).')
        self.scripted_set = str(upper)
        self._warn_frozen(upper, 'torch.jit.script')
        return self

    def _warn_frozen(self, resolution: int, tracer: str) -> None:
        if self.selector.pinned is None and self.selector.warned.get('frozen') != (tracer, resolution):
            self.selector.warned['frozen'] = tracer, resolution
            warnings.warn(
                f'{tracer} keeps the BatchNorm sets for {resolution} px: the result does not follow its input. '
                'set_resolution(model, size) beforehand says that this is meant, and for which size.', stacklevel=2)

    def __getstate__(self) -> Dict[str, Any]:
        return dict(self.__dict__, _made={})

    def __setstate__(self, state: Dict[str, Any]) -> None:
        super().__setstate__(state)
        install_step_hook()

    def extra_repr(self) -> str:
        return f'resolutions={self.selector.resolutions}'


def _blend(upper: nn.Module, lower: nn.Module, t: float, mode: str) -> nn.Module:
    """A frozen BatchNorm between two sets, in eval mode."""
    first, second = (
        {name: tensor.detach() for name in BN_TENSORS if (tensor := getattr(bn, name, None)) is not None}
        for bn in (upper, lower))
    with torch.inference_mode(False), torch.no_grad():  # it outlives the inference mode in which it may be made
        state = interpolate_bn(first, second, t, mode, eps=upper.eps)
        bn = deepcopy(upper if t <= 0.5 else lower).eval().requires_grad_(False)
        for name, value in state.items():
            getattr(bn, name).copy_(value)
    return bn


def switchable_layers(model: nn.Module) -> List[SwitchableBatchNorm2d]:
    """Every switchable BatchNorm in `model`, in registration order."""
    return [m for m in model.modules() if isinstance(m, SwitchableBatchNorm2d)]
