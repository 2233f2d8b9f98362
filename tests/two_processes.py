"""Two processes for a test, forked off a server that has imported torch and timm once."""
import multiprocessing

import torch.multiprocessing as mp

multiprocessing.set_forkserver_preload(['torch', 'timm', 'rs_timm.training'])


def run_two(function, *args):
    """Call `function(rank, *args)` in a process for each of the ranks 0 and 1; raise what one of them raises."""
    mp.start_processes(function, args, nprocs=2, start_method='forkserver')
