"""Real photographs at five resolutions, one set of weights each: what `make demo` runs.

First a network that knows the 1000 classes of ImageNet, EfficientNet-Lite0 with ordinary weights and a crop for each
size (docs/crops.md); then those that the project trained with private BatchNorms and MRED on the ten classes of
Imagenette. All of them are shipped. Six photographs lie in examples/photographs, with authors and licences, and were in
no training set; the package foolbox, if it is installed, has 20 of ImageNet, whose labels are in the file names.

    python examples/demo.py --out demo_output
"""
import argparse
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Dict, List, Sequence

import timm
import torch

from rs_timm.analysis import madds
from rs_timm.crops import crop_at
from rs_timm.data import data_config, image_transform, open_image
from rs_timm.labels import class_names
from rs_timm.models import manifest
from rs_timm.runtime import LatencyTable, Session, measure_latency

SHOWN = ('rs_efficientnet_lite0', 'rs_resnet18', 'rs_mobilenetv2', 'rs_resnet50')  # as far as they are shipped
WIDTH = 18  # of a column with class names


@dataclass(frozen=True)
class Photograph:
    path: Path
    label: int


@dataclass(frozen=True)
class Show:
    """A network on its photographs: the predicted class of each at every resolution, multiply-adds and times."""

    title: str
    names: List[str]  # of the classes
    photographs: List[Photograph]
    predictions: Dict[int, List[int]]  # resolution -> class of each photograph
    crops: Dict[int, float]  # resolution -> side of the crop / shorter side of the resized photograph
    madds: Dict[int, int]
    latency: LatencyTable

    def top1(self, resolution: int) -> float:
        right = sum(found == p.label for found, p in zip(self.predictions[resolution], self.photographs))
        return 100. * right / len(self.photographs)

    def milliseconds(self, resolution: int) -> float:
        return self.latency.row(resolution).network.p50_ms

    @property
    def engine(self) -> str:
        versions = ', '.join(f"{name} {version.split('-')[0]}" for name, version in self.latency.versions.items())
        eager = ' (no inference engine is installed: eager)' if self.latency.engine == 'torch' else ''
        return f'{versions}{eager}, CPU, {self.latency.precision}'


def shipped_names() -> List[str]:
    """Name and tag of the project's own weights of each of `SHOWN` that has some."""
    first: Dict[str, str] = {}
    for key in manifest():
        first.setdefault(key.partition('.')[0], key)
    return [first[name] for name in SHOWN if name in first]


def own_photographs(names: Sequence[str]) -> List[Photograph]:
    """Those beside this script, of the classes `names`: french_horn_1.jpg is one of the class French horn."""
    labels = {name.lower(): label for label, name in enumerate(names)}
    paths = sorted((Path(__file__).resolve().parent / 'photographs').glob('*.jpg'))
    classes = {path: path.stem.rpartition('_')[0].replace('_', ' ') for path in paths}
    return [Photograph(path, labels[name]) for path, name in classes.items() if name in labels]


def foolbox_photographs() -> List[Photograph]:
    """Of ImageNet's classes: the name is imagenet_NN_LABEL.jpg. None without the package, which is not imported."""
    spec = find_spec('foolbox')
    if spec is None or not spec.submodule_search_locations:
        print("20 more photographs come with the package foolbox: pip install 'rs_timm[demo]'\n")
        return []
    paths = sorted(Path(spec.submodule_search_locations[0]).glob('data/imagenet_*.jpg'))
    return [Photograph(path, int(path.stem.rsplit('_', 1)[1])) for path in paths]


def names_of(model: torch.nn.Module) -> List[str]:
    name = class_names(model)
    return [name(index).split(',')[0] for index in range(model.num_classes)]


