"""Files that are there as a whole or not at all, whatever happens while they are written. Needs no torch."""
import os
import shutil
from contextlib import contextmanager
from pathlib import Path
from tempfile import mkdtemp
from typing import Iterator, Union

__all__ = ['replacing', 'sync', 'write_bytes']

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


def sync(path: PathOrStr) -> None:
    """Wait until a file, or the names in a folder, have reached the disk."""
    if os.name != 'posix' and os.path.isdir(path):
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name == 'posix' else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
