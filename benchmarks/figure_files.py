"""Figures as files that are the same whenever they are drawn."""
from pathlib import Path
from typing import List

from matplotlib import rc_context
from matplotlib.figure import Figure

__all__ = ['save']


def save(figure: Figure, path: Path) -> List[Path]:
    """Write PATH.png and PATH.svg; the same figure always gives the same SVG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_name(f'{path.name}{suffix}') for suffix in ('.png', '.svg')]
    with rc_context({'svg.hashsalt': path.name, 'svg.fonttype': 'path'}):
        figure.savefig(files[0], dpi=130, metadata=dict(Software=None))
        figure.savefig(files[1], metadata=dict(Date=None, Creator=None))
    return files
