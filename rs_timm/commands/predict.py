"""rs-timm predict: classes and milliseconds of pictures, at one or many resolutions."""
import argparse
import time
from typing import Any, Callable, List, Mapping, Sequence, Tuple

import torch
from timm.data import ImageNetInfo, infer_imagenet_subset, resolve_model_data_config
from torch import nn

from rs_timm.data import ImageError, image_transform, open_image
from rs_timm.layers import bracket, get_resolutions

from ._model import add_model_arguments, load_model, positive_int
from ._shell import PARTLY_FAILED, printable, report

__all__ = ['class_names', 'register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('predict', help='classify pictures')
    add_model_arguments(parser)
    parser.add_argument('images', metavar='IMAGE', nargs='+', help='picture file')
    sizes = parser.add_mutually_exclusive_group()
    sizes.add_argument('--resolution', type=positive_int, nargs='+', metavar='R',
                       help='input sizes in pixels, trained or not (default: the largest trained one)')
    sizes.add_argument('--all', action='store_true', help='all sizes that the model was trained for')
    parser.add_argument('--topk', type=positive_int, default=5, metavar='K', help='classes to show (default: 5)')
    parser.add_argument('--device', type=torch.device, default=torch.device('cpu'), help='default: cpu')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions).to(args.device)
    trained = get_resolutions(model)
    sizes = trained if args.all else tuple(dict.fromkeys(args.resolution or trained[:1]))
    names = class_names(model)
    config = resolve_model_data_config(model)
    transforms = {size: image_transform(config, size) for size in sizes}
    for line in _heading(args, trained, sizes):
        print(line)
    _warm_up(model, config, sizes, args.device)
    unreadable = 0
    for path in args.images:
        try:
            image = open_image(path)
        except ImageError as error:
            report(str(error))
            unreadable += 1
            continue
        print(printable(path))
        for size, transform in transforms.items():
            probabilities, milliseconds = _classify(model, transform(image)[None].to(args.device))
            print('\n'.join(_rows(size, milliseconds, probabilities, names, args.topk)), flush=True)
    return PARTLY_FAILED if unreadable else 0


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
    cfg = getattr(model, 'pretrained_cfg', None) or {}
    labels, descriptions = cfg.get('label_names'), cfg.get('label_descriptions') or {}
    if labels:
        return lambda index: str(descriptions.get(labels[index], labels[index]))
    subset = infer_imagenet_subset(model)
    return ImageNetInfo(subset).index_to_description if subset else lambda index: f'class {index}'


def _heading(args: argparse.Namespace, trained: Sequence[int], sizes: Sequence[int]) -> List[str]:
    threads = torch.get_num_threads()
    lines = [f'# {args.model} on {args.device}, threads: {threads}; ms: the forward pass of one picture']
    if args.no_weights:
        lines.append('# random weights: the classes mean nothing')
    for size in sizes:
        upper, lower, _ = bracket(trained, size)
        if upper != lower:
            lines.append(f'# {size} px has no BatchNorm set: interpolated between those for {upper} and {lower}')
        elif upper != size:
            lines.append(f'# {size} px has no BatchNorm set: the nearest one, for {upper}, is used')
    return lines


def _warm_up(model: nn.Module, config: Mapping[str, Any], sizes: Sequence[int], device: torch.device) -> None:
    """The first pass at a size pays for memory and kernels; it is not the picture's."""
    for size in sizes:
        _classify(model, torch.zeros(1, config['input_size'][0], size, size, device=device))


@torch.inference_mode()
def _classify(model: nn.Module, x: torch.Tensor) -> Tuple[torch.Tensor, float]:
    """Probabilities [classes] of one picture [1, C, H, W], and milliseconds. The network follows the size of `x`."""
    _wait(x.device)
    start = time.perf_counter()
    logits = model(x)
    _wait(x.device)
    milliseconds = (time.perf_counter() - start) * 1e3
    return logits[0].float().softmax(0).cpu(), milliseconds


def _wait(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _rows(
        size: int,
        milliseconds: float,
        probabilities: torch.Tensor,
        names: Callable[[int], str],
        topk: int,
) -> List[str]:
    top = probabilities.topk(min(topk, len(probabilities)))
    pairs = zip(top.values.tolist(), top.indices.tolist())
    rows = [f'{value:8.1%}  {printable(names(index))}' for value, index in pairs]
    first = f'{size:6} px {milliseconds:8.1f} ms'
    return [first + rows[0], *(' ' * len(first) + row for row in rows[1:])]
