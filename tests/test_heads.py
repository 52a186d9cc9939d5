"""LevelHeads against sums written out in plain Python."""

import copy
import itertools

import pytest
import torch

from common.model.heads import HEAD_KINDS, LevelHeads, default_scale
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

# Gaps of every kind: Clean skips a level, "spot" has nothing above it, "odd" and "lone" are leaves of upper levels.
GAPS = Hierarchy(
    ["binary", "coarse", "fine"],
    [["clean", "damaged", "lone"], ["loss", "stain", "odd"], ["Clean", "crack", "hole", "dust", "mould", "spot"]],
    [[None] * 3, [1, 1, 1], [(0, 0), 0, 0, 1, 1, None]],
)
PLAIN = Hierarchy(["a", "b"], [["x", "y"], ["p", "q", "r"]], [[None, None], [0, 1, 1]])
TREES = [GAPS, PLAIN]
CHANNELS = 5


def make_heads(kind, tree=GAPS, seed=0):
    torch.manual_seed(seed)
    heads = LevelHeads(tree, CHANNELS, kind)
    with torch.no_grad():
        heads.weight.normal_()
        heads.bias.normal_()
    return heads


def features(*shape, seed=1):
    return torch.randn(4, CHANNELS, *shape, generator=torch.Generator().manual_seed(seed))


def expected_logits(heads, sample):
    """Of one sample (channels,), from the rows of the weight, class by class."""
    tree, x = heads.hierarchy, sample.tolist()
    logits = [
        sum(w * value for w, value in zip(row, x, strict=True)) + b
        for row, b in zip(heads.weight.tolist(), heads.bias.tolist(), strict=True)
    ]
    if heads.kind != "tree":
        return logits
    first = [0, *itertools.accumulate(tree.num_classes)]
    paths = [tree.path(*leaf) for leaf in tree.leaves]
    return [sum(logits[first[level] + label] for level, label in enumerate(path) if label != IGNORE) for path in paths]


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_logits(kind):
    for tree in TREES:
        heads, x = make_heads(kind, tree), features()
        expected = [expected_logits(heads, sample) for sample in x]
        torch.testing.assert_close(heads(x), torch.tensor(expected))
        assert heads(x).shape[1] == (sum(tree.num_classes) if kind == "independent" else tree.num_leaves)


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_dense_features_are_treated_like_pooled_ones(kind):
    heads, x = make_heads(kind), features(3, 2)
    pixels = x.movedim(1, -1).reshape(-1, CHANNELS)
    dense, flat = heads(x), heads(pixels)
    torch.testing.assert_close(dense.movedim(1, -1).reshape(24, -1), flat)
    for level, log_probs in enumerate(heads.log_probs(dense)):
        assert log_probs.shape == (4, GAPS.num_classes[level], 3, 2)
        torch.testing.assert_close(log_probs.movedim(1, -1).reshape(24, -1), heads.log_probs(flat)[level])
    leaf_logits = heads.leaf_logits(dense)
    assert leaf_logits.shape == (4, GAPS.num_leaves, 3, 2)
    torch.testing.assert_close(leaf_logits.movedim(1, -1).reshape(24, -1), heads.leaf_logits(flat))


@pytest.mark.parametrize("kind", ["tree", "flat"])
def test_probabilities_agree_over_levels(kind):
    """A class has the probability of its children, and of itself if it is a leaf."""
    for tree in TREES:
        heads = make_heads(kind, tree)
        logits = heads(features())
        probs = [level.exp() for level in heads.log_probs(logits)]
        leaf_probs = logits.softmax(1)
        for level, count in enumerate(tree.num_classes):
            for index in range(count):
                children = [
                    probs[below][:, child]
                    for below in range(level + 1, tree.num_levels)
                    for child, parent in enumerate(tree.parents[below])
                    if parent == (level, index)
                ]
                total = sum(children) if children else leaf_probs[:, tree.leaves.index((level, index))]
                torch.testing.assert_close(probs[level][:, index], total)


def test_independent_levels_each_sum_to_one():
    for tree in TREES:
        heads = make_heads("independent", tree)
        logits = heads(features())
        start = 0
        for log_probs, count in zip(heads.log_probs(logits), tree.num_classes, strict=True):
            torch.testing.assert_close(log_probs.exp(), logits[:, start : start + count].softmax(1))
            start += count


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_only_the_levels_wanted(kind):
    heads = make_heads(kind)
    logits = heads(features())
    every, some = heads.log_probs(logits), heads.log_probs(logits, [2])
    assert some[:2] == [None, None] and torch.equal(some[2], every[2])


def test_leaf_logits_of_independent_levels_are_sums_of_log_probs():
    heads = make_heads("independent")
    logits = heads(features())
    log_probs = heads.log_probs(logits)
    for position, leaf in enumerate(GAPS.leaves):
        path = GAPS.path(*leaf)
        terms = [log_probs[level][:, label] for level, label in enumerate(path) if label != IGNORE]
        expected = sum(terms) * GAPS.num_levels / len(terms)  # or paths with gaps would have less to sum
        torch.testing.assert_close(heads.leaf_logits(logits)[:, position], expected)


