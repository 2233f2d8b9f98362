"""The pictures in a tar file, found without torch and timm.

Only headers are read, so that a shard of gigabytes is listed in a moment, and read to the end, so that a file that is
damaged or cut short does not look like a shorter one.
"""
import os
import posixpath
import tarfile
from contextlib import contextmanager
from typing import BinaryIO, Callable, Dict, Iterator, NamedTuple, Optional, Tuple

from rs_timm.pictures import ENDINGS, open_regular, without_surrogates

__all__ = ['Place', 'ending_of', 'is_picture', 'is_tar', 'pictures_in_tar']

PassOver = Callable[[str, str], None]
_FOREIGN = '._'  # files that macOS lays beside those that it copies: named like pictures, and none
_HEADER = 1 << 20  # bytes of names and other attributes that a member of a tar file may have
_PADDING = 1 << 20  # bytes of zeros that may follow the last member: the largest record that tar writes


class Place(NamedTuple):
    """Where the bytes of a picture are: a whole file, or a piece of one."""

    path: str
    offset: int = 0
    size: Optional[int] = None


def pictures_in_tar(path: str, name: str, pass_over: PassOver) -> Dict[str, Place]:
    """Find the pictures in a tar file, and in tar files in it: name -> where it is.

    Where a name is there twice, as when a file was appended anew, the last one counts, as when it is unpacked.

    Args:
        path: of the file.
        name: what the names of its members begin with, and a slash; '': nothing.
        pass_over: is told of each member that is no picture: its name, and its ending or what it is.

    Raises:
        OSError: no such file, or one that cannot be read.
        ValueError: it cannot be read to its end, or a picture in it is stored as a sparse file.
    """
    with _readable(path), open_regular(path) as stream:
        whole = Place(path, 0, os.fstat(stream.fileno()).st_size)
        return {without_surrogates(f'{name}/{member}' if name else member): place
                for member, place in _members(stream, whole, path, pass_over)}


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
        pass_over: PassOver,
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
            if is_file and member.issparse() and (is_picture(name) or is_tar(name)):
                raise _Refused(f'{shown}: {name} in it is stored as a sparse file, which is not read: pack it without '
                               'tar --sparse.')
            content = Place(place.path, place.offset + member.offset_data, member.size)
            if is_file and is_picture(name):
                yield name, content
            elif is_file and is_tar(name):
                inside = f'{shown}/{name}'
                with _readable(inside):
                    for inner, found in _members(stream, content, inside, pass_over):
                        yield f'{name}/{inner}', found
            elif not member.isdir():
                pass_over(name, ending_of(name) if is_file else 'links and devices')
        end = tar.offset
    headers.seek(end)
    rest = headers.read(min(length - end, _PADDING))
    if not rest or rest.strip(b'\0') or len(rest) < length - end:
        raise tarfile.ReadError(f'after the last member that can be read, at byte {end} of {length}, there are not the '
                                'zeros that a whole one ends with: it is damaged or cut short')


def is_picture(path: str) -> bool:
    """Whether a file is a picture, by its name."""
    return path.lower().endswith(ENDINGS) and not os.path.basename(path).startswith(_FOREIGN)


def is_tar(path: str) -> bool:
    """Whether a file is a tar file, by its name."""
    return path.lower().endswith('.tar') and not os.path.basename(path).startswith(_FOREIGN)


def ending_of(path: str) -> str:
    """What a file that is passed over is counted under."""
    name = os.path.basename(path)
    return name[:2] + '...' if name.startswith(_FOREIGN) else os.path.splitext(name)[1].lower() or 'without an ending'