def classify(model: torch.nn.Module, photographs: Sequence[Photograph]) -> Dict[int, List[int]]:
    """Resolution -> top-1 class of each photograph."""
    config = data_config(model)  # has the crop of each size
    transforms = {r: image_transform(config, r) for r in model.resolutions}
    classes: Dict[int, List[int]] = {r: [] for r in model.resolutions}
    for photograph in photographs:
        image = open_image(photograph.path)  # decoded once
        for resolution, transform in transforms.items():
            x = transform(image).unsqueeze(0)  # [1, 3, resolution, resolution]
            with torch.inference_mode():
                classes[resolution].append(int(model(x).argmax()))
    return classes


def look(title: str, model: torch.nn.Module, photographs: List[Photograph]) -> Show:
    """Classify, count and measure; the times are those of the fastest engine that is installed, at batch 1."""
    predictions = classify(model, photographs)
    latency = measure_latency(Session(model), repeats=100, seconds=5.)
    counted = {r: madds(model, r) for r in model.resolutions}
    crops = {r: crop_at(data_config(model)['crop_pct'], r) for r in model.resolutions}
    return Show(title, names_of(model), photographs, predictions, crops, counted, latency)


def print_tables(show: Show) -> None:
    resolutions = list(show.predictions)
    print(f'## {show.title}\n')
    print(f'{"photograph":19} {"label":{WIDTH}}' + ''.join(f'{f"  {r} px":{WIDTH}}' for r in resolutions).rstrip())
    for index, photograph in enumerate(show.photographs):
        found = [show.predictions[r][index] for r in resolutions]
        cells = [('  ' if c == photograph.label else '! ') + show.names[c] for c in found]
        row = [f'{cell[:WIDTH - 1]:{WIDTH}}' for cell in (show.names[photograph.label], *cells)]
        print(f'{photograph.path.stem:19} ' + ''.join(row).rstrip())
    print('(! differs from the label)\n')
    print(f'{"resolution":>10} {"crop":>6} {"top-1 %":>9} {"MAdds (M)":>10} {"ms, batch 1":>12}')
    for r in resolutions:
        cost = f'{show.madds[r] / 1e6:10.1f} {show.milliseconds(r):12.2f}'
        print(f'{r:>10} {show.crops[r]:6g} {show.top1(r):9.1f} {cost}')
    print(f'times: median, {show.engine}\n')


def plot(shows: Sequence[Show], path: Path) -> None:
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, grid = plt.subplots(len(shows), 2, figsize=(10, 4 * len(shows)), layout='constrained', squeeze=False)
    for show, axes in zip(shows, grid):
        cost = [count / 1e6 for count in show.madds.values()]
        panels: Dict[str, Any] = {'top-1 (%)': show.top1, 'median ms, batch 1': show.milliseconds}
        for axis, (label, value) in zip(axes, panels.items()):
            values = [value(r) for r in show.madds]
            axis.plot(cost, values, marker='o')
            for resolution, x, y in zip(show.madds, cost, values):
                axis.annotate(str(resolution), (x, y), textcoords='offset points', xytext=(0, 8), ha='center')
            axis.set(xlabel='multiply-adds (millions)', ylabel=label)
            axis.set_title(f'{show.title}\n{show.engine}', fontsize=6.5)
            axis.margins(0.1, 0.18)
            axis.grid(alpha=0.3)
        axes[0].set_ylim(max(0., axes[0].get_ylim()[0] - 5.), 104.)  # percent
    figure.savefig(path, dpi=120)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', type=Path, default=Path('demo_output'), help='folder for the plot')
    args = parser.parse_args()
    shows = []
    for name in shipped_names():
        model = timm.create_model(name, pretrained=True).eval()
        photographs = own_photographs(names_of(model))
        if model.num_classes == 1000:
            photographs += foolbox_photographs()
        if not photographs:
            print(f'{name}: no photograph here shows one of its classes')
            continue
        title = f'{name}, for all sizes; {len(photographs)} photographs, {model.num_classes} classes'
        shows.append(look(title, model, photographs))
        print_tables(shows[-1])
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / 'resolutions.png'
    plot(shows, path)
    print(f'plot: {path}')


if __name__ == '__main__':
    main()
