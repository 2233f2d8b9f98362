"""Save, push and pull: a folder, or a repository of the Hugging Face hub, that timm itself can load.

config.json is written by timm. What it has no field for (the ensemble weights of training, what the weights were made
from) stands at its top level under 'rs_timm', where timm leaves it alone.
"""
import shutil
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional, Union
from uuid import uuid4

import timm
from torch import nn

from rs_timm.layers import is_switchable
from ._hub_errors import HubError, hub_errors
from ._saved import (
    CONFIG,
    WEIGHTS,
    check_restores,
    check_weights,
    read_config,
    restorable,
    write_config,
    write_weights,
)
from .card import CardData, model_card

__all__ = ['HubError', 'from_pretrained', 'push_to_hub', 'save_pretrained']

_CARD = 'README.md'


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

    `timm.create_model('local-dir:DIRECTORY', pretrained=True)` restores resolutions, interpolation, preprocessing, class
    names and weights. The folder appears when all is written and was read back; an earlier one stays until then.

    >>> import tempfile, timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48), num_classes=3)
    >>> folder = save_pretrained(model, Path(tempfile.mkdtemp()) / 'mine')
    >>> sorted(file.name for file in folder.iterdir())
    ['README.md', 'config.json', 'model.safetensors']
    >>> timm.create_model(f'local-dir:{folder}', pretrained=True).resolutions
    (64, 48)

    Args:
        model: a switchable network that timm made, or a wrapper of one (DDP, EMA, torch.compile).
        directory: is made, or replaced as a whole if it holds nothing but an earlier save.
        half: store the weights of convolutions and linear layers as float16; BatchNorms and biases stay as they are.
        model_config: as in timm's `save_for_hf`: `label_names`, `label_descriptions`, `pretrained_cfg` (entries to
            replace, such as `mean`), and anything else for the top level of config.json.
        model_args: constructor arguments that timm did not record.
        card: licence, description, measured results, recipe.
        keep_source: the weights are those that `model.pretrained_cfg` names, not trained since: keep its tag,
            description, origin and paper. Otherwise these are left out, since they may not hold; the licence is kept
            if the model was created with `pretrained=True`, and `card` can give all of them.

    Raises:
        ValueError: a network that is not switchable, was not made by timm, or that its config would not restore; a
            folder with other files in it.
        OSError: the disk's own; an earlier folder is then as it was.
    """
    directory = Path(directory).resolve()
    _check_replaceable(directory)
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = directory.with_name(f'.{directory.name}.{uuid4().hex[:8]}')
    temporary.mkdir()
    try:
        network = _write_model(model, temporary, half, model_config, model_args, card, keep_source)
        (temporary / _CARD).write_text(_card_text(network, card, directory.name), encoding='utf-8')
        _replace(temporary, directory)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return directory


def _check_replaceable(directory: Path) -> None:
    if not directory.exists():
        return
    if not directory.is_dir():
        raise ValueError(f'{directory} is a file: name a folder.')
    others = sorted({entry.name for entry in directory.iterdir()} - {WEIGHTS, CONFIG, _CARD})
    if others:
        raise ValueError(f"{directory} holds other files ({', '.join(others[:3])}{', ...' if others[3:] else ''}): name a "
                         'new folder, or one that save_pretrained wrote.')


def _write_model(
        model: nn.Module,
        folder: Path,
        half: bool,
        model_config: Optional[Dict[str, Any]],
        model_args: Optional[Dict[str, Any]],
        card: Optional[CardData],
        keep_source: bool,
) -> nn.Module:
    """Write config.json and model.safetensors, check that they restore `model`, and return what they describe."""
    claims = dict(license=card and card.license, description=card and card.description)
    network = restorable(model, keep_source, claims, (model_config or {}).get('pretrained_cfg', {}))
    write_config(network, folder, model_config or {}, model_args or {})
    saved = write_weights(network, folder, half)
    check_restores(network, folder, saved)
    return network


def _card_text(network: nn.Module, card: Optional[CardData], name: str, source: Optional[str] = None) -> str:
    data = card or CardData()
    cfg = network.pretrained_cfg
    data = replace(data, license=cfg.get('license'), description=cfg.get('description'))  # type: ignore[union-attr, operator]
    origin = (getattr(network, 'derived_from', None) or '').partition('@')[0]
    return model_card(network, data, name, source, base_model=origin if '/' in origin else None)


def _replace(new: Path, old: Path) -> None:
    """Put the folder `new` where `old` is; whatever happens, there is a complete one."""
    if not old.exists():
        new.rename(old)
        return
    aside = new.with_name(f'{new.name}.old')
    old.rename(aside)
    try:
        new.rename(old)
    except BaseException:
        aside.rename(old)
        raise
    shutil.rmtree(aside, ignore_errors=True)


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
    """Save the network, upload it to the hub in one commit, and return the address of the commit or pull request.

    Whoever has `import rs_timm` in the program then loads it with `timm.create_model('hf-hub:user/name',
    pretrained=True)`. A push that breaks off leaves the repository as it was.

    >>> push_to_hub(model, 'user/rs_resnet18-pets', card=CardData(license='mit'))  # doctest: +SKIP
    'https://huggingface.co/user/rs_resnet18-pets/commit/...'

    Args:
        model: as `save_pretrained`; so are half, model_config, model_args and keep_source.
        repo_id: 'user/name'; is created if it does not exist.
        token: with write access; None takes HF_TOKEN, or that of `hf auth login`.
        private: create a private repository; one that exists and is public is refused.
        revision: branch, created if there is none of that name; None is the main branch.
        commit_message: one line.
        create_pr: open a pull request instead of committing.
        card: None keeps a README.md that is there already; a given one replaces it.

    Raises:
        HubError: no token, no right to write, or a connection that broke; the old revision is then as it was.
        ValueError: as `save_pretrained`, or a name that no repository can have.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from rs_timm import __version__

    api = HfApi(token=token, library_name='rs_timm', library_version=__version__)
    with TemporaryDirectory() as folder:
        network = _write_model(model, Path(folder), half, model_config, model_args, card, keep_source)
        with hub_errors(repo_id, revision, 'push to'):
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(f'{repo_id} exists and is public: make it private on the hub first, or choose another '
                                 'name.')
            if revision and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if card is not None or not api.file_exists(repo_id, _CARD, revision=revision):
                text = _card_text(network, card, repo_id.split('/')[-1], f'hf-hub:{repo_id}')
                Path(folder, _CARD).write_text(text, encoding='utf-8')
            # not upload_folder: with hf_xet it makes several commits, and a break between them leaves half a model
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(file.name, file) for file in sorted(Path(folder).iterdir())],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
    return str(commit.pr_url or commit.commit_url)


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
    config = read_config(files[CONFIG], repo_id)
    check_weights(files[WEIGHTS], repo_id, local)
    model = timm.create_model(f'local-dir:{files[WEIGHTS].parent}', pretrained=True, **kwargs)
    if not is_switchable(model):
        raise ValueError(f"{repo_id} is a {config['architecture']}, no resolution-switchable network: "
                         f"rs_timm.switchable('hf-hub:{repo_id}', pretrained=True) makes it one.")
    metadata = config.get('rs_timm', {})
    if local:
        model.derived_from = metadata.get('derived_from', model.derived_from)
    else:
        model.derived_from = '@'.join(filter(None, (repo_id, revision)))  # type: ignore[assignment]
        model.pretrained_cfg.pop('file')  # type: ignore[operator]
        model.pretrained_cfg.update(source='hf-hub', hf_hub_id=model.derived_from)  # type: ignore[operator]
    if 'alpha' in metadata:  # JSON has no whole numbers as keys
        alpha = {int(resolution): weight for resolution, weight in metadata['alpha'].items()}
        model.checkpoint_metadata = {'alpha': alpha}  # type: ignore[assignment]
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
            read_config(files[name], repo_id)  # before a large download
    return files
