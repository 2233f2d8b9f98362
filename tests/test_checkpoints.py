"""Checkpoints of every layout that a user may have, and files that are none."""
import argparse
import hashlib
import os
import shutil
import warnings

import pytest
import timm
import torch
import torchvision
from safetensors.torch import save_file
from timm.data import resolve_data_config
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

import rs_timm
from rs_timm.loading import load_model
from rs_timm.models import _manifest, check_model_args
from rs_timm.tensor_files import read_state_dict

SIZES = (64, 48, 32)
PAPER_SIZES = (224, 192, 160, 128, 96)


def image(size, channels=3):
    return torch.randn(2, channels, size, size, generator=torch.Generator().manual_seed(size))


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def load(name, file, **kwargs):
    overlay = {'file': str(file), **kwargs.pop('overlay', {})}
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs).eval()


def from_path(name, file, **kwargs):
    return timm.create_model(name, checkpoint_path=str(file), **kwargs).eval()


LOADERS = pytest.mark.parametrize('loader', [load, from_path], ids=['pretrained', 'checkpoint_path'])


# Our own layout

@LOADERS
@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
def test_own_layout(loader, suffix, tmp_path, random_statistics):
    model = random_statistics(timm.create_model('rs_resnet18', resolutions=SIZES))
    file = tmp_path / f'weights{suffix}'
    save_file(model.state_dict(), file) if suffix == '.safetensors' else torch.save(model.state_dict(), file)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        again = loader('rs_resnet18', file, resolutions=SIZES)
    for size in (*SIZES, 40):
        assert torch.equal(again(image(size)), model(image(size)))


@LOADERS
def test_training_checkpoints_of_timm_prefer_the_average(loader, tmp_path, random_statistics):
    model = random_statistics(timm.create_model('rs_resnet18', resolutions=SIZES))
    state = {f'module.{key}': value for key, value in model.state_dict().items()}
    torch.save(dict(state_dict={key: torch.zeros_like(v) for key, v in state.items()}, state_dict_ema=state, epoch=3),
               tmp_path / 'last.pth.tar')
    assert torch.equal(loader('rs_resnet18', tmp_path / 'last.pth.tar', resolutions=SIZES)(image(48)), model(image(48)))


@LOADERS
def test_other_resolutions_are_taken_or_interpolated_with_one_warning(loader, tmp_path, random_statistics):
    model = random_statistics(timm.create_model('rs_resnet18', resolutions=(64, 32)))
    torch.save(model.state_dict(), tmp_path / 'weights.pth')
    for _ in range(2):  # at every load, not once a process
        with pytest.warns(UserWarning, match=r'for \(64, 32\), the model for \(96, 64, 48\)') as record:
            other = loader('rs_resnet18', tmp_path / 'weights.pth', resolutions=(96, 64, 48))
        assert len([w for w in record if 'BatchNorm sets' in str(w.message)]) == 1
    for size in (64, 48, 56):
        close(other(image(size)), model(image(size)))
    other.set_resolution(96)  # outside the range: the nearest set
    model.set_resolution(64)
    close(other(image(96)), model(image(96)))


def test_each_model_warns_for_itself(random_statistics):
    states = [timm.create_model('rs_resnet18', resolutions=(64, 32), num_classes=2).state_dict() for _ in range(2)]
    models = [timm.create_model('rs_resnet18', resolutions=(64, 48), num_classes=2) for _ in range(2)]
    with pytest.warns(UserWarning) as record:
        for model, state in zip(models, states):
            model.load_state_dict(state)
    assert len(record) == 2


# Plain networks

def torchvision_network(name, random_statistics, **kwargs):
    torch.manual_seed(0)
    return random_statistics(getattr(torchvision.models, name)(weights=None, **kwargs))


PLAIN = [('rs_resnet18', 'resnet18'), ('rs_resnet50', 'resnet50'), ('rs_mobilenetv2', 'mobilenet_v2')]


@LOADERS
@pytest.mark.parametrize('name, source', PLAIN)
def test_torchvision_checkpoints(name, source, loader, tmp_path, random_statistics):
    network = torchvision_network(source, random_statistics)
    torch.save(network.state_dict(), tmp_path / 'weights.pth')
    model = loader(name, tmp_path / 'weights.pth')
    for size in (*PAPER_SIZES, 144):
        with torch.no_grad():
            close(model(image(size)), network(image(size)))


