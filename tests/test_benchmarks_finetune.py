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


def test_a_small_folder_has_so_many_of_each_class_and_all_others_to_test_on(tmp_path):
    data = make_pictures(tmp_path / 'pictures', classes=2, train_each=5, val_each=3)
    for name in ('class0', 'class1'):
        for index, file in enumerate((data / 'val' / name).iterdir()):
            file.rename(file.with_name(f'val{index}.png'))
    for _ in range(2):  # the second time all is there
        place = finetune.small_folder(data, tmp_path / 'small', 3)
    for name in ('class0', 'class1'):
        parts = [{link.resolve() for link in (place / split / name).iterdir()} for split in ('train', 'test')]
        assert [len(part) for part in parts] == [3, 2 + 3] and not parts[0] & parts[1]
        assert parts[0] | parts[1] == {file.resolve() for file in data.glob(f'*/{name}/*')}


def test_two_pictures_of_one_name_are_not_taken_for_one(tmp_path):
    data = make_pictures(tmp_path / 'pictures', classes=1, train_each=2, val_each=2)
    with pytest.raises(FileExistsError):
        finetune.small_folder(data, tmp_path / 'small', 1)


def test_settings_leave_out_what_the_methods_differ_in():
    args = Namespace(epochs=3)
    assert {finetune.settings(job.recipe(args)) for job in finetune.jobs()} == {finetune.settings_of('half', 3)}
    assert finetune.settings_of('rs_net', 4) != finetune.settings_of('rs_net', 3)


def rows_of(method, seed, right, cpu):
    """A row for each size, of four pictures; `right`: how many are right at all sizes."""
    bits = np.arange(4) < right
    return [dict(data='clothing', pictures=9, epochs=3, method=method, seed=seed, resolution=size, crop=0.875,
                 top1=100 * bits.mean(), tested=4, settings=finetune.settings_of(method, 3), right=packed(bits), cpu_seconds=cpu, threads=1, device='cpu',
                 torch='2', timm='1') for size in finetune.SIZES]


def test_the_table_says_what_the_rows_say(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    rows = [*rows_of('rs_net', 0, 3, 600), *rows_of('rs_net', 1, 4, 600), *rows_of('individual', 0, 2, 120)]
    put(tmp_path / 'finetune.csv', rows, finetune.KEY)
    put(tmp_path / 'finetune_latency.csv', [dict(engine='openvino', resolution=size, p50_ms=9.1 - index, calls=8)
                                            for index, size in enumerate(finetune.SIZES)])
    lines = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
             for line in finetune.finetune_section().splitlines() if line.startswith('|')}
    assert lines['RS-Net (MRED)'] == ['2', *['87.5'] * 5, '10']  # minutes, once for the network
    assert lines['a network for each size'] == ['1', *['50.0'] * 5, '10']  # five networks of a minute each
    assert lines['the same without distillation'] == ['-', *['not measured'] * 6]
    gains = lines['RS-Net against a network for each size'][1:6]  # of the seed that both have: one picture of four
    assert all(gain.startswith('+25.0 (') for gain in gains)
    assert lines['RS-Net against that without distillation'][1:6] == lines['milliseconds, torch'][1:6]
    assert lines['milliseconds, openvino'][1:6] == ['9.1', '8.1', '7.1', '6.1', '5.1']


def test_rows_of_other_settings_or_test_pictures_are_left_out(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    others = [dict(row, **change) for change in (dict(settings='lr=1'), dict(tested=3, right=packed(np.ones(3, bool))))
              for row in rows_of('rs_net', 0, 4, 1)]
    put(tmp_path / 'finetune.csv', [*others, *rows_of('rs_net', 0, 3, 60)], finetune.KEY)
    (line,) = (line for line in finetune.finetune_section().splitlines() if line.startswith('| RS-Net (MRED)'))
    assert [cell.strip() for cell in line.split('|')[2:-1]] == ['1', *['75.0'] * 5, '1']


def test_a_seed_that_lacks_a_size_is_not_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    put(tmp_path / 'finetune.csv', [*rows_of('individual', 0, 2, 120), *rows_of('individual', 1, 2, 120)[:2]],
        finetune.KEY)
    (line,) = (line for line in finetune.finetune_section().splitlines() if line.startswith('| a network for each'))
    assert [cell.strip() for cell in line.split('|')[3:8]] == ['50.0', '50.0', *['not measured'] * 3]


def test_the_interval_of_equal_pictures_is_a_point():
    assert finetune.interval(np.full(7, 0.5)) == (pytest.approx(50), pytest.approx(50))
