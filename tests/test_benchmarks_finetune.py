"""benchmarks.finetune: what it compares is alike, and its table says what the rows say."""
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
from training_run import make_pictures

from benchmarks import environment, finetune
from benchmarks.finetune import SIZES
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
    (text,) = {finetune.settings(job.recipe(args)) for job in (*finetune.jobs(), *finetune.jobs((64, 32)))}
    assert 'head=zero' in text.split()


def rows_of(method, seed, right, cpu):
    """A row for each size, of four pictures; `right`: how many are right at all sizes."""
    bits, args = np.arange(4) < right, Namespace(data=Path('clothing'), pictures=9, tested=4, epochs=3, sizes=SIZES)
    return [dict(finetune.key(args, method, seed), resolution=size, crop=0.875, top1=100 * bits.mean(),
                 right=packed(bits), cpu_seconds=cpu, threads=1, device='cpu',
                 torch='2', timm='1') for size in SIZES]


def test_the_table_says_what_the_rows_say(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    rows = [*rows_of('rs_net', 0, 3, 600), *rows_of('rs_net', 1, 4, 600), *rows_of('individual', 0, 2, 120)]
    put(tmp_path / 'finetune.csv', rows, finetune.KEY)
    put(tmp_path / 'finetune_latency.csv', [
        dict(engine=engine, resolution=size, p50_ms=9. - index, ratio=0.9 - index / 10, calls=8, device='cpu',
             threads=1, load=0.1, versions='', torch='2')
        for engine in finetune.ENGINES for index, size in enumerate(SIZES)])
    lines = {line.split('|')[1].strip(): [cell.strip() for cell in line.split('|')[2:-1]]
             for line in finetune.finetune_section().splitlines() if line.startswith('|')}
    assert lines['RS-Net (MRED)'] == ['2', *['87.5'] * 5, '10']  # minutes, once for the network
    assert lines['a network for each size'] == ['1', *['50.0'] * 5, '10']  # five networks of a minute each
    assert 'the same without distillation' not in lines
    gains = lines['RS-Net against a network for each size'][1:6]  # of the seed that both have: one picture of four
    assert all(gain.startswith('+25.0 (') for gain in gains)
    assert lines['openvino'] == ['9.0 (0.90)', '8.0 (0.80)', '7.0 (0.70)', '6.0 (0.60)', '5.0 (0.50)']


def test_each_comparison_has_a_table_the_last_one_first(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    earlier = [dict(row, settings=f"{row['settings']} lr=1.0".replace('head=zero ', '')) for row in
               rows_of('rs_net', 0, 4, 1)]
    put(tmp_path / 'finetune.csv', [*earlier, *rows_of('rs_net', 0, 3, 60)], finetune.KEY)
    text = finetune.finetune_section()
    assert [line.split('|')[3].strip() for line in text.splitlines() if '| RS-Net' in line] == ['75.0', '100.0']
    captions = [line for line in text.splitlines() if line.startswith('Top-1')]
    assert '`finetune`, from' in captions[0] and '`finetune` with head=random, lr=1.0, from' in captions[1]


def test_a_seed_that_lacks_a_size_is_not_averaged(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    put(tmp_path / 'finetune.csv', [*rows_of('individual', 0, 2, 120), *rows_of('individual', 1, 2, 120)[:2]],
        finetune.KEY)
    (line,) = (line for line in finetune.finetune_section().splitlines() if line.startswith('| a network for each'))
    assert [cell.strip() for cell in line.split('|')[3:9]] == ['50.0', '50.0', *['not measured'] * 4]


def test_the_interval_of_equal_pictures_is_a_point():
    assert finetune.interval(np.full(7, 0.5)) == (pytest.approx(50), pytest.approx(50))
