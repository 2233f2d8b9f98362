"""Recipes: the paper's to the letter, their twins, every field from the command line, and what they build."""
import copy
import csv
import inspect
from dataclasses import FrozenInstanceError, fields, replace

import pytest
import timm
import torch
from PIL import Image
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from training_run import MODEL, Hostile, make_pictures, paper_layout, run, tiny_recipe

import rs_timm
from rs_timm.cli import main
from rs_timm.data import create_multires_loader
from rs_timm.data.folders import hold_out, open_split
from rs_timm.training import RECIPES, MREDTask, Options, Recipe, Trainer, evaluate, get_recipe, train
from rs_timm.training.build import build_model, check_start, resized, synchronized
from rs_timm.training.checkpoint import load_checkpoint, save_checkpoint
from rs_timm.training.optimization import create_optimizer, create_schedule
from rs_timm.training.tasks import Loaders
from rs_timm.training.train import choose_crop


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'), train_each=6, val_each=3)


@pytest.mark.parametrize('name, epochs, lr, weight_decay', [
    ('rs_resnet18_in1k', 120, 0.1, 1e-4),
    ('rs_resnet50_in1k', 120, 0.1, 1e-4),
    ('rs_mobilenetv2_in1k', 150, 0.05, 4e-5),
])
def test_the_papers_recipes_are_section_4_1(name, epochs, lr, weight_decay):
    recipe = get_recipe(name)
    assert recipe.resolutions == (224, 192, 160, 128, 96) and recipe.mred == 'full' and not recipe.init
    assert (recipe.epochs, recipe.lr, recipe.weight_decay, recipe.batch_size) == (epochs, lr, weight_decay, 256)
    assert recipe.crop_scale == (0.08, 1) and recipe.crop_ratio == (3 / 4, 4 / 3) and recipe.crop_pct == 0.875
    assert recipe.interpolation == 'bilinear' and recipe.hflip == 0.5
    task = MREDTask(build_model('rs_resnet18', recipe, 1000))
    optimizer = create_optimizer(task, recipe)
    assert type(optimizer) is torch.optim.SGD
    for group in optimizer.param_groups:
        assert group['momentum'] == 0.9 and not group['nesterov'] and group['weight_decay'] == weight_decay
    assert sum(len(group['params']) for group in optimizer.param_groups) == len(list(task.parameters()))
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=10)
    rates = []
    for update in (0, 5 * epochs, 10 * epochs - 1):
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]['lr'])
    assert rates[0] == pytest.approx(lr) and rates[1] == pytest.approx(lr / 2) and rates[2] < 1e-4 * lr


@pytest.mark.parametrize('opt, fused', [('sgd', True), ('momentum', True), ('adamw', True), ('lamb', False)])
def test_optimizers_of_torch_are_fused_and_those_of_timm_are_left_alone(opt, fused):
    network = nn.Linear(2, 2)
    optimizer = create_optimizer(network, Recipe(opt=opt))
    assert bool(optimizer.defaults.get('fused')) is fused
    before = network.weight.detach().clone()
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    assert not torch.equal(before, network.weight)


@pytest.mark.parametrize('sched', ['onecycle', 'cosine', 'step'])
@pytest.mark.parametrize('decay_norm', [False, True])
def test_private_batchnorms_have_a_rate_of_their_own(sched, decay_norm):
    """At every update in the same proportion to the rate of the rest; weight decay as without it."""
    recipes = [Recipe(resolutions=(64, 48), sched=sched, epochs=4, decay_norm=decay_norm, private_lr=scale)
               for scale in (1., 3.)]
    task = MREDTask(build_model('rs_resnet18', recipes[0], 10))
    private = {id(p) for name, p in task.named_parameters() if name.endswith(('.64.weight', '.48.weight', '.64.bias',
                                                                              '.48.bias'))}
    settings = []
    for recipe in recipes:
        optimizer = create_optimizer(task, recipe)
        schedule = create_schedule(optimizer, recipe, updates_per_epoch=5)
        found = {id(p): [group['weight_decay']] for group in optimizer.param_groups for p in group['params']}
        for update in range(20):
            optimizer.step()
            schedule.step_update(update)
            for group in optimizer.param_groups:
                scale = recipe.private_lr if id(group['params'][0]) in private else 1.
                for p in group['params']:
                    found[id(p)].append(group['lr'] / scale)
        settings.append(found)
    assert len(private) == 2 * 2 * 20 and private < settings[1].keys()
    assert settings[0].keys() == settings[1].keys() == {id(p) for p in task.parameters()}
    assert all(settings[1][p] == pytest.approx(settings[0][p]) for p in settings[0])


def cycled(setting, **changes):
    """The values of an optimizer's setting over a run with the schedule onecycle."""
    recipe = Recipe(sched='onecycle', epochs=4, warmup_epochs=1., **changes)
    optimizer = create_optimizer(nn.Linear(2, 2), recipe)
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=5)
    values = []
    for update in range(20):
        optimizer.step()
        schedule.step_update(update)
        values.append(optimizer.param_groups[0].get(setting))
    return values


@pytest.mark.parametrize('momentum, low, high', [
    (0.9, 0.85, 0.95), (0.5, 0.45, 0.55), (0.02, 0., 0.07), (0.97, 0.92, 0.99), (0.995, 0.945, 0.995), (0., 0., 0.)])
