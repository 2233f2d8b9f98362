"""How far an exported file is from the network that it was made from."""
from os import PathLike, fspath
from typing import Any, Dict, Union

import torch
from timm.utils import unwrap_model
from torch import nn

from rs_timm.format.graph import IMAGES, read_info
from rs_timm.layers import use_resolution

__all__ = ['max_difference']


def max_difference(model: nn.Module, file: Union[str, 'PathLike[str]'], resolution: int, batch: int = 2) -> float:
    """The largest difference between `file` in ONNX Runtime and `model` in torch, on random images of a resolution.

    It is relative to the largest absolute value of the output in question; float32 arithmetic in another order gives
    about 1e-6.

    Args:
        model: as exported, in evaluation mode, on the CPU; it follows its input meanwhile.
        file: as written by `export_onnx` or `split_onnx`.
        resolution: pixels.
        batch: images.

    Raises:
        ImportError: onnxruntime is not installed.
        ValueError: the file is not one of ours.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise ImportError("the check needs ONNX Runtime: pip install 'rs_timm[onnxruntime]'.") from error
    info = read_info(file)
    images = torch.randn(batch, info.channels, resolution, resolution, generator=torch.Generator().manual_seed(0))
    feeds: Dict[str, Any] = {IMAGES: images.numpy()}
    if info.choice == 'input':
        feeds['resolution'] = torch.tensor(float(resolution)).numpy()
    session = onnxruntime.InferenceSession(fspath(file), providers=['CPUExecutionProvider'])
    with torch.no_grad(), use_resolution(model, None):
        outputs = unwrap_model(model)(images)
    expected = [outputs] if isinstance(outputs, torch.Tensor) else list(
        outputs.values() if isinstance(outputs, dict) else outputs)
    pairs = zip(expected, map(torch.from_numpy, session.run(None, feeds)))
    return max(((a - b).abs().max() / a.abs().max()).item() for a, b in pairs)
