"""The commands of `rs-timm` do what the library does, and say in one line what is wrong."""
import argparse
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import rs_timm
from rs_timm.analysis import activations, madds
from rs_timm.calibration import recalibrate
from rs_timm.cli import main
from rs_timm.commands.shell import run_command
from rs_timm.data import ImageFiles, image_transform, open_image
from rs_timm.labels import class_names
from rs_timm.loading import load_model
from tests.hub_server import HubServer
from tests.training_run import make_pictures, paper_layout, run

ROOT = Path(rs_timm.__file__).parent.parent
SIZES = (64, 48, 32)
CLASSES = 5


@pytest.fixture
def model(random_statistics):
    torch.manual_seed(0)
    return random_statistics(timm.create_model('rs_resnet18', resolutions=SIZES, num_classes=CLASSES))


@pytest.fixture
def folder(model, tmp_path):
    return str(rs_timm.hub.save_pretrained(model, tmp_path / 'saved'))


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    (tmp_path / 'photos').mkdir()
    files = [tmp_path / 'photos' / f'{i}.png' for i in range(3)]
    for file in files:
        Image.fromarray(rng.integers(0, 255, (80, 100, 3), np.uint8)).save(file)
    return list(map(str, files))


@pytest.fixture
def cli(cli):
    """Runs a command in this process -> status, stdout, lines of stderr."""
    def run(*argv):
        status, out, err = cli(*argv)
        return status, out, err.splitlines()

    return run


def restored(directory):
    return timm.create_model(f'local-dir:{directory}', pretrained=True).eval()


def assert_same(model, other, sizes=SIZES, rtol=0.):
    for size in sizes:
        x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            torch.testing.assert_close(model(x), other(x), rtol=rtol, atol=rtol)


def assert_error(result, *parts):
    status, out, (line,) = result
    assert status == 2 and not out and line.startswith('rs-timm: error: ') and len(line) < 900
    for part in parts:
        assert str(part) in line, line


# list and info

def test_list_tells_where_weights_come_from(cli):
    status, out, _ = cli('list')
    lines = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert status == 0 and set(lines) == set(timm.list_models('rs_*', include_tags=True))
    default = timm.models.get_pretrained_cfg('rs_resnet50').tag
    marked = [name for name, how in lines.items() if '(default)' in how and name.startswith('rs_resnet50.')]
    assert marked == [f'rs_resnet50.{default}']
    assert 'timm/resnet50.tv_in1k' in lines['rs_resnet50.tv_in1k']
    assert 'rs-timm convert' in lines['rs_resnet50.orig_in1k']


@pytest.mark.parametrize('pattern', ['resnet34', 'rs_resnet34*', '*34*'])
def test_list_patterns(cli, pattern):
    names = [line.split()[0] for line in cli('list', pattern)[1].splitlines()]
    assert names == timm.list_models('rs_resnet34', include_tags=True)


def test_list_without_a_match(cli):
    assert_error(cli('list', 'vit'), "'vit'", 'rs-timm list')


@pytest.mark.parametrize('name, sizes', [('rs_mobilenetv2', None), ('switchable:regnetx_002', (96, 64))])
def test_info_is_what_analysis_counts(cli, name, sizes):
    status, out, _ = cli('info', name, *(['--resolutions', *sizes] if sizes else []))
    stock = name.removeprefix('switchable:')
    model = rs_timm.switchable(stock, sizes) if sizes else timm.create_model(name, pretrained=True)
    rows = [line.split() for line in out.splitlines() if line.strip() and line.split()[0].isdigit()]
    costs = [(r, madds(model, r) / 1e6, activations(model, r) / 1e6) for r in model.resolutions]
    assert rows == [[str(r), f'{cost:.1f}', f'{outputs:.2f}'] for r, cost, outputs in costs]
    total = sum(p.numel() for p in model.parameters())
    assert f'{total / 1e6:.2f} M = {total / 2 ** 20:.2f} x 2^20' in out and status == 0


