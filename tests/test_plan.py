"""A plan: the choice from it against brute force, its file, and sessions and the command that go by it."""
import json
import random
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import rs_timm
from rs_timm.format.digest import set_digest
from rs_timm.format.info import ModelInfo
from rs_timm.runtime import Cascade, CascadeFit, Plan, Session, evaluate_session, make_plan
from rs_timm.runtime.policy.latency_table import Timing
from rs_timm.runtime.policy.machine import describe_machine
from rs_timm.runtime.policy.plan import DroppedPoint, PlannedModel, PlanPoint
from rs_timm.runtime.sources import ExportedFile

pytest.importorskip('onnxruntime')
onnx = pytest.importorskip('onnx')
numpy_helper = onnx.numpy_helper

ENGINE = 'onnxruntime'
CLASSES = ('cat', 'dog', 'fox')


def point(ms, accuracy, model='tiny', resolution=64, **options):
    """A point whose calls took `ms`, but for the slowest in a hundred, which took twice as long."""
    values = dict(model=model, engine=ENGINE, precision='float32', resolution=resolution,
                  network=Timing.of([int(1e6 * ms)] * 196 + [int(2e6 * ms)] * 4), accuracy=accuracy, pictures=100)
    return PlanPoint(**{**values, **options})


def plan_of(*points, **options):
    values = dict(models={name: PlannedModel(f'/nowhere/{name}.onnx', 64 * '0') for name in {p.model for p in points}},
                  points=points, dropped=(), measure='top1', reference=None, pictures=100, seconds=9., tolerance=1.,
                  threads=None, device=None, networks=None, versions={}, machine=describe_machine(),
                  measured='2026-01-01')
    return Plan(**{**values, **options})


# ---- the choice

@pytest.mark.parametrize('seed', range(5))
def test_choice_and_front_are_those_of_brute_force(seed):
    draw = random.Random(seed)
    plan = plan_of(*(point(draw.randint(1, 30) / 10, draw.randint(1, 20) * 5., madds=draw.randint(1, 9))
                     for _ in range(25)))
    front = plan.front()
    beaten = [p for p in plan.points if any(
        q.milliseconds() <= p.milliseconds() and q.accuracy >= p.accuracy and (
            q.milliseconds(), q.accuracy) != (p.milliseconds(), p.accuracy) for q in plan.points)]
    assert {(p.milliseconds(), p.accuracy) for p in front} == {
        (p.milliseconds(), p.accuracy) for p in plan.points if p not in beaten}
    assert [p.accuracy for p in front] == sorted({p.accuracy for p in front})
    for limits in (dict(ms=2.), dict(fps=700.), dict(madds=4), dict(ms=3.2, madds=5)):
        fitting = [p for p in plan.points
                   if p.network.p95_high_ms <= min(limits.get('ms', 1e9), 1e3 / limits.get('fps', 1e-9))
                   and p.madds <= limits.get('madds', 1e9)]
        if fitting:
            chosen = plan.choose(**limits)
            assert chosen in fitting and chosen.accuracy == max(p.accuracy for p in fitting)


def test_a_budget_is_compared_with_the_upper_end_of_the_p95_or_with_the_mean():
    plan = plan_of(point(1., 50.), point(2., 60., network=Timing.of([2_000_000] * 180 + [9_000_000] * 20)))
    slow = plan.points[1].network
    assert slow.p50_ms == 2. and slow.p95_ms == slow.p95_high_ms == 9. and slow.mean_ms == pytest.approx(2.7)
    assert plan.choose(ms=8).accuracy == 50. and plan.choose(ms=9).accuracy == 60.
    assert plan.choose(ms=2.7, by='mean').accuracy == 60. and plan.choose(ms=2.6, by='mean').accuracy == 50.
    edge = plan_of(point(1., 50.), point(2., 60.))
    assert (edge.points[1].network.p95_ms, edge.points[1].network.p95_high_ms) == (2., 4.)
    assert edge.choose(ms=3.9).accuracy == 50. and edge.choose(ms=4.).accuracy == 60.


