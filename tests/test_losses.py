"""Losses against torch.nn.CrossEntropyLoss and formulas written out in plain Python."""

import math
import random

import pytest
import torch
from torch.nn import CrossEntropyLoss

from common.losses.class_weights import CLASS_WEIGHTINGS, class_weights, count_labels, levels_where_labels_end
from common.losses.cross_entropy import LevelCrossEntropy
from common.model.heads import HEAD_KINDS, LevelHeads
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE
from common.optim.schedule import level_weights

WEIGHTS = [0.2, 0.3, 0.5]
# Gaps of every kind: Clean skips a level, "spot" has nothing above it, "odd" and "lone" are leaves of upper levels.
TREE = Hierarchy(
    ["binary", "coarse", "fine"],
    [["clean", "damaged", "lone"], ["loss", "stain", "odd"], ["Clean", "crack", "hole", "dust", "mould", "spot"]],
    [[None] * 3, [1, 1, 1], [(0, 0), 0, 0, 1, 1, None]],
)


def make_loss(kind="tree", weights=WEIGHTS, **options):
    return LevelCrossEntropy(LevelHeads(TREE, 4, kind), weights, **options)


def random_logits(kind, num_samples=40, seed=0, shape=(), scale=2.0):
    outputs = sum(TREE.num_classes) if kind == "independent" else TREE.num_leaves
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(num_samples, outputs, *shape, generator=generator, dtype=torch.float64)
    return logits.float().requires_grad_()


def random_labels(num_samples=40, seed=0, shape=()):
    """Paths of the tree, some of them cut off at the end (partial labels), some without any label."""
    generator = torch.Generator().manual_seed(seed + 1)
    leaves = torch.randint(TREE.num_leaves, (num_samples, *shape), generator=generator)
    labels = torch.stack(TREE.lift(leaves), 1)
    depth = torch.randint(7, (num_samples, 1, *shape), generator=generator)
    return labels.masked_fill(torch.arange(3).view(1, 3, *(1,) * len(shape)) >= depth, IGNORE)


def some_class_weights():
    return [torch.rand(n, generator=torch.Generator().manual_seed(n)) + 0.2 for n in TREE.num_classes]


# CrossEntropyLoss ignores -100, which is IGNORE, by default.
def gradient(loss, logits):
    return torch.autograd.grad(loss, logits, retain_graph=True)[0]


# ---- the value


@pytest.mark.parametrize("shape", [(), (3, 2)])
@pytest.mark.parametrize("options", [{}, {"class_weights": some_class_weights()}, {"label_smoothing": 0.1}])
def test_independent_heads_equal_cross_entropy_of_torch(options, shape):
    logits, labels = random_logits("independent", shape=shape), random_labels(shape=shape)
    expected = 0
    for level, part in enumerate(logits.split(TREE.num_classes, dim=1)):
        weight = options["class_weights"][level] if "class_weights" in options else None
        criterion = CrossEntropyLoss(weight, label_smoothing=options.get("label_smoothing", 0))
        expected = expected + WEIGHTS[level] * criterion(part, labels[:, level])
    loss = make_loss("independent", **options)(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))


def brute_force_log_prob(row, label, level):
    """Of one class, from the leaf logits of one sample, in plain Python."""
    total = math.fsum(math.exp(score) for score in row)
    ancestors = TREE.ancestors.tolist()
    return math.log(
        math.fsum(math.exp(s) for s, path in zip(row, ancestors, strict=True) if path[level] == label) / total
    )


