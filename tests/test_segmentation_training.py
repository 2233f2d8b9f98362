"""Segmentation on the shared loop: it learns, goes on exactly after a kill, and measures what a plain loop gives."""
import csv

import pytest
import timm
import torch
import torch.nn.functional as F
from masked_pictures import IGNORE, NAMES, make_masked
from PIL import Image
from two_processes import run_two

import rs_timm
from rs_timm.cli import main
from rs_timm.data import create_mask_loader
from rs_timm.segmentation import confusion_matrix, segmentation_scores
from rs_timm.training import Options, Recipe, Trainer, confusion_matrices, evaluate_masks, get_recipe, train
from rs_timm.training.build import build_model
from rs_timm.training.checkpoint import load_checkpoint

SIZES = (48, 32)
MODEL = 'rs_refinenet_resnet18'
TINY = dict(
    resolutions=SIZES, labels=NAMES, ignore_label=IGNORE, model_args=('features=8',), epochs=2, batch_size=4,
    limit_batches=0, warmup_epochs=0., precision='float32', channels_last=False, lr=1e-3)


@pytest.fixture(scope='module')
def root(tmp_path_factory):
    return make_masked(tmp_path_factory.mktemp('masked'), sizes=((64, 48), (56, 40)))


def recipe(**changes):
    return get_recipe('camvid', debug=True, **{**TINY, **changes})


def run(root, output, resume=False, minutes=60., **changes):
    options = Options(device='cpu', workers=0, checkpoint_minutes=minutes, progress=False)
    return train(MODEL, str(root), recipe(**changes), str(output), resume, options)


# Training

def test_a_run_learns_and_reports(root, tmp_path):
    trained = run(root, tmp_path, epochs=12, color_jitter=0.)
    assert [row['resolution'] for row in trained.rows[-3:]] == [*SIZES, 'ensemble']
    first, last = trained.rows[0], trained.rows[-3]
    assert last['train_loss'] < 0.75 * first['train_loss']
    assert 0. < last['mean_iou'] <= last['mean_accuracy'] <= 100. and 0. < last['pixel_accuracy'] <= 100.
    with open(tmp_path / 'log.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(trained.rows) and float(rows[-3]['mean_iou']) == last['mean_iou']
    loader = create_mask_loader(
        root, SIZES, split='val', batch_size=2, classes=NAMES, ignore_label=IGNORE, num_workers=0)
    measured = evaluate_masks(trained.model, loader)
    assert measured[48]['mean_iou'] == pytest.approx(last['mean_iou'], abs=0.2)  # other batches, other rounding
    assert trained.class_names == list(NAMES)


class Killed(Exception):
    pass


@pytest.mark.slow
def test_a_killed_run_goes_on_exactly(root, tmp_path, monkeypatch):
    settings = dict(ema=0.9, mred='vanilla')
    whole = run(root, tmp_path / 'whole', **settings)
    update = Trainer.update

    def dies(self, parts):
        if self.position.update == 3:  # within the second epoch
            raise Killed
        return update(self, parts)

    monkeypatch.setattr(Trainer, 'update', dies)
    with pytest.raises(Killed):
        run(root, tmp_path / 'broken', minutes=0., **settings)
    monkeypatch.undo()
    position = load_checkpoint(tmp_path / 'broken/last.pth')['position']
    assert (position['epoch'], position['batch'], position['update']) == (1, 1, 3)
    broken = run(root, tmp_path / 'broken', resume=True, **settings)
    one, two = (load_checkpoint(tmp_path / name / 'last.pth') for name in ('whole', 'broken'))
    for key in ('state_dict', 'state_dict_ema'):
        assert all(torch.equal(value, two[key][name]) for name, value in one[key].items())
    assert [row['mean_iou'] for row in whole.rows] == [row['mean_iou'] for row in broken.rows]


@pytest.mark.slow
def test_progressive_lean_and_parts(root, tmp_path):
    """The other options of the loop: smaller pictures first, less memory, a batch in two parts."""
    trained = run(
        root, tmp_path, progressive=0.5, progressive_resolutions=(40, 32), lean=True, accumulate=2, mred='none')
    assert [row['size'] for row in trained.rows] == [40, 32, 'ensemble', 48, 32, 'ensemble']


def test_a_run_starts_from_a_classifier(tmp_path, random_statistics):
    classifier = random_statistics(timm.create_model('rs_resnet18', resolutions=SIZES, num_classes=10))
    torch.save(classifier.state_dict(), tmp_path / 'classifier.pth')
    model = build_model(MODEL, recipe(init=str(tmp_path / 'classifier.pth')), num_classes=3)
    state = classifier.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in model.encoder.state_dict().items())
    torch.save(model.state_dict(), tmp_path / 'whole.pth')
    again = build_model(MODEL, recipe(init=str(tmp_path / 'whole.pth')), num_classes=3)
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), again.state_dict().values()))


