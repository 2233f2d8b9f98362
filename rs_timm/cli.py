"""`rs-timm`: the command line. Arguments alone; what the commands do is in `rs_timm.commands`."""
import argparse
import sys
from importlib import import_module
from typing import Any, List, Optional

import rs_timm
from rs_timm.commands import COMMANDS, add_arguments
from rs_timm.commands.shell import FAILED, report, run_command

__all__ = ['main']

_TORCH = ('torch', 'torchvision', 'timm')


def main(argv: Optional[List[str]] = None) -> int:
    """Run `rs-timm`, and return its exit status: 0, 1 (some pictures could not be read) or 2 (an error).

    >>> main(['list', 'rs_resnet18.orig_in1k'])
    rs_resnet18.orig_in1k  the paper's: get the checkpoint, then rs-timm convert
    0

    Args:
        argv: arguments without the program's name; None takes those of this process.
    """
    argv = sys.argv[1:] if argv is None else argv
    try:
        args = _parser(argv).parse_args(argv)
    except ImportError as error:
        if '--debug' in argv:
            raise
        missing = (error.name or '').partition('.')[0] in _TORCH
        report(f"error: {error}"
               f"{': all commands but predict, serve, plan and bench FILE.onnx need PyTorch and timm.' * missing}")
        return FAILED
    return run_command(args.run, args)


def _parser(argv: List[str]) -> argparse.ArgumentParser:
    """Options of the command that `argv` names; of the others the names alone, since each imports what it needs."""
    parser = argparse.ArgumentParser('rs-timm', description='Resolution-switchable networks: one set of weights, many '
                                                            'input sizes.')
    parser.add_argument('--version', action=_Version, nargs=0, help='show the versions and exit')
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    named = next((word for word in argv if not word.startswith('-')), None)
    for name, summary in COMMANDS.items():
        command = subparsers.add_parser(name, help=summary, description=f'{summary[0].upper()}{summary[1:]}.')
        if name == named:
            command.add_argument('--debug', action='store_true', default=argparse.SUPPRESS,
                                 help='show the traceback of an error')
            add_arguments(command, name)
    return parser


class _Version(argparse.Action):
    """Asks for versions only when they are wanted: torch takes a second to import."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        print(f"rs_timm {rs_timm.__version__}, {', '.join(f'{name} {_version(name)}' for name in ('timm', 'torch'))}")
        parser.exit()


def _version(name: str) -> str:
    try:
        return import_module(name).__version__
    except ImportError as error:
        if (error.name or '').partition('.')[0] not in _TORCH:
            raise
        return 'not installed'