def test_onecycle_moves_the_momentum_that_was_asked_for(momentum, low, high):
    """To the last bit; the lowest one is at the peak of the rate, which is the first of epoch 2."""
    values = cycled('momentum', momentum=momentum)
    assert values[0] == values[-1] == high and values[5] == min(values) == low


def test_onecycle_of_other_optimizers():
    """Beta1 moves as it always did, whatever the momentum; where there is neither, the rate moves alone."""
    firsts = [betas[0] for betas in cycled('betas', opt='adamw', momentum=0.5)]
    assert firsts[0] == firsts[-1] == 0.95 and firsts[5] == min(firsts) == 0.85
    for opt in ('adagrad', 'adafactor'):
        assert cycled('momentum', opt=opt) == 20 * [None]
        assert max(cycled('lr', opt=opt, lr=0.3)) == pytest.approx(0.3)


@pytest.mark.parametrize('name', RECIPES)
def test_the_rate_ends_at_nothing(name):
    """And is well below its peak before: timm's poly, for one, is all but constant with its usual decay_rate."""
    recipe = get_recipe(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=recipe.lr)
    schedule = create_schedule(optimizer, recipe, updates_per_epoch=10)
    rates = []
    for update in range(10 * recipe.epochs):
        optimizer.step()
        schedule.step_update(update)
        rates.append(optimizer.param_groups[0]['lr'])
    assert max(rates) == pytest.approx(recipe.lr, rel=0.02)
    assert rates[len(rates) * 3 // 4] < 0.45 * recipe.lr and rates[-1] < 0.05 * recipe.lr


def test_the_papers_resnets_are_not_zero_initialised():
    last = build_model('rs_resnet18', get_recipe('rs_resnet18_in1k'), 10).layer1[0].bn2.set_for(96)
    assert last.weight.eq(1).all()


@pytest.mark.parametrize('name', RECIPES)
def test_run_cards(name):
    card = inspect.getdoc(RECIPES[name])
    for entry in ('Run card', 'command', 'expected', 'reached'):
        assert entry in card
    assert name in card
    with pytest.raises(FrozenInstanceError):
        RECIPES[name]().epochs = 1


def test_every_field_explains_itself(monkeypatch):
    for cls in (Recipe, Options):
        for field in fields(cls):
            assert field.metadata['help'] and f"\n        {field.name}: {field.metadata['help']}" in cls.__doc__
    assert 1 <= Options().workers <= 16
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '1000')
    assert Options().workers == 1


@pytest.mark.parametrize('name', RECIPES)
def test_debug_twins_keep_the_path(name):
    recipe, twin = get_recipe(name), get_recipe(name, debug=True)
    small = {'resolutions', 'epochs', 'progressive', 'progressive_resolutions', 'batch_size', 'warmup_epochs',
             'limit_batches'}
    assert set(twin.differences(dict(vars(recipe)))) <= small
    assert bool(twin.small_epochs) == bool(recipe.small_epochs) and twin.small_epochs < twin.epochs
    assert twin.limit_batches * twin.epochs <= 10 and max(twin.resolutions) <= 64


@pytest.mark.parametrize('name', ['rs_mobilenetv2_in1k', 'imagenette', 'lq_in1k'])  # the others differ in numbers
def test_debug_twins_run(name, data, tmp_path, capsys):
    model = 'test_efficientnet' if 'mobilenetv2' in name else MODEL
    if get_recipe(name).precision == 'bfloat16':
        model = 'rs_resnet18'  # why: see test_bfloat16_autocast_and_channels_last in test_task.py
    run_twin(name, model, data, tmp_path / 'run')
    capsys.readouterr()


def run_twin(name, model, data, out, *options):
    """The twin of a recipe, from the command line to a folder that loads."""
    usual = f'--recipe {name} --debug-twin --device cpu --workers 0 --no-progress'
    assert main(['train', model, '--data', str(data), '--out', str(out), *usual.split(), *options]) == 0
    rows = list(csv.DictReader((out / 'log.csv').open()))
    sizes = get_recipe(name, debug=True).resolutions
    ensemble = ['ensemble'] if len(sizes) > 1 else []
    assert [row['resolution'] for row in rows] == [*map(str, sizes), *ensemble] * 2
    assert (out / 'curves.png').read_bytes().startswith(b'\x89PNG')
    model = timm.create_model(f'local-dir:{out}/model', pretrained=True)
    assert model.resolutions == sizes and model.num_classes == 2
    assert model.pretrained_cfg['label_names'] == ['class0', 'class1']
    assert tuple(model.pretrained_cfg['mean']) == get_recipe(name).mean
    return model


def test_two_stages(data, tmp_path, caplog, recwarn):
    """The second one takes the one set of the first for all of its own, and says so without a warning."""
    caplog.set_level('INFO')
    first = run_twin('imagenette_start', 'rs_resnet18', data, tmp_path / 'start')
    weights = tmp_path / 'start/model/model.safetensors'
    recipe = get_recipe('imagenette_mred', debug=True, init=str(weights))
    start = build_model('rs_resnet18', recipe, 2)
    (only,) = first.resolutions
    for resolution in recipe.resolutions:
        mine, theirs = (rs_timm.extract(*pair).state_dict() for pair in ((start, resolution), (first, only)))
        assert mine.keys() == theirs.keys() and all(torch.equal(mine[key], theirs[key]) for key in mine)
    assert f'{weights}: the checkpoint has one BatchNorm set, for {only} pixels' in caplog.text
    run_twin('imagenette_mred', 'rs_resnet18', data, tmp_path / 'mred', '--init', str(weights))
    assert not [w for w in recwarn if 'BatchNorm set' in str(w.message)]


