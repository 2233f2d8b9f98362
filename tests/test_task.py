"""MREDTask: one step over all resolutions, the lean step, alpha, and what stays plain timm."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import TrainingTask

import rs_timm
from benchmarks.peak_memory import PeakMemory
from rs_timm.loss import mred_loss
from rs_timm.training import MREDTask

RESOLUTIONS = (64, 48, 32)


def network(**kwargs):
    torch.manual_seed(0)
    return rs_timm.switchable('test_resnet', num_classes=5, resolutions=RESOLUTIONS, zero_init_last=False, **kwargs)


def batch(n=4, sizes=RESOLUTIONS, seed=1):
    generator = torch.Generator().manual_seed(seed)
    images = {r: torch.randn(n, 3, size, size, generator=generator) for r, size in zip(RESOLUTIONS, sizes)}
    return images, torch.randint(5, (n,), generator=generator)


def step(task, images, target):
    """Gradients, buffers, losses and the next random number after a forward and a backward pass."""
    torch.manual_seed(3)
    task.train()
    task.zero_grad()
    losses = task(images, target)
    losses['loss'].backward()
    grads = {name: p.grad.clone() for name, p in task.named_parameters()}
    return grads, {k: v.clone() for k, v in task.named_buffers()}, losses['loss'].item(), torch.rand(1).item()


def test_a_step_is_the_loss_of_the_forward_passes():
    model = network()
    reference = copy.deepcopy(model).train()
    images, target = batch()
    task = MREDTask(model)
    assert isinstance(task, TrainingTask)
    losses = task(images, target)
    expected = mred_loss({r: reference(x) for r, x in images.items()}, target, torch.zeros(3))
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value)
    assert tuple(losses['logits']) == RESOLUTIONS and losses['output'] is losses['logits'][64]


def test_every_parameter_gets_a_gradient():
    images, target = batch()
    grads, _, _, _ = step(MREDTask(network()), images, target)
    assert all(grad.abs().max() > 0 for grad in grads.values())
    assert len(grads) == len(list(network().parameters())) + 1


@pytest.mark.parametrize('mode', ['full', 'none'])
def test_the_lean_step_is_the_ordinary_step(mode):
    """Gradients, running statistics and random numbers, with dropout and stochastic depth."""
    images, target = batch()
    steps = []
    for lean in (False, True):
        task = MREDTask(network(drop_rate=0.3, drop_path_rate=0.3), mode, lean=lean)
        with torch.no_grad():
            task.alpha.copy_(torch.tensor([0.3, -0.2, 0.1]))
        step(task, images, target)
        steps.append(step(task, images, target))
    (grads, buffers, loss, number), (lean_grads, lean_buffers, lean_loss, lean_number) = steps
    assert loss == lean_loss and number == lean_number
    for name, grad in grads.items():
        assert torch.equal(grad, lean_grads[name]), name
    for name, buffer in buffers.items():
        assert torch.equal(buffer, lean_buffers[name]), name
    tracked = {int(b) for name, b in buffers.items() if name.endswith('num_batches_tracked')}
    assert tracked == {2}


def peak_of(task, images, target):
    task.train()
    for p in task.parameters():
        p.grad = torch.zeros_like(p)
    with PeakMemory() as memory:
        task(images, target)['loss'].backward()
    return memory.peak


def test_the_lean_step_needs_the_memory_of_the_largest_resolution():
    sizes = (128, 112, 96)
    model = rs_timm.switchable('test_resnet', num_classes=5, resolutions=sizes)
    images = {r: torch.randn(8, 3, r, r) for r in sizes}
    target = torch.zeros(8, dtype=torch.long)
    single = rs_timm.switchable('test_resnet', num_classes=5, resolutions=sizes[:1])
    largest = peak_of(MREDTask(single), {128: images[128]}, target)
    ordinary = peak_of(MREDTask(copy.deepcopy(model)), images, target)
    lean = peak_of(MREDTask(model, lean=True), images, target)
    assert lean <= 1.1 * largest
    assert ordinary > 1.6 * largest


def test_a_set_can_be_fed_with_smaller_images():
    """Progressive training: the keys name the sets, whatever the size of the images."""
    images, target = batch(sizes=(32, 24, 16))
    task = MREDTask(network())
    task(images, target)['loss'].backward()
    model = task.get_eval_model()
    for resolution in RESOLUTIONS:
        with rs_timm.use_resolution(network().train(), resolution) as fresh:
            fresh(images[resolution])
        ours, theirs = model.bn1.set_for(resolution), fresh.bn1.set_for(resolution)
        torch.testing.assert_close(ours.running_mean, theirs.running_mean)
    assert rs_timm.get_resolution(model) is None


@pytest.mark.parametrize('lean', [False, True])
def test_a_plain_network_shares_its_batch_norms(lean):
    images, target = batch()
    model = timm.create_model('test_resnet', num_classes=5)
    task = MREDTask(model, resolutions=RESOLUTIONS, lean=lean)
    task(images, target)['loss'].backward()
    assert int(model.bn1.num_batches_tracked) == len(RESOLUTIONS)
    assert all(p.grad is not None for p in task.parameters())


def test_parts_of_a_batch_add_up():
    """Accumulated gradients of two halves are those of the whole, where BatchNorm does not mix the pictures."""
    images, target = batch(n=6)
    task = MREDTask(network()).eval()
    task(images, target)['loss'].backward()
    whole = {name: p.grad.clone() for name, p in task.named_parameters()}
    task.zero_grad()
    for part in (slice(0, 3), slice(3, 6)):
        (task({r: x[part] for r, x in images.items()}, target[part])['loss'] / 2).backward()
    for name, p in task.named_parameters():
        torch.testing.assert_close(p.grad, whole[name], rtol=1e-4, atol=1e-6)


def test_soft_targets():
    images, target = batch()
    index, one_hot = (MREDTask(network())(images, t)['loss'] for t in (target, F.one_hot(target, 5).float()))
    torch.testing.assert_close(index, one_hot)


@pytest.mark.parametrize('lean', [False, True])
def test_bfloat16_autocast_and_channels_last(lean):
    images, target = batch()
    # not test_resnet: its 48 channels sometimes give nan gradients in bfloat16 (torch 2.14.1 on a CPU)
    model = timm.create_model('rs_resnet18', num_classes=5, resolutions=RESOLUTIONS)
    task = MREDTask(model.to(memory_format=torch.channels_last), lean=lean)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        losses = task({r: x.to(memory_format=torch.channels_last) for r, x in images.items()}, target)
    losses['loss'].backward()
    assert losses['output'].dtype is torch.bfloat16 and losses['loss'].dtype is torch.float32
    assert all(p.grad.isfinite().all() and p.grad.dtype is torch.float32 for p in task.parameters())


def test_state_goes_through_a_checkpoint():
    task, other = MREDTask(network()), MREDTask(network())
    with torch.no_grad():
        task.alpha.copy_(torch.tensor([1., 2., 3.]))
        task.get_eval_model().fc.bias.fill_(7.)
    task.setup_ema(decay=0.9)
    other.setup_ema(decay=0.9)
    state = task.get_checkpoint_state()
    assert set(state) == {'state_dict', 'task_state'}
    assert list(state['state_dict']) == list(network().state_dict())  # the network's own keys, without alpha
    other.load_checkpoint_state(**{'state_dict': state['state_dict'], 'task_state': state['task_state']})
    assert torch.equal(other.alpha, task.alpha) and other.get_eval_model().fc.bias[0] == 7
    assert other.get_eval_model(ema=True).fc.bias[0] != 7
    with pytest.raises(ValueError, match='alpha'):
        other.load_checkpoint_state(state['state_dict'])


def test_moving_average_in_closed_form():
    task = MREDTask(network())
    task.setup_ema(decay=0.75)
    before = task.get_eval_model(ema=True).fc.weight.clone()
    with torch.no_grad():
        task.get_eval_model().fc.weight.add_(1)
        task.alpha.add_(torch.tensor([4., 0., 0.]))
    task.update_ema()
    torch.testing.assert_close(task.get_eval_model(ema=True).fc.weight, before + 0.25)
    expected = torch.tensor([1., 0., 0.]).softmax(0).tolist()
    assert list(task.ensemble_weights(ema=True).values()) == pytest.approx(expected)


def test_compiled_step_equals_the_eager_one():
    images, target = batch()
    eager, compiled = MREDTask(network()), MREDTask(network())
    compiled.compile(backend='eager')
    for (name, a), b in zip(step(eager, images, target)[0].items(), step(compiled, images, target)[0].values()):
        torch.testing.assert_close(a, b, msg=name)
    assert list(compiled.get_checkpoint_state()['state_dict']) == list(network().state_dict())


def test_wrong_input_says_what_is_right():
    images, target = batch()
    with pytest.raises(ValueError, match=r'needs each of \(64, 48, 32\)'):
        MREDTask(network())({64: images[64]}, target)
    with pytest.raises(ValueError, match='use one of none'):
        MREDTask(network(), mode='half')
    with pytest.raises(ValueError, match='pass the resolutions'):
        MREDTask(timm.create_model('test_resnet'))
    with pytest.raises(ValueError, match='leave them out'):
        MREDTask(network(), resolutions=(64, 32))
