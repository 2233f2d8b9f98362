"""Makes a plan: every engine, precision and size, and cascades of sizes, on pictures and on this machine."""
import hashlib
import math
import os
import random
import time
from datetime import datetime, timezone
from itertools import product
from os import PathLike, fspath
from pathlib import Path
from typing import Any, Callable, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from rs_timm.format.madds import madds_of
from rs_timm.pictures import ImageError
from rs_timm.resolutions import check_resolutions

from ..engines import ENGINES, PRECISIONS, check_precision, installed_engines
from ..quantize import QuantisedFile
from ..session import Session
from ..sources import ExportedFile
from .cascade import Cascade, CascadeFit
from .cascade_fit import fit_cascade
from .latency_table import Timing, least_calls
from .machine import describe_machine
from .plan import DroppedPoint, Plan, PlannedModel, PlanPoint
from .plan_log import MeasuredLog
from .race import Contender, Race

__all__ = ['FILE_ENGINES', 'make_plan']

FILE_ENGINES = tuple(name for name in ENGINES if name != 'torch')  # those that run exported files
_EFFORT = 100  # of `fit_cascade`
_PathOrStr = Union[str, 'PathLike[str]']
Entry = Dict[str, Any]  # what a contender is, as fields of a point: model, engine, precision, resolution, madds


def make_plan(
        models: Union[Mapping[str, _PathOrStr], Sequence[_PathOrStr]],
        pictures: Sequence[Any],
        targets: Optional[Sequence[int]] = None,
        *,
        engines: Optional[Sequence[str]] = None,
        precisions: Optional[Sequence[str]] = None,
        sizes: Optional[Sequence[int]] = None,
        cascades: bool = False,
        threads: Optional[int] = None,
        device: Optional[str] = None,
        calibration: Optional[Sequence[Any]] = None,
        networks: Optional[_PathOrStr] = None,
        tolerance: Optional[float] = 1.,
        calls: int = 200,
        log: Optional[_PathOrStr] = None,
        note: Callable[[str], None] = lambda text: None,
        skip: Optional[Callable[[ImageError], None]] = None,
        progress: bool = False,
        seed: int = 0,
        clock: Callable[[], int] = time.perf_counter_ns,
) -> Plan:
    """Measure time and accuracy of every engine, precision and size of exported files, on this machine.

    All answer the same pictures in turns, one by one, and each call is timed. Those that are behind another beyond
    doubt stop early (`Race` says when). Without labels, accuracy is agreement with what is taken for the most accurate:
    float32 at the largest size, of the network with the most multiply-adds.

    >>> import rs_timm, tempfile
    >>> file = Path(tempfile.mkdtemp()) / 'tiny.onnx'
    >>> _ = rs_timm.export_onnx(rs_timm.switchable('test_resnet', (64, 32), num_classes=10), file)
    >>> pictures = [np.full((80, 90, 3), level, np.uint8) for level in range(12)]
    >>> plan = make_plan([file], pictures, precisions=['float32'], calls=72)
    >>> plan.measure, plan.choose(ms=1e4).accuracy
    ('agreement', 100.0)

    Args:
        models: exported files, by name or not; they have the same classes.
        pictures: what a `Session` takes.
        targets: the class of each; None: there are no labels.
        engines: of those that run files; None: all that are installed.
        precisions: None: all that can be had; int8 where `networks` is given.
        sizes: in pixels, trained or not; None: the trained ones of each model.
        cascades: fit cascades of the sizes of each network, and measure those too.
        threads, device: as of a `Session`.
        calibration: pictures for int8, some hundred; None: `networks` has all that is needed.
        networks: a folder that keeps the int8 networks, where the plan will look for them.
        tolerance: points of accuracy that a slower network must be ahead, beyond doubt behind which it is not measured
            further; None: all are measured to the end.
        calls: that are timed at least, of each network.
        log: a file that keeps what was measured, so that a measurement that was stopped goes on.
        note: called with a sentence on each combination that cannot be had.
        skip: called with the error of a picture that cannot be read, which is then left out; None: it is raised.
        progress: show bars where the standard error is a terminal.
        seed: of the order of pictures and turns.
        clock: nanoseconds.

    Raises:
        ValueError: no pictures, classes that do not fit, nothing that can run, or values out of range.
        OSError: a file that cannot be read.
        ImageError: a picture that cannot be read.
    """
    _check(pictures, targets, tolerance, calls)
    files = {name: ExportedFile(path) for name, path in _named(models).items()}
    classes = _common_classes(files)
    wanted = None if sizes is None else check_resolutions(sizes)
    order = random.Random(seed).sample(range(len(pictures)), len(pictures))
    pictures = [pictures[index] for index in order]
    known = None if targets is None else np.array([targets[index] for index in order], np.int64)
    if known is not None and not 0 <= known.min() <= known.max() < classes:
        raise ValueError(f'classes from {known.min()} to {known.max()}: the models know 0 to {classes - 1}.')
    if not (able := engines or [name for name in installed_engines() if name in FILE_ENGINES]):
        raise ValueError('no engine is installed that runs exported files: pip install '
                         "'rs_timm[openvino]', or 'rs_timm[onnxruntime]'.")
    kinds = list(product(files, dict.fromkeys(able), dict.fromkeys(map(check_precision, precisions or PRECISIONS))))
    entries = _contenders(files, kinds, wanted, dict(threads=threads, device=device),
                          dict(calibration=calibration, cache_dir=networks), note, progress)
    reference = None if known is not None else max(entries, key=lambda contender: _trust(entries[contender]))
    settings = dict(pictures=_digest(pictures), threads=threads, device=device, machine=describe_machine())
    kept = MeasuredLog(log, settings)
    try:
        how: Dict[str, Any] = dict(log=kept, skip=skip, progress=progress, seed=seed, clock=clock)
        race = Race([*entries], pictures, known, reference, tolerance, keep_logits=cascades, **how)
        race.run(calls)
        for failed, error in race.failed.items():
            note(f'{failed.label} is left out: {error}')
        rights = {contender: contender.right(race.targets) for contender in race.running}
        points = [PlanPoint(
            **entries[contender], network=Timing.of(contender.nanoseconds), accuracy=100. * float(right.mean()),
            pictures=len(right)) for contender, right in rights.items()]
        races = [race]
        if cascades:
            points += _cascades(races, entries, pictures, calls, how)
    finally:
        kept.close()
    versions = {name: version for contender in entries for name, version in contender.session.versions.items()}
    versions.pop('device', None)
    return Plan(
        models={name: PlannedModel(str(file.path), file.digest) for name, file in files.items()},
        points=tuple(points),
        dropped=tuple(_dropped(entries[contender], contender, race.targets) for contender in race.out),
        measure='agreement' if known is None else 'top1',
        reference=None if reference is None else reference.label,
        pictures=len(pictures),
        seconds=sum(each.nanoseconds for each in races) / 1e9,
        tolerance=tolerance or 0.,
        threads=threads,
        device=device,
        networks=None if networks is None else os.path.abspath(networks),
        versions=versions,
        machine=describe_machine(),
        measured=datetime.now(timezone.utc).isoformat(timespec='seconds'),
    )


