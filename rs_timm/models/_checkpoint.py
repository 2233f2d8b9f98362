"""Checkpoints of other layouts, recognised by their keys and renamed to ours.

Here the names of layers are mapped; the BatchNorm sets themselves are mapped by each layer
(`rs_timm.layers._state_dict`), so that every way of loading understands them.
"""
import re
from typing import Any, Dict, Mapping, Optional, Sequence

from timm.models import get_pretrained_cfg, is_model
from torch import nn

from rs_timm.layers import PAPER_RESOLUTIONS, get_resolutions
from rs_timm.quantization import unpack_weights

__all__ = ['PAPER_PREPROCESSING', 'checkpoint_filter_fn', 'is_paper_layout', 'weights_origin']

# The paper's public code feeds [0, 1] images as they are (no mean, no std), bilinear.
PAPER_PREPROCESSING: Dict[str, Any] = dict(
    mean=(0., 0., 0.),
    std=(1., 1., 1.),
    interpolation='bilinear',
    crop_pct=0.875,
    test_input_size=None,
    test_crop_pct=None,
)

_WRAPPERS = ('module.', '_orig_mod.')


def is_paper_layout(state_dict: Mapping[str, Any]) -> bool:
    """Whether the keys are those of the paper's public PyTorch code, under DataParallel or not."""
    return any(re.search(r'(^|\.)bn_\d+\.', key) or '.bn_0.' in key for key in state_dict)


def checkpoint_filter_fn(state_dict: Dict[str, Any], model: nn.Module) -> Dict[str, Any]:
    """Return `state_dict` with the names that `model` uses.

    Known are our own layout, with packed weights too, plain timm and torchvision checkpoints, and the layout of the
    paper's public code for ResNet and MobileNetV2. From the latter the ensemble scores `alpha` go to
    `model.checkpoint_metadata['alpha']`, as softmax weights keyed by resolution, and the preprocessing of
    `model.pretrained_cfg` becomes the paper's.

    Args:
        state_dict: key -> tensor, as read from a file; wrapper prefixes (DataParallel, torch.compile) are dropped.
        model: a switchable network.
    """
    state_dict = unpack_weights({_unwrap(key): value for key, value in state_dict.items()})
    names = _TORCHVISION_MOBILENETV2
    if is_paper_layout(state_dict):
        alpha = state_dict.pop('alpha', None)
        if alpha is not None:
            weights = alpha.detach().float().flatten().softmax(0).tolist()
            sizes = PAPER_RESOLUTIONS if len(weights) == len(PAPER_RESOLUTIONS) else get_resolutions(model)
            model.checkpoint_metadata = {'alpha': dict(zip(sizes, weights))}  # type: ignore[assignment]
        _set_paper_preprocessing(model)
        state_dict = {key.replace('.module.', '.'): value for key, value in state_dict.items()}
        names = _PAPER_MOBILENETV2
    if 'features.0.0.weight' in state_dict and hasattr(model, 'conv_stem'):
        state_dict = {_rename(key, names): value for key, value in state_dict.items()}
    return state_dict


def _unwrap(key: str) -> str:
    while key.startswith(_WRAPPERS):
        key = key.split('.', 1)[1]
    return key


def _set_paper_preprocessing(model: nn.Module) -> None:
    """Write it into the model's cfg but for what the user set (the entries that differ from the tag's)."""
    cfg = getattr(model, 'pretrained_cfg', None)
    if not isinstance(cfg, dict):
        return
    name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
    tag_cfg = get_pretrained_cfg(name) if name and is_model(name) else None
    for key, value in PAPER_PREPROCESSING.items():
        if tag_cfg is None or cfg.get(key) == getattr(tag_cfg, key):
            cfg[key] = value


# MobileNetV2 counts its blocks in one row; timm has seven stages.
_STAGE_DEPTHS = (1, 2, 3, 4, 3, 3, 1)
_SEPARABLE = ('conv_dw', 'bn1', 'conv_pw', 'bn2')  # the first block; all others are inverted residuals
_INVERTED = ('conv_pw', 'bn1', 'conv_dw', 'bn2', 'conv_pwl', 'bn3')


def _mobilenetv2_names(separable: Sequence[str], inverted: Sequence[str], ends: Mapping[str, str]) -> Dict[str, str]:
    """The names of another layout -> those of timm, from the positions of conv and BN within a block."""
    names = {'features.0.0': 'conv_stem', 'features.0.1': 'bn1', **ends}
    blocks = [(stage, block) for stage, depth in enumerate(_STAGE_DEPTHS) for block in range(depth)]
    for index, (stage, block) in enumerate(blocks, start=1):
        positions, layers = (separable, _SEPARABLE) if index == 1 else (inverted, _INVERTED)
        for position, layer in zip(positions, layers):
            names[f'features.{index}.conv.{position}'] = f'blocks.{stage}.{block}.{layer}'
    return names


_PAPER_MOBILENETV2 = _mobilenetv2_names(
    separable=('0', '1', '3', '4'),
    inverted=('0', '1', '3', '4', '6', '7'),
    ends={'conv.0': 'conv_head', 'conv.1': 'bn2', 'classifier': 'classifier'},
)
_TORCHVISION_MOBILENETV2 = _mobilenetv2_names(
    separable=('0.0', '0.1', '1', '2'),
    inverted=('0.0', '0.1', '1.0', '1.1', '2', '3'),
    ends={'features.18.0': 'conv_head', 'features.18.1': 'bn2', 'classifier.1': 'classifier'},
)


def _rename(key: str, names: Mapping[str, str]) -> str:
    parts = key.split('.')
    for length in range(len(parts) - 1, 0, -1):
        if '.'.join(parts[:length]) in names:
            return '.'.join([names['.'.join(parts[:length])], *parts[length:]])
    return key


def weights_origin(cfg: Mapping[str, Any], overlay: Optional[Mapping[str, Any]] = None) -> Optional[str]:
    """The source of weights loaded by `cfg`, as `model.derived_from` keeps it: a hub repository or a tag's name.

    None where the licence of `cfg` does not speak of them: a file that the user gave in place of the tag's own. For the
    paper's tags such a file is the only way, so it counts as theirs.
    """
    name = '.'.join(filter(None, (cfg.get('architecture'), cfg.get('tag'))))
    exchanged = any((overlay or {}).get(key) for key in ('file', 'url', 'state_dict', 'hf_hub_id'))
    if exchanged and cfg.get('tag') != 'orig_in1k':
        return None
    return name if exchanged or cfg.get('file') else cfg.get('hf_hub_id') or name
