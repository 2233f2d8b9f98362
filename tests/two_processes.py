"""Two processes for a test, forked off a server that has imported torch and timm once (conftest.py says so)."""
import os
import socket
from multiprocessing import get_context

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


def run_two(function, *args):
    """Call `function(rank, *args)` in the two processes of a group; raise what one of them raises."""
    mp.start_processes(_in_a_group, (free_port(), function, args), nprocs=2, start_method='forkserver')


def _in_a_group(rank, port, function, args):
    torch.set_num_threads(1)
    dist.init_process_group('gloo', init_method=f'tcp://127.0.0.1:{port}', rank=rank, world_size=2)
    try:
        function(rank, *args)
    finally:
        dist.destroy_process_group()


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
