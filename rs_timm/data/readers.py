"""timm's readers as a collection of pictures for batch inference."""
import os
from threading import Lock
from typing import Any, List

from timm.data import create_reader
from timm.data.readers.reader_image_folder import ReaderImageFolder

from rs_timm.pictures import MAX_BYTES, ImageError, read_file, reason, without_surrogates
from rs_timm.tar_files import pictures_in_tar

__all__ = ['ReaderPictures', 'open_reader']

_NOT_INDEXED = ('the reader gives its pictures one after the other, and leaves out those that it cannot read, so that '
               'no run could go on where another one ended. A webdataset shard is a tar file: give the .tar files, or '
               'their folder, as they are.')

_BY_ROOT = ('folder', 'tar')
_HFDS = 'hfds'
_STREAMS = ('wds', 'tfds', 'hfids')  # known before their packages are asked for


class ReaderPictures:
    """The encoded pictures of a reader of timm, for `rs_timm.predict.batch.predict_pictures`.

    >>> import os, tempfile
    >>> from PIL import Image
    >>> from timm.data import create_reader
    >>> folder = tempfile.mkdtemp()
    >>> Image.new('RGB', (8, 8)).save(os.path.join(folder, 'a.png'))
    >>> pictures = ReaderPictures(create_reader('', folder))
    >>> pictures.names, pictures.read(0)[1:4]
    (['a.png'], b'PNG')

    Args:
        reader: one that can be indexed: folder, tar, `hfds/...`.

    Raises:
        ValueError: one that gives its pictures one after the other, such as `wds/...`; a reader without pictures.
    """

    def __init__(self, reader: Any) -> None:
        if not hasattr(reader, '__getitem__'):
            raise ValueError(f'{type(reader).__name__}: {_NOT_INDEXED}')
        names = reader.filenames()
        if not names:
            raise ValueError(f'{type(reader).__name__}: no pictures in it.')
        self.names: List[str] = [
            str(position) if name is None else without_surrogates(str(name)) for position, name in enumerate(names)]
        self._reader, self._lock = reader, Lock()

    def read(self, position: int) -> bytes:
        """The file of a picture, from any thread. Raises ImageError if it cannot be read."""
        try:
            if isinstance(self._reader, ReaderImageFolder):  # it would wait for a pipe, and read a device without end
                return read_file(self._reader.samples[position][0])
            with self._lock, self._reader[position][0] as stream:  # the tar reader has one handle for all
                data = bytes(stream.read(MAX_BYTES + 1))
            if len(data) > MAX_BYTES:
                raise ImageError(f'refused, more than the bound of {MAX_BYTES} bytes')
            return data
        except Exception as error:  # whatever the reader's package raises: the other pictures go on
            raise ImageError(f'{self.names[position]}: {reason(error)}') from error


def open_reader(name: str, root: str, split: str) -> ReaderPictures:
    """The pictures of a reader of timm, by its name.

    Args:
        name: 'folder' or 'tar' for what `root` is; else 'hfds/user/dataset'.
        root: the folder or tar file, or where a data set is kept.
        split: of a data set.

    Raises:
        ImportError: the reader's package is not installed.
        ValueError: an unknown name, or one that `root` does not go with; what the reader has against `root`.
    """
    kind, _, rest = name.partition('/')
    if kind.lower() in _STREAMS:
        raise ValueError(f'reader={name!r}: {_NOT_INDEXED}')
    if name not in _BY_ROOT and not (kind.lower() == _HFDS and rest):
        raise ValueError(f"reader {name!r} is unknown: give {' or '.join(_BY_ROOT)}, or {_HFDS}/USER/NAME.")
    if not os.path.exists(root):
        raise FileNotFoundError(f'{root}: no such file or folder.')
    if name == 'folder' and not os.path.isdir(root):
        raise ValueError(f"reader='folder': {root} is a file: give reader='tar' for a .tar file, or a folder.")
    if name == 'tar' and not (os.path.isfile(root) and root.endswith('.tar')):
        raise ValueError(f"reader='tar': {root} is no .tar file: give reader='folder' for a folder, or no reader, "
                         'which reads tar files in folders, too.')
    if name == 'tar':  # timm's reader ends where a header is damaged, as if that were the end of the file
        pictures_in_tar(root, '', lambda name, ending: None)
    try:
        return ReaderPictures(create_reader('' if name in _BY_ROOT else name, root, split))
    except RuntimeError as error:
        raise ValueError(f'reader={name!r}: {error}') from error