def test_networks_and_recipes_that_do_not_fit(root, tmp_path):
    with pytest.raises(ValueError, match='RSResNet is for classification, the recipe for segmentation: .*refinenet'):
        build_model('rs_resnet18', recipe(model_args=()), num_classes=3)
    with pytest.raises(ValueError, match='RSRefineNet is for segmentation, the recipe for classification'):
        build_model(MODEL, Recipe(), num_classes=3)
    with pytest.raises(ValueError, match='labels is empty'):
        recipe(labels=())
    for field, value in dict(mixup=0.2, crop='per_resolution', flip='per_resolution', crop_pct=0.9).items():
        with pytest.raises(ValueError, match=f'{field} .* is for classification: segmentation takes'):
            recipe(**{field: value})
    with pytest.raises(ValueError, match="no split 'validation'"):
        options = Options(device='cpu', workers=0, splits=('train', 'validation'))
        train(MODEL, str(root), recipe(), str(tmp_path / 'run'), options=options)


def test_recipes_of_the_paper():
    nyud = get_recipe('rs_refinenet_nyudv2')
    assert nyud.resolutions == (352, 224, 96) and len(set(nyud.labels)) == 40 and nyud.ignore_label == 0
    assert len(get_recipe('camvid').labels) == 11
    assert min(get_recipe('camvid', debug=True).resolutions) >= 32  # the output stride


@pytest.mark.parametrize('name', [pytest.param('rs_refinenet_nyudv2', marks=pytest.mark.slow), 'camvid'])
def test_debug_twins_run(root, tmp_path, name):
    """The recipe's own settings but for the classes of the test's pictures and the width of the decoder."""
    data = ['--data', str(root), '--labels', *NAMES, '--ignore-label', str(IGNORE)]
    options = f'--out {tmp_path}/run --recipe {name} --debug-twin --model-args features=32 --device cpu --workers 0'
    assert main(['train', MODEL, *data, *options.split(), '--no-progress']) == 0
    with open(tmp_path / 'run/log.csv', newline='') as file:
        rows = list(csv.DictReader(file))
    assert [row['resolution'] for row in rows] == ['64', '48', '32', 'ensemble'] * 2
    model = timm.create_model(f'local-dir:{tmp_path}/run/model', pretrained=True)
    assert model.resolutions == (64, 48, 32) and model.pretrained_cfg['label_names'] == list(NAMES)
    assert model.pretrained_cfg['crop_mode'] == 'squash'


# Evaluation

def make_network(random_statistics):
    torch.manual_seed(1)
    model = timm.create_model(MODEL, resolutions=SIZES, num_classes=3, features=8)
    with torch.no_grad():
        model.classifier.weight.mul_(100)
    return random_statistics(model)


def make_loader(root, batch_size, **kwargs):
    return create_mask_loader(
        root, (48, 40, 32), split='val', batch_size=batch_size, classes=NAMES, ignore_label=IGNORE, num_workers=0,
        **kwargs)


def test_evaluation_is_a_loop_over_pictures_at_their_own_size(root, random_statistics):
    """Trained and unseen resolutions through the extracted networks, and the ensemble by its formula."""
    model, loader = make_network(random_statistics), make_loader(root, 1)
    alpha = {48: 0.7, 32: 0.3}
    expected = {row: torch.zeros(3, 3, dtype=torch.int64) for row in (48, 40, 32, 'ensemble')}
    with torch.no_grad():
        for images, masks in loader:
            size = tuple(masks[0].shape)
            full = {r: F.interpolate(rs_timm.extract(model, r)(x), size=size, mode='bilinear')
                    for r, x in images.items()}
            full['ensemble'] = sum(weight * full[r] for r, weight in alpha.items())
            for row, z in full.items():
                expected[row] += confusion_matrix(z[0].argmax(0), masks[0], 3)
    actual = confusion_matrices(model, make_loader(root, 1), alpha=alpha)
    assert {row: matrix.tolist() for row, matrix in actual.items()} == {
        row: matrix.tolist() for row, matrix in expected.items()}
    results = evaluate_masks(model, make_loader(root, 1), alpha=alpha)
    assert results == {row: segmentation_scores(matrix) for row, matrix in expected.items()}
    assert len({values['mean_iou'] for values in results.values()}) > 2
    batched = confusion_matrices(model, make_loader(root, 3), (48,), alpha={})
    assert batched[48].sum() == expected[48].sum() and (batched[48] - expected[48]).abs().sum() < 20


