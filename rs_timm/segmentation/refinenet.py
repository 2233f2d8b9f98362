"""RefineNet (Lin et al., CVPR 2017): four cascaded blocks join the feature maps of a classifier, coarse to fine."""
from typing import Any, List, Sequence

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    'ChainedResidualPooling',
    'MultiResolutionFusion',
    'RefineNet',
    'RefineNetBlock',
    'ResidualConvUnit',
]

_POOLINGS = 4  # of a chain; with ResNet101 and 40 classes they give the 118.1 million parameters that are published


def _conv3x3(inputs: int, outputs: int, bias: bool = False) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel_size=3, padding=1, bias=bias)


class ResidualConvUnit(nn.Module):
    """Two 3x3 convolutions, each behind a ReLU, beside an identity; the ResNet block without BatchNorm.

    Args:
        channels: of input and output [N, C, H, W].

    Source: Lin et al., Section 3.2, Figure 3 (b).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = _conv3x3(channels, channels, bias=True)
        self.conv2 = _conv3x3(channels, channels)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.conv2(F.relu(self.conv1(F.relu(x))))


class MultiResolutionFusion(nn.Module):
    """The sum of several maps, each behind a 3x3 convolution and resized to the first, which is the finest.

    Args:
        channels: of each input, the finest first.
        out_channels: of the result.

    Source: Lin et al., Section 3.2, Figure 3 (c).
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(count, out_channels) for count in channels)

    def forward(self, maps: List[torch.Tensor]) -> torch.Tensor:
        fused = self.convs[0](maps[0])
        for conv, x in zip(self.convs[1:], maps[1:]):
            fused = fused + F.interpolate(conv(x), size=fused.shape[-2:], mode='bilinear', align_corners=False)
        return fused


