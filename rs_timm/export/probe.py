"""One pass of a plain network, to see what it gives and what its BatchNorms take."""
from dataclasses import dataclass
from functools import partial
from typing import Any, Dict, Iterable, Mapping

import torch
from torch import nn

__all__ = ['Probe', 'probe']


@dataclass(frozen=True)
class Probe:
    """What was seen.

    Attributes:
        outputs: name -> value; 'logits' where there is but one.
        ranks: BatchNorm -> number of axes of what it normalises.
    """

    outputs: Dict[str, torch.Tensor]
    ranks: Dict[str, int]


@torch.no_grad()
def probe(plain: nn.Module, example: torch.Tensor, layers: Iterable[str] = ()) -> Probe:
    """Run `plain` on images [N, C, H, W], and look at the BatchNorms `layers`.

    Raises:
        ValueError: its outputs are not tensors.
    """
    ranks: Dict[str, int] = {}
    hooks = [plain.get_submodule(name).register_forward_pre_hook(partial(_note, ranks, name)) for name in layers]
    try:
        outputs = plain(example)
    finally:
        for hook in hooks:
            hook.remove()
    return Probe(_named(outputs, type(plain).__name__), ranks)


def _note(ranks: Dict[str, int], name: str, module: nn.Module, inputs: Any) -> None:
    ranks[name] = inputs[0].ndim


def _named(outputs: Any, kind: str) -> Dict[str, torch.Tensor]:
    if isinstance(outputs, torch.Tensor):
        return {'logits': outputs}
    if not isinstance(outputs, Mapping):
        outputs = {f'features_{index}': value for index, value in enumerate(outputs)}
    for name, value in outputs.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f'{kind} gives a {type(value).__name__} as its output {name}: an exported network gives a '
                             'tensor, or a flat list or dictionary of tensors.')
    return {str(name): value for name, value in outputs.items()}