@pytest.mark.parametrize('name, weights, classes, preprocessing', [
    ('rs_mobilenetv2', 'rs_mobilenetv2.mred_imagenette', 10, 'bilinear, crop 0.875'),
    ('rs_resnet50.tv_in1k', 'rs_resnet50.tv_in1k', 1000, 'bilinear, crop 0.875'),
    ('rs_resnet34', 'rs_resnet34.a1_in1k', 1000, 'bicubic, crop 0.95'),
])
def test_info_is_about_the_weights_that_the_name_stands_for(cli, name, weights, classes, preprocessing):
    """Without loading them, so that it can say it of such as are on the hub."""
    status, out, _ = cli('info', name)
    facts = dict(line.split(maxsplit=1) for line in out.splitlines()[1:9] if line[0] != ' ')
    assert status == 0 and out.startswith(f'{name}\n') and facts['classes'] == str(classes)
    assert facts['preprocessing'].startswith(preprocessing)
    listed = dict(line.split(maxsplit=1) for line in cli('list', name)[1].splitlines())
    assert listed[weights].removesuffix(' (default)') == facts['weights']


# which MODEL

@pytest.mark.parametrize('name, parts', [
    ('rs_resnet5', ['rs_resnet50', 'rs-timm list']),
    ('rs_resnet50.a1_in1', ['a1_in1k', 'orig_in1k']),
    ('resnet50', ['switchable:resnet50']),
    ('switchable:resnet5', ['resnet50', 'timm.list_models()']),
    ('local-dir:absent', ['absent', 'no such folder']),
    ('rs_resnet50.orig_in1k', ['rs-timm convert']),
])
def test_wrong_models(cli, name, parts, photos):
    assert_error(cli('predict', name, photos[0]), *parts)


def test_network_that_cannot_be_switchable(cli):
    assert_error(cli('info', 'switchable:convnext_atto'), 'no BatchNorm', 'LayerNorm')


def test_folder_that_holds_no_model(cli, tmp_path):
    assert_error(cli('extract', tmp_path, '--size', 48, '--out', tmp_path / 'x'), tmp_path)


# predict

@pytest.mark.parametrize('prefix', ['', 'local-dir:'])
def test_predict_is_the_network_on_the_preprocessed_picture(cli, model, folder, photos, prefix):
    status, out, err = cli('predict', prefix + folder, *photos[:2], '--all', '--topk', 2)
    assert (status, err) == (0, [])
    config = timm.data.resolve_model_data_config(model)
    expected = []
    for photo in photos[:2]:
        expected.append(photo)
        for size in SIZES:
            with torch.no_grad():
                probabilities = model(image_transform(config, size)(open_image(photo))[None])[0].softmax(0)
            top = probabilities.topk(2)
            expected += [f'{p:.1%} class {i}' for p, i in zip(top.values.tolist(), top.indices.tolist())]
    lines = [line for line in out.splitlines() if not line.startswith('#')]
    assert [line if line in photos else ' '.join(line.split()[-3:]) for line in lines] == expected


@pytest.mark.parametrize('given, shown', [
    ([], [64]),
    (['--sizes', 32], [32]),
    (['--sizes', 32, 48, 32], [32, 48]),
    (['--sizes', 56, 20], [56, 20]),
])
def test_predict_resolutions(cli, folder, photos, given, shown):
    status, out, _ = cli('predict', folder, photos[0], *given, '--topk', 9)
    timed = [line.split() for line in out.splitlines() if ' ms ' in line]
    assert status == 0 and [int(row[0]) for row in timed] == shown and all(float(row[2]) > 0 for row in timed)
    assert out.count('class ') == CLASSES * len(shown)
    assert ('56 px has no BatchNorm set: interpolated between those for 64 and 48' in out) == (56 in shown)
    assert ('20 px has no BatchNorm set: the nearest one, for 32' in out) == (20 in shown)


def test_predict_goes_on_after_bad_pictures(cli, folder, photos, tmp_path):
    cut, absent = tmp_path / 'cut.jpg', tmp_path / 'absent.png'
    cut.write_bytes(b'\xff\xd8\xff')
    status, out, err = cli('predict', folder, cut, photos[0], absent, photos[1])
    assert status == 1 and photos[0] in out and photos[1] in out
    assert [line.split(': ')[1] for line in err] == [str(cut), str(absent)]


