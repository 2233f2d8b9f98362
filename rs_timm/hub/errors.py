"""What goes wrong between here and the hub, in words that say what to do."""
from contextlib import contextmanager
from typing import Iterator, Optional

__all__ = ['HubError', 'hub_errors']

_TOKEN = 'log in with `hf auth login`, set HF_TOKEN, or pass token='


class HubError(OSError):
    """The hub refused, was not reached, or what came from it is not what it should be."""


@contextmanager
def hub_errors(repo_id: str, revision: Optional[str], action: str, remedy: str = '') -> Iterator[None]:
    """Turn what the client raises, which is as many kinds as it has had HTTP libraries, into HubError."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise  # a name that no repository can have
        raise HubError(f'cannot {action} {repo_id}: {_reason(error, repo_id, revision)}. {remedy}'.rstrip()) from error


def _reason(error: Exception, repo_id: str, revision: Optional[str]) -> str:
    from huggingface_hub import constants, errors

    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, errors.GatedRepoError):
        return f'access is granted by its owners: ask at {constants.ENDPOINT}/{repo_id}, then {_TOKEN}'
    if isinstance(error, errors.RevisionNotFoundError):
        return f'it has no branch, tag or commit {revision!r}'
    if isinstance(error, errors.LocalEntryNotFoundError):
        return f'{constants.ENDPOINT} was not reached, and the file is not in the cache'
    if isinstance(error, errors.EntryNotFoundError):
        return 'the repository has no such file; rs_timm reads config.json and model.safetensors'
    if status == 403:
        return f'the token has no right to do this; one with write access is needed: {_TOKEN}'
    if isinstance(error, errors.RepositoryNotFoundError):
        return f'there is no such repository, or it is private and the token is missing or not its owner\'s: {_TOKEN}'
    if status == 401:
        return f'the token is missing or not valid: {_TOKEN}'
    text = str(error).strip()
    return f"{type(error).__name__}{': ' + text.splitlines()[0].rstrip('.') if text else ''}"
