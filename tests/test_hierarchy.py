"""Hierarchy against plain Python loops over random trees with gaps."""

import copy
import itertools
import json
import math
import pickle
import random

import pytest
import torch

from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE, fold_name

SEEDS = range(6)
SHAPES = [(), (3, 2)]


def random_tree(seed, num_levels=4):
    """Parents a level above, several levels above or none; classes of upper levels without children."""
    rng = random.Random(seed)
    sizes = [rng.randint(2, 4) + 3 * level for level in range(num_levels)]
    parents = [[None] * sizes[0]]
    for level in range(1, num_levels):
        above = [rng.choice([level - 1] * 4 + [rng.randrange(level), None]) for _ in range(sizes[level])]
        # The last class of a level never has a child.
        parents.append([None if a is None else (a, rng.randrange(sizes[a] - 1)) for a in above])
    names = [[f"{level}_{index}" for index in range(size)] for level, size in enumerate(sizes)]
    return Hierarchy(list("abcdefg"[:num_levels]), names, parents)


def leaf_paths(tree):
    """One row per leaf, by walking up the parents."""
    children = {tuple(parent) for column in tree.parents for parent in column if parent is not None}
    last = tree.num_levels - 1
    leaves = [(last, index) for index in range(tree.num_classes[last])]
    leaves += [
        (level, index)
        for level in range(last)
        for index in range(tree.num_classes[level])
        if (level, index) not in children
    ]
    rows = []
    for node in leaves:
        row = [IGNORE] * tree.num_levels
        while node is not None:
            row[node[0]] = node[1]
            node = tree.parents[node[0]][node[1]]
        rows.append(row)
    return leaves, rows


def random_scores(tree, seed, shape=(), batch=5):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, n, *shape, generator=generator, dtype=torch.float64) for n in tree.num_classes]


def leaf_log_probs(tree, seed, shape=(), scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(4, tree.num_leaves, *shape, generator=generator, dtype=torch.float64)).log_softmax(1)


def as_rows(tensor):
    """(batch, classes, ...) -> (elements, classes) as lists."""
    return tensor.movedim(1, -1).flatten(0, -2).tolist()


# ---- what it is made of


def test_leaves_and_ancestors():
    for seed in SEEDS:
        tree = random_tree(seed)
        leaves, rows = leaf_paths(tree)
        assert list(tree.leaves) == leaves and tree.num_leaves == len(leaves)
        assert tree.ancestors.tolist() == rows
        assert tree.has_gaps == [any(row[level] == IGNORE for row in rows) for level in range(tree.num_levels)]
        assert [tree.path(*leaf) for leaf in leaves] == [tuple(row) for row in rows]


def test_random_trees_have_all_kinds_of_gaps():
    """Otherwise the tests below would prove less than they seem to."""
    trees = [random_tree(seed) for seed in SEEDS]
    assert any(level < 3 for tree in trees for level, _ in tree.leaves)
    skips = [
        level - parent[0] for tree in trees for level, column in enumerate(tree.parents) for parent in column if parent
    ]
    assert max(skips) > 1
    assert any(parent is None for tree in trees for column in tree.parents[1:] for parent in column)


def test_names_and_paths():
    tree = Hierarchy(
        ["a", "b", "c"], [["x", "y"], ["p", "p"], ["s", "s", "t"]], [[None] * 2, [0, 1], [0, (0, 1), None]]
    )
    assert tree.num_levels == 3 and tree.num_classes == (2, 2, 3)
    assert tree.path(2, 1) == (1, IGNORE, 1) and tree.path_names(2, 1) == ("y", None, "s")
    assert tree.display_names(1) == ["p (x)", "p (y)"]
    assert tree.display_names(2) == ["s (x > p)", "s (y)", "t"]
    assert tree.leaf_names() == ["s (x > p)", "s (y)", "t", "p (y)"]
    assert repr(tree) == "Hierarchy(a 2 > b 2 > c 3; 4 leaves)"
    assert tree.node_index()[2] == {"s": [0, 1], "t": [2]}


