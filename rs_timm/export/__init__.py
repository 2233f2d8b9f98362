"""Switchable networks as files that engines read: one ONNX file with all BatchNorm sets, or one a resolution."""
from .onnx_file import export_onnx, onnx_model

__all__ = ['export_onnx', 'onnx_model']
