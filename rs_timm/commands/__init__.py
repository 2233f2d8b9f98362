"""The commands of `rs-timm`: one module each, with `register(subparsers)`, which sets `run(args) -> exit status`.

A module is imported when its command is called: predict and bench of an exported file need no torch, others need no
engine.
"""
from importlib import import_module
from types import ModuleType
from typing import List, Optional

from ._shell import run_command

__all__ = ['COMMANDS', 'load_commands', 'run_command']

COMMANDS = ('list', 'info', 'predict', 'bench', 'train', 'eval', 'analyze', 'convert', 'extract', 'export',
            'recalibrate', 'push')
_MODULES = {'list': 'listing'}  # where it has another name


def load_commands(name: Optional[str] = None) -> List[ModuleType]:
    """The module of the command `name`; of all commands if there is none of that name.

    Raises:
        ImportError: torch, which all but `predict` and `bench` need, is not installed.
    """
    names = (name,) if name in COMMANDS else COMMANDS
    return [import_module(f'{__name__}.{_MODULES.get(str(command), command)}') for command in names]
