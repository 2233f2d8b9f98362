"""The Hugging Face hub's client with time limits, one try for each request, and errors that say what to do."""
from contextlib import contextmanager
from typing import Any, Dict, Iterator, Optional, Set

import huggingface_hub
from huggingface_hub import constants, errors

__all__ = ['HubError', 'UnreachableError', 'hub_errors', 'one_try']

CONNECT_SECONDS = 10
SILENT_SECONDS = 60  # of requests that set no limit themselves; the hub takes its time over a commit
_TOKEN = 'log in with `hf auth login`, set HF_TOKEN, or pass token='
_TRANSPORT = {'TransportError', 'ConnectionError', 'Timeout'}  # of httpx or requests, whichever the client uses


class HubError(OSError):
    """The hub refused, was not reached, or what came from it is not what it should be."""


class UnreachableError(HubError):
    """The hub was not reached, or did not answer in time."""


@contextmanager
def one_try() -> Iterator[None]:
    """Ask a host that was not reached, or that is silent, once and no more: the client asks six times, with pauses.

    A file that is in the cache is still found there. Requests that set no time limit get one.

    Raises:
        UnreachableError: in place of the client's second try; it names the cure.
    """
    session: Any = huggingface_hub.get_session()
    if 'send' in vars(session):  # within another one_try
        yield
        return
    send, timeout = session.send, getattr(session, 'timeout', None)
    lost: Dict[str, Exception] = {}  # host -> how it was lost
    asked: Set[str] = set()

    def send_once(request: Any, *args: Any, **kwargs: Any) -> Any:
        url = str(request.url)
        host = url.split('/')[2]
        if url in asked:
            raise UnreachableError(_unreachable(lost[host])) from lost[host]
        if host not in lost:
            try:
                return send(request, *args, **kwargs)
            except Exception as error:
                if not _is_transport(error):
                    raise
                lost[host] = error
        asked.add(url)
        if request.method != 'HEAD':
            raise UnreachableError(_unreachable(lost[host])) from lost[host]
        raise lost[host]  # as the client knows it: it looks into the cache then

    session.send = send_once
    session.timeout = (CONNECT_SECONDS, SILENT_SECONDS, SILENT_SECONDS, SILENT_SECONDS)  # connect, read, write, pool
    try:
        yield
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise UnreachableError(_unreachable(error)) from error
    except Exception as error:
        if _is_transport(error):
            raise UnreachableError(_unreachable(error)) from error
        raise
    finally:
        del session.send
        if timeout is not None:
            session.timeout = timeout


def _is_transport(error: Exception) -> bool:
    return not _TRANSPORT.isdisjoint(cls.__name__ for cls in type(error).__mro__)


def _unreachable(error: Exception) -> str:
    if constants.HF_HUB_OFFLINE:
        return 'HF_HUB_OFFLINE is set, and this needs the hub or a file that is not in the cache: unset it once'
    how = 'did not answer in time' if 'Timeout' in type(error).__name__ else 'was not reached'
    return (f'{constants.ENDPOINT} {how} ({type(error).__name__}): check the connection, HTTPS_PROXY and HF_ENDPOINT; '
            'folders, weights that ship with rs_timm and what the cache has work without')


@contextmanager
def hub_errors(repo_id: str, revision: Optional[str], action: str, remedy: str = '') -> Iterator[None]:
    """Turn what the client raises, which is as many kinds as it has had HTTP libraries, into HubError; in one try."""
    try:
        with one_try():
            yield
    except Exception as error:
        if isinstance(error, ValueError) and not isinstance(error, OSError):
            raise  # a name that no repository can have
        kind = UnreachableError if isinstance(error, UnreachableError) else HubError
        raise kind(f'cannot {action} {repo_id}: {_reason(error, repo_id, revision)}. {remedy}'.rstrip()) from error


def _reason(error: Exception, repo_id: str, revision: Optional[str]) -> str:
    status = getattr(getattr(error, 'response', None), 'status_code', None)
    if isinstance(error, UnreachableError):
        return str(error)
    if isinstance(error, errors.GatedRepoError):
        return f'access is granted by its owners: ask at {constants.ENDPOINT}/{repo_id}, then {_TOKEN}'
    if isinstance(error, errors.RevisionNotFoundError):
        return f'it has no branch, tag or commit {revision!r}'
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
