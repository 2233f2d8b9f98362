"""Quantised weights as they are stored: b bits each, and the bases.

In a packed state dict a quantised `conv.weight` is `conv.weight_codes`: uint8 [ceil(out * b / 8), in / groups, kh, kw].
Bit j of the code of output channel c is bit (c * b + j) % 8 of row (c * b + j) // 8; the shape follows from that of
`conv.weight_basis` [out, b]. The classifier is `fc.weight_int8` times the `fc.weight_scale` of its row; the other
convolutions and linear layers are float16; everything else is what it was.
"""
from pathlib import Path
from typing import Any, Dict, Mapping, Union

import torch
from safetensors.torch import load_file
from torch import nn

from rs_timm.tensor_files import save_tensors

from .conv import LQConv2d
from .convert import quantized_layers
from .lq import look_up, nearest, sorted_levels

__all__ = ['HEADS', 'load_packed', 'pack_weights', 'packed_state_dict', 'unpack_weights']

StateDict = Dict[str, torch.Tensor]

HEADS = ('int8', 'float16', 'float32')
_CODES, _BASIS, _INT8, _SCALE = '.weight_codes', '.weight_basis', '.weight_int8', '.weight_scale'


def pack_weights(model: nn.Module, file: Union[str, Path], head: str = 'int8') -> Path:
    """Write the network to one safetensors file, its quantised weights in b bits each, and return the path.

    `load_packed` gives the network back. What it computes is bit by bit what `model` computes with the first
    convolution rounded to float16 and the classifier to `head`; packed again, it gives the same file.

    >>> import tempfile, timm, rs_timm
    >>> model = timm.create_model('rs_resnet18_w2a32', resolutions=(64, 32), num_classes=3)
    >>> file = pack_weights(model, Path(tempfile.mkdtemp()) / 'packed.safetensors')
    >>> file.stat().st_size < sum(p.numel() for p in model.parameters()) * 4 / 12
    True

    Args:
        model: a network with quantised convolutions; it is left as it is.
        file: path; is replaced.
        head: how the weights of the classifier are stored: 'int8' (with a scale for each class), 'float16' or
            'float32'. With 1000 classes they would be a quarter of the file in float16.

    Raises:
        ValueError: no quantised convolution, an unknown `head`, or weights too large for float16.
    """
    save_tensors(packed_state_dict(model, head), file)
    return Path(file)


def load_packed(model: nn.Module, file: Union[str, Path]) -> nn.Module:
    """Load what `pack_weights` wrote into a network of the same architecture, in place, and return it."""
    model.load_state_dict(unpack_weights(load_file(file)))
    return model


def packed_state_dict(model: nn.Module, head: str = 'int8') -> StateDict:
    """The state dict that `pack_weights` writes."""
    if head not in HEADS:
        raise ValueError(f"head {head!r} is unknown: use one of {', '.join(HEADS)}.")
    layers = quantized_layers(model)
    if not layers:
        raise ValueError(f'{type(model).__name__} has no quantised convolution: rs_timm.quantization.quantize_(model) '
                         'gives it some; save_pretrained(model, directory, half=True) halves a plain one.')
    classifier: Any = model.get_classifier() if hasattr(model, 'get_classifier') else ()  # type: ignore[operator]
    own = classifier if isinstance(classifier, (tuple, list)) else [classifier]
    heads = {f'{name}.weight' for name, module in model.named_modules() if any(module is head for head in own)}
    packed: StateDict = {}
    for key, tensor in model.state_dict().items():
        name, _, entry = key.rpartition('.')
        tensor = tensor.detach().cpu().contiguous()
        if name in layers and entry == 'weight':
            packed[f'{name}{_CODES}'] = _pack(_codes(layers[name]), layers[name].weight_basis.shape[1])
        elif key in heads and head == 'int8':
            packed[f'{name}{_INT8}'], packed[f'{name}{_SCALE}'] = _to_int8(tensor)
        elif tensor.ndim > 1 and entry == 'weight' and (key not in heads or head == 'float16'):
            packed[key] = _to_half(key, tensor)
        else:
            packed[key] = tensor.clone()
    return packed


