"""Resolution-switchable ResNets: timm's ResNet with private BatchNorms (Table 2 of the paper)."""
from typing import Any

from timm.models import register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from ._builder import build_switchable, switchable_cfgs
from ._switchable import SwitchableMixin

__all__ = ['RSResNet']


class RSResNet(SwitchableMixin, ResNet):
    """timm's ResNet with one private BatchNorm set per input resolution; arguments as for `SwitchableMixin`."""

    stock_class = ResNet


default_cfgs = {
    **switchable_cfgs('rs_resnet18', 'resnet18', 'a1_in1k', paper_weights=True),
    **switchable_cfgs('rs_resnet34', 'resnet34', 'a1_in1k', paper_weights=False),
    **switchable_cfgs('rs_resnet50', 'resnet50', 'a1_in1k', paper_weights=True),
    **switchable_cfgs('rs_resnet101', 'resnet101', 'a1_in1k', paper_weights=False),
}


def _create_rs_resnet(variant: str, pretrained: bool = False, **kwargs: Any) -> nn.Module:
    return build_switchable(RSResNet, variant, variant.removeprefix('rs_'), pretrained, **kwargs)


@register_model
def rs_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-18 with private BatchNorms; 11.18 x 2^20 parameters with five resolutions and 1000 classes."""
    return _create_rs_resnet('rs_resnet18', pretrained, **dict(dict(block=BasicBlock, layers=(2, 2, 2, 2)), **kwargs))


@register_model
def rs_resnet34(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-34 with private BatchNorms."""
    return _create_rs_resnet('rs_resnet34', pretrained, **dict(dict(block=BasicBlock, layers=(3, 4, 6, 3)), **kwargs))


@register_model
def rs_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-50 with private BatchNorms; 24.58 x 2^20 parameters with five resolutions and 1000 classes."""
    return _create_rs_resnet('rs_resnet50', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 6, 3)), **kwargs))


@register_model
def rs_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """ResNet-101 with private BatchNorms."""
    return _create_rs_resnet('rs_resnet101', pretrained, **dict(dict(block=Bottleneck, layers=(3, 4, 23, 3)), **kwargs))
