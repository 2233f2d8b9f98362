"""What `rs-timm eval` does with a network for segmentation."""
import argparse
from pathlib import Path
from typing import Any, Dict, List, Mapping, Sequence

import torch
from torch import nn

from rs_timm.data import MaskFolder, create_mask_loader, image_transform
from rs_timm.layers import use_resolution
from rs_timm.segmentation import class_ious, comparison, predicted_classes, segmentation_scores
from rs_timm.training import confusion_matrices, masks_table, write_results_csv
from rs_timm.training.processes import is_first_process, process_count, process_rank

from ._shell import report

__all__ = ['draw_overlays', 'evaluate_segmentation', 'label_names']


def label_names(model: nn.Module) -> List[str]:
    """Names of the classes, as the model's cfg has them, else numbers."""
    names = (getattr(model, 'pretrained_cfg', None) or {}).get('label_names')
    return list(names or (f'class {index}' for index in range(int(model.num_classes))))  # type: ignore[arg-type]


def evaluate_segmentation(
        args: argparse.Namespace,
        model: nn.Module,
        config: Mapping[str, Any],
        sizes: Sequence[int],
        alpha: Dict[int, float],
        amp_dtype: Any,
        device: torch.device,
) -> int:
    """Print the table, and write the CSV file and the pictures that were asked for."""
    if config['input_size'][0] != 3:
        raise ValueError(f"{args.model} takes {config['input_size'][0]} channels: networks for segmentation are "
                         'evaluated on RGB.')
    names = label_names(model)
    dataset = MaskFolder(args.data, args.split, names, args.ignore_label)
    loader = create_mask_loader(
        dataset, sizes, is_training=False, batch_size=args.batch_size, num_workers=args.workers, mean=config['mean'],
        std=config['std'], interpolation=config['interpolation'], device=device, skip_corrupt=args.skip_corrupt,
        rank=process_rank(), world_size=process_count())
    matrices = confusion_matrices(model, loader, sizes, alpha, amp_dtype, device)
    for message in loader.damaged:
        report(f'warning: skipped {message}')
    if is_first_process():
        results = {row: segmentation_scores(matrix) for row, matrix in matrices.items()}
        print(masks_table(results))
        if args.per_class:
            print('\n'.join(_per_class(matrices, names)))
        if args.csv:
            write_results_csv(args.csv, [dict(model=args.model, img_size=row, **scores)
                                         for row, scores in results.items()])
        if args.overlays:
            draw_overlays(model, dataset, config, sizes, Path(args.overlays), args.overlay_count, device)
    return 0


def _per_class(matrices: Mapping[Any, torch.Tensor], names: Sequence[str]) -> List[str]:
    """IoU of each class, a column for each resolution."""
    ious = [class_ious(matrix).tolist() for matrix in matrices.values()]
    width = max(map(len, names))
    lines = [f'{"IoU":<{width}} ' + ' '.join(f'{row!s:>9}' for row in matrices)]
    lines += [f'{name:<{width}} ' + ' '.join(f'{column[index]:9.2f}' for column in ious)
              for index, name in enumerate(names)]
    return lines


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
