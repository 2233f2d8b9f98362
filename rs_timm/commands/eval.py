"""rs-timm eval: top-1 and top-5 on labelled pictures, or IoU on pictures with masks, at any sizes, in one pass."""
import argparse
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple, Union

import torch
from torch import nn

from rs_timm.crops import crop_at
from rs_timm.data import MaskFolder, create_mask_loader, data_config, image_transform
from rs_timm.layers import learned_alpha, use_resolution
from rs_timm.loading import describe_preprocessing
from rs_timm.pictures import ImageError
from rs_timm.runtime import evaluate_session
from rs_timm.segmentation import class_ious, comparison, predicted_classes, segmentation_scores
from rs_timm.training import (
    confusion_matrices,
    evaluate,
    masks_table,
    results_rows,
    results_table,
    write_results_csv,
)
from rs_timm.training.build import task_of
from rs_timm.training.processes import is_first_process, join_processes, process_count, process_rank

from .arguments import ModelSource, model_source, positive_int
from .labelled import (
    WatchedLoader,
    add_labelled_arguments,
    autocast_type,
    labelled_pictures,
    reading,
    sizes_to_run,
)
from .serving import add_engine_arguments, describe_versions, engine_options, open_session
from .shell import report, report_skipped, watched

__all__ = ['draw_overlays', 'eval_arguments', 'run']


