"""Pictures in files, folders and tar files as one list that any thread may read from, without torch and timm.

A webdataset shard is a tar file: its pictures are read, its labels and texts are passed over. Only headers are read to
list a tar file, so that a shard of gigabytes is listed in a moment.
"""
import os
import posixpath
import re
import tarfile
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from rs_timm.pictures import ImageError, reason

__all__ = ['ENDINGS', 'Collection', 'Place', 'holds_pictures', 'open_collection']

# those that every Pillow reads: a list of its own, so that all machines of a job see the same pictures
ENDINGS = ('.jpg', '.jpeg', '.jfif', '.png', '.webp', '.bmp', '.gif', '.tif', '.tiff', '.ppm', '.pgm', '.jp2')
_ARCHIVES = ('.tgz', '.tbz2', '.gz', '.bz2', '.xz', '.zst', '.zip', '.7z', '.rar')
_FOREIGN = '._'  # files that macOS lays beside those that it copies: named like pictures, and none


class Place(NamedTuple):
    """Where the bytes of a picture are: a whole file, or a piece of one."""

    path: str
    offset: int = 0
    size: Optional[int] = None


class Collection:
    """Named pictures, in a fixed order.

    Args:
        places: name -> where it is.
        folders: what the names are relative to; the same names below others are other pictures.
    """

    def __init__(self, places: Dict[str, Place], folders: Sequence[str]) -> None:
        self.names: List[str] = list(places)
        self.places = list(places.values())
        self.folders = tuple(folders)

    def read(self, position: int) -> bytes:
        """The file of a picture, from any thread. Raises ImageError if it cannot be read."""
        path, offset, size = self.places[position]
        try:
            with open(path, 'rb') as stream:
                if offset:
                    stream.seek(offset)
                return stream.read(-1 if size is None else size)
        except OSError as error:
            raise ImageError(f'{self.names[position]}: {reason(error)}') from error


def holds_pictures(path: Union[str, 'os.PathLike[str]']) -> bool:
    """Whether it is a folder or a tar file, not a picture itself."""
    return os.path.isdir(path) or (os.path.isfile(path) and _is_tar(os.fspath(path)))


def open_collection(inputs: Sequence[Union[str, 'os.PathLike[str]']], absent: bool = False) -> Collection:
    """All pictures of `inputs`, those of a folder or tar file in natural order.

    The name of a picture is the path that was given; below a folder its path in there; in a tar file
    `FILE.tar/MEMBER`. In folders and tar files, what has another ending than a picture's is passed over; tar files in
    them are read, too.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for name in ('b10.jpg', 'b9.jpg', 'notes.txt'):
    ...     open(os.path.join(folder, name), 'w').close()
    >>> open_collection([folder]).names
    ['b9.jpg', 'b10.jpg']

    Args:
        inputs: paths of pictures, folders and tar files (.tar).
        absent: keep the names of pictures that are not there; reading them says so.

    Raises:
        ValueError: a folder or tar file without pictures, or one that cannot be read; two pictures of one name.
        FileNotFoundError: a path that is not there, unless `absent`.
    """
    places: Dict[str, Place] = {}
    anchors: List[str] = []
    for given in inputs:
        found, anchor = _found(os.fspath(given), absent)
        for name, place in found.items():
            if name in places:
                raise ValueError(f'two pictures are called {name!r}, {places[name].path} and {place.path}: give the '
                                 'folder above both, or make an output for each.')
            places[name] = place
        anchors.append(anchor)
    return Collection(places, sorted(set(anchors)))


def _found(given: str, absent: bool) -> Tuple[Dict[str, Place], str]:
    """Name -> place of what one input holds, and the folder that the names are relative to."""
    if not holds_pictures(given):
        if given.lower().endswith(_ARCHIVES):
            raise ValueError(f'{given}: of archives, plain .tar files alone are read, since pictures in others are not '
                             'found without unpacking all: unpack it, or pack it as .tar.')
        if not absent and not os.path.exists(given):
            raise FileNotFoundError(f'{given}: no such file or folder.')
        return {_text(given): Place(given)}, '/' if os.path.isabs(given) else os.getcwd()
    folder = given if os.path.isdir(given) else os.path.dirname(given)
    found = _in_folder(given) if os.path.isdir(given) else _in_tar(given, os.path.basename(given))
    if not found:
        raise ValueError(f"{given}: no pictures in it ({', '.join(ENDINGS)}).")
    return dict(sorted(found.items(), key=lambda item: _natural(item[0]))), os.path.abspath(folder)


def _in_folder(folder: str) -> Dict[str, Place]:
    found: Dict[str, Place] = {}
    for path in _files(folder):
        name = os.path.relpath(path, folder).replace(os.sep, '/')
        if _is_picture(path):
            found[_text(name)] = Place(path)
        elif _is_tar(path):
            found.update(_in_tar(path, name))
    return found


def _files(folder: str) -> Iterator[str]:
    for root, folders, files in os.walk(folder, onerror=_raise, followlinks=True):
        folders[:] = [name for name in folders if not _leads_up(os.path.join(root, name))]
        yield from (os.path.join(root, name) for name in files)


def _raise(error: OSError) -> None:
    raise error


def _leads_up(folder: str) -> bool:
    """Whether it is a link to a folder that it lies in: there would be no end."""
    if not os.path.islink(folder):
        return False
    home = os.path.join(os.path.realpath(os.path.dirname(folder)), '')
    return home.startswith(os.path.join(os.path.realpath(folder), ''))


def _in_tar(path: str, name: str) -> Dict[str, Place]:
    """Where a name is twice, as when a file was appended anew, the last one counts, as when it is unpacked."""
    try:
        with tarfile.open(path, 'r:') as tar:
            return {_text(f'{name}/{member}'): place for member, place in _members(tar, path, 0)}
    except tarfile.TarError as error:
        raise ValueError(f'{path}: not a readable tar file ({error}); compressed ones are not read.') from error


def _members(tar: tarfile.TarFile, path: str, start: int) -> Iterator[Tuple[str, Place]]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a shard may have millions
        name = posixpath.normpath(member.name).lstrip('/')
        if not member.isfile():
            continue
        if _is_picture(name):
            yield name, Place(path, start + member.offset_data, member.size)
        elif _is_tar(name):
            with tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                for inner_name, place in _members(inner, path, start + member.offset_data):
                    yield f'{name}/{inner_name}', place


def _is_picture(path: str) -> bool:
    return path.lower().endswith(ENDINGS) and not os.path.basename(path).startswith(_FOREIGN)


def _is_tar(path: str) -> bool:
    return path.lower().endswith('.tar') and not os.path.basename(path).startswith(_FOREIGN)


def _natural(name: str) -> List[Union[int, str]]:
    """Numbers in a name count as numbers, as in timm.

    >>> sorted(['a10', 'a9', 'B1'], key=_natural)
    ['a9', 'a10', 'B1']
    """
    parts = re.split('([0-9]+)', name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]


def _text(name: str) -> str:
    """Bytes of a file name that are no text as escapes, so that every kind of output takes it."""
    return name.encode('utf-8', 'backslashreplace').decode('utf-8')
