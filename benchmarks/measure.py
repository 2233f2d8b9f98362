"""What is measured on the network of a finished run, and the rows that come of it."""
import tempfile
import time
from copy import deepcopy
from pathlib import Path
from typing import Any, Dict, Iterator, List, Mapping, Sequence, Tuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from benchmarks.environment import describe
from benchmarks.quantization_size import full_size, packed_size
from benchmarks.runs import Job, settings
from benchmarks.runtime.networks import labelled
from benchmarks.store import ACCURACY, CLASSES, EPOCHS, FEATURES, MASKS, NORMS, RIGHT, RUNS, Table, packed
from rs_timm import add_resolution, export_onnx, extract, get_resolutions, is_switchable, pack, set_interpolation
from rs_timm.analysis import (
    Predictions,
    distribution,
    expected_calibration_error,
    norm_means,
    parameter_counts,
    pooled_features,
    predict,
)
from rs_timm.data import MultiResLoader, create_multires_loader
from rs_timm.evaluation import confusion_matrices
from rs_timm.layers import learned_alpha
from rs_timm.quantization import quantized_layers
from rs_timm.runtime import Session
from rs_timm.segmentation import class_ious, segmentation_scores
from rs_timm.training import Recipe
from rs_timm.training.tasks import MaskLoaders

Rows = List[Dict[str, Any]]
Measured = Dict[Table, Rows]
RECALIBRATION: Dict[str, Any] = dict(num_images=1000, prior_images=0)  # of sets for unseen sizes: statistics anew


class Pictures:
    """Loaders of the pictures of a run, as its recipe prepares them.

    Args:
        data: folder with train/CLASS/* and val/CLASS/*.
        recipe: preprocessing, augmentation and batch size.
        device, workers: as in training.
    """

    def __init__(self, data: str, recipe: Recipe, device: torch.device, workers: int) -> None:
        self.data, self.recipe = data, recipe
        self.common: Dict[str, Any] = dict(
            batch_size=min(recipe.batch_size, 64), num_workers=workers, mean=recipe.mean, std=recipe.std,
            interpolation=recipe.interpolation, device=device, channels_last=recipe.channels_last, seed=recipe.seed)

    def test(self, sizes: Sequence[int]) -> MultiResLoader:
        """The test pictures, centrally cropped."""
        return create_multires_loader(
            self.data, sizes, split='val', is_training=False, crop_pct=self.recipe.crop_pct, **self.common)

    def training_crops(self, sizes: Sequence[int], split: str) -> MultiResLoader:
        """Pictures of a split, cropped as in training."""
        return create_multires_loader(
            self.data, sizes, split=split, is_training=True, scale=self.recipe.crop_scale,
            ratio=self.recipe.crop_ratio, **self.common)


def measure(
        job: Job,
        recipe: Recipe,
        model: nn.Module,
        pictures: Pictures,
        dense: Sequence[int] = (),
        compared: Sequence[int] = (),
        epochs: Sequence[Mapping[str, Any]] = (),
) -> Tuple[Measured, Predictions]:
    """All rows about a network, and its predictions at the sizes of the run.

    Args:
        job: what was run.
        recipe: its settings.
        model: the network, switchable or with shared BatchNorms.
        pictures: of the run.
        dense: sizes to measure besides the trained ones, if the run wants them.
        compared: sizes at which it is kept which pictures are right, as far as they are measured.
        epochs: rows of the training log.
    """
    started = time.monotonic()
    if recipe.same_size:  # equal sets: the first stands for them
        model = pack({recipe.same_size: extract(model, recipe.resolutions[0])})
    sizes = _trained_sizes(recipe)
    every = sorted({*sizes, *(dense if job.run.dense else ())}, reverse=True)
    several = is_switchable(model) and len(get_resolutions(model)) > 1
    alpha = learned_alpha(model) if len(sizes) > 1 else None
    said = predict(model, pictures.test(every), every, alpha, pictures.recipe.amp_dtype)
    unseen = [size for size in every if size not in sizes]
    accuracy = [_accuracy_row('params' if several and row in unseen else 'own', said, row) for row in said.at]
    if several and unseen:
        for sets, network in _variants(model, unseen, pictures):
            other = predict(network, pictures.test(unseen), unseen, None, pictures.recipe.amp_dtype)
            accuracy += [_accuracy_row(sets, other, row) for row in unseen]
    measured: Measured = {
        ACCURACY: accuracy,
        RIGHT: [dict(resolution=r, pictures=len(said.target), right=packed(said.right(r)))
                for r in every if r in sizes or r in compared],
        EPOCHS: [{column: row[column] for column in EPOCHS.columns} for row in epochs],
        NORMS: [dict(means, layer=layer, resolution=resolution) for layer, sets in norm_means(model).items()
                for resolution, means in sets.items()] if several else [],
        FEATURES: list(_feature_rows(model, (sizes[0], sizes[-1]), pictures)) if job.run.features else [],
    }
    run = run_row(job, recipe, model, len(said.target), epochs, pictures.common['device'])
    measured[RUNS] = [dict(run, measure_seconds=round(time.monotonic() - started, 1))]
    return measured, said


def _trained_sizes(recipe: Recipe) -> List[int]:
    return sorted(recipe.measured_sets(recipe.epochs - 1), reverse=True)


