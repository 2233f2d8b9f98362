"""Does anything hang, fail without saying why, or answer wrongly, when files are damaged and processes killed?

    python -m benchmarks.soak [--parts damage kills threads pairs] [--kinds tar config ...] [--trials 300] [--seed 0]

Damage: files of each kind are changed at random (bytes, JSON values, FIFOs and endless files in the place of pictures),
and used as a user would use them. Kills: a training, `rs-timm predict --out` and `save_pretrained` are killed at random
moments and started again. Threads: one session answers eight of them. Pairs: two processes write one output.

Every trial counts as one of: `clear`, an error that is a ValueError or OSError (HubError) and names the file; `right`,
it was used, and the answer is that of the undamaged file, or one that such a file can give; `wrong`, it was used and
the answer is another one, or rows vanish; `raw`, any other error, or the end of the process; `hang`, no answer within
the time limit. Trials run in a worker process with bounded memory, which is replaced when it hangs or dies. Trial
number N of a kind is the same for the same --seed: `--kinds KIND --first N --trials 1 --keep DIR` repeats one, and
keeps its input.
"""
import argparse
import contextlib
import copy
import io
import json
import math
import multiprocessing
import os
import random
import resource
import shutil
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import load_file

import rs_timm
from benchmarks.environment import commit
from benchmarks.store import put
from rs_timm.cli import main as rs_timm_main

OUTCOMES = ('clear', 'right', 'wrong', 'raw', 'hang')
SIZES = (64, 48, 32)
LIMIT = 20.  # seconds for a trial; one takes less than one on a quiet machine
MEMORY = 3 * 2 ** 30  # bytes beyond what a worker has when it starts


class Outcome(NamedTuple):
    """What became of a trial: one of `OUTCOMES`, and the error or difference in words."""

    kind: str
    note: str = ''


class Refused(Exception):
    """The command line refused, in words."""


class Wrong(Exception):
    """An answer is another one than it has to be."""


def expect(holds: Any, note: str = 'other answers') -> None:
    if not holds:
        raise Wrong(note)


# Damage

def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one kind of damage that disks, networks and people do."""
    where = rng.randrange(len(data) + 1)
    length = min(len(data) - where, rng.choice((1, 2, 8, 64, 4096)))
    before, inside, after = data[:where], data[where:where + length], data[where + length:]
    flipped = bytearray(data or b'\0')
    for _ in range(rng.choice((1, 1, 3, 20))):
        flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    others = (b'\0' * 64, b'<html></html>', b'{}', b'[]', b'null', b'\x80\x04.', rng.randbytes(200))
    return rng.choice((
        before,
        before + after,
        before + b'\0' * length + after,
        before + b'\xff' * length + after,
        before + rng.randbytes(length) + after,
        before + rng.randbytes(length) + inside + after,
        before + 2 * inside + after,
        bytes(flipped),
        b'',
        rng.choice(others),
    ))


_VALUES: Tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 64, 10 ** 9, 10 ** 400, 0.5, -0.5, 1e308, float('nan'), float('inf'), '', 'a', '64',
    '../../etc/passwd', 'hf-hub:nobody/nothing', 'x' * 10000, '\0', '<b>x</b>', [], {}, [[]], [1, 'a'], [-1], {'a': {}},
    [64] * 5000, list(range(32, 3232)),
)
_NAMES = ('unknown', 'checkpoint_path', 'base', 'pretrained', 'in_chans', '')


def damaged_json(value: Any, rng: random.Random) -> Any:
    """`value` with something in it replaced, removed, added or renamed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 1, 2))):
        owner, key = rng.choice(places)
        if not (key in owner if isinstance(owner, dict) else key < len(owner)):  # the first damage took it away
            continue
        kind = rng.choice(('replace', 'replace', 'replace', 'scale', 'remove', 'add', 'rename'))
        if kind == 'remove':
            del owner[key]
        elif kind == 'add' and isinstance(owner, list):
            owner.insert(key, owner[key])
        elif kind == 'add':
            owner[rng.choice(_NAMES)] = rng.choice(_VALUES)
        elif kind == 'rename' and isinstance(owner, dict):
            owner[f'{key}_'] = owner.pop(key)
        elif kind == 'scale' and isinstance(owner[key], (int, float)):
            owner[key] *= rng.choice((-1, 0, 1000, 1e-9))
        else:
            owner[key] = rng.choice(_VALUES)
    return value


