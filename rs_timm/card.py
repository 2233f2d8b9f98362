"""The model card: README.md of a saved or pushed network, generated from what was measured."""
from dataclasses import dataclass, field
from typing import Mapping, Optional

from torch import nn

__all__ = ['CardData', 'model_card']


@dataclass(frozen=True)
class CardData:
    """What a model card says beyond what the network itself tells; what is left out is printed as not known.

    Args:
        license: identifier of the hub ('apache-2.0', 'mit'); never guessed.
        description: one paragraph: what the weights are and how they were made.
        results: resolution in pixels -> {'top1': percent, 'top5': percent}, as measured.
        dataset: what `results` were measured on, for example 'Imagenette, validation split, 3925 pictures'.
        recipe: how the weights were trained (Markdown).
    """

    license: Optional[str] = None
    description: Optional[str] = None
    results: Mapping[int, Mapping[str, float]] = field(default_factory=dict)
    dataset: Optional[str] = None
    recipe: Optional[str] = None


def model_card(model: nn.Module, data: CardData = CardData(), name: str = 'model', source: Optional[str] = None) -> str:
    """The text of README.md."""
    raise NotImplementedError
