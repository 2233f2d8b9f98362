"""`python -m rs_timm.run SCRIPT` is `python SCRIPT` with the models registered; `--img-size 160` uses the 160 set."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

import rs_timm
from rs_timm import run
from rs_timm.training import MREDTask

# What timm's scripts do with --model, --checkpoint and --img-size, and nothing that knows of rs_timm.
SCRIPT = '''
import argparse
import sys
import timm
import torch
from torch.utils.data import DataLoader, Dataset
from beside import NOTE

class Images(Dataset):
    def __init__(self, size):
        self.size = size
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return torch.randn(3, self.size, self.size, generator=torch.Generator().manual_seed(i))

if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('output')
    for name in ('model', 'checkpoint', 'workers-start'):
        parser.add_argument(f'--{name}')
    parser.add_argument('--img-size', type=int)
    args = parser.parse_args()
    model = timm.create_model(args.model, num_classes=5, checkpoint_path=args.checkpoint).eval()
    loader = DataLoader(Images(args.img_size), 2, num_workers=1, multiprocessing_context=args.workers_start)
    with torch.no_grad():
        logits = torch.cat([model(x) for x in loader])
    torch.save({'logits': logits, 'path': sys.path[0], 'argv': sys.argv, 'note': NOTE}, args.output)
    sys.exit(7)
'''


@pytest.fixture
def script(tmp_path) -> Path:
    folder = tmp_path / 'scripts'
    folder.mkdir()
    (folder / 'beside.py').write_text('NOTE = "imported from beside the script"')
    (folder / 'validate.py').write_text(SCRIPT)
    return folder / 'validate.py'


def test_img_size_uses_the_set_of_that_size(script, tmp_path, random_statistics):
    model = random_statistics(timm.create_model('rs_resnet18', num_classes=5))
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    args = [str(script), str(tmp_path / 'out.pth'), '--model', 'rs_resnet18', '--img-size', '160',
            '--workers-start', 'spawn', '--checkpoint', str(tmp_path / 'weights.pth')]
    root = str(Path(rs_timm.__file__).parent.parent)
    done = subprocess.run([sys.executable, '-m', 'rs_timm.run', *args], cwd=root, capture_output=True, text=True)
    assert done.returncode == 7, done.stderr
    out = torch.load(tmp_path / 'out.pth')
    x = torch.stack([torch.randn(3, 160, 160, generator=torch.Generator().manual_seed(i)) for i in range(4)])
    with torch.no_grad():
        assert torch.allclose(out['logits'], rs_timm.extract(model, 160)(x), atol=1e-5)
        assert not torch.allclose(out['logits'], rs_timm.extract(model, 224)(x), atol=1e-2)
    assert out['argv'] == args and out['path'] == str(script.parent) and 'beside' in out['note']


def test_scripts_that_the_script_starts_have_the_models(tmp_path):
    """As timm's bulk_runner.py; a sitecustomize of the user's own still runs, and the current folder plays no part."""
    (tmp_path / 'child.py').write_text("import os, timm\nprint(timm.is_model('rs_resnet18'), os.environ['CUSTOMISED'])")
    (tmp_path / 'bulk.py').write_text(
        'import subprocess, sys\nsys.exit(subprocess.run([sys.executable, "-u", "child.py"]).returncode)')
    own = tmp_path / 'own'
    own.mkdir()
    (own / 'sitecustomize.py').write_text("import os\nos.environ['CUSTOMISED'] = 'yes'")
    root = str(Path(rs_timm.__file__).parent.parent)
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join((str(own), root)))
    done = subprocess.run([sys.executable, '-m', 'rs_timm.run', 'bulk.py'], cwd=tmp_path, env=environment,
                          capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, 'True yes\n', '')


def test_script_keeps_its_arguments_and_sees_the_models(tmp_path, monkeypatch, capsys):
    script = tmp_path / 'tiny.py'
    script.write_text("import sys, timm\nprint(__name__, sys.argv[1:], timm.is_model('rs_resnet18'))")
    monkeypatch.setattr(sys, 'argv', ['kept by monkeypatch'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    run.main([str(script), '--help', '-x'])
    assert capsys.readouterr().out.strip() == "__main__ ['--help', '-x'] True"
    assert sys.path[0] == str(tmp_path) and os.path.dirname(rs_timm.__path__[0]) in sys.path


@pytest.mark.parametrize('argv, status, message', [
    ([], 2, 'usage: python -m rs_timm.run'),
    (['absent.py'], 2, 'absent.py: no such file'),
    (['--help'], 0, 'validate.py'),
])
def test_without_a_script(argv, status, message, capsys):
    with pytest.raises(SystemExit) as info:
        run.main(argv)
    captured = capsys.readouterr()
    assert info.value.code == status and message in captured.out + captured.err


TRAINING = """
import sys
import timm, torch
from timm.loss import LabelSmoothingCrossEntropy, BinaryCrossEntropy
from timm.task import ClassificationTask
criterion = BinaryCrossEntropy() if '--bce' in sys.argv else LabelSmoothingCrossEntropy(0.1)
torch.manual_seed(0)
model = timm.create_model('rs_resnet18', num_classes=5, resolutions=(64, 48))
task = ClassificationTask(model=model, criterion=criterion, device=torch.device('cpu'), dtype=None, verbose=False)
x = torch.randn(2, 3, 48 if '--small' in sys.argv else 64, 64)
result = task(x, torch.tensor([1, 3]))
result['loss'].backward()
idle = [name for name, p in task.get_trainable_module().named_parameters() if p.grad is None]
torch.save(dict(loss=result['loss'].detach(), output=result['output'].detach(), idle=idle, x=x), sys.argv[1])
"""


@pytest.mark.parametrize('mode', ['full', 'none'])
def test_mred_in_a_script_is_the_task_of_the_sizes_reduced_from_the_largest(mode, tmp_path, monkeypatch):
    from timm.task import ClassificationTask
    monkeypatch.setattr(sys, 'argv', ['kept by monkeypatch'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    (tmp_path / 'train.py').write_text(TRAINING)
    run.main(['--mred', mode, str(tmp_path / 'train.py'), str(tmp_path / 'out.pth')])
    out = torch.load(tmp_path / 'out.pth')
    torch.manual_seed(0)
    model = timm.create_model('rs_resnet18', num_classes=5, resolutions=(64, 48))
    small = torch.nn.functional.interpolate(out['x'], (48, 48), mode='bilinear', antialias=True)
    expected = MREDTask(model, mode, smoothing=0.1)({64: out['x'], 48: small}, torch.tensor([1, 3]))
    assert torch.equal(out['loss'], expected['loss'].detach()) and torch.equal(out['output'], expected['output'])
    assert out['idle'] == []  # every set and alpha
    assert timm.task.ClassificationTask is ClassificationTask


@pytest.mark.parametrize('mode, arguments, message', [
    ('half', [], '--mred half: it is one of none, vanilla'),
    ('full', ['--bce'], 'BinaryCrossEntropy: MRED is made of cross-entropies'),
    ('full', ['--small'], '--img-size 64'),
])
def test_what_mred_in_a_script_refuses(mode, arguments, message, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['kept by monkeypatch'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    (tmp_path / 'train.py').write_text(TRAINING)
    with pytest.raises(ValueError, match=message):
        run.main(['--mred', mode, str(tmp_path / 'train.py'), str(tmp_path / 'out.pth'), *arguments])


def test_mred_without_effect_is_said(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, 'argv', ['kept by monkeypatch'])
    monkeypatch.setattr(sys, 'path', ['', *sys.path])
    (tmp_path / 'validate.py').write_text('')
    with pytest.warns(UserWarning, match='--mred full had no effect'):
        run.main(['--mred', 'full', str(tmp_path / 'validate.py')])
