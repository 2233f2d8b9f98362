"""One .pte file: each method is the network at its resolution, and all share one copy of the weights."""
import json
import re

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d
from torch import nn

import rs_timm
from rs_timm import cli
from rs_timm.commands.arguments import ModelSource

pytest.importorskip('executorch')
from rs_timm.export.executorch import export_executorch, method_name, open_method  # noqa: E402

SIZES = (64, 48, 40)  # 40: outside, the nearest set


class Small(nn.Module):
    """Few layers, since ExecuTorch takes a second for each; BatchNorm with and without its activation."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 3, 2, bias=False), BatchNormAct2d(64)
        self.conv2, self.bn2 = nn.Conv2d(64, 64, 3, 2, bias=False), nn.BatchNorm2d(64, affine=False)
        self.fc = nn.Linear(64, 7)

    def forward(self, x):
        return self.fc(self.bn2(self.conv2(self.bn1(self.conv1(x)))).mean((2, 3)))


@pytest.fixture(scope='module')
def model():
    torch.manual_seed(0)
    model = rs_timm.convert_switchable_bn(Small(), (64, 48)).eval()
    for bn in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        bn.running_mean.normal_(0, 0.1)
        bn.running_var.uniform_(0.5, 1.5)
        if bn.affine:
            nn.init.uniform_(bn.weight, 0.5, 1.5)
            nn.init.normal_(bn.bias, 0, 0.1)
    return model


@pytest.fixture(scope='module')
def files(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp('pte')
    return {count: export_executorch(model, folder / f'{count}.pte', sizes=SIZES[:count]) for count in (1, 3)}


def load(file):
    from executorch.runtime import Runtime
    return Runtime.get().load_program(file)


def test_every_method_is_the_network_at_its_size(model, files):
    program = load(files[3])
    assert program.method_names == {'rs_timm', 'resolutions', *map(method_name, SIZES)}
    for size in SIZES:
        x = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(size))
        got, = program.load_method(method_name(size)).execute([x])
        with torch.no_grad():
            wanted = model(x)
        assert (got - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_the_file_describes_itself(model, files):
    program = load(files[3])
    assert program.load_method('resolutions').execute([]) == list(SIZES)
    info = json.loads(program.load_method('rs_timm').execute([])[0])
    assert info['resolutions'] == [64, 48] and info['num_classes'] == 7 and len(info['mean']) == 3


def test_the_weights_are_stored_once(model, files):
    """Three methods differ from one in affine parameters and code, not in a copy of the weights."""
    weights = 4 * sum(p.numel() for p in rs_timm.extract(model, 64).parameters())
    assert files[3].stat().st_size < files[1].stat().st_size + 0.2 * weights


def test_the_command_compares_each_method_and_times_it_beside_a_folded_one(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(ModelSource, 'load', lambda self: rs_timm.convert_switchable_bn(Small(), (40,)).eval())
    assert cli.main(['export', 'small', str(tmp_path / 'small.pte'), '--latency']) == 0
    head, row = capsys.readouterr().out.splitlines()
    assert head.startswith(f'{tmp_path}/small.pte: ') and head.endswith('1 methods')
    said = re.fullmatch(r' *forward_40 +(\S+) ms, (\S+) times a folded one \(\S+ MB\) +differs from PyTorch by at most '
                        r'(\S+) of the largest output', row)
    assert said and float(said[1]) > 0 and float(said[2]) > 0 and float(said[3]) <= 1e-4


def test_a_method_that_the_file_has_not(files):
    with pytest.raises(ValueError, match='no forward_32, but forward_64'):
        open_method(files[1], 32)


def test_what_is_no_pte_or_no_switchable_network_is_refused(model, tmp_path):
    with pytest.raises(ValueError, match=r'm\.onnx .*\.pte'):
        export_executorch(model, tmp_path / 'm.onnx')
    with pytest.raises(ValueError, match='not switchable|switchable'):
        export_executorch(timm.create_model('resnet18'), tmp_path / 'm.pte')
    assert not any(tmp_path.iterdir())
