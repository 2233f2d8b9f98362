"""A network -> a repository of the hub, in one commit."""
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Optional

from torch import nn

from rs_timm.card import CardData

from .errors import hub_errors
from .files import CARD
from .save import card_text, storage_of, write_model

__all__ = ['push_to_hub']


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
    pretrained=True)`. A push that breaks off leaves the repository as it was.

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
    from huggingface_hub import CommitOperationAdd, HfApi

    from rs_timm import __version__

    api = HfApi(token=token, library_name='rs_timm', library_version=__version__)
    with TemporaryDirectory() as folder:
        storage = storage_of(half, packed)
        network = write_model(model, Path(folder), storage, model_config, model_args, card, keep_source)
        with hub_errors(repo_id, revision, 'push to', 'A push is one commit, made whole or not at all.'):
            repo_id = api.create_repo(repo_id, private=private or None, exist_ok=True).repo_id
            if private and not api.model_info(repo_id).private:
                raise ValueError(f'{repo_id} exists and is public: make it private on the hub first, or choose another '
                                 'name.')
            if revision and not create_pr:
                api.create_branch(repo_id, branch=revision, exist_ok=True)
            if card is not None or not api.file_exists(repo_id, CARD, revision=revision):
                _write_card(network, Path(folder), repo_id, card)
            # not upload_folder: with hf_xet it makes several commits, and a break between them leaves half a model
            commit = api.create_commit(
                repo_id,
                [CommitOperationAdd(file.name, file) for file in sorted(Path(folder).iterdir())],
                commit_message=commit_message,
                revision=revision,
                create_pr=create_pr,
            )
    return str(commit.pr_url or commit.commit_url)


def _write_card(network: nn.Module, folder: Path, repo_id: str, card: Optional[CardData]) -> None:
    text = card_text(network, card, repo_id.split('/')[-1], f'hf-hub:{repo_id}')
    (folder / CARD).write_text(text, encoding='utf-8')
