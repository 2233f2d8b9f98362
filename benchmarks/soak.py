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
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np
import torch
from PIL import Image

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


# Damage

def damaged_bytes(data: bytes, rng: random.Random) -> bytes:
    """`data` with one kind of damage that disks, networks and people do."""
    where = rng.randrange(len(data) + 1)
    length = min(len(data) - where, rng.choice((1, 2, 8, 64, 4096)))
    kind = rng.choice(('cut', 'flip', 'zeros', 'ones', 'noise', 'insert', 'remove', 'repeat', 'empty', 'other'))
    if kind == 'cut':
        return data[:where]
    if kind == 'flip':
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 3, 20))):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        return bytes(changed)
    if kind == 'empty':
        return b''
    if kind == 'other':
        return rng.choice((b'\0' * 64, b'<html></html>', b'{}', b'[]', b'null', b'\x80\x04.', rng.randbytes(200)))
    new = dict(zeros=b'\0' * length, ones=b'\xff' * length, noise=rng.randbytes(length), insert=rng.randbytes(length),
               remove=b'', repeat=2 * data[where:where + length])[kind]
    return data[:where] + new + data[where + (0 if kind == 'insert' else length):]


_VALUES: Tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 3, 64, 10 ** 9, 10 ** 400, 0.5, -0.5, 1e308, float('nan'), float('inf'), '', 'a', '64',
    '../../etc/passwd', 'hf-hub:nobody/nothing', 'x' * 10000, '\0', '<b>x</b>', [], {}, [[]], [1, 'a'], [-1], {'a': {}},
    [64] * 5000, list(range(32, 3232)),
)


def damaged_json(value: Any, rng: random.Random) -> Any:
    """`value` with something in it replaced, removed, added or renamed."""
    value = copy.deepcopy(value)
    places = list(_places(value))
    for _ in range(rng.choice((1, 1, 1, 2))):
        owner, key = rng.choice(places)
        kind = rng.choice(('replace', 'replace', 'replace', 'scale', 'remove', 'add', 'rename'))
        if isinstance(owner, dict) and key in owner:
            old = owner[key]
            if kind == 'remove':
                del owner[key]
            elif kind == 'rename':
                owner[f'{key}_'] = owner.pop(key)
            elif kind == 'add':
                owner[rng.choice(('unknown', 'checkpoint_path', 'base', 'pretrained', 'in_chans', ''))] = rng.choice(
                    _VALUES)
            elif kind == 'scale' and isinstance(old, (int, float)):
                owner[key] = old * rng.choice((-1, 0, 1000, 1e-9))
            else:
                owner[key] = rng.choice(_VALUES)
        elif isinstance(owner, list) and key < len(owner):
            if kind == 'remove':
                del owner[key]
            elif kind == 'add':
                owner.insert(key, owner[key])
            else:
                owner[key] = rng.choice(_VALUES)
    return value


def _places(value: Any) -> Iterator[Tuple[Any, Any]]:
    """(Container, key or index) of all that is inside a JSON value."""
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, own in inside:
        yield value, key
        yield from _places(own)


def damage_json_file(path: Path, rng: random.Random) -> None:
    """Damage the values of a JSON file, or, one time in five, its bytes."""
    data = path.read_bytes()
    path.write_bytes(damaged_bytes(data, rng) if rng.random() < 0.2 else json.dumps(
        damaged_json(json.loads(data), rng)).encode())


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
        self._made: Dict[str, Any] = {}

    def answer_of(self, model: torch.nn.Module) -> torch.Tensor:
        with torch.inference_mode():
            return model.eval()(self.x)

    def once(self, name: str, make: Callable[[Path], Any]) -> Path:
        """A file or folder that `make` writes on the first call."""
        path = self.folder / name
        if name not in self._made:
            self._made[name] = make(path)
        return path

    @property
    def onnx(self) -> Path:
        return self.once('model.onnx', lambda path: rs_timm.export_onnx(self.model, path))

    @property
    def bomb(self) -> Path:
        return self.once('bomb.png', lambda path: Image.new('1', (30000, 30000)).save(path))

    @property
    def saved(self) -> Path:
        from rs_timm.hub import save_pretrained
        return self.once('saved', lambda path: save_pretrained(
            self.model, path, model_config=dict(label_names=['a', 'b', 'c'])))


