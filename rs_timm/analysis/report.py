"""One page about a network on somebody's pictures: what each resolution gets right, and what that costs."""
from dataclasses import dataclass, field
from typing import Dict, List, Mapping, Optional, Sequence

import numpy as np

from .agreement import (
    NEVER,
    class_accuracy,
    complementarity,
    sensitivity,
    sufficient_for_classes,
    sufficient_resolution,
)
from .norms import Means
from .page import Html, details, page, paragraph, picture, section, table
from .plots import accuracy_plot, class_plot, norm_plot, png, reliability_plot, sufficient_plot
from .predictions import ENSEMBLE, Predictions, Row
from .reliability import reliability

__all__ = ['Subject', 'analysis_page', 'picture_rows']

_SHOWN_CLASSES = 20


@dataclass(frozen=True)
class Subject:
    """What a report is about, besides the predictions.

    Attributes:
        name: of the network.
        facts: lines about network, data and settings.
        trained: sizes in pixels with a BatchNorm set of their own.
        madds: resolution -> multiply-adds of one picture.
        class_names: of all outputs, in order.
        norms: as returned by `norm_means`.
        tolerance: points of top-1 that a class may lose at a size that suffices for it.
    """

    name: str
    facts: Sequence[str]
    trained: Sequence[int]
    madds: Mapping[int, float]
    class_names: Sequence[str]
    norms: Means = field(default_factory=dict)
    tolerance: float = 1.


def analysis_page(subject: Subject, said: Predictions) -> str:
    """The report as HTML, with its pictures in it."""
    parts = [
        Html('\n'.join(paragraph(fact) for fact in subject.facts)),
        _accuracy(subject, said),
        _complementarity(said),
        _pictures(said),
        _classes(subject, said),
        _calibration(said),
        *([_norms(subject)] if subject.norms else []),
    ]
    return page(f'{subject.name}: what each resolution gets right', parts)


def _accuracy(subject: Subject, said: Predictions) -> Html:
    largest = said.resolutions[0]
    rows, top1 = [], {}
    order: List[Row] = [*said.resolutions, *([ENSEMBLE] if ENSEMBLE in said.at else [])]
    for row in order:
        values = said.accuracy(row)
        cost = subject.madds.get(row) if isinstance(row, int) else None
        share = f'{100 * cost / subject.madds[largest]:.0f} %' if cost else ''
        rows.append([_label(row, subject), f"{values['top1']:.1f}", f"{values['top5']:.1f}",
                     f'{cost / 1e6:.1f}' if cost else '', share])
        if isinstance(row, int):
            top1[row] = values['top1']
    shown = picture(png(accuracy_plot(top1, subject.madds, subject.trained)), 'top-1 against multiply-adds')
    return section(
        'Accuracy and cost',
        table(['resolution', 'top-1, %', 'top-5, %', 'MAdds, M', 'cost'], rows),
        shown,
        paragraph('One MAdd is one multiply-add of a convolution or linear layer. Open circles: sizes whose BatchNorm '
                  'set is made from those of its neighbours.'),
    )


def _label(row: Row, subject: Subject) -> str:
    if row == ENSEMBLE:
        return 'ensemble of the trained sizes'
    return f'{row} px' if row in subject.trained else f'{row} px (not trained)'


def _complementarity(said: Predictions) -> Html:
    sizes = said.resolutions
    if len(sizes) < 2:
        return section('Do the resolutions complement each other?', paragraph('Only one resolution was measured.'))
    shares = complementarity(said.rights())
    largest = max(max(row.values()) for row in shares.values()) or 1.
    cells = [[f'{a} px', *('' if a == b else f'{shares[a][b]:.1f}' for b in sizes)] for a in sizes]
    shades = [[0., *(0. if a == b else 0.6 * shares[a][b] / largest for b in sizes)] for a in sizes]
    return section(
        'Do the resolutions complement each other?',
        paragraph('Share of the pictures, in percent, that are right at the resolution of the row and wrong at that of '
                  'the column.'),
        table(['right at', *(f'wrong at {r}' for r in sizes)], cells, shades),
    )


def _pictures(said: Predictions) -> Html:
    smallest = sufficient_resolution(said.rights())
    shares = {f'{r} px': 100. * float((smallest == r).mean()) for r in sorted(said.resolutions)}
    shares['at no size'] = 100. * float((smallest == NEVER).mean())
    rows, total = [], 0.
    for label, share in shares.items():
        total += share
        rows.append([label, f'{share:.1f}', f'{total:.1f}'])
    return section(
        'The smallest size that suffices, picture by picture',
        paragraph('The smallest resolution at which a picture is classified correctly. The last column adds up: what '
                  'one could reach by choosing the right size for every picture.'),
        picture(png(sufficient_plot(shares)), 'share of the pictures for which each size suffices'),
        table(['smallest size', 'share, %', 'up to here, %'], rows[:-1]),
    )


