"""Files and folders that are there as a whole or not at all, whatever happens while they are written; without torch."""
import ctypes
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Any, Iterator, Union

__all__ = ['recover_folder', 'replacing', 'replacing_folder', 'sync', 'write_bytes']

PathOrStr = Union[str, 'os.PathLike[str]']


@contextmanager
def replacing(path: PathOrStr) -> Iterator[Path]:
    """Lend a path of the same name in a new folder beside `path`; what is there at the end takes the place of `path`.

    The file reaches the disk before it takes its name, in one step, and the name reaches it after: a process that is
    killed on the way leaves the old file, so does an error, and two writers never see each other's work.

    >>> file = Path(mkdtemp()) / 'answer.txt'
    >>> with replacing(file) as new:
    ...     _ = new.write_text('42')
    >>> file.read_text()
    '42'

    Args:
        path: a file, in a folder that exists. A link is followed, so that the file it names is replaced.

    Raises:
        OSError: the disk's own, such as a full one; the old file is as it was.
    """
    path = Path(os.path.realpath(path))
    folder = Path(mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        new = folder / path.name
        yield new
        if path.exists():
            shutil.copymode(path, new)
        sync(new)
        os.replace(new, path)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    sync(path.parent)


def write_bytes(path: PathOrStr, content: Union[bytes, memoryview]) -> None:
    """Replace the file at `path` by one with `content`, or leave it as it was; see `replacing`."""
    with replacing(path) as new:
        new.write_bytes(content)


@contextmanager
def replacing_folder(path: PathOrStr) -> Iterator[Path]:
    """Lend an empty folder; with what it holds at the end, it takes the place of the folder `path` as a whole.

    All of it reaches the disk before it takes the name. Where the system can exchange two names (Linux, macOS), a
    process that is killed on the way leaves the old folder or the new one under it. Elsewhere it may leave the old one
    beside it, and `recover_folder`, which is called here first and by whoever reads such folders, gives the name back.

    >>> folder = Path(mkdtemp()) / 'answers'
    >>> for answer in ('41', '42'):
    ...     with replacing_folder(folder) as new:
    ...         _ = (new / 'answer.txt').write_text(answer)
    >>> (folder / 'answer.txt').read_text(), len(list(folder.parent.iterdir()))
    ('42', 1)

    Args:
        path: a folder, in one that exists; all that it holds goes. A link is followed.

    Raises:
        OSError: the disk's own, such as a full one; the old folder is as it was.
    """
    path = Path(os.path.realpath(path))
    recover_folder(path)
    holder = Path(mkdtemp(prefix=f'.{path.name}.', dir=path.parent))
    try:
        new = holder / path.name
        new.mkdir()  # unlike its holder, with the access rights of any new folder
        yield new
        for entry in (*new.rglob('*'), new):
            sync(entry)
        if not path.exists():
            os.rename(new, path)
        elif not _exchange(new, path):
            _replace_in_two_steps(new, path)
    finally:
        shutil.rmtree(holder, ignore_errors=True)
    sync(path.parent)


def recover_folder(path: PathOrStr) -> None:
    """Give a folder its name back if `replacing_folder` was killed between taking it and giving it to the new one."""
    path = Path(os.path.realpath(path))
    if _aside(path).is_dir() and not path.exists():
        os.rename(_aside(path), path)


def _aside(path: Path) -> Path:
    return path.with_name(f'.{path.name}.replaced')


def _exchange(first: Path, second: Path) -> bool:
    """Exchange two names in one step; False where system or file system cannot."""
    libc: Any = ctypes.CDLL(None, use_errno=True) if os.name == 'posix' else None
    names = os.fsencode(first), os.fsencode(second)
    if hasattr(libc, 'renameat2'):
        here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
        return libc.renameat2(here, names[0], here, names[1], exchange) == 0
    return hasattr(libc, 'renamex_np') and libc.renamex_np(*names, 2) == 0  # RENAME_SWAP


def _replace_in_two_steps(new: Path, path: Path) -> None:
    shutil.rmtree(_aside(path), ignore_errors=True)
    os.rename(path, _aside(path))
    try:
        os.rename(new, path)
    except BaseException:
        os.rename(_aside(path), path)
        raise
    shutil.rmtree(_aside(path), ignore_errors=True)


def sync(path: PathOrStr) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if os.name != 'posix' and os.path.isdir(path):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