@LOADERS
@pytest.mark.parametrize('name, source', [('rs_resnet18', 'resnet18'), ('rs_mobilenetv2', 'mobilenetv2_100'),
                                          ('rs_resnet50', 'resnet50')])
def test_plain_timm_checkpoints(name, source, loader, tmp_path, random_statistics):
    network = random_statistics(timm.create_model(source))
    torch.save({'state_dict': network.state_dict()}, tmp_path / 'weights.pth')
    model = loader(name, tmp_path / 'weights.pth', resolutions=SIZES)
    for size in (*SIZES, 40):
        assert torch.equal(model(image(size)), network(image(size)))


def test_old_checkpoints_without_counters(tmp_path, random_statistics):
    network = torchvision_network('resnet18', random_statistics)
    state = {key: value for key, value in network.state_dict().items() if 'num_batches' not in key}
    torch.save(dict(state), tmp_path / 'weights.pth')
    close(load('rs_resnet18', tmp_path / 'weights.pth')(image(96)), network(image(96)))


@pytest.mark.parametrize('base', ['resnet18', 'mobilenetv2_100', 'regnety_002'])
def test_any_base(base, tmp_path, random_statistics):
    network = random_statistics(timm.create_model(base))
    torch.save(network.state_dict(), tmp_path / 'weights.pth')
    model = load('rs_switchable', tmp_path / 'weights.pth', base=base, resolutions=SIZES)
    assert torch.equal(model(image(48)), network(image(48)))


# The layout of the paper's public code: every layer is called with a list of inputs, one for each size

