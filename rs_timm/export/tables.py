"""The BatchNorm sets of a network as tables: one row a resolution, one column a channel of all layers together."""
from dataclasses import dataclass
from typing import Any, Dict, List, Tuple

import numpy as np
from torch import nn

from rs_timm.interpolation import scale_and_shift
from rs_timm.layers import SwitchableBatchNorm2d, get_interpolation, get_resolutions

__all__ = ['Tables', 'make_tables']


@dataclass(frozen=True)
class Tables:
    """What the choice blends.

    Attributes:
        resolutions: the rows, in pixels, largest first.
        interpolation: 'params', 'affine' or 'nearest'.
        layers: name of a layer -> its number of channels, in the order of the columns.
        values: table -> float32 [rows, columns]. For 'params' these are gamma, beta, mean and variance, with the
            layer's eps in the variance, and each channel in units in which the variance of the first row is 1: scale is
            gamma / sqrt(variance) of the blends, in which the unit cancels, and the row need not be stored. For the
            other two, which blend y = scale * x + shift, scale and shift.
    """

    resolutions: Tuple[int, ...]
    interpolation: str
    layers: Dict[str, int]
    values: Dict[str, np.ndarray]


def make_tables(model: nn.Module) -> Tables:
    """Read the sets of a switchable `model`.

    Raises:
        ValueError: a BatchNorm without running statistics, with a variance of 0 and no eps, or one whose interpolation
            has no closed form.
    """
    resolutions, interpolation = get_resolutions(model), get_interpolation(model)
    layers = {name: m for name, m in model.named_modules() if isinstance(m, SwitchableBatchNorm2d)}
    columns: Dict[str, List[np.ndarray]] = {}
    for name, layer in layers.items():
        sets = [_set_tensors(layer[str(r)], name) for r in resolutions]
        if interpolation == 'affine' and not layer[str(resolutions[0])].affine:
            raise ValueError(f"{name} has no gamma and beta, for which 'affine' interpolates as 'params' does, unlike "
                             "the other layers: set_interpolation(model, 'params') before the export.")
        rows = [s if interpolation == 'params' else dict(zip(('scale', 'shift'), scale_and_shift(**s))) for s in sets]
        for key in rows[0]:
            columns.setdefault(key, []).append(np.stack([row[key] for row in rows]))
    values = {key: np.concatenate(parts, axis=1) for key, parts in columns.items()}
    if interpolation == 'params':
        unit = values['variance'][:1]
        if not (unit > 0).all():
            raise ValueError(f'a BatchNorm with eps 0 has a channel of variance 0 at {resolutions[0]} px: its scale is '
                             'not a number. Recalibrate the model, or give the BatchNorm an eps.')
        values.update(gamma=values['gamma'] / np.sqrt(unit), variance=values['variance'] / unit)
    return Tables(
        resolutions=resolutions,
        interpolation=interpolation,
        layers={name: layer[str(resolutions[0])].num_features for name, layer in layers.items()},
        values={key: table.astype(np.float32) for key, table in values.items()},
    )


def _set_tensors(bn: Any, name: str) -> Dict[str, np.ndarray]:
    """float64 [C] each."""
    if bn.running_mean is None or bn.running_var is None:
        raise ValueError(f'{name} has no running statistics: it normalises by those of the batch, so that there is '
                         'nothing to store. Train it with track_running_stats=True.')
    tensors = dict(gamma=bn.weight, beta=bn.bias, mean=bn.running_mean, variance=bn.running_var)
    absent = dict(gamma=np.ones(bn.num_features), beta=np.zeros(bn.num_features))
    arrays = {key: absent[key] if t is None else t.detach().double().cpu().numpy() for key, t in tensors.items()}
    return dict(arrays, variance=arrays['variance'] + bn.eps)
