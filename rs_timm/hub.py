"""Save, push and pull: a folder, or a repository of the Hugging Face hub, that timm itself can load."""
from pathlib import Path
from typing import Any, Dict, Optional, Union

from torch import nn

from .card import CardData

__all__ = ['HubError', 'from_pretrained', 'push_to_hub', 'save_pretrained']


class HubError(OSError):
    """The hub refused, was not reached, or what came from it is not what it should be."""


def save_pretrained(
        model: nn.Module,
        directory: Union[str, Path],
        *,
        half: bool = False,
        model_config: Optional[Dict[str, Any]] = None,
        model_args: Optional[Dict[str, Any]] = None,
        card: Optional[CardData] = None,
        keep_source: bool = False,
) -> Path:
    """Write model.safetensors, config.json and README.md, and return the folder.

    `timm.create_model('local-dir:DIRECTORY', pretrained=True)` restores the network.

    Args:
        model: a switchable network, or a wrapper of one (DDP, EMA, torch.compile).
        directory: is made, or replaced as a whole if it holds nothing but an earlier save.
        half: store the weights of convolutions and linear layers as float16.
        model_config: as in timm's `save_for_hf`: `label_names`, `label_descriptions`, `pretrained_cfg` (entries to
            replace, such as `mean`), and anything else for the top level of config.json.
        model_args: constructor arguments that timm did not record.
        card: licence, description, measured results, recipe.
        keep_source: the weights are those that `model.pretrained_cfg` names (a conversion, without training since).

    Raises:
        ValueError: a network that is not switchable, or cannot be restored from a config.
    """
    raise NotImplementedError


def push_to_hub(
        model: nn.Module,
        repo_id: str,
        *,
        token: Optional[str] = None,
        private: bool = False,
        revision: Optional[str] = None,
        commit_message: str = 'Add model',
        create_pr: bool = False,
        half: bool = False,
        model_config: Optional[Dict[str, Any]] = None,
        model_args: Optional[Dict[str, Any]] = None,
        card: Optional[CardData] = None,
        keep_source: bool = False,
) -> str:
    """Save the network and upload it in one commit; return the address of the commit.

    Raises:
        HubError: no token, no right to write, or a connection that broke; the old revision is then as it was.
        ValueError: as `save_pretrained`.
    """
    raise NotImplementedError


def from_pretrained(
        repo_id: str,
        revision: Optional[str] = None,
        *,
        token: Optional[str] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        force_download: bool = False,
        **kwargs: Any,
) -> nn.Module:
    """The network of a hub repository (or of a folder that `save_pretrained` wrote), with its weights.

    Raises:
        HubError: no such repository, a token is needed, or a download that is damaged.
        ValueError: not a model of rs_timm.
    """
    raise NotImplementedError
