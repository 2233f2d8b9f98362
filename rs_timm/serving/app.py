"""The HTTP application: Open Inference Protocol v2, pictures, metrics, and a page for people."""
import asyncio
import math
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, AsyncIterator, Dict, Mapping, Optional

import numpy as np

from rs_timm import __version__
from rs_timm.crops import crop_at
from rs_timm.format.madds import madds_of
from rs_timm.pictures import ImageError
from rs_timm.predict.batch import most_probable
from rs_timm.runtime.session import Session

from .protocol import INPUT, OUTPUT, read_request, write_response
from .queue import Refused, RequestQueue

try:
    from fastapi import APIRouter, FastAPI, HTTPException, Request, Response
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import HTMLResponse, JSONResponse
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from starlette.requests import ClientDisconnect
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
    if session.info.task != 'classification' or not session.info.num_classes:
        raise ValueError(f'{session.info.name} is no classifier: there are no classes to serve.')
    metrics = _Metrics()
    queue = RequestQueue(session, costs, target_ms, max_queue, max_batch, metrics.observe)
    metrics.follow(queue)
    service = _Service(session, queue, name or session.info.name, deadline_ms, max_body)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(queue.stop)  # the server has answered what was asked for by now

    app = FastAPI(  # without the pages that would load their scripts from elsewhere
        title='rs_timm', version=__version__, lifespan=lifespan, docs_url=None, redoc_url=None)
    app.state.queue = queue
    _answer_errors(app)
    for router in (_protocol(service), _pictures(service), _state(service, metrics)):
        app.include_router(router)
    return app


@dataclass(frozen=True)
class _Service:
    """What the routes share."""

    session: Session
    queue: RequestQueue
    name: str
    deadline_ms: float
    max_body: int

    async def body(self, request: Request) -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > self.max_body:
                raise HTTPException(413, f'more than the bound of {self.max_body} bytes')
            parts.append(part)
        return b''.join(parts)

    def deadline(self, given: Any, unit_ms: float = 1.) -> float:
        """Milliseconds; what was given may be anything that came in a request."""
        if given is None:
            return self.deadline_ms
        try:
            value = float(given) * unit_ms
        except (TypeError, ValueError):
            value = math.nan
        if not 0. < value < math.inf:
            raise ValueError(f'a deadline of {given!r}: give positive milliseconds')
        return value

    def check(self, name: str, version: str) -> None:
        if (name, version) != (self.name, '1'):
            raise HTTPException(
                404, f'there is no model {name!r}, version {version!r}, but {self.name!r}, version 1')


def _answer_errors(app: FastAPI) -> None:
    """A status and one sentence for whatever the routes raise."""
    @app.exception_handler(HTTPException)
    async def failed(request: Request, error: HTTPException) -> Response:
        return JSONResponse({'error': str(error.detail)}, error.status_code, error.headers)

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return JSONResponse({'error': str(error)}, 503, {'Retry-After': str(error.retry_s)})

    @app.exception_handler(RequestValidationError)  # by FastAPI, of parameters in the URL
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return JSONResponse({'error': f"{first['loc'][-1]} {first.get('input')!r}: {first['msg']}"}, 400)

    @app.exception_handler(ValueError)  # ImageError is one
    async def wrong(request: Request, error: ValueError) -> Response:
        return JSONResponse({'error': str(error)}, 400)

    @app.exception_handler(ClientDisconnect)  # in the middle of its body
    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)


