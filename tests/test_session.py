"""A session gives what the torch model gives: on every engine, at every size, in every batch, from every thread."""
import copy
import os
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from PIL import Image

import rs_timm
from rs_timm.data import ImageError, image_transform
from rs_timm.format.digest import DIGEST_KEY, graph_digest
from rs_timm.runtime import Session, networks
from rs_timm.runtime.networks import powers_of_two
from rs_timm.runtime.session import NotFiniteError
from tests.exported import network

onnx = pytest.importorskip('onnx')
RESOLUTIONS = (64, 48, 32)
UNSEEN = (40, 72, 24)  # between two sets, above and below all
ENGINES = ('openvino', 'onnxruntime', 'torch')


def installed(engine):
    pytest.importorskip(engine)
    return engine


@pytest.fixture(params=ENGINES)
def engine(request):
    return installed(request.param)


@pytest.fixture(scope='module')
def model(random_statistics):
    return network(random_statistics)


@pytest.fixture(scope='module')
def file(model, tmp_path_factory):
    return rs_timm.export_onnx(model, tmp_path_factory.mktemp('exported') / 'model.onnx')


@pytest.fixture
def source(engine, model, file):
    """What the engine serves: the torch engine takes the model, the others the file."""
    return model if engine == 'torch' else file


def batch(count, resolution, seed=0):
    return np.random.default_rng(seed).standard_normal((count, 3, resolution, resolution), np.float32)


@torch.no_grad()
def expected(model, x):
    return model(torch.from_numpy(np.ascontiguousarray(x))).numpy()


def assert_close(actual, reference, tolerance=1e-4):
    assert actual.dtype == np.float32 and actual.shape == reference.shape
    assert np.abs(actual - reference).max() < tolerance * max(1., np.abs(reference).max())


# ---- parity


@pytest.mark.parametrize('resolution', RESOLUTIONS + UNSEEN)
def test_logits_are_those_of_torch(engine, source, model, resolution):
    session = Session(source, engine, threads=2)
    x = batch(3, resolution)
    assert_close(session.run(x), expected(model, x))
    assert_close(session(x, resolution), expected(model, x))


@pytest.mark.parametrize('count', [1, 2, 3, 5, 37])
def test_every_batch(engine, source, model, count):
    session = Session(source, engine)
    x = batch(count, 32)
    assert_close(session.run(x), expected(model, x))
    session.prepare((32,), count)
    assert_close(session.run(x), expected(model, x))


def test_parts_are_powers_of_two_that_cover_the_batch():
    for count in (*range(1, 130), 1000):
        parts = powers_of_two(count)
        assert [start for start, _ in parts] == [0, *(stop for _, stop in parts[:-1])] and parts[-1][1] == count
        sizes = [stop - start for start, stop in parts]
        assert all(size in (1, 2, 4, 8, 16, 32) for size in sizes) and sizes == sorted(sizes, reverse=True)
        assert len(sizes) == count // 32 + bin(count % 32).count('1')


def test_bfloat16_is_near(model, file):
    x = batch(8, 64)
    reference = expected(model, x)
    for engine in ('openvino', 'torch'):
        try:
            session = Session(model if engine == 'torch' else file, installed(engine), 'bfloat16')
        except ValueError:
            pytest.skip('this CPU has no bfloat16')
        logits = session.run(x)
        assert logits.dtype == np.float32
        assert 0 < np.abs(logits - reference).max() < 0.05 * np.abs(reference).max()


# ---- the dial


def test_the_resolution_is_a_dial(file, model, engine, source):
    session = Session(source, engine)
    assert session.resolutions == RESOLUTIONS and session.resolution == 64
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    for resolution in (64, 40, 32):
        session.set_resolution(resolution)
        assert session.resolution == resolution
        x = session.preprocess(picture)
        assert x.shape == (1, 3, resolution, resolution)
        assert_close(session(picture), expected(model, x))
        assert_close(session(picture, 48), expected(model, session.preprocess(picture, 48)))
        assert_close(session(batch(1, 24)), expected(model, batch(1, 24))), 'a ready batch follows its own size'
    assert session.resolution == 32