def test_predict_names_imagenets_classes_and_the_models_own(model):
    assert class_names(timm.create_model('rs_resnet18'))(281) == 'tabby, tabby cat'
    model.pretrained_cfg.update(label_names=list('abcde'), label_descriptions={'b': 'the second'})
    assert [class_names(model)(i) for i in range(3)] == ['a', 'the second', 'c']
    with pytest.raises(ValueError, match='no classifier'):
        class_names(timm.create_model('rs_resnet18', num_classes=0))


@pytest.mark.parametrize('argv', [
    ['predict', 'rs_resnet18'],
    ['predict', 'rs_resnet18', 'a.jpg', '--sizes', '0'],
    ['predict', 'rs_resnet18', 'a.jpg', '--sizes', '64', '--all'],
    ['predict', 'rs_resnet18', 'a.jpg', '--topk', '-1'],
    ['nonsense'],
    [],
])
def test_usage_errors(argv, capsys):
    with pytest.raises(SystemExit) as info:
        main(argv)
    assert info.value.code == 2 and 'usage' in capsys.readouterr().err


def shell(command, **kwargs):
    environment = dict(os.environ, PYTHONPATH=str(ROOT), OMP_NUM_THREADS='1', **kwargs)
    return subprocess.run(['bash', '-c', command], capture_output=True, env=environment)


def test_odd_names_and_a_closed_pipe(folder, photos, tmp_path):
    odd = os.path.join(os.fsencode(tmp_path), b'caf\xe9\n.png')
    os.link(photos[0], odd)
    command = f'{sys.executable} -m rs_timm predict {folder} {tmp_path}/caf* {tmp_path}/absent*'
    done = shell(command, LC_ALL='C', PYTHONIOENCODING='ascii')
    assert done.returncode == 1 and rb'caf\udce9\n.png' in done.stdout and b'absent*: no such file' in done.stderr, done
    done = shell(f'{sys.executable} -m rs_timm list | head -n 0; echo ${{PIPESTATUS[0]}}')
    assert done.stdout == b'141\n' and not done.stderr


# checkpoints and what is known about them

OWN = dict(interpolation='bilinear', crop_pct=0.5, mean=(0.1, 0.2, 0.3), label_names=list('abcde'))
ALPHA = {64: 0.5, 48: 0.25, 32: 0.25}


@pytest.fixture
def described(model, tmp_path):
    """A saved network that differs in all it says from what rs_resnet18's weights have."""
    model.pretrained_cfg.update(OWN, num_classes=CLASSES)
    model.checkpoint_metadata = {'alpha': ALPHA}
    return rs_timm.save_pretrained(model, tmp_path / 'described')


def says(model):
    config = timm.data.resolve_model_data_config(model)
    found = {key: config[key] for key in ('interpolation', 'crop_pct', 'mean')}
    return dict(found, mean=tuple(config['mean']), label_names=model.pretrained_cfg.get('label_names'))


@pytest.mark.parametrize('name', ['rs_resnet18', 'rs_resnet18.tv_in1k'])
def test_weights_of_a_saved_folder_are_described_as_the_folder(described, name, recwarn):
    model = load_model(name, checkpoint=str(described / 'model.safetensors'))
    assert says(model) == says(load_model(str(described))) == OWN
    assert model.checkpoint_metadata == {'alpha': ALPHA} and not recwarn


def test_convert_keeps_what_a_saved_folder_says(cli, described, tmp_path):
    argv = ['convert', described / 'model.safetensors', '--model', 'rs_resnet18', '--crop-pct', 0.75]
    status, out, err = cli(*argv, '--out', tmp_path / 'out')
    assert (status, err) == (0, []) and 'preprocessing: bilinear, crop 0.75' in out
    assert says(restored(tmp_path / 'out')) == dict(OWN, crop_pct=0.75)


@pytest.mark.parametrize('config', [
    dict(architecture='rs_resnet34'), dict(num_classes=7), dict(pretrained_cfg=None), 'no JSON', [], None])
def test_weights_that_nothing_is_known_about(described, config):
    """A config.json that is not about them does not count; it is said what is taken instead."""
    file = described / 'config.json'
    if isinstance(config, dict):
        config = dict(json.loads(file.read_text()), **config)
    file.write_text(config if isinstance(config, str) else json.dumps(config))
    if config is None:
        file.unlink()
    with pytest.warns(match='as for rs_resnet18.a1_in1k it is bicubic, crop 0.95.*what its classes are called'):
        model = load_model('rs_resnet18', checkpoint=str(described / 'model.safetensors'))
    assert says(model) == says(timm.create_model('rs_resnet18'))


