"""Switchable networks as files that engines read: one ONNX file with all BatchNorm sets, or one a resolution."""
from .network import model_info
from .onnx_file import export_onnx, max_difference, onnx_model, split_onnx
from .torch_program import export_torch

__all__ = ['export_onnx', 'export_torch', 'max_difference', 'model_info', 'onnx_model', 'split_onnx']