def test_a_second_stage_needs_the_weights_of_the_first(data, tmp_path, capsys):
    out = tmp_path / 'run'
    assert main(['train', 'rs_resnet18', '--data', str(data), '--recipe', 'imagenette_mred', '--out', str(out)]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert "those of 'imagenette_start'" in error and '--init' in error and not out.exists()


def test_finetune_from_the_command_line(tmp_path, caplog):
    """Of a folder without val: mean, std and interpolation of the start, and the best epoch on what is kept aside."""
    caplog.set_level('INFO')
    start = rs_timm.switchable(MODEL, (48, 32), num_classes=7)
    mine = dict(mean=(0.5, 0.4, 0.3), std=(0.5, 0.4, 0.4), interpolation='bicubic')
    start.pretrained_cfg.update(mine)
    folder = rs_timm.save_pretrained(start, tmp_path / 'start')
    data = make_pictures(tmp_path / 'pictures', train_each=12, val_each=0)
    for split in (data / 'val').iterdir():
        split.rmdir()
    (data / 'val').rmdir()
    out = tmp_path / 'run'
    assert main(['train', MODEL, '--init', str(folder), '--recipe', 'finetune', '--debug-twin', '--data', str(data),
                 '--out', str(out), '--device', 'cpu', '--workers', '0', '--no-progress']) == 0
    model = timm.create_model(f'local-dir:{out}/model', pretrained=True)
    recipe = get_recipe('finetune', debug=True, init=str(folder))
    assert {key: getattr(recipe, key) for key in mine} == mine
    assert {key: type(mine[key])(model.pretrained_cfg[key]) for key in mine} == mine
    rows = [row for row in csv.DictReader((out / 'log.csv').open()) if row['resolution'] != 'ensemble']
    means = {epoch: sum(float(row['top1']) for row in rows if row['epoch'] == epoch) for epoch in ('1', '2')}
    best = max(means, key=lambda epoch: (means[epoch], epoch))
    assert f'the network is that of epoch {best} of 2' in caplog.text
    _, held = hold_out(open_split(data, 'train'), recipe.val_fraction)
    loader = create_multires_loader(held, recipe.resolutions, batch_size=8, is_training=False, num_workers=0,
                                    crop_pct=recipe.crop_pct, **mine)
    measured = evaluate(model, loader)
    for row in rows:
        if row['epoch'] == best:
            assert measured[int(row['resolution'])]['loss'] == pytest.approx(float(row['loss']), abs=1e-4)


def test_the_input_of_weights_is_that_of_their_name_unless_it_is_given(tmp_path, caplog):
    known = timm.models.get_pretrained_cfg('rs_efficientnet_lite0')
    recipe = get_recipe('finetune', init='rs_efficientnet_lite0')
    assert (recipe.mean, recipe.std, recipe.interpolation) == (tuple(known.mean), tuple(known.std), 'bicubic')
    assert recipe.mean != get_recipe('finetune').mean
    given = get_recipe('finetune', init='rs_efficientnet_lite0', mean=(0.1, 0.1, 0.1), interpolation='bilinear')
    assert (given.mean, given.std, given.interpolation) == ((0.1, 0.1, 0.1), recipe.std, 'bilinear')
    assert not caplog.text
    assert get_recipe('finetune', init='plain.pth').mean == Recipe().mean and 'plain.pth' in caplog.text
    assert get_recipe('imagenette_mred', init='rs_efficientnet_lite0').mean == Recipe().mean


def scripted(monkeypatch, top1s):
    """Evaluations with these results -> the weights that were measured, in order."""
    seen = []

    def evaluate(trainer):
        seen.append(copy.deepcopy(trainer.task.get_eval_model().state_dict()))
        return {size: dict(top1=top1s[trainer.position.epoch], loss=1.) for size in trainer.recipe.resolutions}

    monkeypatch.setattr(Trainer, '_evaluate', evaluate)
    return seen


HELD = dict(val_fraction=0.3, progressive=0., epochs=6, limit_batches=1, warmup_epochs=0.)


@pytest.mark.parametrize('top1s, patience, best, epochs', [
    ((50, 80, 60, 80, 70, 10), 0, 4, 6), ((50, 80, 60, 70, 90, 10), 2, 2, 4), ((50, 60, 50, 70, 60, 50), 2, 4, 6)])
def test_the_best_epoch_is_returned_and_patience_ends(data, tmp_path, monkeypatch, top1s, patience, best, epochs):
    seen = scripted(monkeypatch, top1s)
    trained = run(data, tmp_path / 'run', **HELD, patience=patience)
    assert len(seen) == epochs == trained.rows[-1]['epoch']
    assert all(torch.equal(value, trained.model.state_dict()[key]) for key, value in seen[best - 1].items())


def test_a_checkpoint_that_calls_the_score_top1_goes_on(data, tmp_path, monkeypatch):
    seen = scripted(monkeypatch, (50, 80, 60))
    run(data, tmp_path / 'run', **dict(HELD, epochs=3))
    state = load_checkpoint(tmp_path / 'run' / 'last.pth')
    state['best']['top1'] = state['best'].pop('score')
    save_checkpoint(tmp_path / 'run' / 'last.pth', state)
    trained = run(data, tmp_path / 'run', resume=True, **dict(HELD, epochs=3))
    assert all(torch.equal(value, trained.model.state_dict()[key]) for key, value in seen[1].items())


@pytest.mark.parametrize('top1s, best', [({1.: 50, 0.8: 60, 0.5: 55}, 0.8), ({1.: 60, 0.9: 60, 0.5: 50}, 0.9)])
def test_the_crop_is_that_of_the_best_top1_and_goes_with_the_network(data, tmp_path, monkeypatch, top1s, best):
    """Of equal ones the nearest to crop_pct, 0.875; measured at the crop that it says."""
    pixels = {}

    def measured(model, loader, sizes, *rest, limit_batches):
        crop = list(top1s)[len(pixels)]
        pixels[crop], _ = next(iter(loader))
        return {size: dict(top1=top1s[crop] + size) for size in sizes}

    monkeypatch.setitem(choose_crop.__globals__, 'evaluate', measured)
    trained = run(data, tmp_path / 'run', val_fraction=0.3, progressive=0., epochs=1, crop_choices=tuple(top1s))
    assert trained.model.pretrained_cfg['crop_pct'] == trained.model.default_cfg['crop_pct'] == best
    _, held = hold_out(open_split(data, 'train'), 0.3)
    for crop, images in pixels.items():
        expected, _ = next(iter(create_multires_loader(
            held, images, batch_size=4, is_training=False, num_workers=0, crop_pct=crop)))
        assert all(torch.equal(images[size], expected[size]) for size in images)


def test_the_best_epoch_survives_a_stop(data, tmp_path, monkeypatch):
    seen = scripted(monkeypatch, (50, 80, 60, None))
    with pytest.raises(TypeError):  # in the fourth evaluation
        run(data, tmp_path / 'run', **HELD)
    later = scripted(monkeypatch, (0, 0, 0, 70, 60, 10))
    trained = run(data, tmp_path / 'run', resume=True, **HELD)
    assert len(seen) == 4 and len(later) == 3
    assert all(torch.equal(value, trained.model.state_dict()[key]) for key, value in seen[1].items())


def test_running_statistics_stay_as_they_were(data, tmp_path):
    recipe = tiny_recipe()
    torch.save(build_state(recipe), tmp_path / 'init.pth')
    settings = dict(init=str(tmp_path / 'init.pth'), progressive=0., epochs=1)
    before = torch.load(tmp_path / 'init.pth')
    for statistics, moves in ('running', False), ('batch', True):
        after = run(data, tmp_path / statistics, statistics=statistics, **settings).model.state_dict()
        changed = {key for key in before if not torch.equal(before[key], after[key])}
        means = {key for key in before if key.endswith(('running_mean', 'running_var'))}
        assert (means <= changed) is moves and means.isdisjoint(changed) is not moves
        assert {key for key in before if key.endswith('.weight') and before[key].ndim == 4} <= changed


def test_what_is_kept_aside(tmp_path):
    """Of each class its share, at least one of several; drawn by the seed; nothing is lost or in both."""
    data = make_pictures(tmp_path / 'pictures', classes=4, train_each=10, val_each=1)
    for name in map(str, range(1, 10)):
        (data / 'train/class3' / f'{name}.png').unlink()
    whole = open_split(data, 'train')
    rest, held = hold_out(whole, 0.25, seed=3)
    assert sorted(rest.reader.samples + held.reader.samples) == sorted(whole.reader.samples) and len(rest) == 25
    assert sorted(target for *_, target in held.reader.samples) == [0, 0, 1, 1, 2, 2]
    assert hold_out(whole, 0.25, seed=3)[1].reader.samples == held.reader.samples
    assert hold_out(whole, 0.25, seed=4)[1].reader.samples != held.reader.samples
    assert len(hold_out(whole, 0.01)[1]) == 3 and len(whole) == 31


def test_any_field_from_the_command_line(data, tmp_path):
    """A train command as in the issue, and the folder's recipe.json says what ran."""
    import json
    out = tmp_path / 'run'
    options = ('--resolutions 32 48 --epochs 3 --progressive --mred vanilla --no-channels-last --precision float32 '
               '--lr 1e-3 --batch-size 4 --model-args drop_rate=0.1 --workers 0 --device cpu --smoothing 0')
    assert main(['train', MODEL, '--data', str(data), '--out', str(out), *options.split()]) == 0
    ran = json.loads((out / 'recipe.json').read_text())
    assert ran['model'] == MODEL and ran['resolutions'] == [48, 32] and ran['epochs'] == 3 and ran['mred'] == 'vanilla'
    assert ran['lr'] == 1e-3 and ran['progressive'] == 0.8 and ran['channels_last'] is False
    sizes = [row['size'] for row in csv.DictReader((out / 'log.csv').open())]
    assert sizes == ['28', '19', 'ensemble'] * 2 + ['48', '32', 'ensemble']  # 4/7 of 48 and 32, rounded up


@pytest.mark.parametrize('arguments, message', [
    (['--epochs', '0'], 'epochs 0: it must be in'),
    (['--crop-scale', '0.5'], 'crop_scale (0.5,): it takes 2 numbers'),
    (['--progressive', '1.0'], 'leaves none of the'),
    (['--progressive', '0.9', '--epochs', '2'], 'use more epochs, or progressive 0 (--progressive 0)'),
    (['--batch-size', '6', '--accumulate', '4'], 'batch_size 6 is no multiple of 4'),
    (['--batch-size', '4096'], 'batch_size 4096'),
    (['--init', 'nothing.pth'], 'neither a file nor a model name'),
    (['--init', 'runs/none/model.safetensors'], 'there is no such file'),
    (['--init', '.'], 'there is no model.safetensors in this folder'),
    (['--model-args', 'drop_rate'], 'expected NAME=VALUE'),
    (['--model-args', 'num_classes=7'], 'model_args num_classes=7: it is the number of classes in the data'),
    (['--model-args', 'foo=1'], 'model_args foo=1: test_resnet does not take this'),
    (['--auto-augment', 'foo'], "auto_augment 'foo': Unknown AA policy foo; take a policy of timm"),
    (['--mean', '123', '116', '103'], 'mean (123.0, 116.0, 103.0): pixels are in [0, 1]'),
    (['--std', '0', '0', '0'], 'std (0.0, 0.0, 0.0): pixels are in [0, 1]'),
    (['--crop-ratio', '0', '1'], 'crop ratio (0.0, 1.0): it is two positive numbers'),
    (['--patience', '2'], 'patience 2: there are no pictures kept aside to decide on: set val_fraction'),
    (['--crop-choices', '1', '0.8'], 'crop_choices (1.0, 0.8): there are no pictures kept aside'),
    (['--crop-choices', '2', '--val-fraction', '0.2'], 'crop_pct is 2.0'),
    (['--val-fraction', '0.6'], 'val_fraction 0.6: it must be in [0, 0.5]'),
    (['--lr', 'nan'], 'lr nan: it must be in [0, inf)'),
    (['--workers', '-1'], 'workers -1: it must be in [0, inf)'),
    (['--batch-size', '1', '--resolutions', '32', '--progressive', '0', '--precision', 'float32'],
     'one picture at 32 px gives a BatchNorm one value per channel, which has no variance: train with more pictures'),
    (['--splits', 'train', 'test'], 'no folder'),
    (['--device', 'cuda'], 'no CUDA device'),
])
def test_wrong_options_are_one_line(data, tmp_path, capsys, arguments, message):
    if '--device' in arguments and torch.cuda.is_available():
        arguments, message = ['--device', 'tpu'], 'tpu'
    usual = ['--data', str(data), '--out', str(tmp_path / 'run'), '--workers', '0', '--batch-size', '4']
    status = main(['train', MODEL, *usual, *arguments])
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert status == 2 and error.startswith('rs-timm: error: ') and message in error


def test_an_unknown_mode_is_refused_with_the_known_ones(capsys):
    with pytest.raises(SystemExit):
        main(['train', MODEL, '--data', 'd', '--out', 'o', '--mred', 'half'])
    error = capsys.readouterr().err
    assert "'half'" in error and all(mode in error for mode in ('none', 'vanilla', 'full', 'largest', 'larger'))


def test_unknown_names_are_refused_with_the_known_ones(data, tmp_path):
    with pytest.raises(ValueError, match='use one of rs_resnet18_in1k'):
        get_recipe('resnet')
    with pytest.raises(ValueError, match="no field 'epoch': it has resolutions"):
        get_recipe('imagenette', epoch=1)
    with pytest.raises(ValueError, match='rs_resnet18'):
        run(data, tmp_path, model='rs_resnet19')


def test_sizes_of_progressive_training():
    recipe = Recipe(epochs=10, progressive=0.5)
    assert list(recipe.sizes(4).values()) == [128, 112, 96, 80, 64]
    assert recipe.sizes(5) == {r: r for r in recipe.resolutions}
    own = replace(recipe, resolutions=(96, 64), progressive_resolutions=(32, 48))
    assert own.sizes(0) == {96: 48, 64: 32}
    with pytest.raises(ValueError, match='one size for each'):
        replace(recipe, progressive_resolutions=(64,))


@pytest.mark.parametrize('name, epochs, progressive', [
    ('imagenette', 1, 0.), ('imagenette', 2, 0.5), ('imagenette', 3, 15 / 19), ('imagenette_start', 1, 0.),
    ('imagenette_mred', 1, 0.)])
def test_few_epochs_lower_the_recipes_progressive_share(name, epochs, progressive, caplog):
    """One of them is at the real sizes, the recipe states what runs, and what is asked for is taken as it is."""
    recipe = get_recipe(name, epochs=epochs)
    assert recipe.progressive == progressive and recipe.small_epochs < epochs
    lowered = progressive != get_recipe(name).progressive
    assert ('none of' in caplog.text) == lowered and (f'it is {progressive:g} instead' in caplog.text) == lowered
    if lowered:
        with pytest.raises(ValueError, match='--progressive 0'):
            get_recipe(name, epochs=epochs, progressive=get_recipe(name).progressive)


def test_the_model_that_is_measured_during_progressive_training(random_statistics):
    """Each set stands under the size that it is fed with."""
    model = random_statistics(rs_timm.switchable(MODEL, (64, 48)))
    small = resized(model, {40: 64, 24: 48}).eval()
    assert rs_timm.get_resolutions(small) == (40, 24) and resized(model, {64: 64, 48: 48}) is model
    x = torch.randn(2, 3, 24, 24)
    with rs_timm.use_resolution(model, 48):
        expected = model(x)
    assert torch.equal(small(x), expected)


def test_several_sets_of_one_size(data, tmp_path):
    """Table 6, single-resolution: what is measured is the first set, at that size."""
    recipe = tiny_recipe(progressive=0., progressive_resolutions=(), crop='per_resolution', same_size=40)
    assert recipe.sizes(1) == {48: 40, 32: 40} and recipe.measured_sets(1) == {40: 48}
    settings = dict(progressive=0., progressive_resolutions=(), crop='per_resolution', same_size=40)
    trained = run(data, tmp_path / 'run', **settings)
    assert trained.model.resolutions == (48, 32)
    assert [(row['resolution'], row['size']) for row in trained.rows] == [(48, 40)] * 2
    images, _ = next(iter(Loaders(str(data), recipe, workers=0).training(0)))
    assert {r: view.shape[-1] for r, view in images.items()} == {48: 40, 32: 40}
    assert not torch.equal(images[48], images[32])
    with pytest.raises(ValueError, match='same_size 40 with progressive 0.5'):
        replace(recipe, epochs=4, progressive=0.5)


def test_one_resolution_is_an_ordinary_network(data, tmp_path):
    trained = run(data, tmp_path / 'run', resolutions=(32,), progressive=0., progressive_resolutions=(), epochs=1)
    assert trained.model.resolutions == (32,)
    assert [row['resolution'] for row in trained.rows] == [32]


def train_with_shared_bn(model, data, out):
    options = ('--shared-bn --resolutions 48 32 --progressive 0 --epochs 1 --limit-batches 1 --batch-size 4 '
               '--workers 0 --device cpu --no-progress')
    assert main(['train', model, '--data', str(data), '--out', str(out), *options.split()]) == 0


@pytest.mark.parametrize('model', [MODEL, 'rs_resnet18'])
def test_shared_batch_norm_is_saved_as_the_stock_network(model, data, tmp_path, capsys):
    out = tmp_path / 'run'
    train_with_shared_bn(model, data, out)
    assert f"load it: import rs_timm; timm.create_model('local-dir:{out}/model', pretrained=True)" in (
        capsys.readouterr().out)
    loaded = timm.create_model(f'local-dir:{out}/model', pretrained=True)
    assert not rs_timm.is_switchable(loaded) and loaded.pretrained_cfg['label_names'] == ['class0', 'class1']
    assert loaded.pretrained_cfg['mean'] and 'license' not in loaded.pretrained_cfg
    trained = torch.load(out / 'last.pth', weights_only=True)['state_dict']
    assert all(torch.equal(value, trained[key]) for key, value in loaded.state_dict().items())


def test_shared_batch_norm_of_a_network_that_timm_lacks_is_saved_as_weights(data, tmp_path, capsys, caplog):
    out = tmp_path / 'run'
    train_with_shared_bn('rs_resnet18_w2a32', data, out)
    assert 'load it' not in capsys.readouterr().out and 'has the weights alone' in caplog.text
    assert [file.name for file in (out / 'model').iterdir()] == ['model.safetensors']


def test_sync_bn_keeps_activations(random_statistics):
    recipe = Recipe(resolutions=(48, 32))
    model = random_statistics(build_model('rs_mobilenetv2', recipe, 3))
    with pytest.raises(ValueError, match='sync_bn needs CUDA'):
        synchronized(model, torch.device('cpu'))
    synced = synchronized(copy.deepcopy(model), torch.device('cuda'))
    assert sum(isinstance(m, nn.SyncBatchNorm) for m in synced.modules()) == 2 * 52
    assert synced.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(synced(x), model(x))


@pytest.mark.parametrize('train', ['bn', 'head', 'all'])
def test_the_ladder_of_fine_tuning(data, tmp_path, train):
    """What changes in a run is what its rung names; convolutions of 'bn' and 'head' keep every bit."""
    recipe = tiny_recipe(train=train)
    names = {name for name, _ in build_model(MODEL, recipe, 2).named_parameters()}
    torch.save(build_state(recipe), tmp_path / 'init.pth')
    trained = run(data, tmp_path / 'run', train=train, init=str(tmp_path / 'init.pth'), progressive=0., lr=0.1)
    initial = torch.load(tmp_path / 'init.pth')
    changed = {name for name, p in trained.model.named_parameters() if not torch.equal(p, initial[name])}
    norms = {f'{name}.{key}' for name, m in trained.model.named_modules() if isinstance(m, _BatchNorm)
             for key, _ in m.named_parameters()}
    head = {'fc.weight', 'fc.bias'}
    expected = {'bn': norms, 'head': norms | head, 'all': names}[train]
    assert changed == expected


def build_state(recipe):
    torch.manual_seed(5)
    model = build_model(MODEL, replace(recipe, train='all', model_args=('zero_init_last=False',)), 2)
    return model.state_dict()


def test_init_from_plain_and_from_switchable_weights(tmp_path):
    recipe = Recipe(resolutions=(48, 32))
    plain = timm.create_model(MODEL, num_classes=7)
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    model = build_model(MODEL, replace(recipe, init=str(tmp_path / 'plain.pth')), 7)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(x), plain.eval()(x))
    torch.save(dict(state_dict=model.state_dict()), tmp_path / 'own.pth')
    again = build_model(MODEL, replace(recipe, init=str(tmp_path / 'own.pth')), 7)
    assert torch.equal(again.eval()(x), plain(x))