def _accuracy_row(sets: str, said: Predictions, row: Any) -> Dict[str, Any]:
    values = said.accuracy(row)
    return dict(
        sets=sets,
        resolution=row,
        **{name: round(values[name], 4) for name in ('top1', 'top5', 'loss')},
        ece=round(expected_calibration_error(said.at[row].confidence, said.right(row)), 4),
    )


def _variants(model: nn.Module, unseen: Sequence[int], pictures: Pictures) -> Iterator[Tuple[str, nn.Module]]:
    """(How the sets of unseen sizes are made, the network that has them), besides 'params'."""
    network = deepcopy(model)
    for mode in ('affine', 'nearest'):
        set_interpolation(network, mode)
        yield mode, network
    set_interpolation(network, 'params')
    dtype = pictures.recipe.amp_dtype
    with torch.autocast(pictures.common['device'].type, dtype, enabled=dtype is not None):
        for size in unseen:
            add_resolution(network, size, lambda r: pictures.training_crops((r,), 'train'), **RECALIBRATION)
    yield 'recalibrated', network


def _feature_rows(model: nn.Module, sizes: Sequence[int], pictures: Pictures) -> Iterator[Dict[str, Any]]:
    """The distribution of the pooled features on the test pictures, cropped as in the test and as in training."""
    for size in dict.fromkeys(sizes):
        loaders = dict(test=pictures.test((size,)), train=pictures.training_crops((size,), 'val'))
        for crops, loader in loaders.items():
            features = pooled_features(model, (images[size] for images, _ in loader), size, pictures.recipe.amp_dtype)
            for value, share in zip(*distribution(features)):
                yield dict(resolution=size, crops=crops, share=round(float(share), 4), value=float(value))


def run_row(
        job: Job,
        recipe: Recipe,
        model: nn.Module,
        pictures: int,
        epochs: Sequence[Mapping[str, Any]],
        device: torch.device,
) -> Dict[str, Any]:
    """The row of the table of runs, without the time of measuring."""
    seconds: Dict[int, float] = {row['epoch']: row['seconds'] for row in epochs}
    return dict(
        model=job.model,
        recipe=job.preset.recipe_name,
        settings=settings(recipe),
        epochs=recipe.epochs if job.run.trains else 0,
        parameters=parameter_counts(model).total,
        pictures=pictures,
        train_seconds=round(sum(seconds.values()), 1),
        **describe(device.type, recipe.precision),
    )


# Segmentation

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
    alpha = learned_alpha(model) if len(recipe.resolutions) > 1 else {}
    matrices = confusion_matrices(model, loader, sizes, alpha, recipe.amp_dtype, device)
    rows, classes = [], []
    for row, matrix in matrices.items():
        own = segmentation_scores(matrix)
        rows.append(dict(resolution=row, **{name: round(own[name], 4) for name in MASKS.columns[1:]}))
        classes += [dict(resolution=row, label=label, pixels=pixels, iou=round(iou, 2)) for label, pixels, iou in zip(
            recipe.labels, matrix.sum(1).tolist(), class_ious(matrix).tolist())]
    count = len(loader.dataset)  # type: ignore[arg-type]
    run = run_row(job, recipe, model, count, epochs, device)
    return {MASKS: rows, CLASSES: classes, RUNS: [dict(run, measure_seconds=round(time.monotonic() - started, 1))]}


# Table 3

CALIBRATION = 300  # pictures
_BATCH = 32


def file_rows(model: nn.Module) -> Rows:
    """Bytes of the safetensors file in float32 and float16, without the bases of the quantisers, and packed."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sizes = {'float32': full_size(model, folder), 'float16': full_size(model, folder, torch.float16)}
        if quantized_layers(model):
            sizes['packed'] = packed_size(model, folder, 'int8')
    return [dict(kind=kind, bytes=size) for kind, size in sizes.items()]


def int8_rows(model: nn.Module, data: Path, sizes: Sequence[int], names: Sequence[str]) -> Rows:
    """Accuracy of OpenVINO's int8 networks, calibrated with training pictures, on the test pictures.

    Args:
        model: switchable.
        data: folder with train/CLASS/* and val/CLASS/*.
        sizes: in pixels.
        names: of the classes, in the order of the model's outputs.
    """
    calibration, _ = labelled(data / 'train', names, CALIBRATION)
    files, targets = labelled(data / 'val', names)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'model.onnx'
        export_onnx(model, file)
        session = Session(file, 'openvino', 'int8', calibration=calibration)
        return [_int8_row(session, files, torch.from_numpy(targets), size) for size in sizes]


def _int8_row(session: Session, files: Sequence[Path], targets: torch.Tensor, size: int) -> Dict[str, Any]:
    batches = [session(files[first:first + _BATCH], size) for first in range(0, len(files), _BATCH)]
    logits = torch.from_numpy(np.concatenate(batches))
    confidence, said = logits.softmax(1).max(1)
    right = said == targets
    in_top5 = (logits.topk(min(5, logits.shape[1]), dim=1).indices == targets[:, None]).any(1)
    return dict(
        sets='int8',
        resolution=size,
        top1=100. * right.double().mean().item(),
        top5=100. * in_top5.double().mean().item(),
        loss=F.cross_entropy(logits, targets).item(),
        ece=expected_calibration_error(confidence.numpy(), right.numpy()),
    )