Trial = Callable[[Bench, Path, random.Random], Outcome]
KINDS: Dict[str, Tuple[str, Trial]] = {}


def kind(name: str, words: str) -> Callable[[Trial], Trial]:
    """Register a kind of file; its trial gets the bench, an empty folder and a random generator."""
    def register(trial: Trial) -> Trial:
        KINDS[name] = words, trial
        return trial

    return register


class Refused(Exception):
    """The command line refused, in words."""


def command(*arguments: Any) -> int:
    """Run rs-timm in this process; returns 0, or 1 (some pictures could not be read).

    Raises:
        Refused: status 2, with what was printed.
    """
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = rs_timm_main([str(argument) for argument in arguments])
        except SystemExit as error:
            status = error.code if isinstance(error.code, int) else 2
    if status not in (0, 1):
        if 'Traceback' in err.getvalue():
            raise RuntimeError(err.getvalue()[-300:])
        raise Refused(err.getvalue().strip())
    return status


def judged(trial: Callable[[], Outcome], *names: str) -> Outcome:
    """The outcome of a trial whose errors must name one of `names`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            return trial()
    except Exception as error:
        text = ' '.join(str(error).split())
        place = traceback.extract_tb(error.__traceback__)[-1]
        note = f'{type(error).__name__}: {text[:160]} ({Path(place.filename).name}:{place.lineno})'
        if not isinstance(error, (ValueError, OSError, Refused)) or isinstance(error, UnicodeError):
            return Outcome('raw', note)
        named = any(name in text for name in names)
        return Outcome('clear', note) if named else Outcome('raw', f'names no file: {note}')


def predicted(bench: Bench, source: Path, folder: Path, count: Optional[int], *names: str) -> Outcome:
    """`rs-timm predict` writes a row for each picture, of its classes or of what is wrong with it."""
    out = folder / 'rows.jsonl'

    def run() -> Outcome:
        command('predict', bench.onnx, source, '--out', out, '--engine', 'onnxruntime', '--threads', 1, '--workers', 2)
        rows = [json.loads(line, parse_constant=_no_constant) for line in out.read_text().splitlines()]
        if count is not None and len(rows) != count:
            return Outcome('wrong', f'{len(rows)} rows of {count} pictures')
        errors = [row['error'] for row in rows if row.get('error')]
        return Outcome('clear', errors[0][:160]) if errors else Outcome('right')

    return judged(run, *names)


def _no_constant(text: str) -> Any:
    raise RuntimeError(f'{text} is no JSON')


@kind('picture', 'picture files')
def picture(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    source = rng.choice(sorted(bench.pictures.iterdir()))
    inputs = folder / 'in'
    inputs.mkdir()
    shutil.copy(bench.pictures / '0.png', inputs / 'good.png')
    (inputs / f'bad{source.suffix}').write_bytes(damaged_bytes(source.read_bytes(), rng))
    return predicted(bench, inputs, folder, 2, 'bad')


@kind('special', 'FIFOs, devices, bombs and huge files among pictures')
def special(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    inputs = folder / 'in'
    inputs.mkdir()
    shutil.copy(bench.pictures / '0.png', inputs / 'good.png')
    bad = inputs / f'bad.{rng.choice(("jpg", "png", "tiff", "webp"))}'
    what = rng.choice(('fifo', 'zero', 'loop', 'nothing', 'folder', 'sparse', 'bomb', 'eps', 'secret', 'many frames'))
    if what == 'fifo':
        os.mkfifo(bad)
    elif what in ('zero', 'loop', 'nothing'):
        bad.symlink_to(dict(zero='/dev/zero', loop=bad.name, nothing='nowhere')[what])
    elif what == 'folder':
        bad.mkdir()
    elif what == 'sparse':
        with bad.open('wb') as stream:
            stream.truncate(20 * 2 ** 30)
    elif what == 'bomb':
        shutil.copy(bench.bomb, bad)
    elif what == 'eps':
        bad.write_bytes(b'%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n')
    elif what == 'secret':
        bad.write_bytes((bench.pictures / '0.png').read_bytes())
        bad.chmod(0)
    else:
        frames = [Image.new('P', (40, 40), number) for number in range(50)]
        frames[0].save(bad, 'gif', save_all=True, append_images=frames[1:])
    found = predicted(bench, inputs, folder, None, 'bad')
    rows = (folder / 'rows.jsonl').read_text().splitlines() if (folder / 'rows.jsonl').exists() else []
    if found.kind == 'right' and len(rows) < 2 and what not in ('folder', 'nothing', 'loop'):
        return Outcome('wrong', f'{what}: no row')
    return Outcome(found.kind, f'{what}: {found.note}')


@kind('tar', 'tar files')
def tar(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    path = folder / 'bad.tar'
    layout = rng.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    with tarfile.open(path, 'w', format=layout) as f:
        for file in sorted(bench.pictures.iterdir()):
            f.add(file, arcname=f'{"long/" * rng.choice((0, 1, 30))}{file.name}')
    path.write_bytes(damaged_bytes(path.read_bytes(), rng))
    return predicted(bench, path, folder, None, 'bad.tar')


def compared(answer: torch.Tensor, own: torch.Tensor) -> Outcome:
    """Whether logits are those of the undamaged file."""
    if torch.allclose(answer, own, atol=1e-4):
        return Outcome('right')
    return Outcome('wrong', f'answers differ by {(answer - own).abs().max():.2g}')


def loaded(bench: Bench, folder: Path, *names: str) -> Outcome:
    """A saved folder gives the answers that it gave, or an error."""
    def run() -> Outcome:
        model = rs_timm.from_pretrained(str(folder))
        try:
            answer = bench.answer_of(model)
        except Exception as error:  # other channels or sizes, as the config says
            return Outcome('right', f'another network: {error}')
        if answer.shape != bench.answer.shape or tuple(model.resolutions) != SIZES:
            return Outcome('right', 'another network')
        return compared(answer, bench.answer)

    return judged(run, *names)


@kind('config', 'config.json of a folder')
def config(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    shutil.copytree(bench.saved, folder / 'saved')
    damage_json_file(folder / 'saved/config.json', rng)
    return loaded(bench, folder / 'saved', 'config.json', str(folder / 'saved'))


@kind('safetensors', 'safetensors of a folder')
def safetensors(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    shutil.copytree(bench.saved, folder / 'saved')
    file = folder / 'saved/model.safetensors'
    data = file.read_bytes()
    head = int.from_bytes(data[:8], 'little')
    if rng.random() < 0.4:  # the header alone
        header = json.dumps(damaged_json(json.loads(data[8:8 + head]), rng)).encode()
        data = len(header).to_bytes(8, 'little') + header + data[8 + head:]
    else:
        data = damaged_bytes(data, rng)
    file.write_bytes(data)
    return loaded(bench, folder / 'saved', 'model.safetensors', str(folder / 'saved'))


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
    kind = rng.choice(
        ('bytes', 'bytes', 'bytes', 'bomb', 'nan', 'shape', 'dtype', 'missing', 'added', 'other', 'nested'))
    content: Any = state
    if kind == 'bomb':
        content = dict(state, bomb=Bomb(str(folder / 'exploded')))
    elif kind == 'nan':
        state[key] = state[key] * float('nan')
    elif kind == 'shape':
        state[key] = torch.zeros(*state[key].shape, 2)
    elif kind == 'dtype':
        state[key] = state[key].to(rng.choice((torch.bool, torch.int8, torch.complex64, torch.float64)))
    elif kind == 'missing':
        del state[key]
    elif kind == 'added':
        state[rng.choice((f'{key}2', '', 'x.y', 'bn1.7.weight', 'alpha'))] = rng.choice((torch.zeros(3), 'text', None))
    elif kind == 'other':
        content = rng.choice((None, [], {}, 'text', 3, torch.zeros(2), {'state_dict': None}, {'model': []}, {1: 2}))
    elif kind == 'nested':
        content = {rng.choice(('state_dict', 'model', 'state_dict_ema', 'net')): state, 'args': 3, 'epoch': 'x'}
    file = folder / 'bad.pth'
    torch.save(content, file)
    if kind == 'bytes':
        file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    return file


def _same_state(bench: Bench, model: torch.nn.Module, folder: Path) -> Outcome:
    if (folder / 'exploded').exists():
        return Outcome('wrong', 'code of a pickle ran')
    return compared(bench.answer_of(model), bench.answer)


@kind('init', '.pth files of --init')
def init(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.training import Recipe
    from rs_timm.training.build import build_model
    file = _checkpoint(bench, folder, rng)
    return judged(lambda: _same_state(bench, build_model(
        'test_resnet', Recipe(resolutions=SIZES, init=str(file)), 3), folder), file.name)


@kind('checkpoint', '.pth files of --checkpoint')
def checkpoint(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    file, out = _checkpoint(bench, folder, rng), folder / 'out.safetensors'

    def run() -> Outcome:
        command('extract', 'switchable:test_resnet', '--resolutions', *SIZES, '--checkpoint', file, '--resolution', 48,
                '--out', out)
        import timm
        from safetensors.torch import load_file
        state = load_file(out)
        model = timm.create_model('test_resnet', num_classes=len(state['fc.weight']))
        model.load_state_dict(state)
        return _same_state(bench, model, folder)

    return judged(run, file.name)


@kind('last', 'last.pth of a training')
def last(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.training.checkpoint import load_checkpoint, save_checkpoint
    file = folder / 'last.pth'
    save_checkpoint(file, dict(position=dict(epoch=1, update=3), task=dict(bench.model.state_dict())))
    file.write_bytes(damaged_bytes(file.read_bytes(), rng))

    def run() -> Outcome:
        state = load_checkpoint(file)
        own = bench.model.state_dict()
        same = state.get('position') == dict(epoch=1, update=3) and all(
            torch.equal(state['task'][key], own[key]) for key in own)
        return Outcome('right') if same else Outcome('wrong', 'other tensors or another position')

    return judged(run, file.name)


@kind('latency', 'latency tables')
def latency(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import LatencyTable, Session, measure_latency
    session = Session(bench.onnx, 'onnxruntime', threads=1)
    table = bench.once('table.json', lambda path: measure_latency(session, repeats=72).save(path))
    file = Path(shutil.copy(table, folder / 'bad.json'))
    damage_json_file(file, rng)

    def run() -> Outcome:
        read = LatencyTable.load(file)
        costs = read.milliseconds()
        for ms in (1e6, 1e-6):
            try:
                session.set_budget(ms=ms, table=read)
            except ValueError as error:
                if 'no resolution fits' not in str(error):
                    raise
            else:
                if ms < 1.:
                    return Outcome('wrong', 'a millionth of a millisecond is enough')
        if not costs or not all(math.isfinite(ms) and ms > 0 and 0 < size < 10000 for size, ms in costs.items()):
            return Outcome('wrong', f'milliseconds {costs}')
        return Outcome('right')

    return judged(run, file.name, 'the latency table is of another session')


@kind('metadata', 'metadata of ONNX files')
def metadata(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    import onnx

    from rs_timm.runtime import Session
    model = onnx.load(str(bench.onnx))
    prop = rng.choice(list(model.metadata_props))
    try:
        prop.value = json.dumps(damaged_json(json.loads(prop.value), rng))
    except (ValueError, IndexError):
        prop.value = rng.choice(('', '{}', 'null', '-1', 'x' * 1000))
    file = folder / 'bad.onnx'
    onnx.save(model, str(file))

    def run() -> Outcome:
        session = Session(file, 'onnxruntime', threads=1)
        answer = session(Image.open(bench.pictures / '0.png').convert('RGB'))
        return Outcome('right') if np.isfinite(answer).all() else Outcome('wrong', 'not finite')

    return judged(run, file.name)


@kind('onnx', 'ONNX files')
def onnx_file(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import Session
    file = folder / 'bad.onnx'
    file.write_bytes(damaged_bytes(bench.onnx.read_bytes(), rng))
    engine = rng.choice(('onnxruntime', 'openvino'))

    def run() -> Outcome:
        answer = torch.from_numpy(Session(file, engine, threads=1).run(bench.x.numpy()))
        same = answer.shape == bench.answer.shape and torch.allclose(answer, bench.answer, atol=1e-3)
        return Outcome('right') if same else Outcome('wrong', 'other answers')

    found = judged(run, file.name, 'its weights are damaged')  # values that are not finite: the network is named
    return Outcome(found.kind, f'{engine}: {found.note}')


@kind('cascade', 'cascade fits')
def cascade(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import Cascade, CascadeFit, Session
    session = Session(bench.onnx, 'onnxruntime', threads=1)
    sizes = tuple(sorted(SIZES))
    fit = CascadeFit(sizes, dict.fromkeys(sizes[:-1], 0.9), dict.fromkeys(sizes, 1.1), 'last', None, 80., 2.,
                     dict.fromkeys(sizes, 1 / 3))
    file = folder / 'bad.json'
    fit.save(file)
    damage_json_file(file, rng)

    def run() -> Outcome:
        result = Cascade.fitted(session, CascadeFit.load(file))(Image.open(bench.pictures / '0.png').convert('RGB'))
        return Outcome('right') if np.isfinite(result.logits).all() else Outcome('wrong', 'not finite')

    return judged(run, file.name)


@kind('int8', 'int8 caches')
def int8(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    from rs_timm.runtime import Session
    pictures = [bench.pictures / '0.png'] * 4
    x = bench.x.numpy()
    answers: Dict[str, np.ndarray] = {}

    def make(path: Path) -> Dict[str, np.ndarray]:
        answers['own'] = Session(bench.onnx, 'onnxruntime', 'int8', 1, calibration=pictures, cache_dir=path).run(x)
        return answers

    cache = bench.once('cache', make)
    shutil.copytree(cache, folder / 'cache')
    file = rng.choice(sorted(path for path in (folder / 'cache').rglob('*') if path.is_file()))
    file.write_bytes(damaged_bytes(file.read_bytes(), rng))
    options = dict(calibration=pictures) if rng.random() < 0.3 else {}

    def run() -> Outcome:
        answer = Session(bench.onnx, 'onnxruntime', 'int8', 1, cache_dir=folder / 'cache', **options).run(x)
        same = np.allclose(answer, bench._made['cache']['own'], atol=1e-4)
        return Outcome('right') if same else Outcome('wrong', 'other answers')

    return judged(run, file.name, str(folder / 'cache'))


@kind('run.json', 'FILE.run.json beside an output')
def run_json(bench: Bench, folder: Path, rng: random.Random) -> Outcome:
    out = folder / 'rows.jsonl'
    arguments = ('predict', bench.onnx, bench.pictures, '--out', out, '--engine', 'onnxruntime', '--threads', 1)
    command(*arguments)
    rows = out.read_bytes()
    damage_json_file(folder / 'rows.jsonl.run.json', rng)

    def run() -> Outcome:
        command(*arguments)
        return Outcome('right') if out.read_bytes() == rows else Outcome('wrong', 'other rows')

    return judged(run, 'rows.jsonl')


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
    file = names if rng.random() < 0.7 else folder / 'Label/s1.png'
    file.write_bytes(damaged_bytes(file.read_bytes(), rng))

    def run() -> Outcome:
        found = MaskFolder(str(folder), 'train', ['a', 'b', 'c'])
        for number in range(len(found)):
            _, mask = found[number]
            if not set(np.unique(mask)) <= {0, 1, 2, 255}:
                return Outcome('wrong', f'classes {np.unique(mask)}')
        return Outcome('right')

    return judged(run, str(folder))


def self_test(bench: Bench, folder: Path, rng: random.Random, number: int) -> Outcome:
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
        return self_test(bench, folder, rng, number) if name == 'self' else KINDS[name][1](bench, folder, rng)


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


def _killed(arguments: Sequence[Any], kills: int, longest: float, rng: random.Random) -> Tuple[int, bool]:
    """Kill the command at random moments and start it again, then let it finish; (kills, whether it did)."""
    done = 0
    for _ in range(kills):
        process = _start(arguments)
        process.join(rng.uniform(0.05, longest))
        if process.is_alive():
            done += 1
            process.kill()
        process.join()
        if process.exitcode == 0:
            break
    process = _start(arguments)
    process.join(600)
    return done, process.exitcode == 0


def killed_or_not(arguments: Callable[[Path], List[Any]], result: str, folder: Path, rng: random.Random, count: int
                  ) -> Iterator[Outcome]:
    """After kills, the file `result` of an output has the bytes that it has without: an outcome for each kill."""
    started, done = time.monotonic(), 0
    if not _killed(arguments(folder / 'whole'), 0, 0., rng)[1]:
        yield Outcome('raw', 'it fails without kills')
        return
    longest = (time.monotonic() - started) / 2
    while done < count:
        out = folder / f'run{done}'
        kills, finished = _killed(arguments(out), 10, longest, rng)
        same = finished and Path(f'{out}{result}').read_bytes() == Path(f'{folder / "whole"}{result}').read_bytes()
        yield from [Outcome('right') if same else Outcome('wrong', f'{out} differs')] * max(1, kills)
        done += max(1, kills)


def _prediction(bench: Bench, data: Path, out: Path) -> List[Any]:
    return ['predict', bench.onnx, data, '--out', f'{out}.jsonl', '--engine', 'onnxruntime', '--threads', 1,
            '--batch-size', 8]


def _training(data: Path, out: Path, epochs: int) -> List[Any]:
    return ['train', 'test_resnet', '--recipe', 'imagenette', '--data', data, '--out', out, '--resolutions', 48, 32,
            '--progressive', 0, '--epochs', epochs, '--batch-size', 8, '--precision', 'float32', '--no-channels-last',
            '--device', 'cpu', '--workers', 0, '--no-progress', '--checkpoint-minutes', 0.01]


def kill_predictions(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Rows of a collection."""
    data = _pictures(folder / 'many', 600)
    return killed_or_not(lambda out: _prediction(bench, data, out), '.jsonl', folder, rng, count)


