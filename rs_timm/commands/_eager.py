"""Pictures through a model in eager PyTorch, one at a time, at any number of resolutions."""
import argparse
import io
import time
from typing import Any, Callable, Dict, List, Mapping, Sequence, Tuple

import numpy as np
import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from rs_timm.data import image_transform
from rs_timm.layers import get_resolutions
from rs_timm.pictures import open_picture

from ._model import load_model

__all__ = ['EagerClassifier', 'class_names', 'folder_names']


class EagerClassifier:
    """The model that the arguments name.

    Attributes:
        trained: sizes with a BatchNorm set of their own.
        sizes: those that pictures are classified at.
        described: where it runs, in words.
        label: class index -> name.
    """

    def __init__(self, args: argparse.Namespace) -> None:
        self._device = torch.device(args.device)
        self._model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions).to(self._device)
        self.trained = get_resolutions(self._model)
        self.sizes = self.trained if args.all else tuple(dict.fromkeys(args.resolution or self.trained[:1]))
        self.label = class_names(self._model)
        self.described = f'{args.device}, threads: {torch.get_num_threads()}'
        config = resolve_model_data_config(self._model)
        self._transforms = {size: image_transform(config, size) for size in self.sizes}
        self._warm_up(config)

    def _warm_up(self, config: Mapping[str, Any]) -> None:
        """The first pass at a size pays for memory and kernels; it is not the picture's."""
        for size in self.sizes:
            self._classify(torch.zeros(1, config['input_size'][0], size, size, device=self._device))

    def __call__(self, data: bytes) -> List[Tuple[int, float, np.ndarray]]:
        """Size, milliseconds of the forward pass, and logits [classes], for each of `sizes`. Raises ImageError."""
        image = open_picture(io.BytesIO(data), name='picture 0').image
        return [(size, *self._classify(transform(image)[None].to(self._device)))
                for size, transform in self._transforms.items()]

    @torch.inference_mode()
    def _classify(self, x: torch.Tensor) -> Tuple[float, np.ndarray]:
        """One picture [1, C, H, W]. The network follows the size of `x`."""
        self._wait()
        start = time.perf_counter()
        logits = self._model(x)
        self._wait()
        milliseconds = (time.perf_counter() - start) * 1e3
        return milliseconds, logits[0].float().cpu().numpy()

    def _wait(self) -> None:
        if self._device.type == 'cuda':
            torch.cuda.synchronize(self._device)


def class_names(model: nn.Module) -> Callable[[int], str]:
    """Class index -> name: as the model's cfg says, else ImageNet's if the number of classes fits, else a number.

    Raises:
        ValueError: a network without classifier, or for segmentation.
    """
    if getattr(model, 'task', 'classification') != 'classification':
        raise ValueError(f'{type(model).__name__} is for {model.task}: rs-timm eval --overlays DIR draws what it '
                         'predicts.')
    if not getattr(model, 'num_classes', 0):
        raise ValueError('the model has no classifier (num_classes=0): there are no classes to predict.')
    labels, descriptions = _labels(model)
    if labels:
        return lambda index: str(descriptions.get(labels[index], labels[index]))
    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset).index_to_description if subset else lambda index: f'class {index}'


def folder_names(model: nn.Module) -> List[Sequence[str]]:
    """What the folders of a model's classes may be called, each list in the order of the outputs.

    The labels of the model's cfg, or their descriptions; where it has none, ImageNet's synsets if the number of classes
    fits.
    """
    labels, descriptions = _labels(model)
    if labels:
        return [labels, [str(descriptions.get(label, label)) for label in labels]]
    subset = infer_imagenet_subset(model)
    return [ImageNetInfo(subset).label_names()] if subset else []


def _labels(model: nn.Module) -> Tuple[List[str], Dict[str, str]]:
    """Labels of the outputs and descriptions of the labels; none where the cfg is about another number of classes."""
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    labels = [str(label) for label in cfg.get('label_names') or ()]
    if len(labels) != getattr(model, 'num_classes', 0):
        return [], {}
    return labels, cfg.get('label_descriptions') or {}
