"""Two processes for a test, forked off a server that has imported torch and timm once (conftest.py says so)."""
import os
import socket
from multiprocessing import get_context

import torch.multiprocessing as mp


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def run_two(function, *args):
    """Call `function(rank, *args)` in a process for each of the ranks 0 and 1; raise what one of them raises."""
    mp.start_processes(function, args, nprocs=2, start_method='forkserver')


def start_two(function, *args, **kwargs):
    """Start `function(*args, **kwargs)` in two processes that find what torchrun tells its own, and return them."""
    port = free_port()
    processes = [get_context('forkserver').Process(target=_as_torchrun, args=(rank, port, function, args, kwargs))
                 for rank in range(2)]
    for process in processes:
        process.start()
    return processes


def _as_torchrun(rank, port, function, args, kwargs):
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                      MASTER_PORT=str(port))
    function(*args, **kwargs)
