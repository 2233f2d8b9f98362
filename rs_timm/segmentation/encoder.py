"""Weights of a classifier, for the encoder of a segmentation network."""
from pathlib import Path
from typing import Any, Dict, Mapping

import timm
import torch
from timm.models import load_state_dict
from torch import nn

from rs_timm.models import checkpoint_filter_fn

__all__ = ['load_encoder']


def load_encoder(encoder: nn.Module, weights: str) -> None:
    """Give `encoder` the weights of a classifier with the same layers, in place; its head is left out.

    BatchNorm sets for other resolutions are matched as everywhere: equal ones are taken, the others interpolated; the
    one set of a plain network goes to all.

    Args:
        encoder: of a segmentation network, made by timm with `features_only=True`.
        weights: a file, or the name of a model that has weights ('rs_resnet18.mred_imagenette', 'resnet18.a1_in1k',
            'local-dir:runs/first/model').

    Raises:
        ValueError: no such file or name, or weights of another network.
    """
    _load(encoder, _read(weights), weights)


def _read(weights: str) -> Dict[str, Any]:
    if Path(weights).is_file():
        return dict(load_state_dict(weights))
    try:
        return dict(timm.create_model(weights, pretrained=True).state_dict())
    except RuntimeError as error:
        raise ValueError(f'encoder weights {weights!r} are neither a file nor a model name with weights: {error}'
                         ) from error


def _load(encoder: nn.Module, state: Mapping[str, torch.Tensor], source: str) -> None:
    state = checkpoint_filter_fn(dict(state), encoder)
    try:
        missing = encoder.load_state_dict(state, strict=False).missing_keys  # what is left over is the head
    except RuntimeError as error:
        missing = [str(error).splitlines()[-1].strip()]
    if missing:
        raise ValueError(f'{source}: not the weights of this encoder ({missing[0]} does not fit or is missing): take '
                         'those of the classifier that it was made from.')
