"""The paper's RS-Nets beside what others have published: a panel of Figure 1, and the tables below it."""
from functools import cache
from itertools import groupby
from typing import Any, Callable, Dict, Iterable, List, NamedTuple, Optional, Tuple

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patheffects import withStroke

from benchmarks import published
from benchmarks.paper.samples import signed
from benchmarks.published import FAMILIES, MADDS, RESOLUTIONS, SOURCES, TABLE_4, TOP1, Family, Point
from benchmarks.store import markdown

NAMES = dict(resnet50='ResNet50', mobilenetv2='MobileNetV2', resnet18='ResNet18')
# Costs that are closer than this are equal, for counters differ: timm's is up to 4 % above one of convolutions and
# linear layers (normalisation), the paper's within 2 % of it.
TIE = 1.05
_ONE = 'Once-for-All, one network'


@cache
def families() -> Dict[str, Tuple[Family, List[Point]]]:
    """Name -> what it is, and its points; the slimmable networks are those of the paper's Table 4."""
    found = {name: (FAMILIES[name], points) for name, points in published.market().items()}
    for name in ('S-MobileNetV2', 'US-MobileNetV2'):
        points = [Point(name, name, None, madds, top1, ('paper', 'paper')) for madds, top1 in TABLE_4[name]]
        found[name] = Family(True, ''), points[::-1]
    return found


def best(madds: float, switches: bool) -> Optional[Tuple[str, Point]]:
    """The most accurate published point of at most `TIE * madds` million multiply-adds, with its family."""
    found = [(name, point) for name, (family, points) in families().items() if family.switches == switches
             for point in points if point.madds <= TIE * madds]
    return max(found, key=lambda pair: pair[1].top1, default=None)


class Lead(NamedTuple):
    """An RS-Net of the paper at one size, and how far it is ahead of the best of others."""

    network: str
    size: int
    madds: float
    top1: float
    switching: Optional[Tuple[str, Point]]
    single: Optional[Tuple[str, Point]]


def leads() -> List[Lead]:
    """Every RS-Net of the paper's Table 2 at every size."""
    return [Lead(network, size, madds, top1, best(madds, True), best(madds, False))
            for network in NAMES
            for size, madds, top1 in zip(RESOLUTIONS, MADDS[network], TOP1[network]['rs_net'])]


def gaps(name: str, network: str) -> Dict[int, float]:
    """Size -> how far an RS-Net is ahead of a family at its own cost, on the straight lines between the points of it.

    Sizes whose costs lie outside the family's are left out.
    """
    costs, accuracies = zip(*(point.at for point in families()[name][1]))
    return {size: top1 - float(np.interp(madds, costs, accuracies))
            for size, madds, top1 in zip(RESOLUTIONS, MADDS[network], TOP1[network]['rs_net'])
            if min(costs) / TIE <= madds <= max(costs) * TIE}


# What it comes to, in words and tables

def _span(values: Iterable[float], text: Callable[[float], str] = signed) -> str:
    """The lowest and the highest of some differences."""
    order = sorted(values)
    return ' to '.join(dict.fromkeys(map(text, (order[0], order[-1]))))


def _behind() -> str:
    """How far the best single networks are ahead of each RS-Net, over its sizes."""
    found = {network: _span((lead.single[1].top1 - lead.top1 for lead in leads()
                             if lead.network == network and lead.single), '{:.1f}'.format) for network in NAMES}
    return ', '.join(f'of {NAMES[network]} by {span} points' for network, span in found.items())


def _ahead(name: str) -> str:
    """How far the RS-Net of MobileNetV2 is ahead of another MobileNetV2 that switches."""
    return _span(gaps(name, 'mobilenetv2').values())


