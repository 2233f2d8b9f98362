"""The paper's own figures, typed from its tables: ImageNet, in percent, for 224, 192, 160, 128 and 96 pixels.

Nothing here was measured by this project; whatever shows these figures says 'paper' or 'published'. The tables repeat
each other in places, and tests/test_benchmarks_published.py checks that they agree. At the end: what others published.
"""
from collections import defaultdict
from pathlib import Path
from typing import Dict, List, NamedTuple, Optional, Tuple

from benchmarks.store import read

Figures = Tuple[float, ...]  # one for each of RESOLUTIONS

RESOLUTIONS = (224, 192, 160, 128, 96)

# Table 2: network -> what -> (top-1, top-5) at each resolution
TABLE_2: Dict[str, Dict[str, Tuple[Tuple[float, float], ...]]] = {
    'resnet18': {
        'individual': ((71.0, 90.0), (69.8, 89.4), (68.5, 88.2), (66.3, 86.8), (62.6, 84.1)),
        'largest': ((71.0, 90.0), (68.7, 88.5), (64.7, 85.9), (56.8, 80.0), (42.5, 67.9)),
        'parallel': ((73.0, 90.9), (71.7, 90.3), (70.4, 89.6), (67.5, 87.8), (61.5, 83.5)),
        'rs_net': ((73.1, 91.0), (72.2, 90.6), (71.1, 90.1), (68.7, 88.5), (64.1, 85.3)),
    },
    'resnet50': {
        'individual': ((77.1, 93.4), (76.4, 93.2), (75.3, 92.4), (73.5, 91.4), (70.7, 89.8)),
        'largest': ((77.1, 93.4), (75.5, 92.5), (72.4, 90.7), (66.8, 87.0), (54.9, 78.2)),
        'parallel': ((78.9, 94.4), (78.1, 94.0), (76.9, 93.1), (74.9, 92.1), (70.2, 89.4)),
        'rs_net': ((79.3, 94.6), (78.8, 94.4), (77.9, 93.9), (76.3, 93.0), (72.7, 91.0)),
    },
    'mobilenetv2': {
        'individual': ((72.1, 90.5), (71.0, 89.8), (69.5, 88.9), (66.8, 87.0), (62.6, 84.0)),
        'largest': ((72.1, 90.5), (70.2, 89.1), (66.1, 86.3), (58.3, 81.2), (43.9, 69.1)),
        'parallel': ((72.8, 90.9), (71.7, 90.2), (70.1, 89.2), (67.3, 87.2), (61.4, 83.3)),
        'rs_net': ((73.0, 90.8), (72.2, 90.5), (71.1, 90.2), (68.8, 88.2), (63.9, 84.9)),
    },
}
TOP1: Dict[str, Dict[str, Figures]] = {
    network: {what: tuple(top1 for top1, _ in pairs) for what, pairs in columns.items()}
    for network, columns in TABLE_2.items()
}
# Table 2: multiply-adds in millions, as the paper counts them
MADDS: Dict[str, Figures] = {
    'resnet18': (1820, 1340, 931, 596, 335),
    'resnet50': (4140, 3040, 2110, 1350, 760),
    'mobilenetv2': (301, 221, 154, 99, 56),
}

# Table 1, ResNet18: training -> {right at: share of the pictures that are wrong at each of the other resolutions}
TABLE_1: Dict[str, Dict[int, Tuple[float, float, float, float]]] = {
    'individual': {
        224: (6.9, 8.1, 9.8, 13.2), 192: (5.7, 7.2, 8.9, 12.5), 160: (5.5, 6.0, 8.1, 11.4), 128: (5.3, 5.5, 5.9, 9.7),
        96: (4.7, 5.2, 5.4, 5.8),
    },
    'parallel': {
        224: (4.1, 6.0, 9.3, 15.2), 192: (3.0, 4.7, 8.2, 14.2), 160: (3.4, 3.3, 6.6, 12.7), 128: (3.8, 3.7, 3.5, 9.8),
        96: (3.9, 3.8, 3.6, 3.5),
    },
    'rs_net': {
        224: (3.4, 5.1, 7.3, 12.2), 192: (2.5, 3.9, 6.4, 11.4), 160: (2.9, 2.8, 5.0, 10.2), 128: (3.4, 3.3, 2.9, 7.9),
        96: (3.6, 3.4, 3.2, 3.1),
    },
}

