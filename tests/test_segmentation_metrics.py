"""The scores against loops over pixels, the loss per pixel against the loss of a classifier, the drawings."""
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from rs_timm.loss import dense_mred_loss, mred_loss
from rs_timm.segmentation import class_colours, class_ious, comparison, confusion_matrix, overlay, segmentation_scores

CLASSES = 4


def random_maps(seed=0, shape=(3, 9, 7)):
    generator = torch.Generator().manual_seed(seed)
    target = torch.randint(CLASSES, shape, generator=generator)
    target[torch.rand(shape, generator=generator) < 0.2] = 255
    target[target == 2] = 0  # a class that does not occur
    return torch.randint(CLASSES, shape, generator=generator), target.to(torch.uint8)


def test_scores_by_counting():
    predicted, target = random_maps()
    pairs = [(int(p), int(t)) for p, t in zip(predicted.flatten(), target.flatten()) if t != 255]
    occurring = sorted({t for _, t in pairs})
    assert occurring == [0, 1, 3]
    accuracies = [np.mean([p == t for p, t in pairs if t == c]) for c in occurring]
    ious = [sum(p == t == c for p, t in pairs) / sum(c in (p, t) for p, t in pairs) for c in occurring]
    matrix = confusion_matrix(predicted, target, CLASSES)
    scores = segmentation_scores(matrix)
    assert scores['pixel_accuracy'] == pytest.approx(100 * np.mean([p == t for p, t in pairs]))
    assert scores['mean_accuracy'] == pytest.approx(100 * np.mean(accuracies))
    assert scores['mean_iou'] == pytest.approx(100 * np.mean(ious))
    assert scores['count'] == len(pairs)
    assert class_ious(matrix)[occurring].tolist() == pytest.approx([100 * iou for iou in ious])
    assert class_ious(matrix)[2].isnan()


def test_no_labelled_pixel_has_no_score():
    with pytest.raises(ValueError, match='no labelled pixel'):
        segmentation_scores(torch.zeros(CLASSES, CLASSES, dtype=torch.int64))


# The loss

def random_logits(requires_grad=False):
    generator = torch.Generator().manual_seed(3)
    return {r: torch.randn(3, CLASSES, r, r, generator=generator, requires_grad=requires_grad) for r in (8, 4)}


@pytest.mark.parametrize('mode', ['full', 'vanilla', 'none'])
def test_every_labelled_pixel_is_a_sample(mode):
    """A loop over the pixels collects the rows that a classifier's loss takes."""
    logits, (_, masks) = random_logits(), random_maps(shape=(3, 12, 16))
    full = {r: F.interpolate(z, size=(12, 16), mode='bilinear') for r, z in logits.items()}
    places = [(n, y, x) for n in range(3) for y in range(12) for x in range(16) if masks[n, y, x] != 255]
    rows = {r: torch.stack([z[n, :, y, x] for n, y, x in places]) for r, z in full.items()}
    target = torch.stack([masks[place] for place in places]).long()
    alpha = torch.tensor([0.5, -0.2])
    expected = mred_loss(rows, target, alpha, mode)
    actual = dense_mred_loss(logits, masks, alpha, mode)
    assert actual.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(actual[name], expected[name])


def test_ignored_pixels_have_no_gradient():
    logits = random_logits(requires_grad=True)
    masks = torch.full((3, 8, 8), 255, dtype=torch.uint8)
    masks[1, 2, 3] = 1
    dense_mred_loss(logits, masks, torch.zeros(2))['loss'].backward()
    touched = logits[8].grad.abs().sum(1).nonzero()
    assert touched.tolist() == [[1, 2, 3]]


def test_nothing_labelled_is_no_loss_and_no_gradient():
    logits, alpha = random_logits(requires_grad=True), torch.zeros(2, requires_grad=True)
    losses = dense_mred_loss(logits, torch.full((3, 8, 8), 255, dtype=torch.uint8), alpha)
    losses['loss'].backward()
    assert losses['loss'] == 0 and alpha.grad.tolist() == [0., 0.]
    assert all(z.grad.count_nonzero() == 0 for z in logits.values())


def test_wrong_masks_and_networks():
    with pytest.raises(ValueError, match='the masks have classes from 0 to 4, the network 4'):
        dense_mred_loss(random_logits(), torch.tensor([[[0, 4]]] * 3), torch.zeros(2))
    with pytest.raises(ValueError, match='is this a network for segmentation'):
        dense_mred_loss({8: torch.zeros(3, CLASSES)}, torch.zeros(3, 8, 8), torch.zeros(1))


# Drawings

def test_overlay_mixes_colour_and_picture():
    picture = Image.new('RGB', (3, 2), (100, 150, 200))
    classes = np.array([[0, 1, 255], [1, 0, 255]])
    drawn = np.asarray(overlay(picture, classes, num_classes=2, opacity=0.25)).astype(float)
    for (y, x), index in np.ndenumerate(classes):
        colour = np.array([100, 150, 200.])
        if index != 255:
            colour = 0.75 * colour + 0.25 * np.array(class_colours(2)[index])
        assert np.abs(drawn[y, x] - colour).max() < 1
    with pytest.raises(ValueError, match='the picture has 2 rows and 3 columns'):
        overlay(picture, classes.T, num_classes=2)


def test_comparison_shows_all_panels_and_the_classes_that_occur():
    picture, names = Image.new('RGB', (60, 40), (10, 20, 30)), ['sky', 'road', 'tree']
    panels = {'ground truth': np.zeros((40, 60), int), '96': np.full((40, 60), 2)}
    drawn = comparison(picture, panels, names)
    pixels = np.asarray(drawn)
    assert drawn.width > 3 * 60 and drawn.height > 40
    colours = class_colours(3)
    legend = pixels[-25:].reshape(-1, 3)
    shown = [bool((legend == colour).all(1).any()) for colour in colours]
    assert shown == [True, False, True]
    for index, panel in enumerate(({(10, 20, 30)}, {colours[0]}, {colours[2]})):
        left = 8 + index * 68
        base, over = np.array((10, 20, 30.)), np.array(next(iter(panel)), float)
        expected = base if index == 0 else (0.4 * base + 0.6 * over)
        assert np.abs(pixels[28 + 20, left + 30] - expected).max() <= 1
