"""Accuracy of a session on labelled pictures: what a precision, an engine or a size costs."""
from typing import Any, Callable, Dict, Iterable, List, Optional, Sequence, Tuple

import numpy as np

from rs_timm.pictures import ImageError
from rs_timm.resolutions import check_resolutions

__all__ = ['evaluate_session']


def evaluate_session(
        session: Any,
        pictures: Iterable[Tuple[Any, int]],
        sizes: Optional[Sequence[int]] = None,
        batch: int = 32,
        skip: Optional[Callable[[ImageError], None]] = None,
) -> Dict[int, Dict[str, float]]:
    """Measure a classifier at several sizes, in one pass over the pictures: top-1 and top-5, without torch.

    >>> import rs_timm
    >>> session = rs_timm.runtime.Session(rs_timm.switchable('test_resnet', (64, 32), num_classes=10))
    >>> results = evaluate_session(session, [(np.zeros((80, 90, 3), np.uint8), 3), (np.ones((64, 64, 3), np.uint8), 5)])
    >>> {size: result['count'] for size, result in results.items()}
    {64: 2, 32: 2}

    Args:
        session: a `Session` of a classifier, in any engine and precision.
        pictures: (what `session.preprocess` takes, number of its class).
        sizes: in pixels, trained or not; None: the trained ones.
        batch: pictures that go through the network together.
        skip: called with the error of a picture that cannot be read, which is then left out; None: it is raised.

    Returns:
        {size, largest first: {'top1', 'top5' in percent, 'loss' (mean cross-entropy), 'count' (pictures)}}. With fewer
        than five classes, top5 is 100.

    Raises:
        ImageError: a picture that cannot be read.
        ValueError: a network that is no classifier, a class that it does not know, no picture, or logits that are not
            finite.
    """
    info = session.info
    if info.task != 'classification' or not info.num_classes:
        raise ValueError(f'{info.name} is no classifier: there are no classes to count.')
    chosen = check_resolutions(session.resolutions if sizes is None else sizes)
    totals = {size: np.zeros(4) for size in chosen}  # hits in the first, in the first five, summed loss, pictures
    waiting: List[Tuple[Dict[int, np.ndarray], int]] = []

    def count() -> None:
        targets = np.array([target for _, target in waiting])
        for size in chosen:
            logits = session.run(np.concatenate([ready[size] for ready, _ in waiting]), size).astype(np.float64)
            own = logits[np.arange(len(targets)), targets]
            better = (logits > own[:, None]).sum(axis=1)
            highest = logits.max(axis=1)
            loss = highest + np.log(np.exp(logits - highest[:, None]).sum(axis=1)) - own
            totals[size] += [(better < 1).sum(), (better < 5).sum(), loss.sum(), len(targets)]
        waiting.clear()

    for picture, target in pictures:
        if not 0 <= target < info.num_classes:
            raise ValueError(f'class {target!r} of {picture!r:.80}: {info.name} knows 0 to {info.num_classes - 1}.')
        try:
            waiting.append(({size: session.preprocess(picture, size) for size in chosen}, int(target)))
        except ImageError as error:
            if skip is None:
                raise
            skip(error)
        if len(waiting) == batch:
            count()
    if waiting:
        count()
    pictures_read = int(totals[chosen[0]][3])
    if not pictures_read:
        raise ValueError('no picture with a label was read.')
    return {size: dict(top1=100. * top1 / pictures_read, top5=100. * top5 / pictures_read, loss=loss / pictures_read,
                       count=pictures_read) for size, (top1, top5, loss, _) in totals.items()}