# Table 3: network -> bits of weights/activations -> what -> top-1
TABLE_3: Dict[str, Dict[str, Dict[str, Figures]]] = {
    'resnet18': {
        '2/32': {'individual': (68.0, 66.4, 64.5, 61.5, 56.3), 'rs_net': (68.8, 67.6, 66.0, 63.1, 56.6)},
        '2/2': {'individual': (64.9, 63.1, 61.1, 58.1, 52.3), 'rs_net': (65.8, 64.8, 62.9, 59.3, 52.5)},
    },
    'resnet50': {
        '2/32': {'individual': (74.6, 73.5, 71.9, 69.6, 65.5), 'rs_net': (76.0, 75.1, 73.8, 71.7, 67.3)},
        '2/2': {'individual': (72.2, 70.9, 69.0, 66.6, 61.7), 'rs_net': (74.0, 73.1, 71.4, 68.9, 63.4)},
    },
}

# Table 4, MobileNetV2: method -> ((millions of multiply-adds, top-1), ...); the switchable ones adjust the width
TABLE_4: Dict[str, Tuple[Tuple[float, float], ...]] = {
    'individual widths': ((301, 72.1), (222, 69.8), (161, 68.0), (97, 64.6), (59, 60.1)),
    'S-MobileNetV2': ((301, 70.5), (97, 64.4), (59, 59.7)),
    'US-MobileNetV2': ((301, 71.5), (222, 70.0), (161, 68.3), (97, 65.0), (59, 62.2)),
    'individual resolutions': ((301, 72.1), (221, 71.0), (154, 69.5), (99, 66.8), (56, 62.6)),
    'RS-Net': ((301, 73.0), (221, 72.2), (154, 71.1), (99, 68.8), (56, 63.9)),
}

# Figure 4, left, MobileNetV2: the labels of the points
FIGURE_4: Dict[str, Figures] = {
    'individual': (72.1, 71.0, 69.5, 66.8, 62.6),
    'shared_bn': (71.1, 70.9, 70.2, 67.0, 59.1),
    'parallel': (72.8, 71.7, 70.1, 67.3, 61.4),
    'rs_net': (73.0, 72.2, 71.1, 68.8, 63.9),
}

# Table 5, ResNet18: kind of distillation -> top-1
KINDS: Dict[str, Figures] = {
    'rs_net': (73.1, 72.2, 71.1, 68.7, 64.1),
    'vanilla': (73.0, 72.1, 70.8, 68.3, 63.7),
    'largest': (72.3, 71.2, 70.2, 68.1, 63.5),
    'larger': (72.2, 71.7, 70.5, 68.1, 63.1),
}

# Table 6, ResNet18
TABLE_6: Dict[str, Figures] = {
    'rs_net': (73.1, 72.2, 71.1, 68.7, 64.1),
    'multi_crop': (73.1, 72.0, 70.7, 68.0, 62.8),
    'single_resolution': (72.1, 71.1, 69.6, 67.6, 63.3),
    'individual': (71.0, 69.8, 68.5, 66.3, 62.6),  # one crop at one resolution
}

# Table 8, ResNet50: top-1 at 64, 128, 224, 288, 352, 384, 448 pixels
TABLE_8: Dict[str, Dict[int, float]] = {
    'FixRes': {64: 41.7, 128: 67.7, 224: 77.1, 288: 78.5, 352: 78.9, 384: 79.0, 448: 78.4},
    'rs_net': {64: 61.1, 128: 76.3, 224: 79.3, 288: 79.2, 352: 78.1, 384: 77.4, 448: 75.8},
}
TABLE_8_MADDS: Dict[int, float] = {
    64: 338, 128: 1350, 224: 4140, 288: 6840, 352: 10220, 384: 12170, 448: 16560}

# Table 7, RefineNet with ResNet101 on NYUDv2 at 352, 224, 96 pixels: pixel accuracy, mean accuracy, mean IoU
TABLE_7: Dict[str, Dict[int, Tuple[float, float, float]]] = {
    'individual': {352: (72.3, 56.7, 43.9), 224: (69.6, 52.2, 40.5), 96: (50.4, 26.5, 18.1)},
    'rs_net': {352: (72.3, 57.0, 44.1), 224: (71.4, 54.6, 42.6), 96: (63.0, 43.1, 32.1)},
}
# Table 7: millions of parameters of all networks that are needed
TABLE_7_PARAMETERS: Dict[str, float] = {'individual': 354.60, 'rs_net': 118.31}

# Section 4.3, ResNet18: parallel training with 224 and 96 pixels alone
PAIR: Dict[int, float] = {224: 72.6, 96: 61.8}

# Appendix A: the weights of the ensemble at the end, from 224 to 96 pixels
ALPHA: Dict[str, Figures] = {
    'resnet18': (0.37, 0.29, 0.20, 0.12, 0.02),
    'resnet50': (0.32, 0.30, 0.23, 0.13, 0.02),
    'mobilenetv2': (0.41, 0.30, 0.19, 0.09, 0.01),
}