@pytest.mark.parametrize("kind", ["tree", "flat"])
def test_leaf_logits_of_a_softmax_over_leaves_are_the_logits(kind):
    heads = make_heads(kind)
    logits = heads(features())
    assert heads.leaf_logits(logits) is logits


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_autocast_rounds_no_logits(kind):
    """The same float32 logits and gradients, whatever the precision of what comes before the heads."""
    for dtype in [torch.bfloat16, torch.float16]:
        for shape in [(), (2, 2)]:
            heads, x = make_heads(kind), features(*shape).to(dtype)
            expected = heads(x.float())
            expected.square().sum().backward()
            gradients = [parameter.grad.clone() for parameter in heads.parameters()]
            heads.zero_grad()
            with torch.autocast("cpu", dtype):
                logits = heads(x)
            logits.square().sum().backward()
            assert logits.dtype == torch.float32 and torch.equal(logits, expected)
            assert all(torch.equal(p.grad, old) for p, old in zip(heads.parameters(), gradients, strict=True))
            assert torch.equal(copy.deepcopy(heads).to(dtype)(x), copy.deepcopy(heads).to(dtype).float()(x.float()))
            assert heads.double()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_every_parameter_learns(kind):
    """Every class has a leaf below it, or is one."""
    for tree in TREES:
        heads, x = make_heads(kind, tree), features()
        last = heads.log_probs(heads(x))[-1]
        every_level = sum(level.exp().pow(2).sum() for level in heads.log_probs(heads(x)))
        for loss in (every_level, last.exp().pow(2).sum()):
            heads.zero_grad()
            loss.backward()
            learns = heads.weight.grad.abs().amax(1) > 0
            if kind == "independent" and loss is not every_level:  # only the last level
                assert learns.tolist() == [False] * sum(tree.num_classes[:-1]) + [True] * tree.num_classes[-1]
            else:
                assert learns.all() and (heads.bias.grad != 0).all()


def test_a_node_gets_the_gradient_of_its_leaves():
    heads = make_heads("tree", PLAIN)
    upstream = torch.tensor([[1.0, 10.0, 100.0]] * 4)
    heads(features()).backward(upstream)
    assert heads.bias.grad.tolist() == [4, 440, 4, 40, 400]
    total = features().sum(0)
    expected = torch.stack([total * factor for factor in (1, 110, 1, 10, 100)])
    torch.testing.assert_close(heads.weight.grad, expected)


# ---- starting from another classifier


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_init_leaves(kind):
    for tree in TREES:
        for with_bias in [True, False]:
            classifier = torch.nn.Linear(CHANNELS, 9, bias=with_bias)
            heads, x = make_heads(kind, tree), features()
            before = heads(x).detach()
            count = tree.num_classes[-1]
            rows = [8, None, *[(3 * index) % 8 for index in range(count - 2)]]
            heads.init_leaves(classifier.weight, classifier.bias, rows)
            wanted, known = classifier(x), [index for index in range(count) if rows[index] is not None]
            logits = heads(x)[:, -count:] if kind == "independent" else heads(x)[:, :count]
            torch.testing.assert_close(logits[:, known], wanted[:, [rows[index] for index in known]])
            if kind == "tree":  # everything else starts at 0
                assert not logits[:, 1].any() and not heads(x)[:, count:].any()
            else:  # and here as it was
                others = torch.ones(before.shape[1], dtype=torch.bool)
                others[(sum(tree.num_classes[:-1]) if kind == "independent" else 0) + torch.tensor(known)] = False
                torch.testing.assert_close(heads(x)[:, others], before[:, others])
            assert heads.weight.requires_grad and heads.weight.grad_fn is None


def test_init_leaves_of_another_width():
    with pytest.raises(ValueError, match="takes 7 features, the backbone has 5"):
        make_heads("tree").init_leaves(torch.zeros(3, 7), torch.zeros(3), [0] * 6)


# ---- the rest


def test_logit_offsets():
    per_level = [torch.arange(n) + 10.0 * level for level, n in enumerate(GAPS.num_classes)]
    leaves = [20, 21, 22, 23, 24, 25, 2, 12]  # those of the last level, then "lone" and "odd"
    assert make_heads("independent").logit_offsets(per_level).tolist() == [0, 1, 2, 10, 11, 12, *leaves[:6]]
    for kind in ("tree", "flat"):
        assert make_heads(kind).logit_offsets(per_level).tolist() == leaves


