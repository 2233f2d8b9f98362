"""The HTTP application: Open Inference Protocol v2, pictures, metrics, and a page for people."""
import asyncio
import math
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Mapping, Optional

import numpy as np

from rs_timm import __version__
from rs_timm.format.madds import madds_of
from rs_timm.pictures import ImageError
from rs_timm.runtime.session import Session

from .protocol import INPUT, OUTPUT, read_request, write_response
from .queue import Refused, RequestQueue, probabilities

try:
    from fastapi import FastAPI, HTTPException, Request, Response
    from fastapi.responses import HTMLResponse, JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
except ImportError as error:
    raise ImportError(f"serving over HTTP needs FastAPI ({error}): pip install 'rs_timm[serve]'.") from error

__all__ = ['create_app']

_LATENCIES = (.001, .002, .005, .01, .02, .03, .05, .075, .1, .2, .5, 1., 2., 5., 10.)  # seconds


def create_app(
        session: Session,
        costs: Mapping[int, float],
        name: Optional[str] = None,
        target_ms: float = 50.,
        deadline_ms: float = 1000.,
        max_queue: int = 256,
        max_batch: int = 4,
        max_body: int = 32 << 20,
) -> FastAPI:
    """An ASGI application that serves a classifier.

    Args:
        session: the network; its `max_pixels` bounds the pictures.
        costs: resolution -> milliseconds of a picture, from `measure_costs`.
        name: of the model in URLs; None: as its file says.
        target_ms: the p95 of latency that the size is chosen for.
        deadline_ms: of requests that name none.
        max_queue: pictures that may wait; further ones are refused.
        max_batch: pictures in a request, and those that go through the network together.
        max_body: bytes of a request.

    Raises:
        ImportError: FastAPI or prometheus_client is not installed.
        ValueError: no classifier, or values out of range.
    """
    info = session.info
    if info.task != 'classification' or not info.num_classes:
        raise ValueError(f'{info.name} is no classifier: there are no classes to serve.')
    name = name or info.name
    metrics = _Metrics()
    queue = RequestQueue(session, costs, target_ms, max_queue, max_batch, metrics.observe)
    metrics.follow(queue)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.stop)  # uvicorn has answered what was asked for by now

    app = FastAPI(title='rs_timm', version=__version__, lifespan=lifespan)
    app.state.queue = queue

    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        return JSONResponse({'error': str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({'error': str(error)}, 503, {'Retry-After': str(error.retry_s)})

    @app.exception_handler(ValueError)  # ImageError is one
    async def wrong(request: Request, error: ValueError) -> Response:
        return JSONResponse({'error': str(error)}, 400)

    async def body_of(request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > max_body:
                raise HTTPException(413, f'more than the bound of {max_body} bytes')
            parts.append(part)
        return b''.join(parts)

    def deadline_of(given: Any, unit_ms: float = 1.) -> float:
        if given is None:
            return deadline_ms
        try:
            value = float(given) * unit_ms
        except (TypeError, ValueError):
            value = math.nan
        if not 0. < value < math.inf:
            raise ValueError(f'a deadline of {given!r}: give positive milliseconds')
        return value

    def check_name(given: str, version: str = '1') -> None:
        if (given, version) != (name, '1'):
            raise HTTPException(404, f'there is no model {given!r}, version {version!r}, but {name!r}, version 1')

    @app.get('/v2')
    async def server() -> Dict[str, Any]:
        return dict(name='rs_timm', version=__version__, extensions=['binary_tensor_data'])

    @app.get('/v2/health/live')
    @app.get('/v2/health/ready')
    async def health() -> Dict[str, bool]:
        return dict(live=True, ready=True)

    @app.get('/v2/models/{model}/ready')
    @app.get('/v2/models/{model}/versions/{version}/ready')
    async def model_ready(model: str, version: str = '1') -> Dict[str, Any]:
        check_name(model, version)
        return dict(name=name, ready=True)

    @app.get('/v2/models/{model}')
    @app.get('/v2/models/{model}/versions/{version}')
    async def model_metadata(model: str, version: str = '1') -> Dict[str, Any]:
        check_name(model, version)
        return dict(
            name=name, versions=['1'], platform=session.engine_name,
            inputs=[dict(name=INPUT, datatype='FP32', shape=[-1, info.channels, -1, -1])],
            outputs=[dict(name=OUTPUT, datatype='FP32', shape=[-1, info.num_classes])])

    @app.post('/v2/models/{model}/infer')
    @app.post('/v2/models/{model}/versions/{version}/infer')
    async def infer(request: Request, model: str, version: str = '1') -> Response:
        check_name(model, version)
        headers = request.headers
        if headers.get('content-encoding', 'identity') != 'identity':
            raise HTTPException(415, f"content-encoding {headers['content-encoding']}: send it as it is")
        header_length = headers.get('inference-header-content-length')
        x, asked, binary = read_request(await body_of(request), header_length, info.channels, max_batch)
        microseconds = (asked.get('parameters') or {}).get('timeout')
        given = (headers.get('x-deadline-ms'), 1.) if microseconds is None else (microseconds, 1e-3)
        answer = await queue.answer(x, deadline_of(*given))
        parameters = dict(resolution=answer.resolution, milliseconds=round(answer.milliseconds, 3))
        body, answered = write_response(_finite(answer.logits), name, asked, parameters, binary)
        return Response(body, headers=answered)

    @app.post('/classify')
    async def classify(
            request: Request, size: Optional[int] = None, topk: int = 5, deadline_ms: Optional[str] = None) -> Response:
        if size is not None and size not in queue.costs:
            raise ValueError(f'size {size}: choose one of {tuple(queue.costs)}')
        if topk < 1:
            raise ValueError(f'topk {topk}: it must be positive')
        deadline = deadline_of(deadline_ms if deadline_ms is not None else request.headers.get('x-deadline-ms'))
        body = await body_of(request)
        if not body:
            raise ImageError('no picture: send the bytes of its file as the body')
        answer = await queue.answer(body, deadline, size)
        p = probabilities(answer.logits[0])
        classes = [dict(index=int(index), label=info.label(int(index)), probability=round(float(p[index]), 6))
                   for index in np.argsort(-p, kind='stable')[:topk]]
        return JSONResponse(dict(
            classes=classes, resolution=answer.resolution, milliseconds=round(answer.milliseconds, 3)))

    @app.get('/metrics')
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    madds = {size: madds_of(session, size) for size in queue.costs}

    @app.get('/status')
    async def status() -> Dict[str, Any]:
        return dict(
            model=name, engine=session.engine_name, precision=session.precision, target_ms=target_ms,
            resolution=queue.controller.resolution, queue=len(queue), overloaded=queue.controller.overloaded,
            per_second=round(queue.controller.arrivals_per_second(), 1),
            sizes=[dict(resolution=size, milliseconds=round(cost, 2), madds=madds[size])
                   for size, cost in queue.costs.items()])

    page = Path(__file__).with_name('page.html').read_text(encoding='utf-8')

    @app.get('/', response_class=HTMLResponse)
    async def people() -> str:
        return page

    return app


def _finite(logits: np.ndarray) -> np.ndarray:
    if not np.isfinite(logits).all():
        raise HTTPException(500, 'the network answers with numbers that are not finite')
    return logits


class _Metrics:
    """What Prometheus asks for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._latency = Histogram('rs_timm_latency_seconds', 'From arrival to answer', ['resolution'],
                                  buckets=_LATENCIES, registry=self.registry)
        self._refused = Counter('rs_timm_refused', 'Requests that were refused', ['reason'], registry=self.registry)
        self._missed = Counter('rs_timm_deadline_missed', 'Answers after their deadline', registry=self.registry)

    def follow(self, queue: RequestQueue) -> None:
        for name, help_text, value in (
                ('rs_timm_queue', 'Pictures that wait', lambda: len(queue)),
                ('rs_timm_resolution', 'Size in use, in pixels', lambda: queue.controller.resolution)):
            Gauge(name, help_text, registry=self.registry).set_function(value)

    def observe(self, refused: Optional[str] = None, resolution: int = 0, milliseconds: float = 0.,
                kept: bool = True) -> None:
        if refused is not None:
            self._refused.labels(refused).inc()
            return
        self._latency.labels(str(resolution)).observe(milliseconds / 1e3)
        if not kept:
            self._missed.inc()