def _places(value: Any) -> Iterator[Tuple[Any, Any]]:
    """(Container, key or index) of all that is inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in inside:
        yield value, key
        yield from _places(own)


def damage_file(path: Path, rng: random.Random) -> Path:
    """Damage a file in its place: of a JSON file the values, four times in five; of others the bytes."""
    data = path.read_bytes()
    if path.suffix == '.json' and rng.random() < 0.8:
        path.write_bytes(json.dumps(damaged_json(json.loads(data), rng)).encode())
    else:
        path.write_bytes(damaged_bytes(data, rng))
    return path


# What the trials start from

class Bench:
    """A tiny network, its files, and pictures, in a folder; made once for a worker.

    Args:
        folder: a temporary one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        torch.manual_seed(0)
        torch.set_num_threads(1)
        self.model = rs_timm.switchable('test_resnet', SIZES, num_classes=3).eval()
        for module in self.model.modules():  # sets that differ
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        self.x = torch.randn(2, 3, 48, 48)
        self.answer = self.answer_of(self.model)
        self.pictures = folder / 'pictures'
        self.pictures.mkdir()
        generator = np.random.default_rng(0)
        for number, ending in enumerate(('png', 'jpg', 'gif', 'webp', 'bmp', 'tiff')):
            pixels = Image.fromarray(generator.integers(0, 256, (9, 11, 3), dtype=np.uint8)).resize((70, 60))
            exif = Image.Exif()
            exif[0x0112] = 1 + number
            pixels.save(self.pictures / f'{number}.{ending}', **({} if ending in ('gif', 'bmp') else dict(exif=exif)))

    def answer_of(self, model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(self.x)

    def check(self, answer: torch.Tensor) -> None:
        """Raise Wrong unless the logits are those of the undamaged network."""
        expect(answer.shape == self.answer.shape, f'answers of the shape {list(answer.shape)}')
        expect(torch.allclose(answer, self.answer, atol=1e-4), f'off by {(answer - self.answer).abs().max():.2g}')

    def session(self, model: Optional[Path] = None, engine: str = 'onnxruntime', **options: Any) -> Any:
        from rs_timm.runtime import Session
        return Session(model or self.onnx, engine, threads=1, **options)

    @cached_property
    def picture(self) -> Image.Image:
        return Image.open(self.pictures / '0.png').convert('RGB')

    @cached_property
    def onnx(self) -> Path:
        path = self.folder / 'model.onnx'
        rs_timm.export_onnx(self.model, path)
        return path

    @cached_property
    def bomb(self) -> Path:
        path = self.folder / 'bomb.png'
        Image.new('1', (30000, 30000)).save(path)
        return path

    @cached_property
    def saved(self) -> Path:
        path = self.folder / 'saved'
        rs_timm.save_pretrained(self.model, path, model_config=dict(label_names=['a', 'b', 'c']))
        return path

    @cached_property
    def latencies(self) -> Path:
        from rs_timm.runtime import measure_latency
        path = self.folder / 'table.json'
        measure_latency(self.session(), repeats=72).save(path)
        return path

    @cached_property
    def int8(self) -> Tuple[Path, np.ndarray]:
        """A folder of int8 networks, and what they answer."""
        path = self.folder / 'cache'
        session = self.session(precision='int8', calibration=[self.pictures / '0.png'] * 4, cache_dir=path)
        return path, session.run(self.x.numpy())


Trial = Callable[[Bench, Path, random.Random], Outcome]
KINDS: Dict[str, Tuple[str, Trial]] = {}


def kind(name: str, words: str) -> Callable[[Trial], Trial]:
    """Register a kind of file; its trial gets the bench, an empty folder and a random generator."""
    def register(trial: Trial) -> Trial:
        KINDS[name] = words, trial
        return trial

    return register


def judged(use: Callable[[], Optional[Outcome]], *names: str, word: str = '') -> Outcome:
    """The outcome of using a file; an error of it must name one of `names`. `word` says what the damage was."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            found = use() or Outcome('right')
    except Wrong as error:
        found = Outcome('wrong', str(error))
    except Exception as error:
        text = ' '.join(str(error).split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        note = f'{type(error).__name__}: {text[:160]} ({Path(place.filename).name}:{place.lineno})'
        if not isinstance(error, (ValueError, OSError, Refused)) or isinstance(error, UnicodeError):
            found = Outcome('raw', note)
        elif any(name in text for name in names):
            found = Outcome('clear', note)
        else:
            found = Outcome('raw', f'names no file: {note}')
    return Outcome(found.kind, f'{word}: {found.note}') if word else found


def command(*arguments: Any) -> None:
    """Run rs-timm in this process; the status must be 0, or 1: some pictures could not be read.

    Raises:
        Refused: status 2, with what was printed.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = rs_timm_main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 2
    if 'Traceback' in err.getvalue():
        raise RuntimeError(err.getvalue()[-300:])
    if status not in (0, 1):
        raise Refused(err.getvalue().strip())


def _prediction(bench: Bench, source: Path, out: Path, *options: Any) -> List[Any]:
    return ['predict', bench.onnx, source, '--out', out, '--engine', 'onnxruntime', '--threads', 1, *options]


def predicted(
        bench: Bench, source: Path, folder: Path, *names: str, least: int = 0, most: float = math.inf, word: str = '',
) -> Outcome:
    """`rs-timm predict` writes a row for each picture, of its classes or of what is wrong with it."""
    def use() -> Optional[Outcome]:
        out = folder / 'rows.jsonl'
        command(*_prediction(bench, source, out, '--workers', 2))
        rows = [json.loads(line, parse_constant=_no_constant) for line in out.read_text().splitlines()]
        expect(len(rows) <= most, f'{len(rows)} rows')
        errors = [row['error'] for row in rows if row.get('error')]
        expect(errors or len(rows) >= least, f'{len(rows)} rows')
        return Outcome('clear', errors[0][:160]) if errors else None

    return judged(use, *names, word=word)


def _no_constant(text: str) -> Any:
    raise RuntimeError(f'{text} is no JSON')


def _with_a_good_one(bench: Bench, folder: Path) -> Path:
    inputs = folder / 'in'
    inputs.mkdir()
    shutil.copy(bench.pictures / '0.png', inputs / 'good.png')
    return inputs


@kind('picture', 'picture files')
def picture(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    source, inputs = rng.choice(sorted(bench.pictures.iterdir())), _with_a_good_one(bench, folder)
    damage_file(Path(shutil.copy(source, inputs / f'bad{source.suffix}')), rng)
    return predicted(bench, inputs, folder, 'bad', least=2, most=2)


def _many_frames(bench: Bench, path: Path) -> None:
    frames = [Image.new('P', (40, 40), number) for number in range(50)]
    frames[0].save(path, 'gif', save_all=True, append_images=frames[1:])


def _sparse(bench: Bench, path: Path) -> None:
    with path.open('wb') as stream:
        stream.truncate(20 * 2 ** 30)


def _secret(bench: Bench, path: Path) -> None:
    shutil.copy(bench.pictures / '0.png', path)
    path.chmod(0)


SPECIAL: Dict[str, Callable[[Bench, Path], Any]] = {
    'fifo': lambda bench, path: os.mkfifo(path),
    'zero': lambda bench, path: path.symlink_to('/dev/zero'),
    'loop': lambda bench, path: path.symlink_to(path.name),
    'nothing': lambda bench, path: path.symlink_to('nowhere'),
    'folder': lambda bench, path: path.mkdir(),
    'sparse': _sparse,
    'bomb': lambda bench, path: shutil.copy(bench.bomb, path),
    'eps': lambda bench, path: path.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n'),
    'secret': _secret,
    'many frames': _many_frames,
}


@kind('special', 'FIFOs, devices, bombs and huge files among pictures')
def special(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    inputs = _with_a_good_one(bench, folder)
    word = rng.choice(sorted(SPECIAL))
    SPECIAL[word](bench, inputs / f'bad.{rng.choice(("jpg", "png", "tiff", "webp"))}')
    least = 1 if word in ('folder', 'nothing', 'loop') else 2
    return predicted(bench, inputs, folder, 'bad', least=least, word=word)


@kind('tar', 'tar files')
def tar(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    path = folder / 'bad.tar'
    layout = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(path, 'w', format=layout) as f:
        for file in sorted(bench.pictures.iterdir()):
            f.add(file, arcname=f'{"long/" * rng.choice((0, 1, 30))}{file.name}')
    return predicted(bench, damage_file(path, rng), folder, 'bad.tar')


def loaded(bench: Bench, folder: Path, *names: str) -> Outcome:
    """A saved folder gives the answers that it gave, or an error."""
    def use() -> Optional[Outcome]:
        model = rs_timm.from_pretrained(str(folder))
        try:
            answer = bench.answer_of(model)
        except Exception as error:  # other channels or sizes, as the config says
            return Outcome('right', f'another network: {error}')
        if answer.shape == bench.answer.shape and tuple(model.resolutions) == SIZES:
            bench.check(answer)
        return None

    return judged(use, *names, str(folder))


@kind('config', 'config.json of a folder')
def config(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    shutil.copytree(bench.saved, folder / 'saved')
    damage_file(folder / 'saved/config.json', rng)
    return loaded(bench, folder / 'saved', 'config.json')


@kind('safetensors', 'safetensors of a folder')
def safetensors(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    shutil.copytree(bench.saved, folder / 'saved')
    file = folder / 'saved/model.safetensors'
    data = file.read_bytes()
    head = int.from_bytes(data[:8], 'little')
    if rng.random() < 0.4:  # the header alone
        header = json.dumps(damaged_json(json.loads(data[8:8 + head]), rng)).encode()
        file.write_bytes(len(header).to_bytes(8, 'little') + header + data[8 + head:])
    else:
        damage_file(file, rng)
    return loaded(bench, folder / 'saved', 'model.safetensors')


class Bomb:
    """Runs code when it is unpickled."""

    def __init__(self, mark: str) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.mkdir, (self.mark,)


def _checkpoint(bench: Bench, folder: Path, rng: random.Random) -> Path:
    """A .pth file that is damaged in its bytes or its content."""
    state: Dict[str, Any] = dict(bench.model.state_dict())
    key = rng.choice(sorted(state))
    dtype = rng.choice((torch.bool, torch.int8, torch.complex64, torch.float64))
    added = rng.choice((f'{key}2', '', 'x.y', 'bn1.7.weight', 'alpha'))
    file = folder / 'bad.pth'
    content = rng.choice((
        *[state] * 3,
        dict(state, bomb=Bomb(str(folder / 'exploded'))),
        {**state, key: state[key] * float('nan')},
        {**state, key: torch.zeros(*state[key].shape, 2)},
        {**state, key: state[key].to(dtype)},
        {other: value for other, value in state.items() if other != key},
        {**state, added: rng.choice((torch.zeros(3), 'text', None))},
        rng.choice((None, [], {}, 'text', 3, torch.zeros(2), {'state_dict': None}, {'model': []}, {1: 2})),
        {rng.choice(('state_dict', 'model', 'state_dict_ema', 'net')): state, 'args': 3, 'epoch': 'x'},
    ))
    torch.save(content, file)
    return damage_file(file, rng) if content is state else file


def _check_state(bench: Bench, model: torch.nn.Module, folder: Path) -> None:
    expect(not (folder / 'exploded').exists(), 'code of a pickle ran')
    bench.check(bench.answer_of(model))


@kind('init', '.pth files of --init')
def init(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.training import Recipe
    from rs_timm.training.build import build_model
    file = _checkpoint(bench, folder, rng)
    recipe = Recipe(resolutions=SIZES, init=str(file))
    return judged(lambda: _check_state(bench, build_model('test_resnet', recipe, 3), folder), file.name)


@kind('checkpoint', '.pth files of --checkpoint')
def checkpoint(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    file, out = _checkpoint(bench, folder, rng), folder / 'out.safetensors'

    def use() -> None:
        command('extract', 'switchable:test_resnet', '--resolutions', *SIZES, '--checkpoint', file, '--resolution', 48,
                '--out', out)
        state = load_file(out)
        model = timm.create_model('test_resnet', num_classes=len(state['fc.weight']))
        model.load_state_dict(state)
        _check_state(bench, model, folder)

    return judged(use, file.name)


@kind('last', 'last.pth of a training')
def last(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.training.checkpoint import load_checkpoint, save_checkpoint
    file, own = folder / 'last.pth', bench.model.state_dict()
    save_checkpoint(file, dict(position=dict(epoch=1, update=3), task=dict(own)))
    damage_file(file, rng)

    def use() -> None:
        state = load_checkpoint(file)
        expect(state.get('position') == dict(epoch=1, update=3), 'another position')
        expect(all(torch.equal(state['task'][key], own[key]) for key in own), 'other tensors')

    return judged(use, file.name)


@kind('latency', 'latency tables')
def latency(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import LatencyTable
    session = bench.session()
    file = damage_file(Path(shutil.copy(bench.latencies, folder / 'bad.json')), rng)

    def use() -> None:
        table = LatencyTable.load(file)
        costs = table.milliseconds()
        for ms in (1e6, 1e-6):
            try:
                session.set_budget(ms=ms, table=table)
            except ValueError as error:
                if 'no resolution fits' not in str(error):
                    raise
            else:
                expect(ms > 1., 'a millionth of a millisecond is enough')
        expect(costs and all(math.isfinite(ms) and ms > 0 and 0 < size < 10000 for size, ms in costs.items()),
               f'milliseconds {costs}')

    return judged(use, file.name, 'the latency table is of another session')


@kind('metadata', 'metadata of ONNX files')
def metadata(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    import onnx
    model = onnx.load(str(bench.onnx))
    prop = rng.choice(list(model.metadata_props))
    try:
        prop.value = json.dumps(damaged_json(json.loads(prop.value), rng))
    except (ValueError, IndexError):
        prop.value = rng.choice(('', '{}', 'null', '-1', 'x' * 1000))
    file = folder / 'bad.onnx'
    onnx.save(model, str(file))
    return judged(lambda: expect(np.isfinite(bench.session(file)(bench.picture)).all(), 'not finite'), file.name)


@kind('onnx', 'ONNX files')
def onnx_file(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    file = damage_file(Path(shutil.copy(bench.onnx, folder / 'bad.onnx')), rng)
    engine = rng.choice(('onnxruntime', 'openvino'))
    return judged(  # values that are not finite: the network is named
        lambda: bench.check(torch.from_numpy(bench.session(file, engine).run(bench.x.numpy()))),
        file.name, 'its weights are damaged', word=engine)


@kind('cascade', 'cascade fits')
def cascade(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import Cascade, CascadeFit
    session, file = bench.session(), folder / 'bad.json'
    sizes = tuple(sorted(SIZES))
    CascadeFit(sizes, dict.fromkeys(sizes[:-1], 0.9), dict.fromkeys(sizes, 1.1), 'last', None, 80., 2.,
               dict.fromkeys(sizes, 1 / 3)).save(file)
    damage_file(file, rng)
    return judged(lambda: expect(np.isfinite(
        Cascade.fitted(session, CascadeFit.load(file))(bench.picture).logits).all(), 'not finite'), file.name)


@kind('int8', 'int8 caches')
def int8(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    kept, answer = bench.int8
    cache = Path(shutil.copytree(kept, folder / 'cache'))
    file = damage_file(rng.choice(sorted(path for path in cache.rglob('*') if path.is_file())), rng)
    calibration = [bench.pictures / '0.png'] * 4 if rng.random() < 0.3 else None

    def use() -> None:
        session = bench.session(precision='int8', calibration=calibration, cache_dir=cache)
        expect(np.allclose(session.run(bench.x.numpy()), answer, atol=1e-4))

    return judged(use, file.name, str(cache))


@kind('run.json', 'FILE.run.json beside an output')
def run_json(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    out = folder / 'rows.jsonl'
    arguments = _prediction(bench, bench.pictures, out)
    command(*arguments)
    rows = out.read_bytes()
    damage_file(folder / 'rows.jsonl.run.json', rng)

    def use() -> None:
        command(*arguments)
        expect(out.read_bytes() == rows, 'other rows')

    return judged(use, out.name)


@kind('masks', 'lists of names and masks')
def masks(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.data import MaskFolder
    for name, mode in (('RGB', 'RGB'), ('Label', 'L')):
        (folder / name).mkdir()
        for number in range(3):
            Image.new(mode, (40, 36), number if mode == 'L' else (number, 9, 9)).save(folder / name / f's{number}.png')
    names = folder / 'train.txt'
    lines = [rng.choice((f's{n}', f's{n}.png', f'RGB/s{n}.png Label/s{n}.png')) for n in range(3)]
    names.write_text('\n'.join(lines))
    damage_file(names if rng.random() < 0.7 else folder / 'Label/s1.png', rng)

    def use() -> None:
        found = MaskFolder(str(folder), 'train', ['a', 'b', 'c'])
        for number in range(len(found)):
            classes = np.unique(found[number][1])
            expect(set(classes) <= {0, 1, 2, 255}, f'classes {classes}')

    return judged(use, str(folder))


def self_test(number: int) -> Outcome:
    """Trials that are right, hang, kill their process, and fail with a clear error, in turn: for the tests."""
    if number % 4 == 1:
        time.sleep(3600)
    if number % 4 == 2:
        os.kill(os.getpid(), 9)
    return Outcome('clear' if number % 4 else 'right')


# Workers

def processes() -> Any:
    """Where processes come from: forks of one that has imported what takes long, and has run nothing."""
    context = multiprocessing.get_context('forkserver')
    context.set_forkserver_preload(['rs_timm.training', 'rs_timm.runtime', 'rs_timm.hub', 'onnxruntime'])
    return context


def attempt(name: str, number: int, seed: int, bench: Bench, keep: Optional[Path] = None) -> Outcome:
    """Run trial `number` of a kind in this process; its input is left in `keep`."""
    rng = random.Random(f'{name} {seed} {number}')
    with contextlib.ExitStack() as stack:
        folder = keep or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        return self_test(number) if name == 'self' else KINDS[name][1](bench, folder, rng)


def work(name: str, seed: int, first: int, count: int, report: Path, keep: Optional[Path]) -> None:
    """Run trials one after the other, and append a line to `report` before and after each."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    os.dup2(1, 2)
    with tempfile.TemporaryDirectory() as folder, report.open('a', encoding='utf-8') as stream:
        bench = Bench(Path(folder))
        if name != 'self':  # made before memory is bounded
            assert bench.onnx.is_file() and bench.saved.is_dir() and (name != 'special' or bench.bomb.is_file())
        used = int(Path('/proc/self/statm').read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        for number in range(first, first + count):
            print(json.dumps(dict(number=number)), file=stream, flush=True)
            found = attempt(name, number, seed, bench, keep and keep / f'{name}-{number}')
            print(json.dumps(dict(number=number, outcome=found.kind, note=found.note)), file=stream, flush=True)


def damage(name: str, seed: int, first: int, count: int, keep: Optional[Path] = None) -> List[Tuple[int, Outcome]]:
    """The outcomes of trials by number; a worker that hangs or dies is replaced by one for the rest."""
    found: List[Tuple[int, Outcome]] = []
    end = first + count
    context = processes()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / 'report'
        while first < end:
            report.write_text('')
            process = context.Process(target=work, args=(name, seed, first, end - first, report, keep))
            process.start()
            size, since = 0, time.monotonic()
            while process.is_alive():
                process.join(0.1)
                if report.stat().st_size != size:
                    size, since = report.stat().st_size, time.monotonic()
                if time.monotonic() - since > (LIMIT if size else 600.):
                    break
            hung = process.is_alive()
            process.kill()
            process.join()
            lines = [json.loads(line) for line in report.read_text().splitlines()]
            found += [(line['number'], Outcome(line['outcome'], line['note'])) for line in lines if 'outcome' in line]
            if not lines:
                raise RuntimeError(f'{name}: the worker ended with {process.exitcode} before its first trial')
            first = lines[-1]['number'] + 1
            if 'outcome' not in lines[-1]:
                found.append((first - 1, Outcome('hang', f'no end within {LIMIT:.0f} s') if hung else Outcome(
                    'raw', f'the process ended with {process.exitcode}')))
    return found


# Kills, threads, two at once

Event = Callable[[Bench, Path, random.Random, int], Iterator[Outcome]]
EVENTS: Dict[str, Tuple[str, str, Event]] = {}


def event(part: str, name: str, words: str) -> Callable[[Event], Event]:
    """Register what happens often: it gets the bench, an empty folder, a random generator, and how often."""
    def register(run: Event) -> Event:
        EVENTS[name] = part, words, run
        return run

    return register


def _pictures(folder: Path, count: int) -> Path:
    generator = np.random.default_rng(1)
    for number in range(count):
        label = folder / f'class{number % 2}'
        label.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (40, 44, 3), dtype=np.uint8)).save(label / f'{number}.png')
    return folder


def _start(arguments: Sequence[Any], barrier: Any = None, said: Any = None) -> Any:
    """rs-timm in a process that has torch already; `said` gets (status, last line of what it printed)."""
    process = processes().Process(
        target=_command_in_process, args=([str(argument) for argument in arguments], barrier, said))
    process.start()
    return process


def _command_in_process(arguments: List[str], barrier: Any, said: Any) -> None:
    torch.set_num_threads(1)
    err = io.StringIO()
    if barrier:
        barrier.wait()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(err):
        try:
            status: Any = rs_timm_main(arguments)
        except BaseException as error:
            status = f'{type(error).__name__}: {error}'
    if said is not None:
        said.put((status, err.getvalue().strip()[-200:]))
    sys.exit(status if isinstance(status, int) else 1)


def _kill(process: Any, after: float) -> bool:
    """Whether the process ran that long, and was killed."""
    process.join(after)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive


def _killed(arguments: Sequence[Any], kills: int, longest: float, rng: random.Random) -> Tuple[int, bool]:
    """Kill the command at random moments and start it again, then let it finish; (kills, whether it did)."""
    done = 0
    for _ in range(kills):
        if not _kill(_start(arguments), rng.uniform(0.05, longest)):
            break
        done += 1
    process = _start(arguments)
    process.join(600)
    return done, process.exitcode == 0


def killed_or_not(arguments: Callable[[Path], List[Any]], result: str, folder: Path, rng: random.Random, count: int
                  ) -> Iterator[Outcome]:
    """After kills, the file `result` of an output has the bytes that it has without: an outcome for each kill."""
    started, done, whole = time.monotonic(), 0, folder / 'whole'
    if not _killed(arguments(whole), 0, 0., rng)[1]:
        yield Outcome('raw', 'it fails without kills')
        return
    longest = (time.monotonic() - started) / 2
    while done < count:
        out = folder / f'run{done}'
        kills, finished = _killed(arguments(out), 10, longest, rng)
        same = finished and Path(f'{out}{result}').read_bytes() == Path(f'{whole}{result}').read_bytes()
        yield from [Outcome('right') if same else Outcome('wrong', f'{out} differs')] * max(1, kills)
        done += max(1, kills)


def _rows(bench: Bench, data: Path, out: Path, *options: Any) -> List[Any]:
    return _prediction(bench, data, Path(f'{out}.jsonl'), '--batch-size', 8, *options)


def _training(data: Path, out: Path, epochs: int, *options: Any) -> List[Any]:
    return ['train', 'test_resnet', '--recipe', 'imagenette', '--data', data, '--out', out, '--resolutions', 48, 32,
            '--progressive', 0, '--epochs', epochs, '--batch-size', 8, '--precision', 'float32', '--no-channels-last',
            '--device', 'cpu', '--workers', 0, '--no-progress', '--checkpoint-minutes', 0.01, *options]


@event('kills', 'kill-predict', 'kills of `rs-timm predict --out`')
def kill_predictions(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    data = _pictures(folder / 'many', 600)
    return killed_or_not(lambda out: _rows(bench, data, out), '.jsonl', folder, rng, count)


@event('kills', 'kill-train', 'kills of a training')
def kill_trainings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    for split in ('train', 'val'):
        _pictures(folder / 'data' / split, 64)
    return killed_or_not(lambda out: _training(folder / 'data', out, 6, '--resume'), '/model/model.safetensors',
                         folder, rng, count)


def _save_for_ever(states: str, folder: str) -> None:
    torch.set_num_threads(1)
    model = rs_timm.switchable('test_resnet', SIZES, num_classes=3).eval()
    while True:
        for state in torch.load(states, weights_only=True):
            model.load_state_dict(state)
            rs_timm.save_pretrained(model, folder)


@event('kills', 'kill-save', 'kills of `save_pretrained` over a folder')
def kill_savings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """A folder that is written over and over holds, after a kill, one of the two networks whole."""
    other = copy.deepcopy(bench.model)
    for parameter in other.parameters():
        parameter.data.mul_(0.9)
    answers = [bench.answer, bench.answer_of(other)]
    torch.save([dict(model.state_dict()) for model in (bench.model, other)], folder / 'states.pth')
    path = folder / 'model'
    rs_timm.save_pretrained(bench.model, path)

    def load() -> None:
        answer = bench.answer_of(rs_timm.from_pretrained(str(path)))
        expect(any(torch.allclose(answer, own, atol=1e-5) for own in answers), 'neither network')

    for _ in range(count):
        process = processes().Process(target=_save_for_ever, args=(str(folder / 'states.pth'), str(path)))
        process.start()
        _kill(process, rng.uniform(0.5, 3.))
        found = judged(load)
        if found.kind != 'right':
            rs_timm.save_pretrained(bench.model, path)  # for the next one
            found = Outcome('wrong', found.note)
        yield found


@event('threads', 'threads', 'calls of eight threads on a session')
def threads(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Eight threads on one session get the answers that one gets."""
    for engine in ('onnxruntime', 'openvino'):
        session = bench.session(engine=engine)
        inputs = [np.random.default_rng(n).standard_normal((1 + n % 3, 3, size, size), dtype=np.float32)
                  for n, size in enumerate((32, 40, 48, 56, 64, 72))]
        cases = [(session, x, session.run(x)) for x in inputs]
        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(_same_answer, rng.choices(cases, k=count // 2))


def _same_answer(case: Tuple[Any, np.ndarray, np.ndarray]) -> Outcome:
    session, x, answer = case
    return judged(lambda: expect(np.allclose(session.run(x), answer, atol=1e-5), f'other answers at {x.shape}'))


def _pair(first: Sequence[Any], second: Sequence[Any]) -> List[Tuple[Any, str]]:
    """Start two commands at once; the status of each, and the end of what it printed."""
    context = processes()
    barrier, said = context.Barrier(2), context.Queue()
    both = [_start(arguments, barrier, said) for arguments in (first, second)]
    answers = [said.get(timeout=600) for _ in both]
    for process in both:
        process.join()
    return answers


@event('pairs', 'two-predict', 'two predictions into one output')
def pair_predictions(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Of two predictions with other settings into one output, one writes all rows, and one is refused in a sentence."""
    data = _pictures(folder / 'few', 64)
    for number in range(count):
        out = folder / f'pair{number}'
        answers = _pair(*(_rows(bench, data, out, '--topk', k) for k in (1, 2)))
        lines = Path(f'{out}.jsonl').read_text().splitlines()
        counts = Counter(len(json.loads(line)['classes']) for line in lines)
        right = [status for status, _ in answers].count(0) == 1 and list(counts.values()) == [64]
        yield Outcome('right') if right else Outcome('wrong', f'rows {dict(counts)}; {answers}')


@event('pairs', 'two-train', 'two trainings into one folder')
def pair_trainings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Of two trainings into one folder, one trains, and one is refused in a sentence."""
    for split in ('train', 'val'):
        _pictures(folder / 'data' / split, 16)
    for number in range(count):
        out = folder / f'pair{number}'
        answers = _pair(*(_training(folder / 'data', out, 2, '--seed', seed) for seed in (0, 1)))
        statuses = sorted(str(status) for status, _ in answers)
        right = statuses == ['0', '2'] and (out / 'model/model.safetensors').is_file()
        yield Outcome('right') if right else Outcome('wrong', f'{answers}')


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parts = ('damage', *dict.fromkeys(part for part, _, _ in EVENTS.values()))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=parts, default=parts)
    parser.add_argument('--kinds', nargs='+', choices=[*KINDS, *EVENTS], default=[*KINDS, *EVENTS])
    parser.add_argument('--trials', type=int, default=300, help='of each kind of file (default: 300)')
    parser.add_argument('--events', type=int, default=20, help='kills, pairs, and calls of threads (default: 20)')
    parser.add_argument('--first', type=int, default=0, help='number of the first trial (default: 0)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', type=Path, metavar='DIR', help='leave the inputs here')
    parser.add_argument('--when', default='now', help="a name for the rows, such as 'before' (default: now)")
    parser.add_argument('--commit', default='', help='of the code (default: that of the checkout)')
    parser.add_argument('--out', type=Path, help='CSV file for the rows, such as benchmarks/results/soak.csv')
    args = parser.parse_args(arguments)
    made = dict(when=args.when, seed=str(args.seed), commit=args.commit or commit())

    def write(name: str, words: str, started: float, found: Sequence[Tuple[int, Outcome]]) -> None:
        row = _printed(name, words, found, time.monotonic() - started)
        if args.out:
            put(args.out, [{**row, **made}], ('kind', 'when'))

    for name, (words, _) in KINDS.items():
        if 'damage' in args.parts and name in args.kinds:
            started = time.monotonic()
            count = -(-args.trials // 6) if name == 'special' else args.trials  # ten cases, some of which may hang
            write(name, words, started, damage(name, args.seed, args.first, count, args.keep))
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary))
        for name, (part, words, run) in EVENTS.items():
            if part in args.parts and name in args.kinds:
                started, folder = time.monotonic(), Path(temporary) / name
                folder.mkdir()
                events = run(bench, folder, random.Random(f'{name} {args.seed}'), args.events)
                write(name, words, started, list(enumerate(events)))
                shutil.rmtree(folder)


def _printed(name: str, words: str, found: Sequence[Tuple[int, Outcome]], seconds: float) -> Dict[str, Any]:
    """Print a line of the table, and what failed; the row of the table."""
    counts = Counter(outcome.kind for _, outcome in found)
    print(f'{name:14} {len(found):5} tried ' + ' '.join(f'{counts[outcome]:5} {outcome}' for outcome in OUTCOMES)
          + f'   {seconds:.0f} s', flush=True)
    shown: Counter = Counter()
    for number, outcome in found:
        if outcome.kind in ('wrong', 'raw', 'hang'):
            alike = outcome.kind, outcome.note.partition(':')[0], outcome.note.rpartition('(')[2]
            shown[alike] += 1
            if shown[alike] <= 3:
                print(f'    {outcome.kind} {name} --first {number}: {outcome.note}', flush=True)
    return dict(kind=name, about=words, tried=len(found), **{outcome: counts[outcome] for outcome in OUTCOMES},
                seconds=round(seconds))


if __name__ == '__main__':
    main()