def test_a_network_is_compiled_once(engine, source, monkeypatch):
    session = Session(source, engine)
    compiled = []
    compile = session._engine.compile
    monkeypatch.setattr(session._engine, 'compile', lambda *args: compiled.append(args) or compile(*args))
    session.prepare()
    assert len(compiled) == 3
    for resolution in RESOLUTIONS * 3:
        session.run(batch(1, resolution))
    assert len(compiled) == 3
    session.run(batch(1, 40))
    session.run(batch(1, 40))
    assert len(compiled) == 4


def test_preprocessing_is_that_of_the_model(model, file, tmp_path):
    config = timm.data.resolve_model_data_config(model)
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8))
    image.save(tmp_path / 'a.png')
    session = Session(file)
    for resolution in (64, 40):
        assert np.array_equal(session.preprocess(tmp_path / 'a.png', resolution)[0],
                              image_transform(config, resolution)(image).numpy())
    logits = session([tmp_path / 'a.png', image, np.asarray(image)], 48)
    assert logits.shape == (3, 7) and np.abs(logits - logits[0]).max() < 1e-5


# ---- threads


def test_concurrent_calls_give_what_serial_ones_give(engine, source):
    """All threads start on a fresh session, so that they also race to compile."""
    session, serial = Session(source, engine, threads=1), Session(source, engine, threads=1)
    jobs = [(resolution, seed) for seed in range(12) for resolution in RESOLUTIONS]
    with ThreadPoolExecutor(6) as pool:
        results = list(pool.map(lambda job: session.run(batch(1 + job[1] % 2, *job)), jobs))
    for job, logits in zip(jobs, results):
        assert np.array_equal(logits, serial.run(batch(1 + job[1] % 2, *job))), job


def test_results_are_not_overwritten_by_the_next_call(engine, source):
    session = Session(source, engine)
    first = session.run(batch(1, 32, seed=1))
    kept = first.copy()
    session.run(batch(1, 32, seed=2))
    assert np.array_equal(first, kept)


# ---- where the model comes from


def test_a_torch_model_is_a_snapshot(engine, model):
    own = rs_timm.switchable('test_resnet', resolutions=RESOLUTIONS, num_classes=7).eval()
    own.load_state_dict(model.state_dict())
    session = Session(own, engine)
    with torch.no_grad():
        for parameter in own.parameters():
            parameter.zero_()
    for resolution in (64, 40):
        assert_close(session.run(batch(1, resolution)), expected(model, batch(1, resolution)))


def test_the_temporary_file_goes_with_the_session(model):
    installed('onnxruntime')
    session = Session(model, 'onnxruntime')
    path = session._source.path
    assert path.is_file()
    del session
    assert not path.exists() and not path.parent.exists()


def test_a_model_in_training_mode_is_left_so(engine, model):
    own = rs_timm.switchable('test_resnet', resolutions=RESOLUTIONS, num_classes=7).train()
    Session(own, engine).run(batch(1, 32))
    assert own.training and all(p.requires_grad for p in own.parameters())


def test_networks_of_torch_share_their_weights(model):
    session = Session(model, 'torch')
    first, second = session._source.network(64), session._source.network(40)
    own = {id(p) for m in first.modules() if isinstance(m, torch.nn.BatchNorm2d) for p in m.parameters()}
    parameters = dict(second.named_parameters())
    for name, parameter in first.named_parameters():
        assert (parameter is parameters[name]) == (id(parameter) not in own), name


WITHOUT_TORCH = """
import sys
sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None
import numpy as np
from rs_timm.runtime import Session
session = Session({file!r}, {engine!r})
picture = np.full((100, 80, 3), 128, np.uint8)
for resolution in (64, 40):
    np.save({out!r} + str(resolution), session(picture, resolution))
loaded = [name for name, module in sys.modules.items() if module and name.partition('.')[0] in ('torch', 'timm')]
assert not loaded, loaded
"""


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime'])
def test_serving_needs_no_torch(engine, file, model, tmp_path):
    code = WITHOUT_TORCH.format(file=str(file), engine=installed(engine), out=str(tmp_path / 'logits'))
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert done.returncode == 0, done.stderr
    for resolution in (64, 40):
        x = Session(file, engine).preprocess(np.full((100, 80, 3), 128, np.uint8), resolution)
        assert_close(np.load(tmp_path / f'logits{resolution}.npy'), expected(model, x))


