"""How many bytes does a quantised RS-Net take on disk, and how many do separate networks take?

Files of the same network are written and measured: full precision, packed with each way to store the classifier, and
packed as one of the plain networks that `extract` gives, times their number. Sizes do not depend on the values of the
weights, so that random ones do. The paper's footnote 4 makes the point for the weights alone: separate networks have
separate codes.

    python -m benchmarks.quantization_size [--models rs_resnet18_w2a32 ...] [--classes 10 1000]
"""
import argparse
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import timm
import torch
from safetensors.torch import save_file
from torch import nn

import rs_timm
from benchmarks.environment import RESULTS
from benchmarks.store import put
from rs_timm.quantization import pack_weights
from rs_timm.quantization.packing import HEADS

MODELS = ('rs_resnet18_w2a32', 'rs_resnet18_w2a2', 'rs_resnet50_w2a32', 'rs_resnet50_w2a2')


def full_size(model: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> int:
    """Bytes of the file without the bases of the quantisers, which a network in full precision does not have."""
    tensors = {key: tensor.contiguous().to(dtype if tensor.is_floating_point() else tensor.dtype)
               for key, tensor in model.state_dict().items() if not key.endswith('_basis')}
    save_file(tensors, folder / 'full.safetensors')
    return (folder / 'full.safetensors').stat().st_size


def packed_size(model: nn.Module, folder: Path, head: str) -> int:
    return pack_weights(model, folder / 'packed.safetensors', head).stat().st_size


def rows_of(name: str, classes: int) -> List[Dict[str, Any]]:
    model = timm.create_model(name, num_classes=classes)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        full = full_size(model, Path(folder))
        for head in HEADS:
            packed = packed_size(model, Path(folder), head)
            one = packed_size(rs_timm.extract(model, model.resolutions[0]), Path(folder), head)  # all are of one size
            separate = one * len(model.resolutions)
            rows.append(dict(
                model=name,
                classes=classes,
                resolutions=' '.join(map(str, model.resolutions)),
                head=head,
                full_bytes=full,
                packed_bytes=packed,
                times_smaller=round(full / packed, 2),
                separate_packed_bytes=separate,
                separate_over_switchable=round(separate / packed, 2),
            ))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=MODELS)
    parser.add_argument('--classes', nargs='+', type=int, default=(10, 1000))
    parser.add_argument('--out', type=Path, default=RESULTS / 'quantization_size.csv')
    args = parser.parse_args()
    rows = [row for name in args.models for classes in args.classes for row in rows_of(name, classes)]
    for row in rows:
        print(', '.join(f'{key} {value}' for key, value in row.items()))
    put(args.out, rows)


if __name__ == '__main__':
    main()
