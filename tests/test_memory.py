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
import resource, torch
from rs_timm.training.cpu.memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.zeros({MIB} << 20, dtype=torch.uint8).fill_(1)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

for keep in (lambda: None, keep_freed_memory):
    done = keep()
    faults()
    print(done, min(faults() for _ in range(3)) * resource.getpagesize() >> 20)
'''


def run(**environment):
    """What `keep_freed_memory` returned and the MiB that are faulted in, before and after it."""
    own = {key: value for key, value in os.environ.items() if 'MALLOC' not in key and key != 'GLIBC_TUNABLES'}
    out = subprocess.run(
        [sys.executable, '-c', CODE], env=dict(own, OMP_NUM_THREADS='1', **environment), cwd=ROOT, check=True,
        capture_output=True, text=True)
    return [(done, int(mib)) for done, mib in map(str.split, out.stdout.splitlines())]


def test_pages_are_faulted_in_once():
    if os.confstr('CS_GNU_LIBC_VERSION') is None:
        pytest.skip('another C library than glibc')
    before, (done, mib) = run()
    assert before == ('None', MIB)
    assert done == 'True' and mib < MIB / 8


def test_settings_of_the_user_stay():
    assert run(MALLOC_TRIM_THRESHOLD_='131072')[1][0] == 'False'
