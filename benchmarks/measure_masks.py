"""What is measured on a network for segmentation, and the rows that come of it."""
import time
from typing import Any, Mapping, Sequence

import torch
from torch import nn

from benchmarks.measure import Measured, run_row
from benchmarks.runs import Job
from benchmarks.store import MASKS, RUNS
from rs_timm.training import Recipe, evaluate_masks
from rs_timm.training.tasks import MaskLoaders

__all__ = ['measure_masks']


def measure_masks(
        job: Job,
        recipe: Recipe,
        model: nn.Module,
        data: str,
        compared: Sequence[int],
        epochs: Sequence[Mapping[str, Any]],
        device: torch.device,
        workers: int,
) -> Measured:
    """All rows about a network: its scores at the sizes it was trained for, and at those of the preset.

    Args:
        job, recipe, model: what was run, with which settings, and what came of it.
        data: folder with train and val, each with pictures and masks.
        compared: sizes of the preset.
        epochs: rows of the training log.
        device, workers: as in training.
    """
    started = time.monotonic()
    sizes = sorted({*recipe.resolutions, *compared}, reverse=True)
    loader = MaskLoaders(data, recipe, device=device, workers=workers).evaluation(sizes)
    alpha = (getattr(model, 'checkpoint_metadata', None) or {}).get('alpha') if len(recipe.resolutions) > 1 else {}
    amp_dtype = None if recipe.precision == 'float32' else getattr(torch, recipe.precision)
    scores = evaluate_masks(model, loader, sizes, alpha, amp_dtype, device)
    rows = [dict(resolution=row, **{name: round(own[name], 4) for name in MASKS.columns[1:]})
            for row, own in scores.items()]
    count = len(loader.dataset)  # type: ignore[arg-type]
    run = run_row(job, recipe, model, count, epochs, device)
    return {MASKS: rows, RUNS: [dict(run, measure_seconds=round(time.monotonic() - started, 1))]}
