"""What a network says about itself -> `ModelInfo`."""
from typing import Any, Dict, Mapping, Optional, Sequence, Tuple

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from timm.utils import unwrap_model
from torch import nn

from rs_timm.analysis import madds
from rs_timm.analysis.cost import image_channels
from rs_timm.format.info import ModelInfo
from rs_timm.layers import extract, get_interpolation, get_resolutions

from .probe import probe

__all__ = ['describe', 'model_info']


def model_info(model: nn.Module, choice: str = 'shape') -> ModelInfo:
    """The description of a switchable network, as its file has it, without a file.

    >>> import rs_timm, timm
    >>> model_info(timm.create_model('rs_resnet18', resolutions=(64, 48))).resolutions
    (64, 48)
    """
    model = unwrap_model(model)
    side = get_resolutions(model)[-1]
    plain = extract(model, side).eval().float().cpu()
    channels = image_channels(plain)
    outputs = probe(plain, torch.zeros(2, channels, side, side)).outputs
    return describe(model, channels, list(outputs.values()), choice)


def describe(model: nn.Module, channels: int, outputs: Sequence[torch.Tensor], choice: str) -> ModelInfo:
    """The description of a switchable network made by timm, or by hand.

    Args:
        model: unwrapped.
        channels: of its input.
        outputs: of one pass; they say what the network is for.
        choice: as in `ModelInfo`.
    """
    cfg: Mapping[str, Any] = getattr(model, 'pretrained_cfg', None) or {}
    config = resolve_model_data_config(model, pretrained_cfg=dict(cfg))
    task = _task(model, outputs)
    classes = 0 if task == 'features' else int(outputs[0].shape[1])
    pretrained = getattr(model, 'derived_from', None) is not None
    return ModelInfo(
        name=_name(model, cfg, pretrained),
        resolutions=get_resolutions(model),
        interpolation=get_interpolation(model),
        choice=choice,
        task=task,
        channels=channels,
        mean=_per_channel(config['mean'], channels),
        std=_per_channel(config['std'], channels),
        crop_pct=float(config['crop_pct']),
        crop_mode=config['crop_mode'],
        resize_interpolation=config['interpolation'],
        num_classes=classes,
        license=cfg.get('license') if pretrained else None,
        origin=(cfg.get('origin_url') or model.derived_from) if pretrained else None,  # type: ignore[arg-type]
        madds={r: madds(model, r) for r in get_resolutions(model)},
        alpha=_alpha(model),
        **(_labels(model, cfg, classes) if classes else {}),
    )


def _task(model: nn.Module, outputs: Sequence[torch.Tensor]) -> str:
    """A classifier gives [N, K], a network for dense prediction says what it is; all else are features."""
    if len(outputs) > 1 or getattr(model, 'num_classes', None) == 0:
        return 'features'
    return 'classification' if outputs[0].ndim == 2 else str(getattr(model, 'task', 'features'))


def _name(model: nn.Module, cfg: Mapping[str, Any], pretrained: bool) -> str:
    """As `rs-timm` takes it, where timm made the network."""
    architecture, stock = cfg.get('architecture'), getattr(model, 'stock_architecture', None)
    if architecture == 'rs_switchable' and stock:
        return f'switchable:{stock}'
    tag = cfg.get('tag') if pretrained else None
    return '.'.join(filter(None, (architecture or type(model).__name__, tag)))


def _per_channel(values: Sequence[float], channels: int) -> Tuple[float, ...]:
    """As the network is saved: for another number of channels, the average stands for all."""
    return tuple(values) if len(values) == channels else (sum(values) / len(values),) * channels


def _labels(model: nn.Module, cfg: Mapping[str, Any], classes: int) -> Dict[str, Any]:
    """Class names of the cfg if they fit, else ImageNet's if those fit."""
    names, descriptions = cfg.get('label_names'), cfg.get('label_descriptions')
    if names and len(names) == classes:
        return dict(label_names=tuple(names), label_descriptions=_of(names, descriptions))
    subset = infer_imagenet_subset(model) if cfg and classes == getattr(model, 'num_classes', None) else None
    if subset is None:
        return {}
    imagenet = ImageNetInfo(subset)
    names = imagenet.label_names()
    return dict(label_names=tuple(names), label_descriptions=_of(names, imagenet.label_descriptions(as_dict=True)))


def _of(names: Sequence[str], descriptions: Optional[Mapping[str, str]]) -> Optional[Dict[str, str]]:
    return {name: descriptions[name] for name in names if name in descriptions} if descriptions else None


def _alpha(model: nn.Module) -> Optional[Dict[int, float]]:
    """The learned weights of the ensemble, if they are known for these resolutions."""
    alpha = (getattr(model, 'checkpoint_metadata', None) or {}).get('alpha') or {}
    weights = {int(r): float(weight) for r, weight in alpha.items()}
    return weights if set(weights) == set(get_resolutions(model)) else None
