"""A switchable network that serves: pictures in, logits out, the resolution a dial."""
import math
import os
from functools import cached_property
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Dict, Iterable, Mapping, NoReturn, Optional, Sequence, Tuple, Union

import numpy as np

from rs_timm.crops import CropPct, check_crop_pct
from rs_timm.format.info import ModelInfo
from rs_timm.pictures import MAX_PIXELS
from rs_timm.resolutions import check_resolutions

from .engines import check_precision, create_engine
from .networks import Networks
from .preprocessing import Preprocessing, is_ready
from .quantize import QuantisedFile
from .sources import ExportedFile, Source, is_torch_model, open_source

if TYPE_CHECKING:
    from .planned import PlannedSession

__all__ = ['MEMORY', 'NotFiniteError', 'Session']

MEMORY = ('speed', 'shared')


class NotFiniteError(ValueError):
    """A network gave NaN or infinity, which is no prediction.

    Attributes:
        pictures: positions in the batch of those that it was for.
        logits: of the whole batch.
    """

    def __init__(self, message: str, pictures: Sequence[int], logits: np.ndarray) -> None:
        super().__init__(message)
        self.pictures, self.logits = tuple(pictures), logits


class Session:
    """Serves an exported file, or a torch model, on an engine; torch is needed for the latter only.

    For each resolution the engine gets a plain network of its own, on first use or by `prepare`; from then on a switch
    is a dictionary lookup. Sizes that were not trained get the interpolated BatchNorms, as in torch. Calls may come
    from several threads.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48, 32), num_classes=10)
    >>> session = Session(model)
    >>> picture = np.zeros((300, 400, 3), np.uint8)
    >>> session(picture, resolution=48).shape, session([picture, picture]).shape
    ((1, 10), (2, 10))

    Args:
        model: the path of a file that `rs_timm.export_onnx` or `rs-timm export` wrote; or a torch model. The session is
            a snapshot of either: a file that changes later is an error when a new size would be read from it.
        engine: 'openvino', 'onnxruntime' or 'torch' (torch models alone); None: the first that is installed and can do
            the precision.
        precision: 'float32', 'bfloat16' or 'int8'; what an engine cannot do is an error.
        threads: per network; None leaves it to the engine.
        memory: 'speed' gives each resolution a network of its own; 'shared' runs the file's one graph at all sizes: one
            copy of the weights, but slower, and a switch costs more. The torch engine always shares its weights.
        draft: let the JPEG decoder scale down by 2, 4 or 8 where that leaves more than the network needs.
        calibration: for int8: some hundred pictures of those that will be served, as for a call.
        cache_dir: a folder that keeps what takes long to make: the calibrated networks of int8, which are used as they
            are, and what OpenVINO has compiled, so that a second start compiles nothing.
        device: of OpenVINO: 'CPU', 'GPU', 'NPU', 'AUTO', ...; of ONNX Runtime: one of its providers, such as 'CUDA';
            None: the CPU. What is not there is an error that names what is.
        device_options: by the engine's own names: properties of OpenVINO, options of a provider of ONNX Runtime.
        max_networks: compiled networks that are kept, one for each resolution (and batch, where the engine wants that);
            beyond, the one that was not used for the longest time goes, and is compiled again when it is asked for.
        max_pixels: width times height of a picture that is decoded; a larger one is an error.
        check_digest: compare what the file holds with the digest in it; False saves the time for huge files. Those of
            earlier versions have none, and are believed.
        crop_pct: in place of what the model says: a number for all sizes, or resolution -> crop (`rs_timm.crops`).

    Raises:
        ImportError: the engine, or every engine, is not installed.
        FileNotFoundError: no such file.
        ValueError: an unknown engine or precision, or a precision that the engine or this CPU cannot do; a file that
            rs_timm did not write, or that is damaged; a network that gives several tensors.
    """

    def __init__(
            self,
            model: Any,
            engine: Optional[str] = None,
            precision: str = 'float32',
            threads: Optional[int] = None,
            *,
            memory: str = 'speed',
            draft: bool = True,
            calibration: Optional[Sequence[Any]] = None,
            cache_dir: Union[None, str, 'PathLike[str]'] = None,
            max_networks: int = 32,
            device: Optional[str] = None,
            device_options: Optional[Mapping[str, Any]] = None,
            max_pixels: int = MAX_PIXELS,
            check_digest: bool = True,
            crop_pct: Optional[CropPct] = None,
    ) -> None:
        precision = check_precision(precision)
        if isinstance(max_networks, bool) or not isinstance(max_networks, int) or max_networks < 1:
            raise ValueError(f'max_networks={max_networks!r}: give a positive whole number.')
        _check_options(precision, memory, calibration)
        compiled = None if cache_dir is None else Path(cache_dir) / 'openvino'
        self._engine = create_engine(
            engine, precision, threads, is_torch_model(model), device, device_options, compiled)
        if cache_dir is not None and precision != 'int8' and self._engine.name != 'openvino':
            raise ValueError(f'cache_dir keeps int8 networks and what OpenVINO has compiled: {self._engine.name} in '
                             f'{precision} has neither.')
        self.engine_name = self._engine.name
        self.precision = precision
        self.threads = threads
        self.memory = memory
        self.draft = draft
        self.max_pixels = max_pixels
        self._crop_pct = None if crop_pct is None else check_crop_pct(crop_pct)
        self._source: Source = open_source(model, self._engine.name, precision, check_digest)
        if self.info.task == 'features':
            raise ValueError(f'{self.info.name} gives features, not one output: a session serves classifiers and '
                             'segmentation networks.')
        if precision == 'int8':
            assert isinstance(self._source, ExportedFile)
            self._source = QuantisedFile(self._source, self._engine.name, calibration, self.preprocess, cache_dir)
        one_network = memory == 'shared' and self._engine.name != 'torch'
        if one_network and self.info.choice == 'input':
            raise ValueError("memory='shared' needs a graph that takes the resolution from the size of its images: "
                             "export the model with choice='shape', or take memory='speed'.")
        self._resolution = self.resolutions[0]
        self._only = self._resolution if self.info.choice == 'fixed' else None
        source = self._source
        plain = (lambda resolution: source.graph()) if one_network else source.network
        self._networks = Networks(self._engine, plain, one_network, max_networks, source.name)
        self.latency_table: Any = None  # of the last set_budget that measured

    @classmethod
    def from_plan(
            cls,
            plan: Any,
            ms: Optional[float] = None,
            *,
            fps: Optional[float] = None,
            madds: Optional[float] = None,
            by: str = 'p95',
            if_none: str = 'error',
            **options: Any,
    ) -> 'PlannedSession':
        """Open the most accurate network of a plan within a budget: its model, engine, precision and size.

        `set_budget` then moves over the whole plan.

        >>> session = Session.from_plan('plan.json', ms=5)  # doctest: +SKIP
        >>> session.set_budget(ms=3)                        # doctest: +SKIP

        Args:
            plan: a `Plan`, or the file of one, such as 'rs-timm plan' writes.
            ms, fps, madds, by, if_none: as of `Plan.choose`; without a limit, the most accurate of all.
            options: of the sessions: draft, max_networks, max_pixels, device_options.

        Raises:
            ValueError: nothing fits (with what the fastest takes), or a model that has changed since.
            OSError: no such file.

        Warns where the machine or a version is another than the plan's.
        """
        from .planned import PlannedSession

        return PlannedSession(plan, ms, fps=fps, madds=madds, by=by, if_none=if_none, **options)

    @property
    def info(self) -> ModelInfo:
        """The description of the model."""
        return self._source.info

    @property
    def source(self) -> Source:
        """The exported file, or torch model, that the networks come from."""
        return self._source

    @property
    def resolutions(self) -> Tuple[int, ...]:
        """Sizes in pixels with a BatchNorm set of their own, largest first."""
        return self.info.resolutions

    @property
    def versions(self) -> Dict[str, str]:
        """Versions of the packages that decide how fast the session is, by name."""
        return self._engine.versions()

    @property
    def graph(self) -> Any:
        """The network with all its sets: an `onnx.ModelProto`, read or made anew each time."""
        return self._source.graph()

    @property
    def resolution(self) -> int:
        """Pixels that are used where a call does not say; at first the largest trained size."""
        return self._resolution

    def set_resolution(self, resolution: int) -> None:
        """Use `resolution` pixels, trained or not, where a call does not say.

        Raises:
            ValueError: no positive whole number; a file of one resolution, and another one.
        """
        self._resolution = self._checked(resolution)

    def _checked(self, resolution: int) -> int:
        (resolution,) = check_resolutions((resolution,))
        if self._only not in (None, resolution):
            raise ValueError(f'the file is the plain network for {self._only} px alone, not for {resolution}: '
                             'export the model with all its BatchNorm sets.')
        return resolution

    def __call__(self, images: Any, resolution: Optional[int] = None) -> np.ndarray:
        """Logits, float32 [N, classes], of pictures.

        Args:
            images: one or a list of: a path, the bytes of a file, a PIL picture, a uint8 array [H, W, 3]; or a ready
                batch as `run` takes it.
            resolution: pixels, for this call; None: `session.resolution`, or that of a ready batch.

        Raises:
            ImageError: a file that is no readable picture; the message names it.
            ValueError: no picture; a ready batch of another resolution.
        """
        if is_ready(images):
            return self.run(images, resolution)
        resolution = self._resolution if resolution is None else resolution
        return self.run(self.preprocess(images, resolution), resolution)

    def preprocess(self, images: Any, resolution: Optional[int] = None) -> np.ndarray:
        """Pictures as the network expects them: float32 [N, C, resolution, resolution]. Arguments as for a call."""
        self._networks.check_process()
        resolution = self._checked(self._resolution if resolution is None else resolution)
        return self._ready(images, resolution) if is_ready(images) else self.preprocessing(images, resolution)

    @cached_property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing that the network expects, at any resolution."""
        info = self.info
        return Preprocessing(
            info.mean, info.std, self._crop_pct or info.crops or info.crop_pct, info.resize_interpolation,
            info.crop_mode, self.draft, threads=min(8, self.threads or os.cpu_count() or 1),
            max_pixels=self.max_pixels)

    def run(self, x: np.ndarray, resolution: Optional[int] = None) -> np.ndarray:
        """Logits, float32 [N, classes], of a batch that is ready: no preprocessing.

        Args:
            x: float32 [N, C, r, r], normalised.
            resolution: r, to be sure of it; None: whatever x has.

        Raises:
            ValueError: another shape, or another resolution.
        """
        self._networks.check_process()
        x = self._ready(x, resolution)
        if self._only not in (None, x.shape[-1]):
            self._checked(x.shape[-1])
        try:
            logits = self._networks.run(x)
        except (ImportError, MemoryError, OSError, ValueError):
            raise
        except Exception as error:  # engines have kinds of their own
            reason = ' '.join(str(error).split())[:300]
            raise ValueError(
                f'{self.engine_name} cannot run {self._source.name} at {x.shape[-1]} px: {reason}') from error
        if not math.isfinite(np.vdot(logits, logits)):  # the cheapest test; squares may overflow, though
            broken = np.flatnonzero(~np.isfinite(logits.reshape(len(x), -1)).all(axis=1)).tolist()
            if broken:
                raise NotFiniteError(
                    f'{self._source.name} gives values that are not finite at {x.shape[-1]} px in {self.precision}, '
                    f'for {len(broken)} of {len(x)} pictures: its weights are damaged, or the precision does not hold '
                    'them.', broken, logits)
        return logits

    def _ready(self, x: Any, resolution: Optional[int]) -> np.ndarray:
        x = np.ascontiguousarray(x, np.float32)
        if not x.flags.writeable:  # such as np.frombuffer gives; engines want to be able to write
            x = x.copy()
        channels, size = self.info.channels, x.shape[-1] if x.ndim else 0
        if x.ndim != 4 or x.shape[1] != channels or x.shape[2] != size or not x.size:
            raise ValueError(f'a ready batch of shape {list(x.shape)}: expected [N, {channels}, r, r], N, r positive.')
        if resolution is not None and size != resolution:
            raise ValueError(f'a ready batch of {size} px at resolution {resolution}: it would have to be resized; '
                             f'give pictures, or resolution={size} or none.')
        return x

    def prepare(self, resolutions: Optional[Iterable[int]] = None, batch: int = 1) -> None:
        """Compile ahead what calls would compile on first use.

        Args:
            resolutions: pixels; None: all trained sizes.
            batch: pictures in a call; some engines have a network for each.
        """
        self._networks.check_process()
        check_resolutions((batch,))
        for resolution in check_resolutions(self.resolutions if resolutions is None else resolutions):
            self._networks.prepare(self._checked(resolution), batch)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse copies and pickles by name: compiled networks are of one process."""
        raise TypeError('a Session cannot be pickled or copied, since its networks are compiled in this process: pass '
                        'on the path of the exported file, and make a Session of it there.')

    def set_budget(
            self,
            ms: Optional[float] = None,
            madds: Optional[float] = None,
            fps: Optional[float] = None,
            table: Any = None,
            step: Optional[int] = None,
            if_none: str = 'error',
            **options: Any,
    ) -> int:
        """Set, and return, the largest resolution that keeps a budget on this machine.

        Latency is measured now, unless a table says it. What was measured stays in `latency_table`.

        Args:
            ms: milliseconds that a call may take, at its p95.
            madds: multiply-adds per picture.
            fps: pictures per second, one call after the other.
            table: a `LatencyTable` of an earlier measurement, such as 'rs-timm bench' writes.
            step: candidates every so many pixels, trained or not; None: the trained sizes.
            if_none: 'error', or 'smallest' to take the smallest resolution where none fits.
            options: as for `rs_timm.runtime.policy.budget.choose_resolution`.

        Raises:
            ValueError: no limit given, a table of another session, or nothing fits (with what the smallest size takes).
        """
        from .policy.budget import choose_resolution

        choice = choose_resolution(
            self, ms=ms, madds=madds, fps=fps, table=table, step=step, if_none=if_none, **options)
        self.latency_table = choice.table
        self.set_resolution(choice.resolution)
        return choice.resolution


def _check_options(precision: str, memory: str, calibration: Any) -> None:
    if memory not in MEMORY:
        raise ValueError(f"memory {memory!r} is unknown: choose one of {', '.join(MEMORY)}.")
    if precision != 'int8' and calibration is not None:
        raise ValueError(f"calibration is for precision='int8', not for {precision!r}.")
    if precision == 'int8' and memory == 'shared':
        raise ValueError("memory='shared' with precision='int8': the ranges of the activations differ between "
                         "resolutions, so that each has an int8 network of its own; take memory='speed'.")
