"""The named runs: the paper's settings, fair learning rates, and a queue of debug twins that survives a kill."""
import argparse
import csv
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from masked_pictures import IGNORE, NAMES, SIZE, make_masked
from PIL import Image
from training_run import ROOT, make_pictures

from benchmarks import environment, presets, run, runs, segmentation_maps, store
from benchmarks.paper.sections import pilot_choice
from benchmarks.presets import MEAN_DECAY, MEAN_LR, PRESETS
from benchmarks.runs import GROUPS, Job, jobs, settings
from rs_timm.analysis import Predictions

SMALL = PRESETS['small']


def arguments(*given):
    return run.parse([*map(str, given), '--device', 'cpu', '--workers', '0'])[1]


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'), classes=3, train_each=8, val_each=3)


# the small preset with a tiny network; float32, since torch's bfloat16 kernels do not handle its channels
TINY = replace(SMALL, model='test_resnet', dense=SMALL.dense[::4],
               recipe=replace(SMALL.recipe, precision='float32', channels_last=False))


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setitem(presets.PRESETS, 'small', TINY)


# What the runs are

def test_the_rows_of_the_papers_tables_have_a_run():
    for name in ('small', 'imagenet_resnet18', 'imagenet_resnet50', 'imagenet_mobilenetv2'):
        preset = PRESETS[name]
        made = runs.runs(preset)
        sizes = preset.resolutions
        for size in sizes:
            assert made[f'individual_{size}'].recipe(preset).resolutions == (size,)
            assert made[f'single_resolution_{size}'].recipe(preset).same_size == size
            assert made[f'crop30_individual_{size}'].recipe(preset).crop_scale == (0.3, 1.)
        assert {made[kind].recipe(preset).mred for kind in ('parallel', 'rs_net', 'vanilla', 'largest', 'larger')} == {
            'none', 'full', 'vanilla', 'largest', 'larger'}
        assert made['shared_bn'].recipe(preset).shared_bn and made['shared_bn'].recipe(preset).mred == 'none'
        assert made['multi_crop'].recipe(preset).crop == 'per_resolution'
        assert len([run for run in made.values() if run.group == 'figure5']) == 6  # four pairs, three and four sizes
        assert len([run for run in made.values() if run.group == 'figure9']) == 5 + 7
        assert set(preset.far) <= set(preset.dense) and set(sizes) <= set(preset.dense)
        assert {run.group for run in made.values()} <= set(GROUPS)


@pytest.mark.parametrize('network', ['resnet18', 'resnet50', 'mobilenetv2'])
def test_the_imagenet_runs_keep_the_papers_settings(network):
    """Whatever a run changes, it is what its name says: learning rate and weight decay are those of Section 4.1."""
    preset = PRESETS[f'imagenet_{network}']
    allowed = {'resolutions', 'mred', 'shared_bn', 'crop', 'same_size', 'crop_scale'}
    for made in runs.runs(preset).values():
        assert set(made.recipe(preset).differences(vars(preset.recipe))) <= allowed


def test_a_sum_of_losses_moves_as_far_as_their_mean():
    """lr on the sum = lr on the mean / S, so that lr * gradient and lr * decay do not depend on S."""
    for made in runs.runs(SMALL).values():
        recipe = made.recipe(SMALL)
        count = len(recipe.resolutions)
        kind = 'individual' if count == 1 else 'parallel' if recipe.mred == 'none' else 'mred'
        assert recipe.lr * count == pytest.approx(MEAN_LR[kind], rel=1e-4)
        assert recipe.lr * recipe.weight_decay == pytest.approx(MEAN_LR[kind] * MEAN_DECAY, rel=1e-4)
        own = recipe.lr * recipe.private_lr  # a private set gets the gradient of one loss, a shared one those of all
        one_rate = recipe.shared_bn or made.group == 'rates'
        assert own == pytest.approx(recipe.lr if one_rate else MEAN_LR[kind], rel=1e-4)


def test_learning_rates_are_the_best_of_the_pilot():
    """As far as the pilot was run."""
    for kind, best in pilot_choice(run.RESULTS).items():
        assert MEAN_LR[kind] == best, f'the pilot says MEAN_LR[{kind!r}] = {best}'


