"""A training run of seconds, for the tests: tiny pictures, a tiny network, everything random switched on."""
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from rs_timm.training import Options, get_recipe, train

ROOT = Path(__file__).resolve().parent.parent
MODEL = 'test_resnet'
TINY = dict(
    resolutions=(48, 32),
    progressive=0.5,
    progressive_resolutions=(32, 24),
    epochs=2,
    batch_size=4,
    limit_batches=0,
    precision='float32',
    channels_last=False,
    lr=0.02,
    warmup_epochs=0.5,
    crop_scale=(0.5, 1.),
    model_args=('drop_rate=0.2', 'drop_path_rate=0.2'),
)


def make_pictures(root, classes=2, train_each=16, val_each=4, size=40):
    """ROOT/train and ROOT/val with a folder for each class: noise around a colour of its own."""
    generator = np.random.default_rng(0)
    colours = generator.integers(40, 215, (classes, 3))
    for split, count in (('train', train_each), ('val', val_each)):
        for label in range(classes):
            folder = Path(root) / split / f'class{label}'
            folder.mkdir(parents=True)
            for number in range(count):
                noise = generator.integers(-40, 41, (size, size + 8, 3))
                Image.fromarray((colours[label] + noise).astype('uint8')).save(folder / f'{number}.png')
    return root


def tiny_recipe(**changes):
    return get_recipe('imagenette', debug=True, **{**TINY, **changes})


def run(data, output, resume=False, workers=0, minutes=60., model=MODEL, **changes):
    options = Options(device='cpu', workers=workers, checkpoint_minutes=minutes, progress=False)
    return train(model, str(data), tiny_recipe(**changes), str(output), resume, options)


def start(data, output, workers=0, minutes=60., launcher=(), **changes):
    """The same in a process group of its own, going on from where `output` is."""
    code = (f'import sys; sys.path.insert(0, {str(Path(__file__).parent)!r}); import training_run; training_run.run('
            f'{str(data)!r}, {str(output)!r}, resume=True, workers={workers}, minutes={minutes}, **{changes!r})')
    arguments = [sys.executable, '-c', code]
    if launcher:
        script = Path(output).parent / f'{Path(output).name}.py'
        script.write_text(f'if __name__ == "__main__":\n    {code}\n')
        arguments = [sys.executable, '-m', *launcher, str(script)]
    environment = dict(os.environ, OMP_NUM_THREADS='1', PYTHONPATH=str(ROOT))
    return subprocess.Popen(
        arguments, cwd=ROOT, env=environment, start_new_session=True, stderr=subprocess.PIPE, text=True)


def paper_layout(model):
    """The state dict of `model` with the names of the paper's public code, under DataParallel."""
    state = {'module.alpha': torch.tensor([0.5, 0.1, -0.2, 0.3, 0.])}
    for key, value in model.state_dict().items():
        layer, _, tensor = key.rpartition('.')
        own_set = re.fullmatch(r'(.*)\.(\d{2,3})', layer)
        name = f'{own_set[1]}.bn_{model.resolutions.index(int(own_set[2]))}' if own_set else f'{layer}.module'
        state[f'module.{name}.{tensor}'] = value
    return state


class Hostile:
    """Runs code when it is unpickled."""

    def __reduce__(self):
        return print, ('this must not run',)
