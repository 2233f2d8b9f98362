"""How much of a picture a network is shown at each size: `crop_pct` belongs to a size.

In evaluation the shorter side is resized to floor(size / crop_pct) and the central square of that size is cut out: a
smaller crop shows less of the picture, and what it shows larger. A network that was trained at one size has learned
objects of a certain size in pixels, and at fewer pixels it wants a smaller crop; one that was trained at all of its
sizes wants the crop of its training at each (Touvron et al., Fixing the train-test resolution discrepancy, 2019).

Wherever the package takes `crop_pct`, it takes one number for all sizes or a mapping {size: number}. A network keeps
its own in `crops_of(model)`, a saved one in config.json, an exported one in its metadata; `pretrained_cfg`, which timm
reads, has the number of the largest size. This module needs no torch.
"""
import math
from typing import Any, Dict, Iterable, Mapping, Optional, Union

import numpy as np

__all__ = ['CropPct', 'check_crop_pct', 'crop_at', 'crop_rule', 'crops_of', 'set_crops']

CropPct = Union[float, Mapping[int, float]]


def check_crop_pct(crop_pct: CropPct, resolutions: Optional[Iterable[int]] = None) -> CropPct:
    """The same crop, or crops with the largest size first, after a check.

    Args:
        crop_pct: one number in (0, 1], or size in pixels -> number.
        resolutions: sizes that the network has, if the sizes of a mapping must be among them.

    Raises:
        ValueError: a crop outside (0, 1], no size, a size that the network has not.
    """
    if not isinstance(crop_pct, Mapping):
        return _checked(crop_pct, 'crop_pct')
    if not crop_pct:
        raise ValueError('crop_pct has no size: give {size in pixels: crop in (0, 1]}, such as {224: 0.875, 96: 0.55}.')
    crops = {}
    for size, crop in crop_pct.items():
        if isinstance(size, bool) or not isinstance(size, (int, np.integer)) or size < 1:
            raise ValueError(f'crop_pct has a crop for size {size!r}: sizes are pixels, positive whole numbers.')
        crops[int(size)] = _checked(crop, f'crop_pct of {size} px')
    known = None if resolutions is None else sorted(resolutions, reverse=True)
    unknown = [] if known is None else [size for size in crops if size not in known]
    if unknown:
        raise ValueError(f'crop_pct has a crop for {unknown[0]} px, a size that the network has not: it has '
                         f"{', '.join(map(str, known or ()))}. Other sizes get the interpolated crop.")
    return dict(sorted(crops.items(), reverse=True))


def _checked(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)) or not 0 < value <= 1:
        raise ValueError(f'{name} is {value!r}: a crop is above 0, and at most 1 (the whole shorter side).')
    return float(value)


def crop_at(crop_pct: CropPct, resolution: int) -> float:
    """The crop at a size: its own, else interpolated between the neighbours; outside of them that of the nearest.

    >>> crop_at({224: 0.875, 128: 0.65}, 176), crop_at({224: 0.875, 128: 0.65}, 96), crop_at(0.9, 96)
    (0.7625, 0.65, 0.9)
    """
    if not isinstance(crop_pct, Mapping):
        return float(crop_pct)
    if resolution in crop_pct:
        return float(crop_pct[resolution])
    sizes = sorted(crop_pct)
    return float(np.interp(resolution, sizes, [crop_pct[size] for size in sizes]))


def crop_rule(resolutions: Iterable[int], crop_pct: float = 0.875, native: Optional[int] = None) -> Dict[int, float]:
    """Crops for a network that was trained at one size, where nothing else is known: crop_pct * sqrt(size / native).

    On EfficientNet-Lite0 the tried crops on both sides of it are within 1.2 points of the best one at 192 to 96 px
    (benchmarks/results/adaptation.csv). A network that was trained at several sizes does not need it.

    >>> {size: round(crop, 3) for size, crop in crop_rule((224, 160, 96)).items()}
    {224: 0.875, 160: 0.74, 96: 0.573}

    Args:
        resolutions: sizes in pixels.
        crop_pct: at the size that the network was trained for.
        native: that size; None: the largest.
    """
    sizes = sorted(resolutions, reverse=True)
    if not sizes:
        raise ValueError('no size to give a crop to: resolutions is empty.')
    whole = native or sizes[0]
    crop = _checked(crop_pct, 'crop_pct')
    return {size: min(1., crop * math.sqrt(size / whole)) for size in sizes}


def crops_of(model: Any) -> Optional[Dict[int, float]]:
    """Size -> crop of a network that has own crops, largest size first; None for one crop at all sizes.

    They count as long as `pretrained_cfg['crop_pct']` is that of their largest size: whoever writes another one there
    wants it at all sizes.
    """
    crops = (getattr(model, 'checkpoint_metadata', None) or {}).get('crops')
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    return dict(crops) if crops and cfg.get('crop_pct') == crops[max(crops)] else None


def set_crops(model: Any, crops: Optional[Mapping[int, float]]) -> None:
    """Give a network of timm crops of its own, in place; None takes them away.

    Evaluation, export and saving follow them. `pretrained_cfg['crop_pct']`, which timm reads, becomes that of the
    largest size.

    >>> import timm, rs_timm
    >>> model = timm.create_model('rs_resnet18', resolutions=(64, 48))
    >>> set_crops(model, crop_rule(model.resolutions, 0.875))
    >>> round(crops_of(model)[48], 3), model.pretrained_cfg['crop_pct']
    (0.758, 0.875)

    Raises:
        ValueError: as in `check_crop_pct`, with the sizes that the network has.
    """
    kept = {k: v for k, v in (getattr(model, 'checkpoint_metadata', None) or {}).items() if k != 'crops'}
    if crops is not None:
        kept['crops'] = check_crop_pct(crops, getattr(model, 'resolutions', None))
        largest = next(iter(kept['crops'].values()))
        model.pretrained_cfg = model.default_cfg = dict(model.pretrained_cfg, crop_pct=largest)
    model.checkpoint_metadata = kept