@pytest.mark.parametrize('limits, words', [
    (dict(ms=0.5), r'no point of the plan fits \(at most 0\.5 ms\): the fastest, onnxruntime float32 32 px, has a p95 '
                   r"of up to 2 ms; raise the budget, or pass if_none='smallest'"),
    (dict(ms=0.5, by='mean'), r'a mean of 1\.02 ms'),
    (dict(ms=5, madds=1e6), r'a p95 of up to 2 ms and 3 million MAdds'),
    (dict(), 'needs a limit'), (dict(ms=-1), 'ms=-1'), (dict(ms=1, by='p50'), "by='p50': choose 'p95'"),
    (dict(ms=1, if_none='any'), "'any'"),
])
def test_where_nothing_fits(limits, words):
    plan = plan_of(point(1., 50., resolution=32, madds=3_000_000), point(2., 60., madds=9_000_000))
    with pytest.raises(ValueError, match=words):
        plan.choose(**limits)
    if 'no point' in words:
        assert plan.choose(**limits, if_none='smallest').resolution == 32


# ---- the file

def test_a_plan_comes_back_as_it_was_wherever_its_folder_goes(tmp_path):
    fit = CascadeFit((32, 64), {32: 0.5}, {32: 1., 64: 1.}, 'last', None, 80., 1., {32: 0.5, 64: 0.5})
    here = tmp_path / 'here'
    here.mkdir()
    models = {'tiny': PlannedModel(str(here / 'tiny.onnx'), 64 * 'a')}
    gone = DroppedPoint('tiny', 'openvino', 'bfloat16', 48, 2., 3., 55.5, 50, 'another')
    plan = plan_of(point(1., 50., precision='int8'), point(2., 60., cascade=fit), dropped=(gone,), models=models,
                   networks=str(here / 'networks'), measure='agreement', reference='the best', threads=2)
    plan.save(here / 'plan.json')
    assert Plan.load(here / 'plan.json') == plan
    here.rename(tmp_path / 'there')
    moved = Plan.load(tmp_path / 'there' / 'plan.json')
    assert moved.models['tiny'].path == str(tmp_path / 'there' / 'tiny.onnx')
    assert moved.networks == str(tmp_path / 'there' / 'networks') and moved.points == plan.points
    text = str(moved)
    assert '32-64' in text and 'behind another' in text and len(text.splitlines()) == 4


@pytest.mark.parametrize('change, words', [
    (lambda c: c.update(kind='rs_timm cascade'), "no.* file of the kind 'rs_timm plan': rs-timm plan writes one"),
    (lambda c: c.update(format=9), 'plan.json has format 9'),
    (lambda c: c.pop('points'), 'plan.json lacks points'),
    (lambda c: c.update(more=1), 'plan.json: more'),
    (lambda c: c.update(points=[]), '0 points'),
    (lambda c: c.update(measure='top5'), "measure 'top5'"),
    (lambda c: c.update(reference='x'), "'top1' with the reference 'x'"),
    (lambda c: c.update(tolerance=-1.), r'tolerance -1\.0'),
    (lambda c: c.update(seconds=-1.), r'seconds -1\.0'),
    (lambda c: c['models'].clear(), "points of 'tiny'"),
    (lambda c: c['models']['tiny'].update(digest='xyz'), r'models\.tiny: path .*64 hexadecimal'),
    (lambda c: c['points'][0].update(accuracy=101.), r'points\.0: accuracy 101'),
    (lambda c: c['points'][0].update(accuracy=float('nan')), r'points\.0\.accuracy.*finite'),
    (lambda c: c['points'][0].update(accuracy='50'), r'points\.0\.accuracy'),
    (lambda c: c['points'][0].update(resolution=0), r'points\.0: resolution 0'),
    (lambda c: c['points'][0].update(engine='abacus'), r"points\.0: engine 'abacus' is unknown: one of openvino"),
    (lambda c: c['points'][0].update(pictures=0), 'pictures 0'),
    (lambda c: c['points'][0].update(precision='int8'), 'int8 points without the folder'),
    (lambda c: c['points'][0]['network'].update(p95_ms=float('inf')), r'points\.0\.network\.p95_ms'),
    (lambda c: c['points'][0]['network'].update(p50_ms=0., p95_low_ms=0.), r'points\.0: p50 0\.0 ms'),
])
def test_what_is_no_plan(tmp_path, change, words):
    plan_of(point(1., 50.)).save(tmp_path / 'plan.json')
    content = json.loads((tmp_path / 'plan.json').read_text())
    change(content)
    (tmp_path / 'plan.json').write_text(json.dumps(content))
    with pytest.raises(ValueError, match=words) as error:
        Plan.load(tmp_path / 'plan.json')
    assert 'plan.json' in str(error.value)


