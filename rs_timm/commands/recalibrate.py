"""rs-timm recalibrate: BatchNorm statistics from a folder of pictures."""
import argparse
from typing import Any, Iterator, Optional

import torch

from rs_timm.calibration import recalibrate
from rs_timm.data import ImageFiles, data_config, image_transform
from rs_timm.hub import save_pretrained

from .arguments import add_model_arguments, add_sizes, model_source, positive_int, prepare_out
from .shell import report, report_skipped, watched

__all__ = ['recalibrate_arguments', 'run']

_NAMED = 5  # unreadable pictures that are named; the others are counted


def recalibrate_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm recalibrate`."""
    add_model_arguments(parser)
    parser.add_argument('--data', required=True, metavar='DIR', help='pictures, at any depth; labels are not needed')
    parser.add_argument('--out', required=True, metavar='DIR', help='folder to write')
    parser.add_argument('--force', action='store_true', help='replace the model in the folder')
    add_sizes(parser, 'the sets of these sizes alone (default: all)', old='--only')
    parser.add_argument('--num-images', type=_count, metavar='N',
                        help="pictures to use, always the same, or 'all' (default: that of rs_timm.recalibrate)")
    parser.add_argument('--prior-images', type=float, metavar='N',
                        help='how many pictures the old statistics count as (default: that of rs_timm.recalibrate)')
    parser.add_argument('--batch-size', type=positive_int, default=32, metavar='N', help='default: 32')
    parser.set_defaults(run=run)


def _count(text: str) -> Optional[int]:
    return -1 if text == 'all' else positive_int(text)


def run(args: argparse.Namespace) -> int:
    out = prepare_out(args.out, args.force)
    files = ImageFiles(args.data)
    model = model_source(args).load()
    config = data_config(model)

    def batches(resolution: int) -> Iterator[torch.Tensor]:
        return watched(
            files.batches(image_transform(config, resolution), args.batch_size), 'batch', f'{resolution} px')

    options = dict(num_images=args.num_images, prior_images=args.prior_images)
    given: Any = {key: None if value == -1 else value for key, value in options.items() if value is not None}
    used = recalibrate(model, batches, resolutions=args.sizes, batch_size=args.batch_size, **given)
    report_skipped(files.unreadable[:_NAMED])
    if files.unreadable[_NAMED:]:
        report(f'warning: skipped {len(files.unreadable) - _NAMED} more')
    save_pretrained(model, out)
    for resolution, count in used.items():
        print(f'{resolution:6} px: statistics of {count} pictures')
    print(f'load it: import rs_timm; timm.create_model({f"local-dir:{out}"!r}, pretrained=True)')
    return 0
