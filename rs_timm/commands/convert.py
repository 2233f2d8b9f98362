"""rs-timm convert: a checkpoint of any known layout -> a folder that timm loads as 'local-dir:'."""
import argparse
from typing import Any

from timm.data import resolve_model_data_config

from rs_timm.hub import save_pretrained
from rs_timm.layers import get_resolutions

from ._checkpoint import PAPER_LAYOUT, layout_of, read_state_dict
from ._model import describe_preprocessing, load_model, positive_int, prepare_out

__all__ = ['register', 'run']

_PREPROCESSING = ('mean', 'std', 'interpolation', 'crop_pct')


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('convert', help='a checkpoint file -> a folder that timm loads')
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
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    out = prepare_out(args.out, args.force)
    preprocessing = {key: getattr(args, key) for key in _PREPROCESSING if getattr(args, key) is not None}
    model = load_model(args.model, True, args.src, args.resolutions, args.num_classes, preprocessing)
    layout = layout_of(read_state_dict(args.src), model)
    # of any other file, only the user knows whether it is what the tag describes
    from_paper = layout == PAPER_LAYOUT and model.pretrained_cfg.get('tag') == 'orig_in1k'  # type: ignore[union-attr]
    save_pretrained(model, out, half=args.half, keep_source=from_paper)
    print(f'{args.src}: {layout}')
    sizes = ', '.join(map(str, get_resolutions(model)))
    print(f"{out}: {model.pretrained_cfg['architecture']}, {model.num_classes} classes, resolutions {sizes}")
    print(f'preprocessing: {describe_preprocessing(resolve_model_data_config(model))}')
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{out}"!r}, pretrained=True)')
    return 0
