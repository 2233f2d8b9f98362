"""Memory that is freed stays with the process after `keep_freed_memory`: no page of it is faulted in twice."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason="glibc's malloc is a matter of Linux")

ROOT = Path(__file__).resolve().parent.parent
MIB = 64  # more than glibc ever keeps of its own accord: tensors above 32 MiB are mapped anew each time
CODE = f'''
import resource, sys, torch
from rs_timm.training.cpu.memory import keep_freed_memory

done = keep_freed_memory() if sys.argv[1] == 'keep' else None

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros({MIB} << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
print(done, min(faults() for _ in range(3)) * resource.getpagesize() >> 20)
'''


def run(how, **environment):
    own = {key: value for key, value in os.environ.items() if 'MALLOC' not in key and key != 'GLIBC_TUNABLES'}
    out = subprocess.run(
        [sys.executable, '-c', CODE, how], env=dict(own, OMP_NUM_THREADS='1', **environment), cwd=ROOT, check=True,
        capture_output=True, text=True)
    done, mib = out.stdout.split()
    return done, int(mib)


def test_pages_are_faulted_in_once():
    if os.confstr('CS_GNU_LIBC_VERSION') is None:
        pytest.skip('another C library than glibc')
    assert run('leave') == ('None', MIB)
    done, mib = run('keep')
    assert done == 'True' and mib < MIB / 8


def test_settings_of_the_user_stay():
    assert run('keep', MALLOC_TRIM_THRESHOLD_='131072')[0] == 'False'
