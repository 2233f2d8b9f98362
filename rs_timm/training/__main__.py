"""`python -m rs_timm.training MODEL --data DIR --recipe NAME --output DIR`, with any field of the recipe as an option."""
import argparse
import logging
import typing
from dataclasses import fields

from .recipes import RECIPES, Recipe, get_recipe
from .train import train


def _parser():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('--data', required=True)
    parser.add_argument('--output', required=True)
    parser.add_argument('--recipe', default='imagenette', choices=list(RECIPES))
    parser.add_argument('--debug', action='store_true')
    parser.add_argument('--resume', action='store_true')
    parser.add_argument('--device', default='auto')
    parser.add_argument('--workers', type=int, default=4)
    parser.add_argument('--checkpoint-minutes', type=float, default=5.)
    hints = typing.get_type_hints(Recipe)
    for field in fields(Recipe):
        kind = hints[field.name]
        option = '--' + field.name.replace('_', '-')
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(option, nargs='*', type=typing.get_args(kind)[0], default=None)
        else:
            parser.add_argument(option, type=kind, default=None)
    return parser


def main():
    args = _parser().parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    changes = {f.name: getattr(args, f.name) for f in fields(Recipe) if getattr(args, f.name) is not None}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items()}
    recipe = get_recipe(args.recipe, debug=args.debug, **changes)
    train(args.model, args.data, recipe, args.output, resume=args.resume, device=args.device, workers=args.workers,
          checkpoint_minutes=args.checkpoint_minutes)


if __name__ == '__main__':
    main()