def _classes(subject: Subject, said: Predictions) -> Html:
    accuracy = class_accuracy(said.rights(), said.target, len(subject.class_names))
    sizes = said.resolutions
    suffices = sufficient_for_classes(accuracy, subject.tolerance)
    change = sensitivity(accuracy)[sizes[-1]]
    seen = np.flatnonzero(~np.isnan(change))
    order = seen[np.argsort(change[seen], kind='stable')]
    count = np.bincount(said.target, minlength=len(subject.class_names))
    rows = [[subject.class_names[c], f'{suffices[c]} px', f'{change[c]:+.0f}', *(
        f'{accuracy[r][c]:.0f}' for r in sizes), str(count[c])] for c in order]
    # what a phone shows without scrolling comes first
    header = ['class', 'suffices', 'change', *(f'{r} px' for r in sizes), 'pictures']
    worst = order[:_SHOWN_CLASSES]
    shown = class_plot({r: accuracy[r][worst] for r in sizes}, [subject.class_names[c] for c in worst])
    text = (f'Top-1 in percent. Change: at {sizes[-1]} px against {sizes[0]} px, in points; the classes that suffer '
            f'most stand first. Suffices: the smallest size from which on a class loses at most {subject.tolerance:g} '
            'point(s). With few pictures of a class, one picture is many points.')
    listing = table(header, rows)
    parts = [listing] if len(rows) <= _SHOWN_CLASSES else [
        table(header, rows[:_SHOWN_CLASSES]), details(f'All {len(rows)} classes', listing)]
    return section('Which classes need a large size?', paragraph(text),
                   picture(png(shown), 'top-1 of the most sensitive classes at each resolution'), *parts)


def _calibration(said: Predictions) -> Html:
    found = {r: reliability(said.at[r].confidence, said.right(r)) for r in said.resolutions}
    rows = [[f'{r} px', f'{100 * bins.error:.1f}', _tendency(said, r), f'{100 * said.at[r].confidence.mean():.1f}',
             f'{100 * said.right(r).mean():.1f}'] for r, bins in found.items()]
    return section(
        'Does a confidence mean what it says?',
        paragraph('Expected calibration error (ECE): the mean gap of confidence and accuracy over 15 bins. A cascade, '
                  'or a threshold on the confidence, needs a small one.'),
        table(['resolution', 'ECE, %', '', 'mean confidence, %', 'top-1, %'], rows),
        picture(png(reliability_plot(found)), 'accuracy against confidence at each resolution'),
    )


def _tendency(said: Predictions, resolution: int) -> str:
    gap = float(said.at[resolution].confidence.mean() - said.right(resolution).mean())
    return 'too sure' if gap > 0.01 else 'too modest' if gap < -0.01 else ''


def _norms(subject: Subject) -> Html:
    return section(
        'What the BatchNorm sets hold',
        paragraph('Means over the channels of each layer. Sets that lie on top of each other could be one.'),
        picture(png(norm_plot(subject.norms)), 'means of the BatchNorm sets by layer and resolution'),
    )


def picture_rows(said: Predictions, files: Optional[Sequence[str]] = None) -> List[Dict[str, object]]:
    """A row for each picture: what it is, and what is said about it at each resolution.

    >>> from rs_timm.analysis import Prediction
    >>> at = {96: Prediction(np.array([1]), np.array([0.5]), np.array([True]), np.array([0.7]))}
    >>> picture_rows(Predictions(np.array([1]), at), ['cat.jpg'])
    [{'picture': 'cat.jpg', 'target': 1, 'suffices': 96, 'label_96': 1, 'confidence_96': 0.5}]

    Args:
        said: the predictions.
        files: names of the pictures; without them, their numbers.
    """
    smallest = sufficient_resolution(said.rights())
    rows: List[Dict[str, object]] = []
    for i, target in enumerate(said.target.tolist()):
        row: Dict[str, object] = dict(
            picture=files[i] if files else i, target=target, suffices=int(smallest[i]) or 'none')
        for r in said.resolutions:
            row[f'label_{r}'] = int(said.at[r].label[i])
            row[f'confidence_{r}'] = round(float(said.at[r].confidence[i]), 4)
        rows.append(row)
    return rows
