"""The networks with ImageNet's 1000 classes that ship: offline, one set a file, the plain network at every size."""
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file

import rs_timm
from rs_timm.models import manifest

NAMES = ('rs_efficientnet_lite0', 'rs_efficientnet_lite1')


@pytest.mark.parametrize('name', NAMES)
def test_every_size_is_bit_by_bit_the_plain_network_with_the_files_weights(name):
    model = timm.create_model(name, pretrained=True).eval()
    plain = timm.create_model(name.replace('rs_', 'tf_')).eval()
    plain.load_state_dict(load_file(model.pretrained_cfg['file']))
    assert model.num_classes == 1000 and list(model.pretrained_cfg['mean']) == [0.5] * 3
    with torch.inference_mode():
        for size in (model.resolutions[0], 112, model.resolutions[-1]):
            x = torch.randn(1, 3, size, size)
            assert torch.equal(model(x), plain(x))


@pytest.mark.parametrize('name', NAMES)
def test_the_file_holds_one_set_and_its_entry_has_a_crop_for_each_size(name):
    entry = manifest()[f'{name}.plain_in1k']
    model = timm.create_model(name)
    file = Path(timm.models.get_pretrained_cfg(name).file)
    plain = rs_timm.extract(model, model.resolutions[0]).state_dict()
    stored = load_file(file)
    assert {key: value.shape for key, value in stored.items()} == {key: value.shape for key, value in plain.items()}
    assert file.stat().st_size < 2.1 * sum(value.numel() for value in plain.values())
    assert list(model.resolutions) == entry['resolutions'] == [int(size) for size in entry['crops']]
    assert entry['crops'][str(model.resolutions[0])] == entry['cfg']['crop_pct']  # what timm reads
