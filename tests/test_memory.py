"""Memory that is freed stays with the process after `keep_freed_memory`: no page of it is faulted in twice."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not sys.platform.startswith('linux'), reason="glibc's malloc is a matter of Linux")

FILE = Path(__file__).resolve().parent.parent / 'rs_timm/training/cpu/memory.py'
MIB = 64  # more than glibc ever keeps of its own accord: blocks above 32 MiB are mapped anew each time
CODE = f'''
import resource, runpy
keep_freed_memory = runpy.run_path({str(FILE)!r})['keep_freed_memory']

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    bytes({MIB} << 20).replace(b'0', b'1')  # a copy in memory of malloc
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
        [sys.executable, '-c', CODE], env=dict(own, **environment), check=True, capture_output=True, text=True)
    return [(done, int(mib)) for done, mib in map(str.split, out.stdout.splitlines())]


def test_pages_are_faulted_in_once():
    if os.confstr('CS_GNU_LIBC_VERSION') is None:
        pytest.skip('another C library than glibc')
    before, (done, mib) = run()
    assert before == ('None', MIB)
    assert done == 'True' and mib < MIB / 8


def test_settings_of_the_user_stay():
    assert run(MALLOC_TRIM_THRESHOLD_='131072')[1][0] == 'False'
