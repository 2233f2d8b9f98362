"""The demo's tables agree with the network, and every photograph has a class and a licence."""
import importlib.util
import sys
from pathlib import Path

import pytest
import timm
import torch
from timm.data import ImageNetInfo, resolve_model_data_config

import rs_timm
from rs_timm.analysis import madds
from rs_timm.crops import set_crops
from rs_timm.data import image_transform, open_image

EXAMPLES = Path(__file__).resolve().parent.parent / 'examples'
IMAGENETTE = ['tench', 'English springer', 'cassette player', 'chain saw', 'church', 'French horn', 'garbage truck',
              'gas pump', 'golf ball', 'parachute']

IMAGENETTE_SYNSETS = ['n01440764', 'n02102040', 'n02979186', 'n03000684', 'n03028079', 'n03394916', 'n03417042',
                      'n03425413', 'n03445777', 'n03888257']


@pytest.fixture(scope='module')
def demo():
    spec = importlib.util.spec_from_file_location('demo', EXAMPLES / 'demo.py')
    module = sys.modules['demo'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules['demo']


def test_every_photograph_is_of_one_of_the_classes_and_has_a_licence(demo):
    photographs = demo.own_photographs(IMAGENETTE)
    files = sorted(path.name for path in (EXAMPLES / 'photographs').glob('*.jpg'))
    assert files and [photograph.path.name for photograph in photographs] == files
    readme = (EXAMPLES / 'photographs/README.md').read_text(encoding='utf-8')
    for photograph in photographs:
        rows = [row for row in readme.splitlines() if row.startswith(f'| `{photograph.path.name}` |')]
        assert len(rows) == 1 and f'| {IMAGENETTE[photograph.label]} |' in rows[0]
    assert demo.own_photographs(['tench', 'golf ball'])[0].label == 1 and not demo.own_photographs(['tench'])


def test_shipped_networks_are_those_of_the_manifest(demo, monkeypatch):
    assert demo.shipped_names()[0].startswith('rs_efficientnet_lite0.')  # 1000 classes lead
    keys = ['rs_resnet50.mred_imagenette', 'rs_resnet18.other', 'rs_resnet18_refinenet.camvid']
    monkeypatch.setattr(demo, 'manifest', lambda: dict.fromkeys(keys))
    assert demo.shipped_names() == ['rs_resnet18.other', 'rs_resnet50.mred_imagenette']  # in the order of SHOWN


def test_the_photographs_are_of_classes_of_imagenet_too(demo):
    """The names beside this script are the first ones of ImageNet's, and so lead to its outputs."""
    model = timm.create_model('rs_efficientnet_lite0', pretrained=True)
    names = demo.names_of(model)
    photographs = demo.own_photographs(names)
    assert [p.path for p in photographs] == [p.path for p in demo.own_photographs(IMAGENETTE)]
    synsets = [ImageNetInfo().label_names()[p.label] for p in photographs]
    assert synsets == [IMAGENETTE_SYNSETS[p.label] for p in demo.own_photographs(IMAGENETTE)]


def test_without_foolbox_its_photographs_are_left_out(demo, monkeypatch, capsys):
    monkeypatch.setattr(demo, 'find_spec', lambda name: None)
    assert demo.foolbox_photographs() == [] and "pip install 'rs_timm[demo]'" in capsys.readouterr().out


def test_what_is_shown_is_what_the_network_says(demo, capsys, tmp_path):
    torch.manual_seed(0)
    model = rs_timm.switchable('test_resnet', (64, 48), num_classes=10).eval()
    model.pretrained_cfg.update(label_names=IMAGENETTE)
    set_crops(model, {64: 0.9, 48: 0.6})
    photographs = demo.own_photographs(IMAGENETTE)
    show = demo.look('a network', model, photographs)
    assert show.crops == {64: 0.9, 48: 0.6}
    with torch.inference_mode():
        for r in (64, 48):
            transform = image_transform(dict(resolve_model_data_config(model), crop_pct=show.crops[r]), r)
            classes = [int(model(transform(open_image(p.path))[None]).argmax()) for p in photographs]
            assert show.predictions[r] == classes and show.madds[r] == madds(model, r)
            right = [c == p.label for c, p in zip(classes, photographs)]
            assert show.top1(r) == 100 * sum(right) / len(right)
    demo.print_tables(show)
    demo.plot([show, show], tmp_path / 'plot.png')
    stems = tuple(p.path.stem for p in photographs)
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith(stems)]
    assert [row.count('! ') for row in rows] == [
        sum(show.predictions[r][i] != p.label for r in (64, 48)) for i, p in enumerate(photographs)]
    assert (tmp_path / 'plot.png').stat().st_size > 1000
