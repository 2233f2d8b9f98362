"""What benchmarks/ship_weights.py puts into the manifest is what the file gives."""
import csv
import json
import shutil
import sys

import pytest
import timm
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from training_run import make_pictures

from benchmarks import report, run_record, ship_weights
from benchmarks.run_record import record_of, stages_of
from rs_timm.cli import main
from rs_timm.models import _manifest, file_sha256, manifest
from rs_timm.models._builder import switchable_cfgs

NAME = 'rs_resnet18.mred_pictures'


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    """(folder of the weights, the manifest's entry, the run's folder, its pictures) of a run of a few steps."""
    root = tmp_path_factory.mktemp('ship')
    data, run, weights = str(make_pictures(root / 'pictures', train_each=8, val_each=5)), root / 'run', root / 'weights'
    weights.mkdir()
    (weights / 'manifest.json').write_text('{"version": 1, "weights": {}}')
    start = root / 'start'
    train_both = f'{OPTIONS} --epochs 1 --precision float32'
    assert train(f'rs_resnet18 --recipe imagenette_start --resolutions 48 {train_both}', data, start) == 0
    init = f'--init {start}/model/model.safetensors'
    assert train(f'rs_resnet18 --recipe imagenette_mred --resolutions 64 48 {train_both} {init}', data, run) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship_weights, 'weights_dir', lambda: weights)
        entry = ship_weights.ship(NAME, run, data, 0, ['two slow cores'])
    return weights, entry, run, data


OPTIONS = '--progressive 0 --limit-batches 2 --batch-size 8'


def train(arguments, data, out):
    usual = f'--data {data} --out {out} --device cpu --workers 0 --no-progress'
    return main(['train', *arguments.split(), *usual.split()])


@pytest.fixture
def registered(shipped, monkeypatch):
    """The manifest of the test in the place of the project's."""
    weights = shipped[0]
    content = json.loads((weights / 'manifest.json').read_text())['weights']
    monkeypatch.setattr(_manifest, 'weights_dir', lambda: weights)
    monkeypatch.setattr(_manifest, 'manifest', lambda: content)
    return switchable_cfgs('rs_resnet18', 'resnet18', 'a1_in1k', paper_weights=True)


def test_file_is_half_as_large_and_its_hash_is_in_the_manifest(shipped):
    weights, entry, run, _ = shipped
    path = weights / entry['file']
    assert file_sha256(path) == entry['sha256'] and sorted(p.name for p in weights.iterdir()) == [
        'manifest.json', 'rs_resnet18.mred_pictures.safetensors']
    assert path.stat().st_size < 0.51 * (run / 'model/model.safetensors').stat().st_size
    with safe_open(path, 'pt') as stream:
        kinds = {key: stream.get_tensor(key).dtype for key in stream.keys()}  # noqa: SIM118
    assert kinds['layer1.0.conv1.weight'] is torch.float16 and kinds['bn1.48.weight'] is torch.float32


def test_top1_is_that_of_the_file(shipped, tmp_path):
    """The same figures from `rs-timm eval` with the stored file on the folder's network."""
    weights, entry, run, data = shipped
    rows = tmp_path / 'rows.csv'
    assert main(['eval', f'local-dir:{run}/model', '--data', data, '--checkpoint', str(weights / entry['file']),
                 '--workers', '0', '--csv', str(rows)]) == 0
    top1 = {row['img_size']: float(row['top1']) for row in csv.DictReader(rows.open())}
    assert {r: entry['top1'][r] for r in ('64', '48')} == pytest.approx({r: top1[r] for r in ('64', '48')}, abs=0.01)
    assert entry['measured']['pictures'] == 10 and set(entry['top1']) == {'64', '48', 'ensemble'}


def test_shipped_weights_become_the_default_tag(shipped, registered):
    weights, entry, run, _ = shipped
    assert next(iter(registered)) == 'rs_resnet18' and registered['rs_resnet18'].tags[0] == 'mred_pictures'
    cfg = registered['rs_resnet18'].default
    assert cfg.num_classes == 2 and cfg.label_names == ['class0', 'class1'] and cfg.file == str(weights / entry['file'])
    model = timm.create_model('rs_resnet18', pretrained=True, pretrained_cfg=cfg, resolutions=(64, 48)).eval()
    assert model.checkpoint_metadata['alpha'] == {int(r): a for r, a in entry['alpha'].items()}
    trained = timm.create_model(f'local-dir:{run}/model', pretrained=True).eval()
    x = torch.randn(2, 3, 48, 48)
    torch.testing.assert_close(model(x), trained(x), rtol=1e-2, atol=1e-2)  # float16 weights


def test_both_stages_are_recorded(shipped):
    _, entry, run, _ = shipped
    record, start = entry['recipe'], entry['recipe']['init']
    assert record['name'] == 'imagenette_mred' and start['name'] == 'imagenette_start' and 'init' not in start
    assert record['settings']['resolutions'] == (64, 48) and start['settings']['resolutions'] == (48,)
    assert record['settings']['sched'] == 'onecycle' and 'momentum' not in record['settings']
    assert set(start['top1']) == {'48'} and set(record['top1']) == {'64', '48', 'ensemble'}
    assert start['sha256'] == file_sha256(run.parent / 'start/model/model.safetensors')
    for stage, folder in ((start, run.parent / 'start'), (record, run)):
        rows = list(csv.DictReader((folder / 'log.csv').open()))
        assert stage['minutes'] == pytest.approx(float(rows[0]['seconds']) / 60, abs=0.06)
        assert stage['hardware'] == 'two slow cores' and stage['epochs'] == 1
    assert str(run.parent) not in json.dumps(entry)  # no path of this machine


