"""benchmarks.finetune: what it compares is alike, and its table says what the rows say."""
from argparse import Namespace

import numpy as np
import pytest
from training_run import make_pictures

from benchmarks import environment, finetune
from benchmarks.store import packed, put


def test_jobs_differ_in_sizes_losses_and_seeds_alone():
    args = Namespace(epochs=3)
    recipes = {job.name: job.recipe(args) for job in finetune.jobs()}
    first = recipes['rs_net_s0']
    for name, recipe in recipes.items():
        changed = set(recipe.differences(vars(first)))
        assert changed <= {'resolutions', 'mred', 'seed'} and recipe.mred == ('none' if 'parallel' in name else 'full')
    assert sum(name.startswith('individual') for name in recipes) == 2 * len(finetune.SIZES)


def test_a_small_folder_has_so_many_of_each_class_and_all_to_test_on(tmp_path):
    data = make_pictures(tmp_path / 'pictures', classes=2, train_each=5, val_each=3)
    (data / 'train/class1/0.png').rename(data / 'train/class1/a.png')
    for _ in range(2):  # the second time all is there
        place = finetune.small_folder(data, tmp_path / 'small', 4)
    assert [len(list((place / 'train' / name).iterdir())) for name in ('class0', 'class1')] == [4, 4]
    assert len(list(place.glob('val/*/*'))) == 6 and all(file.is_file() for file in place.glob('train/*/*'))


def rows_of(method, seed, right, cpu):
    """A row for each size, of four pictures; `right`: how many are right at all sizes."""
    bits = np.arange(4) < right
    return [dict(data='clothing', pictures=9, epochs=3, method=method, seed=seed, resolution=size, crop=0.875,
                 top1=100 * bits.mean(), tested=4, right=packed(bits), cpu_seconds=cpu, threads=1, device='cpu',
                 torch='2', timm='1') for size in finetune.SIZES]


def test_the_table_says_what_the_rows_say(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    rows = [*rows_of('rs_net', 0, 3, 600), *rows_of('rs_net', 1, 4, 600), *rows_of('individual', 0, 2, 120)]
    put(tmp_path / 'finetune.csv', rows, finetune.KEY)
    lines = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
             for line in finetune.finetune_section().splitlines() if line.startswith('|')}
    assert lines['RS-Net (MRED)'] == ['2', *['87.5'] * 5, '5']  # minutes of two cores, once for the network
    assert lines['a network for each size'] == ['1', *['50.0'] * 5, '5']  # five networks of a minute each
    assert lines['the same without distillation'] == ['-', *['not measured'] * 6]
    gains = lines['RS-Net against a network for each size'][1:6]  # of the seed that both have: one picture of four
    assert all(gain.startswith('+25.0 (') for gain in gains)


def test_a_seed_that_lacks_a_size_is_not_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    put(tmp_path / 'finetune.csv', [*rows_of('individual', 0, 2, 120), *rows_of('individual', 1, 2, 120)[:2]],
        finetune.KEY)
    (line,) = (line for line in finetune.finetune_section().splitlines() if line.startswith('| a network for each'))
    assert [cell.strip() for cell in line.split('|')[3:8]] == ['50.0', '50.0', *['not measured'] * 3]


def test_the_interval_of_equal_pictures_is_a_point():
    assert finetune.interval(np.full(7, 0.5)) == (pytest.approx(50), pytest.approx(50))
