"""Adaptation: the smaller sizes learn from the largest one, which stays as it is, on pictures without labels."""
import os
import tarfile
from copy import deepcopy
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from training_run import MODEL, make_pictures, tiny_recipe
from two_processes import start_two

import rs_timm
from benchmarks import adapted, environment
from benchmarks.finetune import small_folder
from benchmarks.store import packed, put
from rs_timm import adaptation
from rs_timm.adaptation import adapt_recipe
from rs_timm.cli import main
from rs_timm.crops import crops_of
from rs_timm.runtime.crop_choice import CropChoice
from rs_timm.training import MREDTask, Options, train

SIZES = (48, 32, 24)
OPTIONS = Options(device='cpu', workers=0, progress=False)
TINY = dict(batch_size=8, epochs=2, channels_last=False, val_fraction=0.25)


@pytest.fixture(scope='module')
def pictures(tmp_path_factory):
    """40 pictures in folders whose names say nothing."""
    return make_pictures(tmp_path_factory.mktemp('pictures'))


@pytest.fixture
def model():
    return make_model()


def make_model():
    torch.manual_seed(0)
    network = rs_timm.switchable(MODEL, SIZES, num_classes=4, drop_rate=0.5)
    for parameter in network.parameters():  # sets that differ, statistics that are no zeros and ones
        parameter.data.add_(0.1 * torch.randn_like(parameter))
    network.train()(torch.randn(8, 3, 48, 48))
    return network.eval()


def differ(old, new):
    return [name for name, value in old.items() if not torch.equal(value, new[name])]


def test_the_largest_size_stays_and_the_smaller_ones_move(model, pictures):
    before = deepcopy(model)
    found = rs_timm.adapt(model, pictures, recipe=adapt_recipe(model, **TINY, lr=0.01), options=OPTIONS)
    assert not differ(before.state_dict(), model.state_dict()), 'the network that was given is left alone'
    moved = differ(before.state_dict(), found.model.state_dict())
    kept = [size for size, change in found.changes.items() if change.kept]
    assert kept, 'a rate of 0.01 brings at least one size nearer to its teacher'
    assert {name.split('.')[-2] for name in moved} == {str(size) for size in kept}
    assert {name.split('.')[-1] for name in moved} == {'weight', 'bias'}
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(found.model(x), model(x))
    assert not found.model.training and all(p.requires_grad for p in found.model.parameters())
    assert crops_of(found.model)[48] == adapt_recipe(model).crop_pct
    assert found.pictures == round(0.25 * 40)


def test_what_got_worse_is_put_back(model, pictures, monkeypatch):
    choices = iter([90., 80.])  # of agreement, before and after
    monkeypatch.setattr(adaptation, '_crops', lambda network, held: CropChoice(
        {48: 0.875, 32: 0.7, 24: 0.6}, {48: {0.875: 100.}, 32: {0.7: 50.}, 24: {0.6: next(choices)}}, 10, 'agreement'))
    found = rs_timm.adapt(model, pictures, recipe=adapt_recipe(model, **TINY, lr=0.01), options=OPTIONS)
    assert {size: change.kept for size, change in found.changes.items()} == {32: True, 24: False}
    moved = differ(model.state_dict(), found.model.state_dict())
    assert moved and all('.32.' in name for name in moved)
    assert crops_of(found.model) == {48: 0.875, 32: 0.7, 24: 0.6}


def test_an_adapted_set_takes_the_crop_of_its_teacher_unless_another_is_clearly_better(model, pictures, monkeypatch):
    scores = {1.: 70., 0.75: 75., 0.55: 76.}  # of ten pictures: the standard error is 13.5 points
    monkeypatch.setattr(adaptation, '_crops', lambda network, held: CropChoice(
        dict.fromkeys(SIZES, 1.), dict.fromkeys(SIZES, scores), len(held), 'agreement'))
    for own in (1., 0.75):
        found = rs_timm.adapt(model, pictures, recipe=adapt_recipe(model, **TINY, crop_pct=own), options=OPTIONS)
        assert crops_of(found.model)[24] == own
    scores[0.55] = 99.
    found = rs_timm.adapt(model, pictures, recipe=adapt_recipe(model, **TINY, crop_pct=1.), options=OPTIONS)
    assert crops_of(found.model)[24] == 0.55


