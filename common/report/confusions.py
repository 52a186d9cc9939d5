"""Which classes are confused with which: the hardest classes, the most confused pairs, the watched classes."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd

from ..metrics.report_data import ReportData, leaf_of_nodes
from ..model.hierarchy import Hierarchy


class ConfusionPairs:
    """Pairs of true and predicted class with their counts, at every level of the label tree.

    Attributes:
        truth, predicted: int64 (pairs, levels), IGNORE where a level has no value.
        true_leaf, predicted_leaf: int64 (pairs,); the true one is -1 where the label ends above the leaves.
        count: int64 (pairs,) images or pixels.
    """

    def __init__(self, hierarchy: Hierarchy, data: ReportData) -> None:
        self.hierarchy, self.count = hierarchy, data.count
        self.true_leaf, self.predicted_leaf = leaf_of_nodes(hierarchy)[data.truth], data.predicted
        paths = [
            hierarchy.path(level, index) for level, size in enumerate(hierarchy.num_classes) for index in range(size)
        ]
        self.truth = np.array(paths)[data.truth]
        self.predicted = hierarchy.ancestors.numpy()[data.predicted]

    def of_level(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Truth, prediction (negative for no class at this level) and count, where the level is labelled."""
        labelled = self.truth[:, level] >= 0
        return self.truth[labelled, level], self.predicted[labelled, level], self.count[labelled]

    def per_class(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How often each class is the truth, is predicted, and is both: int64 (classes,) each."""
        truth, predicted, count = self.of_level(level)
        chosen = [(truth, truth >= 0), (predicted, predicted >= 0), (truth, truth == predicted)]
        size = self.hierarchy.num_classes[level]
        return tuple(np.bincount(label[mask], count[mask], size).astype(np.int64) for label, mask in chosen)


def class_scores(pairs: ConfusionPairs, level: int) -> pd.DataFrame:
    """Every class of a level, by its number: labelled, predicted, right, f1, recall, precision.

    The first three are counts; what there is nothing to divide by is NaN.
    """
    scores = pd.DataFrame(dict(zip(("labelled", "predicted", "right"), pairs.per_class(level), strict=True)))
    return scores.assign(
        f1=2 * scores.right / (scores.labelled + scores.predicted),
        recall=scores.right / scores.labelled,
        precision=scores.right / scores.predicted,
    )


def class_table(pairs: ConfusionPairs) -> pd.DataFrame:
    """:func:`class_scores` of all levels, with the columns ``level``, ``class`` and ``path``."""
    tables, hierarchy = {}, pairs.hierarchy
    for level, name in enumerate(hierarchy.levels):
        tables[name] = class_scores(pairs, level).set_index(pd.Index(hierarchy.names[level], name="class"))
        tables[name]["path"] = [" > ".join(path_of(hierarchy, level, index)) for index in range(len(tables[name]))]
    return pd.concat(tables, names=["level"]).reset_index()


def hardest_classes(pairs: ConfusionPairs, level: int, num_classes: int = 15) -> list[Any]:
    """The rows of :func:`class_scores` with the lowest F1, and their ``path``; of equals, the commonest first."""
    scores = class_scores(pairs, level).query("labelled > 0")
    scores = scores.sort_values(["f1", "labelled"], ascending=[True, False], kind="stable").head(num_classes)
    paths = [path_of(pairs.hierarchy, level, index) for index in scores.index]
    return list(scores.assign(path=pd.Series(paths, scores.index, dtype=object)).itertuples())


FREQUENCIES = {"none": "0", "few": "1 to 19", "medium": "20 to 100", "many": "101 or more"}
"""Training images of a class, as in Liu et al., Large-Scale Long-Tailed Recognition, CVPR 2019"""


def scores_by_frequency(pairs: ConfusionPairs, train_counts: np.ndarray) -> dict[str, Any]:
    """The last level's classes by how many training images they have; only classes that occur in the evaluation.

    Args:
        pairs: of the evaluation.
        train_counts: int64 (classes of the last level,) training images.

    Returns:
        Per kind of :data:`FREQUENCIES`: num_classes, labelled, accuracy of images, mean recall and f1 of classes.
    """
    scores = class_scores(pairs, pairs.hierarchy.num_levels - 1).query("labelled > 0")
    kinds = pd.cut(train_counts[scores.index], [-1, 0, 19, 100, np.inf], labels=list(FREQUENCIES))
    found = scores.groupby(kinds, observed=True).agg(
        num_classes=("labelled", "size"),
        labelled=("labelled", "sum"),
        right=("right", "sum"),
        recall=("recall", "mean"),
        f1=("f1", "mean"),
    )
    found = found.assign(
        accuracy=found.right / found.labelled, training_images=[FREQUENCIES[kind] for kind in found.index]
    )
    return {row.Index: row for row in found[::-1].itertuples()}


def confused_pairs(pairs: ConfusionPairs, num_pairs: int = 15) -> list[dict[str, Any]]:
    """The pairs of different leaves that were confused most often.

    Returns:
        Of each the ``shared`` part of their paths, what follows of ``truth`` and ``predicted``, how often (``num``),
        and the ``share`` of the true leaf's images or pixels.
    """
    hierarchy, known = pairs.hierarchy, pairs.true_leaf >= 0
    totals = np.bincount(pairs.true_leaf[known], pairs.count[known], hierarchy.num_leaves)
    wrong = np.flatnonzero(known & (pairs.true_leaf != pairs.predicted_leaf))
    found = []
    for place in wrong[np.argsort(-pairs.count[wrong], kind="stable")][:num_pairs]:
        leaves, num = (pairs.true_leaf[place], pairs.predicted_leaf[place]), int(pairs.count[place])
        nodes = [hierarchy.leaves[leaf] for leaf in leaves]
        classes = [[pair for pair in enumerate(hierarchy.path(*node)) if pair[1] >= 0] for node in nodes]
        shared = len(os.path.commonprefix(classes))  # of (level, class), because names may occur twice
        truth, predicted = (path_of(hierarchy, *node) for node in nodes)
        parts = {"shared": truth[:shared], "truth": truth[shared:], "predicted": predicted[shared:]}
        found.append({**parts, "num": num, "share": float(num / totals[leaves[0]])})
    return found


def path_of(hierarchy: Hierarchy, level: int, index: int) -> list[str]:
    """Names from the root down to a class, without the levels that have no value."""
    return [name for name in hierarchy.path_names(level, index) if name is not None]


def watched_class(pairs: ConfusionPairs, level: int, index: int, num_others: int = 5) -> dict[str, Any]:
    """Recall of a class at every level, and the classes of its level that it is confused with most often.

    Returns:
        Its ``path`` and ``level``, how many images or pixels are ``labelled`` so, the ``recall`` per level, and what
        they are ``predicted_as`` and which ``others_predicted_as_it``: pairs of path and count.
    """
    hierarchy = pairs.hierarchy
    true, predicted = pairs.truth[:, level] == index, pairs.predicted[:, level] == index
    recall = {}
    for depth, name in enumerate(hierarchy.levels):
        labelled = true & (pairs.truth[:, depth] >= 0)
        right = labelled & (pairs.truth[:, depth] == pairs.predicted[:, depth])
        total = pairs.count[labelled].sum()
        recall[name] = float(pairs.count[right].sum() / total) if total else float("nan")

    def commonest(paths: np.ndarray, mask: np.ndarray) -> list[tuple[tuple[str, ...], int]]:
        totals: Counter[tuple[str, ...]] = Counter()
        for path, count in zip(paths[mask, : level + 1].tolist(), pairs.count[mask].tolist(), strict=True):
            names = tuple(hierarchy.names[depth][label] for depth, label in enumerate(path) if label >= 0)
            totals[names or ("no class at this level",)] += count
        return totals.most_common(num_others)

    return {
        "path": path_of(hierarchy, level, index),
        "level": hierarchy.levels[level],
        "labelled": int(pairs.count[true].sum()),
        "recall": recall,
        "predicted_as": commonest(pairs.predicted, true & ~predicted),
        "others_predicted_as_it": commonest(pairs.truth, ~true & predicted & (pairs.truth[:, level] >= 0)),
    }


def in_tree_order(hierarchy: Hierarchy, level: int) -> np.ndarray:
    """The classes of a level so that those of one parent, grandparent and so on stand together."""
    paths = np.array([hierarchy.path(level, index)[: level + 1] for index in range(hierarchy.num_classes[level])])
    return np.lexsort(paths.T[::-1])


def density(pairs: ConfusionPairs, level: int, num_cells: int) -> tuple[np.ndarray, np.ndarray, dict[float, str]]:
    """A confusion matrix, row-normalised and, of many classes, averaged over cells of neighbours in tree order.

    Returns:
        float64 (cells, cells + 1): the share of a class in the row's cell that is predicted as any in the column's,
        mean over the classes that occur (NaN where none does), in the last column of those without a prediction at
        this level; where the top level's classes begin, in cells; and their names by the middle of their range.
    """
    hierarchy, order = pairs.hierarchy, in_tree_order(pairs.hierarchy, level)
    size = len(order)
    cells = min(num_cells, size)
    cell_of = np.full(size + 1, cells)
    cell_of[order] = np.arange(size) * cells // size
    truth, predicted, count = pairs.of_level(level)
    totals = np.bincount(truth, count, size)
    occurring = np.bincount(cell_of[:-1][totals > 0], minlength=cells)
    matrix = np.zeros((cells, cells + 1))
    np.add.at(matrix, (cell_of[truth], cell_of[np.where(predicted < 0, size, predicted)]), count / totals[truth])
    with np.errstate(invalid="ignore"):
        matrix /= occurring[:, None]
    tops = np.array([hierarchy.path(level, index)[0] for index in order])
    starts = np.flatnonzero(np.diff(tops, prepend=tops[0] - 1))
    middles = (starts + np.append(starts[1:], size)) / 2 * cells / size
    names = [hierarchy.names[0][top] if top >= 0 else "no class" for top in tops[starts]]
    return matrix, starts * cells / size, dict(zip(middles.tolist(), names, strict=True))
