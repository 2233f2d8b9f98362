"""Push and pull with the real client of the Hugging Face hub, against a server on 127.0.0.1 that speaks as it does."""
import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import timm
import torch
from hub_server import HubServer
from huggingface_hub import constants
from timm_version import OLD_TIMM

import rs_timm
from rs_timm import hub_client
from rs_timm.card import CardData
from rs_timm.hub import HubError, from_pretrained, push_to_hub, save_pretrained

RESOLUTIONS = (64, 48, 32)
REPO = 'user/noise'
FILE_PATH = '/{repo_id}/resolve/{revision}/{filename}'
FILES = {'README.md', 'config.json', 'model.safetensors'}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A hub for the client in this process, with a writer's token and an empty cache."""
    with HubServer() as server:
        monkeypatch.setattr(constants, 'ENDPOINT', server.url)
        monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', server.url + FILE_PATH)
        monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'cache'))
        monkeypatch.setattr(constants, 'HF_TOKEN_PATH', str(tmp_path / 'token'))
        monkeypatch.setattr(constants, 'HF_HUB_DISABLE_XET', True)
        monkeypatch.setenv('HF_TOKEN', 'hf_writer')
        monkeypatch.setattr(time, 'sleep', lambda seconds: None)  # the client waits between its retries
        monkeypatch.setattr('rs_timm.card._count', lambda model, resolution: 'not counted')
        yield server


def make(seed=0, base='test_resnet'):  # timm's smallest ResNet
    torch.manual_seed(seed)
    return rs_timm.switchable(base, resolutions=RESOLUTIONS, num_classes=3).eval()


@pytest.fixture
def model(random_statistics):
    return random_statistics(make())


