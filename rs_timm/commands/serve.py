"""rs-timm serve: a classifier over HTTP, at the size that keeps the deadlines of its requests."""
import argparse
import socket

from PIL import Image

from rs_timm.pictures import MAX_PIXELS

from .arguments import add_model_arguments, model_source, positive_int
from .serving import add_engine_arguments, engine_options, open_model, open_session

__all__ = ['run', 'serve_arguments']


def serve_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `rs-timm serve`."""
    parser.description = (
        'Serve a classifier: POST /classify takes the bytes of a picture, /v2 speaks the Open Inference Protocol (as '
        "Triton's clients do), /metrics is for Prometheus, / is a page for people. SIGTERM answers what waits.")
    add_model_arguments(parser, also="; or a file that 'rs-timm export' wrote (.onnx), which needs no PyTorch")
    parser.add_argument('--host', default='127.0.0.1', help='default: 127.0.0.1, this machine alone')
    parser.add_argument('--port', type=int, default=8000, help='default: 8000; 0: a free one')
    parser.add_argument('--target-ms', type=float, default=50., metavar='T',
                        help='p95 of latency that the size is chosen for (default: 50)')
    parser.add_argument('--deadline-ms', type=float, default=1000., metavar='T',
                        help='of requests that name none (default: 1000)')
    parser.add_argument('--max-queue', type=positive_int, default=256, metavar='N',
                        help='pictures that may wait (default: 256)')
    parser.add_argument('--max-batch', type=positive_int, default=4, metavar='N',
                        help='pictures that go through the network together (default: 4)')
    parser.add_argument('--max-body', type=positive_int, default=32 << 20, metavar='BYTES',
                        help='of a request (default: 32 MiB)')
    parser.add_argument('--max-pixels', type=positive_int, default=MAX_PIXELS, metavar='N',
                        help=f'of a picture (default: {MAX_PIXELS})')
    add_engine_arguments(parser.add_argument_group('engine'))
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    try:
        import uvicorn

        from rs_timm.serving import create_app, measure_costs
    except ImportError as error:
        raise ImportError(f"serving over HTTP needs more packages ({error}): pip install 'rs_timm[serve]'.") from error
    for name in ('target_ms', 'deadline_ms'):
        if not 0. < getattr(args, name) < float('inf'):
            raise ValueError(f"--{name.replace('_', '-')} {getattr(args, name)}: give positive milliseconds.")
    family = socket.AF_INET6 if ':' in args.host else socket.AF_INET
    # asyncio sends without delay (TCP_NODELAY) on sockets that name their protocol alone; others wait 40 ms for an ACK
    with socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((args.host, args.port))  # before anything is compiled
            listener.listen()  # without it, the port is not taken yet
        except (OSError, OverflowError) as error:
            raise ValueError(f'{args.host}, port {args.port}: {error}; choose another --port.') from error
        session = open_session(open_model(model_source(args)), engine_options(args))
        session.max_pixels = Image.MAX_IMAGE_PIXELS = args.max_pixels  # the latter is Pillow's own bound
        costs = measure_costs(session, args.max_batch)
        app = create_app(session, costs, None, args.target_ms, args.deadline_ms, args.max_queue, args.max_batch,
                         args.max_body)
        sizes = ', '.join(f'{size} px {cost:.1f} ms' for size, cost in costs.items())
        print(f'# {session.info.name} on {session.engine_name}, {session.precision}: {sizes}')
        print(f'# http://{args.host}:{listener.getsockname()[1]}', flush=True)
        uvicorn.Server(uvicorn.Config(app, log_level='warning', lifespan='on')).run(sockets=[listener])
    return 0
