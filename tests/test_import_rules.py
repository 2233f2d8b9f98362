"""Who may import whom (the layout in CONTRIBUTING.md), and what `import rs_timm` costs."""
import ast
import subprocess
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

from rs_timm._register import _USE_TIMM

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
    'tar_files': {'pictures'},
    'tensor_files': {'atomic'},
    'format': {'atomic', 'crops', 'interpolation', 'resolutions'},
    'runtime': {'atomic', 'crops', 'export', 'format', 'layers', 'resolutions', 'pictures'},  # of torch models
    'predict': {'atomic', 'format', 'pictures', 'resolutions', 'runtime', 'tar_files'},
    'serving': {'rs_timm', 'crops', 'format', 'pictures', 'predict', 'runtime'},
    'loss': set(),
    'evaluation': {'layers', 'loss', 'segmentation'},
    'data': {'crops', 'pictures', 'predict', 'tar_files'},
    'adaptation': {'crops', 'data', 'layers', 'pictures', 'runtime', 'training'},
    'models': {'crops', 'hub_client', 'interpolation', 'layers', 'quantization', 'resolutions'},
    'quantization': {'atomic', 'layers', 'tensor_files'},
    'segmentation': {'layers', 'models', 'tensor_files'},
    'analysis': {'atomic', 'evaluation', 'layers'},
    'calibration': {'atomic', 'layers'},
    'card': {'atomic', 'crops', 'layers', 'analysis'},
    'hub': {'atomic', 'crops', 'hub_client', 'layers', 'models', 'card', 'analysis', 'quantization', 'tensor_files'},
    'training': {'atomic', 'crops', 'evaluation', 'segmentation', 'layers', 'models', 'data', 'loss', 'tensor_files'},
    'export': {'atomic', 'crops', 'interpolation', 'layers', 'resolutions', 'analysis', 'format'},
    'run': {'rs_timm', 'crops', 'training'},  # for --mred, and not before it is asked for
    'cli': {'rs_timm', 'commands'},
    'labels': set(),
    'loading': {'crops', 'hub', 'layers', 'models', 'tensor_files', 'training'},
    'commands': {
        'adaptation', 'analysis', 'calibration', 'card', 'crops', 'data', 'evaluation', 'export', 'format', 'hub',
        'interpolation', 'labels', 'layers', 'loading', 'pictures', 'predict', 'runtime', 'segmentation', 'serving',
        'tensor_files', 'training'},
    '__main__': {'cli'},
}


FILES = sorted(PACKAGE.rglob('*.py'))
WHOLE = 'rs_timm'  # the package itself, which stands above its parts


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix('').parts
    return '.'.join(parts[:-1] if parts[-1] == '__init__' else parts)


MODULES = {name_of(path): path for path in FILES}


def part_of(module: str) -> str:
    return module.split('.')[1] if '.' in module else module


def at_import(body):
    """The statements that run when a module is imported: no bodies of functions, nothing for type checkers alone."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        of_types = isinstance(node, ast.If) and 'TYPE_CHECKING' in ast.unparse(node.test)
        yield node
        for field in ('orelse',) if of_types else ('body', 'orelse', 'finalbody', 'handlers'):
            yield from at_import(getattr(node, field, ()))


def imported(module: str, everywhere: bool):
    """Names of the modules that `module` imports: at import, or at any depth of its code."""
    path = MODULES[module]
    package = module.split('.') if path.name == '__init__.py' else module.split('.')[:-1]
    tree = ast.parse(path.read_text(encoding='utf-8'))
    for node in ast.walk(tree) if everywhere else at_import(tree.body):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[:len(package) - node.level + 1] if node.level else []
            home = '.'.join([*base, *([node.module] if node.module else [])])
            for alias in node.names:
                whole = f'{home}.{alias.name}'
                if whole in MODULES or whole != f'{WHOLE}.__version__':
                    yield whole if whole in MODULES else home


@pytest.mark.parametrize('module', [module for module in MODULES if module != WHOLE])
def test_every_import_is_allowed(module):
    part = part_of(module)
    assert part in ALLOWED, f'{part} is new: say in ALLOWED what it may import'
    parts = {part_of(name) for name in imported(module, everywhere=True) if name.partition('.')[0] == WHOLE}
    forbidden = parts - ALLOWED[part] - {part}
    assert not forbidden, f'{module} imports {sorted(forbidden)}'


def test_files_have_no_circle():
    graph = {module: {name for name in imported(module, everywhere=False) if name in MODULES} for module in MODULES}
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the files


def test_the_registration_knows_the_parts_that_import_timm():
    graph = {module: set(imported(module, everywhere=False)) for module in MODULES}
    with_timm = {module for module, names in graph.items() if any(name.split('.')[0] == 'timm' for name in names)}
    while more := {module for module in graph if graph[module] & with_timm} - with_timm:
        with_timm |= more
    above = {'cli', 'commands', 'run', '__main__'}  # no part imports these
    assert {part_of(module) for module in with_timm} - above == set(_USE_TIMM)


def test_the_rules_have_no_cycle():
    done: set = {WHOLE}
    while not ALLOWED.keys() <= done:
        free = {part for part, needs in ALLOWED.items() if part not in done and needs <= done}
        assert free, f'cycle among {set(ALLOWED) - done}'
        done |= free


FIRST = (
    'import rs_timm, timm',
    'import timm; before = set(sys.modules); import rs_timm; print(*set(sys.modules) - before)',
    'import rs_timm; rs_timm.set_resolution; import timm',
    'import rs_timm; rs_timm.hub; import timm',
    'import rs_timm.layers; import timm',
    'from rs_timm.training import train; import timm',
    'import rs_timm; from timm.models import create_model; import timm',
    'import importlib.util as u, rs_timm; u.find_spec("timm"), u.find_spec("rs_timm.layers"); import timm',
)


# each in a process forked off one that has imported torch, which takes longest and is nobody's business here
IN_ANY_ORDER = """
import os, sys, torch, torchvision
for first in {0}:
    child = os.fork()
    if not child:
        exec(first + "; assert timm.__loader__ is timm.__spec__.loader; assert len(timm.list_models('rs_*')) >= 6")
        sys.stdout.flush()
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        sys.exit(first)
"""


def test_importing_registers_and_says_nothing_and_is_light():
    out = subprocess.run(
        [sys.executable, '-W', 'error::UserWarning', '-c', IN_ANY_ORDER.format(FIRST)], capture_output=True, text=True,
        cwd=PACKAGE.parent)
    assert not out.returncode and not out.stderr, out.stderr
    loaded = out.stdout.split()
    heavy = ('matplotlib', 'onnxruntime', 'openvino', 'tensorboard', 'pandas', 'rs_timm.training', 'rs_timm.cli')
    assert 'rs_timm' in loaded and not [name for name in loaded if name.startswith(heavy)]


def test_importing_alone_leaves_torch_out():
    code = "import sys, rs_timm; dir(rs_timm); print([m for m in ('torch', 'timm') if m in sys.modules])"
    out = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True, cwd=PACKAGE.parent)
    assert out.stdout.strip() == '[]'