@pytest.mark.parametrize("kind", ["tree", "flat"])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_leaf_softmax_equals_brute_force(kind, smoothing):
    logits, labels, weights = random_logits(kind), random_labels(), some_class_weights()
    expected = 0.0
    for level, num_classes in enumerate(TREE.num_classes):
        above = below = 0.0
        for row, label in zip(logits.tolist(), labels[:, level].tolist(), strict=True):
            if label == IGNORE:
                continue
            log_probs = [brute_force_log_prob(row, index, level) for index in range(num_classes)]
            target = [smoothing / num_classes + (1 - smoothing) * (index == label) for index in range(num_classes)]
            weight = weights[level][label].item()
            above -= weight * sum(q * p for q, p in zip(target, log_probs, strict=True))
            below += weight
        expected += WEIGHTS[level] * above / below
    loss = make_loss(kind, class_weights=weights, label_smoothing=smoothing)(logits, labels)
    assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_weights_and_smoothing_together_are_a_weighted_mean_of_smoothed_losses():
    logits, labels, weights = random_logits("independent"), random_labels(), some_class_weights()
    expected = 0
    for level, part in enumerate(logits.split(TREE.num_classes, dim=1)):
        each = CrossEntropyLoss(label_smoothing=0.1, reduction="none")(part, labels[:, level])
        weight = torch.where(labels[:, level] < 0, 0, weights[level][labels[:, level].clamp(min=0)])
        expected = expected + WEIGHTS[level] * (each * weight).sum() / weight.sum()
    loss = make_loss("independent", class_weights=weights, label_smoothing=0.1)(logits, labels)
    torch.testing.assert_close(loss, expected)


def test_levels_of_weight_zero_do_not_count():
    logits, labels = random_logits("independent"), random_labels()
    loss = make_loss("independent", [0.0, 0.0, 1.0])(logits, labels)
    last = logits[:, -TREE.num_classes[-1] :]
    torch.testing.assert_close(loss, CrossEntropyLoss()(last, labels[:, -1]))
    assert not gradient(loss, logits)[:, : -TREE.num_classes[-1]].any()


def test_gradient_is_right():
    for kind in HEAD_KINDS:
        logits = random_logits(kind, 5).detach().double().requires_grad_()
        loss, labels = make_loss(kind, class_weights=some_class_weights(), label_smoothing=0.1), random_labels(5)
        # float32 inside: compare with differences of a wide step.
        analytic = gradient(loss(logits, labels), logits)
        for index in [(0, 0), (1, 3), (4, 7)]:
            step = torch.zeros_like(logits)
            step[index] = 1e-2
            numeric = (loss(logits + step, labels) - loss(logits - step, labels)).item() / 2e-2
            assert analytic[index].item() == pytest.approx(numeric, abs=2e-4)


# ---- ignored elements


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("shape", [(), (2, 2)])
@pytest.mark.parametrize("num_samples", [0, 6])
def test_nothing_labelled_is_exactly_zero_and_in_the_graph(kind, shape, num_samples):
    logits = random_logits(kind, num_samples, shape=shape)
    labels = torch.full((num_samples, 3, *shape), IGNORE)
    loss = make_loss(kind, class_weights=some_class_weights(), label_smoothing=0.1, backoff_levels=[0, 1])(
        logits, labels
    )
    assert loss.item() == 0 and loss.dtype == torch.float32 and loss.requires_grad
    loss.backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_a_level_without_labels_adds_zero(kind):
    logits, labels = random_logits(kind), random_labels()
    labels[:, 1] = IGNORE
    loss = make_loss(kind)(logits, labels)
    without = make_loss(kind, [WEIGHTS[0], 0.0, WEIGHTS[2]])(logits, labels)
    assert loss.item() == without.item()
    assert torch.equal(gradient(loss, logits), gradient(without, logits))


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_ignored_samples_change_neither_loss_nor_gradient(kind):
    logits, labels = random_logits(kind, 12), random_labels(12)
    loss_fn = make_loss(kind, class_weights=some_class_weights(), label_smoothing=0.1, backoff_levels=[0, 1])
    extra = random_logits(kind, 5, seed=9, scale=30).detach()
    together = torch.cat([extra, logits.detach()]).requires_grad_()
    alone = loss_fn(logits, labels)
    loss = loss_fn(together, torch.cat([torch.full((5, 3), IGNORE), labels]))
    torch.testing.assert_close(loss, alone, rtol=1e-6, atol=0)
    grad = gradient(loss, together)
    torch.testing.assert_close(grad[5:], gradient(alone, logits))
    assert not grad[:5].any()


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_extreme_half_precision_logits_stay_finite(kind, dtype):
    signs = torch.randint(2, random_logits(kind).shape, generator=torch.Generator().manual_seed(3)) * 2 - 1
    logits = (6e4 * signs).to(dtype).requires_grad_()
    loss = make_loss(kind, class_weights=some_class_weights(), label_smoothing=0.1)(logits, random_labels())
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() > 1e3 and math.isfinite(loss.item())
    assert logits.grad.isfinite().all() and logits.grad.any()


