"""What is timed: stock timm in eager mode, sessions, and plain networks in the same engine."""
import io
import warnings
from copy import copy
from pathlib import Path
from typing import Any, Callable, Dict, NamedTuple, Optional, Sequence

import numpy as np
import torch
from timm.data import create_transform, resolve_model_data_config
from torch import nn

import rs_timm
from benchmarks.runtime.networks import Network
from rs_timm.pictures import open_image
from rs_timm.runtime import Session
from rs_timm.runtime.engines import create_engine

__all__ = [
    'CASES',
    'EAGER',
    'Case',
    'Eager',
    'engine_network',
    'plain_graph',
    'plain_networks',
    'sessions',
    'without_engine',
]

Run = Callable[[np.ndarray], np.ndarray]


class Case(NamedTuple):
    """An engine and its precision."""

    engine: str
    precision: str

    def __str__(self) -> str:
        return f'{self.engine} {self.precision}'


EAGER = Case('timm eager', 'fp32')
CASES = tuple(Case(*pair) for pair in (
    ('openvino', 'fp32'), ('openvino', 'bf16'), ('openvino', 'int8'), ('onnxruntime', 'fp32'), ('onnxruntime', 'int8'),
    ('torch', 'fp32'), ('torch', 'bf16')))


class Eager:
    """The plain network of timm with the same weights, as its documentation says to run it."""

    def __init__(self, network: Network) -> None:
        self.models: Dict[int, nn.Module] = {r: rs_timm.extract(network.model, r) for r in network.resolutions}
        config = resolve_model_data_config(network.model)
        config = {key: value for key, value in config.items() if key != 'input_size'}
        self.transforms = {r: create_transform((3, r, r), is_training=False, **config) for r in network.resolutions}

    def run(self, x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return self.models[x.shape[-1]](torch.from_numpy(x)).numpy()

    def preprocess(self, picture: Path, resolution: int) -> np.ndarray:
        return self.transforms[resolution](open_image(picture))[None].numpy()

    def whole(self, picture: Path, resolution: int) -> np.ndarray:
        return self.run(self.preprocess(picture, resolution))


def sessions(
        network: Network,
        cases: Sequence[Case],
        threads: int,
        calibration: Sequence[Path],
        cache: Optional[Path],
) -> Dict[Case, Session]:
    """A session for each case that this machine can do; the others are named on standard output."""
    made: Dict[Case, Session] = {}
    for case in cases:
        options: Dict[str, Any] = dict(calibration=calibration, cache_dir=cache) if case.precision == 'int8' else {}
        source = network.model if case.engine == 'torch' else network.file
        try:
            made[case] = Session(source, case.engine, case.precision, threads, **options)
            made[case].prepare()
        except (ImportError, ValueError) as error:
            print(f'# left out {case}: {error}')
    return made


def plain_networks(network: Network, case: Case, threads: int, sizes: Sequence[int]) -> Dict[int, Run]:
    """resolution -> the plain network of timm in the engine, as torch exports it at this size."""
    engine = create_engine(case.engine, case.precision, threads)
    return {r: engine.compile(plain_graph(rs_timm.extract(network.model, r), r), 1) for r in sizes}


def plain_graph(model: nn.Module, resolution: int) -> Any:
    """The `onnx.ModelProto` of a plain network for one picture of this size; torch folds its BatchNorms."""
    import onnx
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')  # this exporter is deprecated; the other is slower, and gives the same graph
        torch.onnx.export(
            model.eval(), (torch.zeros(1, 3, resolution, resolution),), buffer,  # type: ignore[arg-type]
            input_names=['images'], output_names=['logits'], dynamo=False)
    return onnx.load_from_string(buffer.getvalue())


def engine_network(session: Session, resolution: int) -> Run:
    """The engine's own network of a session for one picture, without the session around it."""
    return session._networks.get(resolution, 1)  # private: what is measured is the session's share


def without_engine(session: Session) -> Session:
    """The same session with networks that answer at once: what is left is its own work."""
    session.prepare()
    bare, answer = object.__new__(Session), np.zeros((1, 1), np.float32)
    bare.__dict__.update(vars(session), _networks=copy(session._networks))
    bare._networks.compiled = dict.fromkeys(session._networks.compiled, lambda images: answer)
    return bare