def test_the_gradient_is_that_of_the_divergence_from_the_largest(model):
    """For each smaller size d KL(p_largest || p) / d logits; nothing for what the largest size has alone."""
    task = MREDTask(model, 'none', own_answers=True)
    task.train()
    assert not model.training, 'a teacher drops nothing'
    batch = {size: torch.randn(4, 3, size, size) for size in SIZES}
    task(batch, torch.full((4,), -1))['classification'].backward()
    got = {name: p.grad for name, p in model.named_parameters()}
    reference = deepcopy(model)
    reference.zero_grad()
    logits = {}
    for size in SIZES:
        rs_timm.set_resolution(reference, size)
        logits[size] = reference(batch[size])
    teacher = logits[48].detach().softmax(1)
    sum(F.kl_div(logits[size].log_softmax(1), teacher, reduction='batchmean') for size in SIZES[1:]).backward()
    for name, p in reference.named_parameters():
        if p.grad is not None:
            torch.testing.assert_close(got[name], p.grad, rtol=1e-4, atol=1e-6)
    assert all(got[name].abs().max() < 1e-6 for name in got if '.48.' in name)


def test_a_stopped_run_goes_on_and_a_tar_file_is_read_as_its_folder(model, pictures, tmp_path):
    recipe = adapt_recipe(model, **TINY, lr=0.01)
    whole = rs_timm.adapt(model, pictures, tmp_path / 'whole', recipe=recipe, options=OPTIONS)
    tar = tmp_path / 'pictures.tar'
    with tarfile.open(tar, 'w') as file:
        file.add(pictures, arcname='.')
    rs_timm.adapt(model, tar, tmp_path / 'half', recipe=replace(recipe, epochs=1, sched='poly'), options=OPTIONS)
    with pytest.raises(ValueError, match='epochs'):  # a run of other settings
        rs_timm.adapt(model, tar, tmp_path / 'half', True, recipe, OPTIONS)
    other = rs_timm.adapt(model, tar, tmp_path / 'other', recipe=recipe, options=OPTIONS)
    assert not differ(whole.model.state_dict(), other.model.state_dict())
    again = rs_timm.adapt(model, tar, tmp_path / 'other', True, recipe, OPTIONS)  # it has ended: nothing is left to do
    assert again.changes == other.changes and not differ(again.model.state_dict(), other.model.state_dict())


def adapted_to(pictures, file):
    """Adapt in this process, one of some or alone, and write what came out."""
    torch.set_num_threads(1)
    found = rs_timm.adapt(make_model(), pictures, f'{file}.run', recipe=adapt_recipe(make_model(), **TINY, lr=0.01),
                          options=OPTIONS)
    torch.save([found.model.state_dict(), found.changes, crops_of(found.model)], f"{file}.{os.environ.get('RANK', 0)}")


