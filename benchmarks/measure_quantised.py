"""What is measured for Table 3 besides accuracy: bytes of a network's file, and what int8 of the runtime gives."""
import tempfile
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.quantization_size import full_size, packed_size
from benchmarks.runtime.networks import labelled
from rs_timm import export_onnx
from rs_timm.analysis import expected_calibration_error
from rs_timm.quantization import quantized_layers
from rs_timm.runtime import Session

__all__ = ['CALIBRATION', 'file_rows', 'int8_rows']

CALIBRATION = 300  # pictures
_BATCH = 32
Rows = List[Dict[str, Any]]


def file_rows(model: nn.Module) -> Rows:
    """Bytes of the safetensors file in float32 and float16, without the bases of the quantisers, and packed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {'float32': full_size(model, folder), 'float16': full_size(model, folder, torch.float16)}
        if quantized_layers(model):
            sizes['packed'] = packed_size(model, folder, 'int8')
    return [dict(kind=kind, bytes=size) for kind, size in sizes.items()]


def int8_rows(model: nn.Module, data: Path, sizes: Sequence[int], names: Sequence[str]) -> Rows:
    """Accuracy of OpenVINO's int8 networks, calibrated with training pictures, on the test pictures.

    Args:
        model: switchable.
        data: folder with train/CLASS/* and val/CLASS/*.
        sizes: in pixels.
        names: of the classes, in the order of the model's outputs.
    """
    calibration, _ = labelled(data / 'train', names, CALIBRATION)
    files, targets = labelled(data / 'val', names)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        export_onnx(model, file)
        session = Session(file, 'openvino', 'int8', calibration=calibration)
        return [_row(session, files, torch.from_numpy(targets), size) for size in sizes]


def _row(session: Session, files: Sequence[Path], targets: torch.Tensor, size: int) -> Dict[str, Any]:
    batches = [session(files[first:first + _BATCH], size) for first in range(0, len(files), _BATCH)]
    logits = torch.from_numpy(np.concatenate(batches))
    confidence, said = logits.softmax(1).max(1)
    right = said == targets
    in_top5 = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]).any(1)
    return dict(
        sets='int8',
        resolution=size,
        top1=100. * right.double().mean().item(),
        top5=100. * in_top5.double().mean().item(),
        loss=F.cross_entropy(logits, targets).item(),
        ece=expected_calibration_error(confidence.numpy(), right.numpy()),
    )