def test_a_repeated_name_without_parent_is_told_apart():
    tree = Hierarchy(["a", "b"], [["x"], ["s", "s"]], [[None], [0, None]])
    assert tree.leaf_names() == ["s (x)", "s (root)"]


def test_fold_name():
    assert fold_name("  Amanita \t Muscaria ") == "amanita muscaria" == fold_name("AMANITA MUSCARIA")


# ---- tensor operations


def test_lift():
    for seed in SEEDS:
        for shape in [(9,), (2, 3, 4), ()]:
            tree = random_tree(seed)
            rows = [*leaf_paths(tree)[1], [IGNORE] * tree.num_levels]
            labels = torch.randint(-1, tree.num_leaves, shape, generator=torch.Generator().manual_seed(seed))
            lifted = tree.lift(labels)
            assert len(lifted) == tree.num_levels
            for level, column in enumerate(lifted):
                assert column.dtype == torch.long and column.shape == labels.shape
                assert column.flatten().tolist() == [rows[label][level] for label in labels.flatten().tolist()]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_lift_of_narrow_integers(dtype):
    """The extra row for IGNORE is number 300, which does not fit in 8 bits."""
    tree = Hierarchy(["a", "b"], [["x", "y"], range(300)], [[None] * 2, [i % 2 for i in range(300)]])
    labels = torch.tensor([0, 1, 117], dtype=dtype)
    assert [column.tolist() for column in tree.lift(labels)] == [[0, 1, 1], [0, 1, 117]]
    if dtype.is_signed:
        assert tree.lift(torch.tensor([-100, 3], dtype=dtype))[1].tolist() == [IGNORE, 3]


def test_path_scores_and_best_path():
    for seed in SEEDS:
        for shape in SHAPES:
            tree = random_tree(seed)
            scores = random_scores(tree, seed, shape)
            rows = leaf_paths(tree)[1]
            per_level = [as_rows(score) for score in scores]
            totals, best = (
                as_rows(tree.path_scores(scores)),
                torch.stack(tree.lift(tree.path_scores(scores).argmax(1)), 1),
            )
            for element, (total, chosen) in enumerate(zip(totals, as_rows(best), strict=True)):
                expected = [
                    math.fsum(per_level[level][element][label] for level, label in enumerate(row) if label != IGNORE)
                    for row in rows
                ]
                assert total == pytest.approx(expected)
                assert chosen == rows[max(range(len(rows)), key=expected.__getitem__)]


def brute_force_marginals(tree, log_probs, level):
    rows = leaf_paths(tree)[1]
    return [
        [
            math.log(math.fsum(math.exp(p) for p, row in zip(element, rows, strict=True) if row[level] == index))
            for index in range(tree.num_classes[level])
        ]
        for element in as_rows(log_probs)
    ]


def test_marginalize():
    for seed in SEEDS:
        for shape in SHAPES:
            tree = random_tree(seed)
            log_probs = leaf_log_probs(tree, seed, shape)
            for level, marginal in enumerate(tree.marginalize(log_probs)):
                assert marginal.shape == (4, tree.num_classes[level], *shape)
                expected = brute_force_marginals(tree, log_probs, level)
                for row, expected_row in zip(as_rows(marginal), expected, strict=True):
                    assert row == pytest.approx(expected_row)
                total = marginal.exp().sum(1)
                if tree.has_gaps[level]:
                    assert (total < 1).all()
                else:
                    assert total.flatten().tolist() == pytest.approx([1.0] * total.numel())


def test_marginalize_wanted_levels_only():
    tree = random_tree(0)
    log_probs = leaf_log_probs(tree, 0)
    every = tree.marginalize(log_probs)
    some = tree.marginalize(log_probs, [2, 0])
    assert some[1] is None and some[3] is None
    assert torch.equal(some[0], every[0]) and torch.equal(some[2], every[2])


