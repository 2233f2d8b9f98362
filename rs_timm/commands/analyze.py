"""rs-timm analyze: what each resolution gets right on labelled pictures, as one page of HTML."""
import argparse
import csv
import os
from pathlib import Path
from typing import Any, List, Mapping, Optional, Sequence

import timm
import torch
from timm.data import resolve_model_data_config
from torch import nn

from rs_timm.analysis import Predictions, madds, norm_means, predict
from rs_timm.analysis.report import Subject, analysis_page, picture_rows, require_matplotlib
from rs_timm.data import MultiResLoader, folder_classes
from rs_timm.layers import get_resolutions
from rs_timm.pictures import without_surrogates
from rs_timm.training.build import task_of

from ._classes import Labelled, labelled_pictures
from ._data import PRECISIONS, add_data_arguments, add_running_arguments, evaluation_loader
from ._eager import class_names
from ._model import describe_preprocessing, load_model, positive_int
from ._shell import report

__all__ = ['register', 'run']


def register(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        'analyze',
        help='which pictures and classes need which size: a report in HTML',
        description='Run MODEL over labelled pictures at each of its resolutions and write a page with accuracy '
                    'against cost, complementarity, the smallest sufficient size, classes, calibration and BatchNorm '
                    'sets.',
    )
    parser.add_argument('model', metavar='MODEL', help="as for 'rs-timm predict'")
    add_data_arguments(parser)
    parser.add_argument('--resolutions', type=positive_int, nargs='+', metavar='R',
                        help='sizes to look at in pixels, trained or not (default: the trained ones)')
    source = parser.add_mutually_exclusive_group()
    source.add_argument('--checkpoint', metavar='FILE', help='load these weights (.safetensors or .pth)')
    source.add_argument('--no-weights', action='store_true', help='random weights, to try out')
    add_running_arguments(parser)
    parser.add_argument('--tolerance', type=float, default=1., metavar='POINTS',
                        help='top-1 that a class may lose at a size that suffices for it (default: 1)')
    parser.add_argument('--out', default='analysis.html', metavar='FILE', help='default: analysis.html')
    parser.add_argument('--csv', metavar='FILE', help='write a row for each picture too')
    parser.add_argument('--force', action='store_true', help='replace files that are there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    require_matplotlib()
    _check_targets([args.out, args.csv], args.force)
    device = torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if args.device == 'auto' else args.device)
    model = load_model(args.model, not args.no_weights, args.checkpoint).to(device)
    if task_of(model) == 'segmentation':
        raise ValueError(f'{args.model} labels pixels: analyze is for classifiers; see rs-timm eval --per-class.')
    config = resolve_model_data_config(model)
    sizes = tuple(sorted(set(args.resolutions or get_resolutions(model)), reverse=True))
    pictures = labelled_pictures(args, model)
    loader = evaluation_loader(args, pictures.dataset, config, sizes, device)
    alpha = _alpha(model, sizes)
    said = predict(model, loader, sizes, alpha, PRECISIONS.get(args.amp))
    for message in loader.damaged:
        report(f'warning: skipped {message}')
    subject = _subject(args, model, pictures, loader, sizes, said, device)
    Path(args.out).write_text(analysis_page(subject, said), encoding='utf-8')
    print(f'wrote {args.out}')
    if args.csv:
        _write_csv(args.csv, said, loader)
        print(f'wrote {args.csv}')
    return 0


def _check_targets(paths: Sequence[Optional[str]], force: bool) -> None:
    """Before any work: what cannot be written afterwards."""
    for path in filter(None, paths):
        if os.path.isdir(path):
            raise ValueError(f'{path} is a folder: name a file in it.')
        if os.path.exists(path) and not force:
            raise ValueError(f'{path} is there already: name another file, or --force to replace it.')
        folder = os.path.dirname(path) or '.'
        if not os.path.isdir(folder):
            raise ValueError(f'{path}: there is no folder {folder}; make it first.')


def _alpha(model: nn.Module, sizes: Sequence[int]) -> Optional[dict]:
    """The learned weights of the ensemble, if there are any and all their sizes are looked at."""
    learned = (getattr(model, 'checkpoint_metadata', None) or {}).get('alpha') or {}
    weights = {int(size): float(weight) for size, weight in learned.items()}
    return weights if weights and set(weights) <= set(sizes) else None


def _subject(
        args: argparse.Namespace,
        model: nn.Module,
        pictures: Labelled,
        loader: MultiResLoader,
        sizes: Sequence[int],
        said: Predictions,
        device: torch.device,
) -> Subject:
    trained = get_resolutions(model)
    facts = [
        f'{len(said.target)} labelled pictures of {args.data} ({args.split}); '
        f'{describe_preprocessing(resolve_model_data_config(model))}.',
        f'Run on {device} in {args.amp or "float32"} with torch {torch.__version__} and timm {timm.__version__}.',
        f"BatchNorm sets for {', '.join(f'{r} px' for r in trained)}.",
        f'Classes {pictures.order}.',
    ]
    if pictures.warning:
        facts.append(f'Warning: {pictures.warning}.')
    if args.no_weights:
        facts.append('The weights are random: the figures mean nothing.')
    if loader.damaged:
        facts.append(f'{len(loader.damaged)} pictures could not be read and are left out.')
    return Subject(
        name=without_surrogates(args.model),
        facts=[without_surrogates(fact) for fact in facts],
        trained=trained,
        madds={size: madds(model, size) for size in sizes},
        class_names=_names(model, folder_classes(pictures.dataset)),
        norms=norm_means(model),
        tolerance=args.tolerance,
    )


def _names(model: nn.Module, folders: Mapping[str, int]) -> List[str]:
    """As the model calls its classes; where it does not, as the folders are called."""
    name_of = class_names(model)
    folder_of = {index: folder for folder, index in folders.items()}
    count: int = model.num_classes  # type: ignore[assignment]
    names = [name_of(index) for index in range(count)]
    named = (folder_of.get(i, name) if name == f'class {i}' else name for i, name in enumerate(names))
    return [without_surrogates(name) for name in named]


def _write_csv(path: str, said: Predictions, loader: MultiResLoader) -> None:
    files: Optional[List[str]] = None
    names = getattr(loader.dataset, 'filenames', None)
    if names is not None and loader.num_samples == len(said.target):  # else some were left out: which is which?
        files = list(names())
    rows = picture_rows(said, files)
    with open(path, 'w', newline='', encoding='utf-8', errors='backslashreplace') as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
