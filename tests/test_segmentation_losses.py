"""The segmentation loss against loops over pixels, automatic differentiation, and other libraries."""

import math

import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import log_loss

from common.losses import segmentation as segmentation_losses
from common.losses.segmentation import SegmentationLoss
from common.model.heads import HEAD_KINDS, LevelHeads
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

WEIGHTS = [0.4, 0.6, 1.5]  # used as they are: not normalised
# Gaps of every kind: Clean skips a level, "spot" has nothing above it, "odd" and "lone" are leaves of upper levels.
GAPS = Hierarchy(
    ["binary", "coarse", "fine"],
    [["clean", "damaged", "lone"], ["loss", "stain", "odd"], ["Clean", "crack", "hole", "dust", "mould", "spot"]],
    [[None] * 3, [1, 1, 1], [(0, 0), 0, 0, 1, 1, None]],
)
# Every level has a value everywhere; siblings are not side by side.
FULL = Hierarchy(
    ["top", "middle", "fine"],
    [["0", "1"], list("abcd"), [str(index) for index in range(7)]],
    [[None] * 2, [1, 0, 1, 0], [3, 0, 0, 1, 2, 2, 3]],
)


def make_loss(kind="tree", weights=WEIGHTS, tree=GAPS, **options):
    options["parts"] = {part: options.pop(f"{part}_weight", 0.5) for part in ("dice", "focal")}
    return SegmentationLoss(LevelHeads(tree, 4, kind), weights, **options)


def some_class_weights(tree=GAPS):
    return [torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.2 for n in tree.num_classes]


def random_logits(kind, size=(6, 5), images=3, seed=0, scale=2.0, tree=GAPS):
    outputs = sum(tree.num_classes) if kind == "independent" else tree.num_leaves
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(images, outputs, *size, generator=generator)).requires_grad_()


def random_labels(size=(6, 5), images=3, seed=0, tree=GAPS):
    """Leaves, and some pixels without a label; some classes are missing in some images."""
    generator = torch.Generator().manual_seed(seed + 1)
    labels = torch.randint(tree.num_leaves, (images, *size), generator=generator)
    labels[0] = labels[0].clamp(max=3)
    return labels.masked_fill(torch.rand(labels.shape, generator=generator) < 0.2, IGNORE)


def gradient(loss, logits):
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


def assert_same_gradient(actual, expected, tolerance=1e-5):
    assert (actual - expected).abs().max() <= tolerance * expected.abs().max()


def plain_loss(loss_fn, logits, labels, class_weights, gamma=2.0, dice_over="image", smooth=1.0, stride=4):
    """The same as a few lines of PyTorch: probabilities of every class and level, and one-hot labels."""
    heads, total = loss_fn._heads[0], 0
    if logits.shape[2:] != labels.shape[1:]:
        logits = F.interpolate(logits, size=[stride * length for length in logits.shape[2:]], mode="bilinear")
        logits = logits[:, :, : labels.shape[1], : labels.shape[2]]
    lifted = heads.hierarchy.lift(labels)
    parts = zip(loss_fn.weights, heads.log_probs(logits), lifted, class_weights, strict=True)
    for weight, log_probs, label, of_class in parts:
        labelled, label = label >= 0, label.clamp(min=0)
        one_hot = F.one_hot(label, log_probs.shape[1]).movedim(-1, 1) * labelled[:, None]
        probs = log_probs.exp() * labelled[:, None]
        over = (2, 3) if dice_over == "image" else (0, 2, 3)
        inside, everywhere, count = (probs * one_hot).sum(over), probs.sum(over), one_hot.sum(over)
        occurs = of_class * (count > 0)
        dice = (occurs * (1 - (2 * inside + smooth) / (everywhere + count + smooth))).sum() / occurs.sum()
        log_prob = log_probs.gather(1, label[:, None])[:, 0]
        of_pixel = of_class[label] * labelled
        focal = (of_pixel * (1 - log_prob.exp()) ** gamma * -log_prob).sum() / of_pixel.sum()
        total = total + weight * (loss_fn.parts.get("dice", 0) * dice + loss_fn.parts.get("focal", 0) * focal)
    return total