@pytest.mark.parametrize('layout', ['paper', 'wrapped', 'headless'])
def test_init_of_other_layouts_starts_the_classifier_anew(tmp_path, caplog, layout, random_statistics):
    """The classifier is looked for under the name that it has here."""
    source = random_statistics(timm.create_model('rs_resnet18', num_classes=7))
    state = paper_layout(source) if layout == 'paper' else {f'module.{k}': v for k, v in source.state_dict().items()}
    if layout == 'headless':
        state = {key: value for key, value in state.items() if '.fc.' not in key}
    torch.save(state, tmp_path / 'start.pth')
    model = build_model('rs_resnet18', Recipe(init=str(tmp_path / 'start.pth')), 3)
    said = 'is not there' if layout == 'headless' else 'is for 7 classes'
    assert f'start.pth: fc.weight {said}, the network has 3: it starts anew' in caplog.text
    expected = source.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in model.state_dict().items() if 'fc.' not in key)


@pytest.mark.parametrize('name', ['rs_resnet18', MODEL])
def test_init_from_a_saved_folder(tmp_path, name):
    first = build_model(name, Recipe(resolutions=(48, 32)), 3)
    folder = rs_timm.save_pretrained(first, tmp_path / 'model')
    again = build_model(name, Recipe(resolutions=(48, 32), init=str(folder)), 3).state_dict()
    assert all(torch.equal(value, again[key]) for key, value in first.state_dict().items())


