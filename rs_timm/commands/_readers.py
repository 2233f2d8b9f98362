"""Pictures through a reader of timm, by its name."""
import os

from timm.data import create_reader

from rs_timm.data import ReaderPictures
from rs_timm.data.readers import NOT_INDEXED

__all__ = ['reader_pictures']

_BY_ROOT = ('folder', 'tar')
_STREAMS = ('wds', 'tfds', 'hfids')  # known before their packages are asked for


def reader_pictures(name: str, root: str, split: str) -> ReaderPictures:
    """What `timm.data.create_reader` makes of a name.

    Args:
        name: 'folder' or 'tar' for what `root` is; else a name of timm's, such as 'hfds/user/dataset'.
        root: the folder or tar file, or where a data set is kept.
        split: of a data set.

    Raises:
        ImportError: the reader's package is not installed.
        ValueError: an unknown name; what the reader has against `root`.
    """
    if name not in _BY_ROOT and '/' not in name:
        raise ValueError(f"--reader {name!r} is unknown: give {' or '.join(_BY_ROOT)}, or a name as hfds/USER/NAME.")
    if name.partition('/')[0].lower() in _STREAMS:
        raise ValueError(f'--reader {name}: {NOT_INDEXED}')
    if not os.path.exists(root):
        raise FileNotFoundError(f'{root}: no such file or folder.')
    try:
        reader = create_reader('' if name in _BY_ROOT else name, root, split)
    except RuntimeError as error:
        raise ValueError(f'--reader {name}: {error}') from error
    return ReaderPictures(reader)
