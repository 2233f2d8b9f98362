"""Costs follow from the shapes of the layers, by closed formulas."""
import pytest
import timm
import torch
from torch import nn

import rs_timm
from rs_timm.analysis import activations, madds, parameter_counts

PAPER_MADDS = {  # Table 2, in millions, for 224, 192, 160, 128, 96
    'rs_resnet18': (1820, 1340, 931, 596, 335),
    'rs_resnet50': (4140, 3040, 2110, 1350, 760),
    'rs_mobilenetv2': (301, 221, 154, 99, 56),
}
PAPER_PARAMETERS = {'rs_resnet18': (11.15, 11.18), 'rs_resnet50': (24.37, 24.58), 'rs_mobilenetv2': (3.34, 3.47)}


def _out(size: int, conv: nn.Conv2d) -> int:
    return (size + 2 * conv.padding[0] - conv.kernel_size[0]) // conv.stride[0] + 1


def _conv_cost(conv: nn.Conv2d, size: int) -> int:
    return _out(size, conv) ** 2 * conv.out_channels * conv.in_channels // conv.groups * conv.kernel_size[0] ** 2


def _by_formula(model: nn.Module, size: int) -> tuple[int, int]:
    """MAdds and convolution outputs from the input size of every layer, which hooks read off one real forward."""
    cost, outputs, hooks = 0, 0, []

    def note(module: nn.Module, inputs: tuple[torch.Tensor]) -> None:
        nonlocal cost, outputs
        if isinstance(module, nn.Conv2d):
            side = inputs[0].shape[-1]
            cost += _conv_cost(module, side)
            outputs += module.out_channels * _out(side, module) ** 2
        else:
            cost += module.in_features * module.out_features

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            hooks.append(module.register_forward_pre_hook(note))
    model.eval()(torch.randn(1, 3, size, size))
    for hook in hooks:
        hook.remove()
    return cost, outputs


@pytest.mark.parametrize('name', PAPER_MADDS)
@pytest.mark.parametrize('size', [96, 72])
def test_equals_the_closed_formula(name, size):
    model = timm.create_model(name)
    assert (madds(model, size), activations(model, size)) == _by_formula(model, size)


@pytest.mark.parametrize('name', PAPER_MADDS)
def test_is_the_papers_table_2_up_to_its_counter(name):
    model = timm.create_model(name)
    ours = [madds(model, r) / 1e6 for r in model.resolutions]
    assert ours == pytest.approx(PAPER_MADDS[name], rel=0.014)


def test_grows_with_the_batch_and_equals_the_extracted_network():
    model = timm.create_model('rs_resnet18', num_classes=7)
    assert madds(model, 64, batch=3) == 3 * madds(model, 64) == 3 * madds(rs_timm.extract(model, 64), 64)


@pytest.mark.parametrize('kwargs', [dict(in_chans=1), dict(dtype=torch.float16), dict(features_only=True)])
def test_other_inputs_types_and_wrappers(kwargs):
    model = timm.create_model('rs_resnet18', **kwargs)
    stem = 48 ** 2 * 64 * kwargs.get('in_chans', 3) * 49
    assert stem < madds(model, 96) < 340e6


def test_nothing_is_changed():
    model = timm.create_model('rs_resnet18', resolutions=(64, 48)).train()
    rs_timm.set_resolution(model, 48)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    madds(model, 56), activations(model, 56)
    assert model.training and rs_timm.get_resolution(model) == 48
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_without_convolution():
    with pytest.raises(ValueError, match='no convolution'):
        madds(nn.Linear(3, 3), 32)


@pytest.mark.parametrize('name', PAPER_PARAMETERS)
def test_parameters_by_owner(name):
    model = timm.create_model(name)
    counts, plain = parameter_counts(model), parameter_counts(rs_timm.extract(model, 96))
    norm = sum(m.num_features for m in rs_timm.extract(model, 96).modules() if isinstance(m, nn.BatchNorm2d))
    assert counts.private == dict.fromkeys(model.resolutions, 2 * norm)
    assert counts.total == sum(p.numel() for p in model.parameters()) == plain.total + 4 * 2 * norm
    assert plain.private == {} and plain.private_share == 0
    assert counts.private_share == 10 * norm / counts.total
    assert tuple(round(c.total / 2 ** 20, 2) for c in (plain, counts)) == PAPER_PARAMETERS[name]
