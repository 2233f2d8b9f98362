"""What every benchmark row states: device, dtype, threads and versions."""
import os
import platform
import subprocess
from pathlib import Path
from typing import Dict

import timm
import torch

import rs_timm
from rs_timm.runtime.policy.machine import describe_machine

RESULTS = Path(__file__).resolve().parent / 'results'

_CODE = (':(top)', ':(top,exclude)benchmarks/results', ':(top,exclude)*.md')  # what a result depends on


def describe(device: str = 'cpu', dtype: str = 'float32') -> Dict[str, str]:
    """Columns for a results table, in order."""
    name = describe_machine()['cpu'] if device == 'cpu' else torch.cuda.get_device_name(device)
    return dict(
        device=f'{device} ({name})',
        dtype=dtype,
        threads=str(torch.get_num_threads()),
        python=platform.python_version(),
        torch=torch.__version__,
        timm=timm.__version__,
        rs_timm=rs_timm.__version__,
    )


def keep_kernels() -> None:
    """For programs in which two networks take turns on a CPU: call it before the first convolution.

    oneDNN keeps the last 1024 kernels that it made. Those of two training steps at five resolutions are more: each side
    would push out the other's, and make its own anew at about half a millisecond each, which neither does alone.
    """
    os.environ.setdefault('ONEDNN_PRIMITIVE_CACHE_CAPACITY', '8192')


def commit() -> str:
    """The commit of the checkout, with a + behind it when code differs from it; 'unknown' outside of one.

    Results and documents do not count: the rows of one run must not make the next one look unclean.
    """
    def git(*arguments: str) -> str:
        done = subprocess.run(['git', *arguments], cwd=RESULTS.parent, capture_output=True, text=True, check=True)
        return done.stdout

    try:
        changed = git('status', '--porcelain', '-uno', '--', *_CODE)
        return git('rev-parse', '--short=10', 'HEAD').strip() + '+' * bool(changed)
    except (OSError, subprocess.CalledProcessError):
        return 'unknown'
