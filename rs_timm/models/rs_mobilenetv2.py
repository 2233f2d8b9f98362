"""Resolution-switchable MobileNetV2: timm's EfficientNet class with private BatchNorms (Table 2 of the paper)."""
from functools import partial
from typing import Any

from timm.models import register_model
from timm.models._builder import pretrained_cfg_for_features
from timm.models._efficientnet_builder import decode_arch_def, resolve_act_layer, resolve_bn_args, round_channels
from timm.models.efficientnet import EfficientNet, EfficientNetFeatures
from torch import nn

from ._builder import build_switchable, switchable_cfgs
from ._switchable import SwitchableMixin

__all__ = ['RSEfficientNet', 'RSEfficientNetFeatures', 'create_rs_efficientnet']


class RSEfficientNet(SwitchableMixin, EfficientNet):
    """timm's EfficientNet class, of which MobileNetV2 is a member; arguments as for `SwitchableMixin`."""

    stock_class = EfficientNet


class RSEfficientNetFeatures(SwitchableMixin, EfficientNetFeatures):
    """The class that `RSEfficientNet` has with `features_only=True`."""

    stock_class = EfficientNetFeatures


default_cfgs = switchable_cfgs('rs_mobilenetv2', 'mobilenetv2_100', 'ra_in1k', paper_weights=True)

_MOBILENETV2 = (  # Table 2 of Sandler et al., CVPR 2018
    ['ds_r1_k3_s1_c16'],
    ['ir_r2_k3_s2_e6_c24'],
    ['ir_r3_k3_s2_e6_c32'],
    ['ir_r4_k3_s2_e6_c64'],
    ['ir_r3_k3_s1_e6_c96'],
    ['ir_r3_k3_s2_e6_c160'],
    ['ir_r1_k3_s1_e6_c320'],
)


def create_rs_efficientnet(variant: str, stock_name: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build a member of the family from the arguments of timm's EfficientNet class, `norm_layer` apart.

    Args:
        variant, stock_name: registered names, here and in timm.
        pretrained: load the weights of the cfg.
        kwargs: as a user gives them to `timm.create_model`, and what defines the network (`block_args`, `stem_size`).
    """
    norm_layer = kwargs.pop('norm_layer', None) or partial(nn.BatchNorm2d, **resolve_bn_args(kwargs))
    model_kwargs = dict(
        num_features=1280,
        stem_size=32,
        norm_layer=norm_layer,
        act_layer=resolve_act_layer(kwargs, 'relu6'),
        round_chs_fn=round_channels,
        **kwargs,
    )
    if not (model_kwargs.get('features_only') and 'feature_cls' not in kwargs and 'feature_cfg' not in kwargs):
        return build_switchable(RSEfficientNet, variant, stock_name, pretrained, **model_kwargs)
    # as in timm: this family extracts features with a class of its own, which takes no arguments of a head
    del model_kwargs['features_only']
    model = build_switchable(
        RSEfficientNetFeatures,
        variant,
        stock_name,
        pretrained,
        pretrained_strict=False,
        kwargs_filter=('num_classes', 'num_features', 'head_conv', 'global_pool'),
        **model_kwargs,
    )
    model.pretrained_cfg = model.default_cfg = pretrained_cfg_for_features(model.pretrained_cfg)
    return model


@register_model
def rs_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """MobileNetV2 1.0 with private BatchNorms; 3.47 x 2^20 parameters with five resolutions and 1000 classes."""
    blocks = decode_arch_def(_MOBILENETV2)
    return create_rs_efficientnet('rs_mobilenetv2', 'mobilenetv2_100', pretrained, block_args=blocks, **kwargs)