def _check(pictures: Sequence[Any], targets: Optional[Sequence[int]], tolerance: Optional[float], calls: int) -> None:
    if not len(pictures):
        raise ValueError('no pictures to measure with.')
    if targets is not None and len(targets) != len(pictures):
        raise ValueError(f'{len(targets)} targets for {len(pictures)} pictures: give one a picture.')
    if tolerance is not None and not 0. <= tolerance <= 100.:
        raise ValueError(f'tolerance {tolerance}: points of accuracy from 0, or None to measure everything to the end.')
    if calls < least_calls():
        raise ValueError(f'calls {calls}: a p95 needs at least {least_calls()}.')


def _named(models: Any) -> Dict[str, Any]:
    """Name -> file; without names, that of the file, or all of its path where two are called alike."""
    if isinstance(models, Mapping):
        named = dict(models)
    else:
        paths = [fspath(path) for path in models]
        stems = [Path(path).stem for path in paths]
        named = {stem if stems.count(stem) == 1 else path: path for stem, path in zip(stems, paths)}
    if not named:
        raise ValueError('no models: name at least one exported file.')
    return named


def _common_classes(files: Mapping[str, ExportedFile]) -> int:
    """The number of classes of all the models.

    Raises:
        ValueError: they differ, or one is no classifier.
    """
    first, *others = files
    for name, file in files.items():
        if file.info.task != 'classification' or not file.info.num_classes:
            raise ValueError(f'{name} is no classifier: a plan compares classifiers.')
    for name in others:
        ours, theirs = files[first].info, files[name].info
        if (ours.num_classes, ours.label_names) != (theirs.num_classes, theirs.label_names):
            raise ValueError(f'{first} and {name} have different classes ({ours.num_classes} and {theirs.num_classes}'
                             f'{", of other names" * (ours.num_classes == theirs.num_classes)}): make a plan of each.')
    return files[first].info.num_classes


