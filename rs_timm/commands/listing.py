"""rs-timm list: the registered models and their weights."""
import argparse
from typing import Any

import timm
from timm.models import get_pretrained_cfg

__all__ = ['register', 'run', 'weights_of']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser('list', help='registered models and their weights')
    parser.add_argument('pattern', metavar='PATTERN', nargs='?', default='*',
                        help="part of a name, or a pattern such as '*_in1k'")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    pattern = args.pattern if any(c in args.pattern for c in '*?[') else f'*{args.pattern}*'
    names = [name for name in timm.list_models(pattern, include_tags=True) if name.startswith('rs_')]
    if not names:
        raise ValueError(f"no model matches {args.pattern!r}: 'rs-timm list' shows all.")
    width = max(map(len, names))
    for name in names:
        print(f'{name:{width}}  {_how(name)}')
    return 0


def _how(name: str) -> str:
    architecture = name.partition('.')[0]
    if architecture == 'rs_switchable':
        return "any BatchNorm network of timm: write 'switchable:NAME'"
    default = get_pretrained_cfg(architecture)
    cfg = get_pretrained_cfg(name)
    return weights_of(cfg) + (' (default)' if default and cfg and cfg.tag == default.tag else '')


def weights_of(cfg: Any) -> str:
    """Where the weights of a pretrained cfg come from, in words."""
    if cfg is None:
        return 'no weights'
    if cfg.file:
        return f'in {cfg.file}' if cfg.source == 'local-dir' else f'comes with rs_timm: {cfg.file}'
    if cfg.hf_hub_id:
        return f'downloaded from the hub: {cfg.hf_hub_id}'
    if cfg.tag == 'orig_in1k':
        return "the paper's: get the checkpoint, then rs-timm convert"
    return f'downloaded from {cfg.url}' if cfg.url else 'no weights'
