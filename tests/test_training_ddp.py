"""Two gloo processes against one: same batches, loss and gradients; each picture is evaluated once; exact resume."""
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from timm.utils import random_seed
from training_run import MODEL, make_pictures, run, start, tiny_recipe
from two_processes import free_port, run_two, start_two

import rs_timm
from rs_timm.training import MREDTask, Options, train
from rs_timm.training.build import build_model
from rs_timm.training.checkpoint import load_checkpoint, save_checkpoint

RESOLUTIONS = (48, 32)


def make_task(training, lean=False):
    torch.manual_seed(0)
    model = rs_timm.switchable('test_resnet', RESOLUTIONS, num_classes=5, zero_init_last=False)
    task = MREDTask(model, lean=lean)
    with torch.no_grad():
        task.alpha.copy_(torch.tensor([0.5, -0.5]))
    return task.double().train(training)


def make_batch(n=8):
    generator = torch.Generator().manual_seed(1)
    images = {r: torch.randn(n, 3, r, r, generator=generator, dtype=torch.float64) for r in RESOLUTIONS}
    return images, torch.randint(5, (n,), generator=generator)


def half(rank, images, target):
    part = slice(4 * rank, 4 * rank + 4)
    return {r: x[part] for r, x in images.items()}, target[part]


def one_rank(rank, path, training, lean, parts):
    """The gradients of one process, which has half of the batch, in `parts` parts."""
    task = make_task(training, lean).prepare_distributed()
    images, target = half(rank, *make_batch())
    losses = []
    for part in torch.arange(4).chunk(parts):
        last = int(part[-1]) == 3
        with task.no_sync() if not last else torch.enable_grad():
            losses.append(task({r: x[part] for r, x in images.items()}, target[part])['loss'] / parts)
            losses[-1].backward()
    loss = torch.stack([value.detach() for value in losses]).sum()
    dist.all_reduce(loss)
    grads = {name.replace('.module', ''): p.grad for name, p in task.named_parameters()}
    torch.save((loss / 2, grads), f'{path}/{rank}.pt')


@pytest.mark.parametrize('training, lean, parts', [
    (False, False, 1), (True, False, 1), (True, True, 1), (False, False, 2)])
def test_two_processes_are_one_with_the_joint_batch(tmp_path, training, lean, parts):
    """With BatchNorm in evaluation mode one forward of the joint batch; in training mode, where each process has
    statistics of its own, the mean over the two halves."""
    run_two(one_rank, str(tmp_path), training, lean, parts)
    task = make_task(training)
    images, target = make_batch()
    batches = [half(rank, images, target) for rank in (0, 1)] if training else [(images, target)]
    expected = sum(task(*batch)['loss'] / len(batches) for batch in batches)
    expected.backward()
    for rank in (0, 1):
        loss, grads = torch.load(tmp_path / f'{rank}.pt')
        torch.testing.assert_close(loss, expected.detach())
        for name, p in task.named_parameters():
            assert p.grad.abs().max() > 0
            torch.testing.assert_close(grads[name], p.grad)


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return make_pictures(tmp_path_factory.mktemp('pictures'), val_each=5)


TORCHRUN = ('torch.distributed.run', '--nproc-per-node', '2', '--master-addr', '127.0.0.1', '--master-port')
SAME_STEPS = dict(model_args=(), opt='sgd', progressive=0., epochs=1)


def finish(process):
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def finish_two(processes, status=0):
    for process in processes:
        process.join(60)
        assert process.exitcode == status