def in_short(*_: object) -> str:
    """One sentence for those who read no further."""
    return ('The lowest panel, published and not measured here: an RS-Net of the paper leads other MobileNetV2 that '
            f"switch, or is level (universally slimmable by {_ahead('US-MobileNetV2')} points of ImageNet top-1, "
            f"MutualNet by {_ahead('MutualNet, MobileNetV2')}); single networks of others, made for one cost, are "
            f'ahead with as many multiply-adds, {_behind()} ([where RS-Nets lead, and where not]'
            '(docs/paper.md#others-at-equal-cost)).')


def summary() -> str:
    """Where the paper's RS-Nets lead, and where they do not; then the tables behind it."""
    bit = {point.size: point.top1 for point in families()['BiT-R50x1, distilled'][1]}
    patient = {size: top1 - bit[size] for size, top1 in zip(RESOLUTIONS, TOP1['resnet50']['rs_net']) if size in bit}
    searched = _span(gaps('Once-for-All, ResNet50', 'resnet50').values())
    return '\n'.join([
        '* **One network for several costs, of one architecture: the RS-Net leads, or is level.** On MobileNetV2 it is '
        f"ahead of slimmable networks by {_ahead('S-MobileNetV2')} points, of universally slimmable ones by "
        f"{_ahead('US-MobileNetV2')}, and of MutualNet, which switches width and resolution, by "
        f"{_by_size(gaps('MutualNet, MobileNetV2', 'mobilenetv2'))}.",
        '* **One network for several costs, of any architecture: it depends.** ResNet50 against ThinkingViT, which '
        f"spends more on difficult pictures: {_by_size(gaps('ThinkingViT', 'resnet50'))}. MobileNetV2 against one "
        f"Once-for-All network, whose architecture was searched: {_by_size(_supernet('mobilenetv2'))}; below "
        f'{families()[_ONE][1][0].madds:.0f} M that has no point.',
        '* **Networks for one cost: the RS-Net is behind at every size.** With as many multiply-adds the best of '
        f'others are ahead {_behind()}. ResNet50 against its like: {searched} with searched depths and '
        f'widths; {_by_size(patient)} with patient distillation. Those take a network for each cost, and recipes '
        'differ: the paper trains for 120 to 150 epochs, with no teacher from outside; these MobileNetV4 had 500 to '
        '3600 epochs, BiT a large teacher, and the architectures of Once-for-All were searched.',
    ]) + '\n\n' + _lead_table() + '\n\n' + _family_table()


def _supernet(network: str) -> Dict[int, float]:
    """Size -> how far an RS-Net is ahead where one Once-for-All network is the best of what switches."""
    return {lead.size: lead.top1 - lead.switching[1].top1 for lead in leads()
            if lead.network == network and lead.switching and lead.switching[0] == _ONE}


def _by_size(found: Dict[int, float]) -> str:
    return ', '.join(f'{signed(gap)} at {size} px' for size, gap in found.items())


def _lead_table() -> str:
    def cell(top1: float, found: Optional[Tuple[str, Point]]) -> str:
        if found is None:
            return 'none so small'
        name, point = found
        return f'{name}, {point.madds:.0f} M: {point.top1:.1f} ({signed(top1 - point.top1)})'

    rows = [[f'{NAMES[lead.network]}, {lead.size} px', f'{lead.madds:.0f}', f'{lead.top1:.1f}',
             cell(lead.top1, lead.switching), cell(lead.top1, lead.single)] for lead in leads()]
    return ('**Published**, not measured here: top-1 in percent on ImageNet of the RS-Nets of the paper, and '
            f'of the best of others with at most as many multiply-adds (up to {100 * (TIE - 1):.0f} % more count as '
            'equal: counters differ); in brackets how far the RS-Net is ahead.\n\n'
            + markdown(['RS-Net', 'MAdds, M', 'top-1', 'best of what switches', 'best single network'], rows))


