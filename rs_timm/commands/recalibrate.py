"""rs-timm recalibrate: BatchNorm statistics from a folder of pictures."""
import argparse
from typing import Any, Iterator, List, Optional

import torch
from timm.data import resolve_model_data_config

from rs_timm.calibration import recalibrate
from rs_timm.data import ImageFiles, image_transform
from rs_timm.hub import save_pretrained

from ._model import add_model_arguments, load_model, positive_int, prepare_out
from ._shell import report

__all__ = ['register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('recalibrate', help='new BatchNorm statistics from a folder of pictures')
    add_model_arguments(parser)
    parser.add_argument('--data', required=True, metavar='DIR', help='pictures, at any depth; labels are not needed')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--force', action='store_true', help='replace the model in the folder')
    parser.add_argument('--only', type=positive_int, nargs='+', metavar='R', help='these sizes alone (default: all)')
    parser.add_argument('--num-images', type=_count, metavar='N',
                        help="pictures to use, always the same, or 'all' (default: that of rs_timm.recalibrate)")
    parser.add_argument('--prior-images', type=float, metavar='N',
                        help='how many pictures the old statistics count as (default: that of rs_timm.recalibrate)')
    parser.add_argument('--batch-size', type=positive_int, default=32, metavar='N')
    parser.set_defaults(run=run)


def _count(text: str) -> Optional[int]:
    return -1 if text == 'all' else positive_int(text)


def run(args: argparse.Namespace) -> int:
    out = prepare_out(args.out, args.force)
    files = ImageFiles(args.data)
    model = load_model(args.model, not args.no_weights, args.checkpoint, args.resolutions)
    config = resolve_model_data_config(model)

    def batches(resolution: int) -> Iterator[torch.Tensor]:
        return files.batches(image_transform(config, resolution), args.batch_size)

    options = dict(num_images=args.num_images, prior_images=args.prior_images)
    given: Any = {key: None if value == -1 else value for key, value in options.items() if value is not None}
    used = recalibrate(model, batches, resolutions=args.only, batch_size=args.batch_size, **given)
    _report_skipped(files.unreadable)
    save_pretrained(model, out)
    for resolution, count in used.items():
        print(f'{resolution:6} px: statistics of {count} pictures')
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{out}"!r}, pretrained=True)')
    return 0


def _report_skipped(messages: List[str]) -> None:
    for message in messages[:5]:
        report(f'warning: skipped {message}')
    if messages[5:]:
        report(f'warning: skipped {len(messages) - 5} more')
