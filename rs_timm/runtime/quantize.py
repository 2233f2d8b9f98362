"""int8: post-training quantisation of each resolution's network by the engine's own tool, kept on disk."""
import hashlib
import os
import re
import tempfile
from os import PathLike
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, Mapping, Optional, Sequence, Union

import numpy as np

from rs_timm.atomic import replacing, write_bytes
from rs_timm.format.graph import IMAGES
from rs_timm.format.info import ModelInfo

from .sources import ExportedFile

__all__ = ['QuantisedFile']

_Batches = Callable[[], Iterator[np.ndarray]]  # float32 [1, C, r, r] each; may be called again


class QuantisedFile:
    """An exported file whose networks are int8.

    The network of a resolution is quantised on first use, from the shared weights and that resolution's own BatchNorms,
    with activations calibrated on pictures at that resolution. What is in `cache_dir` is used as it is; neither
    pictures nor the tool are needed then. Files of another model, engine or resolution have other names.

    Args:
        source: the exported file.
        engine: 'openvino' (with NNCF) or 'onnxruntime' (with its own tool).
        pictures: to calibrate with; some hundred of those that will be served; None: `cache_dir` has all.
        preprocess: (picture, resolution) -> float32 [1, C, r, r].
        cache_dir: a folder to keep the networks in; None: a temporary one, removed with this object.

    Raises:
        ValueError: neither pictures nor `cache_dir`.
    """

    def __init__(
            self,
            source: ExportedFile,
            engine: str,
            pictures: Optional[Sequence[Any]],
            preprocess: Callable[[Any, int], np.ndarray],
            cache_dir: Union[None, str, 'PathLike[str]'] = None,
    ) -> None:
        if pictures is None and cache_dir is None:
            raise ValueError("precision='int8' needs pictures to calibrate with: calibration=[...], some hundred of "
                             'those that will be served; or cache_dir= of an earlier calibration.')
        if pictures is not None and not len(pictures):
            raise ValueError('calibration is empty: give some hundred pictures of those that will be served.')
        self._source, self._engine, self._pictures, self._preprocess = source, engine, pictures, preprocess
        self._temporary = tempfile.TemporaryDirectory(prefix='rs_timm_int8_') if cache_dir is None else None
        self._folder = Path(self._temporary.name if self._temporary else cache_dir)  # type: ignore[arg-type]

    @property
    def info(self) -> ModelInfo:
        return self._source.info

    @property
    def name(self) -> str:
        return self._source.name

    def graph(self) -> Any:
        return self._source.graph()

    def network(self, resolution: int) -> Path:
        """The file of the int8 network for `resolution` pixels, made now if it is not there.

        Raises:
            ImportError: the tool is not installed.
            ValueError: it is not there, and there are no pictures to calibrate with.
        """
        path = self._folder / f'{self._stem}-{resolution}{_SUFFIXES[self._engine]}'
        kept = path.with_suffix('.sha256')
        if not path.exists():
            if self._pictures is None:
                raise ValueError(f'{path} is not there: the int8 network for {resolution} px has to be calibrated '
                                 'first, by a session with calibration=[...] and the same cache_dir.')
            self._folder.mkdir(parents=True, exist_ok=True)
            with replacing(path) as new:
                _TOOLS[self._engine](self._source.network(resolution), lambda: self._batches(resolution), new)
                for other in set(new.parent.iterdir()) - {new}:  # OpenVINO keeps the weights in a second file
                    with replacing(self._folder / other.name) as lent:
                        other.replace(lent)
                write_bytes(kept, _digest(new, path.with_suffix('.bin')).encode())
        elif kept.exists() and kept.read_bytes().strip() != _digest(path, path.with_suffix('.bin')).encode():
            raise ValueError(f'{path} is damaged, or not all of its files are of one calibration: remove them, and '
                             'calibrate again.')
        return path

    def digest(self, resolution: int) -> str:
        """Identify the int8 network for `resolution` pixels, which is another one for other calibration pictures.

        Raises:
            ImportError, ValueError: as of `network`.
        """
        path = self.network(resolution)
        return _digest(path, path.with_suffix('.bin'))[:16]

    @property
    def _stem(self) -> str:
        name = re.sub(r'[^A-Za-z0-9._]+', '_', self.info.name)
        return f'{name}-{self._source.digest[:16]}-{self._engine}-int8'

    def _batches(self, resolution: int) -> Iterator[np.ndarray]:
        assert self._pictures is not None
        return (self._preprocess(picture, resolution) for picture in self._pictures)


def _digest(*files: Path) -> str:
    digest = hashlib.sha256()
    for file in files:
        if file.exists():
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _with_nncf(network: Any, batches: _Batches, path: Path) -> None:
    """OpenVINO: per-channel symmetric weights, biases corrected; batch stays dynamic."""
    import openvino

    nncf = _nncf()
    inputs = list(batches())
    model = openvino.Core().read_model(network.SerializeToString())
    quantised = nncf.quantize(model, nncf.Dataset(inputs), subset_size=len(inputs))
    openvino.save_model(quantised, path, compress_to_fp16=False)


def _nncf() -> Any:
    """NNCF reports its use over the network, unless this is set; nobody has asked the user."""
    before = os.environ.get('NNCF_CI')
    os.environ['NNCF_CI'] = '1'
    try:
        import nncf
    except ImportError as error:
        raise ImportError("int8 networks of OpenVINO are made by NNCF: pip install 'rs_timm[int8]'. To serve "
                          'those that a cache_dir has, it is not needed.') from error
    finally:
        if before is None:
            del os.environ['NNCF_CI']
        else:
            os.environ['NNCF_CI'] = before
    return nncf


def _with_onnxruntime(network: Any, batches: _Batches, path: Path) -> None:
    """ONNX Runtime: QDQ nodes, per-channel symmetric int8 weights, asymmetric uint8 activations."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._batches = batches()

        def get_next(self) -> Optional[Mapping[str, np.ndarray]]:
            batch = next(self._batches, None)
            return None if batch is None else {IMAGES: batch}

    quantize_static(
        network, path, Reader(), quant_format=QuantFormat.QDQ, per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8)


_SUFFIXES = {'openvino': '.xml', 'onnxruntime': '.onnx'}
_TOOLS: Dict[str, Callable[[Any, _Batches, Path], None]] = {'openvino': _with_nncf, 'onnxruntime': _with_onnxruntime}
