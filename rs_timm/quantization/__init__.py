"""Quantised networks with learned levels: LQ-Nets (Zhang et al., ECCV 2018), as in Table 3 of the paper."""
from .conv import LQConv2d
from .convert import LQConfig, dequantize, quantize_, quantized_layers
from .lq import quantize_activation, quantize_weight
from .packing import load_packed, pack_weights, packed_state_dict, unpack_weights

__all__ = [
    'LQConfig',
    'LQConv2d',
    'dequantize',
    'load_packed',
    'pack_weights',
    'packed_state_dict',
    'quantize_',
    'quantize_activation',
    'quantize_weight',
    'quantized_layers',
    'unpack_weights',
]
