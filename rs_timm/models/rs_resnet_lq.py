"""Resolution-switchable ResNets with learned quantisation (Table 3 of the paper).

2/32 (weights / activations) is timm's ResNet, 2/2 timm's pre-activation ResNet, each with private BatchNorms and
quantised convolutions; the first convolution and the classifier stay in full precision. The pre-activation network of
the paper's public code has one more BatchNorm behind each block's last convolution and each shortcut; timm's follows He
et al. (ECCV 2016), where there is none.
"""
from dataclasses import asdict, replace
from typing import Any, Dict, Optional

import timm
from timm.layers import BatchNormAct2d, create_conv2d
from timm.models import generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from timm.models.resnetv2 import ResNetV2
from torch import nn

from rs_timm.quantization import LQConfig, quantize_

from ._builder import build_switchable
from ._manifest import manifest_cfgs
from ._switchable import SwitchableMixin

__all__ = ['RSResNetLQ', 'RSResNetV2LQ']


class RSResNetLQ(SwitchableMixin, ResNet):
    """timm's ResNet with private BatchNorms and quantised weights.

    Args:
        args, kwargs: as for `SwitchableMixin`.
        weight_bits, act_bits: see `rs_timm.quantization.LQConfig`.
    """

    stock_class = ResNet

    def __init__(self, *args: Any, weight_bits: int = 2, act_bits: Optional[int] = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        quantize_(self, LQConfig(weight_bits, act_bits), fit=False)


class RSResNetV2LQ(SwitchableMixin, ResNetV2):
    """timm's pre-activation ResNet with private BatchNorms, and quantised weights and inputs of the convolutions.

    Args:
        args, kwargs, weight_bits, act_bits: as for `RSResNetLQ`.
    """

    stock_class = ResNetV2

    def __init__(self, *args: Any, weight_bits: int = 2, act_bits: Optional[int] = 2, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        quantize_(self, LQConfig(weight_bits, act_bits), fit=False)


_STOCK = {
    'rs_resnet18_w2a32': 'resnet18',
    'rs_resnet50_w2a32': 'resnet50',
    'rs_resnet18_w2a2': 'resnetv2_18',
    'rs_resnet50_w2a2': 'resnetv2_50',
}


def _cfgs(name: str) -> Dict[str, Any]:
    """The weights that the project ships, and the preprocessing of the stock network, without weights."""
    stock = next(iter(timm.models.get_arch_pretrained_cfgs(_STOCK[name]).values()))
    nothing = dict(url=None, file=None, hf_hub_id=None, architecture=None, tag=None, license=None, origin_url=None)
    plain = asdict(replace(stock, **nothing, description=None, paper_ids=None, paper_name=None, notes=None))
    return generate_default_cfgs({**{f'{name}.{tag}': cfg for tag, cfg in manifest_cfgs(name).items()}, name: plain})


default_cfgs = {key: cfg for name in _STOCK for key, cfg in _cfgs(name).items()}


def _create(cls: Any, variant: str, pretrained: bool, kwargs: Dict[str, Any], **own: Any) -> nn.Module:
    return build_switchable(cls, variant, _STOCK[variant], pretrained, **{**own, **kwargs})


def _preact(**own: Any) -> Dict[str, Any]:
    return dict(
        own, conv_layer=create_conv2d, norm_layer=BatchNormAct2d, feature_cfg=dict(flatten_sequential=True))


@register_model
def rs_resnet18_w2a32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with private BatchNorms and 2-bit weights."""
    return _create(RSResNetLQ, 'rs_resnet18_w2a32', pretrained, kwargs, block=BasicBlock, layers=(2, 2, 2, 2))


@register_model
def rs_resnet50_w2a32(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with private BatchNorms and 2-bit weights."""
    return _create(RSResNetLQ, 'rs_resnet50_w2a32', pretrained, kwargs, block=Bottleneck, layers=(3, 4, 6, 3))


@register_model
def rs_resnet18_w2a2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pre-activation ResNet-18 with private BatchNorms, 2-bit weights and 2-bit activations."""
    own = _preact(layers=(2, 2, 2, 2), channels=(64, 128, 256, 512), basic=True, bottle_ratio=1.)
    return _create(RSResNetV2LQ, 'rs_resnet18_w2a2', pretrained, kwargs, **own)


@register_model
def rs_resnet50_w2a2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Pre-activation ResNet-50 with private BatchNorms, 2-bit weights and 2-bit activations."""
    return _create(RSResNetV2LQ, 'rs_resnet50_w2a2', pretrained, kwargs, **_preact(layers=(3, 4, 6, 3)))