def test_half_precision_logits_are_summed_in_float32():
    """In float16 the sum of 200 losses of 1,000 each would overflow."""
    logits = torch.zeros(200, TREE.num_leaves, dtype=torch.float16)
    logits[:, 0] = 1000
    loss_fn = make_loss("flat", [0.0, 0.0, 1.0])
    assert loss_fn.level_sums(logits, torch.full((200, 3), 1))[2].item() == pytest.approx(200_000)


# ---- parts of a batch


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("backoff", [[], [0, 1]])
def test_micro_batches_with_common_denominators_add_up(kind, backoff):
    logits, labels = random_logits(kind, 24), random_labels(24)
    labels[8:12, 2] = IGNORE  # a micro-batch without any label of the last level
    loss_fn = make_loss(kind, class_weights=some_class_weights(), label_smoothing=0.1, backoff_levels=backoff)
    whole = loss_fn(logits, labels)
    denominators = loss_fn.label_weights(labels)
    parts = [slice(start, start + 4) for start in range(0, 24, 4)]
    summed = sum(loss_fn(logits[part], labels[part], denominators) for part in parts)
    torch.testing.assert_close(summed, whole)
    torch.testing.assert_close(gradient(summed, logits), gradient(whole, logits))
    torch.testing.assert_close(sum(loss_fn.label_weights(labels[part]) for part in parts), denominators)


def test_sums_and_denominators_of_batches_combine_to_the_loss():
    loss_fn, logits, labels = make_loss(class_weights=some_class_weights()), random_logits("tree"), random_labels()
    parts = [(logits[part], labels[part]) for part in (slice(0, 3), slice(3, 25), slice(25, 40))]
    sums = sum(loss_fn.level_sums(*part).double() for part in parts)
    denominators = sum(loss_fn.label_weights(part[1]) for part in parts)
    assert loss_fn.combine(sums, denominators).item() == pytest.approx(loss_fn(logits, labels).item(), rel=1e-6)
    assert loss_fn.combine(torch.zeros(3), torch.zeros(3)) == 0


def test_mixing_is_the_mean_over_both_labels_of_every_image():
    loss_fn, mix = make_loss("independent", class_weights=some_class_weights()), 0.3
    logits, labels, others = random_logits("independent"), random_labels(), random_labels(seed=5)
    expected = 0
    for level, part in enumerate(logits.split(TREE.num_classes, dim=1)):
        weight = loss_fn.get_buffer(f"class_weight_{level}")
        each = CrossEntropyLoss(weight, reduction="none")
        above = mix * each(part, labels[:, level]).sum() + (1 - mix) * each(part, others[:, level]).sum()
        total = sum(
            share * sum(weight[label].item() for label in column[:, level].tolist() if label >= 0)
            for share, column in ((mix, labels), (1 - mix, others))
        )
        expected = expected + WEIGHTS[level] * above / total
    torch.testing.assert_close(loss_fn(logits, labels, None, others, mix), expected)
    torch.testing.assert_close(loss_fn(logits, labels, None, others, 1.0), loss_fn(logits, labels))
    torch.testing.assert_close(loss_fn(logits, labels, None, others, 0.0), loss_fn(logits, others))


def test_mixing_pairs_needs_no_other_denominators():
    """What the training loop relies on: swapping within a batch leaves the sums of weights as they are."""
    loss_fn = make_loss(class_weights=some_class_weights())
    logits, labels = random_logits("tree", 8), random_labels(8)
    swapped = labels[torch.arange(8) ^ 1]
    given = loss_fn(logits, labels, loss_fn.label_weights(labels), swapped, 0.3)
    torch.testing.assert_close(given, loss_fn(logits, labels, None, swapped, 0.3))


