"""Pictures through a reader of timm, by its name."""
import os

from timm.data import create_reader

from rs_timm.data import ReaderPictures
from rs_timm.data.readers import NOT_INDEXED

__all__ = ['reader_pictures']

_BY_ROOT = ('folder', 'tar')
_HFDS = 'hfds'
_STREAMS = ('wds', 'tfds', 'hfids')  # known before their packages are asked for


def reader_pictures(name: str, root: str, split: str) -> ReaderPictures:
    """What `timm.data.create_reader` makes of a name.

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
        raise ValueError(f'--reader {name}: {NOT_INDEXED}')
    if name not in _BY_ROOT and not (kind.lower() == _HFDS and rest):
        raise ValueError(f"--reader {name!r} is unknown: give {' or '.join(_BY_ROOT)}, or {_HFDS}/USER/NAME.")
    if not os.path.exists(root):
        raise FileNotFoundError(f'{root}: no such file or folder.')
    if name == 'folder' and not os.path.isdir(root):
        raise ValueError(f'--reader folder: {root} is a file: give --reader tar for a .tar file, or a folder.')
    if name == 'tar' and not (os.path.isfile(root) and root.endswith('.tar')):
        raise ValueError(f'--reader tar: {root} is no .tar file: give --reader folder for a folder, or no --reader, '
                         'which reads tar files in folders, too.')
    try:
        reader = create_reader('' if name in _BY_ROOT else name, root, split)
    except RuntimeError as error:
        raise ValueError(f'--reader {name}: {error}') from error
    return ReaderPictures(reader)