def test_shipped_weights_are_known_wherever_they_are(cli, photos, tmp_path):
    name = 'rs_mobilenetv2.mred_imagenette'
    (tmp_path / 'w.safetensors').write_bytes(Path(timm.models.get_pretrained_cfg(name).file).read_bytes())
    shipped, given = (cli('predict', 'rs_mobilenetv2', photos[0], '--sizes', 64, *options)
                      for options in ([], ['--checkpoint', tmp_path / 'w.safetensors']))
    classes = [[line.split('ms')[-1].split() for line in out.splitlines()[2:]] for _, out, _ in (shipped, given)]
    assert classes[0] == classes[1] and given[0] == 0 and not given[2]


def test_a_checkpoint_of_train_is_described_by_its_recipe(tmp_path, recwarn):
    data, out = make_pictures(tmp_path / 'pictures', train_each=4, val_each=2), tmp_path / 'run'
    trained = run(data, out, progressive=0., epochs=1, mean=(0.1, 0.2, 0.3), crop_pct=0.5, ema=0.5)
    model = load_model('switchable:test_resnet', checkpoint=str(out / 'last.pth'))
    assert says(model) == says(trained.model) | dict(label_names=['class0', 'class1'])
    assert says(model)['crop_pct'] == 0.5 and not [w for w in recwarn if 'prepared' in str(w.message)]
    assert model.checkpoint_metadata['alpha'] == pytest.approx(trained.model.checkpoint_metadata['alpha'])


# convert

def test_convert_the_papers_layout(cli, random_statistics, tmp_path):
    model = random_statistics(timm.create_model('rs_resnet18', num_classes=CLASSES))
    state_dict = paper_layout(model)
    torch.save({'epoch': 3, 'arch': 'resnet18', 'state_dict': state_dict}, tmp_path / 'paper.pth')
    status, out, err = cli('convert', tmp_path / 'paper.pth', '--model', 'rs_resnet18', '--out', tmp_path / 'out')
    assert (status, err) == (0, []) and "the layout of the paper's code" in out
    again = restored(tmp_path / 'out')
    assert_same(model, again, (*model.resolutions, 144))
    config = timm.data.resolve_model_data_config(again)
    assert (tuple(config['mean']), tuple(config['std'])) == ((0, 0, 0), (1, 1, 1))
    assert (config['interpolation'], config['crop_pct']) == ('bilinear', 0.875)
    saved = json.loads((tmp_path / 'out' / 'config.json').read_text())
    assert saved['pretrained_cfg']['license'] == 'mit' and 'RS-Nets' in saved['pretrained_cfg']['origin_url']
    alpha = saved['rs_timm']['alpha']
    expected = state_dict['module.alpha'].softmax(0).tolist()
    assert alpha == pytest.approx(dict(zip(map(str, model.resolutions), expected)))


@pytest.mark.parametrize('half', [False, True])
def test_convert_our_layout_keeps_sizes_and_classes(cli, model, tmp_path, half):
    save_file(model.state_dict(), tmp_path / 'ours.safetensors')
    options = ['--half'] if half else []
    argv = ['convert', tmp_path / 'ours.safetensors', '--model', 'rs_resnet18', '--out', tmp_path / 'out', *options]
    status, out, (line,) = cli(*argv)
    assert 'as for rs_resnet18.a1_in1k it is bicubic, crop 0.95' in line
    assert status == 0 and "rs_timm's layout" in out and '5 classes, resolutions 64, 48, 32' in out
    assert restored(tmp_path / 'out').resolutions == SIZES
    assert_same(model, restored(tmp_path / 'out'), rtol=2e-2 if half else 0.)
    stored = load_file(tmp_path / 'out' / 'model.safetensors')['conv1.weight'].dtype
    assert stored == (torch.float16 if half else torch.float32)
    assert_error(cli(*argv), tmp_path / 'out', 'not empty', '--force')
    assert cli(*argv, '--force')[0] == 0


