"""Nothing is lost: kills, signals, a full disk and a loss that is no number."""
import math
import os
import random
import signal
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from training_run import MODEL, Hostile, make_pictures, run, start, tiny_recipe

from rs_timm.training import NonFiniteError, Recipe
from rs_timm.training.build import build_model
from rs_timm.training.checkpoint import (
    load_checkpoint,
    random_state,
    save_checkpoint,
    set_random_state,
)
from rs_timm.training.processes import StopSignals

# as much of what is random, or has a memory, as fits in one run
EVERYTHING = dict(
    accumulate=2, ema=0.9, mixup=0.2, cutmix=0.2, re_prob=0.3, color_jitter=0.2, clip_grad=5., decay_norm=True)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'))


def wait_for_update(process, path, update):
    """Until the checkpoint of the running process holds `update`."""
    for _ in range(12000):
        assert process.poll() is None, f'it ended before it could be stopped: {process.stderr.read()}'
        if path.is_file() and load_checkpoint(path)['position']['update'] >= update:
            return
        time.sleep(0.01)
    raise AssertionError(f'no checkpoint of update {update}')


def children(pid):
    return [int(child) for child in Path(f'/proc/{pid}/task/{pid}/children').read_text().split()]


def assert_same(a, b, where=''):
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            if key != 'seconds':
                assert_same(a[key], b[key], f'{where}.{key}')
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for number, (x, y) in enumerate(zip(a, b)):
            assert_same(x, y, f'{where}[{number}]')
    else:
        assert a == b or (isinstance(a, float) and math.isnan(a) and math.isnan(b)), f'{where}: {a} {b}'


def test_killed_stopped_and_resumed_ends_as_if_it_had_not_been(data, tmp_path):
    """SIGKILL in the first epoch, SIGTERM to all processes in the second; bit by bit, with other numbers of readers."""
    whole, output = tmp_path / 'whole', tmp_path / 'broken'
    torch.set_num_threads(1)
    run(data, whole, **EVERYTHING)
    checkpoint = output / 'last.pth'

    process = start(data, output, workers=1, minutes=0., **EVERYTHING)
    wait_for_update(process, checkpoint, 3)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    killed_at = load_checkpoint(checkpoint)['position']
    assert 3 <= killed_at['update'] < 8 and killed_at['epoch'] == 0

    process = start(data, output, workers=2, minutes=0., **EVERYTHING)
    wait_for_update(process, checkpoint, 10)
    readers = children(process.pid)
    assert len(readers) >= 2
    for pid in (*readers, process.pid):  # as Slurm does, or pkill; the readers first
        os.kill(pid, signal.SIGTERM)
    assert process.wait() == 128 + signal.SIGTERM, process.stderr.read()
    stopped_at = load_checkpoint(checkpoint)['position']
    assert stopped_at['epoch'] == 1 and 10 <= stopped_at['update'] < 16

    run(data, output, resume=True, **EVERYTHING)
    ends = load_checkpoint(whole / 'last.pth'), load_checkpoint(checkpoint)
    assert ends[0]['position']['update'] == 16
    assert_same(*ends)
    assert (whole / 'log.csv').read_text().count('\n') == (output / 'log.csv').read_text().count('\n') == 1 + 2 * 3


class Interrupted(Exception):
    pass


def run_one_epoch(data, output, **settings):
    """A run that ends after an epoch because its evaluation fails."""
    from rs_timm.training import Trainer

    def fail(*args, **kwargs):
        raise Interrupted

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        patch.setattr(Trainer, '_evaluate', fail)
        run(data, output, **settings)


@pytest.mark.parametrize('sched', ['onecycle', 'multistep'])
def test_every_schedule_resumes(data, tmp_path, sched):
    settings = dict(sched=sched, decay_milestones=(1,), progressive=0.)
    expected = run(data, tmp_path / 'whole', **settings).rows
    run_one_epoch(data, tmp_path / 'broken', **settings)
    assert_same(expected, run(data, tmp_path / 'broken', resume=True, **settings).rows)