def test_the_recorded_commands_repeat_the_runs(shipped, tmp_path):
    """The same settings again, and so the same weights."""
    _, entry, run, data = shipped
    first, second = (stage['command'].split(' ', 2) for stage in stages_of(entry['recipe']))
    weights = {'start': run.parent / 'start/model/model.safetensors', 'run': run / 'model/model.safetensors'}
    for words, name in ((first, 'start'), (second, 'run')):
        assert words[:2] == ['rs-timm', 'train']
        arguments = words[2].replace('--data DIR ', '').replace('WEIGHTS', str(weights['start']))
        assert train(arguments, data, tmp_path / name) == 0
        ran = [json.loads((folder / 'recipe.json').read_text()) for folder in (run.parent / name, tmp_path / name)]
        assert ran[0] == ran[1]
        before, now = load_file(weights[name]), load_file(tmp_path / name / 'model/model.safetensors')
        assert before.keys() == now.keys() and all(torch.equal(before[key], now[key]) for key in before)


def test_the_table_of_weights_names_the_stages(shipped, registered, monkeypatch):
    weights, entry, _, _ = shipped
    monkeypatch.setattr(report, 'manifest', lambda: {NAME: entry})
    monkeypatch.setattr(report, 'weights_dir', lambda: weights)
    text = report.weights_section()
    assert f"| `{NAME}` | {entry['top1']['64']:.1f} | {entry['top1']['48']:.1f} |" in text
    assert ('* `rs_resnet18.mred_pictures`: from random weights, 1 epoch of `imagenette_start` (0 minutes), then 1 '
            'epoch of `imagenette_mred` (0 minutes); two slow cores.') in text


def test_a_record_made_where_the_training_ran_stands_for_it(shipped, tmp_path, monkeypatch):
    """The folder alone can be shipped from elsewhere, where the weights of the first stage are not."""
    folder = tmp_path / 'copy'
    shutil.copytree(shipped[2], folder)
    monkeypatch.setattr(sys, 'argv', ['run_record', str(folder), '--hardware', 'two slow cores'])
    run_record.main()
    expected = record_of(folder, ['elsewhere'])
    (shipped[2].parent / 'start').rename(tmp_path / 'away')
    try:
        assert record_of(folder, ['elsewhere']) == expected == json.loads(json.dumps(shipped[1]['recipe']))
    finally:
        (tmp_path / 'away').rename(shipped[2].parent / 'start')


def test_a_start_that_nobody_knows_is_refused(shipped, tmp_path):
    for name in ('recipe.json', 'log.csv'):
        (tmp_path / name).write_bytes((shipped[2] / name).read_bytes())
    ran = json.loads((tmp_path / 'recipe.json').read_text())
    (tmp_path / 'recipe.json').write_text(json.dumps(dict(ran, init='resnet18.a1_in1k')))
    with pytest.raises(ValueError, match="started from 'resnet18.a1_in1k', .* origin and licence"):
        record_of(tmp_path, 'two slow cores')


def test_a_start_from_shipped_weights_takes_their_record_along(shipped, tmp_path, monkeypatch):
    """And the table of weights tells on which machine each of the stages ran."""
    weights, entry, run, _ = shipped
    name = 'rs_resnet18.mred_imagenette'
    theirs = manifest()[name]
    (tmp_path / 'log.csv').write_bytes((run / 'log.csv').read_bytes())
    ran = json.loads((run / 'recipe.json').read_text())
    as_far_from_both = dict(lr=0.01, weight_decay=0.0025, warmup_epochs=0.5, epochs=4, progressive=0.25)
    (tmp_path / 'recipe.json').write_text(json.dumps(dict(ran, init=name, **as_far_from_both)))
    record = record_of(tmp_path, ['two slow cores'])
    assert record['init'] == dict(theirs['recipe'], sha256=theirs['sha256'])
    assert [stage['name'] for stage in stages_of(record)] == ['imagenette_start', 'imagenette_mred', 'imagenette_mred']
    monkeypatch.setattr(report, 'manifest', lambda: {NAME: dict(entry, recipe=record)})
    monkeypatch.setattr(report, 'weights_dir', lambda: weights)
    assert (f"BatchNorm statistics of 2000 training pictures; {theirs['recipe']['hardware']}. Then 4 epochs of "
            '`imagenette_mred` (0 minutes); two slow cores.') in report.weights_section()


def test_another_network_is_refused(shipped):
    with pytest.raises(ValueError, match='holds a rs_resnet18, not a rs_resnet50'):
        ship_weights.ship('rs_resnet50.x', shipped[2], shipped[3], 0, ['two slow cores'])


def test_statistics_are_measured_anew_if_asked_for(shipped, tmp_path, monkeypatch):
    """From the training crops of the run, and the entry says from how many."""
    _, entry, run, data = shipped
    (tmp_path / 'manifest.json').write_text('{"version": 1, "weights": {}}')
    monkeypatch.setattr(ship_weights, 'weights_dir', lambda: tmp_path)
    with pytest.warns(UserWarning, match='statistics of only 16 pictures'):
        again = ship_weights.ship(NAME, run, data, 0, ['two slow cores'], recalibrated=16)
    assert again['recipe'] == dict(entry['recipe'], recalibrated=16)
    before, now = load_file(run / 'model/model.safetensors'), load_file(tmp_path / again['file'])
    changed = {key.rpartition('.')[2] for key in before if not torch.equal(before[key].half(), now[key].half())}
    assert changed == {'running_mean', 'running_var'}
    monkeypatch.setattr(report, 'manifest', lambda: {NAME: again})
    monkeypatch.setattr(report, 'weights_dir', lambda: tmp_path)
    assert ', then BatchNorm statistics of 16 training pictures; two slow cores.' in report.weights_section()
