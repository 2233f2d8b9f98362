"""Pictures kept aside, and distillations on trial: the parts have nothing in common, and a stopped trial goes on."""
import pytest
import timm
import torch
from masked_pictures import IGNORE, NAMES, make_masked

import rs_timm  # noqa: F401 (registers the models)
from benchmarks.aside import link_pictures, link_scenes, split_scenes
from benchmarks.runs import TRIALS
from benchmarks.trials import Trial, tried
from rs_timm.data import MaskFolder
from rs_timm.loss import mred_loss
from rs_timm.training import get_recipe, train


def test_the_end_of_each_sequence_is_kept_aside():
    names = [f'{sequence}_{i:03}' for sequence, count in (('a', 20), ('b', 10)) for i in range(count)]
    kept, aside = split_scenes(names[::-1], 0.2, gap=3)
    assert aside == ['a_016', 'a_017', 'a_018', 'a_019', 'b_008', 'b_009']
    assert kept == [*names[:13], *names[20:25]]
    with pytest.raises(ValueError, match='one of the parts is empty'):
        split_scenes(names, 0.001)


def test_links_are_the_training_pictures_with_their_masks(tmp_path):
    data = make_masked(tmp_path / 'data')
    recipe = get_recipe('camvid', labels=NAMES, ignore_label=IGNORE)
    whole = {a.name: b for a, b in MaskFolder(data, 'train', NAMES, IGNORE).pairs}
    for _ in range(2):  # what is there is kept
        folder = link_scenes(data, tmp_path / 'parts', recipe, 0.3)
        parts = [MaskFolder(folder, split, NAMES, IGNORE) for split in ('train', 'val')]
        for part in parts:
            assert all(b.resolve() == whole[a.name].resolve() for a, b in part.pairs)
            part[0]
    names = [{a.name for a, _ in part.pairs} for part in parts]
    assert names[0] and names[1] and not names[0] & names[1] and names[0] | names[1] < set(whole)


def test_every_fifth_picture_of_a_class_is_kept_aside(tmp_path):
    for name, count in (('cat', 11), ('dog', 5)):
        (tmp_path / 'data/train' / name).mkdir(parents=True)
        for i in range(count):
            (tmp_path / f'data/train/{name}/{i:02}.jpg').write_bytes(bytes([i]))
    for _ in range(2):
        folder = link_pictures(tmp_path / 'data', tmp_path / 'parts', 0.2)
        found = {split: sorted(str(f.relative_to(folder / split)) for f in (folder / split).glob('*/*.jpg'))
                 for split in ('train', 'val')}
        assert found['val'] == ['cat/04.jpg', 'cat/09.jpg', 'dog/04.jpg']
        assert len(found['train']) == 13 and not {*found['train']} & {*found['val']}
        assert (folder / 'val/cat/09.jpg').read_bytes() == bytes([9])
    other = link_pictures(tmp_path / 'data', tmp_path / 'more', 0.4)  # every 2.5th
    assert [f.name for f in sorted((other / 'val/cat').iterdir())] == ['02.jpg', '04.jpg', '07.jpg', '09.jpg']


SIZES = (64, 48, 32)


def made(**trial):
    torch.manual_seed(0)
    task = Trial(timm.create_model('rs_resnet18', num_classes=10, resolutions=SIZES), **trial)
    task.alpha.data += torch.tensor([0.5, 0.1, -0.4])
    return task