def test_other_pictures_are_refused(tmp_path):
    """Another number, or as many of other names or classes; but for checkpoints that do not say which they were."""
    data = make_pictures(tmp_path / 'pictures', train_each=8)
    settings = dict(sched='onecycle', progressive=0.)
    run_one_epoch(data, tmp_path / 'run', **settings)
    checkpoint = tmp_path / 'run/last.pth'
    state = load_checkpoint(checkpoint)
    assert state['pictures'] == 16

    def refused(match):
        with pytest.raises(ValueError, match=f'differ in {match}.* another output folder'):
            run(data, tmp_path / 'run', resume=True, **settings)

    last = data / 'train/class1/7.png'
    extra = last.with_name('8.png')
    extra.write_bytes(last.read_bytes())
    refused(r'number \(16, now 17\)')
    last.unlink()
    refused('their names')
    for split in ('train', 'val'):
        (data / split / 'class1').rename(data / split / 'class2')
    refused('their classes')
    extra = data / 'train/class2/8.png'
    extra.with_name('9.png').write_bytes(extra.read_bytes())
    noted = ('pictures', 'picture_names', 'class_names')
    save_checkpoint(checkpoint, {key: value for key, value in state.items() if key not in noted})
    assert len(run(data, tmp_path / 'run', resume=True, **settings).rows) == 2 * 3


@pytest.mark.parametrize('said_again', [False, True])
def test_the_weights_of_the_start_are_not_needed_again(data, tmp_path, said_again):
    """Neither the file, nor its name, also where the recipe has no other start."""
    settings = dict(progressive=0., init=str(tmp_path / 'start.pth'))
    torch.save(build_model(MODEL, tiny_recipe(), 2).state_dict(), tmp_path / 'start.pth')
    expected = run(data, tmp_path / 'whole', **settings).rows
    run_one_epoch(data, tmp_path / 'run', **settings)
    (tmp_path / 'start.pth').unlink()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Recipe, 'goes_on_from', 'the_first_stage')
        given = dict(settings, init=settings['init'] if said_again else '')
        assert_same(expected, run(data, tmp_path / 'run', resume=True, **given).rows)
        with pytest.raises(ValueError, match='there is no such file' if said_again else 'init is empty'):
            run(data, tmp_path / 'new', resume=True, **given)
    assert load_checkpoint(tmp_path / 'run/last.pth')['recipe']['init'] == settings['init']
    assert settings['init'] in (tmp_path / 'run/recipe.json').read_text()


@pytest.mark.parametrize('seconds, ends', [(0., False), (1.9, False), (2.1, True)])
def test_signals_at_once_are_one_wish(monkeypatch, seconds, ends):
    """torchrun passes on to its workers what they have got already; a person who insists comes later."""
    from rs_timm.training import processes
    now = [100.]
    monkeypatch.setattr(processes.time, 'monotonic', lambda: now[0])
    with pytest.raises(KeyboardInterrupt) if ends else nullcontext(), StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
        now[0] += seconds
        signal.raise_signal(signal.SIGINT)
    assert stop.received == signal.SIGTERM


def test_a_complete_run_is_not_started_again(data, tmp_path):
    first = run(data, tmp_path / 'run', epochs=1, progressive=0.)
    written = (tmp_path / 'run/last.pth').read_bytes()
    again = run(data, tmp_path / 'run', resume=True, epochs=1, progressive=0.)
    assert_same(first.rows, again.rows)
    assert (tmp_path / 'run/last.pth').read_bytes() == written
    with pytest.raises(ValueError, match='--resume'):
        run(data, tmp_path / 'run')
    with pytest.raises(ValueError, match=r'other settings \(epochs 1, now 2, lr 0.02, now 0.5\)'):
        run(data, tmp_path / 'run', resume=True, epochs=2, lr=0.5, progressive=0.)
    with pytest.raises(ValueError, match='another network'):
        run(data, tmp_path / 'run', resume=True, epochs=1, progressive=0., model='test_efficientnet')


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_the_checkpoint(data, tmp_path):
    with pytest.raises(NonFiniteError, match=r'the loss is (nan|inf) at step [1-9]'):
        run(data, tmp_path / 'run', minutes=0., lr=1e18, sched='cosine', warmup_epochs=0.)
    state = load_checkpoint(tmp_path / 'run/last.pth')
    assert all(v.isfinite().all() for v in state['state_dict'].values() if v.is_floating_point())