def _family_table() -> str:
    rows = []
    for name, (family, points) in families().items():
        sources = dict.fromkeys(source for point in points for source in point.sources)
        costs, top1 = zip(*(point.at for point in points))
        rows.append([
            name, f'{len({point.weights for point in points})} for {len(points)}',
            f'{min(costs):.0f} to {max(costs):.0f}', f'{min(top1):.1f} to {max(top1):.1f}', family.about,
            '; '.join(SOURCES.get(source, "the paper's Table 4") for source in sources)])
    return ('Every point with its input size stands in `benchmarks/published_market.csv`. Sets of weights: how many it '
            'takes for how many points.\n\n'
            + markdown(['published', 'sets of weights', 'MAdds, M', 'top-1', 'about', 'source'], rows))


# The panel

class _Look(NamedTuple):
    colour: str
    marker: str
    at: int  # index of the point that bears the label
    shift: Tuple[float, float]
    align: str = 'left'


_LOOKS = {
    'MutualNet, MobileNetV2': _Look('#2ca02c', 'P', 8, (4, -12)),
    'Once-for-All, one network': _Look('#0050d0', 'o', 3, (12, -10)),
    'ThinkingViT': _Look('#7b3294', 'v', -1, (4, -12), 'right'),
    'TinyNet': _Look('#b05000', '^', 0, (8, 0)),
    'MobileNetV4': _Look('#555555', 's', -1, (8, 0)),
    'Once-for-All, tuned': _Look('#0050d0', 'o', 5, (-10, 6), 'right'),
    'Once-for-All, ResNet50': _Look('#008b8b', 'D', 0, (0, -12), 'center'),
    'CPUBone': _Look('#8c564b', 'h', 5, (-4, 9), 'right'),
    'BiT-R50x1, distilled': _Look('black', '*', 1, (0, 13), 'center'),
}
_OURS = '#d62728'
_RS_NETS = {'resnet50': _Look(_OURS, 'o', 0, (12, -24), 'right'), 'mobilenetv2': _Look(_OURS, 'o', -1, (6, -9)),
            'resnet18': _Look(_OURS, 'o', -1, (9, -5))}


def draw(axes: Axes, ground: str) -> None:
    """Top-1 against multiply-adds: RS-Nets of the paper, and others; filled markers: one set of weights.

    Args:
        axes: where; labels stand at the curves.
        ground: colour of the background, which parts labels from lines.
    """
    def label(words: str, at: Tuple[float, float], look: _Look, **style: Any) -> None:
        axes.annotate(words, at, look.shift, textcoords='offset points', color=look.colour, ha=look.align, va='center',
                      path_effects=[withStroke(linewidth=2.5, foreground=ground)], zorder=4, **style)

    for network, look in _RS_NETS.items():
        points = list(zip(MADDS[network], TOP1[network]['rs_net']))
        axes.plot(*zip(*points), 'o-', color=look.colour, markersize=6, linewidth=2.4, zorder=3)
        label(f'RS-Net {NAMES[network]}', points[look.at], look, fontsize=9, fontweight='bold')
    for name, look in _LOOKS.items():
        family, own = families()[name]
        if not family.switches:
            axes.plot(*zip(*(point.at for point in own)), ':', color=look.colour, linewidth=1)
        for _, same in groupby(own, key=lambda point: point.weights):
            axes.plot(*zip(*(point.at for point in same)), f'{look.marker}-', color=look.colour, markersize=5,
                      linewidth=1.2, markerfacecolor=look.colour if family.switches else 'white')
        label(name, own[look.at].at, look, fontsize=8)
    axes.plot([], [], 'o-', color=_OURS, linewidth=2.4, label='RS-Net of the paper: one network, five sizes')
    axes.plot([], [], 'o-', color='gray', label='filled: one network for every cost on its line')
    axes.plot([], [], 'o:', color='gray', markerfacecolor='white',
              label='hollow: one network for each cost (solid line: the same one at two sizes)')
    axes.legend(fontsize=8, loc='lower right')
    axes.set(xlim=(20, 7500), ylim=(58, 85.5))
