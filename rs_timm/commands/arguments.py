"""Options that several commands have, as values. No torch here: what serves an exported file runs without it."""
import argparse
import os
from importlib import import_module
from typing import Any, NamedTuple, Optional, Sequence

from rs_timm.runtime.engines import OLD_PRECISIONS

from .shell import report

__all__ = [
    'MODEL_HELP', 'ModelSource', 'add_crop_pct', 'add_model_arguments', 'add_old_name', 'add_sizes', 'check_free',
    'count_of_cores', 'model_source', 'positive_int', 'precision_name', 'prepare_out',
]

MODEL_HELP = ("a name of 'rs-timm list', a folder that convert or recalibrate wrote, 'hf-hub:user/name', or "
               "'switchable:NAME' for any BatchNorm network of timm")


class ModelSource(NamedTuple):
    """MODEL, and where its weights come from."""

    name: str
    weights: bool = True  # False: random ones
    checkpoint: Optional[str] = None
    resolutions: Optional[Sequence[int]] = None

    @property
    def is_exported(self) -> bool:
        return self.name.lower().endswith('.onnx')

    def load(self) -> Any:
        """The network, in evaluation mode.

        Raises:
            ImportError: torch is not installed.
            ValueError: as of `rs_timm.loading.load_model`.
        """
        try:
            torch = import_module('torch')
        except ImportError as error:
            raise ImportError(f'MODEL {self.name} needs PyTorch, which is not installed: pip install torch, or give a '
                              "file that 'rs-timm export' wrote (.onnx).") from error
        from rs_timm.loading import load_model  # not at the top: exported files need no torch

        if not self.weights:
            torch.manual_seed(0)  # all processes of a job have the same network
        return load_model(*self)

    def path(self) -> str:
        """The path of an exported file.

        Raises:
            ValueError: options that do not go with one.
        """
        if self.checkpoint or not self.weights or self.resolutions:
            raise ValueError(f'{self.name} is an exported file, with its own weights and resolutions: --checkpoint, '
                             '--no-weights and --resolutions do not apply.')
        return self.name


def add_model_arguments(parser: Any, weights: bool = True, resolutions: bool = True, also: str = '') -> None:
    """MODEL, the sets that it is built with, and where its weights come from. `also`: what else may be MODEL."""
    parser.add_argument('model', metavar='MODEL', help=MODEL_HELP + also)
    if resolutions:
        parser.add_argument('--resolutions', type=positive_int, nargs='+', metavar='R',
                            help='build the model with BatchNorm sets for these sizes (pixels)')
    if weights:
        source = parser.add_mutually_exclusive_group()
        source.add_argument('--checkpoint', metavar='FILE', help='load these weights (.safetensors or .pth)')
        source.add_argument('--no-weights', action='store_true', help='random weights, to try out or to time')


def model_source(args: argparse.Namespace) -> ModelSource:
    """The values of what `add_model_arguments` added."""
    return ModelSource(args.model, not args.no_weights, args.checkpoint, getattr(args, 'resolutions', None))


def add_sizes(group: Any, help: str, old: str = '') -> None:
    """--sizes: pixels to run at, trained or not; `old` is another name that it had."""
    action = group.add_argument('--sizes', type=positive_int, nargs='+', metavar='R', help=help)
    if old:
        add_old_name(group, action, old)


def add_crop_pct(parser: Any) -> None:
    """--crop-pct: one crop in place of those that the model has."""
    parser.add_argument('--crop-pct', type=float, metavar='C',
                        help="central crop over shorter side, at all sizes (default: the model's, of each size)")


def add_old_name(group: Any, action: argparse.Action, old: str) -> None:
    """Let an option be called as before, for one version, with a note on stderr."""
    group.add_argument(
        old, action=_OldName, new=action.option_strings[0], dest=action.dest, type=action.type, nargs=action.nargs,
        choices=action.choices, const=action.const, default=argparse.SUPPRESS, help=argparse.SUPPRESS)


class _OldName(argparse.Action):

    def __init__(self, *args: Any, new: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.new = new

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Optional[str] = None) -> None:
        report(f'note: {option_string} is called {self.new} now; the next version will not know the old name')
        setattr(namespace, self.dest, values)


def positive_int(text: str) -> int:
    """An argparse type: a whole number from 1."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return value


def precision_name(text: str) -> str:
    """An argparse type: the name of a precision; old names go on for one version, with a note."""
    if text in OLD_PRECISIONS:
        report(f'note: {text} is called {OLD_PRECISIONS[text]} now; the next version will not know the old name')
    return OLD_PRECISIONS.get(text, text)


def count_of_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def prepare_out(directory: str, force: bool) -> str:
    """Refuse, before any work, to write into a folder that holds something, unless `force` is set."""
    if os.path.exists(directory) and not os.path.isdir(directory):
        raise ValueError(f'{directory} is a file: --out names a folder.')
    if not force and os.path.isdir(directory) and os.listdir(directory):
        raise ValueError(f'{directory} is not empty: name another folder, or --force to replace the model in it.')
    return directory


def check_free(file: str, force: bool) -> None:
    """Refuse, before any work, to replace a file, unless `force` is set."""
    if os.path.isdir(file):
        raise ValueError(f'{file} is a folder: name a file in it.')
    if os.path.exists(file) and not force:
        raise ValueError(f'{file} exists: name another file, or --force to replace it.')
    folder = os.path.dirname(file) or '.'
    if not os.path.isdir(folder):
        raise ValueError(f'{file}: there is no folder {folder}; make it first.')
