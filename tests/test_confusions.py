"""Classes and what they are confused with, against numbers counted by hand."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from common.metrics.report_data import ReportData
from common.model.hierarchy import Hierarchy
from common.report.confusions import (
    ConfusionPairs,
    confused_pairs,
    density,
    hardest_classes,
    in_tree_order,
    scores_by_frequency,
    watched_class,
)

TREE = Hierarchy(
    ["family", "genus", "species"],
    [["F", "G"], ["f1", "f2", "g1"], ["a", "b", "c", "d"]],
    [[None, None], [0, 0, 1], [0, 0, 1, 2]],
)
# (true node, predicted leaf, count); nodes: F 0, G 1; f1 2, f2 3, g1 4; a 5, b 6, c 7, d 8
COUNTS = [(5, 0, 8), (5, 1, 2), (6, 0, 5), (6, 3, 1), (7, 2, 4), (8, 8 - 5, 9), (2, 2, 3), (0, 3, 2)]


def pairs(counts=COUNTS, tree=TREE) -> ConfusionPairs:
    truth, predicted, count = (np.array(column, dtype=np.int64) for column in zip(*counts, strict=True))
    return ConfusionPairs(tree, ReportData(truth, predicted, count))


def test_every_level_counts_what_is_labelled_there():
    rows = np.array([10, 6, 4, 9])[:, None]
    shares = [[8, 2, 0, 0, 0], [5, 0, 0, 1, 0], [0, 0, 4, 0, 0], [0, 0, 0, 9, 0]] / rows
    assert np.allclose(density(pairs(), 2, 60)[0], shares)
    # Genus f1: species a and b, and the three known to genus only, which were predicted as c of f2.
    assert np.allclose(density(pairs(), 1, 60)[0][0], [15 / 19, 3 / 19, 1 / 19, 0])
    assert np.allclose(density(pairs(), 0, 60)[0], [[22 / 25, 3 / 25, 0], [0, 1, 0]])
    labelled, predicted, right = (counts.tolist() for counts in pairs().per_class(1))
    assert (labelled, predicted, right) == ([19, 4, 9], [15, 7, 10], [15, 4, 9])


def test_hardest_classes():
    found = hardest_classes(pairs(), 2)
    assert [score.path[-1] for score in found] == ["b", "a", "d", "c"]
    worst = found[0]
    assert (worst.labelled, worst.recall, worst.precision, worst.f1) == (6, 0, 0, 0)
    second = (found[1].recall, found[1].precision, found[1].f1)
    assert second == pytest.approx((8 / 10, 8 / 13, 16 / 23)) and found[1].path == ["F", "f1", "a"]
    never_predicted = hardest_classes(pairs([(5, 1, 1)]), 2)[0]
    assert never_predicted.f1 == 0 and math.isnan(never_predicted.precision)
    rare = hardest_classes(pairs([(5, 0, 1)]), 2)
    assert [score.path[-1] for score in rare] == ["a"]  # classes that do not occur are not hard


def test_scores_by_frequency():
    found = scores_by_frequency(pairs(), np.array([500, 20, 19, 0]))
    assert list(found) == [name for name in ("many", "medium", "few", "none") if name in found]
    by_hand = {score.path[-1]: score for score in hardest_classes(pairs(), 2)}
    assert (found["many"].num_classes, found["many"].labelled) == (1, by_hand["a"].labelled)
    assert found["many"].f1 == pytest.approx(by_hand["a"].f1) and found["medium"].recall == by_hand["b"].recall
    together = scores_by_frequency(pairs(), np.array([101, 101, 101, 101]))["many"]
    assert together.f1 == pytest.approx(np.mean([score.f1 for score in by_hand.values()]))
    right = sum(score.recall * score.labelled for score in by_hand.values())
    assert together.accuracy == pytest.approx(right / sum(score.labelled for score in by_hand.values()))


def test_confused_pairs_part_where_their_paths_part():
    found = confused_pairs(pairs())
    assert [(pair["shared"], pair["truth"], pair["predicted"], pair["num"]) for pair in found] == [
        (["F", "f1"], ["b"], ["a"], 5),
        (["F", "f1"], ["a"], ["b"], 2),
        ([], ["F", "f1", "b"], ["G", "g1", "d"], 1),
    ]
    assert [pair["share"] for pair in found] == pytest.approx([5 / 6, 2 / 10, 1 / 6])
    assert len(confused_pairs(pairs(), 1)) == 1


def test_leaves_of_upper_levels():
    tree = Hierarchy(["g", "s"], [["A", "clean"], ["x", "y"]], [[None, None], [0, 0]])  # leaves x, y, clean
    both = pairs([(2, 2, 4), (1, 0, 3), (1, 2, 5)], tree)
    assert np.allclose(density(both, 0, 9)[0], [[0, 1, 0], [3 / 8, 5 / 8, 0]])
    found = density(both, 1, 9)[0]  # what is clean has no class at s, and y does not occur
    assert np.allclose(found, [[0, 0, 1], [np.nan] * 3], equal_nan=True)
    found = confused_pairs(both)
    assert [(pair["shared"], pair["truth"], pair["predicted"]) for pair in found] == [
        ([], ["A", "x"], ["clean"]),
        ([], ["clean"], ["A", "x"]),
    ]
    assert watched_class(both, 1, 0)["predicted_as"] == [(("clean",), 4)]


def test_watched_class():
    found = watched_class(pairs(), 2, 1)
    assert found["path"] == ["F", "f1", "b"] and found["level"] == "species" and found["labelled"] == 6
    assert found["recall"] == pytest.approx({"family": 5 / 6, "genus": 5 / 6, "species": 0})
    assert found["predicted_as"] == [(("F", "f1", "a"), 5), (("G", "g1", "d"), 1)]
    assert found["others_predicted_as_it"] == [(("F", "f1", "a"), 2)]
    genus = watched_class(pairs(), 1, 0)
    assert genus["labelled"] == 19 and genus["recall"]["species"] == pytest.approx(8 / 16)
    assert genus["predicted_as"] == [(("F", "f2"), 3), (("G", "g1"), 1)]
    assert genus["others_predicted_as_it"] == []  # of those known to family only nobody can say


def test_watched_class_that_does_not_occur():
    found = watched_class(pairs([(5, 0, 1)]), 2, 3)
    assert found["labelled"] == 0 and math.isnan(found["recall"]["species"]) and not found["predicted_as"]


def test_names_are_found_at_any_level_and_misspelt_ones_are_reported():
    assert TREE.find_nodes([" D ", "f2"]) == [(2, 3), (1, 1)]
    twice = Hierarchy(["g", "s"], [["A", "B"], ["x", "x"]], [[None, None], [0, 1]])
    assert twice.find_nodes(["x"]) == [(1, 0), (1, 1)]
    fungi = Hierarchy(["species"], [["Amanita phalloides", "Boletus edulis"]], [[None, None]])
    with pytest.raises(ValueError, match="no such class at any level. Did you mean Amanita phalloides"):
        fungi.find_nodes(["Amanita faloides"])


def wide_tree(num_leaves: int) -> tuple[Hierarchy, np.ndarray]:
    """Two families whose species are interleaved: leaf i is of family i % 2."""
    parents = np.arange(num_leaves) % 2
    names = [["even", "odd"], [f"s{index}" for index in range(num_leaves)]]
    return Hierarchy(["family", "species"], names, [[None, None], parents.tolist()]), parents


def test_tree_order_brings_siblings_together():
    tree, parents = wide_tree(7)
    assert parents[in_tree_order(tree, 1)].tolist() == [0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize("cells", [10, 50, 64, 1000])
def test_density_is_the_matrix_averaged_over_cells(cells):
    size = 64
    tree, _ = wide_tree(size)
    rng = np.random.default_rng(0)
    full = rng.integers(0, 3, (size, size)) * (rng.random((size, size)) < 0.2)
    full[5] = 0  # does not occur
    truth, predicted = full.nonzero()
    found, starts, names = density(
        ConfusionPairs(tree, ReportData(truth + 2, predicted, full[truth, predicted])), 1, cells
    )
    cells = min(cells, size)
    order = in_tree_order(tree, 1)
    sums = full.sum(1, keepdims=True)
    shares = np.divide(full, sums, where=sums > 0, out=np.full(full.shape, np.nan))[order][:, order]
    of_class = np.arange(size) * cells // size
    with warnings.catch_warnings(action="ignore"):  # a mean over no class
        expected = np.stack([np.nanmean(shares[of_class == cell], 0) for cell in range(cells)])
    expected = np.stack([expected[:, of_class == cell].sum(1) for cell in range(cells)], 1)
    assert np.allclose(found[:, :-1], expected, equal_nan=True)
    assert starts.tolist() == [0, cells / 2] and list(names.values()) == ["even", "odd"]
