"""A repository of the hub, or a saved folder -> the network."""
from pathlib import Path
from typing import Any, Dict, Optional, Union

import timm
from torch import nn

from rs_timm.layers import is_switchable

from .errors import hub_errors
from .files import CONFIG, WEIGHTS, address, check_weights, read_config

__all__ = ['from_pretrained']


def from_pretrained(
        repo_id: str,
        revision: Optional[str] = None,
        *,
        token: Optional[str] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        force_download: bool = False,
        **kwargs: Any,
) -> nn.Module:
    """The network of a hub repository, or of a folder that `save_pretrained` wrote, with its weights.

    It is `timm.create_model('hf-hub:user/name', pretrained=True)`, and more: the downloaded file is compared with the
    hash that the hub gave, errors say what to do, and the ensemble weights `alpha` come back in
    `model.checkpoint_metadata`.

    >>> from_pretrained('user/rs_resnet18-pets').resolutions  # doctest: +SKIP
    (224, 192, 160, 128, 96)

    Args:
        repo_id: 'user/name', or a folder.
        revision: branch, tag or commit; None is the main branch.
        token: for a private repository; None takes HF_TOKEN, or that of `hf auth login`.
        cache_dir: where downloads are kept; None is the cache of huggingface_hub.
        force_download: load the files again, whatever the cache has.
        kwargs: passed to `timm.create_model`, for example `num_classes` to fine-tune.

    Raises:
        HubError: no such repository or revision, a token is needed, no connection, or a damaged download.
        ValueError: not a model of rs_timm.
    """
    local = Path(repo_id).is_dir()
    if local:
        files = {name: Path(repo_id, name) for name in (CONFIG, WEIGHTS)}
    else:
        files = _download(repo_id, revision, token=token, cache_dir=cache_dir, force_download=force_download)
    config = read_config(files[CONFIG], repo_id, local)
    check_weights(files[WEIGHTS], repo_id, local)
    model = timm.create_model(f'local-dir:{files[WEIGHTS].parent}', pretrained=True, **kwargs)
    if not is_switchable(model):
        raise ValueError(f"{repo_id} is a {config['architecture']}, no resolution-switchable network: "
                         f"rs_timm.switchable({address(repo_id, local)!r}, pretrained=True) makes it one.")
    if not local:
        model.derived_from = '@'.join(filter(None, (repo_id, revision)))  # type: ignore[assignment]
        model.pretrained_cfg.pop('file')  # type: ignore[operator]
        model.pretrained_cfg.update(source='hf-hub', hf_hub_id=model.derived_from)  # type: ignore[operator]
    return model


def _download(repo_id: str, revision: Optional[str], **kwargs: Any) -> Dict[str, Path]:
    from huggingface_hub import hf_hub_download

    from rs_timm import __version__

    files = {}
    for name in (CONFIG, WEIGHTS):
        with hub_errors(repo_id, revision, f'get {name} of'):
            files[name] = Path(hf_hub_download(
                repo_id, name, revision=revision, library_name='rs_timm', library_version=__version__, **kwargs))
        if name == CONFIG:
            read_config(files[name], repo_id, local=False)  # before a large download
    return files