# What others have published: top-1 on ImageNet against multiply-adds, from their own tables and files

class Point(NamedTuple):
    """A network at one cost, as others published it.

    Attributes:
        network: its name in the source, or the setting of one that switches.
        weights: the set of weights; points that share it need one network alone.
        size: pixels; None: the source does not say.
        madds: millions of multiply-adds of a picture.
        top1: percent of the pictures of ImageNet's validation set.
        sources: keys of `SOURCES`: of top1, and of madds.
    """

    network: str
    weights: str
    size: Optional[int]
    madds: float
    top1: float
    sources: Tuple[str, str]

    @property
    def at(self) -> Tuple[float, float]:
        """Where the point stands in a picture."""
        return self.madds, self.top1


class Family(NamedTuple):
    """Points that are drawn as one curve.

    Attributes:
        switches: one set of weights is run at several costs, by what its authors made for that; else every cost has a
            network of its own (which may be tested at a second size).
        about: what has to be known to compare.
    """

    switches: bool
    about: str


FAMILIES: Dict[str, Family] = {
    'MutualNet, MobileNetV2': Family(True, 'width and resolution switch together'),
    'Once-for-All, one network': Family(
        True, 'sub-networks of a MobileNetV3, searched, not tuned; each needs BatchNorm statistics of its own; one in '
        'the paper, another in the tutorial'),
    'ThinkingViT': Family(
        True, '3, then 6 heads of DeiT, 800 epochs; the cost is a mean over the pictures: what is uncertain after the '
        'first pass takes the second as well'),
    'TinyNet': Family(False, ''),
    'MobileNetV4': Family(False, 'convolutional, ImageNet-1k alone; each at the size of its training and a larger one'),
    'Once-for-All, tuned': Family(
        False, 'searched for phones, graphics cards or a number of multiply-adds, then trained on for 25 or 75 epochs; '
        'those of its table that no other of it beats at as few'),
    'Once-for-All, ResNet50': Family(False, 'ResNet50D of searched depths and widths'),
    'CPUBone': Family(False, ''),
    'BiT-R50x1, distilled': Family(
        False, 'ResNet50 (version 2, group normalisation), taught by BiT-M R152x2 ("a good teacher is patient")'),
}


def _file(repository: str, commit: str, path: str) -> str:
    return f'[{repository.split("/")[1]}: {path}](https://github.com/{repository}/blob/{commit}/{path})'


_TIMM = 'huggingface/pytorch-image-models', 'aa4b5850c1543fa488abf260f18390eda46cf85d'
_OFA = 'mit-han-lab/once-for-all', 'f03b2673db313b9167e2a1c2b7a5cad540cc1313'

SOURCES: Dict[str, str] = {
    'timm_accuracy': _file(*_TIMM, 'results/results-imagenet.csv'),
    'timm_cost': _file(*_TIMM, 'results/benchmark-infer-amp-nchw-pt291-cu128-4090.csv'),
    'tinynet': _file('huawei-noah/Efficient-AI-Backbones', 'f90e129b645c3b1684fe07cd361cd557d0ad71f7',
                     'tinynet_pytorch/readme.md'),
    'bit': _file('google-research/big_vision', '0127fb6b337ee2a27bf4e54dea79cff176527356',
                 'big_vision/configs/proj/distill/README.md'),
    # sizes: run.config of each in github.com/han-cai/files, a7c9bcd525e17404968bc55aa43772bf7e51909e
    'ofa': _file(*_OFA, 'README.md'),
    'ofa_tutorial': _file(*_OFA, 'tutorial/ofa.ipynb'),
    'ofa_paper': 'Cai, Gan, Wang, Zhang, Han: Once-for-All (ICLR 2020), Table 1, "OFA w/ PS"',
    'mutualnet': _file('taoyang1122/MutualNet', '8588194efe6c8dc59c682fa8087354773518b958', 'README.md'),
    'thinkingvit': _file('ds-kiel/ThinkingViT', '9254c4950d3159937ad682592d58a2be69708c42', 'README.md'),
    'cpubone': _file('altair199797/CPUBone', 'ceabbf5b7b7e740fb02ae33be1bbe7b21679d3f7', 'README.md'),
    'counted': 'counted by `rs_timm.analysis.madds`',
}


def market() -> Dict[str, List[Point]]:
    """Family -> its points, from the lowest to the highest cost."""
    found = defaultdict(list)
    for row in read(Path(__file__).with_name('published_market.csv')):
        found[row['family']].append(Point(
            row['network'], row['weights'], int(row['size']) if row['size'] else None, float(row['madds']),
            float(row['top1']), (row['top1_from'], row['madds_from'])))
    return {family: sorted(found[family], key=lambda point: point.madds) for family in FAMILIES}
