"""The benchmark of the training step compares equal computations, and its tables say what was measured."""
import copy

import pytest
import timm
import torch

import rs_timm
from benchmarks import cpu_gradients as cpu_gradients_benchmark
from benchmarks import environment, training_cost
from benchmarks.paper_step import LayerByLayer, PaperStep, paper_loss
from benchmarks.store import read
from benchmarks.training_sections import gradients_section, training_section
from rs_timm.loss import mred_loss
from rs_timm.training.cpu import kernels as cpu_gradients

RESOLUTIONS = (64, 48, 32)


def batch(n=4):
    generator = torch.Generator().manual_seed(0)
    images = {r: torch.randn(n, 3, r, r, generator=generator) for r in RESOLUTIONS}
    return images, torch.arange(n) % 5


@pytest.mark.parametrize('name', ['test_resnet', 'test_efficientnet', 'resnet18'])
def test_layer_by_layer_is_the_switchable_network(name):
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=5).train()
    switchable = rs_timm.convert_switchable_bn(copy.deepcopy(plain), RESOLUTIONS).train()
    images, _ = batch()
    logits = LayerByLayer(plain, len(RESOLUTIONS))(list(images.values()))
    for ours, theirs in zip((switchable(x) for x in images.values()), logits):
        torch.testing.assert_close(ours, theirs)


def test_the_papers_loss_is_ours():
    generator = torch.Generator().manual_seed(1)
    logits = {r: torch.randn(4, 5, dtype=torch.float64, generator=generator, requires_grad=True) for r in RESOLUTIONS}
    alpha = torch.tensor([0.3, -0.1, 0.2], dtype=torch.float64, requires_grad=True)
    target = torch.tensor([0, 4, 2, 2])
    inputs = [*logits.values(), alpha]
    ours = mred_loss(logits, target, alpha)['loss']
    theirs = paper_loss(list(logits.values()), target, alpha)
    torch.testing.assert_close(ours, theirs)
    for a, b in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(theirs, inputs)):
        torch.testing.assert_close(a, b)


def test_a_step_of_the_paper_moves_every_parameter():
    torch.manual_seed(0)
    step = PaperStep(timm.create_model('test_resnet', num_classes=5, zero_init_last=False), len(RESOLUTIONS))
    before = [p.detach().clone() for p in step.network.module.parameters()]
    step(*batch())
    step(*batch())
    assert step.alpha.abs().max() > 0
    assert all(not torch.equal(a, b) for a, b in zip(before, step.network.module.parameters()))


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, 'RESULTS', tmp_path)
    monkeypatch.setattr(training_cost, 'RESOLUTIONS', RESOLUTIONS)
    return tmp_path / 'training_cost.csv'


def test_parts_add_to_the_table_and_replace_their_own_rows(results, monkeypatch):
    common = ['--models', 'rs_resnet18', '--batch', '2', '--rounds', '1', '--precision', 'float32',
              '--counts', '1', '2', '--out', str(results)]
    training_cost.main(['--parts', 'separate', *common])
    assert 'not measured' in training_section()  # the loaders
    first = results.read_text().splitlines()
    training_cost.main(['--parts', 'paper', *common])
    both = results.read_text().splitlines()
    assert both[:3] == first and len(both) == 5
    training_cost.main(['--parts', 'paper', *common[:-4], '1', '--out', str(results)])
    again = results.read_text().splitlines()
    assert len(again) == 5 and again[:3] == first and both[4] in again and both[3] not in again


def test_what_is_not_measured_on_cuda_is_refused(capsys):
    with pytest.raises(SystemExit):
        training_cost.main(['--device', 'cuda', '--parts', 'paper', 'allocator'])
    assert 'allocator: not measured on CUDA; there are separate, paper, memory' in capsys.readouterr().err


def test_the_benchmark_of_the_gradients(results):
    common = ['--models', 'rs_mobilenetv2', '--batch', '4', '--rounds', '1', '--precision', 'bfloat16',
              '--resolutions', '96', '64', '--out', str(results.parent / 'cpu_gradients.csv')]
    cpu_gradients_benchmark.main(common)
    cpu_gradients_benchmark.main(['--parts', 'step', *common])
    rows = read('cpu_gradients')
    assert [row['question'] for row in rows if row['question'].startswith('weight')] == [
        f'weight gradients, {choice}' for choice in ('product everywhere', 'by the rule', 'best of both')]
    best = min(float(row['rs']) for row in rows if row['question'].startswith('weight'))
    assert next(float(row['rs']) for row in rows if row['question'].endswith('best of both')) == best
    assert [row['question'] for row in rows].count('step') == 1
    assert 'input gradients, depthwise with a stride' in gradients_section()

    x, weight = torch.empty(8, 256, 4, 4), torch.empty(256, 256, 1, 1)
    assert cpu_gradients.pays(x, weight, (1, 1), (0, 0), x.dtype)
    with cpu_gradients_benchmark.by_torch():
        assert not cpu_gradients.pays(x, weight, (1, 1), (0, 0), x.dtype)
    assert cpu_gradients.pays(x, weight, (1, 1), (0, 0), x.dtype)