# ---- sessions that go by it

@pytest.fixture(scope='module')
def files(tmp_path_factory):
    """Two networks with the same classes."""
    folder = tmp_path_factory.mktemp('files')
    torch.manual_seed(0)
    model = rs_timm.switchable('test_resnet', (64, 32), num_classes=3).eval()
    model.pretrained_cfg = dict(model.pretrained_cfg, label_names=list(CLASSES))
    for parameter in model.parameters():  # so that its answers differ between pictures
        parameter.data.normal_(0., 0.3)
    rs_timm.export_onnx(model, folder / 'tiny.onnx')
    other = onnx.load(folder / 'tiny.onnx')  # quicker than another export
    for tensor in other.graph.initializer:
        if tensor.dims == [3, model.num_features]:
            values = numpy_helper.to_array(tensor)
            tensor.CopyFrom(numpy_helper.from_array(values[::-1].copy(), tensor.name))
    set_digest(other)
    onnx.save(other, folder / 'other.onnx')
    return folder


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp('data'), np.random.default_rng(0)
    for label in CLASSES:
        (folder / 'val' / label).mkdir(parents=True)
        for number in range(8):
            colours = generator.integers(0, 255, (5, 4, 3), np.uint8)
            Image.fromarray(colours).resize((90, 70)).save(folder / 'val' / label / f'{number}.png')
    return folder


@pytest.fixture
def planned(files):
    models = {name: PlannedModel(str(files / f'{name}.onnx'), ExportedFile(files / f'{name}.onnx').digest)
              for name in ('tiny', 'other')}
    fit = CascadeFit((32, 64), {32: 0.5}, {32: 1., 64: 1.}, 'last', None, 80., 1., {32: 0.5, 64: 0.5})
    versions = Session(files / 'tiny.onnx', ENGINE).versions
    return plan_of(point(1., 50., resolution=32), point(2., 60.), point(4., 70., 'other'), point(8., 80., cascade=fit),
                   models=models, versions=versions)


PICTURE = np.random.default_rng(5).integers(0, 255, (70, 90, 3), np.uint8)


def test_a_session_moves_over_models_and_sizes(files, planned, tmp_path):
    planned.save(tmp_path / 'plan.json')
    session = Session.from_plan(tmp_path / 'plan.json', ms=4)
    alone = {name: Session(files / f'{name}.onnx', ENGINE) for name in ('tiny', 'other')}
    for ms, name, size in ((4, 'tiny', 64), (8, 'other', 64), (2, 'tiny', 32)):
        assert session.set_budget(ms=ms) == size == session.resolution
        assert (session.point.model, session.info.name) == (name, alone[name].info.name)
        np.testing.assert_array_equal(session(PICTURE), alone[name](PICTURE, size))
        assert session.preprocess(PICTURE).shape[-1] == size
    with pytest.raises(ValueError, match=r'no point of the plan fits \(at most 1 ms\): the fastest, tiny onnxruntime'):
        session.set_budget(ms=1)
    assert session.point is session.plan.points[0]
    assert session.set_budget(ms=1, if_none='smallest') == 32
    np.testing.assert_array_equal(session(PICTURE, 64), alone['tiny'](PICTURE, 64))
    session.set_resolution(48)
    np.testing.assert_array_equal(session(PICTURE), alone['tiny'](PICTURE, 48))
    assert session.resolution == 48 and session.set_budget(ms=4) == 64 == session.resolution
    cascade = Session.from_plan(planned)
    assert cascade.point.cascade is not None
    cascade.prepare()
    expected = Cascade.fitted(alone['tiny'], planned.points[3].cascade)([PICTURE, PICTURE]).logits
    np.testing.assert_array_equal(cascade([PICTURE, PICTURE]), expected)


