"""rs-timm push: a model to the Hugging Face hub."""
import argparse

from rs_timm.card import CardData
from rs_timm.hub import push_to_hub

from .arguments import add_model_arguments, model_source

__all__ = ['push_arguments', 'run']


def push_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm push`."""
    add_model_arguments(parser)
    parser.add_argument('repo_id', metavar='REPO_ID', help="'user/name'; is created if it does not exist")
    parser.add_argument('--private', action='store_true', help='create a private repository')
    parser.add_argument('--token', help="default: HF_TOKEN, or that of 'hf auth login'")
    parser.add_argument('--revision', metavar='BRANCH', help='default: main')
    parser.add_argument('--message', default='Add model', help='of the commit')
    parser.add_argument('--pull-request', action='store_true', help='open a pull request instead of committing')
    parser.add_argument('--half', action='store_true', help='store float16')
    parser.add_argument('--license', metavar='ID', help="for the model card, as in 'apache-2.0'")
    parser.add_argument('--description', metavar='TEXT', help='for the model card')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    card = CardData(license=args.license, description=args.description) if args.license or args.description else None
    print(push_to_hub(
        model_source(args).load(),
        args.repo_id,
        token=args.token,
        private=args.private,
        revision=args.revision,
        commit_message=args.message,
        create_pr=args.pull_request,
        half=args.half,
        card=card,
        keep_source=not (args.checkpoint or args.no_weights),
    ))
    return 0