def test_init_with_rgb_weights_for_gray_pictures(tmp_path, caplog):
    """As in timm: on a gray picture the new network says what the old one does on the same in RGB."""
    caplog.set_level('INFO')
    plain = timm.create_model('resnet18', num_classes=3).eval()
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    recipe = Recipe(resolutions=(48, 32), init=str(tmp_path / 'plain.pth'), model_args=('in_chans=1',))
    x = torch.randn(2, 1, 48, 48)
    with torch.no_grad():
        torch.testing.assert_close(build_model('rs_resnet18', recipe, 3).eval()(x), plain(x.expand(-1, 3, -1, -1)))
    assert 'conv1.weight is for 3 channels, the network has 1: it is adapted' in caplog.text


@pytest.mark.parametrize('resize', ['loader', 'device'])
def test_a_network_for_gray_pictures(data, tmp_path, capsys, resize):
    """Trained with all that is random about pictures, saved with the mean of its channel, measured as in training."""
    out = tmp_path / 'run'
    options = ('--model-args in_chans=1 --resolutions 48 32 --epochs 1 --batch-size 4 --limit-batches 2 --precision '
               'float32 --color-jitter 0.4 --auto-augment rand-m6-mstd0.5 --re-prob 0.5 --mixup 0.2 --workers 0 '
               f'--device cpu --no-progress --resize {resize}')
    assert main(['train', MODEL, '--data', str(data), '--out', str(out), *options.split()]) == 0
    model = timm.create_model(f'local-dir:{out}/model', pretrained=True)
    assert tuple(model.pretrained_cfg['input_size']) == (1, 48, 48)
    assert model.pretrained_cfg['mean'] == pytest.approx([sum(Recipe().mean) / 3])
    logged = {row['resolution']: float(row['top1']) for row in csv.DictReader((out / 'log.csv').open())}
    capsys.readouterr()
    assert main(['eval', f'{out}/model', '--data', str(data), '--workers', '0', '--device', 'cpu', '--ensemble']) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()[2:5]]
    assert {row[0]: float(row[1]) for row in rows} == pytest.approx(logged, abs=0.01)