def test_a_plan_of_elsewhere_is_named(planned):
    machine = dict(planned.machine, cores=999)
    elsewhere = replace(planned, machine=machine, versions={ENGINE: '0.1'})
    with pytest.warns(UserWarning, match=rf'measured elsewhere \(cores: 999, here \d+; {ENGINE} 0\.1, here') as caught:
        Session.from_plan(elsewhere, ms=2).set_budget(ms=8)
    assert len(caught) == 1 and caught[0].filename == __file__


def test_a_model_that_has_changed_is_an_error(planned):
    changed = {name: replace(model, digest=64 * '1') for name, model in planned.models.items()}
    with pytest.raises(ValueError, match=r'tiny\.onnx has changed since the plan was made'):
        Session.from_plan(replace(planned, models=changed), ms=2)
    with pytest.raises(TypeError, match='cannot be pickled'):
        Session.from_plan(planned, ms=2).__reduce_ex__(2)


# ---- measuring one

def test_the_accuracy_of_a_plan_is_that_of_its_sessions(files, photos):
    pictures = sorted((photos / 'val').rglob('*.png'))
    targets = [CLASSES.index(path.parent.name) for path in pictures]
    plan = make_plan([files / 'tiny.onnx', files / 'other.onnx'], pictures, targets, engines=[ENGINE],
                     precisions=['float32'], cascades=True, calls=72)
    assert not plan.dropped and plan.pictures == 24  # too few to be sure
    for name in ('tiny', 'other'):
        expected = evaluate_session(Session(files / f'{name}.onnx', ENGINE), zip(pictures, targets))
        found = {p.resolution: p for p in plan.points if p.model == name and not p.cascade}
        assert {size: p.accuracy for size, p in found.items()} == {
            size: pytest.approx(result['top1']) for size, result in expected.items()}
        assert found[64].madds == Session(files / f'{name}.onnx', ENGINE).info.madds[64]
        assert min(p.network.calls for p in plan.points) >= 72


@pytest.mark.parametrize('options, words', [
    (dict(models=[]), 'no models'),
    (dict(pictures=[]), 'no pictures'),
    (dict(targets=[0]), '1 targets for 2 pictures'),
    (dict(targets=[0, 3]), 'classes from 0 to 3: the models know 0 to 2'),
    (dict(tolerance=-1.), r'tolerance -1\.0'),
    (dict(calls=5), 'calls 5: a p95 needs at least 72'),
    (dict(precisions=['int4']), "precision 'int4' is unknown"),
    (dict(precisions=['bfloat16']), 'nothing of this can run here: onnxruntime bfloat16 of tiny is left out'),
])
def test_what_cannot_be_planned(files, options, words):
    arguments = dict(models=[files / 'tiny.onnx'], pictures=[PICTURE, PICTURE], engines=[ENGINE])
    with pytest.raises(ValueError, match=words):
        make_plan(**{**arguments, **options})


# ---- the command

def test_the_command_measures_once_and_draws(cli, files, photos, tmp_path):
    pytest.importorskip('matplotlib')
    out = tmp_path / 'out'
    command = ['plan', files / 'tiny.onnx', '--data', photos, '--engines', ENGINE, '--precisions', 'float32',
               '--calls', 72, '--ms', 1e4, '--out', out]
    status, text, err = cli(*command)
    assert status == 0, err
    assert f'24 pictures of {photos}/val; 3 classes by name' in text and ' px (at most 10000 ms)' in text
    plan = Plan.load(out / 'plan.json')
    assert plan.measure == 'top1' and {p.resolution for p in plan.points} == {64, 32}
    with Image.open(out / 'plan.png') as picture:
        assert picture.format == 'PNG' and min(picture.size) > 300
    before = (out / 'plan.jsonl').read_bytes()
    assert cli(*command)[0] == 0 and (out / 'plan.jsonl').read_bytes() == before
    assert Plan.load(out / 'plan.json').points == plan.points
    status, _, err = cli(*command, '--threads', 1)
    assert status == 2 and 'other settings (threads None, here 1): --again' in err
    assert cli(*command, '--threads', 1, '--again')[0] == 0


