"""A session that moves over a plan: from model to model, engine to engine, precision to precision, size to size."""
from os import PathLike
from threading import RLock
from typing import Any, Dict, Iterable, NamedTuple, NoReturn, Optional, Set, Tuple, Union

import numpy as np

from .policy.cascade import Cascade
from .policy.plan import Plan, PlanPoint
from .preprocessing import is_ready
from .session import Session
from .sources import ExportedFile

__all__ = ['PlannedSession']


class _Place(NamedTuple):
    """Where a call is answered."""

    point: PlanPoint
    session: Session
    cascade: Optional[Cascade]
    resolution: int


class PlannedSession:
    """Serves at a point of a `Plan`, as a `Session` does; `set_budget` moves to another point.

    The session of each model, engine and precision is opened when it is first needed, or by `prepare`. What is not
    here is that of the session in use: `info`, `resolutions`, `engine_name`, `precision`, `versions` and so on. Calls
    may come from several threads; one that is under way when the point is moved ends where it began.

    Args:
        plan: a `Plan`, or the file of one.
        ms, fps, madds, by, if_none: as of `Plan.choose`; without a limit, the most accurate point.
        options: of the sessions: draft, max_networks, max_pixels, device_options.

    Attributes:
        plan: the plan.

    Raises:
        ValueError: nothing fits, or a model that has changed since the plan was made.
        OSError: no such file.

    Warns where the machine or a version is another than the plan's.
    """

    def __init__(
            self,
            plan: Union[Plan, str, 'PathLike[str]'],
            ms: Optional[float] = None,
            *,
            fps: Optional[float] = None,
            madds: Optional[float] = None,
            by: str = 'p95',
            if_none: str = 'error',
            **options: Any,
    ) -> None:
        self.plan = plan if isinstance(plan, Plan) else Plan.load(plan)
        self._options = options
        self._sessions: Dict[Tuple[str, str, str], Session] = {}
        self._warned: Set[str] = set()
        self._lock = RLock()
        if ms is None and fps is None and madds is None:
            self._place = self._at(self.plan.front()[-1], stacklevel=4)  # past Session.from_plan
        else:
            self._place = self._at(self.plan.choose(ms=ms, fps=fps, madds=madds, by=by, if_none=if_none), stacklevel=4)

    @property
    def point(self) -> PlanPoint:
        """Where it serves: model, engine, precision, size, and what was measured there."""
        return self._place.point

    @property
    def resolution(self) -> int:
        """Pixels that are used where a call does not say; of a cascade, the most."""
        return self._place.resolution

    def set_resolution(self, resolution: int) -> None:
        """Use `resolution` pixels of the network in use, trained or not, until `set_budget` moves on.

        Raises:
            ValueError: as of `Session.set_resolution`.
        """
        place = self._place
        place.session.set_resolution(resolution)
        self._place = place._replace(cascade=None, resolution=resolution)

    def set_budget(
            self,
            ms: Optional[float] = None,
            madds: Optional[float] = None,
            fps: Optional[float] = None,
            by: str = 'p95',
            if_none: str = 'error',
    ) -> int:
        """Move to the most accurate point of the plan within a budget, and return its resolution.

        Arguments and errors as of `Plan.choose`; where nothing fits, the session stays where it is.
        """
        self._place = self._at(self.plan.choose(ms=ms, fps=fps, madds=madds, by=by, if_none=if_none), stacklevel=3)
        return self.resolution

    def __call__(self, images: Any, resolution: Optional[int] = None) -> np.ndarray:
        """Logits, float32 [N, classes], of pictures, or of a ready batch at its size; as of a `Session`."""
        place = self._place
        if is_ready(images) or resolution is not None:
            return place.session(images, resolution)
        if place.cascade is not None:
            return place.cascade(images).logits
        return place.session(images, place.resolution)

    def preprocess(self, images: Any, resolution: Optional[int] = None) -> np.ndarray:
        """Pictures as the network in use expects them: float32 [N, C, resolution, resolution]."""
        place = self._place
        return place.session.preprocess(images, place.resolution if resolution is None else resolution)

    def prepare(self, resolutions: Optional[Iterable[int]] = None, batch: int = 1) -> None:
        """Open and compile ahead what moves would on the way.

        Args:
            resolutions: pixels, of the session in use; None: the whole front of the plan, by p95 and by mean.
            batch: pictures in a call.
        """
        if resolutions is not None:
            return self._place.session.prepare(resolutions, batch)
        for point in (*self.plan.front(), *self.plan.front('mean')):
            place = self._at(point, stacklevel=3)
            place.session.prepare(place.cascade.resolutions if place.cascade else (point.resolution,), batch)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):  # also keeps copies and unpickling out of a half-made object
            raise AttributeError(name)
        return getattr(self._place.session, name)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        """Refuse copies and pickles by name, as a `Session` does."""
        raise TypeError('a PlannedSession cannot be pickled or copied, since its networks are compiled in this '
                        'process: pass on the path of the plan, and make one of it there.')

    def _at(self, point: PlanPoint, stacklevel: int) -> _Place:
        """The place of a point, whose session is opened if it was not."""
        with self._lock:
            key = point.model, point.engine, point.precision
            if key not in self._sessions:
                self._sessions[key] = self._open(point, stacklevel + 1)
            session = self._sessions[key]
        cascade = Cascade.fitted(session, point.cascade) if point.cascade else None
        return _Place(point, session, cascade, point.resolution)

    def _open(self, point: PlanPoint, stacklevel: int) -> Session:
        plan, model = self.plan, self.plan.models[point.model]
        if ExportedFile(model.path).digest != model.digest:
            raise ValueError(f'{model.path} has changed since the plan was made: its times and accuracy are of another '
                             'network; make the plan again with rs-timm plan.')
        kept: Dict[str, Any] = {'cache_dir': plan.networks} if point.precision == 'int8' else {}
        session = Session(model.path, point.engine, point.precision, plan.threads, device=plan.device, **kept,
                          **self._options)
        if point.engine not in self._warned:  # once an engine
            self._warned.add(point.engine)
            plan.warn(session.versions, stacklevel)
        return session