def _contenders(
        files: Mapping[str, ExportedFile],
        kinds: Sequence[Tuple[str, str, str]],
        sizes: Optional[Sequence[int]],
        options: Mapping[str, Any],
        int8: Mapping[str, Any],
        note: Callable[[str], None],
        progress: bool,
) -> Dict[Contender, Entry]:
    """Everything that can run, compiled.

    Args:
        files: name -> model.
        kinds: (name, engine, precision).
        sizes: in pixels; None: the trained ones.
        options, int8: of all sessions, and of those in int8 besides.
        note, progress: as of `make_plan`.
    """
    from tqdm import tqdm  # not at the top: serving needs no bar

    entries: Dict[Contender, Entry] = {}
    reasons: List[str] = []
    for name, engine, precision in tqdm(kinds, desc='preparing', leave=False, disable=None if progress else True):
        file = files[name]
        try:
            if precision == 'int8' and int8['cache_dir'] is None:
                raise ValueError('int8 needs a folder for its networks: networks=...')
            session = Session(file.path, engine, precision, **options, **(int8 if precision == 'int8' else {}))
            versions = ','.join(map(' '.join, session.versions.items()))
            source = session.source
            for size in sizes or session.resolutions:
                session.prepare((size,))
                label = ' '.join([*([name] if len(files) > 1 else []), engine, precision, f'{size} px'])
                digest = source.digest(size) if isinstance(source, QuantisedFile) else file.digest[:16]
                key = f'{digest} {engine} {precision} {size} px, {versions}'  # what decides the answers and the time
                entries[Contender(session, size, key, label)] = dict(
                    model=name, engine=engine, precision=precision, resolution=size, madds=madds_of(session, size))
        except (ImportError, ValueError) as error:
            reasons.append(f'{engine} {precision} of {name} is left out: {error}')
            note(reasons[-1])
    if not entries:
        raise ValueError(f'nothing of this can run here: {reasons[0]}')
    return entries


def _trust(entry: Entry) -> Tuple[int, ...]:
    """How accurate a network is taken for where nothing is known."""
    return -PRECISIONS.index(entry['precision']), entry['madds'], -ENGINES.index(entry['engine'])


def _digest(pictures: Sequence[Any]) -> str:
    """Identify pictures: files by path and size, others by their content."""
    digest = hashlib.sha256()
    for picture in pictures:
        if isinstance(picture, (str, PathLike)):
            size = os.path.getsize(picture) if os.path.exists(picture) else 0
            content = f'{os.path.abspath(picture)} {size}'.encode()
        else:
            content = picture if isinstance(picture, bytes) else np.asarray(picture).tobytes()
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def _dropped(entry: Entry, contender: Contender, targets: np.ndarray) -> DroppedPoint:
    assert contender.behind is not None
    times = sorted(contender.nanoseconds)
    return DroppedPoint(
        **{key: value for key, value in entry.items() if key != 'madds'},
        p50_ms=contender.median()[1] / 1e6, p95_ms=times[math.ceil(0.95 * len(times)) - 1] / 1e6,
        accuracy=min(100., max(0., _estimate(contender, targets))), pictures=len(contender.right(targets)),
        behind=contender.behind.label)


def _estimate(contender: Contender, targets: np.ndarray) -> float:
    """The accuracy of a network that was stopped, by its difference to the one that took its place."""
    right = contender.right(targets)
    if contender.behind is None:
        return 100. * float(right.mean())
    difference = 100. * float(right.mean() - contender.behind.right(targets)[:len(right)].mean())
    return _estimate(contender.behind, targets) + difference


# Cascades

