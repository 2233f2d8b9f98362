"""A program of torch.export is the network at every size; what AOTInductor compiles is checked before it is kept."""
import json

import pytest
import torch
from torch import _inductor

import rs_timm
from rs_timm.export import torch_program
from tests.exported import SIZES, TOLERANCE, UNSEEN, assert_same, images, network

export_torch = rs_timm.export.export_torch
pytestmark = pytest.mark.skipif(not hasattr(torch.export, 'Dim'), reason='no torch.export')


@pytest.fixture
def model(random_statistics):
    return network(random_statistics)


@pytest.fixture
def compiler(monkeypatch):
    """In place of AOTInductor, which takes minutes: `compiler.wrong` is added to the output at that height."""
    class Compiler:
        wrong = {}

        def compile(self, program, package_path, inductor_configs):
            torch.export.save(program, package_path)
            self.metadata = inductor_configs['aot_inductor.metadata']

        def load(self, path):
            program = torch.export.load(path).module()
            return lambda x: program(x) + self.wrong.get(x.shape[-2], 0.)

    made = Compiler()
    monkeypatch.setattr(_inductor, 'aoti_compile_and_package', made.compile)
    monkeypatch.setattr(_inductor, 'aoti_load_package', made.load)
    return made


@pytest.mark.parametrize('interpolation', [
    'params', *(pytest.param(name, marks=pytest.mark.slow) for name in ('affine', 'nearest'))])
@torch.no_grad()
def test_one_program_is_the_network_at_every_size(random_statistics, tmp_path, interpolation):
    model = network(random_statistics, interpolation=interpolation)
    file = export_torch(model, tmp_path / 'net.pt2', metadata=dict(license='mit'))
    extra = {'rs_timm': ''}
    program = torch.export.load(file, extra_files=extra).module()
    for size in (*SIZES, *UNSEEN):
        assert_same([program(images(3, size))], model(images(3, size)))
    assert_same([program(images(1, 33, 64))], model(images(1, 33, 64)))
    described = json.loads(extra['rs_timm'])
    assert (described['resolutions'], described['license']) == (list(SIZES), 'mit')


def test_a_package_that_agrees_is_kept(compiler, model, tmp_path):
    compiler.wrong = {64: 0.1 * TOLERANCE}
    file = export_torch(model, tmp_path / 'net.pt2', compile=True)
    assert file.is_file() and json.loads(compiler.metadata['rs_timm'])['resolutions'] == list(SIZES)


@pytest.mark.parametrize('wrong', [{33: float('nan')}, {49: 1.}])
def test_a_package_that_is_another_network_is_refused(compiler, model, tmp_path, wrong):
    """Seen with torch 2.14: right at multiples of 32 px alone, at others memory that nobody wrote."""
    (tmp_path / 'net.pt2').write_text('earlier')
    compiler.wrong = wrong
    with pytest.raises(RuntimeError, match=rf'{[*wrong][0]} x .*compile=False'):
        export_torch(model, tmp_path / 'net.pt2', compile=True)
    assert (tmp_path / 'net.pt2').read_text() == 'earlier' and len([*tmp_path.iterdir()]) == 1


def test_sizes_that_are_checked_have_all_sets_and_some_between():
    for resolutions in ((224, 192, 160, 128, 96), (32,), (64, 32)):
        sizes = torch_program._checked_sizes(resolutions)
        squares = {height for _, height, width in sizes if height == width}
        assert squares > set(resolutions) and any(height % 2 for _, height, _ in sizes)
        assert any(height != width for _, height, width in sizes)
