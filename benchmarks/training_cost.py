"""What does a training step of an RS-Net cost, and how does that grow with the number of resolutions?

(a) `separate`: one step at S resolutions (forward, MRED, backward, optimizer, all that `Trainer.update` does) against
    the S single-resolution steps of stock timm networks that it replaces, in the same precision, memory format and
    optimizer.
(b) `paper`: the same step against the paper's, written down as described (`benchmarks.training.paper_step`): float32,
    NCHW, layer by layer over lists of activations, a divergence for each pair.
(c) `data`: pictures per second against separate loaders; that is `benchmarks.data_pipeline`, and runs it.
(d) `memory`: the peak of what tensors hold, and of the resident memory of a process above that before it made its
    network, in the ordinary and in the lean step, against the step of one stock network at the largest resolution.
(e) `allocator`: the step at all resolutions with `keep_freed_memory`, which `rs-timm train` calls, against the step
    without it, in fresh processes by turns. In all other parts both sides have it.

    python -m benchmarks.training_cost [--parts separate paper ...] [--models rs_resnet18 ...] [--quick]
    python -m benchmarks.training_cost --device cuda [--batch 64]

On CUDA (a), (b) and the tensors of (d) are measured, and written to a table of their own.

S = 1 to 5, the largest resolutions first. The sides take turns within a round, in an order that reverses from round to
round; quoted are medians over the rounds, the ratio being that of each round. Rows of the same question, model, sizes,
batch and precision replace those in the table; the others stay, so that parts may be run one at a time.
"""
import argparse
import itertools
import multiprocessing
import statistics
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Mapping, Optional, Sequence, Tuple

import timm
import torch
import torch.nn.functional as F
from timm.optim import create_optimizer_v2
from torch import nn

from benchmarks import data_pipeline
from benchmarks.environment import RESULTS, describe, keep_kernels
from benchmarks.paper_step import PaperStep
from benchmarks.peak_memory import PeakMemory
from benchmarks.store import put
from benchmarks.timing import interleaved, ratio_of, seconds
from benchmarks.training_sections import UNIT, plot
from rs_timm.training import MREDTask, Recipe, Trainer, keep_freed_memory
from rs_timm.training.optimization import create_optimizer, create_schedule

MODELS = ('rs_resnet18', 'rs_resnet50', 'rs_mobilenetv2')
RESOLUTIONS = (224, 192, 160, 128, 96)
CLASSES = 1000
CUDA = 'cuda'
TABLE = 'training_cost.csv'
Images = Mapping[int, torch.Tensor]
Step = Callable[[], object]
Row = Dict[str, Any]
Part = Callable[[str, argparse.Namespace], Iterator[Row]]


def batch_of(
        sizes: Sequence[int],
        count: int,
        device: str,
        channels_last: bool = True,
) -> Tuple[Dict[int, torch.Tensor], Any]:
    """Noise at each size, as a loader would give it, and labels."""
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    images = {r: torch.randn(count, 3, r, r, device=device).contiguous(memory_format=memory_format) for r in sizes}
    return images, torch.randint(CLASSES, (count,), device=device)


def recipe_of(sizes: Sequence[int], args: argparse.Namespace, **changes: Any) -> Recipe:
    return Recipe(resolutions=tuple(sizes), precision=args.precision, channels_last=True, lr=1e-3, **changes)


def rs_step(name: str, sizes: Sequence[int], args: argparse.Namespace, lean: bool = False) -> Step:
    """What `rs-timm train` runs for each batch."""
    model = timm.create_model(name, resolutions=tuple(sizes), num_classes=CLASSES)
    return step_of(model, recipe_of(sizes, args, lean=lean, batch_size=args.batch), args.device)


def step_of(model: nn.Module, recipe: Recipe, device: str = 'cpu') -> Step:
    """One update on noise, as the training loop makes it."""
    model = model.to(device, memory_format=torch.channels_last)
    task = MREDTask(model, recipe.mred, lean=recipe.lean, device=torch.device(device)).to(device)
    optimizer = create_optimizer(task, recipe)
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=1000)
    trainer = Trainer(task.train(), recipe, optimizer, schedule, None, Path())  # an update needs no loaders
    return partial(trainer.update, [batch_of(recipe.resolutions, recipe.batch_size, device)])