def _protocol(service: _Service) -> APIRouter:
    """The Open Inference Protocol v2."""
    router, info = APIRouter(prefix='/v2'), service.session.info

    @router.get('')
    async def server() -> Dict[str, Any]:
        return dict(name='rs_timm', version=__version__, extensions=['binary_tensor_data'])

    @router.get('/health/live')
    @router.get('/health/ready')
    async def health() -> Dict[str, bool]:
        return dict(live=True, ready=True)

    @router.get('/models/{model}/ready')
    @router.get('/models/{model}/versions/{version}/ready')
    async def model_ready(model: str, version: str = '1') -> Dict[str, Any]:
        service.check(model, version)
        return dict(name=model, ready=True)

    @router.get('/models/{model}')
    @router.get('/models/{model}/versions/{version}')
    async def model_metadata(model: str, version: str = '1') -> Dict[str, Any]:
        service.check(model, version)
        return dict(
            name=model, versions=['1'], platform=service.session.engine_name,
            inputs=[dict(name=INPUT, datatype='FP32', shape=[-1, info.channels, -1, -1])],
            outputs=[dict(name=OUTPUT, datatype='FP32', shape=[-1, info.num_classes])])

    @router.post('/models/{model}/infer')
    @router.post('/models/{model}/versions/{version}/infer')
    async def infer(request: Request, model: str, version: str = '1') -> Response:
        service.check(model, version)
        headers = request.headers
        if headers.get('content-encoding', 'identity') != 'identity':
            raise HTTPException(415, f"content-encoding {headers['content-encoding']}: send it as it is")
        x, asked, binary = read_request(
            await service.body(request), headers.get('inference-header-content-length'), info.channels,
            service.queue.max_batch)
        microseconds = (asked.get('parameters') or {}).get('timeout')
        given = (headers.get('x-deadline-ms'), 1.) if microseconds is None else (microseconds, 1e-3)
        answer = await service.queue.answer(x, service.deadline(*given))
        if not np.isfinite(answer.logits).all():
            raise HTTPException(500, 'the network answers with numbers that are not finite')
        parameters = dict(resolution=answer.resolution, milliseconds=round(answer.milliseconds, 3))
        body, answered = write_response(answer.logits, model, asked, parameters, binary)
        return Response(body, headers=answered)

    return router


def _pictures(service: _Service) -> APIRouter:
    """Files of pictures."""
    router, costs, info = APIRouter(), service.queue.costs, service.session.info

    @router.post('/classify')
    async def classify(
            request: Request, size: Optional[int] = None, topk: int = 5, deadline_ms: Optional[str] = None) -> Response:
        if size is not None and size not in costs:
            raise ValueError(f'size {size}: choose one of {tuple(costs)}')
        if topk < 1:
            raise ValueError(f'topk {topk}: it must be positive')
        deadline = service.deadline(request.headers.get('x-deadline-ms') if deadline_ms is None else deadline_ms)
        body = await service.body(request)
        if not body:
            raise ImageError('no picture: send the bytes of its file as the body')
        answer = await service.queue.answer(body, deadline, size)
        classes = [dict(index=index, label=info.label(index), probability=round(p, 6))
                   for index, p in most_probable(answer.logits[0], topk)]
        return JSONResponse(dict(
            classes=classes, resolution=answer.resolution, milliseconds=round(answer.milliseconds, 3)))

    return router


def _state(service: _Service, metrics: '_Metrics') -> APIRouter:
    """What the server does, for Prometheus and for people."""
    router, session, queue = APIRouter(), service.session, service.queue
    page = Path(__file__).with_name('page.html').read_text(encoding='utf-8')
    crop_pct = session.preprocessing.crop_pct if session.info.crop_mode == 'center' else None
    sizes = [dict(resolution=size, milliseconds=round(cost, 2), madds=madds_of(session, size),
                  crop=crop_pct and crop_at(crop_pct, size)) for size, cost in queue.costs.items()]

    @router.get('/metrics')
    async def scrape() -> Response:
        return Response(generate_latest(metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @router.get('/status')
    async def status() -> Dict[str, Any]:
        controller = queue.controller
        return dict(
            model=service.name, engine=session.engine_name, precision=session.precision,
            target_ms=controller.target_ms, resolution=controller.resolution, queue=len(queue),
            overloaded=controller.overloaded, answered=metrics.answered, refused=metrics.refused, sizes=sizes)

    @router.get('/', response_class=HTMLResponse)
    async def people() -> str:
        return page

    return router


class _Metrics:
    """What Prometheus asks for."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.answered = self.refused = 0
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
            self.refused += 1
            self._refused.labels(refused).inc()
            return
        self.answered += 1
        self._latency.labels(str(resolution)).observe(milliseconds / 1e3)
        if not kept:
            self._missed.inc()
