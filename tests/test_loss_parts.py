"""Every part of the segmentation loss against NumPy and SciPy, one image and one class at a time, from the papers."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy import ndimage
from test_segmentation_losses import GAPS, WEIGHTS, gradient, random_logits, some_class_weights

from common.losses.segmentation import PARTS, PIXEL_PARTS, SegmentationLoss, loss_parts
from common.model.heads import LevelHeads
from common.model.tree import IGNORE

CROSS = ndimage.generate_binary_structure(2, 1)


def make_loss(parts, kind="tree", **options):
    heads = LevelHeads(GAPS, 4, kind)
    return SegmentationLoss(heads, WEIGHTS, some_class_weights(), parts, focal_gamma=1.5, smooth=0.7, **options)


def blobs(images=2, size=(20, 16), seed=0):
    """Labels of regions some pixels wide, a corner without labels, and one class that an image lacks."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(GAPS.num_leaves, (images, 5, 4), generator=generator).clamp(max=6)
    labels = coarse.repeat_interleave(4, 1).repeat_interleave(4, 2)[:, : size[0], : size[1]].clone()
    labels[:, :3, :5] = IGNORE
    return labels


def erode(image):
    return ndimage.minimum_filter(image, footprint=CROSS, mode="constant", cval=np.inf)


def grow(image, distance):
    return ndimage.maximum_filter(image, 2 * distance + 1, mode="constant", cval=-np.inf)


def skeleton(image, steps=10):
    opened = grow(erode(image), 1)
    found = np.maximum(image - opened, 0)
    for _ in range(steps):
        image = erode(image)
        more = np.maximum(image - grow(erode(image), 1), 0)
        found = found + np.maximum(more - found * more, 0)
    return found


def f1(pairs):
    precision, recall = (((part * right).sum() + 1) / (part.sum() + 1) for part, right in pairs)
    return 2 * precision * recall / (precision + recall)


def lovasz(p, y, known):
    """The Lovasz extension of 1 - IoU as a function of the set of wrong pixels."""
    errors, wrong, total, before = np.abs(y - p)[known], [], 0.0, 0.0
    for pixel in np.argsort(-errors):
        wrong.append(pixel)
        union = set(np.flatnonzero(y[known])) | set(wrong)
        total, before = total + errors[pixel] * (len(wrong) / len(union) - before), len(wrong) / len(union)
    return total


def boundary(p, y, known):
    inside = 1 - grow(1.0 - known, 1)
    edges = [(grow(1 - image, 1) - (1 - image)) * inside for image in (p, y)]
    return 1 - f1([(edges[0], grow(edges[1], 2)), (edges[1], grow(edges[0], 2))])


OF_REGIONS = {
    "dice": lambda p, y, known: 1 - (2 * (p * y).sum() + 0.7) / (p.sum() + y.sum() + 0.7),
    "tversky": lambda p, y, known: (
        1 - ((p * y).sum() + 0.35) / ((p * y).sum() + 0.2 * (p * (1 - y)).sum() + 0.8 * ((1 - p) * y).sum() + 0.35)
    ),
    "lovasz": lovasz,
    "boundary": boundary,
    "cldice": lambda p, y, known: 1 - f1([(skeleton(p), y), (skeleton(y), p)]),
}
OF_PIXELS = {"ce": lambda p: -np.log(p), "focal": lambda p: -((1 - p) ** 1.5) * np.log(p)}


def reference(part, loss_fn, logits, labels, ohem=1.0):
    total = 0.0
    logits = logits.detach().double()
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, scale_factor=4, mode="bilinear")[..., : labels.shape[1], : labels.shape[2]]
    levels = zip(WEIGHTS, loss_fn._heads[0].log_probs(logits), GAPS.lift(labels), some_class_weights(), strict=True)
    for level_weight, log_probs, truth, class_weights in levels:
        above = below = 0.0
        for image, classes in enumerate(log_probs.exp().double().numpy()):
            known = truth[image].numpy() >= 0
            for label, (p, weight) in enumerate(zip(classes, class_weights.tolist(), strict=True)):
                y = (truth[image].numpy() == label).astype(float)
                if part in OF_PIXELS:
                    counted = (y > 0) & (p < ohem)
                    above, below = above + weight * OF_PIXELS[part](p[counted]).sum(), below + weight * y.sum()
                elif y.any():
                    above, below = above + weight * OF_REGIONS[part](p * known, y, known), below + weight
        total += level_weight * above / below
    return total


@pytest.mark.parametrize("kind", ["tree", "independent"])
@pytest.mark.parametrize("part", PARTS)
def test_value_equals_that_of_numpy(part, kind):
    loss_fn, labels = make_loss({part: 0.5}, kind, tversky_beta=0.8), blobs()
    for size in [(20, 16), (5, 4)]:
        logits = random_logits(kind, size, images=2)
        expected = 0.5 * reference(part, loss_fn, logits, labels)
        loss = loss_fn(logits, labels)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=2e-5)
        with torch.no_grad():
            assert loss_fn(logits, labels).item() == pytest.approx(expected, rel=2e-5)