def test_convert_a_plain_checkpoint(cli, random_statistics, tmp_path):
    plain = random_statistics(timm.create_model('resnet18', num_classes=CLASSES))
    torch.save({'state_dict': plain.state_dict()}, tmp_path / 'plain.pth')
    status, out, err = cli('convert', tmp_path / 'plain.pth', '--model', 'rs_resnet18', '--out', tmp_path / 'out',
                           '--resolutions', 64, 32,
                           '--mean', 0.5, 0.5, 0.5, '--interpolation', 'bilinear', '--crop-pct', 1)
    again = restored(tmp_path / 'out')
    assert (status, err) == (0, []) and 'a plain network' in out and again.resolutions == (64, 32)
    assert_same(plain, again, (64, 48, 32))
    config = timm.data.resolve_model_data_config(again)
    assert (tuple(config['mean']), config['interpolation'], config['crop_pct']) == ((0.5, 0.5, 0.5), 'bilinear', 1)


def test_convert_makes_no_claims_about_a_file_under_a_tag(cli, random_statistics, tmp_path):
    torch.save(random_statistics(timm.create_model('resnet18')).state_dict(), tmp_path / 'plain.pth')
    argv = ['convert', tmp_path / 'plain.pth', '--model', 'rs_resnet18.tv_in1k', '--out', tmp_path / 'out']
    assert cli(*argv)[0] == 0
    cfg = json.loads((tmp_path / 'out' / 'config.json').read_text())['pretrained_cfg']
    tag = timm.models.get_pretrained_cfg('rs_resnet18.tv_in1k')
    assert cfg['interpolation'] == tag.interpolation
    assert not {'tag', 'description', 'license', 'origin_url'} & set(cfg)


def test_convert_any_timm_network(cli, random_statistics, tmp_path):
    plain = random_statistics(timm.create_model('regnetx_002', num_classes=CLASSES))
    torch.save(plain.state_dict(), tmp_path / 'plain.pth')
    argv = ['convert', tmp_path / 'plain.pth', '--model', 'switchable:regnetx_002', '--resolutions', 64, 32]
    assert cli(*argv, '--out', tmp_path / 'out')[0] == 0
    assert_same(plain, restored(tmp_path / 'out'), (64, 32))


class _Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (self.marker,)


def test_convert_opens_no_pickled_objects(cli, tmp_path):
    marker = str(tmp_path / 'executed')
    torch.save({'state_dict': {'conv1.weight': torch.ones(1), 'x': _Hostile(marker)}}, tmp_path / 'bad.pth')
    result = cli('convert', tmp_path / 'bad.pth', '--model', 'rs_resnet18', '--out', tmp_path / 'out')
    assert_error(result, tmp_path / 'bad.pth', 'pickled object', 'mkdir', 'expected a .safetensors or .pth')
    assert not os.path.exists(marker) and not (tmp_path / 'out').exists()


def _truncated(model, file):
    (torch.save if file.suffix == '.pth' else save_file)(model.state_dict(), file)
    file.write_bytes(file.read_bytes()[:100_000])


@pytest.mark.parametrize('name, write, parts', [
    ('absent.pth', lambda model, file: None, ['no such file']),
    ('folder', lambda model, file: file.mkdir(), ['a directory']),
    ('empty.pth', lambda model, file: file.touch(), ['empty']),
    ('text.pth', lambda model, file: file.write_text('hello'), ['not readable']),
    ('text.safetensors', lambda model, file: file.write_text('hello there, this is text'), ['not readable']),
    ('cut.pth', _truncated, ['not readable']),
    ('cut.safetensors', _truncated, ['not readable']),
    ('number.pth', lambda model, file: torch.save(3, file), ['expected']),
    ('list.pth', lambda model, file: torch.save([torch.ones(2)], file), ['expected']),
    ('nothing.pth', lambda model, file: torch.save({}, file), ['no tensors']),
    ('other.pth', lambda model, file: torch.save(timm.create_model('regnetx_002').state_dict(), file),
     ['not a checkpoint of rs_resnet18', 'Missing key', 'Expected a state dict']),
    ('larger.pth', lambda model, file: torch.save(timm.create_model('resnet34').state_dict(), file),
     ['Unexpected key']),
])
def test_convert_wrong_files(cli, model, tmp_path, name, write, parts):
    file = tmp_path / name
    write(model, file)
    assert_error(cli('convert', file, '--model', 'rs_resnet18', '--out', tmp_path / 'out'), file, *parts)
    assert not (tmp_path / 'out').exists()


