"""The commands of `rs-timm`: one module each, with `register(subparsers)`, which sets `run(args) -> exit status`."""
from . import analyze, bench, convert, eval, export, extract, info, listing, predict, push, recalibrate, train
from ._shell import run_command

__all__ = ['COMMANDS', 'run_command']

COMMANDS = (listing, info, predict, bench, train, eval, analyze, convert, extract, export, recalibrate, push)
