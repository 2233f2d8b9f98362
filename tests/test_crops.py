"""A crop for each size: the same pixels in every path that prepares pictures, kept by saving and export."""
import csv
import json
import math
import sys

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from training_run import make_pictures

import rs_timm
from rs_timm import run
from rs_timm.card import model_card
from rs_timm.cli import main
from rs_timm.crops import check_crop_pct, crop_at, crop_rule, crops_of, set_crops
from rs_timm.data import data_config, image_transform
from rs_timm.data.views import EvalViews
from rs_timm.format.graph import info_of
from rs_timm.format.info import ModelInfo
from rs_timm.loading import load_model
from rs_timm.runtime import Session, choose_crops, extract_onnx, read_info, read_model

CROPS = {64: 0.9, 48: 0.6}


def model_with_crops():
    model = rs_timm.switchable('test_resnet', (64, 48), num_classes=10).eval()
    set_crops(model, CROPS)
    return model


def photograph():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8))


@pytest.mark.parametrize('crop_pct, resolution, expected', [
    (0.8, 96, 0.8), (CROPS, 64, 0.9), (CROPS, 48, 0.6), (CROPS, 56, 0.75), (CROPS, 224, 0.9), (CROPS, 32, 0.6)])
def test_a_size_without_a_crop_gets_the_interpolated_or_the_nearest(crop_pct, resolution, expected):
    assert crop_at(crop_pct, resolution) == pytest.approx(expected)


def test_the_rule_is_the_square_root():
    assert crop_rule((96, 224), 0.8) == {224: 0.8, 96: pytest.approx(0.8 * math.sqrt(96 / 224))}
    assert crop_rule((288, 96), 0.9, native=192)[288] == 1  # no more than the picture has


@pytest.mark.parametrize('bad, says', [
    (0., 'crop_pct is 0.0: a crop is above 0'), (1.1, 'crop_pct is 1.1'), (math.nan, 'crop_pct is nan'),
    ({64: -1}, 'crop_pct of 64 px is -1'), ({}, 'has no size'), ({64: True}, 'crop_pct of 64 px is True'),
    ({'64': 0.5}, "for size '64': sizes are pixels"), ({0: 0.5}, 'for size 0'), ({32: 0.5}, 'it has 64, 48')])
def test_what_is_no_crop_is_refused(bad, says):
    with pytest.raises(ValueError, match=says):
        check_crop_pct(bad, (64, 48))


@pytest.mark.parametrize('size', [64, 56, 48])
def test_every_path_cuts_the_same_pixels(size):
    model, image = model_with_crops(), photograph()
    config = timm.data.resolve_model_data_config(model)
    expected = timm.data.create_transform(**dict(
        config, input_size=(3, size, size), crop_pct=crop_at(CROPS, size)))(image)
    assert torch.equal(image_transform(data_config(model), size)(image), expected)
    session = Session(model, 'torch', draft=False)
    np.testing.assert_allclose(session.preprocess(image, size)[0], expected.numpy(), atol=1e-6)
    view = EvalViews((size,), CROPS, config['interpolation'])(image).images[size]
    mean, std = (np.array(config[key], np.float32) for key in ('mean', 'std'))
    np.testing.assert_allclose((view / np.float32(255) - mean) / std, expected.permute(1, 2, 0).numpy(), atol=1e-5)


def test_a_sessions_own_crop_goes_before_the_models():
    model = model_with_crops()
    assert Session(model, 'torch', crop_pct=0.7).preprocessing.crop_pct == 0.7
    assert Session(model, 'torch', crop_pct={48: 0.5}).preprocessing.crop_pct == {48: 0.5}
    with pytest.raises(ValueError, match='crop_pct is 1.5'):
        Session(model, 'torch', crop_pct=1.5)


def test_scripts_of_timm_get_the_crop_of_their_size(tmp_path, monkeypatch):
    script = tmp_path / 'validate.py'
    script.write_text("""
import sys
import rs_timm
from rs_timm import run
from rs_timm.card import model_card
from rs_timm.cli import main
from rs_timm.crops import set_crops
from timm.data import resolve_data_config
model = rs_timm.switchable('test_resnet', (64, 48))
set_crops(model, {64: 0.9, 48: 0.6})
for args in ({'img_size': 48}, {'img_size': 56, 'crop_pct': None}, {'img_size': 48, 'crop_pct': 0.8}):
    sys.argv.append(resolve_data_config(args, model=model)['crop_pct'])
""")
    before = timm.data.resolve_data_config
    monkeypatch.setattr(sys, 'argv', sys.argv)
    run.main([str(script)])
    assert sys.argv[1:] == [0.6, pytest.approx(0.75), 0.8] and timm.data.resolve_data_config is before


def test_the_card_says_them_and_its_code_follows_them():
    text = model_card(model_with_crops())
    assert '- **Crops:** 0.9 at 64 px, 0.6 at 48 px' in text and 'rs_timm.data.data_config(model)' in text


def test_saving_export_and_extraction_keep_them(tmp_path):
    model = model_with_crops()
    folder = rs_timm.save_pretrained(model, tmp_path / 'saved')
    config = json.loads((folder / 'config.json').read_text())
    assert config['pretrained_cfg']['crop_pct'] == 0.9 and config['rs_timm']['crops'] == {'64': 0.9, '48': 0.6}
    again = timm.create_model(f'local-dir:{folder}', pretrained=True)
    assert crops_of(again) == CROPS
    assert rs_timm.extract(again, 56).pretrained_cfg['crop_pct'] == pytest.approx(0.75)
    file = rs_timm.export_onnx(again, tmp_path / 'model.onnx')
    assert read_info(file).crops == CROPS and Session(file).preprocessing.crop_pct == CROPS
    assert info_of(extract_onnx(read_model(file), 48)).crop_pct == 0.6


