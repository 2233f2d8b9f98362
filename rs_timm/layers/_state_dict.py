"""The layouts in which BatchNorm sets come out of checkpoints, all turned into `<layer>.<resolution>.<tensor>`."""
import re
from typing import Any, Dict, Optional, Sequence

import torch

from rs_timm.interpolation import BN_TENSORS, bracket, interpolate_bn

__all__ = ['PAPER_RESOLUTIONS', 'adapt_bn_keys']

PAPER_RESOLUTIONS = (224, 192, 160, 128, 96)  # Section 4.1

_Sets = Dict[int, Dict[str, torch.Tensor]]


def adapt_bn_keys(state_dict: Dict[str, Any], prefix: str, resolutions: Sequence[int]) -> Optional[str]:
    """Rewrite, in place, the entries under `prefix` of one layer so that there is a set for each of `resolutions`.

    Understood are a set per resolution (`bn1.224.weight`), for other resolutions too: those in common are taken, the
    others interpolated, and a warning that says so is returned; one plain set (`bn1.weight`), given to every
    resolution; and the numbered sets of the paper's public code (`bn1.bn_0.weight`, the largest resolution first).
    Anything else is left as it is, for `load_state_dict` to report.
    """
    own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    sets = _read_sets({key[len(prefix):]: value for key, value in own.items()}, resolutions)
    if not sets or set(sets) == set(resolutions) and f'{prefix}{resolutions[0]}.running_mean' in own:
        return None
    for key in own:
        del state_dict[key]
    for resolution in resolutions:
        for name, value in _set_for(sets, resolution).items():
            state_dict[f'{prefix}{resolution}.{name}'] = value
    if set(sets) == set(resolutions):
        return None
    if len(sets) == 1:
        return (f'the checkpoint has one BatchNorm set, for {next(iter(sets))} pixels, and those of the model, for '
                f'{tuple(resolutions)}, are copies of it: a start for fine-tuning.')
    return (f'the checkpoint has BatchNorm sets for {tuple(sorted(sets, reverse=True))}, the model for '
            f'{tuple(resolutions)}: equal ones were taken, the others interpolated, as a start for fine-tuning.')


def _read_sets(entries: Dict[str, torch.Tensor], resolutions: Sequence[int]) -> _Sets:
    if not entries:
        return {}
    if all(re.fullmatch(r'\d+\.\w+', key) for key in entries):
        return _group({key: int(key.split('.')[0]) for key in entries}, entries)
    if all(re.fullmatch(r'bn_\d+\.\w+', key) for key in entries):
        positions = {key: int(key.split('.')[0][3:]) for key in entries}
        count = max(positions.values()) + 1
        if count not in (len(PAPER_RESOLUTIONS), len(resolutions)):
            raise ValueError(
                f'the checkpoint has {count} numbered BatchNorm sets and does not say for which sizes; the model has '
                f'{len(resolutions)} {tuple(resolutions)}: create the model with the {count} resolutions of the '
                'checkpoint.')
        names = PAPER_RESOLUTIONS if count == len(PAPER_RESOLUTIONS) else resolutions
        return _group({key: names[position] for key, position in positions.items()}, entries)
    if not any('.' in key for key in entries):
        return {resolution: dict(entries) for resolution in resolutions}
    return {}


def _group(resolution_of: Dict[str, int], entries: Dict[str, torch.Tensor]) -> _Sets:
    sets: _Sets = {}
    for key, resolution in resolution_of.items():
        sets.setdefault(resolution, {})[key.split('.')[1]] = entries[key]
    return sets


def _set_for(sets: _Sets, resolution: int) -> Dict[str, torch.Tensor]:
    upper, lower, t = bracket(tuple(sets), resolution)
    first, second = sets[upper], sets[lower]
    if upper == lower:
        return first
    blended = interpolate_bn(
        {name: first[name] for name in BN_TENSORS if name in first},
        {name: second[name] for name in BN_TENSORS if name in second},
        t,
    )
    return {**(first if t <= 0.5 else second), **blended}