def test_classes_that_no_mask_has_are_named(root, random_statistics):
    """As those of masks of 0 and 255 with the usual ignored value."""
    network = random_statistics(timm.create_model(MODEL, resolutions=SIZES, num_classes=4, features=8))
    loader = create_mask_loader(
        root, SIZES, split='val', batch_size=1, classes=(*NAMES, 'absent'), ignore_label=IGNORE, num_workers=0)
    with pytest.warns(UserWarning, match=f"no mask has a pixel of 'absent', .*of masks, {IGNORE}, theirs"):
        evaluate_masks(network, loader)


def test_a_classifier_is_refused(root):
    with pytest.raises(ValueError, match=r'the network gives \(1, 3\), expected \[N, 3, h, w\]'):
        evaluate_masks(timm.create_model('test_resnet', num_classes=3), make_loader(root, 1))


def one_rank(rank, root, path):
    model = torch.load(f'{path}/model.pth', weights_only=False)
    matrices = confusion_matrices(model, make_loader(root, 1, rank=rank, world_size=2))
    torch.save(matrices, f'{path}/{rank}.pt')


def test_two_processes_count_every_picture_once(root, tmp_path, random_statistics):
    """Five pictures on two processes: the shards are uneven."""
    model = make_network(random_statistics)
    expected = confusion_matrices(model, make_loader(root, 1))
    torch.save(model, tmp_path / 'model.pth')
    run_two(one_rank, str(root), str(tmp_path))
    for rank in (0, 1):
        matrices = torch.load(tmp_path / f'{rank}.pt')
        assert matrices.keys() == expected.keys()
        assert all(torch.equal(matrices[row], expected[row]) for row in expected)


# The commands

def test_train_and_eval(root, tmp_path, capsys):
    labels = ['--labels', *NAMES, '--ignore-label', str(IGNORE)]
    status = main(['train', MODEL, '--data', str(root), '--out', str(tmp_path / 'run'), '--recipe', 'camvid',
                   '--debug-twin', '--resolutions', '48', '32', '--epochs', '1', '--batch-size', '4', '--device', 'cpu',
                   '--workers', '0', '--model-args', 'features=8', '--precision', 'float32', *labels])
    assert status == 0
    capsys.readouterr()
    status = main(['eval', f'local-dir:{tmp_path}/run/model', '--data', str(root), '--device', 'cpu', '--workers', '0',
                   '--ignore-label', str(IGNORE), '--sizes', '48', '40', '32', '--ensemble', '--per-class',
                   '--csv', str(tmp_path / 'results.csv'), '--overlays', str(tmp_path / 'drawn'),
                   '--overlay-count', '2', '--batch-size', '1'])
    lines = [line for line in capsys.readouterr().out.splitlines() if line.split()]
    assert status == 0
    rows = {line.split()[0]: line.split()[1:] for line in lines if line.split()[0] in ('48', '40', '32', 'ensemble')}
    assert list(rows) == ['48', '40', '32', 'ensemble']
    model = timm.create_model(f'local-dir:{tmp_path}/run/model', pretrained=True)
    for row, values in evaluate_masks(model, make_loader(root, 1)).items():
        assert float(rows[str(row)][2]) == pytest.approx(values['mean_iou'], abs=0.006)
    per_class = [line.split() for line in lines if line.split()[0] in NAMES]
    assert [line[0] for line in per_class] == list(NAMES) and all(len(line) == 5 for line in per_class)
    with open(tmp_path / 'results.csv', newline='') as file:
        assert [row['img_size'] for row in csv.DictReader(file)] == list(rows)
    drawn = sorted((tmp_path / 'drawn').iterdir())
    assert [path.name for path in drawn] == ['0.png', '1.png']
    assert Image.open(drawn[0]).width > 5 * 64  # picture, ground truth, three sizes


def test_eval_names_the_remedy(root, tmp_path, capsys):
    model = timm.create_model(MODEL, resolutions=SIZES, num_classes=3, features=8)
    rs_timm.save_pretrained(model, tmp_path / 'saved')
    assert main(['eval', f'local-dir:{tmp_path}/saved', '--data', str(root), '--device', 'cpu', '--workers', '0']) != 0
    error = capsys.readouterr().err
    assert 'masks/0.png: the value 7 is no class: expected 0 to 2' in error and '--ignore-label' in error
    assert main(['predict', f'local-dir:{tmp_path}/saved', str(root / 'val/images/0.png')]) != 0
    assert 'is for segmentation: rs-timm eval --overlays' in capsys.readouterr().err
