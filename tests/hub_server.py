"""A hub on 127.0.0.1: as much of the Hugging Face hub's protocol as its client needs to create, push and pull.

A commit is one assignment at the end of its request, as on the real hub; a broken request leaves nothing behind but
unused blobs. `fail` breaks requests on purpose.

>>> with HubServer() as hub:
...     hub.url.startswith('http://127.0.0.1:')
True
"""
import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

LFS_SUFFIXES = ('.safetensors', '.bin')


@dataclass(frozen=True)
class Blob:
    """A file of a commit; large ones go through LFS, and are known by sha256 instead of git's sha1."""

    content: bytes
    lfs: bool

    @property
    def oid(self) -> str:
        if self.lfs:
            return hashlib.sha256(self.content).hexdigest()
        return hashlib.sha1(b'blob %d\0' % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    sha: str
    message: str
    files: Dict[str, Blob]


@dataclass
class Repo:
    private: bool = False
    refs: Dict[str, Commit] = field(default_factory=dict)
    history: List[Commit] = field(default_factory=list)

    def commit(self, ref: str, message: str, files: Dict[str, Blob]) -> Commit:
        name = f'{len(self.history)} {message} {sorted((path, blob.oid) for path, blob in files.items())}'
        commit = Commit(hashlib.sha1(name.encode()).hexdigest(), message, files)
        self.history.append(commit)
        self.refs[ref] = commit
        return commit

    def find(self, revision: str) -> Optional[Commit]:
        return self.refs.get(revision) or next((c for c in self.history if c.sha == revision), None)


class HubServer:
    """The server and its state; tests read and damage it.

    Attributes:
        tokens: token -> 'write' or 'read'. Writing and private repositories need one.
        repos: 'user/name' -> Repo.
        fail: steps ('preupload', 'lfs-put', 'commit', ...: see _ROUTES) whose connection is cut midway; 'commit-answer'
            cuts it when the commit is made.
        silent: steps whose request is read and never answered, until the server ends.
        damage: applied to the content of LFS downloads, hashes and sizes left as they were.
        requests: 'METHOD /path' of everything that was asked.
    """

    def __init__(self) -> None:
        self.tokens = {'hf_writer': 'write', 'hf_reader': 'read'}
        self.repos: Dict[str, Repo] = {}
        self.blobs: Dict[str, bytes] = {}
        self.fail: set = set()
        self.silent: set = set()
        self.ended = threading.Event()
        self.damage: Callable[[bytes], bytes] = bytes
        self.requests: List[str] = []
        handler = type('Handler', (_Handler,), {'hub': self})
        # large files come from another origin, whose answers lack the hub's headers, as on the real hub
        self._servers = [ThreadingHTTPServer(('127.0.0.1', 0), handler) for _ in range(2)]
        self.url, self.cdn_url = (f'http://127.0.0.1:{server.server_port}' for server in self._servers)

    def __enter__(self) -> 'HubServer':
        for server in self._servers:
            threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.ended.set()
        for server in self._servers:
            server.shutdown()
            server.server_close()


class _Refused(Exception):
    def __init__(self, status: int, message: str, code: str = '') -> None:
        super().__init__(message)
        self.status, self.message, self.code = status, message, code


class _Cut(Exception):
    """The connection ends here, without an answer."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    hub: HubServer
    content: bytes

    def _handle(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f'{self.command} {path}')
        try:
            for method, pattern, step, answer in _ROUTES:
                match = re.fullmatch(pattern, path)
                if match and self.command in method.split():
                    self._read(step)
                    return answer(self, *match.groups())
            self._read('')
            raise _Refused(404, f'no such endpoint: {self.command} {path}')
        except _Refused as refusal:
            headers = {'X-Error-Message': refusal.message}
            if refusal.code:
                headers['X-Error-Code'] = refusal.code
            self._send(refusal.status, {'error': refusal.message}, headers)
        except (_Cut, ConnectionError):
            self.close_connection = True
            self.connection.close()

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _read(self, step: str) -> None:
        if step in self.hub.silent:
            self.hub.ended.wait()
            raise _Cut
        if step in self.hub.fail:
            self.rfile.read1(1 << 10)  # the first piece arrives, then the line goes dead
            raise _Cut
        if 'chunked' in self.headers.get('Transfer-Encoding', ''):
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            self.content = b''.join(pieces)
        else:
            self.content = self.rfile.read(int(self.headers.get('Content-Length', 0)))

    def _send(self, status: int, body: Any = b'', headers: Optional[Dict[str, str]] = None) -> None:
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers = {'Content-Length': str(len(content)), **(headers or {})}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != 'HEAD':
            self.wfile.write(content)

    def log_message(self, *args: Any) -> None:
        pass

    # who asks, and for what

    def _role(self) -> Optional[str]:
        header = self.headers.get('Authorization')
        if header is None:
            return None
        role = self.hub.tokens.get(header.removeprefix('Bearer '))
        if role is None:
            raise _Refused(401, 'Invalid credentials in Authorization header')
        return role

    def _need_write(self) -> None:
        role = self._role()
        if role is None:
            raise _Refused(401, 'Invalid username or password.')
        if role != 'write':
            raise _Refused(403, 'Forbidden: pass a token with write access')

    def _repo(self, repo_id: str) -> Repo:
        role = self._role()
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private and role is None:  # the real hub hides private ones in the same way
            raise _Refused(404 if role else 401, 'Repository not found', 'RepoNotFound')
        return repo

    def _commit(self, repo_id: str, revision: str) -> Tuple[Repo, Commit]:
        repo = self._repo(repo_id)
        commit = repo.find(revision)
        if commit is None:
            raise _Refused(404, f'Invalid rev id: {revision}', 'RevisionNotFound')
        return repo, commit

    # endpoints

    def _create_repo(self) -> None:
        self._need_write()
        asked = json.loads(self.content)
        repo_id = f"{asked.get('organization') or 'user'}/{asked['name']}"
        exists = repo_id in self.hub.repos
        if not exists:
            private = asked.get('visibility') == 'private' or bool(asked.get('private'))  # newer and older clients
            repo = self.hub.repos[repo_id] = Repo(private)
            repo.commit('main', 'initial commit', {'.gitattributes': Blob(b'*.safetensors filter=lfs\n', False)})
        self._send(409 if exists else 200, {'url': f'{self.hub.url}/{repo_id}'})

    def _create_branch(self, repo_id: str, branch: str) -> None:
        self._need_write()
        repo = self._repo(repo_id)
        if branch in repo.refs:
            raise _Refused(409, f'Reference already exists: refs/heads/{branch}')
        repo.refs[branch] = repo.refs['main']
        self._send(201)

    def _validate_yaml(self) -> None:
        text = json.loads(self.content)['content']
        front = re.match(r'---\n(.*?)\n---\n', text, re.DOTALL)
        if front is None or not isinstance(yaml.safe_load(front[1]), dict):
            return self._send(400, {'errors': [{'message': 'no YAML front matter'}], 'warnings': []})
        self._send(200, {'errors': [], 'warnings': []})

    def _preupload(self, repo_id: str, revision: str) -> None:
        self._need_write()
        _, commit = self._commit(repo_id, revision)
        self._send(200, {'files': [dict(
            path=file['path'],
            uploadMode='lfs' if file['path'].endswith(LFS_SUFFIXES) else 'regular',
            shouldIgnore=False,
            oid=commit.files[file['path']].oid if file['path'] in commit.files else None,
        ) for file in json.loads(self.content)['files']]})

    def _lfs_batch(self, repo_id: str) -> None:
        self._need_write()
        self._repo(repo_id)
        objects = []
        for asked in json.loads(self.content)['objects']:
            answer = dict(asked)
            if asked['oid'] not in self.hub.blobs:
                answer['actions'] = {'upload': {'href': f"{self.hub.cdn_url}/lfs-put/{asked['oid']}"}}
            objects.append(answer)
        self._send(200, {'transfer': 'basic', 'objects': objects})

    def _lfs_put(self, oid: str) -> None:
        if hashlib.sha256(self.content).hexdigest() != oid:
            raise _Refused(400, 'content does not match its sha256')
        self.hub.blobs[oid] = self.content
        self._send(200)

    def _post_commit(self, repo_id: str, revision: str) -> None:
        self._need_write()
        repo, parent = self._commit(repo_id, revision)
        files, message = dict(parent.files), ''
        for line in self.content.splitlines():
            entry = json.loads(line)
            key, value = entry['key'], entry['value']
            if key == 'header':
                message = value['summary']
            elif key == 'file':
                files[value['path']] = Blob(base64.b64decode(value['content']), False)
            elif key == 'lfsFile':
                if value['oid'] not in self.hub.blobs:
                    raise _Refused(400, f"LFS object {value['oid']} was never uploaded")
                files[value['path']] = Blob(self.hub.blobs[value['oid']], True)
            else:
                raise _Refused(400, f'unknown operation {key}')
        pull = 'create_pr' in parse_qs(urlsplit(self.path).query)
        ref = f'refs/pr/{len(repo.refs)}' if pull else revision
        commit = repo.commit(ref, message, files)
        if 'commit-answer' in self.hub.fail:
            raise _Cut
        url = f'{self.hub.url}/{repo_id}'
        answer = {'success': True, 'commitOid': commit.sha, 'commitUrl': f'{url}/commit/{commit.sha}'}
        if pull:
            answer['pullRequestUrl'] = f"{url}/discussions/{ref.split('/')[-1]}"
        self._send(200, answer)

    def _info(self, repo_id: str, revision: Optional[str]) -> None:
        repo, commit = self._commit(repo_id, revision or 'main')
        files = [dict(rfilename=path, size=len(blob.content), blobId=blob.oid, **(
            dict(lfs=dict(sha256=blob.oid, size=len(blob.content), pointerSize=0)) if blob.lfs else {}))
            for path, blob in commit.files.items()]
        self._send(200, dict(id=repo_id, sha=commit.sha, private=repo.private, tags=[], downloads=0, likes=0,
                             siblings=files))

    def _resolve(self, repo_id: str, revision: str, path: str) -> None:
        _, commit = self._commit(repo_id, revision)
        headers = {'X-Repo-Commit': commit.sha}
        blob = commit.files.get(path)
        if blob is None:
            raise _Refused(404, f'Entry not found: {path}', 'EntryNotFound')
        if not blob.lfs:
            return self._send(200, blob.content, {**headers, 'ETag': f'"{blob.oid}"'})
        self._send(302, headers={**headers, 'Location': f'{self.hub.cdn_url}/cdn/{blob.oid}',
                                 'X-Linked-ETag': f'"{blob.oid}"', 'X-Linked-Size': str(len(blob.content))})

    def _cdn(self, oid: str) -> None:
        content = self.hub.damage(self.hub.blobs[oid])
        self._send(200, content, {'ETag': f'"{oid}"'})


_REPO = r'([^/]+/[^/]+)'
_ROUTES = (  # methods, path, the step that `fail` names, answer
    ('POST', r'/api/repos/create', 'create', _Handler._create_repo),
    ('POST', r'/api/validate-yaml', 'yaml', _Handler._validate_yaml),
    ('POST', rf'/api/models/{_REPO}/branch/(.+)', 'branch', _Handler._create_branch),
    ('POST', rf'/api/models/{_REPO}/preupload/(.+)', 'preupload', _Handler._preupload),
    ('POST', rf'/api/models/{_REPO}/commit/(.+)', 'commit', _Handler._post_commit),
    ('GET', rf'/api/models/{_REPO}(?:/revision/(.+))?', 'info', _Handler._info),
    ('POST', rf'/{_REPO}\.git/info/lfs/objects/batch', 'lfs-batch', _Handler._lfs_batch),
    ('PUT', r'/lfs-put/(\w+)', 'lfs-put', _Handler._lfs_put),
    ('GET HEAD', r'/cdn/(\w+)', 'cdn', _Handler._cdn),
    ('GET HEAD', rf'/{_REPO}/resolve/([^/]+|refs/pr/\d+)/(.+)', 'resolve', _Handler._resolve),
)