def test_gradients():
    for seed in SEEDS[:2]:
        for shape in [(), (2, 1)]:
            tree = random_tree(seed, num_levels=3)
            generator = torch.Generator().manual_seed(seed)
            scores = torch.randn(
                2, tree.num_leaves, *shape, generator=generator, dtype=torch.float64, requires_grad=True
            )
            assert torch.autograd.gradcheck(lambda x, tree=tree: tuple(tree.marginalize(x)), scores)
            assert torch.autograd.gradcheck(lambda x, tree=tree: tuple(tree.marginalize(x.log_softmax(1))), scores)
            per_level = [score.requires_grad_() for score in random_scores(tree, seed, shape, batch=2)]
            assert torch.autograd.gradcheck(lambda *parts, tree=tree: tree.path_scores(parts), per_level)


def test_gradient_of_equal_scores_is_shared_equally():
    """A maximum inside would give it to one of them."""
    tree = Hierarchy(["a", "b"], [["x"], range(4)], [[None], [0] * 4])
    scores = torch.zeros(1, 4, requires_grad=True)
    tree.marginalize(scores)[0].sum().backward()
    assert scores.grad.tolist() == [[0.25] * 4]


def test_extreme_logits_stay_finite():
    for seed in SEEDS:
        for magnitude in [1e4, 1e-30, 6e4]:
            tree = random_tree(seed)
            signs = torch.randint(-1, 2, (6, tree.num_leaves), generator=torch.Generator().manual_seed(seed))
            scores = (magnitude * signs).float().requires_grad_()
            marginals = tree.marginalize(scores.log_softmax(1))
            sum(marginal.sum() for marginal in marginals).backward()
            exact = scores.detach().double().log_softmax(1)
            for marginal, expected in zip(marginals, tree.marginalize(exact), strict=True):
                assert marginal.isfinite().all() and (marginal <= 1e-5).all()
                torch.testing.assert_close(marginal.double(), expected, rtol=1e-5, atol=1e-5)
            assert scores.grad.isfinite().all()


def fits(tree, labels):
    """Whether labels agree with the path of the finest of them wherever that path has a class."""
    named = [level for level, label in enumerate(labels) if label != IGNORE]
    path = tree.path(named[-1], labels[named[-1]]) if named else labels
    return all(expected in (IGNORE, label) for label, expected in zip(labels, path, strict=True))


def test_is_path():
    for seed in SEEDS:
        tree = random_tree(seed, num_levels=3)
        every = list(itertools.product(*[[IGNORE, *range(n)] for n in tree.num_classes]))
        expected = [fits(tree, labels) for labels in every]
        columns = torch.tensor(every).T
        assert tree.is_path(list(columns)).tolist() == expected
        even = len(every) // 2 * 2
        image = list(columns[:, :even].reshape(3, 2, -1))
        assert tree.is_path(image).flatten().tolist() == expected[:even]


def test_paths_are_paths():
    for seed in SEEDS:
        tree = random_tree(seed)
        assert tree.is_path(tree.lift(torch.arange(-1, tree.num_leaves))).all()
        for level, count in enumerate(tree.num_classes):
            nodes = torch.tensor([tree.path(level, index) for index in range(count)])
            assert tree.is_path(list(nodes.T)).all()


# ---- construction and disk


@pytest.mark.parametrize("seed", SEEDS)
def test_round_trips(seed, tmp_path):
    tree = random_tree(seed)
    tree.save(tmp_path / "tree.json")
    saved = json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))
    for again in (
        Hierarchy.from_dict(tree.to_dict()),
        Hierarchy.from_dict(saved),
        Hierarchy.from_dict(json.loads(json.dumps(tree.to_dict(), sort_keys=True))),
        copy.deepcopy(tree),
        pickle.loads(pickle.dumps(tree)),
    ):
        assert again == tree and again.to_dict() == tree.to_dict()
        assert torch.equal(again.ancestors, tree.ancestors) and again.leaves == tree.leaves


def test_equality():
    tree = random_tree(1)
    content = tree.to_dict()
    content["names"]["a"][0] = "other"
    assert Hierarchy.from_dict(content) != tree
    assert tree != "tree" and tree != random_tree(2)


