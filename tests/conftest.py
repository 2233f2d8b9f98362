"""Fixtures shared by the tests."""
import multiprocessing

import pytest
import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

multiprocessing.set_forkserver_preload(['torch', 'timm', 'rs_timm.training'])  # see two_processes.py


def pytest_collection_modifyitems(items):
    """rs_resnet50 is built by the code of rs_resnet18, and takes four times as long."""
    for item in items:
        if 'rs_resnet50' in item.name:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope='session')
def random_statistics():
    """A function that gives every BatchNorm set of a model its own random parameters, and returns it in eval mode."""
    def randomise(model: nn.Module, seed: int = 0) -> nn.Module:
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for bn in model.modules():
                if isinstance(bn, _BatchNorm):
                    bn.weight.uniform_(0.5, 1.5, generator=generator)
                    bn.bias.normal_(0, 0.2, generator=generator)
                    bn.running_mean.normal_(0, 0.2, generator=generator)
                    bn.running_var.uniform_(0.5, 2., generator=generator)
        return model.eval()

    return randomise


@pytest.fixture
def cli(capsys):
    """Runs a command in this process -> status, stdout, stderr."""
    from rs_timm.cli import main

    def run(*argv):
        capsys.readouterr()
        status = main([str(arg) for arg in argv])
        return status, *capsys.readouterr()

    return run
