"""Put the weights of a finished training run into weights/ and its manifest, with the top-1 that they reach.

    python -m benchmarks.ship_weights rs_resnet18.mred_imagenette --run runs/rs_resnet18 --data DIR

Stored are float16 convolutions and float32 BatchNorms; what is measured is what is stored. The entry holds command,
settings, hardware and minutes of the run, and of the run that it started from (`--init`), so that the same commands
give the same kind of weights again: see `benchmarks.run_record`. A run with `--resize device` has seen the sizes below
the largest through pictures that were resized twice, which are softer than those of an evaluation: `--recalibrate 2000`
puts that right, and the entry says so.
"""
import argparse
import json
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Dict, Sequence

import timm
import torch
from timm.data import ImageNetInfo

import rs_timm
from benchmarks.environment import describe
from benchmarks.measure import Pictures
from benchmarks.run_record import hardware_here, record_of
from rs_timm.atomic import write_bytes
from rs_timm.calibration import recalibrate
from rs_timm.data import create_multires_loader
from rs_timm.hub.saving import write_weights
from rs_timm.layers import get_resolutions, learned_alpha
from rs_timm.models import file_sha256, manifest, weights_dir
from rs_timm.training import Recipe, evaluate

ORIGIN = 'https://github.com/fastai/imagenette'
LICENSE = 'apache-2.0'
DESCRIPTION = ('Trained from random initialisation with MRED on Imagenette, ten classes of ImageNet, whose pictures '
               'are for research and teaching.')
# what of the run's pretrained_cfg describes the network; the rest says where weights come from
CFG_FIELDS = ('num_classes', 'input_size', 'fixed_input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std',
              'pool_size', 'first_conv', 'classifier', 'label_names')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split('\n')[0])
    parser.add_argument('name', metavar='MODEL.TAG')
    parser.add_argument('--run', required=True, type=Path, help="output folder of 'rs-timm train'")
    parser.add_argument('--data', required=True, help='the pictures that it was trained on; val is measured')
    parser.add_argument('--workers', type=int, default=1)
    parser.add_argument('--hardware', nargs='+', default=[hardware_here()], metavar='TEXT',
                        help='that it was trained on, then that of the stage before (default: %(default)s)')
    parser.add_argument('--recalibrate', type=int, default=0, metavar='N',
                        help='BatchNorm statistics anew from N training pictures, cropped as in training and resized '
                             'from the crop')
    args = parser.parse_args()
    if '.' not in args.name:
        parser.error(f"{args.name!r} has no tag: name it as in 'rs_resnet18.mred_imagenette'.")
    entry = ship(args.name, args.run, args.data, args.workers, args.hardware, args.recalibrate)
    print(json.dumps({key: entry[key] for key in ('file', 'sha256', 'top1', 'measured')}, indent=2))


def ship(
        name: str,
        run: Path,
        data: str,
        workers: int,
        hardware: Sequence[str],
        recalibrated: int = 0,
) -> Dict[str, Any]:
    """Write the file and its entry, and return the entry."""
    recipe = record_of(run, hardware)
    model = rs_timm.from_pretrained(str(run / 'model')).eval()
    if model.pretrained_cfg['architecture'] != name.split('.')[0]:
        raise ValueError(f"{run} holds a {model.pretrained_cfg['architecture']}, not a {name.split('.')[0]}.")
    if recalibrated:
        recipe = dict(recipe, recalibrated=_recalibrate(model, run, data, workers, recalibrated))
    path = weights_dir() / f'{name}.safetensors'
    with TemporaryDirectory(dir=path.parent) as folder:
        write_weights(model, Path(folder), storage='half')
        (Path(folder) / 'model.safetensors').replace(path)
    results = measure(model, path, data, workers)
    entry = dict(
        file=path.name,
        sha256=file_sha256(path),
        origin=ORIGIN,
        license=LICENSE,
        resolutions=list(get_resolutions(model)),
        cfg=_cfg(model),
        alpha={str(r): round(weight, 4) for r, weight in learned_alpha(model).items()},
        top1={str(row): round(result['top1'], 2) for row, result in results.items()},
        top5={str(row): round(result['top5'], 2) for row, result in results.items()},
        measured=dict(data='Imagenette, val', pictures=results[model.resolutions[0]]['count'], **describe()),
        recipe=recipe,
    )
    put_entry(name, entry)
    return entry


def put_entry(name: str, entry: Dict[str, Any]) -> None:
    """Write an entry of the manifest."""
    listed = weights_dir() / 'manifest.json'
    content = json.loads(listed.read_text(encoding='utf-8'))
    content['weights'][name] = entry
    write_bytes(listed, (json.dumps(content, indent=2) + '\n').encode())
    manifest.cache_clear()


def _recalibrate(model: torch.nn.Module, run: Path, data: str, workers: int, count: int) -> int:
    """Statistics anew from training pictures as the run crops them, each size straight from the crop; their number."""
    settings = json.loads((run / 'recipe.json').read_text(encoding='utf-8'))
    recipe = Recipe(**{field.name: settings[field.name] for field in fields(Recipe) if field.name in settings})
    pictures = Pictures(data, replace(recipe, batch_size=count), torch.device('cpu'), workers)
    with torch.autocast('cpu', recipe.amp_dtype, enabled=recipe.amp_dtype is not None):
        used = recalibrate(
            model, lambda r: pictures.training_crops((r,), 'train'), num_images=count, prior_images=0)
    return min(used.values())


def measure(model: torch.nn.Module, path: Path, data: str, workers: int) -> Dict[Any, Dict[str, float]]:
    """Top-1 and top-5 in float32 of the weights as stored, at each trained size and of the ensemble."""
    timm.models.load_checkpoint(model, str(path))
    cfg = model.pretrained_cfg
    loader = create_multires_loader(
        data,
        get_resolutions(model),
        split='val',
        is_training=False,
        batch_size=32,
        num_workers=workers,
        mean=cfg['mean'],
        std=cfg['std'],
        interpolation=cfg['interpolation'],
        crop_pct=cfg['crop_pct'],
    )
    return evaluate(model.float().eval(), loader)


def _cfg(model: torch.nn.Module) -> Dict[str, Any]:
    cfg = {key: model.pretrained_cfg[key] for key in CFG_FIELDS if model.pretrained_cfg.get(key) is not None}
    info = ImageNetInfo()
    synsets = set(info.label_names())
    names = {label: info.label_name_to_description(label, detailed=False).split(',')[0]
             for label in cfg['label_names'] if label in synsets}
    return dict(cfg, label_descriptions=names or None, description=DESCRIPTION)


if __name__ == '__main__':
    main()
