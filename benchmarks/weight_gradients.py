"""What do weight gradients by one matrix product gain (`rs_timm.training.weight_gradients`), and is its rule right?

(a) `layers`: the weight gradients of all convolutions of a network at all its resolutions, summed: by torch, by the
    product everywhere, as the rule `pays` chooses, and what the best choice for each layer would be.
(b) `step`: the whole training step (forward, MRED, backward, optimizer) with them against the step without.

    python -m benchmarks.weight_gradients [--models rs_resnet18 ...] [--batch 8] [--resolutions 224 192 160 128 96]

The sides take turns; of a layer the fastest of the rounds counts, of a step the median. Rows of the same question, model,
sizes, batch and precision replace those in the table.
"""
import argparse
import time
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Callable, Counter, Dict, Iterator, NamedTuple, Optional, Sequence, Tuple
from unittest import mock

import timm
import torch

from benchmarks.environment import RESULTS, describe
from benchmarks.training.results import merge
from benchmarks.training_cost import MODELS, RESOLUTIONS, compare, interleaved, rs_step
from rs_timm.training import keep_freed_memory, weight_gradients

Row = Dict[str, Any]


class Layer(NamedTuple):
    """A convolution without groups, and what it is given."""

    input: Tuple[int, ...]
    weight: Tuple[int, ...]
    stride: Tuple[int, int]
    padding: Tuple[int, int]


@contextmanager
def by_torch() -> Iterator[None]:
    """Every weight gradient is computed by torch's own kernel."""
    with mock.patch.object(weight_gradients, 'pays', lambda *args: False):
        yield


def layers_of(name: str, sizes: Sequence[int], batch: int) -> Counter[Layer]:
    """How often each kind of layer occurs in a step."""
    model = timm.create_model(name, resolutions=sizes, device='meta').eval()
    found: Counter[Layer] = Counter()
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d) and module.groups == 1:
            module.register_forward_pre_hook(partial(_note, found))
    for size in sizes:
        model(torch.empty(batch, 3, size, size, device='meta'))
    return found


def _note(found: Counter[Layer], module: torch.nn.Conv2d, inputs: Tuple[torch.Tensor, ...]) -> None:
    stride, padding = ((pair[0], pair[1]) for pair in (module.stride, module.padding))
    found[Layer(tuple(inputs[0].shape), tuple(module.weight.shape), stride, padding)] += 1


def layer_times(layer: Layer, dtype: torch.dtype, rounds: int) -> Tuple[float, float, bool]:
    """Milliseconds of torch and of the product, and whether the rule chooses the product."""
    x, weight = (torch.randn(shape).to(dtype).contiguous(memory_format=torch.channels_last)
                 for shape in (layer.input, layer.weight))
    grad = torch.randn_like(torch.conv2d(x, weight, None, layer.stride, layer.padding))
    geometry = layer.stride, layer.padding
    theirs = partial(torch.ops.aten.convolution_backward, grad, x, weight, None, *geometry, (1, 1), False, (0, 0), 1,
                     (False, True, False))
    ours = partial(weight_gradients.weight_gradient, x, grad, layer.weight[2:], *geometry)
    times = [(_ms(theirs), _ms(ours)) for _ in range(rounds + 1)][1:]
    slow, fast = map(min, zip(*times))
    return slow, fast, weight_gradients.pays(x, weight, *geometry)


def _ms(call: Callable[[], object]) -> float:
    start = time.perf_counter()
    call()
    return 1e3 * (time.perf_counter() - start)


def layer_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    """Sums over the layers; a ratio is that to the time of torch."""
    sums = dict.fromkeys(('product everywhere', 'by the rule', 'best of both'), 0.)
    total = 0.
    for layer, count in layers_of(name, args.resolutions, args.batch).items():
        theirs, ours, chosen = layer_times(layer, getattr(torch, args.precision), args.rounds)
        total += count * theirs
        sums['product everywhere'] += count * ours
        sums['by the rule'] += count * (ours if chosen else theirs)
        sums['best of both'] += count * min(ours, theirs)
    for choice, ms in sums.items():
        yield dict(question=f'weight gradients, {choice}', model=name, sizes=' '.join(map(str, args.resolutions)),
                   unit='ms', rs=ms, other=total, ratio=ms / total, rounds=args.rounds)


def step_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    step = rs_step(name, args.resolutions, args)

    def without() -> None:
        with by_torch():
            step()

    times = interleaved({'rs': step, 'other': without}, args.rounds)
    yield compare('step with them', name, args.resolutions, times['rs'], times['other'])


PARTS: Dict[str, Callable[[str, argparse.Namespace], Iterator[Row]]] = {'layers': layer_rows, 'step': step_rows}


def main(argv: Optional[Sequence[str]] = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=tuple(PARTS))
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--resolutions', nargs='+', type=int, default=RESOLUTIONS)
    parser.add_argument('--batch', type=int, default=8, help='pictures a step (default: 8)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--precision', choices=('bfloat16', 'float32'), default='bfloat16')
    parser.add_argument('--out', type=Path, default=RESULTS / 'weight_gradients.csv')
    args = parser.parse_args(argv)
    args.device = 'cpu'
    torch.manual_seed(0)
    keep_freed_memory()
    environment = describe('cpu', args.precision)
    matrix_units = 'with' if torch.cpu._is_amx_tile_supported() else 'without'
    print(', '.join(f'{key} {value}' for key, value in environment.items()), f'({matrix_units} matrix units)')
    for name in args.models:
        rows = [dict(row, batch=args.batch, matrix_units=matrix_units, **environment)
                for part in args.parts for row in PARTS[part](name, args)]
        for row in rows:
            print(f'{row["question"]:40} {row["model"]:15} {row["rs"]:9.1f} ms, torch {row["other"]:9.1f}, ratio '
                  f'{row["ratio"]:.3f}', flush=True)
        merge(args.out, rows)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
