"""The package works from its wheel in an empty folder: code, weights and manifest, nothing of the checkout."""
import configparser
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope='module')
def installed(tmp_path_factory):
    """The content of the wheel, in a folder of its own."""
    source, wheels, site = (tmp_path_factory.mktemp(name) for name in ('source', 'wheels', 'site'))
    tracked = subprocess.run(
        ['git', 'ls-files', '--cached', '--others', '--exclude-standard', '-z', '--', 'setup.cfg', 'setup.py',
         'pyproject.toml', 'README.md', 'LICENSE', 'rs_timm', 'weights'],
        cwd=ROOT, capture_output=True, text=True)
    if tracked.returncode:
        pytest.skip('not a git checkout')
    for name in filter(None, tracked.stdout.split('\0')):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, source / name)
    command = [sys.executable, '-m', 'pip', 'wheel', '--quiet', '--no-deps', '--no-build-isolation']
    subprocess.run([*command, '--wheel-dir', wheels, source], check=True, capture_output=True)
    (wheel,) = wheels.glob('rs_timm-*.whl')
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    return site


def run(installed: Path, code: str, tmp_path: Path) -> str:
    environment = dict(os.environ, PYTHONPATH=str(installed))
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_wheel_has_every_package_and_the_manifest(installed):
    packages = {str(p.parent.relative_to(ROOT)) for p in (ROOT / 'rs_timm').rglob('__init__.py')}
    assert packages <= {str(p.parent.relative_to(installed)) for p in installed.rglob('__init__.py')}
    assert (installed / 'rs_timm' / 'weights' / 'manifest.json').is_file()
    entries = json.loads((ROOT / 'weights' / 'manifest.json').read_text())['weights'].values()
    for entry in entries:
        assert (installed / 'rs_timm' / 'weights' / entry['file']).is_file()
    assert not (installed / 'tests').exists() and not (installed / 'benchmarks').exists()


def test_models_manifest_and_commands_work_from_the_wheel(installed, tmp_path):
    code = ("import timm, torch, rs_timm\n"
            "from rs_timm.cli import main\n"
            "from rs_timm.models import manifest, weights_dir\n"
            "manifest()\n"
            "model = timm.create_model('rs_resnet18', resolutions=(64, 48)).eval()\n"
            "assert model(torch.randn(1, 3, 48, 48)).shape == (1, 1000)\n"
            "assert main(['list', 'rs_resnet18']) == 0\n"
            "print(rs_timm.__file__, weights_dir(), sep='\\n')\n")
    *listed, package, weights = run(installed, code, tmp_path).splitlines()
    assert any('rs_resnet18' in line for line in listed)
    assert Path(package).is_relative_to(installed) and Path(weights) == installed / 'rs_timm' / 'weights'


def test_the_entry_point_is_declared(installed):
    (entry_points,) = installed.glob('rs_timm-*.dist-info/entry_points.txt')
    parser = configparser.ConfigParser()
    parser.read(entry_points)
    assert parser['console_scripts']['rs-timm'] == 'rs_timm.cli:main'
