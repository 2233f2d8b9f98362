"""The reports of a run: a bar and a line an epoch, a CSV file, a picture of the curves, TensorBoard if asked."""
import csv
import io
import logging
import math
import sys
import time
from pathlib import Path
from typing import Any, Dict, Optional, Sequence, Tuple

from tqdm import tqdm

from rs_timm.atomic import write_bytes

__all__ = ['LOSSES', 'Reporter', 'epoch_line', 'plot_curves', 'write_csv']

LOSSES = ('loss', 'classification', 'ensemble', 'distillation')

Rows = Sequence[Dict[str, Any]]  # one for each epoch and resolution, as made by `Trainer`

_logger = logging.getLogger(__name__)


class Reporter:
    """Shows how a run goes and writes log.csv.

    Args:
        folder: where the files go.
        progress: show a bar where the standard error is a terminal, else log a line a minute.
        tensorboard: write event files too.

    Raises:
        ValueError: TensorBoard is asked for and not installed.
    """

    def __init__(self, folder: Path, progress: bool = True, tensorboard: bool = False) -> None:
        self.folder = folder
        self.progress = progress
        self.bar: Optional[tqdm] = None
        self.logged_at = time.monotonic()
        self.events = _event_writer(folder) if tensorboard else None

    def update(self, epoch: int, done: int, updates: int, losses: Dict[str, float]) -> None:
        """After an update: `losses` are the means of the epoch (from 0) so far, after `done` of `updates`."""
        if not self.progress:
            return
        if sys.stderr.isatty():
            if self.bar is None or self.bar.total != updates or done < self.bar.n:
                self.bar = tqdm(total=updates, initial=done - 1, leave=False)
            self.bar.set_description(f'epoch {epoch + 1}', refresh=False)
            self.bar.set_postfix(loss=f"{losses['loss']:.3f}", refresh=False)
            self.bar.update(done - self.bar.n)
        elif time.monotonic() - self.logged_at > 60:
            self.logged_at = time.monotonic()
            _logger.info('epoch %d  %d/%d  loss %.3f', epoch + 1, done, updates, losses['loss'])

    def epoch(self, rows: Rows) -> None:
        """After an epoch; `rows` are those of the whole run."""
        if self.bar is not None:
            self.bar.close()
            self.bar = None
        write_csv(rows, self.folder / 'log.csv')
        _logger.info(epoch_line(rows))
        if self.events is not None:
            for row in _last_epoch(rows):
                metric, _ = headline(row)
                self.events.add_scalar(f"{metric}/{row['resolution']}", row[metric], row['epoch'])
            for name in LOSSES:
                self.events.add_scalar(f'loss/{name}', rows[-1][f'train_{name}'], rows[-1]['epoch'])
            self.events.flush()


def _event_writer(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError('TensorBoard is not installed: pip install tensorboard, or do without --tensorboard.'
                         ) from error
    return SummaryWriter(str(folder))


def write_csv(rows: Rows, path: Path) -> None:
    """Write all rows; the file is replaced whole, so that it always agrees with the checkpoint."""
    stream = io.StringIO()
    writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, stream.getvalue().encode())


def _last_epoch(rows: Rows) -> Rows:
    return [row for row in rows if row['epoch'] == rows[-1]['epoch']]


def headline(row: Dict[str, Any]) -> Tuple[str, str]:
    """The column of the result that counts, in percent, and what to call it."""
    names = dict(mean_iou='mean IoU', agreement='agreement', top1='top-1')
    return next((column, label) for column, label in names.items() if column in row)


def epoch_line(rows: Rows) -> str:
    """The last epoch: seconds, mean training losses, and top-1 or mean IoU in percent per resolution."""
    last = _last_epoch(rows)
    parts = ', '.join(f"{name} {last[0][f'train_{name}']:.3f}" for name in LOSSES[1:])
    metric, label = headline(last[0])
    results = '  '.join(f"{row['resolution']}{_fed_with(row)}: {row[metric]:.2f}" for row in last)
    loss = f"{last[0]['train_loss']:.3f} ({parts})"
    return f"epoch {last[0]['epoch']}  {last[0]['seconds']:.0f} s  loss {loss}  {label} {results}"


def _fed_with(row: Dict[str, Any]) -> str:
    return '' if row['size'] == row['resolution'] else f"@{row['size']}"


def plot_curves(rows: Rows, path: Path) -> None:
    """Losses, top-1 or mean IoU, and ensemble weights over the epochs, as a picture; needs matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        _logger.warning('no picture of the curves: it needs matplotlib, pip install "rs_timm[plot]"')
        return
    figure = Figure(figsize=(13, 4), layout='constrained')
    metric, name_of_metric = headline(rows[0])
    loss, result, alpha = figure.subplots(1, 3)
    series: Dict[Any, list] = {}
    for row in rows:
        series.setdefault(row['resolution'], []).append(row)
    first = next(iter(series.values()))
    for name in LOSSES:
        loss.plot([row['epoch'] for row in first], [row[f'train_{name}'] for row in first], label=name)
    for resolution, own in series.items():
        epochs = [row['epoch'] for row in own]
        result.plot(epochs, [row[metric] for row in own], label=str(resolution))
        if not math.isnan(own[-1]['alpha']):
            alpha.plot(epochs, [row['alpha'] for row in own], label=str(resolution))
    for axes, label in ((loss, 'training loss'), (result, f'{name_of_metric}, %'), (alpha, 'weight in the ensemble')):
        axes.set_xlabel('epoch')
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.set_ylabel(label)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc='upper center', bbox_to_anchor=(0.5, -0.15), ncols=3, frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=120)
    write_bytes(path, buffer.getvalue())