def test_a_full_disk_within_an_epoch_is_survived(data, tmp_path, caplog, monkeypatch):
    """The run goes on, and says so."""
    from rs_timm.training import loop
    save, failures = loop.save_checkpoint, []

    def save_with_luck(path, state):
        if state['position']['batch'] == 2:
            failures.append(path)
            raise OSError(28, 'No space left on device')
        save(path, state)

    monkeypatch.setattr(loop, 'save_checkpoint', save_with_luck)
    run(data, tmp_path / 'run', minutes=0., epochs=1, progressive=0.)
    assert len(failures) == 1 and 'the one before it is still there' in caplog.text
    assert load_checkpoint(tmp_path / 'run/last.pth')['position']['epoch'] == 1


@pytest.mark.parametrize('damage', ['torn', 'flipped', 'gone'])
def test_the_checkpoint_before_the_last_one_is_kept(data, tmp_path, caplog, damage):
    """Where the last one cannot be read, or is not what was written, a run goes on from the one before it, exactly."""
    settings = dict(progressive=0., epochs=2)
    expected = run(data, tmp_path / 'whole', **settings)
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Interrupted):
            run(data, tmp_path / 'run', minutes=0., **settings)
    last, previous = tmp_path / 'run/last.pth', tmp_path / 'run/previous.pth'
    assert load_checkpoint(last)['position']['update'] == load_checkpoint(previous)['position']['update'] + 1
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 1
    if damage == 'gone':
        last.unlink()
    else:
        last.write_bytes(content if damage == 'flipped' else content[:-100])
        with pytest.raises(ValueError, match='last.pth: (damaged: what it holds is not|not a checkpoint)'):
            load_checkpoint(last)
    assert_same(expected.rows, run(data, tmp_path / 'run', resume=True, **settings).rows)
    assert ('goes on from the checkpoint before it' in caplog.text) == (damage != 'gone')


def stop_after(patch, updates):
    from rs_timm.training import Trainer
    save = Trainer._save

    def save_and_stop(self, must):
        save(self, must)
        if self.position.update == updates:
            raise Interrupted

    patch.setattr(Trainer, '_save', save_and_stop)


def test_two_runs_do_not_share_a_folder(data, tmp_path):
    """Also where there is no checkpoint yet; what an ended run has left behind locks nobody out."""
    from filelock import FileLock
    (tmp_path / 'run').mkdir()
    with FileLock(tmp_path / 'run/.lock'), pytest.raises(ValueError, match='another run writes there'):
        run(data, tmp_path / 'run')
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Interrupted):
        stop_after(patch, 1)
        run(data, tmp_path / 'run', minutes=0.)
    with pytest.raises(ValueError, match='holds a run already'):
        run(data, tmp_path / 'run')


@pytest.mark.parametrize('opt', ['sgd', 'momentum', 'adamw'])
def test_float16_goes_on_after_a_step_that_is_skipped(data, tmp_path, opt):
    """The first scaled gradients overflow, as they should: no optimizer may go on with a state that was never made."""
    trained = run(data, tmp_path / 'run', precision='float16', opt=opt, epochs=1, progressive=0., clip_grad=1., lr=1e-3)
    state = load_checkpoint(tmp_path / 'run/last.pth')
    assert state['scaler']['scale'] < 65536. and trained.rows[0]['train_loss'] < 3.
    for own in state['optimizer']['state'].values():
        assert all(value.isfinite().all() for value in own.values() if isinstance(value, torch.Tensor))


def test_random_states_come_back(tmp_path):
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    random.gauss(0, 1), np.random.randn()  # leaves half of a pair behind
    path = tmp_path / 'state.pth'
    save_checkpoint(path, dict(position=0, random=random_state()))

    def draw():
        return random.random(), random.gauss(0, 1), np.random.randn(3).tolist(), torch.rand(3).tolist()

    expected = draw()
    set_random_state(load_checkpoint(path)['random'])
    assert draw() == expected


@pytest.mark.parametrize('content', [b'', b'PK\x03\x04 torn', b'text', dict(position=0, code=Hostile())])
def test_files_that_are_no_checkpoints_are_named_and_not_run(tmp_path, capsys, content):
    file = tmp_path / 'last.pth'
    file.write_bytes(content) if isinstance(content, bytes) else torch.save(content, file)
    with pytest.raises(ValueError, match='last.pth: not a checkpoint of rs-timm train'):
        load_checkpoint(file)
    assert capsys.readouterr().out == ''