def test_convert_contradicting_classes_and_debug(cli, model, tmp_path):
    file = tmp_path / 'a.safetensors'
    save_file(model.state_dict(), file)
    argv = ['convert', file, '--model', 'rs_resnet18', '--out', tmp_path / 'out', '--num-classes', 7]
    assert_error(cli(*argv), file, '5 classes, not 7')
    status, _, err = cli('--debug', *argv)
    assert status == 2 and err[0].startswith('Traceback') and '5 classes, not 7' in err[-1]


# extract

@pytest.mark.parametrize('size', [48, pytest.param(56, marks=pytest.mark.slow)])
def test_extract_a_folder_for_timm_alone(cli, model, folder, tmp_path, size):
    assert cli('extract', folder, '--size', size, '--out', tmp_path / 'plain')[0] == 0
    code = f'''
import sys, timm, torch
model = timm.create_model('local-dir:{tmp_path}/plain', pretrained=True).eval()
x = torch.randn(2, 3, {size}, {size}, generator=torch.Generator().manual_seed(0))
assert 'rs_timm' not in sys.modules and timm.data.resolve_model_data_config(model)['input_size'] == (3, {size}, {size})
torch.save(model(x), '{tmp_path}/logits.pth')
'''
    subprocess.run([sys.executable, '-c', code], check=True, cwd=tmp_path)
    x = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(torch.load(tmp_path / 'logits.pth'), model(x), atol=1e-6)


@pytest.mark.parametrize('name', ['plain.safetensors', 'plain.pth'])
def test_extract_a_file(cli, model, folder, tmp_path, name):
    argv = ['extract', folder, '--size', 48, '--out', tmp_path / name]
    assert cli(*argv)[0] == 0
    plain = timm.create_model('resnet18', num_classes=CLASSES, checkpoint_path=tmp_path / name).eval()
    assert_same(rs_timm.extract(model, 48), plain, (48,))
    assert_error(cli(*argv), tmp_path / name, '--force')


# recalibrate

@pytest.mark.filterwarnings('ignore')
def test_recalibrate_is_the_librarys_over_the_folder(cli, model, folder, photos, tmp_path):
    data = Path(photos[0]).parent
    (data / 'deep').mkdir()
    (data / 'deep' / 'broken.JPG').write_bytes(b'no picture')
    (data / 'notes.txt').write_text('not looked at')
    argv = ['recalibrate', folder, '--data', data, '--sizes', 64, 32, '--num-images', 'all', '--prior-images', 2]
    status, out, err = cli(*argv, '--batch-size', 2, '--out', tmp_path / 'out')
    assert status == 0 and '64 px: statistics of 3 pictures' in out
    assert len([line for line in err if 'skipped' in line and 'broken.JPG' in line]) == 1
    files, config = ImageFiles(data), timm.data.resolve_model_data_config(model)
    recalibrate(model, lambda size: files.batches(image_transform(config, size), 2), [64, 32], None, 2)
    again = restored(tmp_path / 'out')
    assert_same(model, again, rtol=1e-5)
    before = restored(folder)
    assert torch.equal(before.bn1['48'].running_mean, again.bn1['48'].running_mean)
    assert not torch.equal(before.bn1['64'].running_mean, again.bn1['64'].running_mean)


@pytest.mark.parametrize('data, part', [('absent', 'no such folder'), ('.', 'no pictures')])
def test_recalibrate_without_pictures(cli, folder, tmp_path, data, part):
    (tmp_path / 'empty').mkdir()
    assert_error(cli('recalibrate', folder, '--data', tmp_path / 'empty' / data, '--out', tmp_path / 'out'), part)


def test_folders_are_read_in_a_fixed_random_order(photos):
    data = Path(photos[0]).parent
    for i in range(20):
        os.link(photos[0], data / f'more_{i:02}.png')
    assert ImageFiles(data).files == ImageFiles(data).files != ImageFiles(data, seed=1).files
    assert sorted(ImageFiles(data).files) == sorted(data.iterdir()) != ImageFiles(data).files
    to_tensor = image_transform(dict(mean=(0, 0, 0), std=(1, 1, 1), crop_pct=1., interpolation='bilinear'), 8)
    assert [len(batch) for batch in ImageFiles(data).batches(to_tensor, 10)] == [10, 10, 3]