# ---- errors


@pytest.mark.parametrize('given, error, message', [
    ('rs_resnet18', FileNotFoundError, 'rs_resnet18: no such.*not the name of a model.*export rs_resnet18 FILE'),
    ('nowhere/model.onnx', FileNotFoundError, 'no such file'),
    (42, ValueError, 'path of an exported file, or a torch model, not a int'),
])
def test_what_is_no_model(given, error, message):
    with pytest.raises(error, match=message):
        Session(given)


def test_files_that_rs_timm_did_not_write(tmp_path, file):
    other = tmp_path / 'other.onnx'
    other.write_bytes(b'not ONNX at all' * 10)
    with pytest.raises(ValueError, match='other.onnx'):
        Session(other)
    proto = onnx.load(file)
    del proto.metadata_props[:]
    onnx.save(proto, other)
    with pytest.raises(ValueError, match='has no metadata'):
        Session(other)


def test_the_torch_engine_takes_no_file(file):
    with pytest.raises(ValueError, match='runs torch models, not exported files'):
        Session(file, 'torch')


def test_a_plain_torch_model(engine):
    with pytest.raises(ValueError, match='switchable'):
        Session(timm.create_model('test_resnet'), engine)


def test_a_model_of_features(engine):
    model = rs_timm.convert_switchable_bn(timm.create_model('test_resnet', features_only=True), RESOLUTIONS)
    with pytest.raises(ValueError, match='gives features'):
        Session(model, engine)


@pytest.mark.parametrize('x, resolution, message', [
    (np.zeros((3, 64, 64)), None, r'shape \[3, 64, 64\]: expected \[N, 3, r, r\]'),
    (np.zeros((1, 1, 64, 64)), None, r'expected \[N, 3, r, r\]'),
    (np.zeros((1, 3, 64, 48)), None, r'expected \[N, 3, r, r\]'),
    (np.zeros((0, 3, 64, 64)), None, 'N, r positive'),
    (np.float32(3), None, 'ready batch of shape'),
    (np.zeros((1, 3, 64, 64)), 48, 'ready batch of 64 px at resolution 48'),
])
def test_ready_batches_of_another_shape(file, x, resolution, message):
    with pytest.raises(ValueError, match=message):
        Session(file).run(x, resolution)


def test_resolutions_that_cannot_be(file):
    session = Session(file)
    for resolution in (0, -1, 1.5, 'big', True):
        for call in (session.set_resolution, lambda r: session.prepare((r,)), lambda r: session.preprocess([], r)):
            with pytest.raises(ValueError, match='not a positive whole number'):
                call(resolution)
    with pytest.raises(ValueError, match='not a positive'):
        session.prepare((64,), batch=0)


def test_a_damaged_picture_is_named(file, tmp_path):
    (tmp_path / 'bad.jpg').write_bytes(b'\xff\xd8\xff')
    with pytest.raises(ImageError, match='bad.jpg'):
        Session(file)(tmp_path / 'bad.jpg')


# ---- what is not a prediction, and what a session outlives


def test_a_network_that_gives_nan_predicts_nothing(engine):
    own = rs_timm.switchable('test_resnet', resolutions=RESOLUTIONS, num_classes=7).eval()
    with torch.no_grad():
        own.get_classifier().bias[3] = float('nan')
    with pytest.raises(NotFiniteError, match='not finite at 48 px in float32, for 2 of 2 pictures') as info:
        Session(own, engine).run(batch(2, 48))
    assert info.value.pictures == (0, 1)


def test_of_a_batch_the_pictures_that_are_not_finite_are_named(file):
    installed('onnxruntime')
    x = batch(3, 32)
    x[1, 0, 0, 0] = np.inf
    with pytest.raises(NotFiniteError) as info:
        Session(file, 'onnxruntime').run(x)
    assert info.value.pictures == (1,) and np.isfinite(info.value.logits[[0, 2]]).all()


