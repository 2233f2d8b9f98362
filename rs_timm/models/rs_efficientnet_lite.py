"""Resolution-switchable EfficientNet-Lite: small networks without squeeze-and-excitation, with ImageNet weights.

The weights that ship were trained at one size, so that all BatchNorm sets are equal and the file holds one of them;
what makes them good at the smaller sizes is the crop that goes with each size (`rs_timm.crops`).
"""
from typing import Any

from timm.models import register_model
from timm.models._efficientnet_builder import BN_EPS_TF_DEFAULT, decode_arch_def
from torch import nn

from ._builder import switchable_cfgs
from .rs_mobilenetv2 import create_rs_efficientnet

__all__ = []

default_cfgs = {
    name: cfg
    for variant in ('lite0', 'lite1')
    for name, cfg in switchable_cfgs(
        f'rs_efficientnet_{variant}', f'tf_efficientnet_{variant}', 'in1k', paper_weights=False).items()
}

_LITE = (  # as EfficientNet-B0 (Tan and Le, ICML 2019), without squeeze-and-excitation
    ['ds_r1_k3_s1_e1_c16'],
    ['ir_r2_k3_s2_e6_c24'],
    ['ir_r2_k5_s2_e6_c40'],
    ['ir_r3_k3_s2_e6_c80'],
    ['ir_r3_k5_s1_e6_c112'],
    ['ir_r4_k5_s2_e6_c192'],
    ['ir_r1_k3_s1_e6_c320'],
)


def _create(variant: str, depth: float, pretrained: bool, **kwargs: Any) -> nn.Module:
    kwargs.setdefault('bn_eps', BN_EPS_TF_DEFAULT)
    kwargs.setdefault('pad_type', 'same')
    return create_rs_efficientnet(
        f'rs_efficientnet_{variant}',
        f'tf_efficientnet_{variant}',
        pretrained,
        block_args=decode_arch_def(_LITE, depth, fix_first_last=True),
        fix_stem=True,
        **kwargs,
    )


@register_model
def rs_efficientnet_lite0(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite0 with private BatchNorms, for 224 to 96 pixels."""
    return _create('lite0', 1.0, pretrained, **kwargs)


@register_model
def rs_efficientnet_lite1(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """EfficientNet-Lite1 with private BatchNorms, for 240 to 96 pixels."""
    kwargs.setdefault('resolutions', (240, 192, 160, 128, 96))
    return _create('lite1', 1.1, pretrained, **kwargs)