def test_the_order_of_a_queue():
    names = [str(job) for job in jobs(['small', 'ladder'])]
    assert len(set(names)) == len(names)
    first, second = names.index('small/rs_net-s0'), names.index('small/rs_net-s1')
    assert {name.rpartition('-')[2] for name in names[:first + 1]} == {'s0'}  # a whole Table 2 before its second seed
    assert first < second < names.index('small/shared_bn-s0') < names.index('small/vanilla-s0') < names.index(
        'ladder/full-s0') < names.index('small/multi_crop-s0')
    assert [str(job) for job in jobs(['small'], ['vanilla'], seed=7)] == ['small/vanilla-s7']
    with pytest.raises(ValueError, match="'rs_nett' is unknown.*groups of them are pilot, table2"):
        jobs(['small'], ['rs_nett'])


def test_settings_tell_what_matters_and_nothing_else():
    made = runs.runs(SMALL)['parallel']
    text = settings(made.recipe(SMALL))
    assert 'mred=none' in text and 'epochs=8' in text and 'seed' not in text
    assert settings(made.recipe(SMALL, seed=3)) == text
    assert settings(made.recipe(SMALL, epochs=9)) != text


# The tables

def test_rows_replace_those_of_the_same_job_alone(tmp_path):
    table = store.Table('some', ('x',))
    one, two = (dict(preset='small', run='parallel', seed=seed) for seed in '01')
    table.put(tmp_path, two, [dict(x=3)])
    table.put(tmp_path, one, [dict(x=0.12345678), dict(x='b')])
    table.put(tmp_path, two, [dict(x=4), dict(x=5)])
    assert [(row['seed'], row['x']) for row in table.read(tmp_path)] == [
        ('0', '0.123457'), ('0', 'b'), ('1', '4'), ('1', '5')]
    table.put(tmp_path, one, [])
    assert [row['x'] for row in table.read(tmp_path)] == ['4', '5']


def test_queues_side_by_side_lose_no_rows_of_each_other(tmp_path):
    table = store.Table('some', ('x',))

    def queue(name):
        for seed in range(40):
            table.put(tmp_path, dict(preset='small', run=name, seed=str(seed)), [dict(x=seed)])

    with ThreadPoolExecutor() as pool:  # a lock of a folder is held by a handle, not by a process
        list(pool.map(queue, ('parallel', 'rs_net')))
    assert [(row['run'], int(row['x'])) for row in table.read(tmp_path)] == sorted(
        ((name, seed) for name in ('parallel', 'rs_net') for seed in range(40)), key=lambda row: (row[0], str(row[1])))


def test_packed_booleans_come_back():
    right = np.random.default_rng(0).random(1966) < 0.7
    assert (store.unpacked(store.packed(right), 1966) == right).all()


# The queue

@pytest.mark.filterwarnings('ignore:BatchNorm statistics of only')
def test_debug_twins_of_all_kinds_of_runs(data, tmp_path, tiny):
    """Of the small preset, a run of each kind in each group: its rows are there, and agree with the training log."""
    kinds = {(job.run.group, *job.run.edits): job.run.name for job in jobs(['small'], seed=0)}
    args = arguments(*kinds.values(), '--preset', 'small', '--seed', 0, '--data', data, '--out', tmp_path,
                     '--debug-twin')
    todo = jobs(['small'], list(kinds.values()), seed=0)
    assert run.run_queue(todo, args) == []
    assert all(run.state_of(job, args) == 'done' for job in todo)
    results = tmp_path / 'results'
    rows = store.RUNS.read(results)
    assert {row['run'] for row in rows} == set(kinds.values())
    accuracy, epochs = store.ACCURACY.read(results), store.EPOCHS.read(results)
    for job in todo:
        own = {row['resolution']: row for row in store.by_columns(accuracy, run=job.run.name, sets='own')}
        recipe = run.recipe_of(job, args)
        last = [row for row in epochs if row['run'] == job.run.name and row['epoch'] == str(recipe.epochs)]
        sizes = recipe.measured_sets(1)
        assert {str(size) for size in sizes} <= set(own)
        for row in last:
            shown = row['resolution']
            size = next((str(size) for size, r in sizes.items() if str(r) == shown), shown)
            if recipe.limit_batches * recipe.batch_size >= 9:  # the log then saw all pictures
                assert float(own[size]['top1']) == pytest.approx(float(row['top1']), abs=1e-3)
        said = Predictions.load(run.folder_of(job, args) / 'predictions.npz')
        for right in store.by_columns(store.RIGHT.read(results), run=job.run.name):
            assert (store.unpacked(right['right'], 9) == said.right(int(right['resolution']))).all()
    kinds = {row['sets'] for row in store.by_columns(accuracy, run='rs_net')}
    assert kinds == {'own', 'params', 'affine', 'nearest', 'recalibrated'}
    assert not (Path(run.RESULTS) / 'results').exists()
    before = (results / 'paper_runs.csv').read_bytes()
    assert run.run_queue(todo, args) == [] and (results / 'paper_runs.csv').read_bytes() == before  # nothing again


