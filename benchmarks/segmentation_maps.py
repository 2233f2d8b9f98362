"""Draw what the largest individual network and the RS-Net take one scene for, at each resolution (Figure 8).

    python -m benchmarks.segmentation_maps --data camvid --runs runs/paper/camvid [--picture 0]

The colours stand alone, since CamVid's photographs and masks may not be passed on; `rs-timm eval --overlays` lays them
over the photographs of those who have them, beside the ground truth.
"""
import argparse
from pathlib import Path
from typing import Any, Dict

import numpy as np
import timm
import torch
from timm.data import resolve_model_data_config

import rs_timm
from benchmarks.environment import RESULTS
from benchmarks.presets import PRESETS
from rs_timm.data import MaskFolder, image_transform
from rs_timm.segmentation import comparison, predicted_classes

PRESET = PRESETS['camvid']


def networks(runs: Path) -> Dict[str, Any]:
    """Name -> the finished network of a run."""
    folders = {'I-352': 'individual_352-s0', 'RS-Net': 'rs_net-s0'}
    return {name: timm.create_model(f'local-dir:{(runs / folder / "model").resolve()}', pretrained=True).eval()
            for name, folder in folders.items()}


@torch.inference_mode()
def maps(model: Any, picture: Any) -> Dict[int, np.ndarray]:
    """Resolution -> class of every second pixel, [H / 2, W / 2]."""
    config, found = resolve_model_data_config(model), {}
    for size in PRESET.resolutions:
        with rs_timm.use_resolution(model, size):
            logits = model(image_transform(config, size)(picture)[None])
        found[size] = predicted_classes(logits, picture.height, picture.width)[0, ::2, ::2].numpy()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True)
    parser.add_argument('--runs', type=Path, default=Path('runs/paper/camvid'))
    parser.add_argument('--picture', type=int, default=0, help='number in the test split (default: 0)')
    parser.add_argument('--out', type=Path, default=RESULTS / 'segmentation_maps.png')
    args = parser.parse_args()
    recipe = PRESET.recipe
    picture, _ = MaskFolder(args.data, 'val', recipe.labels, recipe.ignore_label)[args.picture]
    panels = {f'{name}, {size} px': classes for name, model in networks(args.runs).items()
              for size, classes in maps(model, picture).items()}
    comparison(None, panels, recipe.labels).save(args.out)
    print(f'wrote {args.out}')


if __name__ == '__main__':
    main()
