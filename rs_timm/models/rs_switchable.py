"""`rs_switchable`: any BatchNorm network of timm under one registered name, for hub and `local-dir:` to restore."""
from typing import Any, Dict, Iterable

import timm
from timm.models import get_pretrained_cfg, register_model
from torch import nn

from ._builder import build_switchable
from ._saved import check_part, saved_config
from ._switchable import DEFAULT_RESOLUTIONS, switchable

__all__ = []


@register_model
def rs_switchable(
        pretrained: bool = False,
        base: str = 'resnet18',
        resolutions: Iterable[int] = DEFAULT_RESOLUTIONS,
        interpolation: str = 'params',
        pretrained_cfg: Any = None,
        **kwargs: Any,
) -> nn.Module:
    """The timm network `base` ('regnety_002', 'regnety_002.pycls_in1k') with private BatchNorms.

    `rs_timm.switchable` is the everyday way; this name is what config.json of a saved one holds.
    """
    saved_config(pretrained_cfg, kwargs.get('cache_dir'))  # before `base`, which may come from it, is built
    check_part('base', base, switchable=False)
    base_name = base.partition('.')[0]

    def build(**model_kwargs: Any) -> nn.Module:
        return switchable(base_name, resolutions, interpolation=interpolation, **model_kwargs)

    if kwargs.get('features_only') and 'feature_cls' not in kwargs:
        kwargs.update(_feature_wrapper(base_name))
    if not pretrained_cfg:
        stock_cfg = get_pretrained_cfg(base, allow_unregistered=False)
        pretrained_cfg = dict(stock_cfg.to_dict(), architecture='rs_switchable')
    return build_switchable(build, 'rs_switchable', base_name, pretrained, pretrained_cfg=pretrained_cfg, **kwargs)


def _feature_wrapper(base_name: str) -> Dict[str, Any]:
    """Choose the levels that the family's builder in timm chooses, in a wrapper that fits all."""
    levels = timm.create_model(base_name, features_only=True).feature_info.out_indices
    stock = timm.create_model(base_name)
    if hasattr(stock, 'forward_intermediates'):
        return dict(feature_cfg=dict(out_indices=levels, feature_cls='getter'))
    paths = dict(stock.named_modules())
    wanted = [stock.feature_info[level]['module'] for level in levels]
    missing = [name for name in wanted if name not in paths]
    if missing:  # as in timm's HRNet before 1.0.31, which has a class of its own for features
        raise ValueError(f"{type(stock).__name__} of timm {timm.__version__} has no layers {', '.join(missing)}, so "
                         'that features_only cannot be had from a switchable one: timm 1.0.31 or later can.')
    flatten = any('.' in name for name in wanted)  # layers of a Sequential in the network, not of itself
    return dict(feature_cfg=dict(out_indices=levels, feature_cls='list', flatten_sequential=flatten))
