"""rs-timm export: one ONNX file with all BatchNorm sets, or one plain file a resolution, compared with PyTorch."""
import argparse
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict

from torch import nn

from rs_timm import export, runtime  # their names are looked up on use: other commands run without onnx

from ._model import add_model_arguments, load_model, positive_int
from ._shell import FAILED, report

__all__ = ['register', 'run']

_TOLERANCE = 1e-3  # relative; float32 in another order differs by 1e-6 to 1e-5


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('export', help='an ONNX file that engines serve, with all resolutions in it')
    add_model_arguments(parser)
    parser.add_argument('out', metavar='OUT.onnx', help='the file to write')
    parser.add_argument('--split', type=positive_int, nargs='*', metavar='R',
                        help='write plain files OUT_R.onnx of fixed size instead, for these sizes in pixels, trained '
                             'or not (default: the trained ones)')
    parser.add_argument('--choice', choices=('shape', 'input'), default='shape',
                        help="what chooses the set in the file: the images' shape (default), or a second input, "
                             'resolution')
    parser.add_argument('--opset', type=int, default=17, metavar='N', help='of ONNX, 13 to 20 (default: 17)')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.split is not None and args.choice == 'input':
        raise ValueError('--choice input: plain files (--split) have nothing to choose.')
    model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions)
    if args.split is None:
        _check_free(Path(args.out), args.force)
        files = {0: export.export_onnx(model, args.out, choice=args.choice, opset=args.opset)}
    else:
        files = _split(model, args)
    if args.no_weights:
        print('# random weights: the classes mean nothing')
    differences = [_describe(model, file) for file in files.values()]
    if max(differences) > _TOLERANCE:
        report(f'error: the file differs from PyTorch by {max(differences):.1e} of the largest output.')
        return FAILED
    return 0


def _check_free(file: Path, force: bool) -> None:
    if file.exists() and not force:
        raise ValueError(f'{file} exists: name another file, or --force.')


def _split(model: nn.Module, args: argparse.Namespace) -> Dict[int, Path]:
    out = Path(args.out)
    sizes = args.split or model.resolutions
    for size in sizes:
        _check_free(out.with_name(f'{out.stem}_{size}{out.suffix}'), args.force)
    return export.split_onnx(model, out, sizes, opset=args.opset)


def _describe(model: nn.Module, file: Path) -> float:
    """Print what is in the file, and how far it is from `model` -> the largest relative difference."""
    info = runtime.read_info(file)
    plain = '' if info.choice == 'fixed' else f', {_ratio(file, info):.3f} times its plain network'
    print(f'{file}: {info.name}, {_megabytes(file):.1f} MB{plain}')
    check = find_spec('onnxruntime') is not None
    largest = 0.
    for resolution in info.resolutions:
        row = f'{resolution:6} px {info.madds[resolution] / 1e6:10.1f} M MAdds' if resolution in info.madds else (
            f'{resolution:6} px')
        if check:
            difference = export.max_difference(model, file, resolution)
            largest = max(largest, difference)
            row += f'   differs from PyTorch by at most {difference:.1e} of the largest output'
        print(row)
    if not check:
        report("not compared with PyTorch: that needs pip install 'rs_timm[onnxruntime]'")
    return largest


def _megabytes(file: Path) -> float:
    return os.path.getsize(file) / 1e6


def _ratio(file: Path, info: runtime.ModelInfo) -> float:
    return os.path.getsize(file) / runtime.extract_onnx(runtime.read_model(file), info.resolutions[0]).ByteSize()