def stock_step(name: str, size: int, args: argparse.Namespace) -> Step:
    """The step of a plain network of timm on its own pictures."""
    recipe = recipe_of((size,), args)
    model = timm.create_model(stock_name(name), num_classes=CLASSES).train()
    model = model.to(args.device, memory_format=torch.channels_last)
    optimizer = create_optimizer_v2(
        model, opt=recipe.opt, lr=recipe.lr, weight_decay=recipe.weight_decay, momentum=recipe.momentum)
    images, target = batch_of((size,), args.batch, args.device)

    def step() -> float:
        optimizer.zero_grad()
        with torch.autocast(args.device, dtype=torch.bfloat16, enabled=args.precision == 'bfloat16'):
            loss = F.cross_entropy(model(images[size]), target)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def paper_step(name: str, sizes: Sequence[int], args: argparse.Namespace) -> Step:
    network = timm.create_model(stock_name(name), num_classes=CLASSES).to(args.device)
    return partial(PaperStep(network, len(sizes)), *batch_of(sizes, args.batch, args.device, False))


def stock_name(name: str) -> str:
    return timm.create_model(name, device='meta').stock_architecture


def compare(question: str, name: str, sizes: Sequence[int], rs: List[float], other: List[float]) -> Row:
    return dict(
        question=question,
        model=name,
        sizes=' '.join(map(str, sizes)),
        unit='ms',
        rs=1e3 * statistics.median(rs),
        other=1e3 * statistics.median(other),
        ratio=ratio_of(rs, other),
        rounds=len(rs),
    )


def separate_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    for sizes in growing(args):
        stock = [stock_step(name, size, args) for size in sizes]
        one_by_one: Step = lambda steps=stock: [step() for step in steps]  # type: ignore[misc]  # noqa: E731
        times = interleaved(dict(rs=rs_step(name, sizes, args), stock=one_by_one), args.rounds)
        yield compare('separate', name, sizes, times['rs'], times['stock'])


def paper_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    for sizes in growing(args):
        times = interleaved(dict(rs=rs_step(name, sizes, args), paper=paper_step(name, sizes, args)), args.rounds)
        yield compare('paper', name, sizes, times['rs'], times['paper'])


def memory_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    stock = in_fresh_process(stock_step, name, RESOLUTIONS[0], args, count_tensors=True)
    for sizes in growing(args):
        for lean in (False, True) if len(sizes) > 1 else (False,):
            used = in_fresh_process(rs_step, name, sizes, args, lean, count_tensors=True)
            for kind in [name for name in ('tensors', 'resident') if name in used]:
                yield dict(
                    question=f'memory, {kind}, lean' if lean else f'memory, {kind}', model=name,
                    sizes=' '.join(map(str, sizes)), unit='MiB', rs=used[kind], other=stock[kind],
                    ratio=used[kind] / stock[kind], rounds=1)


def allocator_rows(name: str, args: argparse.Namespace) -> Iterator[Row]:
    times: Dict[bool, List[float]] = {True: [], False: []}
    peaks: Dict[bool, List[float]] = {True: [], False: []}
    for index in range(2):
        for keep in (True, False) if index else (False, True):
            used = in_fresh_process(rs_step, name, RESOLUTIONS, args, keep=keep, steps=2 + args.rounds)
            times[keep] += used['seconds'][2:]
            peaks[keep].append(used['resident'])
    yield compare('allocator', name, RESOLUTIONS, times[True], times[False])
    rs, other = max(peaks[True]), max(peaks[False])
    yield dict(question='allocator, resident', model=name, sizes=' '.join(map(str, RESOLUTIONS)), unit='MiB', rs=rs,
               other=other, ratio=rs / other, rounds=2)


