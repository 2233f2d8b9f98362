"""The description of a machine, for measurements that hold on it."""
import os
import platform
from pathlib import Path
from typing import Any, Dict, List, Mapping, Optional

__all__ = ['describe_machine', 'machine_differences']

_CPUINFO = Path('/proc/cpuinfo')
_CPU_MAX = Path('/sys/fs/cgroup/cpu.max')
# what makes the kernels of an engine differ; virtual machines often hide the processor's name, never these
_INSTRUCTIONS = (
    'avx2', 'avx512f', 'avx_vnni', 'avx512_vnni', 'avx512_bf16', 'amx_bf16', 'amx_int8', 'asimd', 'asimddp', 'i8mm',
    'bf16', 'sve',
)
_SAME_SPEED = ('cpu', 'architecture', 'instructions', 'cores', 'cpu_quota')  # where these differ, so do milliseconds


def describe_machine() -> Dict[str, Any]:
    """The processor and what this process may use of it, as values that JSON has.

    >>> machine = describe_machine()
    >>> machine['cores'] >= 1 and isinstance(machine['cpu'], str)
    True

    Returns:
        'cpu' (name), 'architecture', 'instructions' (those of interest that it has), 'cores' (logical ones that this
        process may use), 'cpu_quota' (cores that its cgroup may use, None without a limit), 'system', 'python'.
    """
    fields = _first_processor()
    flags = (fields.get('flags') or fields.get('Features') or '').split()
    return dict(
        cpu=fields.get('model name') or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        instructions=[name for name in _INSTRUCTIONS if name in flags],
        cores=len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1,
        cpu_quota=_cpu_quota(),
        system=platform.system(),
        python=platform.python_version(),
    )


def machine_differences(measured: Mapping[str, Any], here: Mapping[str, Any]) -> List[str]:
    """List the differences of two machines that decide speed, as in 'cores: 2, here 16'.

    >>> machine_differences({'cpu': 'A', 'cores': 2}, {'cpu': 'A', 'cores': 16})
    ['cores: 2, here 16']
    """
    return [f'{key}: {measured.get(key)}, here {here.get(key)}'
            for key in _SAME_SPEED if measured.get(key) != here.get(key)]


def _first_processor() -> Dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo; empty where there is none."""
    fields: Dict[str, str] = {}
    if _CPUINFO.is_file():
        for line in _CPUINFO.read_text(errors='replace').splitlines():
            if not line.strip():
                break
            key, _, value = line.partition(':')
            fields[key.strip()] = value.strip()
    return fields


def _cpu_quota() -> Optional[float]:
    """Cores that the process may use on average before it is throttled (cgroup version 2); None: no limit known."""
    try:
        quota, period = _CPU_MAX.read_text().split()
        return None if quota == 'max' else round(int(quota) / int(period), 3)
    except (OSError, ValueError):
        return None