class ChainedResidualPooling(nn.Module):
    """A chain of poolings, each with a 3x3 convolution, whose stages are all added up: context from ever larger areas.

    Args:
        channels: of input and output [N, C, H, W].

    Source: Lin et al., Section 3.2, Figure 3 (d); there with two stages, here with the four of the published networks.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_conv3x3(channels, channels) for _ in range(_POOLINGS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total = stage = F.relu(x)
        for conv in self.convs:
            stage = conv(F.max_pool2d(stage, kernel_size=5, stride=1, padding=2))
            total = total + stage
        return total


class RefineNetBlock(nn.Module):
    """One block of the cascade: two units on each input, fusion, chained pooling, one unit on the result.

    Args:
        channels: of each input, the finest first.
        out_channels: of the result, which has the size of the first input.

    Source: Lin et al., Figure 3 (a).
    """

    def __init__(self, channels: Sequence[int], out_channels: int) -> None:
        super().__init__()
        self.adapt = nn.ModuleList(
            nn.Sequential(ResidualConvUnit(count), ResidualConvUnit(count)) for count in channels)
        self.fuse = MultiResolutionFusion(channels, out_channels) if len(channels) > 1 else None
        self.pool = ChainedResidualPooling(out_channels)
        self.unit = ResidualConvUnit(out_channels)

    def forward(self, *maps: torch.Tensor) -> torch.Tensor:
        adapted = [unit(x) for unit, x in zip(self.adapt, maps)]
        fused = adapted[0] if self.fuse is None else self.fuse(adapted)
        return self.unit(self.pool(fused))


@torch.fx.wrap
def _refuse_small(x: torch.Tensor, stride: int) -> torch.Tensor:
    height, width = x.shape[-2:]
    if height < stride or width < stride:
        raise ValueError(f'the input is {int(height)}x{int(width)} pixels: each side needs at least {stride}, the '
                         'output stride of the encoder.')
    return x


class RefineNet(nn.Module):
    """Logits of every class at a quarter of the input's size, from the four feature maps of an encoder.

    The caller resizes them: training to the largest input (Figure 7 of the RS-Nets paper), evaluation to the picture.

    >>> import timm
    >>> encoder = timm.create_model('resnet18', features_only=True, out_indices=(1, 2, 3, 4))
    >>> RefineNet(encoder, num_classes=11)(torch.randn(1, 3, 64, 96)).shape
    torch.Size([1, 11, 16, 24])

    Args:
        encoder: image [N, 3, H, W] -> maps at strides 4, 8, 16 and 32, with timm's `feature_info`.
        num_classes: channels of the logits; 0: the features before the classifier.
        features: channels of the decoder; the block of the coarsest map has twice as many.
        drop_rate: dropout of the two coarsest maps.

    Raises:
        ValueError: an encoder with other strides; in `forward`, an image smaller than the coarsest stride.

    Source: Lin et al., RefineNet: Multi-Path Refinement Networks for High-Resolution Semantic Segmentation, Figure 2.
    """

    task = 'segmentation'

    def __init__(self, encoder: Any, num_classes: int = 40, features: int = 256, drop_rate: float = 0.5) -> None:
        super().__init__()
        strides, channels = tuple(encoder.feature_info.reduction()), encoder.feature_info.channels()
        if strides != (4, 8, 16, 32):
            raise ValueError(f'the encoder has maps at the strides {strides}, RefineNet joins those at (4, 8, 16, 32): '
                             'create it with features_only=True and matching out_indices.')
        self.num_classes, self.num_features, self.drop_rate = num_classes, features, drop_rate
        self.output_stride = strides[-1]
        self.encoder = encoder
        widths = (features, features, features, 2 * features)
        self.project = nn.ModuleList(_conv3x3(count, width) for count, width in zip(channels, widths))
        self.blocks = nn.ModuleList(  # the finest first, as the maps
            RefineNetBlock((width, coarser), features)
            for width, coarser in zip(widths[:3], (features, features, 2 * features)))
        self.blocks.append(RefineNetBlock((2 * features,), 2 * features))
        self.units = nn.Sequential(ResidualConvUnit(features), ResidualConvUnit(features))
        self._init_decoder()
        self.reset_classifier(num_classes)

    def _init_decoder(self) -> None:
        """Residual branches start at nothing or small: there is no BatchNorm to keep a sum of so many in bounds."""
        for module in (self.project, self.blocks, self.units):
            for layer in module.modules():
                if isinstance(layer, nn.Conv2d):
                    nn.init.kaiming_normal_(layer.weight, nonlinearity='linear')
                    if layer.bias is not None:
                        nn.init.zeros_(layer.bias)
                if isinstance(layer, ResidualConvUnit):
                    nn.init.zeros_(layer.conv2.weight)
        for module in self.blocks.modules():
            if isinstance(module, ChainedResidualPooling):
                for conv in module.convs:
                    conv.weight.data.mul_(0.1)  # type: ignore[union-attr, operator]

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def reset_classifier(self, num_classes: int) -> None:
        """A new classifier, for `num_classes` classes; 0: none."""
        self.num_classes = num_classes
        self.classifier = _conv3x3(self.num_features, num_classes, bias=True) if num_classes else nn.Identity()
        if num_classes:
            nn.init.normal_(self.classifier.weight, std=0.001)  # all classes start about equal
            nn.init.zeros_(self.classifier.bias)  # type: ignore[arg-type]

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.encoder.set_grad_checkpointing(enable)

    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Image [N, 3, H, W] -> features [N, C, H/4, W/4]."""
        maps = list(self.encoder(_refuse_small(x, self.output_stride)))
        maps[2:] = [F.dropout(level, self.drop_rate, self.training) for level in maps[2:]]
        maps = [conv(level) for conv, level in zip(self.project, maps)]
        x = self.blocks[3](maps[3])
        for index in (2, 1, 0):
            x = self.blocks[index](maps[index], x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        x = self.units(x)
        return x if pre_logits else self.classifier(x)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forward_head(self.forward_features(x))
