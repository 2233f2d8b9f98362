"""A Session as the arguments of a command ask for it. torch is imported only where MODEL is no exported file."""
import argparse
import hashlib
import os
import time
from importlib import import_module
from pathlib import Path
from typing import Any, Callable, List, Optional, Tuple

import numpy as np

from rs_timm.predict.collection import open_collection
from rs_timm.runtime import Session
from rs_timm.runtime.engines import ENGINES, OLD_PRECISIONS, PRECISIONS
from rs_timm.runtime.policy.machine import describe_machine

from ._arguments import positive_int

__all__ = [
    'CALIBRATION', 'SessionClassifier', 'add_session_arguments', 'check_exported', 'is_exported', 'open_session',
    'pictures_below', 'require_torch', 'wants_session',
]

CALIBRATION = 300  # pictures


def add_session_arguments(parser: argparse.ArgumentParser) -> None:
    """What a Session may be told; each of them asks for one."""
    group = parser.add_argument_group(
        'engine', 'used for exported files, folders, tar files and --out, or where one of these is given')
    group.add_argument('--engine', choices=ENGINES, help='default: the fastest installed')
    group.add_argument('--precision', type=lambda name: OLD_PRECISIONS.get(name, name), choices=PRECISIONS,
                       help='default: float32')
    group.add_argument('--threads', type=positive_int, metavar='N',
                       help="of the network (default: the engine's choice; under torchrun, this process's part of the "
                            'cores)')
    group.add_argument('--calibration', metavar='DIR',
                       help=f'for int8: folder of pictures to calibrate with ({CALIBRATION} are taken)')
    group.add_argument('--cache-dir', metavar='DIR', help='for int8: folder that keeps the calibrated networks')


def wants_session(args: argparse.Namespace) -> bool:
    given = (args.engine, args.precision, args.threads, args.ms, args.calibration, args.cache_dir)
    return is_exported(args.model) or any(value is not None for value in given)


def is_exported(name: str) -> bool:
    return name.lower().endswith('.onnx')


def require_torch(model: str) -> None:
    """Raise ImportError with a remedy unless torch can be imported."""
    try:
        import_module('torch')
    except ImportError as error:
        raise ImportError(f'MODEL {model} needs PyTorch, which is not installed: pip install torch, or give a file '
                          "that 'rs-timm export' wrote (.onnx).") from error


def open_session(args: argparse.Namespace) -> Tuple[Session, str]:
    """The session of a classifier, and a digest of its weights.

    Raises:
        ImportError: the engine, or torch, is not installed.
        ValueError: options that do not go together; a network that is no classifier.
    """
    if is_exported(args.model) and args.device != 'cpu':
        raise ValueError(f'--device {args.device} is for --engine torch, which takes a model by its name; the engines '
                         f'run the exported file {args.model} on the CPU: leave --device out.')
    model, digest = _exported(args) if is_exported(args.model) else _named(args)
    on_device = args.engine is None and args.device != 'cpu'
    session = Session(
        model, 'torch' if on_device else args.engine, args.precision or 'float32', args.threads or _part_of_the_cores(),
        calibration=args.calibration and pictures_below(args.calibration, CALIBRATION), cache_dir=args.cache_dir)
    if session.engine_name != 'torch' and args.device != 'cpu':
        raise ValueError(f'--device {args.device} is for --engine torch; {session.engine_name} runs on the CPU.')
    if session.info.task != 'classification':
        raise ValueError(f'{args.model} is for {session.info.task}: rs-timm eval --overlays DIR draws what the model '
                         'predicts.')
    return session, digest


def check_exported(args: argparse.Namespace) -> None:
    """Refuse what does not go with an exported file."""
    if args.checkpoint or args.no_weights or args.resolutions:
        raise ValueError(f'{args.model} is an exported file, with its own weights and resolutions: --checkpoint, '
                         '--no-weights and --resolutions do not apply.')


def _exported(args: argparse.Namespace) -> Tuple[Any, str]:
    check_exported(args)
    digest = hashlib.sha256()
    for path in (Path(args.model), Path(f'{args.model}.data')):
        if path.exists():
            with path.open('rb') as stream:
                while piece := stream.read(1 << 20):
                    digest.update(piece)
    return args.model, digest.hexdigest()[:16]


def _named(args: argparse.Namespace) -> Tuple[Any, str]:
    require_torch(args.model)
    import torch  # not at the top: exported files need none of it

    from ._eager import class_names
    from ._model import load_model

    if args.no_weights:
        torch.manual_seed(0)  # all processes of a job have the same network
    model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions)
    class_names(model)  # says what is wrong with a network that has none
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return model.to(args.device), digest.hexdigest()[:16]


def _part_of_the_cores() -> Optional[int]:
    """Several processes on one machine, each with as many threads as cores, would be in each other's way."""
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return max(1, describe_machine()['cores'] // processes) if processes > 1 else None


def pictures_below(folder: str, count: int) -> List[str]:
    """At most `count` files from all over a folder, since those that stand together are often of one class.

    Raises:
        FileNotFoundError: no such folder.
        ValueError: no pictures in it, or only such in tar files.
    """
    files = [place.path for place in open_collection([folder]).places if place.size is None]
    if not files:
        raise ValueError(f'{folder}: no pictures in it but those in tar files: unpack some hundred.')
    return [files[index * len(files) // count] for index in range(count)] if len(files) > count else files


class SessionClassifier:
    """A session for pictures one at a time; attributes and call as of `EagerClassifier`."""

    def __init__(self, args: argparse.Namespace) -> None:
        session, _ = open_session(args)
        if args.ms is not None:
            session.set_budget(ms=args.ms)
        self.trained = session.resolutions
        self.sizes = self.trained if args.all else tuple(dict.fromkeys(args.resolution or (session.resolution,)))
        self.label: Callable[[int], str] = session.info.label
        versions = ' '.join(session.versions.values())
        threads = session.threads or "the engine's choice"
        self.described = f'{session.engine_name} {versions}, {session.precision}, threads: {threads}'
        self._session = session
        for size in self.sizes:  # the first call pays for what the engine puts off
            session.run(np.zeros((1, session.info.channels, size, size), np.float32), size)

    def __call__(self, data: bytes) -> List[Tuple[int, float, np.ndarray]]:
        results = []
        for size in self.sizes:
            x = self._session.preprocess(data, size)
            start = time.perf_counter()
            logits = self._session.run(x, size)
            results.append((size, (time.perf_counter() - start) * 1e3, logits[0]))
        return results
