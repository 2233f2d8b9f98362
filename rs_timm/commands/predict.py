"""rs-timm predict: classes of pictures, shown with milliseconds at one or many resolutions, or written as a file."""
import argparse
import os
from typing import Any, Callable, List, Protocol, Sequence, Tuple

import numpy as np

from rs_timm.interpolation import bracket
from rs_timm.pictures import ImageError
from rs_timm.predict.batch import PictureSource, fault
from rs_timm.predict.collection import Collection, holds_pictures, open_collection

from ._arguments import add_model_arguments, positive_int
from ._serving import SessionClassifier, add_session_arguments, require_torch, wants_session
from ._shell import PARTLY_FAILED, printable, report
from ._written import add_writing_arguments, write_predictions

__all__ = ['register', 'run']

_SPLIT = 'validation'


class Classifier(Protocol):
    """`EagerClassifier` or `SessionClassifier`."""

    trained: Tuple[int, ...]
    sizes: Tuple[int, ...]
    described: str
    label: Callable[[int], str]  # class index -> name

    def __call__(self, data: bytes) -> List[Tuple[int, float, np.ndarray]]:
        """Size, milliseconds and logits [classes], for each of `sizes`. Raises ImageError."""


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'predict',
        help='classify pictures, folders, tar files',
        description='Show the classes of pictures, or write those of a whole collection (--out). In several processes: '
                    'torchrun --nproc-per-node N -m rs_timm predict MODEL INPUT ... --out FILE. What was stopped goes '
                    'on with the same command.',
    )
    add_model_arguments(parser, also="; or a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch")
    parser.add_argument('images', metavar='INPUT', nargs='+',
                        help='picture file, folder of pictures at any depth, or tar file (webdataset shards, too)')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--resolution', type=positive_int, nargs='+', metavar='R',
                       help='input sizes in pixels, trained or not (default: the largest trained one)')
    sizes.add_argument('--all', action='store_true', help='all sizes that the model was trained for')
    sizes.add_argument('--ms', type=float, metavar='T',
                       help='the largest trained size whose p95 on an engine is at most T milliseconds; measured first')
    parser.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to give (default: 5)')
    parser.add_argument('--device', default='cpu', help="default: cpu; 'cuda' is for PyTorch")
    parser.add_argument('--reader', metavar='NAME',
                        help="read INPUT with a reader of timm: 'folder', 'tar', or 'hfds/NAME' (with --split)")
    parser.add_argument('--split', metavar='NAME', help=f'for --reader hfds/... (default: {_SPLIT})')
    add_session_arguments(parser)
    add_writing_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.out:
        return write_predictions(args, *_pictures(args))
    if args.batch_size or args.workers:
        raise ValueError('--batch-size and --workers are for --out FILE: shown pictures are timed one by one.')
    pictures, _ = _pictures(args)
    on_session = wants_session(args) or args.reader or any(map(holds_pictures, args.images))
    return _show(args, pictures, _on_engine(args) if on_session else _eager(args))


def _pictures(args: argparse.Namespace) -> Tuple[PictureSource, Sequence[str]]:
    """The pictures, and what their names are relative to."""
    has_splits = args.reader is not None and args.reader.lower().startswith('hfds/')
    if args.split is not None and not has_splits:
        raise ValueError(f'--split {args.split} is for --reader hfds/NAME: folders and tar files have no splits.')
    if args.reader is None:
        collection: Collection = open_collection(args.images, absent=not args.out)
        return collection, collection.folders
    try:
        from ._readers import reader_pictures
    except ImportError as error:
        raise ImportError(f'--reader {args.reader} needs PyTorch and timm ({error}): install them, or leave --reader '
                          'out, which reads folders and tar files, too.') from error

    if len(args.images) > 1:
        raise ValueError(f'--reader takes one INPUT, not {len(args.images)}.')
    (root,) = args.images
    split = args.split or _SPLIT
    where = f'{args.reader}, {split}' if has_splits else args.reader
    return reader_pictures(args.reader, root, split), [f'{where}: {os.path.abspath(root)}']


def _on_engine(args: argparse.Namespace) -> Classifier:
    return SessionClassifier(args)


def _eager(args: argparse.Namespace) -> Classifier:
    require_torch(args.model)
    from ._eager import EagerClassifier

    return EagerClassifier(args)


def _show(args: argparse.Namespace, pictures: PictureSource, classifier: Classifier) -> int:
    for line in _heading(args, classifier):
        print(line)
    unreadable = 0
    for position, name in enumerate(pictures.names):
        try:
            results = classifier(pictures.read(position))
        except ImageError as error:
            report(f'{printable(name)}: {fault(error, name)}')
            unreadable += 1
            continue
        print(printable(name))
        for size, milliseconds, logits in results:
            print('\n'.join(_rows(size, milliseconds, logits, classifier.label, args.topk)), flush=True)
    return PARTLY_FAILED if unreadable else 0


def _heading(args: argparse.Namespace, classifier: Classifier) -> List[str]:
    lines = [f'# {args.model} on {classifier.described}; ms: the forward pass of one picture']
    if args.no_weights:
        lines.append('# random weights: the classes mean nothing')
    for size in classifier.sizes:
        upper, lower, _ = bracket(classifier.trained, size)
        if upper != lower:
            lines.append(f'# {size} px has no BatchNorm set: interpolated between those for {upper} and {lower}')
        elif upper != size:
            lines.append(f'# {size} px has no BatchNorm set: the nearest one, for {upper}, is used')
    return lines


def _rows(size: int, milliseconds: float, logits: np.ndarray, label: Callable[[int], str], topk: int) -> List[str]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    rows = [f'{p[index]:8.1%}  {printable(label(int(index)))}' for index in np.argsort(-p, kind='stable')[:topk]]
    first = f'{size:6} px {milliseconds:8.1f} ms'
    return [first + rows[0], *(' ' * len(first) + row for row in rows[1:])]