def test_segmentation_is_not_trained_on_gray():
    with pytest.raises(ValueError, match='in_chans=1: segmentation is trained on RGB'):
        Recipe(task='segmentation', labels=('a', 'b'), crop_pct=1., model_args=('in_chans=1',))


@pytest.mark.parametrize('name, remedy', [
    ('rs_mobilenetv2.mred_imagenette', 'train rs_mobilenetv2 with --init rs_mobilenetv2.mred_imagenette'),
    ('switchable:test_resnet.r160_in1k', 'train test_resnet with --init test_resnet.r160_in1k'),
    ('.', 'name a network, such as rs_resnet18, with --init .'),
    ('hf-hub:timm/resnet18.a1_in1k', 'with --init hf-hub:timm/resnet18.a1_in1k'),
])
def test_names_of_weights_do_not_start_from_random_ones(data, tmp_path, capsys, name, remedy):
    out = tmp_path / 'run'
    assert main(['train', name, '--data', str(data), '--out', str(out), '--debug-twin', '--device', 'cpu']) == 2
    assert remedy in capsys.readouterr().err.splitlines()[-1] and not out.exists()


def test_a_name_of_weights_with_init_names_the_network(tmp_path):
    torch.save(timm.create_model('resnet18', num_classes=3).state_dict(), tmp_path / 'plain.pth')
    check_start('rs_resnet18.a1_in1k', Recipe(init=str(tmp_path / 'plain.pth')))


