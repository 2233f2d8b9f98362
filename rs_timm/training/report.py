"""What a run tells: a table per epoch, a CSV file, a picture of the curves, TensorBoard if asked."""
import csv
import io
import logging
import math
from pathlib import Path
from typing import Any, Dict, List, Sequence

from .checkpoint import write_atomically

__all__ = ['epoch_table', 'plot_curves', 'write_csv']

Rows = Sequence[Dict[str, Any]]  # one for each epoch and resolution, as made by `Trainer`

_logger = logging.getLogger(__name__)


def write_csv(rows: Rows, path: Path) -> None:
    """Write all rows; the file is replaced whole, so that it always agrees with the checkpoint."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]) if rows else [], lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(path, stream.getvalue().encode())


def epoch_table(rows: Rows) -> str:
    """One line on the last epoch: losses, seconds and top-1 in percent per resolution."""
    last = [row for row in rows if row['epoch'] == rows[-1]['epoch']]
    first = last[0]
    top1 = '  '.join(f"{row['resolution']}{_at(row)}: {row['top1']:.2f}" for row in last)
    return (f"epoch {first['epoch']}  {first['seconds']:.0f} s  loss {first['train_loss']:.3f} (classification "
            f"{first['train_classification']:.3f}, ensemble {first['train_ensemble']:.3f}, distillation "
            f"{first['train_distillation']:.3f})  top-1 {top1}")


def _at(row: Dict[str, Any]) -> str:
    return '' if row['size'] == row['resolution'] else f"@{row['size']}"


def plot_curves(rows: Rows, path: Path) -> None:
    """Losses, top-1 per resolution and ensemble weights over the epochs, as a picture; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning('no picture of the curves: it needs matplotlib, pip install "rs_timm[plots]"')
        return
    figure = Figure(figsize=(13, 4), layout='constrained')
    loss, top1, alpha = figure.subplots(1, 3)
    names = list(dict.fromkeys(row['resolution'] for row in rows))
    series = {name: [row for row in rows if row['resolution'] == name] for name in names}
    first = series[names[0]]
    for part in ('loss', 'classification', 'ensemble', 'distillation'):
        loss.plot([row['epoch'] for row in first], [row[f'train_{part}'] for row in first], label=part)
    for name, own in series.items():
        top1.plot([row['epoch'] for row in own], [row['top1'] for row in own], label=str(name))
        if not math.isnan(own[-1]['alpha']):
            alpha.plot([row['epoch'] for row in own], [row['alpha'] for row in own], label=str(name))
    for axes, label in ((loss, 'training loss'), (top1, 'top-1, %'), (alpha, 'weight in the ensemble')):
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    write_atomically(path, buffer.getvalue())