def in_fresh_process(make: Callable[..., Step], *args: Any, **options: Any) -> Dict[str, Any]:
    """What some steps use in a process that has torch loaded and nothing run, see `_used`."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['benchmarks.training_cost'])
    with context.Pool(1) as pool:
        return pool.apply(_used, (torch.get_num_threads(), make, *args), options)


def _used(
        threads: int,
        make: Callable[..., Step],
        *args: Any,
        keep: bool = True,
        steps: int = 2,
        count_tensors: bool = False,
) -> Dict[str, Any]:
    """'seconds' of each step; 'resident' and 'tensors': MiB at the peak, those of the network and pictures included."""
    torch.set_num_threads(threads)
    if CUDA in (getattr(argument, 'device', None) for argument in args):
        step = make(*args)
        return dict(seconds=[seconds(step) for _ in range(steps)], tensors=torch.cuda.max_memory_allocated() / 2 ** 20)
    if keep:
        keep_freed_memory()
    before = _status('VmRSS')
    with PeakMemory() if count_tensors else nullcontext() as memory:
        step = make(*args)
        taken = [seconds(step) for _ in range(steps)]  # the optimizer has its buffers from the first on
    return dict(
        seconds=taken,
        resident=_status('VmHWM') - before,
        tensors=memory.peak / 2 ** 20 if memory else None,
    )


def _status(name: str) -> float:
    """A line of Linux's account of this process, in MiB."""
    lines = Path('/proc/self/status').read_text().splitlines()
    return next(float(line.split()[1]) / 1024 for line in lines if line.startswith(name))


def growing(args: argparse.Namespace) -> List[Tuple[int, ...]]:
    return [RESOLUTIONS[:count] for count in args.counts]


PARTS_ON_CUDA = ('separate', 'paper', 'memory')
PARTS: Dict[str, Part] = {
    'separate': separate_rows,
    'paper': paper_rows,
    'memory': memory_rows,
    'allocator': allocator_rows,
}


def main(argv: Optional[Sequence[str]] = None) -> None:
    args = parse(argv)
    keep_kernels()
    torch.manual_seed(0)
    if args.device != CUDA and not keep_freed_memory():
        print('note: freed memory is not kept here; both sides of each comparison go without')
    if 'data' in args.parts:
        data_pipeline.main([])
    answer(PARTS, args)
    if args.out == RESULTS / TABLE:
        plot()


def answer(parts: Mapping[str, Part], args: argparse.Namespace, **columns: str) -> None:
    """Write the rows of each wanted part of a benchmark for each network."""
    columns.update(describe(args.device, args.precision))
    print(', '.join(f'{key} {value}' for key, value in columns.items()))
    for part, name in itertools.product([part for part in args.parts if part in parts], args.models):
        rows = []
        for row in parts[part](name, args):
            rows.append(dict(row, batch=args.batch, **columns))
            print(f'{row["question"]:42} {row["model"]:15} {row["sizes"]:20} batch {args.batch:3} {args.precision:8} '
                  f'{row["rs"]:9.1f} {row["unit"]}, other {row["other"]:9.1f}, ratio {row["ratio"]:.3f}', flush=True)
        if rows:
            put(args.out, rows, UNIT)
    print(f'wrote {args.out}')


def parser_of(description: Optional[str]) -> argparse.ArgumentParser:
    """The options of a benchmark of training steps."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--batch', type=int, default=8, help='pictures a step (default: 8)')
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--precision', choices=('bfloat16', 'float32'), default='bfloat16', help='of our step')
    return parser


def parse(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = parser_of(__doc__)
    parser.add_argument('--parts', nargs='+', choices=(*PARTS, 'data'),
                        help=f"default: {' '.join(PARTS)}; on CUDA {' '.join(PARTS_ON_CUDA)}")
    parser.add_argument('--device', choices=('cpu', CUDA), default='cpu')
    parser.add_argument('--counts', nargs='+', type=int, default=range(1, 6), help='values of S (default: 1 to 5)')
    parser.add_argument('--quick', action='store_true', help='to try it out: rs_resnet18, 2 rounds, 2 pictures')
    parser.add_argument('--out', type=Path, help='default: training_cost.csv or training_cost_cuda.csv of the results')
    args = parser.parse_args(argv)
    on_cuda = args.device == CUDA
    args.parts = args.parts or (PARTS_ON_CUDA if on_cuda else tuple(PARTS))
    if on_cuda and (others := sorted({*args.parts} - {*PARTS_ON_CUDA})):
        parser.error(f"{', '.join(others)}: not measured on CUDA; there are {', '.join(PARTS_ON_CUDA)}.")
    args.out = args.out or RESULTS / ('training_cost_cuda.csv' if on_cuda else TABLE)
    if args.quick:
        args.models, args.rounds, args.batch = ('rs_resnet18',), 2, 2
    return args


if __name__ == '__main__':
    main()