def test_names_beyond_ascii_survive_the_disk(tmp_path):
    tree = Hierarchy(["Gattung"], [["R\u00f6hrling", "\u677e\u8338"]], [[None, None]])
    tree.save(tmp_path / "tree.json")
    assert Hierarchy.from_dict(json.loads((tmp_path / "tree.json").read_text(encoding="utf-8"))).names == tree.names


TWO = ["a", "b"]


@pytest.mark.parametrize(
    "levels, names, parents, message",
    [
        ([], [], [], "at least one level"),
        (["a", "a"], [["x"], ["y"]], [[None], [0]], "no level twice"),
        (TWO, [["x"]], [[None], [0]], "2 levels but names for 1"),
        (TWO, [["x"], ["y"]], [[None]], "2 levels but parents for 1"),
        (TWO, {"a": ["x"], "c": ["y"]}, [[None], [0]], "names are for .*'c'"),
        (TWO, [["x"], []], [[None], []], "'b'.*no class"),
        (TWO, [["x"], ["y", "z"]], [[None], [0]], "'b' has 2 classes but 1 parents"),
        (TWO, [["x"], ["y"]], [[None], [1]], "'y' of level 'b' names parent 1 of level 'a'"),
        (TWO, [["x"], ["y"]], [[None], [-1]], "'y' of level 'b' names parent -1"),
        (TWO, [["x"], ["y", "y"]], [[None], [0, 0]], "twice under the same parent in level 'b'.*'y'"),
        (TWO, [["x", "x"], ["y"]], [[None, None], [0]], "twice.*level 'a'.*'x'"),
        (TWO, [["x"], ["y"]], [[0], [0]], "parent 0: not a class of a level above"),
        (TWO, [["x"], ["y"]], [[None], [[1, 0]]], "not a class of a level above"),
        (TWO, [["x"], ["y"]], [[None], ["x"]], "'x': not a class"),
        (TWO, [["x"], ["y"]], [[None], [0.5]], "0.5: not a class"),
        (TWO, ["x", ["y"]], [[None], [0]], "lists, not 'x'"),
    ],
)
def test_what_is_not_a_tree_is_refused(levels, names, parents, message):
    with pytest.raises(ValueError, match=message):
        Hierarchy(levels, names, parents)


@pytest.mark.parametrize(
    "content",
    [
        {},
        [],
        None,
        7,
        "levels",
        {"levels": ["a"], "names": {"a": ["x"]}},
        {"levels": 3, "names": {}, "parents": {}},
        {"levels": "a", "names": {"a": ["x"]}, "parents": {"a": [None]}},
        {"levels": ["a"], "names": 3, "parents": {"a": [None]}},
        {"levels": ["a"], "names": {"a": 3}, "parents": {"a": [None]}},
        {"levels": ["a"], "names": {"a": ["x"]}, "parents": {"a": None}},
    ],
)
def test_what_is_not_a_dict_of_a_tree_is_refused(content):
    with pytest.raises(ValueError, match="hierarchy"):
        Hierarchy.from_dict(content)


def test_100_000_leaves():
    sizes = [10, 1_000, 100_000]
    parents = [[None] * 10, [i % 10 for i in range(1_000)], [i % 1_000 for i in range(100_000)]]
    tree = Hierarchy(["a", "b", "c"], [[f"{i:06}" for i in range(n)] for n in sizes], parents)
    assert tree.ancestors[54_321].tolist() == [1, 321, 54_321]
    log_probs = torch.zeros(1, 100_000).log_softmax(1)
    torch.testing.assert_close(tree.marginalize(log_probs)[0].exp(), torch.full((1, 10), 0.1))
    assert len(tree.leaf_names()) == 100_000


def test_construction_under_the_meta_device():
    """from_pretrained of Transformers builds models there."""
    with torch.device("meta"):
        tree = random_tree(2)
        lifted = tree.lift(torch.zeros(2, dtype=torch.long, device="cpu"))
        marginals = tree.marginalize(torch.zeros(1, tree.num_leaves, device="cpu").log_softmax(1))
    assert tree.ancestors.device.type == "cpu"
    assert {tensor.device.type for tensor in [*lifted, *marginals]} == {"cpu"}
    assert torch.equal(tree.ancestors, random_tree(2).ancestors)
