"""Repositories of the Hugging Face hub: a network -> one commit, and back; saved folders are read here too."""
import json
import re
from contextlib import suppress
from hashlib import sha1
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, List, Optional, Union

import timm
from huggingface_hub import CommitOperationAdd, HfApi, constants, hf_hub_download
from safetensors import SafetensorError, safe_open
from timm.models import is_model, model_entrypoint
from torch import nn

from rs_timm.atomic import recover_folder
from rs_timm.card import CardData
from rs_timm.hub_client import HubError, UnreachableError, hub_errors
from rs_timm.layers import is_switchable
from rs_timm.models import comparing_digests, file_sha256, read_bytes, read_config

from .saving import CARD, CONFIG, WEIGHTS, card_text, write_model

__all__ = ['HubError', 'from_pretrained', 'push_to_hub']


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
        packed: bool = False,
        model_config: Optional[Dict[str, Any]] = None,
        model_args: Optional[Dict[str, Any]] = None,
        card: Optional[CardData] = None,
        keep_source: bool = False,
) -> str:
    """Save the network, upload it to the hub in one commit, and return the address of the commit or pull request.

    Whoever has `import rs_timm` in the program then loads it with `timm.create_model('hf-hub:user/name',
    pretrained=True)`. A push that breaks off leaves the repository as it was; one whose answer alone was lost is found
    on the hub. A hub that is silent for a minute counts as lost.

    >>> push_to_hub(model, 'user/rs_resnet18-pets', card=CardData(license='mit'))  # doctest: +SKIP
    'https://huggingface.co/user/rs_resnet18-pets/commit/...'

    Args:
        model: as `save_pretrained`; so are half, packed, model_config, model_args and keep_source.
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
    from rs_timm import __version__

    api = HfApi(token=token, library_name='rs_timm', library_version=__version__)
    remedy = 'A push is one commit, made whole or not at all' + (
        f': see {constants.ENDPOINT}/{repo_id}/discussions before you repeat it.' if create_pr else '.')
    with TemporaryDirectory() as folder:
        network = write_model(model, Path(folder), half, packed, model_config, model_args, card, keep_source)
        with hub_errors(repo_id, revision, 'push to', remedy):
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(f'{repo_id} exists and is public: make it private on the hub first, or choose another '
                                 'name.')
            if revision and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if card is not None or not api.file_exists(repo_id, CARD, revision=revision):
                text = card_text(network, card, repo_id.split('/')[-1], f'hf-hub:{repo_id}')
                (Path(folder) / CARD).write_text(text, encoding='utf-8')
        files = sorted(Path(folder).iterdir())
        try:
            with hub_errors(repo_id, revision, 'push to', remedy):
                # not upload_folder: with hf_xet it makes several commits, and a break between leaves half a model
                commit = api.create_commit(
                    repo_id,
                    [CommitOperationAdd(file.name, file) for file in files],
                    commit_message=commit_message,
                    revision=revision,
                    create_pr=create_pr,
                )
        except UnreachableError:
            address = None if create_pr else _commit_with(files, api, repo_id, revision)
            if address is None:
                raise
            return address
    return str(commit.pr_url or commit.commit_url)


def _commit_with(files: List[Path], api: HfApi, repo_id: str, revision: Optional[str]) -> Optional[str]:
    """The address of the newest commit if it holds exactly these files: the commit was made, its answer was lost."""
    with suppress(HubError), hub_errors(repo_id, revision, 'look at'):
        info = api.model_info(repo_id, revision=revision, files_metadata=True)
        hashes = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in info.siblings or ()}
        for file in files:
            git = sha1(b'blob %d\0' % file.stat().st_size + file.read_bytes()).hexdigest()
            if hashes.get(file.name) not in (git, file_sha256(file)):
                return None
        return f'{constants.ENDPOINT}/{repo_id}/commit/{info.sha}'
    return None


def from_pretrained(
        repo_id: str,
        revision: Optional[str] = None,
        *,
        token: Optional[str] = None,
        cache_dir: Optional[Union[str, Path]] = None,
        force_download: bool = False,
        check_digest: bool = True,
        **kwargs: Any,
) -> nn.Module:
    """The network of a hub repository, or of a folder that `save_pretrained` wrote, with its weights.

    It is `timm.create_model('hf-hub:user/name', pretrained=True)`, and more: a network in the cache is found without a
    connection, the downloaded file is compared with the hash that the hub gave, and errors say what to do.

    >>> from_pretrained('user/rs_resnet18-pets').resolutions  # doctest: +SKIP
    (224, 192, 160, 128, 96)

    Args:
        repo_id: 'user/name', or a folder.
        revision: branch, tag or commit; None is the main branch.
        token: for a private repository; None takes HF_TOKEN, or that of `hf auth login`.
        cache_dir: where downloads are kept; None is the cache of huggingface_hub.
        force_download: load the files again, whatever the cache has.
        check_digest: compare the tensors with the digest in config.json; False saves the time for huge files.
        kwargs: passed to `timm.create_model`, for example `num_classes` to fine-tune.

    Raises:
        HubError: no such repository or revision, a token is needed, no connection, or a damaged download.
        ValueError: not a model of rs_timm, an entry of its config.json that may not be there, or tensors that are not
            those that were saved.
    """
    from rs_timm import __version__

    recover_folder(repo_id)
    local = Path(repo_id).is_dir()

    def file(name: str) -> Path:
        if local:
            return Path(repo_id, name)
        with hub_errors(repo_id, revision, f'get {name} of'):
            return Path(hf_hub_download(
                repo_id, name, revision=revision, token=token, cache_dir=cache_dir, force_download=force_download,
                library_name='rs_timm', library_version=__version__))

    architecture = _check_config(file(CONFIG), repo_id, local)  # before a large download
    weights = file(WEIGHTS)
    _check_weights(weights, repo_id, local)
    try:
        with comparing_digests(check_digest):
            model = timm.create_model(f'local-dir:{weights.parent}', pretrained=True, **kwargs)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if kwargs or repo_id in str(error):
            raise
        reason = (str(error).strip() or 'no message').splitlines()[0]
        raise ValueError(f'{repo_id}: its config.json builds no network ({type(error).__name__}: {reason}).') from error
    if not is_switchable(model):
        raise ValueError(f"{repo_id} is a {architecture}, no resolution-switchable network: "
                         f"rs_timm.switchable({_address(repo_id, local)!r}, pretrained=True) makes it one.")
    if not local:
        model.derived_from = '@'.join(filter(None, (repo_id, revision)))  # type: ignore[assignment]
        model.pretrained_cfg.pop('file')  # type: ignore[operator]
        model.pretrained_cfg.update(source='hf-hub', hf_hub_id=model.derived_from)  # type: ignore[operator]
    return model


def _address(repo_id: str, local: bool) -> str:
    """The name of a repository of the hub, or of a folder, for `timm.create_model`."""
    return f"{'local-dir' if local else 'hf-hub'}:{repo_id}"


def _check_config(path: Path, repo_id: str, local: bool) -> str:
    """Return the architecture that config.json names, or raise ValueError for what it may not say."""
    try:
        architecture = json.loads(read_bytes(path, repo_id))['architecture']
    except (KeyError, TypeError, RecursionError, json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f'{path} of {repo_id} is no config.json of timm ({type(error).__name__}: {error}).') from error
    if not (isinstance(architecture, str) and is_model(architecture)):
        raise ValueError(f'{repo_id} is a {architecture!r}, which neither rs_timm nor timm {timm.__version__} knows: '
                         'update them, or import the package that registers it.')
    if model_entrypoint(architecture).__module__.startswith('timm.'):
        raise ValueError(f'{repo_id} is a plain {architecture} of timm, no model of rs_timm: '
                         f"rs_timm.switchable({_address(repo_id, local)!r}, pretrained=True) makes it switchable.")
    read_config(path, repo_id)
    return architecture


def _check_weights(path: Path, repo_id: str, local: bool) -> None:
    """Raise HubError unless the file is whole, and is the one that the hub announced."""
    problem = None
    try:
        if not path.is_file():
            raise ValueError(f'{path}: no such file; expected a folder that rs_timm.save_pretrained wrote.')
        with safe_open(path, framework='pt') as weights:
            weights.keys()
    except SafetensorError as error:
        problem = f'{error}'
    blob = path.resolve()  # the cache names a file by the hash that the hub gave
    if problem is None and not local and re.fullmatch(r'[0-9a-f]{64}', blob.name):
        found = file_sha256(blob)
        problem = f'its sha256 is {found}, the hub announced {blob.name}' if found != blob.name else None
    if problem:
        remedy = 'save it again' if local else (
            f'delete {blob} or call rs_timm.from_pretrained({repo_id!r}, force_download=True) to load it again')
        raise HubError(f'{WEIGHTS} of {repo_id} is damaged ({problem}): {remedy}.')