# ---- rare classes


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_logit_adjustment_adds_log_priors_in_training_only(kind):
    logits, labels = random_logits(kind), random_labels()
    counts = [torch.tensor([70, 900, 30]), torch.tensor([600, 0, 300]), torch.tensor([50, 400, 100, 0, 7, 3])]
    loss_fn = make_loss(kind, logit_adjustment=1.5, counts=counts)
    log_priors = [[math.log(max(n, 1) / max(sum(c), 1)) for n in c] for c in (c.tolist() for c in counts)]
    if kind == "independent":
        offset = log_priors[0] + log_priors[1] + log_priors[2]
    else:
        offset = log_priors[2] + [log_priors[0][2], log_priors[1][2]]  # "lone" and "odd" are leaves of upper levels
    adjusted = logits + 1.5 * torch.tensor(offset)
    plain = make_loss(kind)
    torch.testing.assert_close(loss_fn.train()(logits, labels), plain(adjusted, labels))
    torch.testing.assert_close(loss_fn.eval()(logits, labels), plain(logits, labels), rtol=0, atol=0)
    assert not torch.allclose(loss_fn.train()(logits, labels), plain(logits, labels))


def test_logit_adjustment_of_dense_logits():
    counts = [torch.tensor([7, 90, 3]), torch.tensor([60, 10, 30]), torch.tensor([50, 400, 100, 1, 7, 3])]
    loss_fn = make_loss(logit_adjustment=1.0, counts=counts)
    logits, labels = random_logits("tree", 4, shape=(3, 2)), random_labels(4, shape=(3, 2))
    pixels = logits.movedim(1, -1).reshape(24, -1)
    torch.testing.assert_close(loss_fn(logits, labels), loss_fn(pixels, labels.movedim(1, -1).reshape(24, 3)))


FORMULAS = {
    "inverse": lambda n: 1 / n,
    "inverse_sqrt": lambda n: 1 / math.sqrt(n),
    "effective_number": lambda n: (1 - 0.9999) / (1 - 0.9999**n),
}


@pytest.mark.parametrize("method", FORMULAS)
@pytest.mark.parametrize("max_ratio", [1e9, 100.0, 3.0, 1.0])
def test_class_weights(method, max_ratio):
    counts = [1, 5, 0, 130, 2000, 300_000]
    raw = [FORMULAS[method](n) for n in counts if n]
    raw = [min(value, min(raw) * max_ratio) for value in raw]
    occurring = [n for n in counts if n]
    scale = sum(occurring) / sum(w * n for w, n in zip(raw, occurring, strict=True))
    weights = class_weights(torch.tensor(counts), method, max_ratio)
    assert weights.dtype == torch.float32
    assert weights[torch.tensor(counts) > 0].tolist() == pytest.approx([w * scale for w in raw], rel=1e-4)
    assert weights[2] == 1
    assert (weights * torch.tensor(counts)).sum().item() / sum(counts) == pytest.approx(1, rel=1e-5)
    seen = weights[torch.tensor(counts) > 0]
    assert (seen.max() / seen.min()).item() <= max_ratio * (1 + 1e-5)
    assert seen.tolist() == sorted(seen.tolist(), reverse=True)


@pytest.mark.parametrize("method", CLASS_WEIGHTINGS)
def test_class_weights_without_samples_are_one(method):
    assert class_weights(torch.zeros(3, dtype=torch.long), method).tolist() == [1, 1, 1]


def test_class_weights_none():
    assert class_weights(torch.tensor([1, 1000]), "none").tolist() == [1, 1]


def test_count_labels():
    labels = random_labels(200)
    for level, counts in enumerate(count_labels(labels, TREE)):
        column = labels[:, level].tolist()
        assert counts.tolist() == [column.count(index) for index in range(TREE.num_classes[level])]
    unlabelled = count_labels(torch.full((5, 3), IGNORE), TREE)
    assert [counts.tolist() for counts in unlabelled] == [[0] * n for n in TREE.num_classes]


# ---- weights of the levels


@pytest.mark.parametrize(
    "given, expected",
    [
        (None, [0, 0, 1]),
        (["leaf"], [0, 0, 1]),
        (["equal"], [1 / 3] * 3),
        (["leaf_heavy"], [0.25, 0.25, 0.5]),
        (["0.2", "0.3", "1.5"], [0.1, 0.15, 0.75]),
        (["0", "2", "0"], [0, 1, 0]),
    ],
)
def test_level_weights(given, expected):
    assert level_weights(given, TREE) == pytest.approx(expected)


