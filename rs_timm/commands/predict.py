"""rs-timm predict: classes of pictures, shown with milliseconds at one or many resolutions, or written as a file."""
import argparse
import os
import time
from typing import Any, Callable, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from rs_timm.interpolation import bracket
from rs_timm.pictures import MAX_BYTES, MAX_PIXELS, ImageError
from rs_timm.predict.batch import PictureSource, fault
from rs_timm.predict.collection import holds_pictures, open_collection
from rs_timm.runtime import Session

from ._written import add_writing_arguments, write_predictions, writing
from .arguments import add_crop_pct, add_model_arguments, add_sizes, model_source, positive_int
from .serving import add_engine_arguments, describe_versions, engine_options, open_model, open_session
from .shell import PARTLY_FAILED, printable, report

__all__ = ['predict_arguments', 'run']

_SPLIT = 'validation'


def predict_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm predict`."""
    parser.description = (
        'Show the classes of pictures, or write those of a whole collection (--out). In many '
        'processes, on one machine or several: --ray. What was stopped goes on with the same command.')
    add_model_arguments(parser, also="; or a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch")
    parser.add_argument('images', metavar='INPUT', nargs='+',
                        help='picture file, folder of pictures at any depth, or tar file (webdataset shards, too)')
    sizes = parser.add_mutually_exclusive_group()
    add_sizes(sizes, 'input sizes in pixels, trained or not (default: the largest trained one)', old='--resolution')
    sizes.add_argument('--all', action='store_true', help='all sizes that the model was trained for')
    sizes.add_argument('--ms', type=float, metavar='T',
                       help='the largest trained size whose p95 on an engine is at most T milliseconds; measured first')
    add_crop_pct(parser)
    parser.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to give (default: 5)')
    parser.add_argument('--reader', metavar='NAME',
                        help="read INPUT with a reader of timm: 'folder', 'tar', or 'hfds/NAME' (with --split)")
    parser.add_argument('--split', metavar='NAME',
                        help=f'of the data, for --reader hfds/... (default: {_SPLIT})')
    parser.add_argument('--max-bytes', type=positive_int, default=MAX_BYTES, metavar='N',
                        help=f'of a picture\'s file; larger ones are not read (default: {MAX_BYTES})')
    parser.add_argument('--max-pixels', type=positive_int, default=MAX_PIXELS, metavar='N',
                        help=f'of a picture; larger ones are not decoded (default: {MAX_PIXELS})')
    add_engine_arguments(parser.add_argument_group(
        'engine', 'used for exported files, folders, tar files and --out, or where one of these is given'))
    add_writing_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    Image.MAX_IMAGE_PIXELS = args.max_pixels  # Pillow's own bound gives way: the process is this command's
    pictures, folders = _pictures(args.images, args.reader, args.split, not args.out, args.max_bytes)
    if others := getattr(pictures, 'passed_over', None):
        print('# passed over: ' + ', '.join(f'{count} {printable(ending)}' for ending, count in others.items()))
    source, options = model_source(args), engine_options(args)
    if args.out:
        return write_predictions(source, options, pictures, folders, writing(args))
    if args.batch_size or args.decoders:
        raise ValueError('--batch-size and --decoders are for --out FILE: shown pictures are timed one by one.')
    asks_for_engine = any(value is not None for value in (*options, args.ms)) or args.reader
    if not (source.is_exported or asks_for_engine or any(map(holds_pictures, args.images))):
        options = options._replace(engine='torch')  # as good as any for a look, and no export has to be waited for
    session = open_session(open_model(source), options, draft=False, crop_pct=args.crop_pct)
    session.max_pixels = args.max_pixels
    if args.ms is not None:
        session.set_budget(ms=args.ms)
    sizes = session.resolutions if args.all else tuple(dict.fromkeys(args.sizes or (session.resolution,)))
    for line in _heading(args.model, source.weights, session, sizes):
        print(line)
    return _show(session, pictures, sizes, args.topk)


def _pictures(
        inputs: Sequence[str],
        reader: Optional[str],
        split: Optional[str],
        shown: bool,
        max_bytes: int,
) -> Tuple[PictureSource, Sequence[str]]:
    """The pictures, and what their names are relative to."""
    has_splits = reader is not None and reader.lower().startswith('hfds/')
    if split is not None and not has_splits:
        raise ValueError(f'--split {split} is for --reader hfds/NAME: folders and tar files have no splits.')
    if reader is None:
        collection = open_collection(inputs, shown, max_bytes)
        return collection, collection.folders
    try:
        from rs_timm.data.readers import open_reader
    except ImportError as error:
        raise ImportError(f'--reader {reader} needs PyTorch and timm ({error}): install them, or leave --reader out, '
                          'which reads folders and tar files, too.') from error

    if len(inputs) > 1:
        raise ValueError(f'--reader takes one INPUT, not {len(inputs)}.')
    (root,) = inputs
    split = split or _SPLIT
    where = f'{reader}, {split}' if has_splits else reader
    return open_reader(reader, root, split), [f'{where}: {os.path.abspath(root)}']


def _heading(name: str, has_weights: bool, session: Session, sizes: Sequence[int]) -> Iterator[str]:
    versions = describe_versions(session.versions)
    threads = session.threads or "the engine's choice"
    yield (f'# {name} on {versions}, {session.precision}, threads: {threads}; '
           'ms: the forward pass of one picture')
    if not has_weights:
        yield '# random weights: the classes mean nothing'
    for size in sizes:
        upper, lower, _ = bracket(session.resolutions, size)
        if upper != lower:
            yield f'# {size} px has no BatchNorm set: interpolated between those for {upper} and {lower}'
        elif upper != size:
            yield f'# {size} px has no BatchNorm set: the nearest one, for {upper}, is used'


def _show(session: Session, pictures: PictureSource, sizes: Sequence[int], topk: int) -> int:
    for size in sizes:  # the first call pays for what the engine puts off
        session.run(np.zeros((1, session.info.channels, size, size), np.float32), size)
    unreadable = 0
    for position, name in enumerate(pictures.names):
        try:
            data = pictures.read(position)
            batches = [session.preprocess(data, size) for size in sizes]
        except ImageError as error:
            report(f'{printable(name)}: {fault(error, name)}')
            unreadable += 1
            continue
        print(printable(name))
        for size, x in zip(sizes, batches):
            start = time.perf_counter()
            logits = session.run(x, size)[0]
            milliseconds = (time.perf_counter() - start) * 1e3
            print('\n'.join(_rows(size, milliseconds, logits, session.info.label, topk)), flush=True)
    return PARTLY_FAILED if unreadable else 0


def _rows(size: int, milliseconds: float, logits: np.ndarray, label: Callable[[int], Any], topk: int) -> List[str]:
    p = np.exp(logits.astype(np.float64) - logits.max())
    p /= p.sum()
    rows = [f'{p[index]:8.1%}  {printable(label(int(index)))}' for index in np.argsort(-p, kind='stable')[:topk]]
    first = f'{size:6} px {milliseconds:8.1f} ms'
    return [first + rows[0], *(' ' * len(first) + row for row in rows[1:])]
