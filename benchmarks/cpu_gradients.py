"""What do the gradients of `rs_timm.training.cpu.kernels` gain over those of torch, and are its rules right?

(a) `weights`: the weight gradients of all convolutions without groups of a network at all its resolutions, summed: by
    torch, by the product everywhere, as the rule `pays` chooses, and what the best choice for each layer would be.
(b) `inputs`: the input gradients of the depthwise convolutions with a stride (bfloat16).
(c) `step`: the whole training step (forward, MRED, backward, optimizer) with both against the step without.

    python -m benchmarks.cpu_gradients [--models rs_resnet18 ...] [--batch 8] [--resolutions 224 192 160 128 96]

The sides take turns; of a layer the fastest of the rounds counts, of a step the median. Rows of the same question,
model, sizes, batch and precision replace those in the table.
"""
import argparse
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Callable, Counter, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import timm
import torch

from benchmarks.environment import RESULTS, keep_kernels
from benchmarks.timing import interleaved
from benchmarks.training_cost import RESOLUTIONS, Part, Row, answer, compare, parser_of, rs_step
from rs_timm.training import keep_freed_memory
from rs_timm.training.cpu import kernels as cpu_gradients

Call = Callable[[], object]


class Layer(NamedTuple):
    """A convolution, and the shape of what it is given."""

    input: Tuple[int, ...]
    weight: Tuple[int, ...]
    stride: Tuple[int, int]
    padding: Tuple[int, int]
    groups: int


@contextmanager
def by_torch() -> Iterator[None]:
    """Every gradient is computed by torch's own kernel."""
    never = mock.Mock(return_value=False)
    with mock.patch.multiple(cpu_gradients, pays=never, spreads=never):
        yield


def layers_of(name: str, args: argparse.Namespace) -> Counter[Layer]:
    """How often each kind of layer occurs in a step."""
    model = timm.create_model(name, resolutions=args.resolutions, device='meta').eval()
    found: Counter[Layer] = Counter()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_pre_hook(partial(_note, found))
    for size in args.resolutions:
        model(torch.empty(args.batch, 3, size, size, device='meta'))
    return found


def _note(found: Counter[Layer], module: torch.nn.Conv2d, inputs: Tuple[torch.Tensor, ...]) -> None:
    stride, padding = ((pair[0], pair[1]) for pair in (module.stride, module.padding))
    found[Layer(tuple(inputs[0].shape), tuple(module.weight.shape), stride, padding, module.groups)] += 1


def shapes_of(layer: Layer) -> Tuple[torch.Tensor, torch.Tensor]:
    """Input and weight without contents, for a rule to look at."""
    return torch.empty(layer.input, device='meta'), torch.empty(layer.weight, device='meta')


def both(layer: Layer, for_input: bool, dtype: torch.dtype, rounds: int) -> Tuple[float, float]:
    """Milliseconds of torch and of ours."""
    x, weight = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
                 for shape in (layer.input, layer.weight))
    grad = torch.randn_like(torch.conv2d(x, weight, None, layer.stride, layer.padding, 1, layer.groups))
    geometry = layer.stride, layer.padding
    theirs = partial(torch.ops.aten.convolution_backward, grad, x, weight, None, *geometry, (1, 1), False, (0, 0),
                     layer.groups, (for_input, not for_input, False))
    ours: Call = partial(cpu_gradients.weight_gradient, x, grad, layer.weight[2:], *geometry)
    if for_input:
        ours = partial(cpu_gradients.input_gradient, grad, weight, layer.input[2:], *geometry)
    times = interleaved(dict(theirs=theirs, ours=ours), rounds)
    return 1e3 * min(times['theirs']), 1e3 * min(times['ours'])


def weight_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    """Sums over the layers."""
    sums = dict.fromkeys(('product everywhere', 'by the rule', 'best of both'), 0.)
    total = 0.
    dtype = getattr(torch, args.precision)
    for layer, count in layers_of(name, args).items():
        if layer.groups > 1:
            continue
        theirs, ours = both(layer, False, dtype, args.rounds)
        chosen = cpu_gradients.pays(*shapes_of(layer), layer.stride, layer.padding, dtype)
        total += count * theirs
        sums['product everywhere'] += count * ours
        sums['by the rule'] += count * (ours if chosen else theirs)
        sums['best of both'] += count * min(ours, theirs)
    for choice, ms in sums.items():
        yield _row(f'weight gradients, {choice}', name, args, ms, total)


def input_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    """Sums over the layers that the rule chooses, if there are any."""
    dtype = getattr(torch, args.precision)
    theirs = ours = 0.
    for layer, count in layers_of(name, args).items():
        if cpu_gradients.spreads(*shapes_of(layer), layer.stride, layer.padding, layer.groups, dtype):
            a, b = both(layer, True, dtype, args.rounds)
            theirs, ours = theirs + count * a, ours + count * b
    if theirs:
        yield _row('input gradients, depthwise with a stride', name, args, ours, theirs)


def _row(question: str, name: str, args: argparse.Namespace, ours: float, theirs: float) -> Row:
    return dict(question=question, model=name, sizes=' '.join(map(str, args.resolutions)), unit='ms', rs=ours,
                other=theirs, ratio=ours / theirs, rounds=args.rounds)


def step_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    step = rs_step(name, args.resolutions, args)

    def without() -> None:
        with by_torch():
            step()

    times = interleaved({'rs': step, 'other': without}, args.rounds)
    yield compare('step', name, args.resolutions, times['rs'], times['other'])


PARTS: Dict[str, Part] = {
    'weights': weight_rows,
    'inputs': input_rows,
    'step': step_rows,
}


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=tuple(PARTS))
    parser.add_argument('--resolutions', nargs='+', type=int, default=RESOLUTIONS)
    parser.add_argument('--out', type=Path, default=RESULTS / 'cpu_gradients.csv')
    args = parser.parse_args(argv)
    args.device = 'cpu'
    torch.manual_seed(0)
    keep_freed_memory()
    keep_kernels()
    answer(PARTS, args, matrix_units='yes' if cpu_gradients.has_matrix_units() else 'no')


if __name__ == '__main__':
    main()