def eval_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm eval`."""
    add_labelled_arguments(parser, ", or a file that 'rs-timm export' wrote (.onnx)", precisions=('int8',))
    parser.add_argument('--ensemble', action='store_true',
                        help='measure the ensemble too: with the learned weights, or with equal ones if there are none')
    parser.add_argument('--csv', metavar='FILE', help="write the results too, with the columns of timm's validate.py")
    add_engine_arguments(parser.add_argument_group('exported files', 'how MODEL.onnx runs'), of_labelled=True)
    masks = parser.add_argument_group('segmentation', 'for a network such as rs_refinenet_resnet18; DIR has '
                                      'SPLIT/images and SPLIT/masks')
    masks.add_argument('--ignore-label', type=int, default=255, metavar='V',
                       help='mask value of pixels without a class (default: 255)')
    masks.add_argument('--per-class', action='store_true', help='print the IoU of each class')
    masks.add_argument('--overlays', metavar='DIR', help='draw the predictions of the first pictures there')
    masks.add_argument('--overlay-count', type=positive_int, default=4, metavar='N', help='how many (default: 4)')
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    source = model_source(args)
    if source.is_exported:
        return _run_exported(args, source)
    if args.precision == 'int8' or any((args.engine, args.threads, args.calibration, args.cache_dir)):
        raise ValueError(f"int8, --engine and what goes with it are for exported files: 'rs-timm export {args.model} "
                         "MODEL.onnx' writes one.")
    device = join_processes(args.device)
    model = source.load().to(device)
    config = data_config(model, args.crop_pct)
    sizes = sizes_to_run(args.sizes, model)
    alpha = _alpha(model, sizes) if args.ensemble else {}
    how, amp_dtype = reading(args, device), autocast_type(args.precision)
    heading = (f'# {args.model} on {args.data} ({args.split}), {device}, {args.precision}; '
               f'{describe_preprocessing(config)}')
    if task_of(model) == 'segmentation':
        if config['input_size'][0] != 3:
            raise ValueError(f"{args.model} takes {config['input_size'][0]} channels: networks for segmentation are "
                             'evaluated on RGB.')
        named: Any = model.pretrained_cfg.get('label_names')
        names = list(named or (f'class {index}' for index in range(model.num_classes)))
        dataset = MaskFolder(args.data, args.split, names, args.ignore_label)
        _print(heading)
        masked: Any = WatchedLoader(create_mask_loader(
            dataset, sizes, is_training=False, batch_size=how.batch_size, num_workers=how.workers, mean=config['mean'],
            std=config['std'], interpolation=config['interpolation'], device=device, skip_corrupt=how.skip_corrupt,
            rank=process_rank(), world_size=process_count()))
        matrices = confusion_matrices(model, masked, sizes, alpha, amp_dtype, device)
        report_skipped(masked.damaged)
        results = {row: segmentation_scores(matrix) for row, matrix in matrices.items()}
        _print(masks_table(results), *(_per_class(matrices, names) if args.per_class else ()))
        if args.csv and is_first_process():
            write_results_csv(args.csv, [dict(model=args.model, img_size=row, **scores)
                                         for row, scores in results.items()])
        if args.overlays and is_first_process():
            draw_overlays(model, dataset, config, sizes, Path(args.overlays), args.overlay_count, device)
        return 0
    pictures = labelled_pictures(model, args.data, args.split, args.class_map)
    loader = how.loader(pictures.dataset, config, sizes)
    _print(f'{heading}; classes {pictures.order}')
    measured = evaluate(model, WatchedLoader(loader), sizes, alpha, amp_dtype, device)  # type: ignore[arg-type]
    report_skipped(loader.damaged)
    _print(results_table(measured))
    if alpha:
        _print('# ensemble: ' + ', '.join(f'{size}: {weight:.3f}' for size, weight in alpha.items()))
    if args.csv and is_first_process():
        columns = dict(
            param_count=round(sum(p.numel() for p in model.parameters()) / 1e6, 2),
            crop_pct='',
            interpolation=config['interpolation'],
        )
        rows = results_rows(measured, args.model, **columns)
        for row in rows:  # that of the ensemble has the crop of the largest size
            row['crop_pct'] = crop_at(config['crop_pct'], row['img_size'] if row['img_size'] in sizes else sizes[0])
        write_results_csv(args.csv, rows)
    return 0


def _run_exported(args: argparse.Namespace, source: ModelSource) -> int:
    """Evaluate an exported file on an engine, with the pictures that the network in torch would get."""
    if args.ensemble or args.overlays or args.per_class:
        raise ValueError(f'{args.model} is an exported file, which runs on an engine, one size at a time: --ensemble, '
                         '--overlays and --per-class are for models by name.')
    session = open_session(source.path(), engine_options(args), draft=False, crop_pct=args.crop_pct)
    info = session.info
    described = SimpleNamespace(num_classes=info.num_classes, pretrained_cfg=dict(
        label_names=info.label_names, label_descriptions=info.label_descriptions))
    labelled = labelled_pictures(described, args.data, args.split, args.class_map)  # type: ignore[arg-type]
    print(f"# {args.model} on {args.data} ({args.split}), {describe_versions(session.versions)}, {args.precision}; "
          f'classes {labelled.order}', flush=True)
    damaged: List[str] = []

    def skip(error: ImageError) -> None:
        damaged.append(str(error))

    measured: Dict[Any, Dict[str, float]] = evaluate_session(
        session, _pictures(labelled.dataset), args.sizes, args.batch_size, skip if args.skip_corrupt else None)
    report_skipped(damaged)
    print(results_table(measured))
    if args.csv:
        write_results_csv(args.csv, results_rows(measured, args.model))
    return 0


def _pictures(dataset: Any) -> Iterator[Tuple[Union[str, bytes], int]]:
    """The path of each picture, or its bytes where it lies in a tar file; and its class."""
    for index in watched(range(len(dataset)), 'picture'):
        stream, target = dataset.reader[index]
        path = dataset.filename(index, absolute=True)
        with stream:
            yield path if os.path.isfile(path) else stream.read(), int(target)


def _print(*lines: str) -> None:
    if is_first_process():
        print('\n'.join(lines), flush=True)


def _alpha(model: nn.Module, sizes: Sequence[int]) -> Dict[int, float]:
    """The learned weights of the ensemble; equal ones if the model has none."""
    weights = learned_alpha(model)
    if not weights:
        report('note: the model has no ensemble weights; equal ones are used')
        return {size: 1. / len(sizes) for size in sizes}
    missing = sorted(set(weights) - set(sizes), reverse=True)
    if missing:
        raise ValueError(f"the ensemble needs the sizes {tuple(weights)}: add {' '.join(map(str, missing))} to "
                         '--sizes, or leave out --ensemble.')
    return weights


# Segmentation

def _per_class(matrices: Mapping[Any, torch.Tensor], names: Sequence[str]) -> Iterator[str]:
    """IoU of each class, a column for each resolution."""
    ious = [class_ious(matrix).tolist() for matrix in matrices.values()]
    width = max(map(len, names))
    yield f'{"IoU":<{width}} ' + ' '.join(f'{row!s:>9}' for row in matrices)
    for index, name in enumerate(names):
        yield f'{name:<{width}} ' + ' '.join(f'{column[index]:9.2f}' for column in ious)


@torch.inference_mode()
def draw_overlays(
        model: nn.Module,
        dataset: MaskFolder,
        config: Mapping[str, Any],
        sizes: Sequence[int],
        folder: Path,
        count: int,
        device: torch.device,
) -> None:
    """Write, for the first pictures, the ground truth and the prediction at each resolution side by side (Figure 8)."""
    folder.mkdir(parents=True, exist_ok=True)
    transforms = {size: image_transform(config, size) for size in sizes}
    model.eval()
    for index in range(min(count, len(dataset))):
        picture, mask = dataset[index]
        panels: Dict[str, Any] = {'ground truth': mask}
        for size, transform in transforms.items():
            with use_resolution(model, size):
                logits = model(transform(picture)[None].to(device))
            panels[f'{size} px'] = predicted_classes(logits, picture.height, picture.width)[0].cpu().numpy()
        comparison(picture, panels, dataset.classes).save(folder / f'{dataset.pairs[index][0].stem}.png')
