"""What does a server that moves the resolution keep, over HTTP, when more comes than the largest size can carry?

`rs-timm serve` in a process of its own; a client in this one sends photographs at random times (Poisson, fixed seed,
open loop: it does not wait for answers) at 0.5, 1, 2 and 3 times what the server carries at the largest size, which is
measured first, over HTTP. Each request has a deadline. The same requests go to the server at whatever size it chooses,
at the fixed largest and at the fixed smallest size, and to a plain server: FastAPI, the same session of the same file
at the largest size, no queue and no controller. All share one machine with the client; latency counts from the planned
time, in the client. Counted are answers in time and right, late ones, refusals (503), and whatever got no answer.

With --replicas N: two or more processes of Ray Serve on this machine, twelve requests always in progress, and one of
the processes is killed on the way. Printed, not kept.

HTTP's own price: photographs of 100 kB, one after the other, to the server and to a session in this process, in turns.

    python -m benchmarks.serving --data DIR [--model rs_efficientnet_lite0] [--seconds 6] [--rounds 2] [--replicas 2]

DIR holds val/CLASS/*. Needs aiohttp, which tritonclient[http] brings. About six minutes.
"""
import argparse
import asyncio
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Sequence, Set, Tuple

import numpy as np
from PIL import Image

from benchmarks.load_curve import arrivals, p95
from benchmarks.runtime.networks import labelled, load, measure_one, parser_of_one
from benchmarks.timing import seconds
from rs_timm.runtime import Session

PLAIN = 'plain server'
PATIENCE = 60  # seconds, after which a request got no answer
Rows = List[Dict[str, Any]]


class Outcome(NamedTuple):
    """What became of a request."""

    latency_ms: float
    status: int  # of HTTP; 0: no answer
    resolution: int = 0
    index: int = -1  # of the first class


@dataclass(frozen=True)
class Policy:
    """Where requests go, and what they ask for."""

    name: str
    url: str
    query: str = ''
    process: int = 0


async def ask(client: Any, policy: Policy, body: bytes, deadline_ms: float, since: float) -> Outcome:
    """Send a picture, and wait for the answer. `since`: when it should have been sent, `time.perf_counter()`."""
    try:
        async with client.post(f'{policy.url}/classify?topk=1{policy.query}', data=body,
                               headers={'X-Deadline-Ms': f'{deadline_ms:g}'}) as response:
            content = await response.read()
            latency = 1e3 * (time.perf_counter() - since)
            if response.status != 200:
                return Outcome(latency, response.status)
            answer = json.loads(content)
            return Outcome(latency, 200, answer['resolution'], answer['classes'][0]['index'])
    except Exception:  # of any kind: what counts is that nothing came
        return Outcome(1e3 * (time.perf_counter() - since), 0)


def client_session() -> Any:
    import aiohttp
    return aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(PATIENCE))


async def open_loop(
        policy: Policy,
        planned: Sequence[float],
        bodies: Sequence[bytes],
        deadline_ms: float,
) -> List[Outcome]:
    """Send body number i `planned[i]` seconds after the start, whatever has become of those before it."""
    async with client_session() as client:
        await ask(client, policy, bodies[0], 1e3 * PATIENCE, time.perf_counter())
        start, tasks = time.perf_counter() + 0.05, []
        for due, body in zip(planned, bodies):
            await asyncio.sleep(max(0., start + due - time.perf_counter()))
            tasks.append(asyncio.create_task(ask(client, policy, body, deadline_ms, start + due)))
        return list(await asyncio.gather(*tasks))