def _cascades(
        races: List[Race],
        entries: Mapping[Contender, Entry],
        pictures: Sequence[Any],
        calls: int,
        how: Mapping[str, Any],
) -> List[PlanPoint]:
    """Cascades of the sizes of each network that are left; each costs on average what one of its sizes does, or less.

    Their accuracy is of pictures that the thresholds were not chosen on: of each half, with the fit to the other one.
    The times are those of the fit to all pictures, which is what the plan keeps. Their race is added to `races`.
    """
    (race,) = races
    groups: Dict[Session, List[Contender]] = {}
    for contender in race.running:
        groups.setdefault(contender.session, []).append(contender)
    found: Dict[Contender, Tuple[Entry, float]] = {}
    for session, members in groups.items():
        positions = sorted(members[0].logits)
        if len(positions) < 2:  # nothing to try a fit on
            continue
        targets = race.targets[positions]
        logits = {member.size: np.stack([member.logits[position] for position in positions]) for member in members}
        costs = {member.size: float(np.mean(member.nanoseconds)) / 1e6 for member in members}
        fits: List[CascadeFit] = []
        for budget in sorted(costs.values())[1:]:
            fit, accuracy = _fitted(logits, targets, costs, budget)
            if len(fit.resolutions) > 1 and fit not in fits:
                fits.append(fit)
                key = hashlib.sha256(repr((members[0].key, fit.thresholds, fit.temperatures)).encode()).hexdigest()
                cascade = Contender(_CascadeSession(session, fit), fit.resolutions[-1], key[:16], '')
                madds = {member.size: entries[member]['madds'] for member in members}
                entry = dict(entries[members[0]], resolution=cascade.size, madds=_mean_madds(fit, madds), cascade=fit)
                found[cascade] = entry, accuracy
    if not found:
        return []
    first = pictures[:max(calls, least_calls())]
    timed = Race([*found], first, race.targets[:len(first)], tolerance=None, **how)
    timed.run(calls)
    races.append(timed)
    count = len(race.running[0].right(race.targets))
    return [PlanPoint(**entry, network=Timing.of(contender.nanoseconds), accuracy=accuracy, pictures=count)
            for contender, (entry, accuracy) in found.items() if contender in timed.running]


def _fitted(
        logits: Mapping[int, np.ndarray],
        targets: np.ndarray,
        costs: Mapping[int, float],
        budget: float,
) -> Tuple[CascadeFit, float]:
    """The best cascade within a mean cost, and its accuracy by fits to one half that answer the other one."""
    half = np.arange(len(targets)) % 2 == 0

    def fit_to(chosen: np.ndarray) -> CascadeFit:
        return fit_cascade({size: values[chosen] for size, values in logits.items()}, targets[chosen], budget=budget,
                           costs=costs, effort=_EFFORT)

    right = 0
    for chosen in (half, ~half):
        cascade = Cascade.fitted(_Known(), fit_to(chosen))
        answers = cascade.run({size: logits[size][~chosen] for size in cascade.resolutions}).logits.argmax(axis=1)
        right += int((answers == targets[~chosen]).sum())
    return fit_to(np.ones(len(targets), bool)), 100. * right / len(targets)


class _Known:
    """Stands for a session whose answers are known: what it gets is what it gives."""

    info = None

    def run(self, x: np.ndarray, size: int) -> np.ndarray:
        return x


class _CascadeSession:
    """A cascade as a `Race` takes a session: the tensors of a picture are those of all its sizes."""

    def __init__(self, session: Session, fit: CascadeFit) -> None:
        self.session, self._cascade = session, Cascade.fitted(session, fit)
        self.preprocessing = self  # shared with no other

    def preprocess(self, pictures: Sequence[Any], size: int) -> List[Dict[int, np.ndarray]]:
        batches = {r: self.session.preprocess(pictures, r) for r in self._cascade.resolutions}
        return [{r: batch[index:index + 1] for r, batch in batches.items()} for index in range(len(pictures))]

    def run(self, x: Sequence[Dict[int, np.ndarray]], size: int) -> np.ndarray:
        return self._cascade.run(x[0]).logits


def _mean_madds(fit: CascadeFit, madds: Mapping[int, int]) -> int:
    """Multiply-adds of a picture on average: it pays for all sizes up to the one that answers."""
    total, paid = 0., 0
    for size in fit.resolutions:
        paid += madds[size]
        total += fit.shares[size] * paid
    return round(total)
