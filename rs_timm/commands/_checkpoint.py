"""Checkpoint files into switchable networks, with errors that name the file and say what was expected."""
import re
from typing import Any, Dict, Optional, Tuple

from torch import nn

from rs_timm.layers import SwitchableBatchNorm2d
from rs_timm.models import checkpoint_filter_fn, is_paper_layout
from rs_timm.tensor_files import check_values, read_state_dict

__all__ = ['PAPER_LAYOUT', 'StateDict', 'classes_in', 'layout_of', 'load_into', 'read_state_dict', 'resolutions_in']

StateDict = Dict[str, Any]

PAPER_LAYOUT = "the layout of the paper's code"


def layout_of(state_dict: StateDict, model: nn.Module) -> str:
    """In words: whose layout it is."""
    if is_paper_layout(state_dict):
        return PAPER_LAYOUT
    return "rs_timm's layout" if resolutions_in(state_dict, model) else 'a plain network; all sets start equal'


def resolutions_in(state_dict: StateDict, model: nn.Module) -> Optional[Tuple[int, ...]]:
    """The sizes that the checkpoint has sets for, if it is in rs_timm's layout, largest first."""
    state_dict = checkpoint_filter_fn(state_dict, model)
    layer = next(name for name, module in model.named_modules() if isinstance(module, SwitchableBatchNorm2d))
    matches = (re.fullmatch(rf'{re.escape(layer)}\.(\d+)\.running_mean', key) for key in state_dict)
    return tuple(sorted((int(match[1]) for match in matches if match), reverse=True)) or None


def classes_in(state_dict: StateDict, model: nn.Module) -> Optional[int]:
    """The number of classes of the checkpoint's head; None if it has none that is known."""
    classifier = (getattr(model, 'pretrained_cfg', None) or {}).get('classifier')
    weight = checkpoint_filter_fn(state_dict, model).get(f'{classifier}.weight')
    return None if weight is None else int(weight.shape[0])


def load_into(model: nn.Module, state_dict: StateDict, file: str) -> None:
    """Load strictly.

    Raises:
        ValueError: it is the checkpoint of another network; the first differences are named. Or a value is not finite.
    """
    check_values(state_dict, model, file)
    try:
        model.load_state_dict(state_dict)
    except RuntimeError as error:
        differences = ' '.join(str(error).partition(':')[2].split())[:300]
        name = (getattr(model, 'pretrained_cfg', None) or {}).get('architecture', type(model).__name__)
        raise ValueError(
            f'{file}: not a checkpoint of {name} with {getattr(model, "num_classes", "?")} classes: {differences} ... '
            "Expected a state dict of it, of its plain timm or torchvision network, or of the paper's code.") from error