# push

def test_push_to_a_hub(model, folder, tmp_path):
    with HubServer() as hub:
        client = dict(HF_ENDPOINT=hub.url, HF_TOKEN='hf_writer', HF_HOME=str(tmp_path), HF_HUB_DISABLE_XET='1')
        done = shell(f'{sys.executable} -m rs_timm push {folder} user/mine --private --license mit', **client)
        assert done.returncode == 0 and f'{hub.url}/user/mine/commit/' in done.stdout.decode(), done
        files = hub.repos['user/mine'].refs['main'].files
        assert hub.repos['user/mine'].private and b'license: mit' in files['README.md'].content
        (tmp_path / 'pulled.safetensors').write_bytes(files['model.safetensors'].content)
    pulled = load_file(tmp_path / 'pulled.safetensors')
    assert all(torch.equal(value, pulled[key]) for key, value in model.state_dict().items())


# one word for one thing

@pytest.mark.parametrize('old, new, rest', [
    ('--resolution', '--sizes', ['predict', 'rs_resnet18', 'a.jpg']),
    ('--resolutions', '--sizes', ['eval', 'rs_resnet18', '--data', 'x']),
    ('--resolutions', '--sizes', ['analyze', 'rs_resnet18', '--data', 'x']),
    ('--only', '--sizes', ['recalibrate', 'rs_resnet18', '--data', 'x', '--out', 'y']),
    ('--batch', '--batch-size', ['bench', 'a.onnx']),
    ('--resolution', '--size', ['extract', 'rs_resnet18', '--out', 'y']),
    ('--split', '--plain', ['export', 'rs_resnet18', 'y.onnx']),
    ('--amp', '--precision', ['eval', 'rs_resnet18', '--data', 'x']),
    ('--workers', '--decoders', ['predict', 'rs_resnet18', 'a.jpg', '--out', 'x.jsonl']),
])
def test_old_names_go_on_with_a_note(old, new, rest, capsys, monkeypatch):
    seen = []
    monkeypatch.setattr('rs_timm.cli.run_command', lambda run, args: seen.append(args) or 0)
    value = 'float16' if old == '--amp' else '48'
    assert main([*rest, old, value]) == 0 == main([*rest, new, value])
    assert seen[0] == seen[1]
    (line,) = capsys.readouterr().err.splitlines()
    assert f'{old} is called {new} now' in line


@pytest.mark.parametrize('message, line', [
    ("raise the budget, or pass if_none='smallest'.", 'raise the budget, or pass --if-none smallest.'),
    ('ms=0: give more, or batch_size=4.', '--ms 0: give more, or --batch-size 4.'),
    ('timm.create_model(ms=3) and other=1', 'timm.create_model(ms=3) and other=1'),
])
def test_errors_speak_of_options(message, line, capsys):
    """The library's if_none='smallest' is --if-none smallest on the command line."""
    def fail(args):
        raise ValueError(message)

    assert run_command(fail, argparse.Namespace(debug=False, if_none='error', ms=0., batch_size=1)) == 2
    assert capsys.readouterr().err == f'rs-timm: error: {line}\n'


def test_debug_goes_before_and_behind_the_command(cli):
    for argv in (['--debug', 'list', 'vit'], ['list', 'vit', '--debug']):
        status, _, err = cli(*argv)
        assert status == 2 and err[0].startswith('Traceback') and "'vit'" in err[-1]


def test_train_help_shows_defaults(capsys):
    with pytest.raises(SystemExit):
        main(['train', '--help'])
    out = ' '.join(capsys.readouterr().out.split())
    for field, default in (('--resolutions', '224 192 160 128 96'), ('--lr', '0.1'), ('--device', 'auto')):
        assert re.search(rf'{field} [^-].*?\(default: {re.escape(default)}\)', out.partition('where and how:')[2])


def test_version(capsys):
    with pytest.raises(SystemExit) as info:
        main(['--version'])
    out = capsys.readouterr().out
    assert info.value.code == 0 and rs_timm.__version__ in out and timm.__version__ in out