def test_the_prefix_of_other_commands(data, tmp_path, monkeypatch, capsys):
    """'switchable:' is understood, and no part of the folder's name."""
    monkeypatch.chdir(tmp_path)
    options = '--debug-twin --epochs 1 --limit-batches 1 --precision float32 --device cpu --workers 0 --no-progress'
    assert main(['train', f'switchable:{MODEL}', '--data', str(data), *options.split()]) == 0
    assert "'local-dir:runs/test_resnet/model'" in capsys.readouterr().out
    assert type(build_model(f'switchable:{MODEL}', Recipe(), 3)) is type(build_model(MODEL, Recipe(), 3))


@pytest.mark.parametrize('model, settings', [(MODEL, {}), ('rs_refinenet_resnet18', dict(
    task='segmentation', labels=('a', 'b', 'c'), crop_pct=1., model_args=('features=8',)))])
@pytest.mark.parametrize('change, message', [
    (lambda state: b'', 'the file is empty'),
    (lambda state: b'text', 'not readable'),
    (lambda state: dict(state, code=Hostile()), 'it holds a pickled object'),
    (lambda state: {}, 'no tensors by name'),
    (lambda state: dict(state, **{'bn1.weight': state['bn1.weight'] / 0}), 'bn1.* is not finite'),
    (lambda state: {key: value.to(torch.int8) for key, value in state.items()}, 'is stored as torch.int8'),
    (lambda state: {key: value[..., :1] for key, value in state.items() if value.ndim}, 'not the weights|does not fit'),
    (lambda state: {f'{key}.more': value for key, value in state.items()}, 'not the weights|does not fit'),
])
def test_weights_that_cannot_be_a_start_are_named(tmp_path, model, settings, change, message):
    file = tmp_path / 'start.pth'
    changed = change(timm.create_model(MODEL if model == MODEL else 'resnet18').state_dict())
    file.write_bytes(changed) if isinstance(changed, bytes) else torch.save(changed, file)
    with pytest.raises(ValueError, match=f'start.pth: ({message}|.*({message}))'):
        build_model(model, Recipe(resolutions=(48, 32), init=str(file), **settings), 3)