# ---- value and gradient


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_value_equals_a_loop_over_pixels(kind):
    """In plain Python, in double precision, from the definition."""
    for dice_over in ["image", "batch"]:
        logits, labels, class_weights = random_logits(kind), random_labels(), some_class_weights()
        gamma, smooth, expected = 1.5, 0.7, 0.0
        for level, num_classes in enumerate(GAPS.num_classes):
            pairs: dict = {}
            focal = focal_weight = 0.0
            first = sum(GAPS.num_classes[:level])
            for image in range(3):
                for row, leaf in zip(
                    logits[image].flatten(1).T.tolist(), labels[image].flatten().tolist(), strict=True
                ):
                    label = GAPS.ancestors[leaf, level].item() if leaf >= 0 else IGNORE
                    if label == IGNORE:
                        continue
                    if kind == "independent":
                        exps = [math.exp(score) for score in row[first : first + num_classes]]
                        probs = [value / sum(exps) for value in exps]
                    else:
                        exps = [math.exp(score) for score in row]
                        probs = [0.0] * num_classes
                        for leaf_exp, path in zip(exps, GAPS.ancestors.tolist(), strict=True):
                            if path[level] >= 0:
                                probs[path[level]] += leaf_exp / sum(exps)
                    weight = class_weights[level][label].item()
                    focal -= weight * (1 - probs[label]) ** gamma * math.log(probs[label])
                    focal_weight += weight
                    for index, prob in enumerate(probs):
                        sums = pairs.setdefault((image if dice_over == "image" else 0, index), [0.0, 0.0, 0])
                        sums[0] += prob * (index == label)
                        sums[1] += prob
                        sums[2] += index == label
            dice = dice_weight = 0.0
            for (_, index), (inside, everywhere, count) in pairs.items():
                if count:
                    weight = class_weights[level][index].item()
                    dice += weight * (1 - (2 * inside + smooth) / (everywhere + count + smooth))
                    dice_weight += weight
            expected += WEIGHTS[level] * (0.3 * dice / dice_weight + 0.9 * focal / focal_weight)
        options = {
            "dice_weight": 0.3,
            "focal_weight": 0.9,
            "focal_gamma": gamma,
            "smooth": smooth,
            "dice_over": dice_over,
        }
        loss = make_loss(kind, class_weights=class_weights, **options)(logits, labels)
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected, rel=1e-5)


SIZES = [((6, 5), (6, 5)), ((3, 2), (12, 8)), ((3, 2), (9, 7)), ((1, 1), (2, 1))]


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("tree", [GAPS, FULL], ids=["gaps", "full"])
def test_value_and_gradient_equal_automatic_differentiation(kind, tree, monkeypatch):
    for small, large in SIZES:
        for dice_over in ["image", "batch"]:
            for chunk in [1, 2**22]:
                monkeypatch.setattr(segmentation_losses, "CHUNK", (chunk, chunk))  # every image alone, or all at once
                logits, class_weights = random_logits(kind, small, tree=tree), some_class_weights(tree)
                labels = random_labels(large, tree=tree)
                labels[2, 0, 0] = 1  # every level of every tree has a label
                for gamma in (0, 0.5, 2.0):
                    loss_fn = make_loss(
                        kind, tree=tree, class_weights=class_weights, focal_gamma=gamma, dice_over=dice_over
                    )
                    loss, expected = (
                        loss_fn(logits, labels),
                        plain_loss(loss_fn, logits, labels, class_weights, gamma, dice_over),
                    )
                    torch.testing.assert_close(loss, expected, rtol=2e-6, atol=0)
                    assert_same_gradient(gradient(3 * loss, logits), 3 * gradient(expected, logits))
                    with torch.no_grad():
                        torch.testing.assert_close(loss_fn(logits, labels), loss.detach())


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_levels_and_terms_of_weight_zero_do_not_count(kind):
    for weights in [[0.0, 0.0, 1.0], [2.0, 0.0, 1.0], [0.0, 3.0, 0.0], [1.0, 0.0, 0.0]]:
        for terms in [(0.5, 0.5), (1.0, 0.0), (0.0, 1.0)]:
            loss_fn = make_loss(kind, class_weights=some_class_weights(), dice_weight=terms[0], focal_weight=terms[1])
            loss_fn.weights = weights  # as a curriculum does
            logits, labels = random_logits(kind), random_labels()
            loss, expected = loss_fn(logits, labels), plain_loss(loss_fn, logits, labels, some_class_weights())
            torch.testing.assert_close(loss, expected)
            assert_same_gradient(gradient(loss, logits), gradient(expected, logits))
            sums = loss_fn.level_sums(logits, labels)
            assert sums.shape[1] == sum(map(bool, terms))
            assert not sums[torch.tensor([not weight for weight in weights])].any()


def test_without_any_weight_the_loss_is_zero_and_in_the_graph():
    logits = random_logits("tree")
    loss = make_loss(weights=[0.0, 0.0, 0.0])(logits, random_labels())
    assert loss.item() == 0 and not gradient(loss, logits).any()


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_gradient_equals_finite_differences(kind):
    logits, labels = random_logits(kind, (2, 2), scale=1.0).detach().double().requires_grad_(), random_labels((7, 8))
    loss_fn = make_loss(kind, class_weights=some_class_weights(), focal_gamma=1.5)
    analytic = gradient(loss_fn(logits, labels), logits)
    assert analytic.dtype == torch.float64
    for index in [(0, 0, 0, 0), (1, 3, 1, 0), (2, 7, 1, 1)]:
        step = torch.zeros_like(logits)
        step[index] = 1e-2
        numeric = (loss_fn(logits + step, labels) - loss_fn(logits - step, labels)).item() / 2e-2
        assert analytic[index].item() == pytest.approx(numeric, abs=2e-4)


