"""rs-timm extract: the plain timm network at one resolution, which timm alone loads."""
import argparse
import os
from typing import Any, Dict

import torch
from timm.models import save_for_hf
from torch import nn

import rs_timm

from ._model import add_model_arguments, load_model, positive_int, prepare_out

__all__ = ['register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('extract', help='the plain timm network at one resolution')
    add_model_arguments(parser)
    parser.add_argument('--resolution', type=positive_int, required=True, metavar='R', help='pixels, trained or not')
    parser.add_argument('--out', required=True, metavar='DIR_OR_FILE',
                        help='a folder for safetensors and config.json, or a file NAME.safetensors or NAME.pth')
    parser.add_argument('--force', action='store_true', help='replace what is there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    to_file = args.out.endswith(('.safetensors', '.pth'))
    if to_file and os.path.exists(args.out) and not args.force:
        raise ValueError(f'{args.out} exists: name another file, or --force.')
    out = args.out if to_file else prepare_out(args.out, args.force)
    model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions)
    plain = rs_timm.extract(model, args.resolution)
    name = plain.pretrained_cfg['architecture']
    if to_file:
        _save_file({key: value.contiguous() for key, value in plain.state_dict().items()}, out)
        print(f'load it: timm.create_model({name!r}, num_classes={plain.num_classes}, checkpoint_path={out!r})')
    else:
        _save_folder(plain, args.resolution, out)
        print(f'load it: timm.create_model({f"local-dir:{out}"!r}, pretrained=True)')
    return 0


def _save_file(state_dict: Dict[str, torch.Tensor], file: str) -> None:
    if file.endswith('.pth'):
        torch.save(state_dict, file)
    else:
        from rs_timm.tensor_files import save_tensors

        save_tensors(state_dict, file)


def _save_folder(plain: nn.Module, resolution: int, folder: str) -> None:
    """timm's own format, with the resolution as the input size, so that its preprocessing fits."""
    channels = plain.pretrained_cfg['input_size'][0]  # type: ignore[index]
    cfg = dict(plain.pretrained_cfg, input_size=(channels, resolution, resolution))  # type: ignore[arg-type]
    for key in ('test_input_size', 'test_crop_pct', 'pool_size', 'description'):
        cfg.pop(key, None)  # they were of other sizes
    plain.pretrained_cfg = plain.default_cfg = cfg  # type: ignore[assignment]
    save_for_hf(plain, folder, model_args=dict(getattr(plain, '_model_args', {})), safe_serialization=True)