class Shared(nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = module

    def forward(self, xs):
        return [self.module(x) for x in xs]


class Private(nn.Module):
    def __init__(self, channels, count):
        super().__init__()
        for index in range(count):
            self.add_module(f'bn_{index}', nn.BatchNorm2d(channels))

    def forward(self, xs):
        return [bn(x) for bn, x in zip(self.children(), xs)]


def paper_state(network, count, random_statistics):
    """State dict of `network` (torchvision), as the paper's code would have saved it, and its plain copy per size."""
    state, plains = {}, [dict(network.state_dict()) for _ in range(count)]
    for name, module in network.named_modules():
        if isinstance(module, _BatchNorm):
            private = random_statistics(Private(module.num_features, count), seed=len(state))
            for index, bn in enumerate(private.children()):
                plains[index].update({f'{name}.{key}': value for key, value in bn.state_dict().items()})
            state.update({f'{name}.{key}': value for key, value in private.state_dict().items()})
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            state.update({f'{name}.{key}': value for key, value in Shared(module).state_dict().items()})
    return state, plains


def paper_mobilenet_name(key):
    """torchvision's name -> that of the paper's code, whose blocks are one flat Sequential (DESIGN, section 5)."""
    parts = key.split('.')
    if parts[:2] == ['features', '18']:
        return '.'.join(['conv', *parts[2:]])
    if parts[0] == 'classifier':
        return '.'.join(['classifier', *parts[2:]])
    if len(parts) > 4 and parts[2] == 'conv':
        nested, rest = parts[3], parts[4:]
        first_block = parts[1] == '1'
        if nested == '0' or (nested == '1' and not first_block):  # a ConvBNReLU: its position, then within it
            position = int(nested) * 3 + int(rest[0])
            rest = rest[1:]
        else:
            position = int(nested) + (2 if first_block else 4)
        return '.'.join([*parts[:3], str(position), *rest])
    return key


def paper_checkpoint(source, random_statistics, count=5, prefix='module.', alpha=True):
    network = torchvision_network(source, random_statistics)
    state, plains = paper_state(network, count, random_statistics)
    rename = paper_mobilenet_name if source == 'mobilenet_v2' else (lambda key: key)
    state = {prefix + rename(key): value for key, value in state.items()}
    if alpha:
        state[f'{prefix}alpha'] = torch.linspace(-1, 1, count)

    def expected(index, x):
        network.load_state_dict(plains[index])
        return network.eval()(x)

    return {'epoch': 120, 'arch': f'parallel_{source}', 'state_dict': state, 'best_acc0': 70.1}, expected


def test_the_names_are_those_of_the_paper(random_statistics):
    for source, keys in {
        'resnet50': ('module.conv1.module.weight', 'module.bn1.bn_0.weight', 'module.fc.module.weight',
                     'module.layer1.0.downsample.1.bn_0.running_mean', 'module.alpha'),
        'mobilenet_v2': ('module.features.0.0.module.weight', 'module.features.0.1.bn_0.weight',
                         'module.features.1.conv.3.module.weight', 'module.features.3.conv.6.module.weight',
                         'module.features.3.conv.7.bn_4.running_var', 'module.conv.0.module.weight',
                         'module.conv.1.bn_0.bias', 'module.classifier.module.weight'),
    }.items():
        checkpoint, _ = paper_checkpoint(source, random_statistics)
        assert [key for key in keys if key not in checkpoint['state_dict']] == []


@LOADERS
@pytest.mark.parametrize('prefix', ['module.', ''], ids=['DataParallel', 'bare'])
@pytest.mark.parametrize('name, source', PLAIN)
def test_paper_checkpoints(name, source, prefix, loader, tmp_path, random_statistics):
    checkpoint, expected = paper_checkpoint(source, random_statistics, prefix=prefix)
    torch.save(checkpoint, tmp_path / 'model_best.pth.tar')
    model = loader(name, tmp_path / 'model_best.pth.tar')
    assert model.resolutions == PAPER_SIZES
    with torch.no_grad():
        for index, size in enumerate(PAPER_SIZES):
            close(model(image(size)), expected(index, image(size)))
    assert 'alpha' not in model.state_dict()
    alpha = model.checkpoint_metadata['alpha']
    weights = torch.linspace(-1, 1, 5).softmax(0)
    assert tuple(alpha) == PAPER_SIZES
    torch.testing.assert_close(torch.tensor(list(alpha.values())), weights)


@pytest.mark.parametrize('resolutions', [(224, 160, 96), (176,), (256, 224, 192, 160, 128, 96, 64)])
def test_paper_checkpoints_for_other_resolutions(resolutions, tmp_path, random_statistics):
    checkpoint, expected = paper_checkpoint('resnet18', random_statistics)
    torch.save(checkpoint, tmp_path / 'weights.pth')
    with pytest.warns(UserWarning, match='interpolated'):
        model = load('rs_resnet18', tmp_path / 'weights.pth', resolutions=resolutions)
    for size in set(resolutions) & set(PAPER_SIZES):
        with torch.no_grad():
            close(model(image(size)), expected(PAPER_SIZES.index(size), image(size)))
    assert tuple(model.checkpoint_metadata['alpha']) == PAPER_SIZES


def test_a_paper_checkpoint_of_unknown_sizes_asks_for_them(tmp_path, random_statistics):
    checkpoint, expected = paper_checkpoint('resnet18', random_statistics, count=3)
    torch.save(checkpoint, tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='3 numbered BatchNorm sets.*create the model with the 3 resolutions'):
        load('rs_resnet18', tmp_path / 'weights.pth')
    model = load('rs_resnet18', tmp_path / 'weights.pth', resolutions=(64, 48, 32))
    with torch.no_grad():
        close(model(image(48)), expected(1, image(48)))


def test_paper_preprocessing_and_the_users_wish(tmp_path, random_statistics):
    checkpoint, _ = paper_checkpoint('resnet18', random_statistics)
    torch.save(checkpoint, tmp_path / 'weights.pth')
    for tag in ('rs_resnet18', 'rs_resnet18.orig_in1k'):
        data = resolve_data_config({}, model=load(tag, tmp_path / 'weights.pth'))
        assert (data['mean'], data['std']) == ((0., 0., 0.), (1., 1., 1.))
        assert (data['interpolation'], data['crop_pct'], data['input_size']) == ('bilinear', 0.875, (3, 224, 224))
        model = load(tag, tmp_path / 'weights.pth', overlay=dict(mean=(0.1, 0.2, 0.3), crop_pct=0.9))
        data = resolve_data_config({}, model=model)
        assert (data['mean'], data['std'], data['crop_pct']) == ((0.1, 0.2, 0.3), (1., 1., 1.), 0.9)


def test_plain_files_keep_the_preprocessing_of_the_tag(tmp_path, random_statistics):
    torch.save(torchvision_network('resnet18', random_statistics).state_dict(), tmp_path / 'weights.pth')
    data = resolve_data_config({}, model=load('rs_resnet18', tmp_path / 'weights.pth'))
    assert data == resolve_data_config({}, model=timm.create_model('resnet18'))


def timms_checkpoint(path, name, **args):
    """As train.py of timm writes it; what its user does not give is None there."""
    given = dict.fromkeys(('img_size', 'input_size', 'crop_pct', 'mean', 'std', 'crop_mode'))
    args = argparse.Namespace(**{**given, 'model': name, 'pretrained': False, 'interpolation': '', **args})
    state = timm.create_model(name).state_dict()
    torch.save(dict(epoch=1, arch=name, state_dict=state, optimizer={}, version=2, args=args), path)
    return str(path)


@pytest.mark.parametrize('name', ['test_resnet', 'test_resnet.r160_in1k'])
@pytest.mark.parametrize('args', [
    {}, dict(interpolation='bilinear', img_size=128), dict(crop_pct=0.8, mean=[0.1], std=[0.2, 0.3, 0.4])])
def test_a_checkpoint_of_timm_says_how_its_pictures_were_prepared(tmp_path, recwarn, name, args):
    file = timms_checkpoint(tmp_path / 'model_best.pth.tar', name, **args)
    model = load_model('switchable:test_resnet', checkpoint=file, resolutions=(64, 48))
    assert resolve_data_config({}, model=model) == resolve_data_config(args, model=timm.create_model(name))
    assert not [w for w in recwarn if 'how its pictures were prepared' in str(w.message)]


@pytest.mark.parametrize('args, message', [
    (dict(img_size='large'), 'say a preprocessing that timm does not take'), (dict(mean=[1., 2.]), 'does not take'),
    (dict(crop_pct=7.), 'crop_pct is .7.0.'), (dict(interpolation='a b'), 'interpolation is .a b.'),
    (dict(std=[0., 0., 0.]), 'std')])
def test_arguments_in_a_checkpoint_are_checked(tmp_path, args, message):
    file = timms_checkpoint(tmp_path / 'last.pth', 'test_resnet', **args)
    with pytest.raises(ValueError, match=f'last.pth.* {message}'):
        load_model('switchable:test_resnet', checkpoint=file, resolutions=(64, 48))


def test_flipped_bytes_in_a_checkpoint_are_seen(tmp_path):
    """torch.load does not look at the checksums that torch.save writes, unless it was told to write none."""
    state = dict(weight=torch.zeros(64))
    for checksums in (True, False):
        file = tmp_path / f'{checksums}.pth'
        before = torch.serialization.get_crc32_options()
        torch.serialization.set_crc32_options(checksums)
        torch.save(state, file)
        torch.serialization.set_crc32_options(before)
        assert torch.equal(read_state_dict(file)['weight'], state['weight'])
        data = bytearray(file.read_bytes())
        data[data.index(bytes(256)) + 128] = 1
        file.write_bytes(data)
        assert torch.load(file)['weight'].any()
    with pytest.raises(ValueError, match='True.pth: not readable .BadZipFile: Bad CRC-32'):
        read_state_dict(tmp_path / 'True.pth')
    torch.save(state, tmp_path / 'legacy.pth', _use_new_zipfile_serialization=False)
    assert torch.equal(read_state_dict(tmp_path / 'legacy.pth')['weight'], state['weight'])


# Adaptation, as timm does it

@pytest.mark.parametrize('name, source', PLAIN)
@pytest.mark.parametrize('paper', [True, False], ids=['paper', 'plain'])
def test_other_classes_and_channels(name, source, paper, tmp_path, random_statistics):
    checkpoint, expected = paper_checkpoint(source, random_statistics)
    plain = torchvision_network(source, random_statistics).state_dict()
    torch.save(checkpoint if paper else plain, tmp_path / 'weights.pth')
    full = load(name, tmp_path / 'weights.pth')
    model = load(name, tmp_path / 'weights.pth', num_classes=10, in_chans=1)
    gray = image(96, channels=1)
    with torch.no_grad():
        close(model.forward_features(gray), full.forward_features(gray.expand(-1, 3, -1, -1)))
    assert model(gray).shape == (2, 10)
    headless = load(name, tmp_path / 'weights.pth', num_classes=0)
    with torch.no_grad():
        assert torch.equal(headless(image(96)), full.forward_head(full.forward_features(image(96)), pre_logits=True))


@pytest.mark.parametrize('name, source', PLAIN)
@pytest.mark.parametrize('paper', [True, False], ids=['paper', 'plain'])
def test_features_only(name, source, paper, tmp_path, random_statistics):
    checkpoint, _ = paper_checkpoint(source, random_statistics)
    plain = torchvision_network(source, random_statistics).state_dict()
    torch.save(checkpoint if paper else plain, tmp_path / 'weights.pth')
    full = load(name, tmp_path / 'weights.pth')
    features = load(name, tmp_path / 'weights.pth', features_only=True)
    for size in (160, 96):
        with torch.no_grad():
            for a, b in zip(features(image(size)), full.forward_intermediates(image(size), intermediates_only=True)):
                close(a, b)


# Files that are none

HOSTILE = 'RS_TIMM_TEST_MARK'


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def bad_files(folder):
    """Name -> a path that is no checkpoint of rs_resnet18."""
    def put(name, content):
        path = folder / name
        path.write_bytes(content) if isinstance(content, bytes) else torch.save(content, path)
        return path

    good = put('good.pth', timm.create_model('rs_resnet18').state_dict()).read_bytes()
    state = torch.load(folder / 'good.pth')
    save_file(state, folder / 'good.safetensors')
    safe = (folder / 'good.safetensors').read_bytes()
    files = {
        'empty.pth': b'', 'empty.safetensors': b'', 'page.pth': b'<!DOCTYPE html><html>Sign in</html>',
        'page.safetensors': b'<!DOCTYPE html><html>Sign in</html>', 'cut.pth': good[:len(good) // 2],
        'cut.safetensors': safe[:len(safe) // 2], 'renamed.safetensors': good, 'text.pth': b'hello',
        'other.pth': timm.create_model('mobilenetv2_100').state_dict(), 'list.pth': [1, 2, 3], 'none.pth': None,
        'tensor.pth': torch.ones(3), 'nothing.pth': {}, 'numbers.pth': {1: torch.ones(1)},
        'strings.pth': {'fc.weight': 'a'},
        'deeper.pth': timm.create_model('resnet34').state_dict(),
        'wrong_shape.pth': dict(state, **{'conv1.weight': torch.ones(64, 3, 3, 3)}),
        'hostile.pth': {'state_dict': state, 'x': Hostile(folder / HOSTILE)},
        'hostile_bare.pth': Hostile(folder / HOSTILE),
    }
    return {name: put(name, content) for name, content in files.items()}


@pytest.fixture(scope='module')
def bad(tmp_path_factory):
    return bad_files(tmp_path_factory.mktemp('bad'))


BAD = (
    'empty.pth', 'empty.safetensors', 'page.pth', 'page.safetensors', 'cut.pth', 'cut.safetensors',
    'renamed.safetensors', 'text.pth', 'other.pth', 'list.pth', 'none.pth', 'tensor.pth', 'nothing.pth', 'numbers.pth',
    'strings.pth', 'deeper.pth', 'wrong_shape.pth', 'hostile.pth', 'hostile_bare.pth',
)


@pytest.mark.parametrize('kwargs', [{}, dict(num_classes=10)], ids=['same head', 'new head'])
@pytest.mark.parametrize('name', BAD)
def test_a_bad_file_is_named_with_what_was_expected(name, kwargs, bad):
    file = bad[name]
    with pytest.raises(ValueError) as raised:
        load('rs_resnet18', file, **kwargs)
    message = str(raised.value)
    assert str(file) in message and 'rs_resnet18' in message and 'safetensors' in message
    assert not (file.parent / HOSTILE).exists()


@pytest.mark.parametrize('name', BAD)
def test_a_bad_checkpoint_path_fails_and_runs_nothing(name, bad):
    """timm opens this one itself, and says what it says; what matters is that it neither passes nor executes."""
    with pytest.raises(Exception) as raised:
        from_path('rs_resnet18', bad[name])
    assert not isinstance(raised.value, RecursionError)
    assert not (bad[name].parent / HOSTILE).exists()


def test_the_hostile_file_is_hostile(bad):
    """The pickle does run where pickles are trusted."""
    torch.load(bad['hostile_bare.pth'], weights_only=False)
    assert (bad['hostile_bare.pth'].parent / HOSTILE).is_dir()
    shutil.rmtree(bad['hostile_bare.pth'].parent / HOSTILE)


def test_a_missing_file_and_a_directory(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'nowhere\.pth: no such file; expected the weights of rs_resnet18'):
        load('rs_resnet18', tmp_path / 'nowhere.pth')
    with pytest.raises(FileNotFoundError, match='a directory; expected the weights of rs_resnet18'):
        load('rs_resnet18', tmp_path)
    with pytest.raises(FileNotFoundError):
        from_path('rs_resnet18', tmp_path / 'nowhere.pth')


def test_a_wrong_argument_is_not_blamed_on_the_file(tmp_path, random_statistics):
    torch.save(torchvision_network('resnet18', random_statistics).state_dict(), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match='duplicates') as raised:
        load('rs_resnet18', tmp_path / 'weights.pth', resolutions=(64, 64))
    assert 'weights.pth' not in str(raised.value)
    with pytest.raises(TypeError, match='no_such_keyword'):
        load('rs_resnet18', tmp_path / 'weights.pth', no_such_keyword=1)
    with pytest.raises((AssertionError, IndexError), match='out of range') as raised:
        load('rs_resnet18', tmp_path / 'weights.pth', features_only=True, out_indices=(9,))
    assert 'weights.pth' not in str(raised.value)


@pytest.mark.parametrize('key, spoil, message', [
    ('conv1.weight', lambda t: t.to(torch.int8), r'conv1\.weight is stored as torch\.int8'),
    ('conv1.weight', lambda t: t > 0, r'stored as torch\.bool'),
    ('bn1.48.num_batches_tracked', lambda t: t.double(), 'num_batches_tracked is stored as torch.float64'),
    ('layer1.0.conv1.weight', lambda t: t * float('nan'), r'layer1\.0\.conv1\.weight has values that are not finite'),
    ('bn1.32.running_var', lambda t: -t, 'negative variances'),
])
def test_weights_of_another_kind_are_refused(key, spoil, message, tmp_path):
    state = timm.create_model('rs_resnet18', resolutions=SIZES).state_dict()
    torch.save(dict(state, **{key: spoil(state[key])}), tmp_path / 'weights.pth')
    with pytest.raises(ValueError, match=message):
        load('rs_resnet18', tmp_path / 'weights.pth', resolutions=SIZES)


def test_a_folder_that_lacks_a_set_is_damaged_unless_the_user_does_without(tmp_path):
    model = rs_timm.switchable('test_resnet', SIZES)
    timm.models.save_for_hf(model, tmp_path, model_args=model._model_args)
    state = {key: value for key, value in model.state_dict().items() if '.48.' not in key}
    save_file(state, tmp_path / 'model.safetensors')
    (tmp_path / 'pytorch_model.bin').unlink(missing_ok=True)
    with pytest.raises(ValueError, match=r'lacks the BatchNorm set for 48 px.*resolutions=\(64, 32\) does without'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    assert timm.create_model(f'local-dir:{tmp_path}', pretrained=True, resolutions=(64, 32)).resolutions == (64, 32)
    with pytest.warns(UserWarning, match='interpolated'):
        timm.create_model(f'local-dir:{tmp_path}', pretrained=True, resolutions=(64, 56, 32))


@pytest.mark.parametrize('args, message', [
    (dict(base='hf-hub:someone/else'), r"model_args\.base is 'hf-hub:someone/else'"), (dict(base='../x'), 'base is'),
    (dict(base='rs_resnet18'), 'a network of timm itself'), (dict(base=['resnet18']), 'base is'),
    (dict(encoder='resnet18'), r'model_args\.encoder .* rs_\* classifier'),
    (dict(checkpoint_path='/etc/passwd'), r'model_args\.checkpoint_path is no argument of a network'),
    (dict(layers=[10 ** 6] * 4), 'layers is no'), ({'a b': 1}, 'no argument'), ([], 'is a list'),
    (dict(resolutions=list(range(1, 66))), 'at most 64'), (dict(resolutions=64), 'must be a list'),
    (dict(resolutions=[64, '32']), r"model_args\.resolutions: resolution '32'"),
    (dict(interpolation='cubic'), 'params, affine, nearest'), (dict(num_classes=10 ** 9), 'no larger than'),
    (dict(drop_rate=float('nan')), 'must be finite'), (dict(act_layer={}), 'has a dict'),
    (dict(act_layer='x' * 101), 'short text'),
])
def test_what_a_config_may_not_ask_for(args, message):
    with pytest.raises(ValueError, match=message):
        check_model_args('rs_switchable', args)


def test_a_config_is_not_obeyed_by_timm_either(tmp_path):
    model = rs_timm.switchable('test_resnet', SIZES)
    for args in (dict(base='hf-hub:someone/else'), dict(base='rs_switchable'), dict(checkpoint_path='/etc/passwd')):
        timm.models.save_for_hf(model, tmp_path, model_args={**model._model_args, **args})
        with pytest.raises(ValueError, match=f"model_args.{next(iter(args))} is"):
            timm.create_model(f'local-dir:{tmp_path}', pretrained=True)
    with pytest.raises(ValueError, match="^encoder is 'hf-hub:a/b'"):
        timm.create_model('rs_refinenet_resnet18', encoder='hf-hub:a/b')


# The manifest

def test_a_shipped_file_with_another_hash_is_refused(tmp_path, monkeypatch):
    torch.save(timm.create_model('rs_resnet18').state_dict(), tmp_path / 'weights.pth')
    digest = hashlib.sha256((tmp_path / 'weights.pth').read_bytes()).hexdigest()
    entry = dict(file='weights.pth', sha256=digest)
    monkeypatch.setattr(_manifest, 'weights_dir', lambda: tmp_path)
    monkeypatch.setattr(_manifest, 'manifest', lambda: {'rs_resnet18.test': entry})
    load('rs_resnet18', tmp_path / 'weights.pth')
    entry['sha256'] = '0' * 64
    with pytest.raises(ValueError, match=f'sha256 is {digest}, the manifest has 0000'):
        load('rs_resnet18', tmp_path / 'weights.pth')


# Tags

def test_tags_tell_the_truth():
    listed = timm.list_pretrained('rs_*')
    assert listed and all(timm.models.get_pretrained_cfg(name).has_weights for name in listed)
    shipped = set(_manifest.manifest())
    for name in listed:
        cfg = timm.models.get_pretrained_cfg(name)
        if name not in shipped:  # broadcast weights: those of timm's own tag, and it says so
            base = name.split('.')[0].removeprefix('rs_')
            base = {'mobilenetv2': 'mobilenetv2_100'}.get(base, base.replace('efficientnet', 'tf_efficientnet'))
            stock = timm.models.get_pretrained_cfg(f'{base}.{cfg.tag}')
            assert cfg.hf_hub_id == stock.hf_hub_id and cfg.license == stock.license
            assert 'given to every BatchNorm set' in cfg.description
    assert not [name for name in listed if name.endswith('orig_in1k')]
    assert {'rs_resnet18.orig_in1k', 'rs_resnet50.orig_in1k', 'rs_mobilenetv2.orig_in1k'} <= set(
        timm.list_models('rs_*', include_tags=True))


def test_a_name_alone_says_that_it_knows_other_classes_than_imagenet():
    with pytest.warns(UserWarning, match=r'loads rs_resnet18\.mred_imagenette, which knows 10 .*rs_resnet18\.a1_in1k'):
        timm.create_model('rs_resnet18', pretrained=True)
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        timm.create_model('rs_resnet18.mred_imagenette', pretrained=True)


@pytest.mark.parametrize('name', ['rs_resnet18', 'rs_resnet50', 'rs_mobilenetv2'])
def test_the_papers_tag_without_a_file_says_how_to_convert(name):
    with pytest.raises(ValueError, match=f'rs-timm convert CHECKPOINT --model {name} --out DIR'):
        timm.create_model(f'{name}.orig_in1k', pretrained=True)
