"""Pictures in files, folders and tar files as one list that any thread may read from, without torch and timm.

A webdataset shard is a tar file: its pictures are read, its labels and texts are passed over. Only headers are read to
list a tar file, so that a shard of gigabytes is listed in a moment.
"""
import os
import posixpath
import re
import tarfile
import warnings
from contextlib import contextmanager
from typing import Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

from rs_timm.pictures import ENDINGS, ImageError, reason, without_surrogates

__all__ = ['Collection', 'Place', 'holds_pictures', 'open_collection']

_ARCHIVES = ('.tgz', '.tbz2', '.gz', '.bz2', '.xz', '.zst', '.zip', '.7z', '.rar')
_PACKED = ('.tgz', '.tbz2', '.txz', '.tar.gz', '.tar.bz2', '.tar.xz', '.tar.zst', '.zip', '.7z', '.rar')
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
    them are read, too. Packed archives in them are named in a warning. Links in tar files are passed over, as by
    timm's reader.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> for name in ('b10.jpg', 'b9.jpg', 'notes.txt'):
    ...     open(os.path.join(folder, name), 'w').close()
    >>> open_collection([folder]).names
    ['b9.jpg', 'b10.jpg']

    Args:
        inputs: paths of pictures, folders and tar files (.tar).
        absent: keep the names of pictures that are not there, of which reading says so, and let a picture that is given
            twice be there once: for looking at them.

    Raises:
        ValueError: a folder or tar file without pictures, or one that cannot be read; a sparse picture in a tar file;
            two pictures of one name.
        FileNotFoundError: a path that is not there, unless `absent`.
    """
    places: Dict[str, Place] = {}
    anchors: List[str] = []
    for given in inputs:
        found, anchor = _found(os.fspath(given), absent)
        for name, place in found.items():
            if absent and places.get(name) == place:
                continue
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
        return {without_surrogates(given): Place(given)}, '/' if os.path.isabs(given) else os.getcwd()
    folder = given if os.path.isdir(given) else os.path.dirname(given)
    found = _in_folder(given) if os.path.isdir(given) else _in_tar(given, os.path.basename(given))
    if not found:
        raise ValueError(f"{given}: no pictures in it ({', '.join(ENDINGS)}).")
    return dict(sorted(found.items(), key=lambda item: (_natural(item[0]), item[0]))), os.path.abspath(folder)


def _in_folder(folder: str) -> Dict[str, Place]:
    found: Dict[str, Place] = {}
    packed: List[str] = []
    for path in _files(folder):
        name = os.path.relpath(path, folder).replace(os.sep, '/')
        if _is_picture(path):
            found[without_surrogates(name)] = Place(path)
        elif _is_tar(path):
            found.update(_in_tar(path, name))
        elif path.lower().endswith(_PACKED):
            packed.append(without_surrogates(name))
    if packed:
        others = f' and {len(packed) - 1} more' if len(packed) > 1 else ''
        warnings.warn(f'{without_surrogates(folder)}: packed archives in it are not read ({min(packed)}{others}): '
                      'unpack them, or pack them as .tar, if there are pictures in them.', stacklevel=2)
    return found


def _files(folder: str, above: Tuple[str, ...] = ()) -> Iterator[str]:
    """All files, through links to folders, too, but not into one that holds what led there: there would be no end."""
    real = os.path.realpath(folder)
    if any(os.path.join(place, '').startswith(os.path.join(real, '')) for place in above):
        return
    with os.scandir(folder) as entries:
        listed = [(entry.path, entry.is_dir()) for entry in entries]
    for path, is_folder in listed:
        if is_folder:
            yield from _files(path, (*above, real))
        else:
            yield path


def _in_tar(path: str, name: str) -> Dict[str, Place]:
    """Where a name is twice, as when a file was appended anew, the last one counts, as when it is unpacked."""
    with _readable(path), tarfile.open(path, 'r:') as tar:
        return {without_surrogates(f'{name}/{member}'): place for member, place in _members(tar, path, 0, path)}


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except tarfile.TarError as error:
        raise ValueError(f'{path}: not a readable tar file ({error}); compressed ones are not read.') from error


def _members(tar: tarfile.TarFile, path: str, start: int, shown: str) -> Iterator[Tuple[str, Place]]:
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a shard may have millions
        name = posixpath.normpath(member.name).lstrip('/')
        if not member.isfile():
            continue
        if (_is_picture(name) or _is_tar(name)) and member.issparse():
            raise ValueError(f'{shown}: {name} in it is stored as a sparse file, which is not read: pack it without '
                             'tar --sparse.')
        if _is_picture(name):
            yield name, Place(path, start + member.offset_data, member.size)
        elif _is_tar(name):
            inside = f'{shown}/{name}'
            with _readable(inside), tarfile.open(fileobj=tar.extractfile(member), mode='r:') as inner:
                for inner_name, place in _members(inner, path, start + member.offset_data, inside):
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