def batch_of(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return ({r: torch.randn(4, 3, r, r, generator=generator) for r in SIZES},
            torch.randint(10, (4,), generator=generator))


def test_the_distillation_on_trial_has_its_weight_from_its_first_update_on():
    task = made(weight=0.25, first=1)
    before, after = (task(*batch_of()) for _ in range(2))
    for losses, weight in ((before, 0.), (after, 0.25)):
        assert losses['distillation'] > 0.01
        expected = losses['classification'] + losses['ensemble'] + weight * losses['distillation']
        assert losses['loss'].item() == pytest.approx(expected.item(), rel=1e-6)
    again = made(first=3)
    again.load_task_state(task.get_task_state())
    assert again.updates == 2 and torch.equal(again.alpha, task.alpha)


@pytest.mark.parametrize('trial', [dict(temperature=1 + 1e-9), dict(mutual=True), dict(ema_decay=0.9)])
def test_a_trial_that_changes_nothing_yet_is_full_mred(trial):
    """The teachers' values are those of Equation 10; an average of one network is this network."""
    assert made(**trial)(*batch_of())['distillation'].item() == pytest.approx(
        made()(*batch_of())['distillation'].item(), rel=1e-5)


def test_temperature_softens_teachers_and_students():
    task = made(temperature=3.)
    losses = task(*batch_of())
    softer = mred_loss({r: z / 3 for r, z in losses['logits'].items()}, batch_of()[1], task.alpha)
    assert losses['distillation'].item() == pytest.approx(9 * softer['distillation'].item(), rel=1e-3)


@pytest.mark.parametrize('ensemble', ['equal', 'entropy'])
def test_the_ensemble_weighs_sizes_otherwise(ensemble):
    task = made(ensemble=ensemble)
    z = {r: torch.randn(5, 10) * (1 + r / 32) for r in SIZES}
    alpha = torch.zeros(3) if ensemble == 'equal' else task.alpha.detach()
    expected = []
    for n in range(5):
        entropies = torch.stack([torch.distributions.Categorical(logits=z[r][n]).entropy() for r in SIZES])
        weights = (alpha - (entropies if ensemble == 'entropy' else 0.)).softmax(0)
        expected.append(sum(w * z[r][n] for w, r in zip(weights, SIZES)))
    assert torch.allclose(task._mean(z), torch.stack(expected), atol=1e-5)


@pytest.mark.parametrize('mutual', [False, True])
def test_a_gradient_reaches_the_teachers_where_they_learn_too(mutual):
    logits = {r: torch.randn(4, 10) for r in SIZES}
    teachers = {r: z.clone().requires_grad_() for r, z in logits.items()}
    assert made(mutual=mutual)._distillation(logits, teachers).requires_grad is mutual


def test_a_moving_average_forgets_and_goes_on_after_a_stop():
    whole = made(ema_decay=0.5)
    optimizer = torch.optim.SGD(whole.parameters(), lr=0.1)
    assert {id(p) for group in optimizer.param_groups for p in group['params']} == {
        id(p) for p in whole.trainable_module.parameters()}
    expected = [p.detach().clone() for p in whole.trainable_module.parameters()]
    for update in range(3):
        decay = min(0.5, (1 + update) / (10 + update))
        expected = [decay * mean + (1 - decay) * p.detach() for mean, p in zip(
            expected, whole.trainable_module.parameters())]
        whole(*batch_of(update))['loss'].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(whole.average[0].parameters(), expected))
    again = made(ema_decay=0.5)
    again.trainable_module.load_state_dict(whole.trainable_module.state_dict())
    again.load_task_state(whole.get_task_state())
    assert torch.equal(*(task(*batch_of(7))['distillation'] for task in (whole, again)))


def test_planned_trials_are_settings_of_a_trial():
    for trial in TRIALS.values():
        assert made(**trial)(*batch_of())['loss'] > 0
    with pytest.raises(ValueError, match="ensemble 'loud' is unknown"):
        made(ensemble='loud')


def test_train_uses_the_trial_within_the_context_alone(monkeypatch, tmp_path):
    tasks = []
    init = Trial.__init__
    monkeypatch.setattr(Trial, '__init__', lambda self, *args, **kwargs: (tasks.append(kwargs), init(
        self, *args, **kwargs))[1])
    recipe = get_recipe('camvid', debug=True, labels=NAMES, ignore_label=IGNORE, model_args=('features=8',),
                        precision='float32', epochs=1)
    for trial, calls in ((dict(first=2), 1), ({}, 1)):
        with tried(trial):
            train('rs_refinenet_resnet18', str(make_masked(tmp_path / f'data{len(trial)}')), recipe,
                  str(tmp_path / f'out{len(trial)}'))
        assert len(tasks) == calls
    assert tasks[0]['first'] == 2
