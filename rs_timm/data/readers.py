"""timm's readers as a collection of pictures for batch inference."""
from threading import Lock
from typing import Any, List

from timm.data.readers.reader_image_folder import ReaderImageFolder

from rs_timm.pictures import MAX_BYTES, ImageError, read_file, reason, without_surrogates

__all__ = ['NOT_INDEXED', 'ReaderPictures']

NOT_INDEXED = ('the reader gives its pictures one after the other, and leaves out those that it cannot read, so that '
               'no run could go on where another one ended. A webdataset shard is a tar file: give the .tar files, or '
               'their folder, as they are.')


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
            raise ValueError(f'{type(reader).__name__}: {NOT_INDEXED}')
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
