"""`python -m rs_timm.training MODEL --data DIR --recipe NAME --output DIR`, with any field of the recipe as an option."""
import argparse
import logging
import typing
from dataclasses import fields

from .recipes import RECIPES, Recipe, get_recipe
from .train import Options, train


def _add_fields(parser, cls):
    hints = typing.get_type_hints(cls)
    for field in fields(cls):
        kind = hints[field.name]
        option = '--' + field.name.replace('_', '-')
        if kind is bool:
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=None)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(option, nargs='*', type=typing.get_args(kind)[0], default=None)
        else:
            parser.add_argument(option, type=kind, default=None)


def _given(args, cls):
    values = {f.name: getattr(args, f.name) for f in fields(cls) if getattr(args, f.name) is not None}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('model')
    parser.add_argument('--data', required=True)
    parser.add_argument('--output', required=True)
    parser.add_argument('--recipe', default='imagenette', choices=list(RECIPES))
    parser.add_argument('--debug', action='store_true')
    parser.add_argument('--resume', action='store_true')
    _add_fields(parser, Recipe)
    _add_fields(parser, Options)
    args = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format='%(asctime)s %(message)s', datefmt='%H:%M:%S')
    recipe = get_recipe(args.recipe, debug=args.debug, **_given(args, Recipe))
    train(args.model, args.data, recipe, args.output, args.resume, Options(**_given(args, Options)))


if __name__ == '__main__':
    main()
