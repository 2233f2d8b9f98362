"""rs-timm convert and extract: a checkpoint of any known layout in, the plain network of one resolution out."""
import argparse
from typing import Any

import torch
from timm.models import save_for_hf
from torch import nn

from rs_timm.data import data_config
from rs_timm.hub import save_pretrained
from rs_timm.layers import extract, get_resolutions
from rs_timm.loading import PAPER_LAYOUT, describe_preprocessing, layout_of, load_model
from rs_timm.tensor_files import read_state_dict, save_tensors

from .arguments import add_model_arguments, add_old_name, check_free, model_source, positive_int, prepare_out

__all__ = ['convert_arguments', 'extract_arguments', 'run_convert', 'run_extract']

_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


def convert_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm convert`."""
    parser.add_argument('src', metavar='SRC', help="checkpoint of the paper's code, plain timm, torchvision or rs_timm")
    parser.add_argument('--model', required=True, metavar='MODEL',
                        help="'rs_resnet50', or with a tag, whose preprocessing is kept where SRC tells none")
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--force', action='store_true', help='replace the model in DIR')
    parser.add_argument('--resolutions', type=positive_int, nargs='+', metavar='R',
                        help='BatchNorm sets to make (default: those in SRC, else 224 192 160 128 96)')
    parser.add_argument('--num-classes', type=positive_int, metavar='N', help='classes of SRC (default: read from it)')
    parser.add_argument('--half', action='store_true', help='store float16')
    parser.add_argument('--mean', type=float, nargs='+', metavar='X',
                        help='preprocessing that SRC was trained with (default: what its config.json, its recipe or '
                             'MODEL says)')
    parser.add_argument('--std', type=float, nargs='+', metavar='X')
    parser.add_argument('--interpolation', choices=('bilinear', 'bicubic'))
    parser.add_argument('--crop-pct', type=float, metavar='X')
    parser.set_defaults(run=run_convert)


def extract_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm extract`."""
    add_model_arguments(parser)
    add_old_name(parser, parser.add_argument(
        '--size', type=positive_int, metavar='R', help='pixels, trained or not (required)'), '--resolution')
    parser.add_argument('--out', required=True, metavar='DIR_OR_FILE',
                        help='a folder for safetensors and config.json, or a file NAME.safetensors or NAME.pth')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    parser.set_defaults(run=run_extract)


def run_convert(args: argparse.Namespace) -> int:
    out = prepare_out(args.out, args.force)
    preprocessing = {key: getattr(args, key) for key in _PREPROCESSING if getattr(args, key) is not None}
    model: Any = load_model(args.model, True, args.src, args.resolutions, args.num_classes, preprocessing)
    layout = layout_of(read_state_dict(args.src), model)
    # of any other file, only the user knows whether it is what the tag describes
    from_paper = layout == PAPER_LAYOUT and model.pretrained_cfg.get('tag') == 'orig_in1k'
    save_pretrained(model, out, half=args.half, keep_source=from_paper)
    print(f'{args.src}: {layout}')
    sizes = ', '.join(map(str, get_resolutions(model)))
    print(f"{out}: {model.pretrained_cfg['architecture']}, {model.num_classes} classes, resolutions {sizes}")
    print(f'preprocessing: {describe_preprocessing(data_config(model))}')
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{out}"!r}, pretrained=True)')
    return 0


def run_extract(args: argparse.Namespace) -> int:
    if args.size is None:
        raise ValueError('say which resolution: --size R, in pixels.')
    to_file = args.out.endswith(('.safetensors', '.pth'))
    if to_file:
        check_free(args.out, args.force)
    else:
        prepare_out(args.out, args.force)
    plain = extract(model_source(args).load(), args.size)
    if to_file:
        state_dict = {key: value.contiguous() for key, value in plain.state_dict().items()}
        (torch.save if args.out.endswith('.pth') else save_tensors)(state_dict, args.out)
        name = plain.pretrained_cfg['architecture']
        print(f'load it: timm.create_model({name!r}, num_classes={plain.num_classes}, checkpoint_path={args.out!r})')
    else:
        _save_folder(plain, args.size, args.out)
        print(f'load it: timm.create_model({f"local-dir:{args.out}"!r}, pretrained=True)')
    return 0


def _save_folder(plain: nn.Module, size: int, folder: str) -> None:
    """Save as timm does, with the resolution as the input size, so that its preprocessing fits."""
    channels = plain.pretrained_cfg['input_size'][0]  # type: ignore[index]
    cfg = dict(plain.pretrained_cfg, input_size=(channels, size, size))  # type: ignore[arg-type]
    for key in ('test_input_size', 'test_crop_pct', 'pool_size', 'description'):
        cfg.pop(key, None)  # they were of other sizes
    plain.pretrained_cfg = plain.default_cfg = cfg  # type: ignore[assignment]
    save_for_hf(plain, folder, model_args=dict(getattr(plain, '_model_args', {})), safe_serialization=True)