@pytest.mark.parametrize('change', [
    lambda file: file.write_bytes(file.read_bytes()[:-1] + b'0'), lambda file: file.unlink(),
    lambda file: file.write_bytes(b''), lambda file: file.rename(file.with_name('b.onnx'))])
def test_a_file_that_changes_is_refused_and_never_mixed(file, model, tmp_path, change):
    own = tmp_path / 'a.onnx'
    own.write_bytes(file.read_bytes())
    session = Session(own)
    session.run(batch(1, 48))
    change(own)
    assert_close(session.run(batch(1, 48)), expected(model, batch(1, 48)))
    with pytest.raises(ValueError, match='a.onnx is gone or has changed since the session was opened'):
        session.run(batch(1, 64))


def test_a_session_follows_no_change_of_folder(file, model, tmp_path, monkeypatch):
    (tmp_path / 'a.onnx').write_bytes(file.read_bytes())
    monkeypatch.chdir(tmp_path)
    session = Session('a.onnx')
    monkeypatch.chdir('/')
    assert_close(session.run(batch(1, 48)), expected(model, batch(1, 48)))


def test_arrays_that_cannot_be_written(engine, source, model):
    x = np.frombuffer(batch(2, 48).tobytes(), np.float32).reshape(2, 3, 48, 48)
    assert not x.flags.writeable
    assert_close(Session(source, engine).run(x), expected(model, x))


def test_a_session_is_not_pickled_or_copied(file):
    for use in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match='make a Session of it there'):
            use(Session(file))


def test_the_network_that_was_not_used_for_longest_makes_room(engine, source, model, monkeypatch):
    session = Session(source, engine, max_networks=2)
    compiled = []
    compile = session._engine.compile
    monkeypatch.setattr(session._engine, 'compile', lambda *args: compiled.append(args) or compile(*args))
    for size, count in ((64, 1), (48, 2), (64, 2), (32, 3), (64, 3), (48, 4)):  # 32 takes the place of 48, not of 64
        assert_close(session.run(batch(1, size)), expected(model, batch(1, size)))
        assert len(compiled) == count and len(session._networks.compiled) <= 2
    for limit in (0, -1, 1.5):
        with pytest.raises(ValueError, match='max_networks'):
            Session(source, engine, max_networks=limit)


def test_large_batches_go_through_in_parts_on_every_engine(engine, source, model, monkeypatch):
    monkeypatch.setattr(networks, '_PIXELS', 5 * 32 * 32)
    session, given = Session(source, engine), []
    compile = session._engine.compile

    def counting(*args):
        network = compile(*args)
        return lambda x: given.append(len(x)) or network(x)

    monkeypatch.setattr(session._engine, 'compile', counting)
    assert_close(session.run(batch(13, 32)), expected(model, batch(13, 32)))
    assert sum(given) == 13 and max(given) <= 8