def test_two_processes_do_what_one_does(pictures, tmp_path):
    adapted_to(pictures, tmp_path / 'one')
    for process in start_two(adapted_to, pictures, tmp_path / 'two'):
        process.join()
        assert process.exitcode == 0
    one, *two = (torch.load(tmp_path / name, weights_only=False) for name in ('one.0', 'two.0', 'two.1'))
    assert not differ(two[0][0], two[1][0]) and two[0][1:] == two[1][1:] == one[1:]
    for name, value in one[0].items():
        torch.testing.assert_close(two[0][0][name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize('wrong, match', [
    (dict(train='all'), "train 'all': adaptation takes 'smaller'"),
    (dict(statistics='batch'), "statistics 'batch': adaptation takes 'running'"),
    (dict(val_fraction=0.), '--val-fraction 0.1'),
    (dict(resolutions=(48,)), 'smaller ones'),
    (dict(resolutions=(48, 24)), 'the network has'),
    (dict(batch_size=64), 'more than the 30 pictures'),
])
def test_settings_that_do_not_go_together(model, pictures, wrong, match):
    with pytest.raises(ValueError, match=match):
        rs_timm.adapt(model, pictures, recipe=adapt_recipe(model, **{**TINY, **wrong}), options=OPTIONS)


def test_networks_and_data_that_do_not_do(model, pictures, tmp_path):
    with pytest.raises(ValueError, match='has no switchable BatchNorm'):
        rs_timm.adapt(timm.create_model(MODEL), pictures)
    with pytest.raises(ValueError, match='is a network, and the recipe, for classification, builds its own'):
        train(model, str(pictures), tiny_recipe(), str(tmp_path / 'run'))
    with pytest.raises(ValueError, match='no pictures'):
        rs_timm.adapt(model, tmp_path)
    dense = timm.create_model('rs_refinenet_resnet18', num_classes=3, resolutions=(96, 64), features=8)
    with pytest.raises(ValueError, match='is for segmentation, the recipe for classification'):
        rs_timm.adapt(dense, pictures, recipe=adapt_recipe(dense, **TINY), options=OPTIONS)


def test_damaged_pictures_are_named_or_left_out(model, tmp_path):
    make_pictures(tmp_path, val_each=8)
    for path in sorted(tmp_path.rglob('*.png'))[::3]:
        path.write_bytes(path.read_bytes()[:100])
    recipe = adapt_recipe(model, **TINY)
    with pytest.raises(ValueError, match='png|cut short|truncated'):
        rs_timm.adapt(model, tmp_path, recipe=recipe, options=OPTIONS)
    found = rs_timm.adapt(model, tmp_path, recipe=recipe, options=replace(OPTIONS, skip_corrupt=True))
    assert 0 < found.pictures < round(0.25 * 48)


def test_the_command(model, pictures, tmp_path, capsys):
    rs_timm.save_pretrained(model, tmp_path / 'plain')
    command = ['adapt', str(tmp_path / 'plain'), '--data', str(pictures), '--out', str(tmp_path / 'out'),
               '--workers', '0', '--batch-size', '8', '--epochs', '1', '--lr', '0.01', '--val-fraction', '0.25',
               '--no-channels-last']
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines()[2:4]] == ['32', '24']
    loaded = timm.create_model(f'local-dir:{tmp_path / "out" / "model"}', pretrained=True).eval()
    x = torch.randn(2, 3, 48, 48)
    assert torch.equal(loaded(x), model(x))
    assert main(command) == 2 and 'holds a run already' in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(['train', MODEL, '--data', str(pictures), '--recipe', 'adapt'])


def test_the_table_of_the_benchmark_says_what_its_rows_say(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    right = {'untouched': np.array([1, 0, 0, 0]), 'adapted': np.array([1, 1, 1, 0])}
    put(tmp_path / 'adapted.csv', [
        dict(data='clothing', model='lite0', pictures=9, method=method, resolution=size, crop=0.875,
             top1=25 * bits.sum(), tested=4, right=packed(bits), adapt_seconds=90, threads=1, device='cpu', torch='2',
             timm='1')
        for size in adapted.NETWORKS['lite0'] for method, bits in right.items()], adapted.KEY)
    lines = [[cell.strip() for cell in line.split('|')[1:-1]] for line in adapted.adapted_section().splitlines()
             if line.startswith('|')][2:]
    assert lines[0][3:] == ['25.0', '', 'the same', '', '2']
    assert lines[-1][1:6] == ['96 px', '0.875', '25.0', '0.875', '75.0'] and lines[-1][6].startswith('+50.0 (+0.0 to')


def test_the_benchmark_tests_on_what_was_not_trained_on(tmp_path):
    pictures = make_pictures(tmp_path / 'pictures')
    for path in pictures.glob('val/*/*'):
        path.rename(path.with_name(f'val{path.name}'))
    chosen = small_folder(pictures, tmp_path / 'chosen', 4)
    files, labels = adapted.test_pictures(pictures, chosen, 100)
    taken = {path.resolve() for path in chosen.glob('train/*/*')}
    assert len(files) == len(set(files)) == 40 - len(taken) and not taken & set(files)
    assert labels == [path.parent.name for path in files]
