"""A classifier over HTTP: the answers are the session's, deadlines are kept or refused, nothing is silent."""
import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

import rs_timm
from rs_timm import cli

pytest.importorskip('fastapi')
pytest.importorskip('prometheus_client')
pytest.importorskip('onnxruntime')
uvicorn = pytest.importorskip('uvicorn')

from rs_timm.format.info import ModelInfo  # noqa: E402
from rs_timm.runtime import Session  # noqa: E402
from rs_timm.serving import create_app, measure_costs  # noqa: E402

SIZES, CLASSES = (64, 48), 6


@pytest.fixture(scope='module')
def session(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp('served') / 'tiny.onnx'
    rs_timm.export_onnx(rs_timm.switchable('test_resnet', SIZES, num_classes=CLASSES).eval(), path)
    return Session(path, 'onnxruntime', threads=1, max_pixels=200_000)


class Served:
    """An application in a thread, and a client."""

    def __init__(self, session, costs=None, **options):
        self.app = create_app(session, costs or {64: 5., 48: 3.}, name='tiny', deadline_ms=60_000., **options)
        self.socket = socket.socket(proto=socket.IPPROTO_TCP)
        self.socket.bind(('127.0.0.1', 0))
        self.port = self.socket.getsockname()[1]
        self.server = uvicorn.Server(uvicorn.Config(self.app, log_level='error', lifespan='on'))
        self.thread = threading.Thread(target=self.server.run, kwargs=dict(sockets=[self.socket]))

    def __enter__(self):
        self.thread.start()
        while not self.server.started:
            time.sleep(0.01)
        return self

    def __exit__(self, *error):
        self.server.should_exit = True
        self.thread.join()

    def ask(self, method, path, body=None, **headers):
        connection = http.client.HTTPConnection('127.0.0.1', self.port, timeout=60)
        connection.request(method, path, body, {key.replace('_', '-'): value for key, value in headers.items()})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        kind = answer.getheader('content-type', '')
        return answer.status, json.loads(data) if kind.startswith('application/json') else data, answer.headers


@pytest.fixture(scope='module')
def served(session):
    with Served(session) as served:
        yield served


def picture(size=(90, 70), seed=0):
    pixels = np.random.default_rng(seed).integers(0, 255, (6, 7, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).resize(size).save(stream, 'PNG')
    return stream.getvalue()


def test_pictures_are_classified_as_by_the_session(served, session):
    for size in (None, 64, 48):
        status, answer, _ = served.ask('POST', '/classify?topk=3' + (f'&size={size}' if size else ''), picture())
        assert status == 200 and answer['resolution'] == (size or 64) and answer['milliseconds'] > 0
        z = session(picture(), answer['resolution'])[0].astype(np.float64)
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        assert [c['index'] for c in answer['classes']] == np.argsort(-p)[:3].tolist()
        assert [c['probability'] for c in answer['classes']] == pytest.approx(np.sort(p)[::-1][:3], abs=1e-4)
        assert [c['label'] for c in answer['classes']] == [f"class {c['index']}" for c in answer['classes']]


@pytest.mark.parametrize('binary', [True, False])
def test_a_client_of_triton(served, session, binary):
    client = pytest.importorskip('tritonclient.http')
    with client.InferenceServerClient(f'127.0.0.1:{served.port}') as triton:
        assert triton.is_server_live() and triton.is_server_ready() and triton.is_model_ready('tiny')
        assert triton.get_server_metadata()['extensions'] == ['binary_tensor_data']
        metadata = triton.get_model_metadata('tiny')
        assert metadata['inputs'] == [{'name': 'images', 'datatype': 'FP32', 'shape': [-1, 3, -1, -1]}]
        for size, count in ((64, 1), (48, 3)):
            x = np.random.default_rng(size).standard_normal((count, 3, size, size), np.float32)
            images = client.InferInput('images', list(x.shape), 'FP32')
            images.set_data_from_numpy(x, binary_data=binary)
            outputs = [client.InferRequestedOutput('logits', binary_data=binary)]
            result = triton.infer('tiny', [images], outputs=outputs, request_id='7', timeout=50_000_000)
            assert result.as_numpy('logits') == pytest.approx(session.run(x), abs=1e-5)
            assert result.get_response()['id'] == '7'
        with pytest.raises(Exception, match='there is no model'):
            triton.get_model_metadata('other')


def infer(x, request=(), **changes):
    tensor = {'name': 'images', 'datatype': 'FP32', 'shape': list(np.shape(x)), 'data': np.ravel(x).tolist(), **changes}
    return json.dumps({'inputs': [tensor], **dict(request)})


def huge_picture():
    """A PNG that says it has 50,000 x 50,000 pixels; what would be decoded is not there."""
    def chunk(kind, data):
        return struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data))

    header = chunk(b'IHDR', struct.pack('>IIBBBBB', 50_000, 50_000, 8, 2, 0, 0, 0))
    return b'\x89PNG\r\n\x1a\n' + header + chunk(b'IDAT', zlib.compress(bytes(100))) + chunk(b'IEND', b'')


