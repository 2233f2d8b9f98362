"""The paper's training step, written down as the paper describes it: the baseline of `benchmarks.training_cost`.

Each layer runs at every resolution before the next one does (Section 3.1, Figure 2), so that the network works on lists
of activations; float32, NCHW; one divergence for each pair of teacher and student (Equation 10); SGD with momentum.
"""
from copy import deepcopy
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm


class Activations(List[torch.Tensor]):
    """What a layer makes of the pictures at each resolution, largest first."""


class _Tracer(fx.Tracer):
    def is_leaf_module(self, m: nn.Module, qualified_name: str) -> bool:
        return isinstance(m, _BatchNorm) or super().is_leaf_module(m, qualified_name)


class LayerByLayer(fx.Interpreter):
    """Runs a network layer by layer on lists of activations; each BatchNorm becomes a list of them.

    Args:
        network: a plain BatchNorm network that torch.fx can trace; it is copied.
        count: how many resolutions.
    """

    def __init__(self, network: nn.Module, count: int) -> None:
        network = deepcopy(network)
        graph = _Tracer().trace(network)
        for name, module in list(network.named_modules()):
            if isinstance(module, _BatchNorm):
                network.set_submodule(name, nn.ModuleList(deepcopy(module) for _ in range(count)))
        super().__init__(fx.GraphModule(network, graph))
        self.count = count

    def __call__(self, images: Sequence[torch.Tensor]) -> Activations:
        """[N, 3, r, r] for each resolution -> logits [N, C] for each."""
        return self.run(Activations(images))

    def call_module(self, target: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Activations:
        module = self.fetch_attr(target)
        private = module if isinstance(module, nn.ModuleList) else [module] * self.count
        return Activations(run(*a, **k) for run, (a, k) in zip(private, self._each(args, kwargs)))

    def call_function(self, target: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Activations:
        return Activations(target(*a, **k) for a, k in self._each(args, kwargs))

    def call_method(self, target: Any, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Activations:
        return Activations(getattr(a[0], target)(*a[1:], **k) for a, k in self._each(args, kwargs))

    def _each(self, args: Tuple[Any, ...], kwargs: Dict[str, Any]) -> Iterator[Tuple[Tuple[Any, ...], Dict[str, Any]]]:
        for index in range(self.count):
            yield (tuple(a[index] if isinstance(a, Activations) else a for a in args),
                   {k: v[index] if isinstance(v, Activations) else v for k, v in kwargs.items()})


def paper_loss(logits: Sequence[torch.Tensor], target: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
    """Equations 2, 5, 6, 9 and 10, term by term."""
    weights = alpha.softmax(dim=0)
    ensemble = sum(w * z.detach() for w, z in zip(weights, logits))
    assert isinstance(ensemble, torch.Tensor)
    loss = F.cross_entropy(ensemble, target)
    for z in logits:
        loss = loss + F.cross_entropy(z, target)
    known = [ensemble, *logits]  # index 0 is the ensemble, as in the paper
    pairs = [(t, s) for t in range(len(logits)) for s in range(t + 1, len(known))]
    for t, s in pairs:
        teacher = known[t].detach().softmax(dim=1)
        divergence = F.kl_div(known[s].log_softmax(dim=1), teacher, reduction='batchmean')
        loss = loss + 2 / (len(logits) + 1) * divergence
    return loss


class PaperStep:
    """Forward, loss, backward, SGD (Section 4.1).

    Args:
        network: a plain BatchNorm network.
        count: how many resolutions.
        optimizer: makes one from parameters; by default torch's SGD with the paper's settings.
    """

    def __init__(
            self,
            network: nn.Module,
            count: int,
            optimizer: Optional[Callable[[List[nn.Parameter]], torch.optim.Optimizer]] = None,
    ) -> None:
        self.network = LayerByLayer(network.train(), count)
        self.alpha = nn.Parameter(torch.zeros(count))
        make = optimizer or (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, weight_decay=1e-4))
        self.optimizer = make([*self.network.module.parameters(), self.alpha])

    def __call__(self, images: Mapping[int, torch.Tensor], target: torch.Tensor) -> float:
        self.optimizer.zero_grad()
        logits = self.network([images[r] for r in sorted(images, reverse=True)])
        loss = paper_loss(logits, target, self.alpha)
        loss.backward()
        self.optimizer.step()
        return loss.item()