def test_debug_twins_of_the_runs_for_segmentation(tmp_path, monkeypatch):
    """All sizes of the preset are measured, and agree with the training log where they were trained."""
    given = PRESETS['camvid']
    recipe = replace(given.recipe, labels=NAMES, ignore_label=IGNORE, init='', model_args=('features=8',),
                     precision='float32')
    monkeypatch.setitem(presets.PRESETS, 'camvid', replace(given, recipe=recipe, classes=len(NAMES)))
    args = arguments('rs_net', 'individual_352', '--data', make_masked(tmp_path / 'data'), '--out',
                     tmp_path / 'out', '--debug-twin')
    todo = jobs(['camvid'], ['rs_net', 'individual_352'])
    assert run.run_queue(todo, args) == []
    results = tmp_path / 'out/results'
    sizes = list(map(str, recipe.debug().resolutions))
    for job in todo:
        rows = store.by_columns(store.MASKS.read(results), run=job.run.name)
        several = job.run.name == 'rs_net'
        assert [row['resolution'] for row in rows] == [*sizes, *(['ensemble'] if several else [])]
        with (run.folder_of(job, args) / 'log.csv').open() as stream:
            logged = {row['resolution']: row for row in csv.DictReader(stream) if row['epoch'] == '2'}
        for row in rows:
            if row['resolution'] in logged:
                assert float(row['mean_iou']) == pytest.approx(float(logged[row['resolution']]['mean_iou']), abs=1e-3)
    assert {row['model'] for row in store.RUNS.read(results)} == {'rs_refinenet_resnet18'}
    monkeypatch.setattr(segmentation_maps, 'PRESET', replace(presets.PRESETS['camvid'], recipe=recipe.debug()))
    monkeypatch.setattr('sys.argv', ['x', '--data', str(tmp_path / 'data'), '--runs', str(tmp_path / 'out/camvid'),
                                     '--out', str(tmp_path / 'maps.png')])
    segmentation_maps.main()
    assert Image.open(tmp_path / 'maps.png').width == 6 * (SIZE[0] // 2 + 8) + 8


def test_a_run_that_goes_on_from_another_needs_it(data, tmp_path):
    args = arguments('w2a32', '--data', data, '--out', tmp_path, '--debug-twin')
    job, = jobs(['quantised'], ['w2a32'])
    with pytest.raises(ValueError, match="w2a32-s0 goes on from the run 'full_precision', which is not there"):
        run.execute(job, args)


@pytest.mark.filterwarnings('ignore:BatchNorm statistics of only')
def test_the_time_of_a_recalibration_is_kept(data, tmp_path, tiny, monkeypatch):
    monkeypatch.setattr(run, 'time', argparse.Namespace(monotonic=lambda: next(clock)))
    args = arguments('--data', data, '--out', tmp_path, '--debug-twin')
    made = {'untouched': None, 'replaced': 0}
    for name, prior in made.items():
        clock = iter((100., 107.25))  # before and after
        run.execute(Job(PRESETS['small'], runs.Run(name, 'ladder', trains=False, prior_images=prior), 0), args)
    seconds = {row['run']: float(row['train_seconds']) for row in store.RUNS.read(tmp_path / 'results')}
    assert seconds == {'untouched': 0., 'replaced': pytest.approx(7.25, abs=0.06)}


@pytest.mark.parametrize('changed, mark', [('benchmarks/results/paper_runs.csv', ''), ('docs/paper.md', ''),
                                           ('rs_timm/model.py', '+'), ('setup.cfg', '+')])
def test_rows_and_documents_do_not_make_a_commit_unclean(tmp_path, monkeypatch, changed, mark):
    for name in ('benchmarks/results/paper_runs.csv', 'docs/paper.md', 'rs_timm/model.py', 'setup.cfg'):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text('before')
    person = ['-c', 'user.name=test', '-c', 'user.email=test@example.com']
    for command in (['init', '-q'], ['add', '.'], [*person, 'commit', '-qm', 'first']):
        subprocess.run(['git', *command], cwd=tmp_path, check=True)
    monkeypatch.setattr(environment, 'RESULTS', tmp_path / 'benchmarks' / 'results')
    clean = environment.commit()
    (tmp_path / changed).write_text('after')
    assert len(clean) == 10 and environment.commit() == clean + mark


def test_a_failure_does_not_stop_the_queue(data, tmp_path, tiny, monkeypatch):
    execute, tried = run.execute, []

    def fail_once(job, args, resume=True):
        tried.append(job.run.name)
        if job.run.name == 'vanilla':
            raise RuntimeError('out of memory')
        if tried.count('larger') == 1 and job.run.name == 'larger':
            raise run.NonFiniteError('the loss is nan')
        execute(job, args, resume)

    monkeypatch.setattr(run, 'execute', fail_once)
    args = arguments('table5', '--data', data, '--out', tmp_path, '--debug-twin')
    failed = run.run_queue(jobs(['small'], ['table5']), args)
    assert [job.run.name for job in failed] == ['vanilla']
    assert tried == ['vanilla', 'largest', 'larger', 'larger']  # what was no number is tried again


def start(data, out):
    code = ('import sys; from test_benchmarks_runs import PRESETS, TINY, run; PRESETS["small"] = TINY; '
            'sys.exit(run.main(sys.argv[1:]))')
    command = [sys.executable, '-c', code, 'table5', '--preset', 'small', '--data', data, '--out', out,
               '--debug-twin', '--device', 'cpu', '--workers', '1']
    path = os.pathsep.join(map(str, (ROOT, ROOT / 'tests')))
    return subprocess.Popen(
        list(map(str, command)), env=dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=path), start_new_session=True,
        stderr=subprocess.DEVNULL)