def test_corrupt_pictures_stop_a_run_or_are_counted_once(tmp_path, caplog):
    data = make_pictures(tmp_path / 'pictures', train_each=6, val_each=3)
    for name in ('train/class1/3.png', 'val/class0/0.png', 'val/class1/2.png'):
        (data / name).write_bytes(b'not a picture')
    with pytest.raises(ValueError, match='3.png'):
        run(data, tmp_path / 'stops', epochs=1, progressive=0.)
    options = Options(device='cpu', workers=0, skip_corrupt=True, progress=False)
    rows = train(MODEL, str(data), tiny_recipe(progressive=0.), str(tmp_path / 'counts'), options=options).rows
    assert {row['epoch'] for row in rows} == {1, 2}
    assert '1 pictures could not be read in training, the first: ' in caplog.text and '3.png' in caplog.text
    assert '2 pictures could not be read in evaluation, the first: ' in caplog.text
    assert caplog.text.count('could not be read') == 2


def test_splits_with_other_classes_are_refused(tmp_path):
    data = make_pictures(tmp_path / 'pictures', train_each=4, val_each=2)
    extra = data / 'val/class0b'
    extra.mkdir()
    Image.new('RGB', (40, 40)).save(extra / '0.png')
    with pytest.raises(ValueError, match='differ in their classes'):
        run(data, tmp_path / 'run')


def test_training_learns(data, tmp_path):
    """Two classes that differ in their colour."""
    settings = dict(epochs=6, model_args=(), opt='adamw', lr=3e-3, sched='cosine', warmup_epochs=0.)
    rows = run(data, tmp_path / 'run', **settings).rows
    assert rows[-1]['top1'] == 100 and rows[-1]['train_classification'] < 0.8 * rows[0]['train_classification']


def test_the_norms_of_a_network_without_a_paper_name_count_too():
    model = build_model('test_efficientnet', Recipe(resolutions=(48, 32), train='bn'), 3)
    trainable = [m for m in model.modules() if any(p.requires_grad for p in m.parameters(recurse=False))]
    assert trainable and all(isinstance(m, _BatchNorm) for m in trainable) and isinstance(model, nn.Module)


def test_the_log_measures_pictures_as_they_are_in_use(data):
    """Whatever the training does, each size is resized once in the evaluation."""
    loaders = [Loaders(str(data), tiny_recipe(resize=resize), workers=0) for resize in ('loader', 'device')]
    sizes = tiny_recipe().resolutions
    (straight, _), (other, _) = (next(iter(loader.evaluation(sizes))) for loader in loaders)
    assert all(torch.equal(straight[size], other[size]) for size in sizes)
