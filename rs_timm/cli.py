"""`rs-timm`: the command line. Arguments alone; what the commands do is in `rs_timm.commands`."""
import argparse
from typing import List, Optional

import timm
import torch

import rs_timm
from rs_timm.commands import COMMANDS, run_command

__all__ = ['main']


def main(argv: Optional[List[str]] = None) -> int:
    """Run `rs-timm`, and return its exit status: 0, 1 (some pictures could not be read) or 2 (an error).

    >>> main(['list', 'rs_resnet18.orig_in1k'])
    rs_resnet18.orig_in1k  the paper's: get the checkpoint, then rs-timm convert
    0

    Args:
        argv: arguments without the program's name; None takes those of this process.
    """
    args = _parser().parse_args(argv)
    return run_command(args.run, args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('rs-timm', description='Resolution-switchable networks: one set of weights, many '
                                                            'input sizes.')
    versions = f'rs_timm {rs_timm.__version__}, timm {timm.__version__}, torch {torch.__version__}'
    parser.add_argument('--version', action='version', version=versions)
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for command in COMMANDS:
        command.register(subparsers)
    return parser
