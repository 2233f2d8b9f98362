"""Serving an exported network without torch: what the file says, its plain network per resolution, and engines.

Names are imported when they are first asked for, so that each use needs no more than its own packages.
"""
from importlib import import_module
from typing import TYPE_CHECKING, Any, List

if TYPE_CHECKING:
    from rs_timm.format.graph import read_info, read_model, specialise
    from rs_timm.format.info import ModelInfo

    from .images import Preprocessing
    from .policy.budget import choose_resolution
    from .policy.cascade import Cascade
    from .policy.cascade_fit import CascadeFit, fit_cascade
    from .policy.latency import LatencyTable, measure
    from .policy.load import LoadController
    from .session import Session

__all__ = [
    'Cascade',
    'CascadeFit',
    'LatencyTable',
    'LoadController',
    'ModelInfo',
    'Preprocessing',
    'Session',
    'choose_resolution',
    'fit_cascade',
    'measure',
    'read_info',
    'read_model',
    'specialise',
]

_HOMES = {  # module -> the public names that live there
    'rs_timm.runtime.policy.budget': ('choose_resolution',),
    'rs_timm.runtime.policy.cascade': ('Cascade',),
    'rs_timm.runtime.policy.cascade_fit': ('CascadeFit', 'fit_cascade'),
    'rs_timm.format.graph': ('read_info', 'read_model', 'specialise'),
    'rs_timm.runtime.images': ('Preprocessing',),
    'rs_timm.format.info': ('ModelInfo',),
    'rs_timm.runtime.policy.latency': ('LatencyTable', 'measure'),
    'rs_timm.runtime.policy.load': ('LoadController',),
    'rs_timm.runtime.session': ('Session',),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Import the home of a public name when it is first asked for (PEP 562)."""
    if name not in __all__:
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    value = globals()[name] = getattr(import_module(_HOME_OF[name]), name)
    return value


def __dir__() -> List[str]:
    return sorted({*globals(), *__all__})
