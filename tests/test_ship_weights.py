"""What benchmarks/ship_weights.py puts into the manifest is what the file gives."""
import json

import pytest
import timm
import torch
from safetensors import safe_open
from training_run import make_pictures

from benchmarks import ship_weights
from rs_timm.cli import main
from rs_timm.models import _manifest, file_sha256
from rs_timm.models._builder import switchable_cfgs

NAME = 'rs_resnet18.mred_pictures'


@pytest.fixture(scope='module')
def shipped(tmp_path_factory):
    """(folder of the weights, the manifest's entry, the run's folder, its pictures) of a run of a few steps."""
    root = tmp_path_factory.mktemp('ship')
    data, run, weights = str(make_pictures(root / 'pictures', train_each=8, val_each=5)), root / 'run', root / 'weights'
    weights.mkdir()
    (weights / 'manifest.json').write_text('{"version": 1, "weights": {}}')
    options = '--recipe imagenette --resolutions 64 48 --debug-twin --epochs 1 --progressive 0 --limit-batches 2'
    usual = '--precision float32 --device cpu --workers 0 --no-progress'
    assert main(['train', 'rs_resnet18', '--data', data, '--out', str(run), *options.split(), *usual.split()]) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ship_weights, 'weights_dir', lambda: weights)
        entry = ship_weights.ship(NAME, run, data, workers=0)
    return weights, entry, run, data


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
    import csv
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


def test_a_damaged_file_is_refused(shipped, registered):
    weights, entry, _, _ = shipped
    path = weights / entry['file']
    good = path.read_bytes()
    try:
        path.write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
        with pytest.raises(ValueError, match='sha256'):
            timm.create_model('rs_resnet18', pretrained=True, pretrained_cfg=registered['rs_resnet18'].default)
    finally:
        path.write_bytes(good)


def test_the_settings_of_the_run_are_kept(shipped):
    recipe = shipped[1]['recipe']
    assert recipe['name'].endswith('imagenette') and recipe['settings']['resolutions'] == [64, 48]
    assert recipe['settings']['sched'] == 'onecycle' and 'momentum' not in recipe['settings']


def test_another_network_is_refused(shipped):
    with pytest.raises(ValueError, match='holds a rs_resnet18, not a rs_resnet50'):
        ship_weights.ship('rs_resnet50.x', shipped[2], shipped[3], 0)
