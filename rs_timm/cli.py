"""`rs-timm`: the command line. Arguments alone; what the commands do is in `rs_timm.commands`."""
import argparse
import sys
from importlib import import_module
from typing import Any, List, Optional

import rs_timm
from rs_timm.commands import load_commands, run_command

__all__ = ['main']


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
        print(f'rs-timm: error: {error}: all commands but predict FILE.onnx need PyTorch and timm.', file=sys.stderr)
        return 2
    return run_command(args.run, args)


def _parser(argv: List[str]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser('rs-timm', description='Resolution-switchable networks: one set of weights, many '
                                                            'input sizes.')
    parser.add_argument('--version', action=_Version, nargs=0, help="show the versions and exit")
    parser.add_argument('--debug', action='store_true', help='show the traceback of an error')
    subparsers = parser.add_subparsers(title='commands', metavar='COMMAND', required=True)
    for command in load_commands(next((word for word in argv if not word.startswith('-')), None)):
        command.register(subparsers)
    return parser


class _Version(argparse.Action):
    """Asks for versions only when they are wanted: torch takes a second to import."""

    def __call__(self, parser: argparse.ArgumentParser, *rest: Any) -> None:
        versions = [f'{name} {import_module(name).__version__}' for name in ('timm', 'torch')]
        print(f"rs_timm {rs_timm.__version__}, {', '.join(versions)}")
        parser.exit()