def logits(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        return [model.eval()(torch.randn(2, 3, size, size, generator=generator)) for size in (*RESOLUTIONS, 40)]


def assert_same_logits(model, other):
    for mine, theirs in zip(logits(model), logits(other)):
        assert torch.equal(mine, theirs)


def content(hub, name, repo_id=REPO):
    return hub.repos[repo_id].refs['main'].files[name].content.decode()


def pull(repo_id=REPO):
    return timm.create_model(f'hf-hub:{repo_id}', pretrained=True).eval()


# round trips

def test_round_trip(hub, random_statistics):
    model = random_statistics(timm.create_model('rs_resnet18', resolutions=RESOLUTIONS, num_classes=3))
    address = push_to_hub(model, REPO, model_config=dict(pretrained_cfg=dict(mean=(0.5, 0.5, 0.5))))
    commit = hub.repos[REPO].refs['main']
    assert address == f'{hub.url}/{REPO}/commit/{commit.sha}'
    assert set(commit.files) == FILES | {'.gitattributes'}
    assert [c.message for c in hub.repos[REPO].history] == ['initial commit', 'Add model']  # one commit for all files
    for again in (pull(), from_pretrained(REPO)):
        assert again.resolutions == RESOLUTIONS
        assert timm.data.resolve_model_data_config(again)['mean'] == [0.5, 0.5, 0.5]
        assert again.pretrained_cfg['source'] == 'hf-hub' and again.pretrained_cfg['hf_hub_id'] == REPO
        assert again.derived_from == REPO
        assert_same_logits(model, again)


def test_alpha_comes_back(hub, model):
    model.checkpoint_metadata = {'alpha': {64: 0.5, 48: 0.3, 32: 0.2}}
    push_to_hub(model, REPO)
    sha = hub.repos[REPO].refs['main'].sha
    for again in (pull(), pull(f'{REPO}@{sha}'), from_pretrained(REPO), from_pretrained(REPO, revision=sha)):
        assert again.checkpoint_metadata == {'alpha': {64: 0.5, 48: 0.3, 32: 0.2}}


@pytest.mark.skipif(OLD_TIMM, reason='timm before 1.0.31 records no constructor arguments')
def test_timms_own_push_gives_the_same(hub, random_statistics):
    model = random_statistics(timm.create_model(
        'rs_switchable', base='test_resnet', resolutions=RESOLUTIONS, num_classes=3))
    push_to_hub(model, 'user/ours')
    timm.models.push_to_hf_hub(model, 'user/theirs')
    ours, theirs = pull('user/ours'), pull('user/theirs')
    assert_same_logits(ours, theirs)
    assert_same_logits(ours, from_pretrained('user/theirs'))
    configs = [json.loads(content(hub, 'config.json', repo_id)) for repo_id in ('user/ours', 'user/theirs')]
    for key in ('architecture', 'num_classes', 'num_features', 'global_pool', 'model_args'):
        if key == 'model_args':  # ours names the interpolation even where it is the default
            configs[1][key].setdefault('interpolation', 'params')
            configs[1][key].pop('num_classes', None)  # it is at the top: transformers would pass it twice
        assert configs[0][key] == configs[1][key], key
    claims = {'tag', 'description', 'license', 'origin_url', 'paper_ids'}  # timm keeps those of weights it did not load
    assert {k: v for k, v in configs[1]['pretrained_cfg'].items() if k not in claims} == configs[0]['pretrained_cfg']


def test_fine_tuning_from_the_hub(hub, model):
    push_to_hub(model, REPO)
    tuned = from_pretrained(REPO, num_classes=7)
    assert tuned.num_classes == 7
    assert torch.equal(tuned.layer4[0].conv1.weight, model.layer4[0].conv1.weight)
    push_to_hub(tuned, 'user/tuned')
    assert f'base_model: {REPO}' in content(hub, 'README.md', 'user/tuned')


def test_a_user_with_nothing_but_the_environment(hub, model, tmp_path):
    """The usage section of the card, run in a fresh interpreter as a user would."""
    from PIL import Image

    push_to_hub(model, REPO, private=True)
    card = content(hub, 'README.md')
    code = re.search(r'```python\n(.*?)```', card, re.DOTALL)[1]
    assert f"'hf-hub:{REPO}'" in code
    Image.new('RGB', (80, 60), 'red').save(tmp_path / 'photo.jpg')
    environment = dict(os.environ, HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path / 'home'), HF_TOKEN='hf_reader',
                       PYTHONPATH=str(Path(rs_timm.__file__).parents[1]))
    code += 'print(model.resolutions, model.get_resolution(), tuple(probabilities.shape))'
    result = subprocess.run([sys.executable, '-c', code], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == '(64, 48, 32) 48 (1, 3)'


# what a push does to a repository

@pytest.mark.parametrize('step', ['create', 'yaml', 'preupload', 'lfs-batch', 'lfs-put', 'commit'])
def test_a_push_that_breaks_off_leaves_the_old_revision(step, hub, model, random_statistics):
    push_to_hub(model, REPO)
    before = hub.repos[REPO].refs['main']
    hub.fail = {step}
    with pytest.raises(HubError, match=f'cannot push to {REPO}: .*one commit, made whole or not at all'):
        push_to_hub(random_statistics(make(seed=1), seed=1), REPO, card=CardData(license='mit'))
    hub.fail = set()
    assert hub.repos[REPO].refs['main'] is before
    assert_same_logits(model, pull())
    push_to_hub(random_statistics(make(seed=1), seed=1), REPO)  # and the next one goes through
    assert hub.repos[REPO].refs['main'] is not before
    assert not torch.equal(logits(from_pretrained(REPO))[0], logits(model)[0])


def test_a_push_whose_answer_is_lost_is_found_on_the_hub(hub, model, random_statistics):
    other = random_statistics(make(seed=1), seed=1)
    hub.fail = {'commit-answer'}
    for network, revision in ((model, None), (other, 'v2')):
        address = push_to_hub(network, REPO, revision=revision)
        assert address == f"{hub.url}/{REPO}/commit/{hub.repos[REPO].refs[revision or 'main'].sha}"
        assert_same_logits(network, from_pretrained(REPO, revision=revision))
    with pytest.raises(HubError, match=f'{REPO}/discussions before you repeat it'):
        push_to_hub(other, REPO, create_pr=True)


@pytest.mark.parametrize('step', ['create', 'commit', 'resolve', 'cdn'])
def test_a_silent_hub_is_given_up_in_time(step, hub, model, monkeypatch):
    for limit in ('HF_HUB_ETAG_TIMEOUT', 'HF_HUB_DOWNLOAD_TIMEOUT'):
        monkeypatch.setattr(constants, limit, 0.3)
    monkeypatch.setattr(hub_client, 'SILENT_SECONDS', 0.3)
    if step in ('resolve', 'cdn'):
        push_to_hub(model, REPO)
    hub.silent = {step}
    start = time.monotonic()
    with pytest.raises(HubError, match=f'{hub.url} did not answer in time.*check the connection'):
        from_pretrained(REPO) if step in ('resolve', 'cdn') else push_to_hub(model, REPO)
    assert time.monotonic() - start < 10


def test_revisions_and_pull_requests(hub, model, random_statistics):
    other = random_statistics(make(seed=1), seed=1)
    push_to_hub(model, REPO)
    push_to_hub(other, REPO, revision='v2')
    assert_same_logits(model, from_pretrained(REPO))
    assert_same_logits(other, from_pretrained(REPO, revision='v2'))
    assert_same_logits(other, pull(f'{REPO}@v2'))
    assert '/discussions/' in push_to_hub(random_statistics(make(seed=2), seed=2), REPO, create_pr=True)
    assert_same_logits(model, from_pretrained(REPO))


def test_a_card_that_is_there_stays_unless_a_new_one_is_given(hub, model):
    push_to_hub(model, REPO)
    mine = b'---\nlicense: mit\n---\nby hand'
    huggingface_hub.HfApi().upload_file(path_or_fileobj=mine, path_in_repo='README.md', repo_id=REPO)
    model.fc.weight.data.add_(1)
    push_to_hub(model, REPO)
    assert content(hub, 'README.md').endswith('by hand')
    push_to_hub(model, REPO, card=CardData(license='mit', results={64: {'top1': 12.5}}, dataset='noise'))
    assert 'by hand' not in content(hub, 'README.md') and '| 12.5 |' in content(hub, 'README.md')


def test_a_private_push_never_goes_public(hub, model):
    push_to_hub(model, REPO)
    before = hub.repos[REPO].refs['main']
    with pytest.raises(ValueError, match='exists and is public'):
        push_to_hub(model, REPO, private=True)
    assert hub.repos[REPO].refs['main'] is before
    push_to_hub(model, 'user/secret', private=True)
    assert hub.repos['user/secret'].private


def test_a_network_that_cannot_be_restored_creates_no_repository(hub):
    with pytest.raises(ValueError, match='no switchable BatchNorm'):
        push_to_hub(timm.create_model('resnet18'), REPO)
    assert not hub.repos and not hub.requests


# who may do what

@pytest.mark.parametrize('token, words', [
    (None, 'token is missing or not valid.*hf auth login'),
    ('hf_expired', 'token is missing or not valid.*HF_TOKEN'),
    ('hf_reader', 'no right to do this.*write access'),
])
def test_push_without_the_right_token(token, words, hub, model, monkeypatch):
    push_to_hub(model, 'user/exists')
    before = hub.repos['user/exists'].refs['main']
    monkeypatch.delenv('HF_TOKEN')
    for repo_id in (REPO, 'user/exists'):
        with pytest.raises(HubError, match=words):
            push_to_hub(model, repo_id, token=token, card=CardData(license='mit'))
    assert REPO not in hub.repos and hub.repos['user/exists'].refs['main'] is before


def test_pull_of_a_private_repository(hub, model, monkeypatch):
    push_to_hub(model, REPO, private=True)
    monkeypatch.delenv('HF_TOKEN')
    with pytest.raises(HubError, match='no such repository, or it is private and the token is missing'):
        from_pretrained(REPO)
    with pytest.raises(HubError, match='token is missing or not valid'):
        from_pretrained(REPO, token='hf_expired')
    assert_same_logits(model, from_pretrained(REPO, token='hf_reader'))


@pytest.mark.parametrize('repo_id', ['user/nothing', 'no/such/name', 'a b'])
def test_missing_repository(repo_id, hub):
    with pytest.raises((HubError, ValueError), match=repo_id):
        from_pretrained(repo_id)


def test_missing_revision_and_missing_weights(hub, model):
    push_to_hub(model, REPO)
    with pytest.raises(HubError, match="no branch, tag or commit 'v9'"):
        from_pretrained(REPO, revision='v9')
    del hub.repos[REPO].refs['main'].files['model.safetensors']
    with pytest.raises(HubError, match=r'cannot get model\.safetensors of .*no such file'):
        from_pretrained(REPO)


@pytest.mark.parametrize('offline, words', [(False, 'was not reached .*HF_ENDPOINT'), (True, 'HF_HUB_OFFLINE is set')])
def test_no_connection(offline, words, hub, model, monkeypatch):
    """What is in the cache is taken; anything else fails at the first try, and says what to do."""
    push_to_hub(model, REPO)
    from_pretrained(REPO), pull()
    monkeypatch.setattr(constants, 'ENDPOINT', 'http://127.0.0.1:9')
    monkeypatch.setattr(constants, 'HUGGINGFACE_CO_URL_TEMPLATE', 'http://127.0.0.1:9' + FILE_PATH)
    monkeypatch.setattr(constants, 'HF_HUB_OFFLINE', offline)
    monkeypatch.setattr(time, 'sleep', lambda seconds: pytest.fail('tried twice'))
    assert_same_logits(model, from_pretrained(REPO))
    assert_same_logits(model, pull())
    for action in (
            lambda: from_pretrained('user/another'), lambda: push_to_hub(model, REPO),
            lambda: timm.create_model('rs_resnet34', pretrained=True),
            lambda: rs_timm.switchable('test_resnet', (64, 32), pretrained=True)):
        with pytest.raises(HubError, match=words):
            action()


# what comes down

def flip_last_bit(content):
    return content[:-1] + bytes([content[-1] ^ 1])


@pytest.mark.parametrize('damage', [flip_last_bit, lambda content: content[:-1000], lambda content: content[:9]])
def test_a_corrupt_download(damage, hub, model):
    push_to_hub(model, REPO)
    hub.damage = damage
    with pytest.raises(HubError, match=rf'model\.safetensors of {REPO}'):
        from_pretrained(REPO)
    hub.damage = bytes
    assert_same_logits(model, from_pretrained(REPO, force_download=True))


@pytest.mark.parametrize('damage', [flip_last_bit, lambda content: content[:-1000], lambda content: b''])
def test_a_damaged_cache_names_the_file_and_the_remedy(damage, hub, model, tmp_path):
    push_to_hub(model, REPO)
    from_pretrained(REPO)
    (blob,) = (path for path in tmp_path.glob('cache/*/blobs/*') if len(path.name) == 64)
    blob.write_bytes(damage(blob.read_bytes()))
    with pytest.raises(HubError) as error:
        from_pretrained(REPO)
    message = str(error.value)
    assert f'model.safetensors of {REPO} is damaged' in message and f'delete {blob}' in message
    assert 'force_download=True' in message
    blob.unlink()
    assert_same_logits(model, from_pretrained(REPO))


def test_timm_on_a_damaged_cache_says_how_to_repair_it(hub, model, tmp_path):
    push_to_hub(model, REPO)
    pull()
    (blob,) = (path for path in tmp_path.glob('cache/*/blobs/*') if len(path.name) == 64)
    blob.write_bytes(blob.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=f'model.safetensors of {REPO} in the cache is damaged') as error:
        pull()
    exec('import huggingface_hub; ' + re.search(r'huggingface_hub\.hf_hub_download\(.*?\)', str(error.value))[0])
    assert_same_logits(model, pull())


def put(hub, repo_id, **files):
    """A repository of someone else's making."""
    api = huggingface_hub.HfApi()
    api.create_repo(repo_id)
    for name, content in files.items():
        api.upload_file(path_or_fileobj=content, path_in_repo=f'{name}.json', repo_id=repo_id)


@pytest.mark.parametrize('config, error, words', [
    (b'{"architecture": "resnet18", "pretrained_cfg": {}}', ValueError, 'plain resnet18 of timm.*hf-hub:user/other'),
    (b'{"architecture": "rs_future", "pretrained_cfg": {}}', ValueError, "'rs_future', which neither rs_timm nor timm"),
    (b'{"model_type": "bert"}', ValueError, 'no config.json of timm'),
])
def test_not_a_model_of_ours(config, error, words, hub):
    put(hub, 'user/other', config=config)
    with pytest.raises(error, match=words):
        from_pretrained('user/other')
    assert not any('cdn' in request for request in hub.requests)  # said before the weights are downloaded


def test_a_plain_folder_is_called_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    timm.models.save_for_hf(timm.create_model('test_resnet', num_classes=3), 'plain')
    with pytest.raises(ValueError, match=r"rs_timm\.switchable\('local-dir:plain', pretrained=True\)"):
        from_pretrained('plain')


def test_no_config(hub):
    put(hub, 'user/other', dataset=b'{}')
    with pytest.raises(HubError, match=r'cannot get config\.json of user/other: .*no such file'):
        from_pretrained('user/other')


# folders

def test_from_pretrained_takes_a_folder(model, tmp_path, monkeypatch):
    monkeypatch.setattr('rs_timm.card._count', lambda model, resolution: 'not counted')
    folder = save_pretrained(model, tmp_path / 'saved')
    assert_same_logits(model, from_pretrained(str(folder)))
    weights = folder / 'model.safetensors'
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(HubError, match='is damaged.*save it again'):
        from_pretrained(str(folder))
    weights.unlink()
    with pytest.raises(ValueError, match='no such file'):
        from_pretrained(str(folder))