@pytest.mark.parametrize("preset", ["leaf", "equal", "leaf_heavy", "7"])
def test_level_weights_of_a_single_level(preset):
    assert level_weights([preset], Hierarchy(["only"], [["a", "b"]], [[None, None]])) == [1]


@pytest.mark.parametrize(
    "given, message",
    [
        (["1", "2"], "2 numbers for 3 levels.*binary, coarse, fine"),
        (["leafy"], "leaf, equal, leaf_heavy.*leafy"),
        (["1", "x", "2"], "takes numbers"),
        (["leaf", "equal", "leaf"], "takes numbers"),
        (["1", "-1", "1"], "at least 0"),
        (["0", "0", "0"], "not all 0"),
        (["1", "nan", "1"], "finite"),
        (["1", "inf", "1"], "finite"),
    ],
)
def test_wrong_level_weights(given, message):
    with pytest.raises(ValueError, match=message):
        level_weights(given, TREE)


def test_the_loss_owns_no_parameters_and_saves_nothing():
    loss_fn = make_loss(class_weights=some_class_weights())
    assert not list(loss_fn.parameters()) and not loss_fn.state_dict()


@pytest.mark.parametrize("seed", range(3))
def test_order_of_the_samples_does_not_matter(seed):
    loss_fn, logits, labels = make_loss(class_weights=some_class_weights()), random_logits("tree"), random_labels()
    order = random.Random(seed).sample(range(40), 40)
    torch.testing.assert_close(loss_fn(logits[order], labels[order]), loss_fn(logits, labels))


@pytest.mark.parametrize("kind", HEAD_KINDS)
@pytest.mark.parametrize("weights", [[0, 0, 1], WEIGHTS])
def test_a_label_that_ends_early_stands_in_for_the_finer_levels(kind, weights):
    """A specimen known to its genus trains the genus, even if all the weight is on the species."""
    labels = random_labels(seed=5)
    assert levels_where_labels_end(labels) == [0, 1]
    loss_fn = make_loss(
        kind, weights, class_weights=some_class_weights(), backoff_levels=levels_where_labels_end(labels)
    )
    logits = random_logits(kind, seed=5)
    log_probs = loss_fn._heads[0].log_probs(logits.detach())
    expected = 0.0
    for slot, weight in enumerate(weights):
        total = count = 0.0
        for row, path in enumerate(labels.tolist()):
            named = [level for level in range(3) if path[level] >= 0]
            if not named:
                continue
            level = slot if path[slot] >= 0 else max(named)
            if level > slot:
                continue  # the level has no value on this path
            class_weight = float(some_class_weights()[level][path[level]])
            total -= class_weight * float(log_probs[level][row, path[level]])
            count += class_weight
        expected += weight * total / count
    assert loss_fn(logits, labels).item() == pytest.approx(expected, rel=1e-5)
    assert levels_where_labels_end(labels[labels[:, 2] >= 0]) == []


def test_levels_where_labels_end():
    labels = torch.tensor([[0, 1, 2], [0, IGNORE, IGNORE], [IGNORE] * 3, [0, IGNORE, 2], [IGNORE, 1, 2]])
    assert levels_where_labels_end(labels) == [0]
    assert levels_where_labels_end(torch.tensor([[IGNORE, 1, IGNORE], [1, IGNORE, IGNORE]])) == [0, 1]
    assert levels_where_labels_end(labels[3:]) == levels_where_labels_end(labels[:0]) == []


def test_with_early_ends_the_last_level_is_the_likelihood_of_what_is_known():
    logits, labels = random_logits("tree"), random_labels()
    paths, probs, known = TREE.ancestors.tolist(), logits.softmax(1), []
    for sample, row in enumerate(labels.tolist()):
        finest = max((level for level, label in enumerate(row) if label != IGNORE), default=None)
        if finest is not None:
            known.append(-probs[sample, [path[finest] == row[finest] for path in paths]].sum().log())
    expected = torch.stack(known).mean()
    loss = make_loss("tree", [0.0, 0.0, 1.0], backoff_levels=[0, 1])(logits, labels)
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(gradient(loss, logits), gradient(expected, logits))
