"""Nothing in the folder of a network is believed unread: config.json has a schema, the tensors a digest."""
import json
import random
import shutil

import pytest
import timm
import torch

import rs_timm
from rs_timm.card import CardData
from rs_timm.hub import from_pretrained, save_pretrained

NAMES = ['ant', 'bee', 'cat']


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    torch.manual_seed(0)
    model = rs_timm.switchable('test_resnet', (64, 48), num_classes=3)
    return save_pretrained(model, tmp_path_factory.mktemp('saved') / 'model', model_config=dict(label_names=NAMES))


@pytest.fixture
def folder(saved, tmp_path):
    return shutil.copytree(saved, tmp_path / 'model')


def config_of(folder):
    return json.loads((folder / 'config.json').read_text())


def change(folder, path, value):
    """Give the entry at `path` of config.json ('model_args.base') another value; `...` takes it away."""
    config = config_of(folder)
    *parents, last = path.split('.')
    entries = config
    for parent in parents:
        entries = entries[parent]
    if value is ...:
        del entries[last]
    else:
        entries[last] = value
    (folder / 'config.json').write_text(json.dumps(config))


@pytest.mark.parametrize('path, value, words', [
    ('model_args.resolutions', list(range(1, 3001)), 'model_args.resolutions must be a list of at most 64'),
    ('model_args.base', 'hf-hub:evil/x', 'model_args.base is'),
    ('model_args.base', None, 'model_args.base is null'),
    ('model_args.checkpoint_path', '/etc/passwd', 'model_args.checkpoint_path is no argument'),
    ('model_args.layers', [10 ** 6], 'model_args.layers is no argument'),
    ('model_args.num_classes', 10 ** 9, 'model_args.num_classes has'),
    ('model_args', [], 'model_args .*object'),
    ('pretrained_cfg.file', '/etc/passwd', 'pretrained_cfg.file'),
    ('pretrained_cfg.hf_hub_filename', 'pytorch_model.bin', 'pretrained_cfg.hf_hub_filename'),
    ('pretrained_cfg.custom_load', True, 'pretrained_cfg.custom_load'),
    ('pretrained_cfg.mean', [float('nan')] * 3, 'pretrained_cfg.mean.0 is .nan.'),
    ('pretrained_cfg.crop_pct', 0, 'pretrained_cfg.crop_pct'),
    ('pretrained_cfg.alpha', 1, 'pretrained_cfg.alpha is no entry'),
    ('pretrained_cfg', ..., 'pretrained_cfg is missing'),
    ('label_names', ['ant'], '1 label_names for 3 classes'),
    ('rs_timm.alpha', {'64': float('nan')}, 'rs_timm.alpha.64'),
    ('architecture', 5, "is a 5, which neither"),
])
def test_what_a_config_may_not_say(path, value, words, folder):
    change(folder, path, value)
    with pytest.raises(ValueError, match=words):
        from_pretrained(str(folder))
    if path != 'architecture' and value is not ...:  # these timm reads itself
        with pytest.raises((ValueError, AttributeError), match=words if path != 'model_args' else None):
            timm.create_model(f'local-dir:{folder}', pretrained=True)


def mutations(entries, path=()):
    """Each entry of a config, replaced by values of other kinds or taken away."""
    for key, value in entries.items():
        yield from ((*path, key, new) for new in (None, -1, 10 ** 12, 0.5, 'x', '', [], {}, True, [[]], ...))
        if isinstance(value, dict):
            yield from mutations(value, (*path, key))


def test_a_mutated_config_loads_or_says_what_is_wrong(folder):
    config, original = config_of(folder), (folder / 'config.json').read_text()
    tried = random.Random(0).sample(list(mutations(config)), 30)
    for *path, value in tried:
        (folder / 'config.json').write_text(original)
        change(folder, '.'.join(path), value)
        try:
            from_pretrained(str(folder))
        except ValueError as error:
            assert str(folder) in str(error) and '\n' not in str(error), (path, value)
    for text in ('', '[' * 10 ** 5, '{"architecture": ', '[1]', '1e999', '\ud800'):
        (folder / 'config.json').write_text(text, errors='surrogatepass')
        with pytest.raises(ValueError, match=r'config\.json'):
            from_pretrained(str(folder))


@pytest.mark.skipif(not hasattr(__import__('os'), 'mkfifo'), reason='POSIX')
def test_only_regular_files_are_read(folder):
    import os

    for name in ('config.json', 'model.safetensors'):
        (folder / name).rename(folder / 'aside')
        os.mkfifo(folder / name)
        with pytest.raises(ValueError, match='no such file'):
            from_pretrained(str(folder))
        (folder / 'aside').replace(folder / name)


def test_text_of_a_config_gets_into_a_card_as_text(folder, tmp_path):
    nasty = '[click](http://evil) <script>x</script>\n\n# Heading'
    change(folder, 'pretrained_cfg.description', nasty)
    change(folder, 'pretrained_cfg.license', 'mit\n\n# Heading <b>')
    change(folder, 'rs_timm.derived_from', 'user/x')
    model = from_pretrained(str(folder))
    card = (save_pretrained(model, tmp_path / 'again', keep_source=True) / 'README.md').read_text().split('---\n', 2)[2]
    assert '<script' not in card and '[click]' not in card and '\n# Heading' not in card and '<b>' not in card
    own = save_pretrained(model, tmp_path / 'own', card=CardData(description='See [this](http://here).')) / 'README.md'
    assert 'See [this](http://here).' in own.read_text()


# Tensors

def load_both_ways(folder):
    return (lambda: from_pretrained(str(folder))), (lambda: timm.create_model(f'local-dir:{folder}', pretrained=True))


def test_a_flipped_bit_is_noticed_unless_nobody_looks(folder):
    file = folder / 'model.safetensors'
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    for load in load_both_ways(folder):
        with pytest.raises(ValueError, match=f'model.safetensors of {folder} is damaged.*digest'):
            load()
    assert from_pretrained(str(folder), check_digest=False).resolutions == (64, 48)


def test_other_sizes_may_be_asked_for(folder):
    with pytest.warns(UserWarning, match='the others interpolated'):
        assert from_pretrained(str(folder), resolutions=(64, 56, 48)).resolutions == (64, 56, 48)


# Other readers of the same folder

def test_classes_stand_where_transformers_reads_them(saved):
    config = config_of(saved)
    assert config['label_names'] == NAMES and config['num_classes'] == 3
    assert 'num_classes' not in config['model_args'] and 'label_names' not in config['pretrained_cfg']
    again = timm.create_model(f'local-dir:{saved}', pretrained=True)
    assert again.num_classes == 3 and list(again.pretrained_cfg['label_names']) == NAMES


def test_transformers_loads_the_folder(saved):
    transformers = pytest.importorskip('transformers')  # tried with 5.24
    theirs = transformers.AutoModelForImageClassification.from_pretrained(str(saved)).eval()
    ours = from_pretrained(str(saved)).eval()
    assert theirs.config.id2label == dict(enumerate(NAMES))
    for size in (64, 48, 56):
        x = torch.randn(2, 3, size, size)
        assert torch.equal(theirs(x).logits, ours(x))
    classify = transformers.pipeline('image-classification', model=str(saved))
    from PIL import Image
    assert {row['label'] for row in classify(Image.new('RGB', (80, 60), 'red'))} == set(NAMES)
