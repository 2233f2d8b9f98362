"""Which crop is best at each size, from pictures without labels or with them."""
import warnings
from dataclasses import dataclass, replace
from typing import Any, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from rs_timm.crops import check_crop_pct, crop_at, crop_rule

from .session import Session

__all__ = ['CropChoice', 'choose_crops']

CANDIDATES = (1.0, 0.95, 0.875, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5, 0.45, 0.4)
FEW_PICTURES = 50
LEVEL = 0.5  # points of agreement or accuracy within which crops count as equally good


@dataclass(frozen=True)
class CropChoice:
    """The crops that were chosen, and on what grounds.

    Args:
        crops: size -> crop, largest size first.
        scores: size -> {crop: percent of the pictures answered as labelled, or as at the native size}.
        pictures: how many there were.
        by: 'accuracy' or 'agreement'.
    """

    crops: Dict[int, float]
    scores: Dict[int, Dict[float, float]]
    pictures: int
    by: str


def choose_crops(
        model: Any,
        images: Sequence[Any],
        labels: Optional[Sequence[int]] = None,
        resolutions: Optional[Iterable[int]] = None,
        candidates: Sequence[float] = CANDIDATES,
        batch_size: int = 32,
) -> CropChoice:
    """Choose a crop for each size: the one at which most pictures are answered as at the native size, or as labelled.

    Pictures of the kind that the network will see, a few hundred or more; no labels are needed. The largest size keeps
    its crop, since the network's own answers there are the measure; with labels it may change as well. Among crops
    that are level within half a point, the one nearest to `crop_rule` is taken.

    >>> import timm, rs_timm
    >>> from rs_timm.crops import set_crops
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48), num_classes=10)
    >>> pictures = [np.full((80, 100, 3), level, np.uint8) for level in range(60)]
    >>> choice = choose_crops(model, pictures, candidates=(0.875, 0.7))
    >>> set_crops(model, choice.crops)

    Args:
        model: a switchable network of timm, or a `rs_timm.runtime.Session` (faster).
        images: as for a `Session`: paths, bytes, PIL pictures or uint8 arrays; they are read once for each candidate.
        labels: the class of each picture, [N]; None: by agreement.
        resolutions: sizes that get a crop; None: all that the network has.
        candidates: crops to try.
        batch_size: pictures that go through the network together.

    Raises:
        ValueError: no picture, labels of another number, a crop outside (0, 1], a size that the network has not, no
            classifier.
    """
    session = model if isinstance(model, Session) else Session(model, 'torch')
    sizes = _sizes(session.resolutions, resolutions)
    pictures = list(images)
    if not pictures:
        raise ValueError('no pictures to choose crops on.')
    if labels is not None and len(labels) != len(pictures):
        raise ValueError(f'{len(labels)} labels for {len(pictures)} pictures: give one a picture.')
    if len(pictures) < FEW_PICTURES:
        warnings.warn(f'{len(pictures)} pictures are few for a choice of crops: one picture is '
                      f'{100 / len(pictures):.1f} points. Give some hundred.', stacklevel=2)
    tried = sorted({float(check_crop_pct(crop)) for crop in candidates}, reverse=True)  # type: ignore[arg-type]
    if not tried:
        raise ValueError('no candidates: give crops in (0, 1], such as (0.875, 0.7, 0.55).')
    native = session.resolutions[0]
    own = crop_at(session.preprocessing.crop_pct, native)

    def answers(size: int, crop: float) -> np.ndarray:
        make = replace(session.preprocessing, crop_pct=crop)
        parts = [session(make(pictures[start:start + batch_size], size), size).argmax(1)
                 for start in range(0, len(pictures), batch_size)]
        return np.concatenate(parts)

    targets = np.asarray(labels) if labels is not None else answers(native, own)
    rule = crop_rule(sizes, own, native)
    scores: Dict[int, Dict[float, float]] = {}
    crops: Dict[int, float] = {}
    for size in sizes:
        given: List[float] = [own] if labels is None and size == native else tried
        scores[size] = {crop: 100 * float((answers(size, crop) == targets).mean()) for crop in given}
        level = max(scores[size].values()) - LEVEL
        crops[size] = min((abs(crop - rule[size]), crop) for crop, s in scores[size].items() if s >= level)[1]
    return CropChoice(crops, scores, len(pictures), 'agreement' if labels is None else 'accuracy')


def _sizes(own: Tuple[int, ...], wanted: Optional[Iterable[int]]) -> List[int]:
    sizes = sorted(set(own if wanted is None else wanted), reverse=True)
    unknown = [size for size in sizes if size not in own]
    if unknown or not sizes:
        raise ValueError(f'resolutions {sizes}: the network has {own}.')
    return sizes
