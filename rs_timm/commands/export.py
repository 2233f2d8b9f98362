"""rs-timm export: one file with all BatchNorm sets, for ONNX, Triton or ExecuTorch, or one plain file a resolution."""
import argparse
import os
import tempfile
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Dict, Iterable, List

from rs_timm.export import export_onnx, max_difference, split_onnx
from rs_timm.format.graph import extract_onnx, read_info, read_model
from rs_timm.layers import get_resolutions

from .arguments import add_model_arguments, add_old_name, check_free, model_source, positive_int
from .shell import FAILED, bar, report, watched

__all__ = ['export_arguments', 'run']

_TOLERANCE = 1e-3  # relative; float32 in another order differs by 1e-6 to 1e-5


def export_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm export`."""
    add_model_arguments(parser)
    parser.add_argument('out', metavar='OUT', nargs='?',
                        help='the file to write: NAME.onnx, or NAME.pte for ExecuTorch')
    parser.add_argument('--triton-repository', metavar='DIR',
                        help="write a model of a repository of NVIDIA's Triton Inference Server instead: DIR/NAME with "
                             'its config.pbtxt')
    add_old_name(parser, parser.add_argument(
        '--plain', type=positive_int, nargs='*', metavar='R',
        help='write plain files OUT_R.onnx of fixed size instead, for these sizes in pixels, trained or not (default: '
             'the trained ones)'), '--split')
    parser.add_argument('--choice', choices=('shape', 'input'), default='shape',
                        help="what chooses the set in the file: the images' shape (default), or a second input, "
                             'resolution')
    parser.add_argument('--latency', action='store_true',
                        help='of a .pte file, time each method here beside a program of its own: a minute more')
    parser.add_argument('--opset', type=int, default=17, metavar='N', help='of ONNX, 13 to 20 (default: 17)')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.plain is not None and args.choice == 'input':
        raise ValueError('--choice input: plain files (--plain) have nothing to choose.')
    if (args.out is None) == (args.triton_repository is None):
        raise ValueError('name either the file to write, such as NAME.onnx, or --triton-repository DIR.')
    if args.latency and not str(args.out).endswith('.pte'):
        raise ValueError('--latency is for a .pte file; rs-timm bench times what an engine runs.')
    if args.out is None:
        return _export_triton(args)
    out = Path(args.out)
    if args.plain is None:
        check_free(args.out, args.force)
    if out.suffix == '.pte':
        if args.plain is not None or args.choice == 'input':
            raise ValueError(f'{out}: --plain and --choice are for ONNX; a .pte file has a method for each size.')
        return _export_phone(model_source(args).load(), out, args.latency)
    model = model_source(args).load()
    sizes = args.plain or model.resolutions
    if args.plain is not None:
        for size in sizes:
            check_free(str(out.with_name(f'{out.stem}_{size}{out.suffix}')), args.force)
    with bar(None, 'file', 'export'):
        files: Dict[int, Path] = split_onnx(model, out, sizes, opset=args.opset) if args.plain is not None else {
            0: export_onnx(model, out, choice=args.choice, opset=args.opset)}
    return _compare(model, files.values(), args.no_weights)


def _export_triton(args: argparse.Namespace) -> int:
    from rs_timm.export.triton import MODEL_FILE, export_triton, triton_name

    if args.plain is not None or args.choice == 'input':
        raise ValueError('--triton-repository: its model is the one file with all sets, which chooses by the size of '
                         'its images; --plain and --choice are for files.')
    model = model_source(args).load()
    folder = Path(args.triton_repository) / triton_name(model)
    if folder.exists() and not args.force:
        raise ValueError(f'{folder} exists: name another repository, or --force to replace the model in it.')
    with bar(None, 'file', 'export'):
        export_triton(model, args.triton_repository, opset=args.opset)
    return _compare(model, [folder / MODEL_FILE], args.no_weights)


def _compare(model: Any, files: Iterable[Path], random_weights: bool) -> int:
    """Print what is in ONNX files, and how far they are from `model` -> the exit status."""
    if random_weights:
        print('# random weights: the classes mean nothing')
    compare = find_spec('onnxruntime') is not None
    differences = [difference for file in files for difference in _describe(model, file, compare)]
    if not compare:
        report("not compared with PyTorch: that needs pip install 'rs_timm[onnxruntime]'")
    return _status(differences)


def _status(differences: Iterable[float]) -> int:
    wrong = [difference for difference in differences if not difference <= _TOLERANCE]  # nan is wrong, too
    if wrong:
        report(f'error: the file differs from PyTorch by {wrong[0]:.1e} of the largest output.')
        return FAILED
    return 0


def _export_phone(model: Any, out: Path, latency: bool) -> int:
    from rs_timm.export.executorch import export_executorch, method_difference, method_name  # loads ExecuTorch: seconds

    with bar(None, 'file', 'export'):
        export_executorch(model, out)
    print(f'{out}: {os.path.getsize(out) / 1e6:.2f} MB, {len(get_resolutions(model))} methods')
    differences = []
    for size in watched(get_resolutions(model), 'method', 'compare'):
        differences.append(method_difference(model, out, size))
        times = _latency(model, out, size) if latency else ''
        print(f'{method_name(size):>14}{times}   differs from PyTorch by at most {differences[-1]:.1e} of the largest '
              'output')
    return _status(differences)


def _latency(model: Any, out: Path, size: int, rounds: int = 15) -> str:
    """Milliseconds of a method, and of a program of this size alone with folded BatchNorm, in turns."""
    import torch

    from rs_timm.export.executorch import export_executorch, open_method
    from rs_timm.export.network import model_info

    with tempfile.TemporaryDirectory() as folder:
        alone = export_executorch(model, Path(folder, 'alone.pte'), sizes=[size], fold=True)
        images = torch.zeros(1, model_info(model).channels, size, size)
        times: Dict[Any, List[float]] = {open_method(file, size): [] for file in (out, alone)}
        for _ in range(rounds + 1):
            for method, taken in times.items():
                start = perf_counter()
                for _ in range(3):
                    method(images)
                taken.append((perf_counter() - start) / 3e-3)
        ours, folded = (median(taken[1:]) for taken in times.values())
        return f' {ours:8.2f} ms, {ours / folded:.2f} times a folded one ({os.path.getsize(alone) / 1e6:.2f} MB)'


def _describe(model: Any, file: Path, compare: bool) -> List[float]:
    """Print what is in the file, and how far it is from `model` -> the relative differences, one a resolution."""
    info, size = read_info(file), os.path.getsize(file)
    plain = '' if info.choice == 'fixed' else (
        f', {size / extract_onnx(read_model(file), info.resolutions[0]).ByteSize():.3f} times its plain network')
    print(f'{file}: {info.name}, {size / 1e6:.1f} MB{plain}')
    compared = watched(info.resolutions, 'size', 'compare') if compare else ()
    differences = [max_difference(model, file, resolution) for resolution in compared]
    for index, resolution in enumerate(info.resolutions):
        row = f'{resolution:6} px'
        if resolution in info.madds:
            row += f' {info.madds[resolution] / 1e6:10.1f} M MAdds'
        if compare:
            row += f'   differs from PyTorch by at most {differences[index]:.1e} of the largest output'
        print(row)
    return differences
