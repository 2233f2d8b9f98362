"""Pictures in files, folders and tar files as one list that any thread may read from, without torch and timm.

A webdataset shard is a tar file: its pictures are read, its labels and texts are passed over, and counted. Only headers
are read to list a tar file, so that a shard of gigabytes is listed in a moment.
"""
import os
import posixpath
import re
import tarfile
import warnings
from collections import Counter
from contextlib import contextmanager
from typing import BinaryIO, Dict, Iterator, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

from rs_timm.pictures import ENDINGS, MAX_BYTES, ImageError, open_regular, read_file, reason, without_surrogates

__all__ = ['Collection', 'Place', 'holds_pictures', 'open_collection']

_ARCHIVES = ('.tgz', '.tbz2', '.gz', '.bz2', '.xz', '.zst', '.zip', '.7z', '.rar')
_PACKED = ('.tgz', '.tbz2', '.txz', '.tar.gz', '.tar.bz2', '.tar.xz', '.tar.zst', '.zip', '.7z', '.rar')
_FOREIGN = '._'  # files that macOS lays beside those that it copies: named like pictures, and none
_HEADER = 1 << 20  # bytes of names and other attributes that a member of a tar file may have
_PADDING = 1 << 20  # bytes of zeros that may follow the last member: the largest record that tar writes


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
        passed_over: ending -> how many files were found that are no pictures by their names.
        max_bytes: of a picture's file.
    """

    def __init__(
            self,
            places: Dict[str, Place],
            folders: Sequence[str],
            passed_over: Optional[Mapping[str, int]] = None,
            max_bytes: int = MAX_BYTES,
    ) -> None:
        self.names: List[str] = list(places)
        self.places = list(places.values())
        self.folders = tuple(folders)
        self.passed_over = dict(passed_over or {})
        self.max_bytes = max_bytes

    def read(self, position: int) -> bytes:
        """The file of a picture, from any thread. Raises ImageError if it cannot be read."""
        path, offset, size = self.places[position]
        try:
            return read_file(path, self.max_bytes, offset, size)
        except (ImageError, OSError, MemoryError) as error:
            raise ImageError(f'{self.names[position]}: {reason(error)}') from error

    def part(self, positions: Sequence[int]) -> 'Collection':
        """Some of the pictures, in this order: what a worker on another machine is sent."""
        places = {self.names[position]: self.places[position]._replace(path=os.path.abspath(self.places[position].path))
                  for position in positions}
        return Collection(places, self.folders, max_bytes=self.max_bytes)


def holds_pictures(path: Union[str, 'os.PathLike[str]']) -> bool:
    """Whether it is a folder or a tar file, not a picture itself."""
    return os.path.isdir(path) or (os.path.isfile(path) and _is_tar(os.fspath(path)))


def open_collection(
        inputs: Sequence[Union[str, 'os.PathLike[str]']],
        absent: bool = False,
        max_bytes: int = MAX_BYTES,
) -> Collection:
    """All pictures of `inputs`, those of a folder or tar file in natural order.

    The name of a picture is the path that was given; below a folder its path in there; in a tar file
    `FILE.tar/MEMBER`. In folders and tar files, what has another ending than a picture's is passed over, and counted in
    `passed_over`, and so are links in tar files, as by timm's reader; tar files in them are read, too. Packed archives
    in them are named in a warning.

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
        max_bytes: of a picture; reading a larger one is an ImageError.

    Raises:
        ValueError: a folder or tar file without pictures; a tar file that cannot be read to its end; a sparse picture
            in a tar file; two pictures of one name.
        FileNotFoundError: a path that is not there, unless `absent`.
    """
    places: Dict[str, Place] = {}
    anchors: List[str] = []
    passed_over: Counter[str] = Counter()
    for given in inputs:
        found, anchor = _found(os.fspath(given), absent, passed_over)
        for name, place in found.items():
            if absent and places.get(name) == place:
                continue
            if name in places:
                raise ValueError(f'two pictures are called {name!r}, {places[name].path} and {place.path}: give the '
                                 'folder above both, or make an output for each.')
            places[name] = place
        anchors.append(anchor)
    return Collection(places, sorted(set(anchors)), dict(passed_over.most_common()), max_bytes)


def _found(given: str, absent: bool, passed_over: 'Counter[str]') -> Tuple[Dict[str, Place], str]:
    """Name -> place of what one input holds, and the folder that the names are relative to."""
    if not holds_pictures(given):
        if given.lower().endswith(_ARCHIVES):
            raise ValueError(f'{given}: of archives, plain .tar files alone are read, since pictures in others are not '
                             'found without unpacking all: unpack it, or pack it as .tar.')
        if not absent and not os.path.exists(given):
            raise FileNotFoundError(f'{given}: no such file or folder.')
        return {without_surrogates(given): Place(given)}, '/' if os.path.isabs(given) else os.getcwd()
    folder = given if os.path.isdir(given) else os.path.dirname(given)
    before = passed_over.total()
    if os.path.isdir(given):
        found = _in_folder(given, passed_over)
    else:
        found = _in_tar(given, os.path.basename(given), passed_over)
    if not found:
        others = passed_over.total() - before
        raise ValueError(f"{given}: no pictures in it ({', '.join(ENDINGS)})"
                         + (f', but {others} other {"file" if others == 1 else "files"}.' if others else '.'))
    return dict(sorted(found.items(), key=lambda item: (_natural(item[0]), item[0]))), os.path.abspath(folder)


def _in_folder(folder: str, passed_over: 'Counter[str]') -> Dict[str, Place]:
    found: Dict[str, Place] = {}
    packed: List[str] = []
    for path in _files(folder):
        name = os.path.relpath(path, folder).replace(os.sep, '/')
        if _is_picture(path):
            found[without_surrogates(name)] = Place(path)
        elif _is_tar(path):
            found.update(_in_tar(path, name, passed_over))
        else:
            passed_over[_ending(path)] += 1
            if path.lower().endswith(_PACKED):
                packed.append(without_surrogates(name))
    if packed:
        others = f' and {len(packed) - 1} more' if len(packed) > 1 else ''
        warnings.warn(f'{without_surrogates(folder)}: packed archives in it are not read ({min(packed)}{others}): '
                      'unpack them, or pack them as .tar, if there are pictures in them.', stacklevel=2)
    return found


def _files(folder: str) -> Iterator[str]:
    """All files, through links to folders, too, but not into one that holds what led there: there would be no end."""
    waiting: List[Tuple[str, Tuple[str, ...]]] = [(folder, ())]
    while waiting:
        folder, above = waiting.pop()
        real = os.path.realpath(folder)
        if any(os.path.join(place, '').startswith(os.path.join(real, '')) for place in above):
            continue
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir():
                    waiting.append((entry.path, (*above, real)))
                else:
                    yield entry.path


def _in_tar(path: str, name: str, passed_over: 'Counter[str]') -> Dict[str, Place]:
    """Where a name is twice, as when a file was appended anew, the last one counts, as when it is unpacked."""
    with _readable(path), open_regular(path) as stream:
        whole = Place(path, 0, os.fstat(stream.fileno()).st_size)
        return {without_surrogates(f'{name}/{member}'): place
                for member, place in _members(stream, whole, path, passed_over)}


class _Refused(ValueError):
    """What is wrong with a tar file, in words for its user."""


@contextmanager
def _readable(path: str) -> Iterator[None]:
    try:
        yield
    except (_Refused, OSError):
        raise
    except Exception as error:  # on damaged headers, tarfile raises whatever it met
        raise _Refused(f'{path}: not a readable tar file ({error}); compressed ones are not read.') from error


class _Headers:
    """A tar file, or a tar file in one, as tarfile reads it; no header may ask for gigabytes."""

    def __init__(self, stream: BinaryIO, place: Place) -> None:
        self._stream, self._place = stream, place
        self.seek(0)

    def seek(self, position: int) -> None:
        self._stream.seek(self._place.offset + position)

    def tell(self) -> int:
        return self._stream.tell() - self._place.offset

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _HEADER:
            raise tarfile.ReadError(f'a header of {size} bytes')
        return self._stream.read(max(0, min(size, (self._place.size or 0) - self.tell())))


def _members(
        stream: BinaryIO,
        place: Place,
        shown: str,
        passed_over: 'Counter[str]',
) -> Iterator[Tuple[str, Place]]:
    """The pictures of a tar file, which is all of `stream` or, being a member of another one, a piece of it."""
    headers, length = _Headers(stream, place), place.size or 0
    with tarfile.open(fileobj=headers, mode='r:') as tar:  # type: ignore[call-overload]
        while (member := tar.next()) is not None:
            tar.members.clear()  # type: ignore[attr-defined]  # a shard may have millions
            name = posixpath.normpath(member.name).lstrip('/')
            is_file = member.isfile()
            if member.size < 0 or is_file and member.offset_data + member.size > length:
                raise tarfile.ReadError(f'{name} in it has {member.size} bytes, which are not there')
            if is_file and member.issparse() and (_is_picture(name) or _is_tar(name)):
                raise _Refused(f'{shown}: {name} in it is stored as a sparse file, which is not read: pack it without '
                               'tar --sparse.')
            content = Place(place.path, place.offset + member.offset_data, member.size)
            if is_file and _is_picture(name):
                yield name, content
            elif is_file and _is_tar(name):
                inside = f'{shown}/{name}'
                with _readable(inside):
                    for inner, found in _members(stream, content, inside, passed_over):
                        yield f'{name}/{inner}', found
            elif not member.isdir():
                passed_over[_ending(name) if is_file else 'links and devices'] += 1
        end = tar.offset
    headers.seek(end)
    rest = headers.read(min(length - end, _PADDING))
    if not rest or rest.strip(b'\0') or len(rest) < length - end:
        raise tarfile.ReadError(f'after the last member that can be read, at byte {end} of {length}, there are not the '
                                'zeros that a whole one ends with: it is damaged or cut short')


def _is_picture(path: str) -> bool:
    return path.lower().endswith(ENDINGS) and not os.path.basename(path).startswith(_FOREIGN)


def _is_tar(path: str) -> bool:
    return path.lower().endswith('.tar') and not os.path.basename(path).startswith(_FOREIGN)


def _ending(path: str) -> str:
    name = os.path.basename(path)
    return name[:2] + '...' if name.startswith(_FOREIGN) else os.path.splitext(name)[1].lower() or 'without an ending'


def _natural(name: str) -> List[Union[int, str]]:
    """Numbers in a name count as numbers, as in timm.

    >>> sorted(['a10', 'a9', 'B1'], key=_natural)
    ['a9', 'a10', 'B1']
    """
    parts = re.split('([0-9]+)', name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