FORKED = """
import os, sys, threading
import numpy as np
from rs_timm.runtime import Session
session = Session({file!r}, {engine!r}, threads=2)
session.run(np.zeros((1, 3, 64, 64), np.float32))
child = os.fork()
if not child:
    threading.Timer(60, os._exit, (3,)).start()  # hangs
    calls = (lambda: session.run(np.zeros((1, 3, 64, 64), np.float32)), lambda: session.prepare((48,)),
             lambda: session([np.zeros((99, 99, 3), np.uint8)] * 2))
    for call in calls:
        try:
            call()
        except RuntimeError as error:
            assert 'forked' in str(error)
        else:
            os._exit(4)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, 'fork'), reason='no fork')
def test_a_forked_process_gets_an_error_instead_of_hanging(file):
    code = FORKED.format(file=str(file), engine=installed('openvino'))
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', code], capture_output=True, text=True,
                          cwd=Path(__file__).resolve().parent.parent)
    assert done.returncode == 0, done.stderr


def test_an_interrupted_request_is_not_used_while_it_runs():
    """An exception between its start and its end, as out of a signal handler."""
    installed('openvino')
    from rs_timm.runtime.engines._openvino import _Requests

    class Request:
        def __init__(self):
            self.done = True

        def set_input_tensor(self, tensor):
            assert self.done, 'it runs'

        def start_async(self):
            self.done = False

        def wait(self):
            if interrupt:
                raise KeyboardInterrupt
            self.done = True

        def wait_for(self, timeout):
            return self.done

        def get_output_tensor(self):
            return SimpleNamespace(data=np.zeros(1))

    made = []
    requests = _Requests(SimpleNamespace(create_infer_request=lambda: made.append(Request()) or made[-1]))
    interrupt = True
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt):
            requests(batch(1, 32))
    interrupt = False
    requests(batch(1, 32)), requests(batch(1, 32))
    assert len(made) == 4 and requests._free[0] not in made[:3]


def largest_weight(graph):
    return max(graph.graph.initializer, key=lambda tensor: len(tensor.raw_data))


def flip_weight(graph):
    tensor = largest_weight(graph)
    tensor.raw_data = tensor.raw_data[:-1] + bytes([tensor.raw_data[-1] ^ 1])


def move_stride(graph):
    node = next(node for node in graph.graph.node if node.op_type == 'Conv')
    next(a for a in node.attribute if a.name == 'strides').ints[:] = [3, 3]


def forge_digest(graph):
    entry = next(entry for entry in graph.metadata_props if entry.key == DIGEST_KEY)
    entry.value = ''


@pytest.mark.parametrize('damage', [
    flip_weight, move_stride, forge_digest, lambda graph: largest_weight(graph).dims.append(2)])
def test_a_file_that_computes_something_else_is_refused(file, tmp_path, damage):
    installed('onnxruntime')
    graph = onnx.load(file)
    damage(graph)
    onnx.save(graph, tmp_path / 'damaged.onnx')
    with pytest.raises(ValueError, match='damaged.onnx is damaged, or some tool has changed it'):
        Session(tmp_path / 'damaged.onnx', 'onnxruntime')
    assert Session(tmp_path / 'damaged.onnx', 'onnxruntime', check_digest=False).resolutions == RESOLUTIONS


def test_the_digest_is_of_values_alone(file, model, tmp_path):
    """Weights beside the file or as lists of floats, other metadata, an earlier version without a digest: all serve."""
    installed('onnxruntime')
    graph = onnx.load(file)
    digest = graph_digest(graph)
    tensor = largest_weight(graph)
    values = onnx.numpy_helper.to_array(tensor).reshape(-1).tolist()
    tensor.ClearField('raw_data')
    tensor.float_data.extend(values)
    graph.metadata_props.add(key='colour', value='blue')
    assert graph_digest(graph) == digest == graph_digest(rs_timm.export.onnx_model(model))
    onnx.save(graph, tmp_path / 'lists.onnx')
    onnx.save(onnx.load(file), tmp_path / 'beside.onnx', save_as_external_data=True, location='beside.bin')
    del graph.metadata_props[1:]
    onnx.save(graph, tmp_path / 'old.onnx')
    for name in ('lists', 'beside', 'old'):
        session = Session(tmp_path / f'{name}.onnx', 'onnxruntime')
        assert_close(session.run(batch(1, 48)), expected(model, batch(1, 48)))
    beside = bytearray((tmp_path / 'beside.bin').read_bytes())
    beside[-1] ^= 64
    (tmp_path / 'beside.bin').write_bytes(beside)
    with pytest.raises(ValueError, match='beside.onnx is damaged'):
        Session(tmp_path / 'beside.onnx', 'onnxruntime')


def test_what_an_engine_cannot_run_is_one_sentence(file, tmp_path):
    installed('onnxruntime')
    broken = onnx.load(file)
    next(node for node in broken.graph.node if node.op_type == 'Relu').op_type = 'Rellu'
    onnx.save(broken, tmp_path / 'broken.onnx')
    with pytest.raises(ValueError, match='onnxruntime cannot run the network of .*broken.onnx for 64 px: .*Rellu'):
        Session(tmp_path / 'broken.onnx', 'onnxruntime', check_digest=False).run(batch(1, 64))


def test_what_openvino_has_compiled_is_kept(file, model, tmp_path):
    installed('openvino')
    kept = []
    for _ in range(2):
        session = Session(file, 'openvino', cache_dir=tmp_path, device='AUTO')
        assert_close(session.run(batch(1, 48)), expected(model, batch(1, 48)))
        kept.append({path.name: path.stat().st_mtime_ns for path in (tmp_path / 'openvino').iterdir()})
    assert kept[0] == kept[1] != {}
    with pytest.raises(ValueError, match='cannot run the network of .* for 48 px: .*COLOUR'):
        Session(file, 'openvino', device_options={'COLOUR': 'blue'}).run(batch(1, 48))


@pytest.mark.parametrize('name, old', [('float32', 'fp32'), ('bfloat16', 'bf16')])
def test_old_names_of_precisions_go_on_working(model, name, old):
    with pytest.warns(DeprecationWarning, match=f'{old}.* is called .{name}. now'):
        assert Session(model, 'torch', old).precision == name


# ---- one network for all sizes


@pytest.mark.parametrize('engine', ['openvino', 'onnxruntime'])
def test_shared_memory_is_one_network_for_all_sizes(engine, file, model):
    session = Session(file, installed(engine), memory='shared')
    for count, resolution in ((1, 64), (3, 40), (2, 24), (1, 64), (5, 72)):
        x = batch(count, resolution)
        assert_close(session.run(x), expected(model, x))
    session.prepare()
    assert len(session._networks.compiled) == 1


def test_torch_shares_anyway(model):
    x = batch(2, 48)
    assert_close(Session(model, 'torch', memory='shared').run(x), expected(model, x))


def test_shared_memory_of_a_graph_that_is_told_the_resolution(model, tmp_path):
    file = rs_timm.export_onnx(model, tmp_path / 'told.onnx', choice='input')
    with pytest.raises(ValueError, match="needs a graph that takes the resolution from the size of its images"):
        Session(file, memory='shared')
    assert_close(Session(file).run(batch(2, 40)), expected(model, batch(2, 40)))


@pytest.mark.parametrize('name', [name for name in ENGINES if name != 'torch'])  # which runs no files
def test_a_file_of_one_resolution(model, file, tmp_path, name):
    engine = installed(name)
    onnx.save(rs_timm.runtime.extract_onnx(onnx.load(file), 48), tmp_path / 'plain.onnx')
    for memory in ('speed', 'shared'):
        session = Session(tmp_path / 'plain.onnx', engine, memory=memory)
        assert session.resolutions == (48,) and session.resolution == 48
        assert_close(session.run(batch(2, 48)), expected(model, batch(2, 48)))
        with pytest.raises(ValueError, match='plain network for 48 px alone, not for 64'):
            session.set_resolution(64)
        with pytest.raises(ValueError, match='plain network for 48 px alone, not for 64'):
            session.run(batch(1, 64))


@pytest.mark.parametrize('kwargs, message', [
    (dict(memory='small'), 'memory .small. is unknown: choose one of speed, shared'),
    (dict(precision='int8', memory='shared', calibration=['a.jpg']), 'activations differ between resolutions'),
    (dict(precision='int8'), 'needs pictures to calibrate with'),
    (dict(precision='int8', calibration=[]), 'calibration is empty'),
    (dict(calibration=['a.jpg']), "is for precision='int8', not for 'float32'"),
    (dict(engine='onnxruntime', cache_dir='somewhere'), 'onnxruntime in float32 has neither'),
])
def test_options_that_do_not_go_together(file, kwargs, message):
    with pytest.raises(ValueError, match=message):
        Session(file, **kwargs)


# ---- budget


def test_a_budget_sets_the_resolution(file):
    session = Session(file)
    madds = session.info.madds
    assert session.set_budget(madds=madds[48]) == session.resolution == 48
    assert session.set_budget(madds=madds[48] - 1) == 32
    assert session.set_budget(madds=madds[64], step=8) == 64
    assert session.set_budget(madds=1, if_none='smallest') == 32
    with pytest.raises(ValueError, match='no resolution fits'):
        session.set_budget(madds=1)
    assert session.resolution == 32, 'an error changes nothing'
