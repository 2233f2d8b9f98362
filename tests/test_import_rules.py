"""Who may import whom (the layout in CONTRIBUTING.md), and what `import rs_timm` costs."""
import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / 'rs_timm'

# part -> the parts that it may import; a part is a subpackage or a module of the top level
ALLOWED = {
    '_register': {'models'},
    'interpolation': set(),
    'resolutions': set(),
    'crops': set(),
    'atomic': set(),
    'hub_client': set(),
    'layers': {'crops', 'interpolation', 'resolutions'},
    'pictures': set(),
    'tensor_files': {'atomic'},
    'format': {'atomic', 'crops', 'interpolation', 'resolutions'},
    'runtime': {'atomic', 'crops', 'export', 'format', 'layers', 'resolutions', 'pictures'},  # of torch models
    'predict': {'atomic', 'format', 'pictures', 'resolutions', 'runtime'},
    'loss': set(),
    'evaluation': {'layers', 'loss', 'segmentation'},
    'data': {'crops', 'pictures'},
    'models': {'crops', 'hub_client', 'interpolation', 'layers', 'quantization', 'resolutions'},
    'quantization': {'atomic', 'tensor_files'},
    'segmentation': {'layers', 'models', 'tensor_files'},
    'analysis': {'atomic', 'evaluation', 'layers'},
    'calibration': {'atomic', 'layers'},
    'card': {'atomic', 'crops', 'layers', 'analysis'},
    'hub': {'atomic', 'crops', 'hub_client', 'layers', 'models', 'card', 'analysis', 'quantization', 'tensor_files'},
    'training': {'atomic', 'evaluation', 'segmentation', 'layers', 'models', 'data', 'loss', 'tensor_files'},
    'export': {'atomic', 'crops', 'interpolation', 'layers', 'resolutions', 'analysis', 'format'},
    'run': {'crops', 'training'},  # for --mred, and not before it is asked for
    'cli': {'commands'},
    'commands': {
        'atomic', 'crops', 'layers', 'models', 'data', 'analysis', 'calibration', 'card', 'export', 'format', 'hub',
        'interpolation', 'loss', 'pictures', 'predict', 'resolutions', 'runtime', 'segmentation', 'tensor_files',
        'training'},
    '__main__': {'cli'},
}


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix('.py')


def imported_parts(path: Path):
    """The parts of rs_timm that the file imports, at any depth of its code."""
    package = ('rs_timm', *path.relative_to(PACKAGE).parts[:-1])
    for node in ast.walk(ast.parse(path.read_text(encoding='utf-8'))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else ()
            module = '.'.join((*base, *([node.module] if node.module else [])))
            names = [f'{module}.{alias.name}' for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split('.')
            if parts[0] == 'rs_timm' and len(parts) > 1:
                yield parts[1]


FILES = sorted(p for p in PACKAGE.rglob('*.py') if p != PACKAGE / '__init__.py')


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_every_import_is_allowed(path):
    part = part_of(path)
    assert part in ALLOWED, f'{part} is new: say in ALLOWED what it may import'
    parts = {p.name.removesuffix('.py') for p in PACKAGE.iterdir()}
    forbidden = {name for name in imported_parts(path) if name in parts} - ALLOWED[part] - {part}
    assert not forbidden, f'{path.relative_to(PACKAGE)} imports {sorted(forbidden)}'


def test_the_rules_have_no_cycle():
    done: set = set()
    while len(done) < len(ALLOWED):
        free = {part for part, needs in ALLOWED.items() if part not in done and needs <= done}
        assert free, f'cycle among {set(ALLOWED) - done}'
        done |= free


def test_importing_the_package_is_light():
    heavy = ('matplotlib', 'onnxruntime', 'openvino', 'tensorboard', 'pandas', 'rs_timm.training', 'rs_timm.cli')
    code = ('import sys, timm; before = set(sys.modules); import rs_timm; new = set(sys.modules) - before; '
            'print("\\n".join(new))')
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    loaded = set(out.stdout.split())
    assert 'rs_timm' in loaded
    assert not [name for name in loaded if name.startswith(heavy)]


FIRST = (
    'import rs_timm, timm',
    'import timm, rs_timm',
    'import rs_timm; rs_timm.set_resolution; import timm',
    'import rs_timm; rs_timm.hub; import timm',
    'import rs_timm.layers; import timm',
    'from rs_timm.training import train; import timm',
    'import rs_timm; from timm.models import create_model; import timm',
    'import importlib.util as u, rs_timm; u.find_spec("timm"), u.find_spec("rs_timm.layers"); import timm',
)


@pytest.mark.parametrize('first', FIRST)
def test_importing_registers_and_says_nothing(first):
    code = f"{first}; assert timm.__loader__ is timm.__spec__.loader; print(len(timm.list_models('rs_*')))"
    out = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', code], capture_output=True, text=True, check=True,
        cwd=PACKAGE.parent)
    assert int(out.stdout) >= 6 and not out.stderr


def test_importing_alone_leaves_torch_out():
    code = "import sys, rs_timm; dir(rs_timm); print([m for m in ('torch', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == '[]'