def test_memory_format_and_autocast_change_nothing():
    for memory_format in [torch.contiguous_format, torch.channels_last]:
        for autocast in [False, True]:
            logits, labels = random_logits("tree", (2, 2)), random_labels((7, 8))
            expected = make_loss()(logits, labels)
            with torch.autocast("cpu", enabled=autocast):
                loss = make_loss()(logits.contiguous(memory_format=memory_format), labels)
            torch.testing.assert_close(loss, expected)
            assert_same_gradient(gradient(loss, logits), gradient(expected, logits))


# ---- other libraries


def test_without_dice_and_gamma_it_is_the_cross_entropy_of_scikit_learn():
    logits, labels = random_logits("flat"), random_labels().clamp(max=5)
    loss = make_loss("flat", [0, 0, 1.0], dice_weight=0, focal_weight=1, focal_gamma=0)(logits, labels)
    known = labels >= 0
    probs = logits.detach().double().softmax(1).movedim(1, -1)[known]
    # Leaves of upper levels have no label here; they are classes like any other.
    assert loss.item() == pytest.approx(log_loss(labels[known], probs, labels=range(8)), rel=1e-5)


def test_dice_over_the_batch_is_that_of_segmentation_models_pytorch():
    from segmentation_models_pytorch import losses as smp

    logits, labels = random_logits("independent", (20, 20)), random_labels((20, 20))
    loss = make_loss("independent", dice_weight=1, focal_weight=0, dice_over="batch", smooth=0.8)(logits, labels)
    expected = 0
    # Its smooth counts double: (I + s) / ((S + T) / 2 + s).
    for weight, part, label in zip(WEIGHTS, logits.split(GAPS.num_classes, 1), GAPS.lift(labels), strict=True):
        expected = expected + weight * smp.DiceLoss("multiclass", smooth=0.4, ignore_index=IGNORE)(part, label)
    torch.testing.assert_close(loss, expected)
    assert_same_gradient(gradient(loss, logits), gradient(expected, logits))


# ---- pixels without a label, extremes


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_nothing_labelled_is_exactly_zero_and_in_the_graph(kind):
    for images in [0, 2]:
        logits = random_logits(kind, (2, 2), images)
        loss = make_loss(kind, class_weights=some_class_weights())(logits, torch.full((images, 8, 7), -1))
        assert loss.item() == 0 and loss.dtype == torch.float32
        loss.backward()
        assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_level_without_labels_adds_zero(kind):
    logits = random_logits(kind)
    labels = random_labels().clamp(max=0)  # Clean, which is nothing at the level in between
    loss = make_loss(kind)(logits, labels)
    without = make_loss(kind, [WEIGHTS[0], 0.0, WEIGHTS[2]])(logits, labels)
    assert make_loss(kind).label_weights(labels)[1].tolist() == [0, 0]
    torch.testing.assert_close(loss, without)
    assert_same_gradient(gradient(loss, logits), gradient(without, logits))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_ignored_pixels_and_images_change_neither_loss_nor_gradient(kind):
    for dice_over in ["image", "batch"]:
        logits, labels = random_logits(kind), random_labels()
        loss_fn = make_loss(kind, class_weights=some_class_weights(), dice_over=dice_over)
        more = random_logits(kind, (7, 8), 4, seed=5, scale=30).detach()
        more[:3, :, :6, :5] = logits.detach()
        more.requires_grad_()
        padded = torch.full((4, 7, 8), -7)
        padded[:3, :6, :5] = labels
        alone, loss = loss_fn(logits, labels), loss_fn(more, padded)
        torch.testing.assert_close(loss, alone)
        grad = gradient(loss, more)
        assert_same_gradient(grad[:3, :, :6, :5], gradient(alone, logits))
        grad[:3, :, :6, :5] = 0
        assert not grad.any()


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_extreme_half_precision_logits_stay_finite(kind):
    for dtype in [torch.float16, torch.bfloat16]:
        for gamma in [0, 0.5, 2.0]:
            for large in [(6, 5), (24, 20)]:
                signs = random_logits(kind).detach().sign()
                logits = (6e4 * signs).to(dtype).requires_grad_()
                loss = make_loss(kind, class_weights=some_class_weights(), focal_gamma=gamma)(
                    logits, random_labels(large)
                )
                (1024 * loss).backward()
                assert loss.dtype == torch.float32 and loss.item() > 1e3 and math.isfinite(loss.item())
                assert logits.grad.dtype == dtype and logits.grad.isfinite().all() and logits.grad.any()


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_certainty_has_its_true_loss_and_gradient(kind):
    """Logits of 1,000: the probability of the label is exactly 0 in float32, or exactly 1, at every level."""
    for gamma in [0, 0.5, 2.0]:
        heads = make_loss(kind)._heads[0]
        for leaf, right in [(1, 1), (1, 0)]:
            logits = torch.zeros(1, heads.weight.shape[0] if kind == "independent" else 8, 1, 1, dtype=torch.float64)
            chosen = [0, 3, 6] if kind == "independent" else [0]  # clean, and (in vain) loss, Clean
            if right:
                chosen = [1, 3, 7] if kind == "independent" else [1]
            logits[:, chosen] = 1000
            logits.requires_grad_()
            loss_fn = make_loss(kind, [1.0, 0.0, 1.0], dice_weight=0, focal_weight=1, focal_gamma=gamma)
            loss = loss_fn(logits, torch.full((1, 1, 1), leaf))
            assert loss.item() == pytest.approx(0 if right else 2000, rel=5e-3)
            expected = sum(-heads.log_probs(logits)[level][0, GAPS.ancestors[leaf, level], 0, 0] for level in (0, 2))
            torch.testing.assert_close(
                gradient(loss, logits), 0 * logits if right else gradient(expected, logits), atol=1e-6, rtol=1e-5
            )


