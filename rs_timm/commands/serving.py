"""A Session as the options of a command ask for it. torch is imported only where MODEL is no exported file."""
import argparse
import hashlib
import os
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, NamedTuple, Optional, Tuple

from rs_timm.predict.collection import open_collection
from rs_timm.runtime import Session
from rs_timm.runtime.engines import ENGINES, PRECISIONS

from .arguments import ModelSource, count_of_cores, positive_int, precision_name
from .shell import watched

__all__ = [
    'EngineOptions', 'add_device', 'add_engine_arguments', 'calibration_pictures', 'describe_versions', 'engine_device',
    'engine_options', 'on_device', 'open_model', 'open_session', 'pictures_below', 'weights_digest',
]

_CALIBRATION = 300  # pictures


class EngineOptions(NamedTuple):
    """How a session runs; None: the user has not said."""

    engine: Optional[str] = None
    precision: Optional[str] = None
    threads: Optional[int] = None
    calibration: Optional[str] = None
    cache_dir: Optional[str] = None
    device: Optional[str] = None


def add_engine_arguments(group: Any, several: bool = False, of_labelled: bool = False) -> None:
    """--engine and what goes with it.

    Args:
        several: take any number of engines and threads.
        of_labelled: --precision and --device are there, from `add_labelled_arguments`.
    """
    many = dict(nargs='+', default=[None]) if several else {}
    group.add_argument('--engine', choices=ENGINES, help='default: the fastest installed', **many)
    if not of_labelled:
        add_device(group)
        group.add_argument('--precision', type=precision_name, choices=PRECISIONS, help=f'default: {PRECISIONS[0]}')
    group.add_argument('--threads', type=positive_int, metavar='N', **many,
                       help="of the network (default: the engine's choice; under torchrun, this process's part of the "
                            'cores)')
    group.add_argument('--calibration', metavar='DIR',
                       help=f'for int8: folder of pictures to calibrate with ({_CALIBRATION} are taken)')
    group.add_argument('--cache-dir', metavar='DIR',
                       help='folder that keeps calibrated int8 networks, and what OpenVINO has compiled: the next '
                            'start compiles nothing')


def add_device(group: Any) -> None:
    """--device."""
    group.add_argument('--device', metavar='D',
                       help="by the engine's own name: CPU, GPU, NPU or AUTO of OpenVINO; CUDA, TensorRT, CoreML and "
                            'so on of ONNX Runtime; cuda of PyTorch (default: the CPU)')


def engine_device(device: Optional[str]) -> Optional[str]:
    """The value of --device as a Session takes it; None: the CPU."""
    return None if device in ('auto', 'cpu', 'CPU') else device


def engine_options(args: argparse.Namespace) -> EngineOptions:
    """The values of what `add_engine_arguments` added for one engine."""
    return EngineOptions(
        args.engine, args.precision, args.threads, args.calibration, args.cache_dir, engine_device(args.device))


def open_model(source: ModelSource) -> Any:
    """The path of an exported file, or the torch model that MODEL names: what a Session takes."""
    return source.path() if source.is_exported else source.load()


def open_session(
        model: Any,
        options: EngineOptions,
        draft: bool = True,
        crop_pct: Optional[float] = None,
) -> Session:
    """The session of a classifier.

    Args:
        model: as from `open_model`.
        options: engine, precision, ...
        draft, crop_pct: as of `Session`.

    Raises:
        ImportError: the engine is not installed.
        ValueError: options that do not go together; a network that is no classifier.
    """
    others: Dict[str, Any] = {} if options.precision is None else {'precision': options.precision}
    model, engine, device = on_device(model, options.engine, options.device)
    session = Session(
        model, engine, threads=options.threads or _part_of_the_cores(), draft=draft, device=device,
        calibration=calibration_pictures(options.calibration), cache_dir=options.cache_dir,
        crop_pct=crop_pct, **others)
    if session.info.task != 'classification':
        raise ValueError(f'{session.info.name} is for {session.info.task}: rs-timm eval --overlays DIR draws what the '
                         'model predicts.')
    return session


def on_device(model: Any, engine: Optional[str], device: Optional[str]) -> Tuple[Any, Optional[str], Optional[str]]:
    """Model, engine and device for a Session; a device of torch is for models of torch, which are moved there.

    Raises:
        ValueError: a device that torch does not have, for its engine.
    """
    if device is None or isinstance(model, str) or engine not in (None, 'torch'):
        return model, engine, device
    import torch  # not at the top: exported files need none of it

    try:
        place = torch.device(device)
    except RuntimeError as error:
        if engine is None:
            return model, engine, device  # of another engine
        raise ValueError(f'--device {device}: {str(error).splitlines()[0]}') from error
    try:
        return model.to(place), 'torch', None
    except (AssertionError, RuntimeError) as error:
        raise ValueError(f'--device {device}: {str(error).splitlines()[0]}') from error


def describe_versions(versions: Mapping[str, str]) -> str:
    """Packages and versions in words: of a session, or of a file that was measured with them."""
    return ', '.join(f'{name} {version}' for name, version in versions.items())


def weights_digest(model: Any) -> str:
    """A short hash of the weights of what `open_model` returned."""
    digest = hashlib.sha256()
    if isinstance(model, str):
        for path in (Path(model), Path(f'{model}.data')):
            if path.exists():
                with path.open('rb') as stream:
                    while piece := stream.read(1 << 20):
                        digest.update(piece)
    else:
        import torch  # not at the top: exported files need none of it

        for name, tensor in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def _part_of_the_cores() -> Optional[int]:
    """Several processes on one machine, each with as many threads as cores, would be in each other's way."""
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return max(1, count_of_cores() // processes) if processes > 1 else None


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


def calibration_pictures(folder: Optional[str]) -> Optional[List[str]]:
    """Pictures to calibrate with, which show a bar when they are gone through."""
    return _Watched(pictures_below(folder, _CALIBRATION)) if folder else None


class _Watched(List[str]):

    def __iter__(self) -> Iterator[str]:
        return watched(list(super().__iter__()), 'picture', 'calibration')