@pytest.mark.parametrize("part", PARTS)
def test_gradient_equals_finite_differences(part):
    loss_fn, labels = make_loss({part: 2.0}), blobs()
    logits = random_logits("tree", (5, 4), images=2).detach().double().requires_grad_()
    analytic = gradient(loss_fn(logits, labels), logits)
    for index in [(0, 0, 3, 1), (1, 3, 2, 2), (1, 6, 4, 0)]:
        step = torch.zeros_like(logits)
        step[index] = 1e-2
        numeric = (loss_fn(logits + step, labels) - loss_fn(logits - step, labels)).item() / 2e-2
        assert analytic[index].item() == pytest.approx(numeric, abs=3e-4)


def test_parts_add_up():
    parts = {part: 0.3 + index for index, part in enumerate(PARTS)}
    logits, labels = random_logits("tree", (5, 4), images=2), blobs()
    loss, alone = make_loss(parts)(logits, labels), [make_loss({p: w})(logits, labels) for p, w in parts.items()]
    torch.testing.assert_close(loss, sum(alone))
    torch.testing.assert_close(gradient(loss, logits), sum(gradient(each, logits) for each in alone))


@pytest.mark.parametrize("dice_over", ["image", "batch"])
def test_micro_batches_and_processes_add_up(dice_over):
    """Over the batch, the shares of two processes are those of their own batches, as Dice's are."""
    loss_fn = make_loss(dict.fromkeys(PARTS, 1.0), dice_over=dice_over, ohem=0.6)
    logits, labels = random_logits("tree", (5, 4), images=4), blobs(4)
    labels[2] = IGNORE
    parts = [slice(0, 2), slice(2, 4)]
    denominators = sum(loss_fn.label_weights(labels[part]) for part in parts)
    summed = sum(loss_fn(logits[part], labels[part], denominators) for part in parts)
    sums = sum(loss_fn.level_sums(logits[part], labels[part]).double() for part in parts)
    assert loss_fn.combine(sums, denominators).item() == pytest.approx(summed.item(), rel=1e-5)
    if dice_over == "image":
        torch.testing.assert_close(summed, loss_fn(logits, labels))
        torch.testing.assert_close(gradient(summed, logits), gradient(loss_fn(logits, labels), logits))


@pytest.mark.parametrize("kind", ["tree", "independent"])
def test_nothing_labelled_and_extremes(kind):
    loss_fn = make_loss(dict.fromkeys(PARTS, 1.0), kind)
    logits = random_logits(kind, (5, 4), images=2)
    loss = loss_fn(logits, torch.full((2, 20, 16), IGNORE))
    assert loss.item() == 0 and torch.equal(gradient(loss, logits), torch.zeros_like(logits))
    extreme = (6e4 * random_logits(kind, (5, 4), images=2).detach().sign()).half().requires_grad_()
    loss = loss_fn(extreme, blobs())
    assert loss.isfinite() and gradient(loss, extreme).isfinite().all()


@pytest.mark.parametrize("part", PIXEL_PARTS)
def test_ohem_leaves_out_pixels_that_are_right(part):
    loss_fn, logits, labels = make_loss({part: 1.0}, ohem=0.4), random_logits("tree", (20, 16), images=2), blobs()
    assert loss_fn(logits, labels).item() == pytest.approx(reference(part, loss_fn, logits, labels, 0.4), rel=1e-5)
    assert loss_fn(logits, labels) < make_loss({part: 1.0})(logits, labels)


def test_auxiliary_logits_follow_those_of_the_batch():
    logits, labels, parts = random_logits("tree", (5, 4), images=4), blobs(), {"dice": 1.0, "lovasz": 1.0}
    loss = make_loss(parts, aux_weight=0.4)(logits, labels)
    torch.testing.assert_close(loss, make_loss(parts)(logits[:2], labels) + 0.4 * make_loss(parts)(logits[2:], labels))


def test_words():
    assert loss_parts(["dice=1", "ce=.5", "cldice"]) == {"dice": 1.0, "ce": 0.5, "cldice": 1.0}
    for words in (["dice", "dice=2"], ["dise=1"], ["dice=-1"], ["dice=nan"], ["dice=x"], ["dice_focal", "ce"]):
        with pytest.raises(ValueError, match="each once, of dice, tversky, focal, ce, lovasz, boundary, cldice; not"):
            loss_parts(words)
    with pytest.raises(ValueError, match="must not all be 0"):
        loss_parts(["dice=0"])
