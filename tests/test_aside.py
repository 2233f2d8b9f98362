"""Scenes kept aside, and distillations on trial: the parts have no picture in common, and a stopped trial goes on."""
import pytest
import timm
import torch
from masked_pictures import IGNORE, NAMES, make_masked

import rs_timm  # noqa: F401 (registers the models)
from benchmarks.aside import link_scenes, split_scenes
from benchmarks.trials import Weighted, tried
from rs_timm.data import MaskFolder
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


def test_a_weighted_distillation():
    torch.manual_seed(0)
    task = Weighted(timm.create_model('rs_resnet18', num_classes=10, resolutions=(64, 32)), weight=0.25, first=1)
    task.alpha.data += torch.tensor([0.5, 0.])
    batch, target = {r: torch.randn(4, 3, r, r) for r in (64, 32)}, torch.tensor([1, 7, 2, 2])
    before, after = (task(batch, target) for _ in range(2))
    for losses, weight in ((before, 0.), (after, 0.25)):
        assert losses['distillation'] > 0.01
        expected = losses['classification'] + losses['ensemble'] + weight * losses['distillation']
        assert losses['loss'].item() == pytest.approx(expected.item(), rel=1e-6)
    again = Weighted(timm.create_model('rs_resnet18', num_classes=10, resolutions=(64, 32)), first=3)
    again.load_task_state(task.get_task_state())
    assert again.updates == 2 and torch.equal(again.alpha, task.alpha)


def test_train_uses_the_trial_within_the_context_alone(monkeypatch, tmp_path):
    made = []
    init = Weighted.__init__
    monkeypatch.setattr(Weighted, '__init__', lambda self, *args, **kwargs: (made.append(kwargs), init(
        self, *args, **kwargs))[1])
    recipe = get_recipe('camvid', debug=True, labels=NAMES, ignore_label=IGNORE, model_args=('features=8',),
                        precision='float32', epochs=1)
    for trial, calls in ((dict(first=2), 1), ({}, 1)):
        with tried(trial):
            train('rs_refinenet_resnet18', str(make_masked(tmp_path / f'data{len(trial)}')), recipe,
                  str(tmp_path / f'out{len(trial)}'))
        assert len(made) == calls
    assert made[0]['first'] == 2
