"""A saved folder gives back the network, claims nothing that does not hold, and is never left half written."""
import errno
import json
import os
import re
import signal
from contextlib import contextmanager, nullcontext

import pytest
import timm
import torch
from safetensors.torch import load_file

import rs_timm
from rs_timm.card import CardData
from rs_timm.hub import from_pretrained, save_pretrained, saving
from rs_timm.layers import insert_resolution

RESOLUTIONS = (64, 48, 32)
FILES = ['README.md', 'config.json', 'model.safetensors']


@pytest.fixture(autouse=True)
def no_counting(monkeypatch):
    """The card has tests of its own; counting its MAdds is half of the time of a save."""
    monkeypatch.setattr('rs_timm.card._count', lambda model, resolution: 'not counted')


def fresh(**kwargs):
    return timm.create_model('rs_resnet18', resolutions=RESOLUTIONS, num_classes=3, **kwargs)


def load(folder):
    return timm.create_model(f'local-dir:{folder}', pretrained=True).eval()


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())


def assert_same_network(model, other, channels=3):
    assert rs_timm.get_resolutions(other) == rs_timm.get_resolutions(model)
    largest, smallest = max(model.resolutions), min(model.resolutions)
    with torch.no_grad():
        for size in (*model.resolutions, (largest + smallest) // 2 + 1, largest + 16):  # own, between, outside
            x = torch.randn(2, channels, size, size)
            assert torch.equal(model.eval()(x), other(x)), size


def packed():
    model = fresh()
    return rs_timm.pack({r: rs_timm.extract(model, r) for r in RESOLUTIONS})


def packed_without_methods():
    model = fresh()
    model = rs_timm.layers.pack({r: rs_timm.extract(model, r) for r in RESOLUTIONS})
    model.resolutions = rs_timm.get_resolutions(model)  # a plain class: for assert_same_network alone
    return model


def with_new_head():
    model = fresh()
    model.reset_classifier(5)
    return model


def without_head():
    model = fresh()
    model.reset_classifier(0)
    return model


def with_inserted_and_removed():
    model = fresh()
    insert_resolution(model, 56)
    rs_timm.remove_resolution(model, 48)
    return model


@pytest.mark.parametrize('make', [
    fresh,
    lambda: fresh(interpolation='nearest'),
    lambda: fresh(in_chans=1, global_pool='max'),
    lambda: fresh(in_chans=4),
    lambda: timm.create_model('rs_mobilenetv2', resolutions=RESOLUTIONS, num_classes=3),
    lambda: rs_timm.switchable('regnety_002', resolutions=(64, 32), num_classes=4),
    lambda: rs_timm.switchable('tf_efficientnet_lite0', resolutions=(64, 32), interpolation='affine'),
    lambda: timm.create_model('rs_switchable', base='mobilenetv3_small_050', resolutions=(64, 32)),
    packed,
    packed_without_methods,
    with_new_head,
    without_head,
    with_inserted_and_removed,
])
def test_round_trip(make, random_statistics, tmp_path):
    model = random_statistics(make())
    folder = save_pretrained(model, tmp_path / 'saved')
    assert sorted(file.name for file in folder.iterdir()) == FILES
    again = load(folder)
    assert again.rs_selector.interpolation == model.rs_selector.interpolation
    assert again.num_classes == model.num_classes
    assert_same_network(model, again, channels=again.pretrained_cfg['input_size'][0])
    assert_same_network(model, load(save_pretrained(again, folder)), again.pretrained_cfg['input_size'][0])


def test_preprocessing_and_class_names(tmp_path):
    model = fresh(pretrained_cfg_overlay=dict(mean=(0., 0., 0.), std=(1., 1., 1.), interpolation='bilinear'))
    names = ['ant', 'bee', 'cat']
    again = load(save_pretrained(model, tmp_path / 'saved', model_config=dict(
        label_names=names, label_descriptions={'ant': 'an ant'}, pretrained_cfg=dict(crop_pct=0.5), note='mine')))
    expected = dict(timm.data.resolve_model_data_config(model), crop_pct=0.5)
    found = timm.data.resolve_model_data_config(again)
    assert {key: tuple(v) if isinstance(v, list) else v for key, v in found.items()} == expected
    assert list(again.pretrained_cfg['label_names']) == names
    assert again.pretrained_cfg['label_descriptions'] == {'ant': 'an ant'}
    assert config_of(tmp_path / 'saved')['note'] == 'mine'
    assert list(load(save_pretrained(again, tmp_path / 'twice')).pretrained_cfg['label_names']) == names
    again.reset_classifier(4)
    assert 'label_names' not in load(save_pretrained(again, tmp_path / 'other')).pretrained_cfg


def test_saving_changes_nothing_in_the_model(tmp_path):
    model = fresh().train()
    model.set_resolution(48)
    cfg, args, state = dict(model.pretrained_cfg), dict(model._model_args), torch.random.get_rng_state()
    save_pretrained(model, tmp_path / 'saved')
    assert model.training and model.get_resolution() == 48
    assert model.pretrained_cfg == cfg and model._model_args == args
    assert torch.equal(torch.random.get_rng_state(), state)
    assert load(tmp_path / 'saved').get_resolution() is None  # the selection is never saved


@pytest.mark.parametrize('wrap', [
    torch.nn.DataParallel,
    timm.utils.ModelEmaV3,
    torch.compile,
    lambda model: model.to(memory_format=torch.channels_last),
    lambda model: model.bfloat16(),
])
def test_wrappers_and_layouts(wrap, random_statistics, tmp_path):
    model = random_statistics(fresh())
    folder = save_pretrained(wrap(model), tmp_path / 'saved')
    for key, value in load(folder).state_dict().items():
        assert torch.equal(value, model.state_dict()[key].to(value.dtype)), key


# what is claimed about the weights

CLAIMS = ('tag', 'description', 'license', 'origin_url', 'paper_ids')


def test_an_untrained_network_claims_nothing(tmp_path):
    model = fresh()
    assert 'plain weights of timm/' in model.pretrained_cfg['description']  # of the tag that it did not load
    cfg = config_of(save_pretrained(model, tmp_path / 'saved'))['pretrained_cfg']
    assert not set(CLAIMS) & set(cfg)
    assert 'timm/' not in (tmp_path / 'saved' / 'README.md').read_text()
    assert not {'url', 'file', 'hf_hub_id', 'source', 'state_dict'} & set(cfg)


def test_a_derived_network_keeps_the_licence_alone(tmp_path):
    card = CardData(license='cc-by-4.0', description='Made of noise.')
    first = load(save_pretrained(fresh(), tmp_path / 'first', card=card))
    assert first.pretrained_cfg['license'] == 'cc-by-4.0' and first.pretrained_cfg['description'] == 'Made of noise.'
    cfg = config_of(save_pretrained(first, tmp_path / 'second'))['pretrained_cfg']
    assert cfg['license'] == 'cc-by-4.0' and 'description' not in cfg
    assert 'license: cc-by-4.0' in (tmp_path / 'second' / 'README.md').read_text()
    cfg = config_of(save_pretrained(first, tmp_path / 'third', keep_source=True))['pretrained_cfg']
    assert cfg['description'] == 'Made of noise.'
    cfg = config_of(save_pretrained(first, tmp_path / 'fourth', card=CardData(license='mit')))['pretrained_cfg']
    assert cfg['license'] == 'mit'


def test_a_file_of_the_user_does_not_inherit_the_licence_of_the_tag(tmp_path):
    weights = save_pretrained(fresh(), tmp_path / 'first') / 'model.safetensors'
    model = fresh(pretrained=True, pretrained_cfg_overlay=dict(file=str(weights), num_classes=3))
    assert model.pretrained_cfg['license']
    assert 'license' not in config_of(save_pretrained(model, tmp_path / 'second'))['pretrained_cfg']
    paper = timm.create_model('rs_resnet18.orig_in1k', pretrained=True, resolutions=RESOLUTIONS, num_classes=3,
                              pretrained_cfg_overlay=dict(file=str(weights), num_classes=3))
    cfg = config_of(save_pretrained(paper, tmp_path / 'third', keep_source=True))['pretrained_cfg']
    assert cfg['license'] == 'mit' and cfg['tag'] == 'orig_in1k' and 'arXiv' in cfg['paper_ids']
    assert str(tmp_path) not in (tmp_path / 'third' / 'config.json').read_text()


def test_ensemble_weights_stand_at_the_top_level_of_the_config(tmp_path):
    model = fresh()
    model.checkpoint_metadata = {'alpha': {64: 0.5, 48: 0.3, 32: 0.2}}
    folder = save_pretrained(model, tmp_path / 'saved')
    entry = config_of(folder)['rs_timm']
    assert entry.pop('digest').startswith('sha256:')
    assert entry == {'version': rs_timm.__version__, 'alpha': {'64': 0.5, '48': 0.3, '32': 0.2}}
    for again in (from_pretrained(str(folder)), timm.create_model(f'local-dir:{folder}', pretrained=True)):
        assert again.checkpoint_metadata == model.checkpoint_metadata
        assert config_of(save_pretrained(again, folder))['rs_timm']['alpha'] == {'64': 0.5, '48': 0.3, '32': 0.2}
    other = timm.create_model(f'local-dir:{folder}', pretrained=True, resolutions=(64, 48))
    assert not hasattr(other, 'checkpoint_metadata')  # weights of three sizes are none of two


@pytest.mark.parametrize('umask, mode', [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
@pytest.mark.skipif(os.name == 'nt', reason='POSIX access rights')
def test_a_saved_file_may_be_read_as_far_as_any_new_file(tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        folder = save_pretrained(fresh(), tmp_path / 'saved')
    finally:
        os.umask(before)
    assert {oct(path.stat().st_mode & 0o777) for path in folder.iterdir()} == {oct(mode)}


# float16

def test_half_rounds_convolutions_and_leaves_batch_norms(random_statistics, tmp_path):
    model = random_statistics(fresh())
    model.bn1['64'].running_var.fill_(1e5)  # beyond float16
    folder = save_pretrained(model, tmp_path / 'saved', half=True)
    stored, again = load_file(folder / 'model.safetensors'), load(folder)
    for key, value in model.state_dict().items():
        exact = value.ndim < 2
        assert stored[key].dtype == (value.dtype if exact else torch.float16), key
        assert torch.equal(again.state_dict()[key], value if exact else value.half().float()), key
    assert next(again.parameters()).dtype == torch.float32


def test_half_refuses_what_float16_cannot_hold(tmp_path):
    model = fresh()
    with torch.no_grad():
        model.fc.weight[0, 0] = 7e4
    with pytest.raises(ValueError, match=r'fc\.weight .*7e\+04.*65504'):
        save_pretrained(model, tmp_path / 'saved', half=True)
    assert not list(tmp_path.iterdir())


# failures leave what was there

def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def full_disk(*args, **kwargs):
    raise OSError(errno.ENOSPC, 'No space left on device')


@contextmanager
def largest_file(size):
    """As a disk that is full after `size` bytes."""
    resource = pytest.importorskip('resource')
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize('step', ['weights', 'rs_timm.hub.saving.save_config_for_hf', 'pathlib.Path.write_text'])
def test_a_full_disk_leaves_the_earlier_folder(step, tmp_path, monkeypatch):
    model = rs_timm.switchable('test_resnet', (64, 32))
    folder = save_pretrained(model, tmp_path / 'saved')
    before = contents(folder)
    if step != 'weights':
        monkeypatch.setattr(step, full_disk)
    for target in (folder, tmp_path / 'new'):
        with largest_file(100_000) if step == 'weights' else nullcontext(), pytest.raises(OSError) as error:
            save_pretrained(model, target)
        assert error.value.errno in (errno.ENOSPC, errno.EFBIG)
    assert contents(folder) == before
    assert [entry.name for entry in tmp_path.iterdir()] == ['saved']


def test_a_truncated_file_is_noticed_before_it_replaces_the_earlier_one(tmp_path, monkeypatch):
    folder = save_pretrained(fresh(), tmp_path / 'saved')
    before, write = contents(folder), saving.save_tensors

    def write_half(tensors, path, **kwargs):
        write(tensors, path, **kwargs)
        path.write_bytes(path.read_bytes()[:-1000])

    monkeypatch.setattr(saving, 'save_tensors', write_half)
    with pytest.raises(ValueError, match='would not restore'):
        save_pretrained(fresh(), folder)
    assert contents(folder) == before


def test_other_files_are_never_deleted(tmp_path):
    (tmp_path / 'train.log').write_text('epoch 1')
    with pytest.raises(ValueError, match=r'other files \(train\.log\).*new folder'):
        save_pretrained(fresh(), tmp_path)
    with pytest.raises(ValueError, match='is a file'):
        save_pretrained(fresh(), tmp_path / 'train.log')
    assert [entry.name for entry in tmp_path.iterdir()] == ['train.log']


# refusals

def without_cfg():
    model = fresh()
    del model.pretrained_cfg
    return model


def not_of_timm():
    return rs_timm.convert_switchable_bn(torch.nn.Sequential(torch.nn.BatchNorm2d(3)), (64, 32))


def stride_changed():
    model = fresh()
    model.conv1.stride = (1, 1)
    return model


def layer_added():
    model = fresh()
    model.extra = torch.nn.Linear(2, 2)
    return model


def diverged():
    model = fresh()
    model.layer1[0].bn1['48'].weight.data[1] = float('nan')
    return model


def on_meta():
    with torch.device('meta'):
        return fresh()


@pytest.mark.parametrize('make, kwargs, words', [
    (lambda: timm.create_model('resnet18'), {}, 'ResNet has no switchable BatchNorm: rs_timm.switchable'),
    (lambda: fresh(features_only=True), {}, 'features_only'),
    (without_cfg, {}, 'not made by timm'),
    (not_of_timm, {}, 'not made by timm'),
    (on_meta, {}, 'meta device'),
    (diverged, {}, 'layer1.0.bn1.48.weight has values that are not finite'),
    (diverged, dict(half=True), 'layer1.0.bn1.48.weight has values that are not finite'),
    (stride_changed, {}, 'conv1.stride is (1, 1), restored (2, 2)'),
    (layer_added, {}, 'extra.weight is missing in the restored one'),
    (fresh, dict(model_config=dict(label_names=['a', 'b'])), '2 label_names for 3 classes'),
    (fresh, dict(model_config=dict(pretrained_cfg=dict(alpha=1))), 'pretrained_cfg has no alpha'),
    (fresh, dict(model_args=dict(resolution=(64, 48))), 'would not restore'),
])
def test_refusals(make, kwargs, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        save_pretrained(make(), tmp_path / 'saved', **kwargs)
    assert not list(tmp_path.iterdir())