def test_half_precision_gradients_are_rounded_after_the_loss_scale():
    """A pixel's share of a mean over 65,536 pixels is less than float16 can hold."""
    logits = torch.zeros(1, GAPS.num_leaves, 256, 256, dtype=torch.float16, requires_grad=True)
    loss_fn, labels = make_loss(dice_weight=0, weights=[0, 0, 1e-3]), torch.ones(1, 256, 256, dtype=torch.long)
    assert not gradient(loss_fn(logits, labels), logits).any()
    assert gradient(65536.0 * loss_fn(logits, labels), logits)[0, 1].all()


def test_a_second_backward_pass_is_refused():
    logits, labels = random_logits("tree"), random_labels()
    loss = make_loss()(logits, labels)
    gradient(loss, logits)
    with pytest.raises(RuntimeError, match="works once"):
        gradient(loss, logits)


# ---- parts of a batch


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_micro_batches_with_common_denominators_add_up(kind):
    logits, labels = random_logits(kind, images=6), random_labels(images=6)
    labels[2:4] = IGNORE
    loss_fn = make_loss(kind, class_weights=some_class_weights())
    whole, denominators = loss_fn(logits, labels), loss_fn.label_weights(labels)
    parts = [slice(start, start + 2) for start in (0, 2, 4)]
    summed = sum(loss_fn(logits[part], labels[part], denominators) for part in parts)
    torch.testing.assert_close(summed, whole)
    assert_same_gradient(gradient(summed, logits), gradient(whole, logits))
    torch.testing.assert_close(sum(loss_fn.label_weights(labels[part]) for part in parts), denominators)
    sums = sum(loss_fn.level_sums(logits[part], labels[part]).double() for part in parts)
    assert sums.shape == denominators.shape == (3, 2) and not sums.requires_grad
    assert loss_fn.combine(sums, denominators).item() == pytest.approx(whole.item(), rel=1e-6)
    assert loss_fn.combine(torch.zeros(3, 2), torch.zeros(3, 2)) == 0


def test_label_weights():
    labels = torch.tensor([[[1, 1], [3, -1]], [[0, 0], [1, -9]]])
    class_weights = [torch.tensor([1.0, 2.0, 4.0]), torch.tensor([1.0, 3.0, 5.0]), torch.arange(6.0) + 1]
    image = make_loss(class_weights=class_weights).label_weights(labels)
    batch = make_loss(class_weights=class_weights, dice_over="batch").label_weights(labels)
    assert image.tolist() == [[2 + 1 + 2, 6 + 2 + 2], [1 + 3 + 1, 1 + 1 + 3 + 1], [2 + 4 + 1 + 2, 8 + 2 + 2]]
    assert image.dtype == torch.float64 and torch.equal(batch[:, 1], image[:, 1])
    assert batch[:, 0].tolist() == [1 + 2, 1 + 3, 2 + 4 + 1]


# ---- use


@pytest.mark.parametrize("size", [(6, 4), (2, 3), (4, 2)])
def test_wrong_sizes(size):
    with pytest.raises(ValueError, match=r"Logits of .* pixels are neither as large as labels of \(6, 5\)"):
        make_loss()(random_logits("tree", size), random_labels())


def test_the_loss_owns_no_parameters_and_saves_nothing():
    loss_fn = make_loss(class_weights=some_class_weights())
    assert not list(loss_fn.parameters()) and not loss_fn.state_dict()
