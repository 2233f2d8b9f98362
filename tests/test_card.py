"""The model card says what was measured, and nothing else."""
import re

import pytest
import timm
import yaml

import rs_timm
from rs_timm.analysis import madds
from rs_timm.card import CardData, model_card

RESOLUTIONS = (64, 48, 32)


@pytest.fixture(scope='module')
def model():
    return timm.create_model('rs_resnet18', resolutions=RESOLUTIONS, num_classes=3)


def front_matter(text: str) -> dict:
    return yaml.safe_load(re.match(r'---\n(.*?)\n---\n', text, re.DOTALL)[1])


def table(text: str) -> dict:
    """First column -> the other cells."""
    lines = [line.strip('|').split('|') for line in text.splitlines() if line.startswith('| ')]
    rows = [[cell.strip() for cell in line] for line in lines]
    return {row[0]: row[1:] for row in rows[1:]}


def test_nothing_is_invented(model):
    text = model_card(model)
    front = front_matter(text)
    assert {'timm', 'image-classification', 'rs_timm', 'resolution-switchable'} <= set(front['tags'])
    assert front['library_name'] == 'timm'
    assert not {'license', 'base_model', 'model-index'} & set(front)
    assert '**Licence:** not stated' in text
    assert '## Training' not in text and 'Accuracy on' not in text
    rows = table(text)
    assert list(rows) == [str(r) for r in RESOLUTIONS]
    assert all(cells[1:] == ['not measured', 'not measured'] for cells in rows.values())


def test_given_facts_are_printed(model):
    data = CardData(
        license='mit',
        description='Ten minutes of training.',
        results={64: {'top1': 71.25, 'top5': 90.0}, 40: {'top1': 60.0}},
        dataset='Imagenette, validation split',
        recipe='SGD, 10 epochs.',
    )
    text = model_card(model, data, base_model='timm/resnet18.a1_in1k')
    assert front_matter(text)['license'] == 'mit' and front_matter(text)['base_model'] == 'timm/resnet18.a1_in1k'
    assert 'Ten minutes of training.' in text and 'SGD, 10 epochs.' in text
    assert 'Accuracy on Imagenette, validation split.' in text
    (index,) = front_matter(text)['model-index']
    (result,) = index['results']
    assert result['task'] == {'type': 'image-classification'}
    assert result['dataset'] == {'name': 'Imagenette, validation split', 'type': 'imagenette'}
    assert [(m['args']['resolution'], m['name'], m['value']) for m in result['metrics']] == [
        (64, 'Top-1 at 64 px', 71.25), (64, 'Top-5 at 64 px', 90.0), (40, 'Top-1 at 40 px', 60.0)]
    rows = table(text)
    assert rows['64'][1:] == ['71.2', '90.0'] and rows['40 (interpolated)'][1:] == ['60.0', 'not measured']
    assert rows['32'][1:] == ['not measured', 'not measured']


def test_madds_are_those_of_the_network(model):
    rows = table(model_card(model))
    for resolution in RESOLUTIONS:
        assert float(rows[str(resolution)][0]) == pytest.approx(madds(model, resolution) / 1e6, abs=0.05)


def test_a_size_that_the_network_cannot_take_is_no_figure():
    model = rs_timm.switchable('vgg11_bn', resolutions=(64, 8))  # five poolings leave nothing of 8 pixels
    rows = table(model_card(model))
    assert float(rows['64'][0]) > 0 and rows['8'][0] == 'not counted'


@pytest.mark.parametrize('value', ['yes', 'no', 'null', '1.0', 'a: b', "it's"])
def test_the_front_matter_stays_yaml_whatever_the_licence(model, value):
    assert front_matter(model_card(model, CardData(license=value)))['license'] == value


@pytest.mark.parametrize('results, dataset, words', [
    ({224: {'top1': 71.0}}, None, 'without a dataset'),
    ({224: {'top1': 0.71, 'top5': 101.0}}, 'ImageNet', 'top5=101.0'),
    ({224: {'top1': -1.0}}, 'ImageNet', 'top1=-1.0'),
    ({224: {'top1': float('nan')}}, 'ImageNet', 'top1=nan'),
    ({224: {'accuracy': 71.0}}, 'ImageNet', 'accuracy=71.0'),
])
def test_bad_results_are_refused(results, dataset, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        CardData(results=results, dataset=dataset)
