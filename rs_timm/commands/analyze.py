"""rs-timm analyze: what each resolution gets right on labelled pictures, as one page of HTML."""
import argparse
from pathlib import Path
from typing import Any, Iterator, Mapping

import timm
import torch
from torch import nn

from rs_timm.analysis import madds, norm_means, predict
from rs_timm.analysis.report import Subject, analysis_page, picture_rows, require_matplotlib
from rs_timm.data import data_config, folder_classes
from rs_timm.evaluation import write_results_csv
from rs_timm.labels import class_names
from rs_timm.layers import get_resolutions, learned_alpha
from rs_timm.loading import describe_preprocessing
from rs_timm.pictures import without_surrogates
from rs_timm.training.build import task_of

from .arguments import check_free, model_source
from .labelled import (
    WatchedLoader,
    add_labelled_arguments,
    autocast_type,
    labelled_pictures,
    reading,
    sizes_to_run,
)
from .shell import report_skipped

__all__ = ['analyze_arguments', 'run']


def analyze_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm analyze`."""
    parser.description = (
        'Run MODEL over labelled pictures at each of its resolutions and write a page with accuracy against cost, '
        'complementarity, the smallest sufficient size, classes, calibration and BatchNorm sets.')
    add_labelled_arguments(parser)
    parser.add_argument('--tolerance', type=float, default=1., metavar='POINTS',
                        help='top-1 that a class may lose at a size that suffices for it (default: 1)')
    parser.add_argument('--out', default='analysis.html', metavar='FILE', help='default: analysis.html')
    parser.add_argument('--csv', metavar='FILE', help='write a row for each picture too')
    parser.add_argument('--force', action='store_true', help='replace files that are there')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    require_matplotlib()
    for path in filter(None, (args.out, args.csv)):
        check_free(path, args.force)
    device = torch.device(('cuda' if torch.cuda.is_available() else 'cpu') if args.device == 'auto' else args.device)
    source = model_source(args)
    model = source.load().to(device)
    if task_of(model) == 'segmentation':
        raise ValueError(f'{args.model} labels pixels: analyze is for classifiers; see rs-timm eval --per-class.')
    config = data_config(model, args.crop_pct)
    sizes = sizes_to_run(args.sizes, model)
    pictures = labelled_pictures(model, args.data, args.split, args.class_map)
    loader = reading(args, device).loader(pictures.dataset, config, sizes)
    alpha = learned_alpha(model)
    found = predict(model, WatchedLoader(loader), sizes, alpha if alpha and set(alpha) <= set(sizes) else None,
                    autocast_type(args.precision))
    report_skipped(loader.damaged)
    facts = [
        f'{len(found.target)} labelled pictures of {args.data} ({args.split}); {describe_preprocessing(config)}.',
        f'Run on {device} in {args.precision} with torch {torch.__version__} and timm {timm.__version__}.',
        f"BatchNorm sets for {', '.join(f'{r} px' for r in get_resolutions(model))}.",
        f'Classes {pictures.order}.',
        *([f'Warning: {pictures.warning}.'] if pictures.warning else []),
        *([] if source.weights else ['The weights are random: the figures mean nothing.']),
        *([f'{len(loader.damaged)} pictures could not be read and are left out.'] if loader.damaged else []),
    ]
    subject = Subject(
        name=without_surrogates(args.model),
        facts=[without_surrogates(fact) for fact in facts],
        trained=get_resolutions(model),
        madds={size: madds(model, size) for size in sizes},
        class_names=list(_names(model, folder_classes(pictures.dataset))),
        norms=norm_means(model),
        tolerance=args.tolerance,
    )
    Path(args.out).write_text(analysis_page(subject, found), encoding='utf-8')
    print(f'wrote {args.out}')
    if args.csv:
        names: Any = getattr(loader.dataset, 'filenames', None)
        if loader.num_samples != len(found.target):  # some were left out: which is which?
            names = None
        write_results_csv(args.csv, picture_rows(found, list(names()) if names else None))
        print(f'wrote {args.csv}')
    return 0


def _names(model: nn.Module, folders: Mapping[str, int]) -> Iterator[str]:
    """As the model calls its classes; where it does not, as the folders are called."""
    name_of, folder_of = class_names(model), {index: folder for folder, index in folders.items()}
    count: int = model.num_classes  # type: ignore[assignment]
    for index in range(count):
        name = name_of(index)
        yield without_surrogates(folder_of.get(index, name) if name == f'class {index}' else name)