def test_a_command_that_is_interrupted_says_how_to_go_on(cli, files, photos, tmp_path, monkeypatch):
    def interrupted(*args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr('rs_timm.commands.plan.make_plan', interrupted)
    status, _, err = cli('plan', files / 'tiny.onnx', '--data', photos, '--out', tmp_path / 'out')
    assert status == 130 and 'plan.jsonl; the same command goes on' in err


def test_without_labels_the_command_compares_answers(cli, files, photos, tmp_path):
    status, text, err = cli('plan', files / 'tiny.onnx', '--data', photos / 'val' / 'cat', '--engines', ENGINE,
                            '--precisions', 'float32', '--sizes', 32, '--calls', 72, '--out', tmp_path / 'my.json')
    assert status == 0, err
    assert 'no labels' in text and '# accuracy is agreement with onnxruntime float32 32 px' in text
    assert Plan.load(tmp_path / 'my.json').points[0].accuracy == 100.


@pytest.mark.parametrize('options, words', [
    (['--ms', 0], '--ms 0.0: it must be positive'),
    (['--data', 'absent'], 'absent: no such file'),
    (['--class-map', 'map.txt'], "map.txt has no line for the folder 'dog'"),
    (['--device', 'nonsense'], 'nothing of this can run here: onnxruntime float32 of tiny is left out: ONNX Runtime '
                               "has no provider 'nonsense'"),
])
def test_options_that_cannot_be(cli, files, photos, tmp_path, monkeypatch, options, words):
    monkeypatch.chdir(tmp_path)
    Path('map.txt').write_text('cat\nfox\n')
    status, _, err = cli('plan', files / 'tiny.onnx', '--data', photos, '--engines', ENGINE, '--precisions', 'float32',
                         '--out', 'out', *options)
    assert status == 2 and words in err.splitlines()[-1], err


def test_classes_by_description_too():
    from rs_timm.commands.plan import _targets

    info = ModelInfo('net', (64,), num_classes=2, label_names=('n1', 'n2'), label_descriptions={'n1': 'a', 'n2': 'b'})
    assert _targets(['b/1.jpg', 'a/2.jpg'], info, None)[0] == [1, 0]
    assert _targets(['n2/1.jpg'], info, None)[0] == [1] and _targets(['c/1.jpg'], info, None)[0] is None
    assert _targets(['1.jpg'], info, None)[0] is None


def test_planning_a_file_needs_no_torch():
    code = ("import sys; sys.modules['torch'] = sys.modules['timm'] = sys.modules['torchvision'] = None\n"
            "from rs_timm.cli import main; main(['plan', 'absent.onnx', '--data', 'absent', '--out', 'out'])")
    root = Path(__file__).resolve().parent.parent
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=root)
    assert 'absent: no such file or folder' in done.stderr


@pytest.mark.parametrize('command', ['bench', 'eval', 'serve'])
def test_a_device_that_is_not_there_is_named(cli, files, photos, command):
    options = {'bench': [], 'eval': ['--data', photos], 'serve': ['--port', 0]}[command]
    status, _, err = cli(command, files / 'tiny.onnx', '--device', 'nonsense', *options)
    assert status == 2 and "no provider 'nonsense' here: it has" in err and "no device 'nonsense' on this" in err


def test_devices_that_are_there(cli, files, photos):
    """The first engine that has it: by ONNX Runtime's name of a provider, and by OpenVINO's of a device."""
    pytest.importorskip('openvino')
    for device, versions in (('CPUExecutionProvider', 'onnxruntime'), ('AUTO:CPU', 'device AUTO:CPU')):
        status, text, err = cli('bench', files / 'tiny.onnx', '--device', device, '--sizes', 32, '--repeats', 72)
        assert status == 0 and versions in text, err
    status, text, err = cli('eval', files / 'tiny.onnx', '--data', photos, '--device', 'AUTO:CPU', '--sizes', 32)
    assert status == 0 and 'AUTO:CPU' in text, err