def test_a_torchrun_run_is_a_run_in_two_parts(data, tmp_path):
    """Two processes see what one process sees that takes the same batches in two parts; odd shards are counted once."""
    # few and small steps: rounding has no time to grow
    settings = dict(SAME_STEPS, batch_size=16, lr=1e-3, model_args=('zero_init_last=False',))
    finish(start(data, tmp_path / 'two', launcher=(*TORCHRUN, str(free_port())), **settings))
    one = run(data, tmp_path / 'one', accumulate=2, **settings)
    two = load_checkpoint(tmp_path / 'two/last.pth')
    assert len(two['random']) == 2 and two['position']['update'] == 2
    expected = load_checkpoint(tmp_path / 'one/last.pth')['state_dict']
    random_seed(0)
    initial = build_model(MODEL, tiny_recipe(**settings), num_classes=2)
    for name, start_value in initial.named_parameters():
        moved = (expected[name] - start_value.detach()).norm()
        assert moved > 0 and (two['state_dict'][name] - expected[name]).norm() < 1e-2 * moved, name
    assert [row['resolution'] for row in two['rows']] == [row['resolution'] for row in one.rows]
    for mine, theirs in zip(two['rows'], one.rows):
        assert (mine['top1'] * 10 / 100) % 1 == pytest.approx(0, abs=1e-9)  # of 10 pictures, each counted once
        assert mine['train_loss'] == pytest.approx(theirs['train_loss'], rel=1e-3)  # the mean, not a process's share


def test_a_run_of_two_processes_resumes_exactly(data, tmp_path):
    """SIGTERM to both within the epoch; running statistics and dropout of each process's own."""
    settings = dict(SAME_STEPS, resume=True, model_args=('drop_rate=0.2',), ema=0.9)
    finish_two(start_two(run, data, tmp_path / 'whole', **settings))
    processes = start_two(run, data, tmp_path / 'broken', minutes=0., **settings)
    checkpoint = tmp_path / 'broken/last.pth'
    while not checkpoint.is_file() or load_checkpoint(checkpoint)['position']['update'] < 2:
        assert all(process.is_alive() for process in processes)
        time.sleep(0.01)
    for process in processes:  # as Slurm does, and torchrun
        process.terminate()
    finish_two(processes, status=128 + signal.SIGTERM)
    stopped = load_checkpoint(checkpoint)
    assert 2 <= stopped['position']['update'] < 8 and stopped['position']['epoch'] == 0
    assert not torch.equal(stopped['random'][0]['torch'], stopped['random'][1]['torch'])
    finish_two(start_two(run, data, tmp_path / 'broken', **settings))
    whole, broken = (load_checkpoint(tmp_path / name / 'last.pth') for name in ('whole', 'broken'))
    for key in ('state_dict', 'state_dict_ema'):
        for name, value in whole[key].items():
            assert torch.equal(value, broken[key][name]), name


def one_start(rank, path, resume):
    """What a process says that finds PATH/RANK/last.pth, or none."""
    folder = Path(path) / str(rank)
    try:
        train(MODEL, f'{path}/nothing', tiny_recipe(), str(folder), resume, Options(device='cpu'))
    except ValueError as error:
        (Path(path) / f'{rank}.txt').write_text(str(error))


@pytest.mark.parametrize('updates, resume, message', [
    ((3, None), True, 'rank 0: {0}/last.pth: after 1 epochs, 3 updates; rank 1: {1}/last.pth: none'),
    ((3, 5), True, 'rank 0: {0}/last.pth: after 1 epochs, 3 updates; rank 1: {1}/last.pth: after 1 epochs, 5 updates'),
    ((3, 'torn'), True, '{1}/last.pth: not a checkpoint'),
    ((None, 3), False, 'holds a run already'),
])
def test_processes_that_find_different_checkpoints_all_end(tmp_path, updates, resume, message):
    """As on two machines whose output folders are not one."""
    for rank, update in enumerate(updates):
        (tmp_path / str(rank)).mkdir()
        path = tmp_path / str(rank) / 'last.pth'
        if update == 'torn':
            path.write_bytes(b'torn')
        elif update:
            save_checkpoint(path, dict(position=dict(epoch=1, batch=0, update=update)))
    run_two(one_start, str(tmp_path), resume)
    for rank in (0, 1):
        said = (tmp_path / f'{rank}.txt').read_text()
        assert message.format(tmp_path / '0', tmp_path / '1') in said
        assert not resume or 'that all machines share, or copy last.pth to all of them' in said