def unpack_weights(state_dict: Mapping[str, Any]) -> Dict[str, Any]:
    """The ordinary state dict for a packed one; entries that are not packed are passed on.

    >>> unpack_weights({'fc.weight': torch.ones(1)})
    {'fc.weight': tensor([1.])}

    Raises:
        ValueError: codes without their basis, or a classifier without its scales.
    """
    plain: Dict[str, Any] = {}
    for key, tensor in state_dict.items():
        name = key.rpartition('.')[0]
        if key.endswith(_CODES):
            plain[f'{name}.weight'] = _decoded(tensor, _companion(state_dict, name + _BASIS, key))
        elif key.endswith(_INT8):
            scale = _companion(state_dict, name + _SCALE, key).float()
            plain[f'{name}.weight'] = tensor.float() * scale.view(-1, *[1] * (tensor.ndim - 1))
        elif not (key.endswith(_SCALE) and name + _INT8 in state_dict):
            plain[key] = tensor
    return plain


def _companion(state_dict: Mapping[str, Any], key: str, wanted_by: str) -> torch.Tensor:
    if key not in state_dict:
        raise ValueError(f'{wanted_by} is there, {key} is not: the packed file is not whole. Pack the network again.')
    return state_dict[key]


def _codes(layer: LQConv2d) -> torch.Tensor:
    """The number of the code of each weight: uint8 [out, in / groups, kh, kw]."""
    levels, numbers = sorted_levels(layer.weight_basis.detach().cpu().float(), True)
    weight = layer.weight.detach().cpu().float().contiguous()
    positions = nearest(weight.reshape(len(weight), -1), levels)
    return look_up(numbers, positions).to(torch.uint8).reshape(weight.shape)


def _pack(codes: torch.Tensor, bits: int) -> torch.Tensor:
    shifts = torch.arange(bits, dtype=torch.uint8).view(1, -1, *[1] * (codes.ndim - 1))
    digits = ((codes.unsqueeze(1) >> shifts) & 1).flatten(0, 1)  # [out * bits, ...]
    padding = digits.new_zeros(-len(digits) % 8, *digits.shape[1:])
    octets = torch.cat([digits, padding]).unflatten(0, (-1, 8))
    return (octets << _eight(octets)).sum(1, dtype=torch.uint8)


def _unpack(packed: torch.Tensor, out: int, bits: int) -> torch.Tensor:
    octets = packed.unsqueeze(1)
    digits = ((octets >> _eight(octets)) & 1).flatten(0, 1)[:out * bits].unflatten(0, (out, bits))
    shifts = torch.arange(bits, dtype=torch.uint8).view(1, -1, *[1] * (packed.ndim - 1))
    return (digits << shifts).sum(1, dtype=torch.uint8)


def _eight(octets: torch.Tensor) -> torch.Tensor:
    return torch.arange(8, dtype=torch.uint8).view(1, 8, *[1] * (octets.ndim - 2))


def _decoded(packed: torch.Tensor, basis: torch.Tensor) -> torch.Tensor:
    """The weights [out, in / groups, kh, kw]: each the level of its code."""
    out, bits = basis.shape
    codes = _unpack(packed, out, bits).long()
    levels, numbers = sorted_levels(basis.float(), True)
    by_number = torch.empty_like(levels).scatter_(1, numbers, levels)
    return look_up(by_number, codes.reshape(out, -1)).reshape(codes.shape)


def _to_int8(weight: torch.Tensor) -> Any:
    """Return int8 [K, ...] and a scale for each row [K], which has few digits, so that the product is exact."""
    largest = weight.reshape(len(weight), -1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, torch.ones_like(largest)).bfloat16()
    rows = weight.float() / scale.float().view(-1, *[1] * (weight.ndim - 1))
    return rows.round().clamp(-127, 127).to(torch.int8), scale


def _to_half(key: str, tensor: torch.Tensor) -> torch.Tensor:
    half = tensor.half()
    if not torch.equal(half.isfinite(), tensor.isfinite()):
        raise ValueError(f'{key} has values up to {tensor.abs().max().item():.3g}, float16 ends at 65504: it cannot be '
                         'packed.')
    return half