def kill_trainings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Weights of a training."""
    for split in ('train', 'val'):
        _pictures(folder / 'data' / split, 64)
    return killed_or_not(lambda out: [*_training(folder / 'data', out, 6), '--resume'], '/model/model.safetensors',
                         folder, rng, count)


def _save_for_ever(states: str, folder: str) -> None:
    from rs_timm.hub import save_pretrained
    torch.set_num_threads(1)
    model = rs_timm.switchable('test_resnet', SIZES, num_classes=3).eval()
    while True:
        for state in torch.load(states, weights_only=True):
            model.load_state_dict(state)
            save_pretrained(model, folder)


def kill_savings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """A folder that is written over and over holds, after a kill, one of the two networks whole."""
    from rs_timm.hub import save_pretrained
    other = copy.deepcopy(bench.model)
    for parameter in other.parameters():
        parameter.data.mul_(0.9)
    answers = [bench.answer, bench.answer_of(other)]
    torch.save([dict(model.state_dict()) for model in (bench.model, other)], folder / 'states.pth')
    path = folder / 'model'
    save_pretrained(bench.model, path)
    for _ in range(count):
        process = processes().Process(
            target=_save_for_ever, args=(str(folder / 'states.pth'), str(path)))
        process.start()
        process.join(rng.uniform(0.5, 3.))
        process.kill()
        process.join()

        def load() -> Outcome:
            answer = bench.answer_of(rs_timm.from_pretrained(str(path)))
            same = any(torch.allclose(answer, own, atol=1e-5) for own in answers)
            return Outcome('right') if same else Outcome('wrong', 'neither network')

        found = judged(load)
        if found.kind != 'right':  # a folder that the next call recovers counts as right, too
            save_pretrained(bench.model, path)
            found = Outcome('wrong', found.note)
        yield found


def threads(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Eight threads on one session get the answers that one gets."""
    from rs_timm.runtime import Session
    for engine in ('onnxruntime', 'openvino'):
        session = Session(bench.onnx, engine, threads=1)
        inputs = [np.random.default_rng(n).standard_normal((1 + n % 3, 3, size, size), dtype=np.float32)
                  for n, size in enumerate((32, 40, 48, 56, 64, 72))]
        alone = [session.run(x) for x in inputs]

        def ask(which: int, session: Any = session, inputs: Any = inputs, alone: Any = alone) -> Outcome:
            same = np.allclose(session.run(inputs[which]), alone[which], atol=1e-5)
            return Outcome('right') if same else Outcome('wrong', f'other answers at {inputs[which].shape}')

        with ThreadPoolExecutor(8) as pool:
            yield from pool.map(lambda n: judged(lambda: ask(n)), [rng.randrange(6) for _ in range(count // 2)])


def _pair(first: Sequence[Any], second: Sequence[Any]) -> List[Tuple[Any, str]]:
    """Start two commands at once; the status of each, and the end of what it printed."""
    context = processes()
    barrier, said = context.Barrier(2), context.Queue()
    both = [_start(arguments, barrier, said) for arguments in (first, second)]
    answers = [said.get(timeout=600) for _ in both]
    for process in both:
        process.join()
    return answers


def pair_predictions(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Of two predictions with other settings into one output, one writes all rows, and one is refused in a sentence."""
    data = _pictures(folder / 'few', 64)
    for number in range(count):
        common = _prediction(bench, data, folder / f'pair{number}')
        answers = _pair([*common, '--topk', 1], [*common, '--topk', 2])
        lines = (folder / f'pair{number}.jsonl').read_text().splitlines()
        counts = Counter(len(json.loads(line)['classes']) for line in lines)
        right = [status for status, _ in answers].count(0) == 1 and list(counts.values()) == [64]
        yield Outcome('right') if right else Outcome('wrong', f'rows {dict(counts)}; {answers}')


def pair_trainings(bench: Bench, folder: Path, rng: random.Random, count: int) -> Iterator[Outcome]:
    """Of two trainings into one folder, one trains, and one is refused in a sentence."""
    for split in ('train', 'val'):
        _pictures(folder / 'data' / split, 16)
    for number in range(count):
        out = folder / f'pair{number}'
        answers = _pair(*([*_training(folder / 'data', out, 2), '--seed', seed] for seed in (0, 1)))
        statuses = sorted(str(status) for status, _ in answers)
        right = statuses == ['0', '2'] and (out / 'model/model.safetensors').is_file()
        yield Outcome('right') if right else Outcome('wrong', f'{answers}')


EVENTS: Dict[str, Dict[str, Tuple[str, Callable[[Bench, Path, random.Random, int], Iterator[Outcome]]]]] = {
    'kills': {
        'kill-predict': ('kills of `rs-timm predict --out`', kill_predictions),
        'kill-train': ('kills of a training', kill_trainings),
        'kill-save': ('kills of `save_pretrained` over a folder', kill_savings),
    },
    'threads': {'threads': ('calls of eight threads on a session', threads)},
    'pairs': {
        'two-predict': ('two predictions into one output', pair_predictions),
        'two-train': ('two trainings into one folder', pair_trainings),
    },
}


def main(arguments: Optional[Sequence[str]] = None) -> None:
    args = _parse(arguments)
    made: Dict[str, str] = dict(when=args.when, seed=str(args.seed), commit=args.commit or commit())
    if 'damage' in args.parts:
        for name, (words, _) in KINDS.items():
            if name in (args.kinds or KINDS):
                started = time.monotonic()
                count = -(-args.trials // 6) if name == 'special' else args.trials  # ten cases, some of which may hang
                found = damage(name, args.seed, args.first, count, args.keep)
                _write(args, name, words, found, time.monotonic() - started, made)
    with tempfile.TemporaryDirectory() as temporary:
        bench = Bench(Path(temporary))
        for part in args.parts:
            for name, (words, run) in EVENTS.get(part, {}).items():
                if name not in (args.kinds or [name]):
                    continue
                started, folder = time.monotonic(), Path(temporary) / name
                folder.mkdir()
                events = run(bench, folder, random.Random(f'{name} {args.seed}'), args.events)
                _write(args, name, words, list(enumerate(events)), time.monotonic() - started, made)
                shutil.rmtree(folder)


def _write(args: argparse.Namespace, name: str, words: str, found: Sequence[Tuple[int, Outcome]], seconds: float,
           made: Dict[str, str]) -> None:
    """Print a line of the table and what failed; put the row in the place of that of the same kind and time."""
    counts = Counter(outcome.kind for _, outcome in found)
    row = dict(kind=name, about=words, tried=len(found), **{outcome: counts[outcome] for outcome in OUTCOMES},
               seconds=round(seconds), **made)
    print(f'{name:14} {len(found):5} tried ' + ' '.join(f'{counts[outcome]:5} {outcome}' for outcome in OUTCOMES)
          + f'   {seconds:.0f} s', flush=True)
    shown: Counter = Counter()
    for number, outcome in found:
        if outcome.kind in ('wrong', 'raw', 'hang'):
            alike = outcome.kind, outcome.note.partition(':')[0], outcome.note.rpartition('(')[2]
            shown[alike] += 1
            if shown[alike] <= 3:
                print(f'    {outcome.kind} {name} --first {number}: {outcome.note}', flush=True)
    if args.out:
        put(args.out, [row], ('kind', 'when'))


def _parse(arguments: Optional[Sequence[str]]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--parts', nargs='+', choices=('damage', *EVENTS), default=('damage', *EVENTS))
    parser.add_argument('--kinds', nargs='+', choices=[*KINDS, *(name for own in EVENTS.values() for name in own)])
    parser.add_argument('--trials', type=int, default=300, help='of each kind of file (default: 300)')
    parser.add_argument('--events', type=int, default=20, help='kills, pairs, and calls of threads (default: 20)')
    parser.add_argument('--first', type=int, default=0, help='number of the first trial (default: 0)')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--keep', type=Path, metavar='DIR', help='leave the inputs here')
    parser.add_argument('--when', default='now', help="a name for the rows, such as 'before' (default: now)")
    parser.add_argument('--commit', default='', help='of the code (default: that of the checkout)')
    parser.add_argument('--out', type=Path, help='CSV file for the rows, such as benchmarks/results/soak.csv')
    return parser.parse_args(arguments)


if __name__ == '__main__':
    main()