def test_killed_and_stopped_it_goes_on(data, tmp_path, tiny, capsys):
    """SIGKILL in the first run, SIGTERM in what comes next; the log is one file, and another queue is kept out."""
    process = start(data, tmp_path)
    first = tmp_path / 'small/vanilla-s0'
    wait_for(process, lambda: (first / 'log.csv').is_file())
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    process = start(data, tmp_path)
    wait_for(process, lambda: ': done after' in (tmp_path / 'queue.log').read_text())
    os.killpg(process.pid, signal.SIGSTOP)  # else, on a busy machine, it may be through before the next command is
    assert run.main(['table5', '--data', str(data), '--out', str(tmp_path)]) == 2
    assert 'is in use by another benchmarks.run' in capsys.readouterr().err
    os.kill(process.pid, signal.SIGTERM)
    os.killpg(process.pid, signal.SIGCONT)
    assert process.wait(60) == 128 + signal.SIGTERM
    assert run.main(['table5', '--preset', 'small', '--data', str(data), '--out', str(tmp_path), '--debug-twin',
                     '--device', 'cpu', '--workers', '0']) == 0
    rows = store.RUNS.read(tmp_path / 'results')
    assert [row['run'] for row in rows] == ['larger', 'largest', 'vanilla']
    log = (tmp_path / 'queue.log').read_text()
    assert log.count('small/vanilla-s0 (1 of 3): starts') == 2 and log.count(': done after') == 3


def wait_for(process, condition):
    for _ in range(6000):
        assert process.poll() is None, 'it ended before it could be stopped'
        if condition():
            return
        time.sleep(0.01)
    raise AssertionError('it does not get there')


def test_a_row_of_other_settings_is_not_done(data, tmp_path, tiny, monkeypatch):
    args = arguments('vanilla', '--data', data, '--out', tmp_path, '--debug-twin')
    job, = jobs(['small'], ['vanilla'])
    assert run.state_of(job, args) == 'waiting'
    run.execute(job, args)
    assert run.state_of(job, args) == 'done'
    assert run.state_of(job, argparse.Namespace(**{**vars(args), 'epochs': 3})) == 'done with other settings'
    monkeypatch.setattr(run, 'describe', lambda *_: dict(device='another'))  # where it is measured again
    before = store.RUNS.read(tmp_path / 'results')[0]
    assert run.main(['vanilla', '--data', str(data), '--out', str(tmp_path), '--debug-twin']) == 2  # is done
    assert run.main(['vanilla', '--data', str(data), '--out', str(tmp_path), '--debug-twin', '--again', '--device',
                     'cpu', '--workers', '0']) == 0
    after = store.RUNS.read(tmp_path / 'results')[0]
    assert {**after, 'measure_seconds': ''} == {**before, 'measure_seconds': ''} and 'cpu (' in after['device']


def test_the_list_shows_what_there_is(tmp_path, capsys):
    assert run.main(['--list', '--out', str(tmp_path), '--results', str(tmp_path)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(jobs(run.QUEUED)) and all(line.endswith('waiting') for line in lines)