async def capacity(policy: Policy, bodies: Sequence[bytes], seconds: float, at_once: int = 3) -> float:
    """Requests a second that are answered while so many clients send one after the other, few enough for any target."""
    async with client_session() as client:
        start, answered = time.perf_counter(), 0

        async def one(first: int) -> None:
            nonlocal answered
            number = first
            while time.perf_counter() - start < seconds:
                number += 1
                outcome = await ask(client, policy, bodies[number % len(bodies)], 1e3 * PATIENCE, time.perf_counter())
                answered += outcome.status == 200

        await asyncio.gather(*(one(first * len(bodies) // at_once) for first in range(at_once)))
        return answered / (time.perf_counter() - start)


def row_of(outcomes: Sequence[Outcome], targets: np.ndarray, deadline_ms: float) -> Dict[str, Any]:
    """Counts of the outcomes of requests, whose classes are `targets` [N]."""
    latency, status, resolution, index = (np.array(column) for column in zip(*outcomes))
    answered = status == 200
    in_time = answered & (latency <= deadline_ms)
    return dict(
        requests=len(outcomes),
        in_time=int(in_time.sum()),
        right_in_time=int((in_time & (index == targets)).sum()),
        late=int((answered & ~in_time).sum()),
        refused=int((status == 503).sum()),
        failed=int((~answered & (status != 503) & (status != 0)).sum()),
        silent=int((status == 0).sum()),
        p50_ms=float(np.median(latency[answered])) if answered.any() else 0.,
        p95_ms=p95(latency[answered]) if answered.any() else 0.,
        mean_resolution=float(resolution[answered].mean()) if answered.any() else 0.,
    )


def photograph_of(body: bytes, least: int) -> bytes:
    """The photograph as a JPEG of at least so many bytes, but as few as possible: enlarged, at quality 90."""
    stream, scale = io.BytesIO(), 1.
    with Image.open(io.BytesIO(body)) as picture:
        while stream.tell() < least:
            scale *= 1.1
            stream = io.BytesIO()
            size = (int(picture.width * scale), int(picture.height * scale))
            picture.convert('RGB').resize(size, Image.Resampling.BICUBIC).save(stream, 'JPEG', quality=90)
    return stream.getvalue()


async def overhead(policy: Policy, session: Session, bodies: Sequence[bytes], size: int, calls: int) -> Rows:
    """Milliseconds of a picture over HTTP and in this process, one after the other, in turns of ten.

    And those of a core: in the server over HTTP, else in this process. What else the machine does is not in them.
    """
    times: Dict[str, List[float]] = {'HTTP': [], 'in process': []}
    worked = dict.fromkeys(times, 0.)
    async with client_session() as client:
        for turn in range(-(-calls // 10) + 1):
            for name, taken in times.items():
                process = policy.process if name == 'HTTP' else os.getpid()
                worked[name] -= cpu_seconds(process) * bool(turn)
                for number in range(10 if turn else 3):  # the first turn warms up
                    body, start = bodies[number % len(bodies)], time.perf_counter()
                    if name == 'HTTP':
                        outcome = await ask(client, policy, body, 1e3 * PATIENCE, start)
                        assert outcome.status == 200, outcome
                    else:
                        session(body, size)[0].argmax()
                    if turn:
                        taken.append(1e3 * (time.perf_counter() - start))
                worked[name] += cpu_seconds(process) * bool(turn)
    return [dict(question='overhead', policy=name, requests=len(taken), p50_ms=float(np.median(taken)),
                 p95_ms=p95(np.array(taken)), core_ms=1e3 * worked[name] / len(taken)) for name, taken in times.items()]


def cpu_seconds(process: int) -> float:
    """Seconds that a process has had of all cores so far, in steps of a hundredth."""
    fields = Path(f'/proc/{process}/stat').read_text().rpartition(')')[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf('SC_CLK_TCK')  # utime, stime: proc(5)


@contextmanager
def server(*command: str) -> Iterator[Tuple[str, int]]:
    """The URL of a server, from what it prints, and its process, which ends with the context."""
    process = subprocess.Popen([sys.executable, '-m', *command], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        for line in process.stdout:
            if found := re.search(r'http://\S+', line):
                print(f'# {command[0]}: {found[0]}', flush=True)
                yield found[0], process.pid
                return
        raise SystemExit(f'{" ".join(command)} did not start')
    finally:
        process.terminate()
        process.wait()


def plain_server(file: str, engine: str, precision: str, threads: int) -> None:
    """Serve a file as one would in a dozen lines: a worker thread of FastAPI's for each request."""
    import socket

    import uvicorn
    from fastapi import FastAPI, Request
    from starlette.concurrency import run_in_threadpool

    session = Session(file, engine, precision, threads)
    session.prepare([session.resolution])
    app = FastAPI()

    @app.post('/classify')
    async def classify(request: Request) -> Dict[str, Any]:
        logits = await run_in_threadpool(session, await request.body())
        index = int(logits[0].argmax())
        return dict(classes=[dict(index=index, label=session.info.label(index))], resolution=session.resolution)

    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # the same as in rs_timm/commands/serve.py
        listener.bind(('127.0.0.1', 0))
        print(f'http://127.0.0.1:{listener.getsockname()[1]}', flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level='warning')).run(sockets=[listener])


def _replicas(session: Session, args: argparse.Namespace) -> None:
    """Kill one of several replicas while requests come, and print what became of them."""
    from ray import serve

    from rs_timm.predict.on_ray import connected
    from rs_timm.serving import deployment

    files, _ = labelled(args.data / 'val', session.info.label_names, args.pictures)
    deadline = args.deadline or 5000.
    with connected():
        serve.start(http_options=dict(host='127.0.0.1', port=8321), logging_config=dict(log_level='ERROR'))
        serve.run(deployment(session.source.path, args.replicas, threads=args.threads,  # type: ignore[attr-defined]
                             target_ms=args.target * deadline,
                             session=dict(engine=args.engine, precision=session.precision)), route_prefix='/')
        policy = Policy('Ray Serve', 'http://127.0.0.1:8321')
        asyncio.run(_kill_one(policy, [file.read_bytes() for file in files], deadline, args.seconds))
        serve.shutdown()


async def _kill_one(policy: Policy, bodies: Sequence[bytes], deadline_ms: float, seconds: float) -> None:
    """Kill a replica after so many seconds, and print its statuses until as many after another has its place."""
    when, statuses = 'before', Counter[Any]()
    before = _replica_processes()
    async with client_session() as client:

        async def one(number: int) -> None:
            while when != 'at the end':
                number += 1
                outcome = await ask(client, policy, bodies[number % len(bodies)], deadline_ms, time.perf_counter())
                in_time = 'in time' if outcome.latency_ms <= deadline_ms else 'late'
                statuses[when, outcome.status, in_time] += 1

        tasks = [asyncio.create_task(one(first * len(bodies) // 12)) for first in range(12)]
        await asyncio.sleep(seconds)
        os.kill(min(before), signal.SIGKILL)
        when, killed = 'after the kill', time.perf_counter()
        while not _replica_processes() - before:
            await asyncio.sleep(0.1)
        print(f'# {len(before)} processes; one in the place of that killed after {time.perf_counter() - killed:.1f} s')
        await asyncio.sleep(3. * seconds)
        when = 'at the end'
        await asyncio.gather(*tasks)
    for (part, status, in_time), count in sorted(statuses.items()):
        print(f'{part:15} status {status} {in_time:8} {count:6}')


def _replica_processes() -> Set[int]:
    """Of Ray Serve's replicas on this machine."""
    found = set()
    for process in Path('/proc').glob('[0-9]*'):
        with suppress(OSError):
            if process.joinpath('cmdline').read_bytes().startswith(b'ray::ServeReplica:'):
                found.add(int(process.name))
    return found


def _compare(session: Session, args: argparse.Namespace) -> Rows:
    before = os.getloadavg()[0]
    files, targets = labelled(args.data / 'val', session.info.label_names, args.pictures)
    bodies = [file.read_bytes() for file in files]
    file = str(session.source.path)  # type: ignore[attr-defined]
    largest, smallest = session.resolutions[0], session.resolutions[-1]
    session.prepare([largest])
    times = [seconds(lambda body=body: session(body, largest)) for body in bodies[:50]]  # type: ignore[misc]
    deadline = args.deadline or 1e4 * float(np.median(times))
    print(f'# {largest} px takes {1e3 * np.median(times):.1f} ms in process; deadline {deadline:.1f} ms', flush=True)
    options = dict(engine=args.engine, precision=session.precision, threads=str(args.threads))
    ours = ('rs_timm', 'serve', file, '--port', '0', '--target-ms', f'{args.target * deadline:g}',
            *(word for name, value in options.items() for word in (f'--{name}', value)))
    with server(*ours) as (url, pid), server('benchmarks.serving', '--plain', file, *options.values()) as (plain, _):
        fixed = Policy(f'fixed {largest} px', url, f'&size={largest}', pid)
        policies = [Policy('chosen size', url), fixed, Policy(f'fixed {smallest} px', url, f'&size={smallest}'),
                    Policy(PLAIN, plain)]
        hundred = [photograph_of(body, 100_000) for body in bodies[:10]]
        rows = asyncio.run(overhead(fixed, session, hundred, largest, args.calls))
        for row in rows:
            print(row, flush=True)
        carried = asyncio.run(capacity(fixed, bodies, args.seconds))
        print(f'# {largest} px carries {carried:.1f} a second', flush=True)
        outcomes: Dict[Any, List[Outcome]] = {}
        asked: Dict[float, List[int]] = {load: [] for load in args.loads}
        for turn in range(args.rounds):
            for load in args.loads:
                rate = load * carried
                planned = arrivals(lambda t, rate=rate: rate, rate, args.seconds, args.seed + turn)  # type: ignore[misc]
                order = np.random.default_rng(args.seed + turn).integers(0, len(bodies), len(planned))
                asked[load] += order.tolist()
                for policy in policies[::-1] if turn % 2 else policies:
                    got = asyncio.run(open_loop(policy, planned, [bodies[i] for i in order], deadline))
                    outcomes.setdefault((policy.name, load), []).extend(got)
                    print(f'{load:4g} times, {policy.name:15}', row_of(got, targets[order], deadline), flush=True)
    for (name, load), got in outcomes.items():
        rows.append(dict(question='load', policy=name, load=load, **row_of(got, targets[asked[load]], deadline)))
    common: Dict[str, Any] = {name: version(name) for name in ('fastapi', 'uvicorn')}
    common.update(capacity=carried, deadline_ms=deadline, seconds=args.seconds, rounds=args.rounds, seed=args.seed,
                  note=f'load average {before:.1f} before and {os.getloadavg()[0]:.1f} at the end, on {os.cpu_count()} '
                       'cores')
    return [dict(row, **common) for row in rows]


def main(arguments: Optional[Sequence[str]] = None) -> None:
    parser = parser_of_one(__doc__, 'serving')
    parser.add_argument('--seconds', type=float, default=6., help='of each load')
    parser.add_argument('--rounds', type=int, default=2, help='of all loads')
    parser.add_argument('--loads', type=float, nargs='+', default=[0.5, 1., 2., 3.], help='times what 224 px carries')
    parser.add_argument('--deadline', type=float, help='ms (default: ten times a picture at the largest size)')
    parser.add_argument('--replicas', type=int, metavar='N', help='kill one of N replicas instead')
    parser.add_argument('--target', type=float, default=0.5, help="the server's p95, of the deadline")
    parser.add_argument('--pictures', type=int, default=500, help='different ones')
    parser.add_argument('--calls', type=int, default=200, help="for HTTP's own price")
    parser.add_argument('--seed', type=int, default=0)
    parser.set_defaults(model='rs_efficientnet_lite0', threads=1)
    args = parser.parse_args(arguments)
    if args.replicas is None:
        measure_one(args, _compare)
        return
    with tempfile.TemporaryDirectory() as folder:
        network = load(args.model, Path(folder))
        _replicas(Session(network.file, args.engine, args.precision, args.threads), args)


if __name__ == '__main__':
    plain_server(*sys.argv[2:5], int(sys.argv[5])) if sys.argv[1:2] == ['--plain'] else main()  # type: ignore[misc]
