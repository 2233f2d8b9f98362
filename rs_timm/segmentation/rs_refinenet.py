"""Resolution-switchable RefineNets: private BatchNorms in the encoder, all other weights shared (Appendix B)."""
from typing import Any, Iterable, Optional

import timm
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.models import generate_default_cfgs, register_model
from torch import nn

from rs_timm.models import SwitchableMixin, build_switchable, checkpoint_filter_fn, manifest_cfgs
from rs_timm.tensor_files import check_values, read_weights

from .refinenet import RefineNet

__all__ = ['RSRefineNet', 'SEGMENTATION_RESOLUTIONS', 'load_encoder']

SEGMENTATION_RESOLUTIONS = (352, 224, 96)  # Appendix B


class RSRefineNet(SwitchableMixin, RefineNet):
    """RefineNet on a switchable encoder. The decoder has no BatchNorm, so that the encoder alone is switched.

    Args:
        encoder: a registered `rs_*` classifier.
        resolutions: sizes in pixels that get a private set.
        interpolation: for other sizes: 'params' (the paper), 'affine' or 'nearest'.
        num_classes, features, drop_rate: as for `RefineNet`.
        in_chans: channels of the image.
        encoder_args: for `timm.create_model` of the encoder, such as `drop_path_rate`.
    """

    stock_class = RefineNet

    def __init__(
            self,
            encoder: str = 'rs_resnet18',
            resolutions: Iterable[int] = SEGMENTATION_RESOLUTIONS,
            interpolation: str = 'params',
            num_classes: int = 40,
            features: int = 256,
            drop_rate: float = 0.5,
            in_chans: int = 3,
            **encoder_args: Any,
    ) -> None:
        network = timm.create_model(
            encoder, features_only=True, out_indices=(1, 2, 3, 4), resolutions=resolutions,
            interpolation=interpolation, in_chans=in_chans, **encoder_args)
        RefineNet.__init__(self, network, num_classes, features, drop_rate)  # the encoder is switchable already
        self.in_chans = in_chans


def load_encoder(encoder: nn.Module, weights: str) -> None:
    """Give `encoder` the weights of a classifier with the same layers, in place; its head is left out.

    BatchNorm sets for other resolutions are matched as everywhere: equal ones are taken, the others interpolated; the
    one set of a plain network goes to all.

    Args:
        encoder: of a segmentation network, made by timm with `features_only=True`.
        weights: see `read_weights`.

    Raises:
        ValueError: no such file or name, one that cannot be read, or weights of another network; the message names it.
    """
    state = read_weights(weights)
    try:
        state = checkpoint_filter_fn(state, encoder)
        check_values(state, encoder, weights)
        missing = encoder.load_state_dict(state, strict=False).missing_keys  # what is left over is the head
    except ValueError:
        raise
    except Exception as error:  # shapes, or keys that only look like those of a network
        missing = [str(error).splitlines()[-1].strip()]
    if missing:
        raise ValueError(f'{weights}: not the weights of this encoder ({missing[0]} does not fit or is missing): take '
                         'those of the classifier that it was made from.')


def _cfg(first_conv: str) -> Any:
    side = SEGMENTATION_RESOLUTIONS[0]
    return dict(
        url='',
        num_classes=40,
        input_size=(3, side, side),
        min_input_size=(3, 32, 32),
        pool_size=(side // 4, side // 4),
        crop_pct=1.,
        crop_mode='squash',  # the whole picture, at the size of the training crops
        interpolation='bilinear',
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
        first_conv=f'encoder.{first_conv}',
        classifier='classifier',
    )


def _cfgs(name: str, first_conv: str = 'conv1') -> Any:
    shipped = {f'{name}.{tag}': cfg for tag, cfg in manifest_cfgs(name).items()}
    return generate_default_cfgs({**shipped, f'{name}.untrained': _cfg(first_conv)})


default_cfgs = {
    **_cfgs('rs_refinenet_resnet18'),
    **_cfgs('rs_refinenet_resnet50'),
    **_cfgs('rs_refinenet_resnet101'),
    **_cfgs('rs_refinenet_mobilenetv2', first_conv='conv_stem'),
}


def _create(variant: str, pretrained: bool, encoder_weights: Optional[str] = None, **kwargs: Any) -> nn.Module:
    """The network; `encoder_weights` are those of a classifier, and needless where the whole network is loaded."""
    if kwargs.pop('features_only', False):
        raise RuntimeError(f'features_only: {variant} has one output; its encoder, {_encoder(variant)}, has features.')
    model = build_switchable(
        RSRefineNet, variant, None, pretrained, **dict(dict(encoder=_encoder(variant)), **kwargs))
    if encoder_weights and not pretrained:
        load_encoder(model.encoder, encoder_weights)  # type: ignore[arg-type]
    return model


def _encoder(variant: str) -> str:
    return variant.replace('refinenet_', '')


@register_model
def rs_refinenet_resnet18(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RefineNet on rs_resnet18."""
    return _create('rs_refinenet_resnet18', pretrained, **kwargs)


@register_model
def rs_refinenet_resnet50(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RefineNet on rs_resnet50."""
    return _create('rs_refinenet_resnet50', pretrained, **kwargs)


@register_model
def rs_refinenet_resnet101(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RefineNet on rs_resnet101: 118.31 million parameters with three resolutions and 40 classes (Table 7)."""
    return _create('rs_refinenet_resnet101', pretrained, **kwargs)


@register_model
def rs_refinenet_mobilenetv2(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """RefineNet on rs_mobilenetv2."""
    return _create('rs_refinenet_mobilenetv2', pretrained, **kwargs)
