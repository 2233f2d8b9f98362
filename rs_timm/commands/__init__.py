"""The commands of `rs-timm`: a module parses the options of its commands, calls the library with them, and prints.

The table is all that `rs-timm --help` needs. A module is imported when its command is called, so that serving exported
files needs no torch, and training no engine. It has `NAME_arguments(parser)`, which sets `run(args) -> exit status`.
"""
from importlib import import_module
from typing import Any

__all__ = ['COMMANDS', 'add_arguments']

COMMANDS = {
    'list': 'registered models and their weights',
    'info': 'resolutions, cost, parameters, preprocessing and origin of a model',
    'predict': 'classify pictures, folders, tar files',
    'serve': 'a classifier over HTTP, at the size that keeps deadlines',
    'plan': 'the best engine, precision and size within a budget: time and accuracy on this machine',
    'bench': 'latency and throughput per resolution, as a table for budgets',
    'train': 'a network on a folder of pictures',
    'adapt': 'smaller sizes learn what the largest one answers, from pictures without labels',
    'eval': 'top-1 and top-5, or mean IoU, at any sizes, in one pass over the data',
    'analyze': 'which pictures and classes need which size: a report in HTML',
    'convert': 'a checkpoint file -> a folder that timm loads',
    'extract': 'the plain timm network at one resolution',
    'export': 'an ONNX file that engines serve, with all resolutions in it',
    'recalibrate': 'new BatchNorm statistics from a folder of pictures',
    'push': 'upload a model to the Hugging Face hub',
}
_MODULES = {'list': 'info', 'extract': 'convert'}  # those that share one


def add_arguments(parser: Any, command: str) -> None:
    """Import the module of a command, and give `parser` its arguments.

    Raises:
        ImportError: a package that the command needs is not installed; `predict`, `serve`, `plan` and `bench` need no
            torch.
    """
    module = import_module(f'{__name__}.{_MODULES.get(command, command)}')
    getattr(module, f'{command}_arguments')(parser)