ONES = np.ones((1, 3, 8, 8))


@pytest.mark.parametrize('path, body, headers, status, words', [
    ('/classify', b'', {}, 400, 'no picture'),
    ('/classify', b'no picture', {}, 400, 'not a picture in a format'),
    ('/classify', picture((500, 500)), {}, 400, '500 x 500 pixels are more than the bound of 200000'),
    ('/classify', huge_picture(), {}, 400, '2500000000 pixels'),
    ('/classify?size=large', picture(), {}, 400, "size 'large'"),
    ('/classify?size=50', picture(), {}, 400, 'size 50: choose one of (64, 48)'),
    ('/classify?topk=0', picture(), {}, 400, 'topk 0'),
    ('/classify?deadline_ms=0', picture(), {}, 400, 'a deadline of'),
    ('/v2/models/tiny/infer', infer(ONES, {'parameters': {'timeout': 0}}), {}, 400, 'a deadline of 0'),
    ('/classify', picture(), {'X_Deadline_Ms': 'nan'}, 400, 'a deadline of'),
    ('/classify', picture(), {'X_Deadline_Ms': '0.1'}, 503, 'cannot be kept'),
    ('/v2/models/other/infer', infer(ONES), {}, 404, "there is no model 'other'"),
    ('/v2/models/tiny/infer', b'{', {}, 400, 'the request is no JSON'),
    ('/v2/models/tiny/infer', b'[]', {}, 400, 'one input'),
    ('/v2/models/tiny/infer', infer(ONES[:, :1]), {}, 400, 'expected [N, 3, r, r]'),
    ('/v2/models/tiny/infer', infer(ONES.repeat(9, 0)), {}, 400, 'N from 1 to 4'),
    ('/v2/models/tiny/infer', infer(ONES, datatype='INT8'), {}, 400, "'INT8': give 'images' of FP32"),
    ('/v2/models/tiny/infer', infer(ONES, data=[1, 2]), {}, 400, '2 numbers for a shape that has 192'),
    ('/v2/models/tiny/infer', infer(ONES, data=['x']), {}, 400, 'are no numbers'),
    ('/v2/models/tiny/infer', infer(ONES * np.nan), {}, 400, 'not all finite'),
    ('/v2/models/tiny/infer', infer(ONES, parameters={'binary_data_size': 99}), {}, 400, 'binary_data_size says 99'),
    ('/v2/models/tiny/infer', b'{}', {'Inference_Header_Content_Length': '-5'}, 400, 'one input'),
    ('/v2/models/tiny/infer', infer(ONES), {'Content_Encoding': 'gzip'}, 415, 'send it as it is'),
])
def test_bad_requests_get_a_status_and_a_sentence(served, path, body, headers, status, words):
    answered, answer, _ = served.ask('POST', path, body, **headers)
    assert answered == status and words in answer['error'] and '\n' not in answer['error']
    assert served.ask('POST', '/classify', picture())[0] == 200, 'the server goes on'


def test_a_body_beyond_the_bound(session):
    with Served(session, max_body=1000) as served:
        assert served.ask('POST', '/classify', bytes(1001))[0] == 413


class Slow:
    """A session whose network takes some time, and notes the size of each batch."""

    def __init__(self, session, seconds):
        self._session, self._seconds, self.calls = session, seconds, []

    def __getattr__(self, name):
        return getattr(self._session, name)

    def run(self, x, resolution=None):
        time.sleep(self._seconds[x.shape[-1]] * len(x))
        self.calls.append(len(x))
        return self._session.run(x, resolution)


