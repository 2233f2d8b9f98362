"""The paper's tables were typed without a slip, as far as they repeat or imply each other; and those of others."""
import re
from itertools import combinations

import pytest
import timm

import rs_timm  # noqa: F401
from benchmarks import published
from benchmarks.published import ALPHA, FIGURE_4, KINDS, MADDS, RESOLUTIONS, TABLE_1, TABLE_4, TABLE_6, TABLE_8, TOP1
from rs_timm.analysis import madds

# The gains that Table 2 prints beside its figures, but for three that do not follow from them: I-224 on ResNet18 at 160
# (printed -5.2), on MobileNetV2 at 192 and 160 (printed -0.9 and -3.2).
GAINS = {
    'resnet18': dict(largest=(0, -1.1, -3.8, -9.5, -20.1), parallel=(2.0, 1.9, 1.9, 1.2, -1.1),
                     rs_net=(2.1, 2.4, 2.6, 2.4, 1.5)),
    'resnet50': dict(largest=(0, -0.9, -2.9, -6.7, -15.8), parallel=(1.8, 1.7, 1.6, 1.4, -0.5),
                     rs_net=(2.2, 2.4, 2.6, 2.8, 2.0)),
    'mobilenetv2': dict(largest=(0, -0.8, -3.4, -8.5, -18.7), parallel=(0.7, 0.7, 0.6, 0.5, -1.2),
                        rs_net=(0.9, 1.2, 1.6, 2.0, 1.3)),
}
DROPS = {
    'vanilla': (-0.1, -0.1, -0.3, -0.4, -0.4), 'largest': (-0.8, -1.0, -0.9, -0.6, -0.6),
    'larger': (-0.9, -0.5, -0.6, -0.6, -1.0), 'multi_crop': (-0.0, -0.2, -0.4, -0.7, -1.3),
    'single_resolution': (-1.0, -1.1, -1.5, -1.1, -0.8), 'individual': (-2.1, -2.4, -2.6, -2.4, -1.5),
}


@pytest.mark.parametrize('network', TOP1)
def test_table_2_gives_the_gains_that_it_prints(network):
    for what, gains in GAINS[network].items():
        found = [a - b for a, b in zip(TOP1[network][what], TOP1[network]['individual'])]
        assert found == pytest.approx(gains, abs=0.051), what
    for pairs in published.TABLE_2[network].values():
        assert len(pairs) == len(RESOLUTIONS) and all(50 < top1 + 20 < top5 + 20 <= 120 for top1, top5 in pairs)


def test_tables_5_and_6_give_the_drops_that_they_print():
    for what, drops in DROPS.items():
        column = {**KINDS, **TABLE_6}[what]
        assert [a - b for a, b in zip(column, KINDS['rs_net'])] == pytest.approx(drops, abs=0.051), what


def test_the_tables_repeat_each_other():
    resnet18, mobilenetv2 = TOP1['resnet18'], TOP1['mobilenetv2']
    assert KINDS['rs_net'] == TABLE_6['rs_net'] == resnet18['rs_net']
    assert TABLE_6['individual'] == resnet18['individual']
    for what in ('individual', 'parallel', 'rs_net'):
        assert FIGURE_4[what] == mobilenetv2[what]
    for name, what in (('individual resolutions', 'individual'), ('RS-Net', 'rs_net')):
        assert tuple(top1 for _, top1 in TABLE_4[name]) == mobilenetv2[what]
        assert tuple(cost for cost, _ in TABLE_4[name]) == MADDS['mobilenetv2']
    largest, _, _, fourth, _ = TOP1['resnet50']['rs_net']
    assert (TABLE_8['rs_net'][224], TABLE_8['rs_net'][128]) == (largest, fourth)


@pytest.mark.parametrize('training', TABLE_1)
def test_table_1_agrees_with_the_accuracies_of_table_2(training):
    """What is right at a and wrong at b, minus the reverse, is the difference of the accuracies.

    Up to half a point: roundings explain 0.2, and the paper's last column is off by 0.5 once.
    """
    shares = {a: dict(zip([r for r in RESOLUTIONS if r != a], row)) for a, row in TABLE_1[training].items()}
    accuracy = dict(zip(RESOLUTIONS, TOP1['resnet18'][training]))
    for a in RESOLUTIONS:
        for b in RESOLUTIONS:
            if a != b:
                assert shares[a][b] - shares[b][a] == pytest.approx(accuracy[a] - accuracy[b], abs=0.55), (a, b)


@pytest.mark.parametrize('network', MADDS)
def test_the_papers_multiply_adds_are_ours_within_two_percent(network):
    model = timm.create_model(f'rs_{network}', device='meta')
    for resolution, cost in zip(RESOLUTIONS, MADDS[network]):
        assert madds(model, resolution) / 1e6 == pytest.approx(cost, rel=0.02)


def test_alpha_adds_up_to_one():
    for weights in ALPHA.values():
        assert sum(weights) == pytest.approx(1, abs=0.011) and list(weights) == sorted(weights, reverse=True)


# What others have published

def test_what_others_published_has_its_sources():
    market = published.market()
    points = [point for family in market.values() for point in family]
    assert all(market.values()) and len({(point.network, point.weights, point.at) for point in points}) == len(points)
    assert {source for point in points for source in point.sources} == set(published.SOURCES)
    for key, source in published.SOURCES.items():
        assert key in ('ofa_paper', 'counted') or re.search(r'github.com/\w[^/]*/[^/]+/blob/[0-9a-f]{40}/', source), key


@pytest.mark.parametrize('family', published.FAMILIES)
def test_costs_of_one_network_grow_with_the_area_and_pay(family):
    """One architecture at two sizes, to within what is rounded to 10 M, and normalisation that is counted or not."""
    points = published.market()[family]
    for a, b in combinations(points, 2):
        if a.network == b.network and a.size != b.size or family.startswith('BiT'):
            ratio, slack = (b.size / a.size) ** 2, 0.05 * b.madds + 5
            assert b.madds == pytest.approx(ratio * a.madds, abs=slack + 5 * ratio), (a, b)
        if a.weights == b.weights or family == 'Once-for-All, tuned':
            assert a.madds < b.madds and a.top1 < b.top1, (a, b)


def test_names_of_networks_repeat_their_figures():
    """Sizes and costs in the names that the sources use."""
    market = published.market()
    for point in market['Once-for-All, ResNet50']:
        assert point.madds == 100 * int(point.network[-2:])
    assert [point.madds for point in market['Once-for-All, tuned'] if point.network.endswith('M')] == [
        float(point.network[4:-1]) for point in market['Once-for-All, tuned'] if point.network.endswith('M')]
    assert all(point.network == f'R50x1_{point.size}' for point in market['BiT-R50x1, distilled'])
    for weights in {point.weights for point in market['MobileNetV4']}:
        sizes = [point.size for point in market['MobileNetV4'] if point.weights == weights]
        assert f'_r{sizes[0]}_' in weights and len(sizes) == 2


@pytest.mark.parametrize('family, index, name', [
    ('TinyNet', 0, 'tinynet_e'), ('BiT-R50x1, distilled', 0, 'resnetv2_50x1_bit')])
def test_multiply_adds_of_others_are_those_of_their_networks(family, index, name):
    point = published.market()[family][index]
    found = madds(timm.create_model(name, device='meta'), point.size) / 1e6
    assert found == pytest.approx(point.madds, abs=0.5)
