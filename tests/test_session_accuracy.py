"""What a session answers to labelled pictures is counted as torch counts it."""
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from rs_timm.pictures import ImageError
from rs_timm.runtime import evaluate_session


class Answers:
    """Stands for a session: a picture is a row of a table of logits."""

    def __init__(self, logits, task='classification'):
        self.logits, self.resolutions = logits, tuple(logits)
        self.info = SimpleNamespace(name='net', task=task, num_classes=next(iter(logits.values())).shape[1])

    def preprocess(self, picture, size):
        if picture == 'damaged':
            raise ImageError('damaged: no picture')
        return np.array([picture])

    def run(self, x, size):
        return self.logits[size][x]


LOGITS = {size: np.random.default_rng(size).normal(0, 3, (50, 9)).astype(np.float32) for size in (64, 32)}
TARGETS = np.random.default_rng(1).integers(0, 9, 50)


def test_accuracy_is_that_of_torch():
    results = evaluate_session(Answers(LOGITS), list(enumerate(TARGETS)), batch=7)
    assert list(results) == [64, 32]
    for size, result in results.items():
        z, own = torch.from_numpy(LOGITS[size]).double(), torch.from_numpy(TARGETS)
        assert result['top1'] == pytest.approx(100 * (z.argmax(1) == own).double().mean().item())
        assert result['top5'] == pytest.approx(100 * (z.topk(5).indices == own[:, None]).any(1).double().mean().item())
        assert (result['loss'], result['count']) == (pytest.approx(F.cross_entropy(z, own).item()), 50)


def test_pictures_that_cannot_be_read_are_left_out_or_raised():
    pictures, errors = [(0, 1), ('damaged', 2), (3, 4)], []
    assert evaluate_session(Answers(LOGITS), pictures, (32,), skip=errors.append)[32]['count'] == 2 and len(errors) == 1
    with pytest.raises(ImageError, match='damaged'):
        evaluate_session(Answers(LOGITS), pictures)


@pytest.mark.parametrize('session, pictures, words', [
    (Answers(LOGITS, 'segmentation'), [(0, 1)], 'no classifier'),
    (Answers(LOGITS), [(0, 9)], 'class 9 of 0: net knows 0 to 8'),
    (Answers(LOGITS), [(0, -1)], 'class -1'),
    (Answers(LOGITS), [], 'no picture'),
])
def test_what_cannot_be_counted(session, pictures, words):
    with pytest.raises(ValueError, match=words):
        evaluate_session(session, pictures)