@pytest.mark.parametrize("scale", [1.0, 0.5, default_scale("tree", 3)])
def test_scale_of_a_tree(scale):
    """Logits are scaled sums over paths, leaves from a classifier are that classifier, and models remember it."""
    torch.manual_seed(0)
    plain, scaled = LevelHeads(GAPS, CHANNELS, "tree"), LevelHeads(GAPS, CHANNELS, "tree", scale)
    plain.bias.data.normal_()
    scaled.load_state_dict(plain.state_dict())
    features = torch.randn(5, CHANNELS)
    torch.testing.assert_close(scaled(features), scale * plain(features))
    classifier = torch.nn.Linear(CHANNELS, GAPS.num_leaves)
    scaled.init_leaves(classifier.weight, classifier.bias, list(range(GAPS.num_classes[-1])))
    last = slice(0, GAPS.num_classes[-1])
    torch.testing.assert_close(scaled(features)[:, last], classifier(features)[:, last])
    assert LevelHeads(GAPS, CHANNELS, "flat", scale).scale == 1.0 == default_scale("flat", 3)


def test_a_new_tree_head_starts_as_a_flat_one():
    tree = Hierarchy(["a", "b", "c"], [["x"], ["y"], [str(i) for i in range(50)]], [[None], [0], [0] * 50])
    torch.manual_seed(0)
    features = torch.randn(400, 300)
    flat, new = (LevelHeads(tree, 300, kind, default_scale(kind, 3)) for kind in ("flat", "tree"))
    assert new(features).std().item() == pytest.approx(flat(features).std().item(), rel=0.1)


def test_unknown_kind():
    with pytest.raises(ValueError, match="'softmax'; choose from tree, independent, flat"):
        LevelHeads(GAPS, 3, "softmax")


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_fresh_heads_are_small_and_unbiased(kind):
    torch.manual_seed(0)
    heads = LevelHeads(GAPS, 200, kind)
    assert not heads.bias.any() and 0.015 < heads.weight.std() < 0.025
    assert [name for name, _ in heads.named_parameters()] == ["weight", "bias"] == list(heads.state_dict())


@pytest.mark.parametrize("kind", HEAD_KINDS)
def test_built_on_the_meta_device_and_filled_later(kind):
    """As from_pretrained of Transformers does."""
    source = make_heads(kind)
    with torch.device("meta"):
        heads = LevelHeads(GAPS, CHANNELS, kind)
    assert heads.weight.device.type == "meta"
    heads.load_state_dict(source.state_dict(), assign=True)
    assert torch.equal(heads(features()), source(features()))


def test_copies_do_not_share_parameters():
    """An exponential moving average copies the model."""
    heads = make_heads("tree")
    before = heads(features())
    twin = copy.deepcopy(heads)
    assert torch.equal(twin(features()), before)
    with torch.no_grad():
        twin.weight.zero_()
    assert torch.equal(heads(features()), before) and not torch.equal(twin(features()), before)


# ---- from another model's classes

BEFORE = Hierarchy(["genus", "species"], [["A", "B"], ["a one", "a two", "b one"]], [[None, None], [0, 0, 1]])
# In another order and spelling, with a new species of A, a new genus, and a species that is gone.
AFTER = Hierarchy(
    ["genus", "species"], [["C", "b", "A"], ["B ONE", "a new", "a one", "c one"]], [[None] * 3, [1, 2, 2, 0]]
)


@pytest.mark.parametrize("new", HEAD_KINDS)
@pytest.mark.parametrize("old", HEAD_KINDS)
def test_classes_are_kept_by_name_and_new_ones_start_as_their_parent(old, new):
    torch.manual_seed(0)
    before, after = LevelHeads(BEFORE, 5, old, 0.7), LevelHeads(AFTER, 5, new, 0.5)
    with torch.no_grad():
        for head in (before, after):
            head.weight.normal_()
            head.bias.normal_()
    random = after.weight.clone()
    assert after.init_classes(before.classifiers()) == 4
    features = torch.randn(3, 5)
    logits = [before(features), after(features)]
    if old == "independent":
        logits[0] = logits[0][:, 2:]
    if new == "independent":
        logits[1] = logits[1][:, 3:]
    torch.testing.assert_close(logits[1][:, [2, 0]], logits[0][:, [0, 2]], rtol=1e-4, atol=1e-5)
    nodes = torch.cat([before.weight, before.bias[:, None]], 1)
    parent = {"tree": 0.7 * nodes[0], "flat": nodes[:2].mean(0), "independent": nodes[0]}[old]
    expected = features @ parent[:-1] + parent[-1]
    torch.testing.assert_close(logits[1][:, 1], expected, rtol=1e-4, atol=1e-5)
    # of a genus that was not known; in a tree it adds nothing
    assert torch.equal(after.weight[-1], torch.zeros(5) if new == "tree" else random[-1])
    assert after.init_classes({}) == 0


def test_the_same_classes_start_as_they_were():
    before, after = LevelHeads(BEFORE, 5, "tree", 0.7), LevelHeads(BEFORE, 5, "tree", 0.7)
    assert after.init_classes(before.classifiers()) == 5
    torch.testing.assert_close(after.weight, before.weight)