def flood(served, count, deadline_ms):
    answers = []

    def one(index):
        answers.append(served.ask('POST', '/classify', picture(seed=index), X_Deadline_Ms=str(deadline_ms)))

    threads = [threading.Thread(target=one, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return answers


def test_deadlines_are_kept_or_refused_and_nothing_is_silent(session):
    slow = Slow(session, {64: .05, 48: .01})
    with Served(slow, {64: 55., 48: 15.}, target_ms=120.) as served:
        served.ask('POST', '/classify', picture())
        answers = flood(served, 40, 400)
        assert sorted({status for status, *_ in answers}) == [200, 503] and len(answers) == 40
        for status, _, headers in answers:
            if status == 503:
                assert int(headers['Retry-After']) >= 1
        late = [answer['milliseconds'] for status, answer, _ in answers if status == 200]
        assert np.median(late) < 400  # a stall of the machine delays a batch, and all that is in it
        assert {answer['resolution'] for status, answer, _ in answers if status == 200} >= {48}, 'smaller under load'
        assert max(slow.calls) > 1
        text = served.ask('GET', '/metrics')[1].decode()
        assert 'rs_timm_latency_seconds_bucket{le="0.05",resolution="48"}' in text and 'rs_timm_refused_total' in text
        assert 'rs_timm_queue 0.0' in text and 'rs_timm_deadline_missed_total' in text
        status = served.ask('GET', '/status')[1]
        assert status['queue'] == 0 and [size['resolution'] for size in status['sizes']] == [64, 48]


def test_more_than_the_smallest_size_carries_is_refused_until_it_has_passed(session):
    """Every deadline could be kept: it is the target of latency that the controller refuses for."""
    slow = Slow(session, {64: .03, 48: .03})
    with Served(slow, {64: 31., 48: 30.}, target_ms=60., max_batch=1) as served:
        answers = flood(served, 6, 60_000)
        assert served.app.state.queue.controller.resolution == 48, 'nothing is refused while a smaller size may do'
        answers += flood(served, 24, 60_000)
        refused = [(answer['error'], headers) for status, answer, headers in answers if status == 503]
        assert refused and {int(headers['Retry-After']) for _, headers in refused} == {1}, 'a second is enough here'
        assert all('more than the smallest size can serve within 60 ms' in said for said, _ in refused)
        assert len(refused) + sum(status == 200 for status, *_ in answers) == 30
        text = served.ask('GET', '/metrics')[1].decode()
        assert f'rs_timm_refused_total{{reason="overload"}} {len(refused)}.0' in text
        assert [served.ask('POST', '/classify', picture())[0] for _ in range(3)] == [200] * 3, 'it has passed'


def test_costs_that_nobody_keeps_are_corrected_by_what_batches_take(session):
    slow = Slow(session, {64: .01, 48: .01})
    with Served(slow, {64: 2.1, 48: 2.}, target_ms=1e5, max_batch=1) as served:
        for at_once, refused in ((0, False), (30, True)):
            if at_once:
                flood(served, at_once, 60_000)
            words = [answer.get('error', '') for _, answer, _ in flood(served, 30, 100)]
            assert any('cannot be kept' in said for said in words) == refused, '30 times 2 ms are 60 of 90'
        assert served.ask('POST', '/classify', picture(), X_Deadline_Ms='100')[0] == 200, 'one that need not wait'


def test_what_waits_is_answered_when_the_server_stops(session):
    slow = Slow(session, {64: .1, 48: .1})
    answers = []
    with Served(slow, {64: 100., 48: 100.}) as served:
        thread = threading.Thread(target=lambda: answers.extend(flood(served, 6, 30_000)))
        thread.start()
        time.sleep(0.25)
        served.server.should_exit = True  # as uvicorn does on SIGTERM
        thread.join()
    assert [status for status, *_ in answers] == [200] * 6


def test_a_client_that_goes_harms_nobody(session):
    slow = Slow(session, {64: .05, 48: .05})
    with Served(slow, {64: 50., 48: 50.}) as served:
        for _ in range(3):
            connection = http.client.HTTPConnection('127.0.0.1', served.port)
            connection.request('POST', '/classify', picture())
            connection.sock.close()
        assert served.ask('POST', '/classify', picture())[0] == 200


def test_costs_are_of_all_sizes_and_the_page_needs_no_other_server(session, served):
    costs = measure_costs(session, max_batch=2, runs=1)
    assert tuple(costs) == SIZES and min(costs.values()) > 0
    status, page, _ = served.ask('GET', '/')
    assert status == 200 and b'viewport' in page and b'http' not in page.replace(b'https', b'http').lower()


def test_a_port_in_use_is_said_before_anything_is_compiled(served, capsys):
    assert cli.main(['serve', 'there_is_no_such.onnx', '--port', str(served.port)]) == 2
    assert f'port {served.port}: ' in (said := capsys.readouterr().err) and 'choose another --port' in said


def test_answers_leave_without_delay(tmp_path, monkeypatch):
    """Of the sockets that it is given, asyncio sets TCP_NODELAY on those that name their protocol alone."""
    rs_timm.export_onnx(rs_timm.switchable('test_resnet', SIZES, num_classes=CLASSES).eval(), tmp_path / 'tiny.onnx')
    given = []
    monkeypatch.setattr(uvicorn.Server, 'run', lambda self, sockets: given.extend(s.proto for s in sockets))
    assert cli.main(['serve', str(tmp_path / 'tiny.onnx'), '--engine', 'onnxruntime', '--port', '0']) == 0
    assert given == [socket.IPPROTO_TCP]


def test_what_is_no_classifier(session):
    other = Slow(session, {})
    other.info = ModelInfo('net', (8,))
    with pytest.raises(ValueError, match='net is no classifier'):
        create_app(other, {8: 1.})
