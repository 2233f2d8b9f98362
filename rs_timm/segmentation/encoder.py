"""Weights of a classifier, for the encoder of a segmentation network."""
from torch import nn

from rs_timm.models import checkpoint_filter_fn
from rs_timm.tensor_files import check_values, read_weights

__all__ = ['load_encoder']


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
