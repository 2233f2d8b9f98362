"""Pictures in files, folders and tar files as one list that any thread may read from, without torch and timm.

A webdataset shard is a tar file: its pictures are read, its labels and texts are passed over, and counted.
"""
import os
import re
import warnings
from collections import Counter
from typing import Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple, Union

from rs_timm.pictures import ENDINGS, MAX_BYTES, ImageError, read_file, reason, without_surrogates
from rs_timm.tar_files import Place, ending_of, is_picture, is_tar, pictures_in_tar

__all__ = ['Collection', 'holds_pictures', 'open_collection']

_ARCHIVES = ('.tgz', '.tbz2', '.gz', '.bz2', '.xz', '.zst', '.zip', '.7z', '.rar')
_PACKED = ('.tgz', '.tbz2', '.txz', '.tar.gz', '.tar.bz2', '.tar.xz', '.tar.zst', '.zip', '.7z', '.rar')


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
    return os.path.isdir(path) or (os.path.isfile(path) and is_tar(os.fspath(path)))


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
        found = pictures_in_tar(given, os.path.basename(given), _counting(passed_over))
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
        if is_picture(path):
            found[without_surrogates(name)] = Place(path)
        elif is_tar(path):
            found.update(pictures_in_tar(path, name, _counting(passed_over)))
        else:
            passed_over[ending_of(path)] += 1
            if path.lower().endswith(_PACKED):
                packed.append(without_surrogates(name))
    if packed:
        others = f' and {len(packed) - 1} more' if len(packed) > 1 else ''
        warnings.warn(f'{without_surrogates(folder)}: packed archives in it are not read ({min(packed)}{others}): '
                      'unpack them, or pack them as .tar, if there are pictures in them.', stacklevel=2)
    return found


def _counting(passed_over: 'Counter[str]') -> Callable[[str, str], None]:
    return lambda name, ending: passed_over.update((ending,))


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


def _natural(name: str) -> List[Union[int, str]]:
    """Numbers in a name count as numbers, as in timm.

    >>> sorted(['a10', 'a9', 'B1'], key=_natural)
    ['a9', 'a10', 'B1']
    """
    parts = re.split('([0-9]+)', name.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)]