def test_weights_by_their_file_keep_them(tmp_path, recwarn):
    folder = rs_timm.save_pretrained(model_with_crops(), tmp_path / 'saved')
    file = str(folder / 'model.safetensors')
    assert crops_of(load_model('switchable:test_resnet', checkpoint=file)) == CROPS
    between = load_model('switchable:test_resnet', checkpoint=file, resolutions=(64, 56))
    assert crops_of(between) == {64: 0.9, 56: pytest.approx(0.75)}
    given = load_model('switchable:test_resnet', checkpoint=file, preprocessing=dict(crop_pct=0.9))
    assert crops_of(given) is None and data_config(given)['crop_pct'] == 0.9
    shipped = timm.models.get_pretrained_cfg('rs_efficientnet_lite0').file
    crops = crops_of(load_model('rs_efficientnet_lite0', checkpoint=str(shipped)))
    assert crops == crops_of(timm.create_model('rs_efficientnet_lite0', pretrained=True)) and crops[96] < crops[224]


def test_commands_take_one_crop_in_place_of_the_models(tmp_path, capsys):
    """eval and analyze: what they say, and each picture's confidence, is that of a session with this crop."""
    folder = rs_timm.save_pretrained(model_with_crops(), tmp_path / 'saved')
    data = make_pictures(tmp_path / 'data', train_each=1, val_each=2)
    (tmp_path / 'classes.txt').write_text('\n'.join(['class0', 'class1', *'abcdefgh']))
    usual = [str(folder), '--data', str(data), '--class-map', str(tmp_path / 'classes.txt'), '--workers', '0']
    for option, crops in ([], CROPS), (['--crop-pct', '0.5'], {64: 0.5, 48: 0.5}):
        assert main(['eval', *usual, '--csv', str(tmp_path / 'eval.csv'), *option]) == 0
        rows = list(csv.DictReader((tmp_path / 'eval.csv').open()))
        assert {int(row['img_size']): float(row['crop_pct']) for row in rows} == crops
        assert f"crop {'0.5' if option else '0.9 at 64 px, 0.6 at 48 px'} (center)" in capsys.readouterr().out
    table = tmp_path / 'pictures.csv'
    assert main(['analyze', *usual, '--out', str(tmp_path / 'page.html'), '--csv', str(table), *option]) == 0
    session = Session(timm.create_model(f'local-dir:{folder}', pretrained=True), 'torch', crop_pct=0.5, draft=False)
    for row in csv.DictReader(table.open()):
        for size in CROPS:
            logits = session(data / 'val' / row['picture'], size)
            assert float(row[f'confidence_{size}']) == pytest.approx(softmax(logits).max(), abs=1e-3)
    assert main(['eval', *usual, '--crop-pct', '7']) == 2 and 'crop_pct is 7.0' in capsys.readouterr().err


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum()


def test_a_file_of_before_has_one_crop_for_all_sizes():
    text = ModelInfo('rs_resnet18', (64, 48), crop_pct=0.8).to_json()
    old = {key: value for key, value in json.loads(text).items() if key != 'crops'}
    assert ModelInfo.from_json(json.dumps(old)).crops is None
    with pytest.raises(ValueError, match='crop_pct of 48 px is 7'):
        ModelInfo.from_json(json.dumps(dict(old, crops={'64': 0.9, '48': 7.})))


def test_a_crop_that_the_user_gives_holds_for_all_sizes():
    model = timm.create_model('rs_efficientnet_lite0', pretrained=True, pretrained_cfg_overlay=dict(crop_pct=1.))
    assert crops_of(model) is None and data_config(model)['crop_pct'] == 1.
    info = ModelInfo('rs_resnet18', (64, 48), crops=CROPS)
    assert info.replace(crop_pct=1.).crops is None and info.replace(license='mit').crops == CROPS


def test_crops_are_chosen_from_the_top_of_the_package():
    assert rs_timm.choose_crops is choose_crops and 'choose_crops' in rs_timm.__all__


def test_the_crop_with_most_agreement_is_chosen(monkeypatch):
    """A stand-in that answers as at its own size exactly where 48 px pictures are cropped to 0.6."""
    model = model_with_crops()
    session = Session(model, 'torch')
    shown = {}

    class Recorded(type(session.preprocessing)):
        def __call__(self, images, resolution):
            shown['crop'] = crop_at(self.crop_pct, resolution)
            return super().__call__(images, resolution)

    monkeypatch.setitem(session.__dict__, 'preprocessing', Recorded(**vars(session.preprocessing)))
    answers = np.eye(10, dtype=np.float32)
    monkeypatch.setattr(Session, '__call__', lambda self, x, size: answers[
        [1 if size == 64 or shown['crop'] == 0.6 else 2] * len(x)])
    choice = choose_crops(session, [photograph()] * 60, candidates=(0.9, 0.6, 0.3))
    assert choice.crops == CROPS and choice.scores[48] == {0.9: 0., 0.6: 100., 0.3: 0.} and choice.by == 'agreement'
    labelled = choose_crops(session, [photograph()] * 60, [2] * 60, resolutions=[48], candidates=(0.9, 0.6))
    assert labelled.crops == {48: 0.9} and labelled.by == 'accuracy'


def test_what_cannot_be_chosen_on_is_refused():
    model = model_with_crops()
    for arguments, says in ((([],), 'no pictures'), (([photograph()], [1, 2]), '2 labels for 1 pictures'),
                            (([photograph()], None, [32]), r'the network has \(64, 48\)')):
        with pytest.raises(ValueError, match=says):
            choose_crops(model, *arguments)
    with pytest.warns(UserWarning, match='1 pictures are few'):
        choose_crops(model, [photograph()], candidates=(0.9,))
