"""rs-timm predict: classes of pictures, shown with milliseconds at one or many resolutions, or written as a file."""
import argparse
import os
import signal
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import numpy as np
from PIL import Image

from rs_timm.interpolation import bracket
from rs_timm.pictures import MAX_BYTES, MAX_PIXELS, ImageError
from rs_timm.predict.batch import PictureSource, Work, fault, most_probable, predict_pictures
from rs_timm.predict.collection import Collection, holds_pictures, open_collection
from rs_timm.predict.rows import check_format, read_rows
from rs_timm.runtime import Session
from rs_timm.runtime.quantize import QuantisedFile

from .arguments import (
    ModelSource,
    add_crop_pct,
    add_model_arguments,
    add_old_name,
    add_sizes,
    model_source,
    positive_int,
)
from .serving import (
    add_engine_arguments,
    describe_versions,
    engine_device,
    engine_options,
    open_model,
    open_session,
    weights_digest,
)
from .shell import PARTLY_FAILED, bar, printable, report

__all__ = ['predict_arguments', 'run']

_SPLIT = 'validation'
_BATCH = 32
_DECODERS = 4


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
    group = parser.add_argument_group('a file of predictions', 'at one resolution, resumable')
    group.add_argument('--out', metavar='FILE', help='write a row for each picture; .jsonl or .parquet')
    group.add_argument('--batch-size', type=positive_int, metavar='N', help=f'default: {_BATCH}')
    decoders = group.add_argument('--decoders', type=positive_int, metavar='N',
                                  help=f'threads that read and decode pictures (default: {_DECODERS})')
    add_old_name(group, decoders, '--workers')
    group.add_argument('--ray', metavar='ADDRESS', nargs='?', const='',
                       help="in many processes of a Ray cluster (default: RAY_ADDRESS's, else this machine), each of "
                            '--threads cores (default: 1)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    Image.MAX_IMAGE_PIXELS = args.max_pixels  # Pillow's own bound gives way: the process is this command's
    pictures, folders = _pictures(args.images, args.reader, args.split, not args.out, args.max_bytes)
    if others := getattr(pictures, 'passed_over', None):
        print('# passed over: ' + ', '.join(f'{count} {printable(ending)}' for ending, count in others.items()))
    if args.out:
        return _write(args, pictures, folders)
    if args.batch_size or args.decoders:
        raise ValueError('--batch-size and --decoders are for --out FILE: shown pictures are timed one by one.')
    source, options = model_source(args), engine_options(args)
    asks_for_engine = any(value is not None for value in (*options, args.ms)) or args.reader
    if not (source.is_exported or asks_for_engine or any(map(holds_pictures, args.images))):
        options = options._replace(engine='torch')  # as good as any for a look, and no export has to be waited for
    session = open_session(open_model(source), options, draft=False, crop_pct=args.crop_pct)
    session.max_pixels = args.max_pixels
    if args.ms is not None:
        session.set_budget(ms=args.ms)
    sizes = session.resolutions if args.all else tuple(dict.fromkeys(args.sizes or (session.resolution,)))
    print('\n'.join(_heading(args.model, source.weights, session, sizes)))
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
    rows = [f'{p:8.1%}  {printable(label(index))}' for index, p in most_probable(logits, topk)]
    first = f'{size:6} px {milliseconds:8.1f} ms'
    return [first + rows[0], *(' ' * len(first) + row for row in rows[1:])]


def _write(args: argparse.Namespace, pictures: PictureSource, folders: Sequence[str]) -> int:
    """Predict what is missing in the file of --out; `folders`: what the names of the pictures are relative to."""
    source, options, whole = model_source(args), engine_options(args), isinstance(pictures, Collection)
    if args.all or len(args.sizes or ()) > 1:
        raise ValueError('--out is for one resolution: make a file for each.')
    if args.ms is not None:
        raise ValueError('--ms measures anew each time, and a file is of one resolution: see which one fits with '
                         "'rs-timm bench --ms', and give --sizes.")
    if args.ray is not None and not whole:
        raise ValueError('--ray reads pictures, folders and tar files, not through --reader: leave one of the two out.')
    if args.ray is not None and options.precision == 'int8' and not options.cache_dir:
        raise ValueError('--precision int8 with --ray needs --cache-dir: a folder that all machines share.')
    check_format(args.out)  # says what is wrong before a model is loaded
    model = open_model(source)
    digest = weights_digest(model)
    session = open_session(model, options, crop_pct=args.crop_pct)
    session.max_pixels = args.max_pixels
    if args.sizes:
        session.set_resolution(args.sizes[0])
    settings: Dict[str, Any] = dict(
        weights=digest, engine=session.engine_name, precision=session.precision, folders=list(folders))
    if args.crop_pct is not None:  # the model's own crops go with its weights
        settings['crop_pct'] = args.crop_pct
    if isinstance(session.source, QuantisedFile):  # pictures that it was calibrated with change the rows
        settings['calibrated'] = session.source.digest(session.resolution)
    work = Work(session.resolution, args.topk, args.batch_size or _BATCH, args.decoders or _DECODERS)
    try:
        with ExitStack() as stack:
            predict = None
            if args.ray is not None:
                predict = partial(_on_ray(args, stack, source, session), pictures, work, cores=options.threads or 1)
            stack.enter_context(_stoppable())  # after Ray, which has handlers of its own
            shown = stack.enter_context(bar(len(pictures.names), 'picture'))
            counts = predict_pictures(session, pictures, args.out, work, settings, shown, predict)
    except KeyboardInterrupt:
        report(f'stopped: what is done is in {args.out}.partial; the same command goes on')
        raise
    print(f'# {counts.predicted} predicted, {counts.failed} could not be, {counts.skipped} done before')
    rows = errors = 0
    for row in read_rows(args.out):
        rows, errors = rows + 1, errors + (row.error is not None)
    print(f'# {args.out}: {rows} rows', flush=True)
    if errors:
        report(f'{errors} of {rows} pictures could not be predicted; "error" in their rows says why')
    return PARTLY_FAILED if errors else 0


def _on_ray(args: argparse.Namespace, stack: ExitStack, source: ModelSource, session: Session) -> Callable[..., Any]:
    """`predict_on_ray` with the network of a session, on the cluster of --ray, to which `stack` keeps connected."""
    from rs_timm.predict import on_ray

    if session.engine_name == 'torch':
        raise ValueError('--ray runs the exported network on an engine, not --engine torch: leave --engine out.')
    cache = {'cache_dir': os.path.abspath(args.cache_dir)} if args.cache_dir else {}
    settings = dict(engine=session.engine_name, precision=session.precision, threads=args.threads or 1,
                    max_pixels=args.max_pixels, device=engine_device(args.device), crop_pct=args.crop_pct, **cache)
    whole = source.is_exported and not Path(f'{source.name}.data').exists()
    model = Path(source.name).read_bytes() if whole else session.graph.SerializeToString()
    stack.enter_context(on_ray.connected(args.ray or None))
    return partial(on_ray.predict_on_ray, partial(on_ray.open_session, model, settings))


@contextmanager
def _stoppable() -> Iterator[None]:
    """SIGTERM, which batch systems send, interrupts as Ctrl-C does; a second signal ends the process at once."""
    if threading.current_thread() is not threading.main_thread():  # elsewhere python has no signals
        yield
        return

    def stop(number: int, frame: Any) -> None:
        for other in before:
            signal.signal(other, signal.SIG_DFL)
        raise KeyboardInterrupt

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number in before:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
