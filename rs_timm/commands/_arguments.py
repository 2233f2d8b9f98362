"""Arguments that several commands have. No torch here: what serves an exported file runs without it."""
import argparse

__all__ = ['add_model_arguments', 'positive_int']

_MODEL_HELP = ("a name of 'rs-timm list', a folder that convert or recalibrate wrote, 'hf-hub:user/name', or "
               "'switchable:NAME' for any BatchNorm network of timm")


def positive_int(text: str) -> int:
    """An argparse type."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text} is not positive')
    return value


def add_model_arguments(parser: argparse.ArgumentParser, weights: bool = True, also: str = '') -> None:
    """MODEL, --resolutions, and where the weights come from. `also` says what else the command takes as MODEL."""
    parser.add_argument('model', metavar='MODEL', help=_MODEL_HELP + also)
    parser.add_argument('--resolutions', type=positive_int, nargs='+', metavar='R',
                        help='build the model with BatchNorm sets for these sizes (pixels)')
    if weights:
        source = parser.add_mutually_exclusive_group()
        source.add_argument('--checkpoint', metavar='FILE', help='load these weights (.safetensors or .pth)')
        source.add_argument('--no-weights', action='store_true', help='random weights, to try out or to time')
