"""Which classes are confused with which: the hardest classes, the most confused pairs, the watched classes."""

from __future__ import annotations

import difflib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from ..metrics.report_data import ReportData, leaf_of_nodes
from ..model.hierarchy import Hierarchy
from ..model.tree import fold_name


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

    def matrix(self, level: int) -> np.ndarray:
        """Confusion matrix int64 (classes, classes + 1), the last column for no class; for levels with few classes."""
        size = self.hierarchy.num_classes[level]
        truth, predicted, count = self.of_level(level)
        matrix = np.zeros((size, size + 1), dtype=np.int64)
        np.add.at(matrix, (truth, np.where(predicted < 0, size, predicted)), count)
        return matrix

    def per_class(self, level: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """How often each class is the truth, is predicted, and is both: int64 (classes,) each."""
        truth, predicted, count = self.of_level(level)
        chosen = [(truth, truth >= 0), (predicted, predicted >= 0), (truth, truth == predicted)]
        size = self.hierarchy.num_classes[level]
        return tuple(np.bincount(label[mask], count[mask], size).astype(np.int64) for label, mask in chosen)


@dataclass
class ClassScore:
    """How well a class is recognised; NaN for a precision without predictions."""

    path: list[str]
    labelled: int
    f1: float
    recall: float
    precision: float


def hardest_classes(pairs: ConfusionPairs, level: int, num_classes: int = 15) -> list[ClassScore]:
    """The classes of a level with the lowest F1 of those that occur; of equals, the commonest first."""
    labelled, predicted, right = pairs.per_class(level)
    occurring = np.flatnonzero(labelled)
    labelled, predicted, right = labelled[occurring], predicted[occurring], right[occurring]
    with np.errstate(invalid="ignore"):
        columns = labelled, 2 * right / (labelled + predicted), right / labelled, right / predicted
    order = np.lexsort((-labelled, columns[1]))[:num_classes]
    return [
        ClassScore(path_of(pairs.hierarchy, level, occurring[place]), *(column[place].item() for column in columns))
        for place in order
    ]


FREQUENCIES = {"many": (101, None), "medium": (20, 101), "few": (1, 20), "none": (0, 1)}
"""Training images of a class, from and below, as in Liu et al., Large-Scale Long-Tailed Recognition, CVPR 2019"""


@dataclass
class FrequencyScore:
    """How well classes with so many training images are recognised: shares of evaluation images, means of classes."""

    training_images: str
    num_classes: int
    labelled: int
    accuracy: float
    recall: float
    f1: float


def scores_by_frequency(pairs: ConfusionPairs, train_counts: np.ndarray) -> dict[str, FrequencyScore]:
    """The last level's classes by how many training images they have; only classes that occur in the evaluation.

    Args:
        pairs: of the evaluation.
        train_counts: int64 (classes of the last level,) training images.
    """
    labelled, predicted, right = pairs.per_class(pairs.hierarchy.num_levels - 1)
    scores = {}
    for name, (low, high) in FREQUENCIES.items():
        chosen = (labelled > 0) & (train_counts >= low) & (True if high is None else train_counts < high)
        if chosen.any():
            part = labelled[chosen], predicted[chosen], right[chosen]
            words = "0" if high == 1 else f"{low} or more" if high is None else f"{low} to {high - 1}"
            recall, f1 = part[2] / part[0], 2 * part[2] / (part[0] + part[1])
            accuracy = part[2].sum() / part[0].sum()
            scores[name] = FrequencyScore(
                words, int(chosen.sum()), int(part[0].sum()), accuracy, recall.mean(), f1.mean()
            )
    return scores


@dataclass
class ConfusedPair:
    """One leaf predicted as another: their paths after the part that they share, and how often."""

    shared: list[str]
    truth: list[str]
    predicted: list[str]
    count: int
    share: float  # of the true leaf's images or pixels


def confused_pairs(pairs: ConfusionPairs, num_pairs: int = 15) -> list[ConfusedPair]:
    """The pairs of different leaves that were confused most often."""
    known = pairs.true_leaf >= 0
    totals = np.bincount(pairs.true_leaf[known], pairs.count[known], pairs.hierarchy.num_leaves)
    wrong = np.flatnonzero(known & (pairs.true_leaf != pairs.predicted_leaf))
    found = []
    for place in wrong[np.argsort(-pairs.count[wrong], kind="stable")][:num_pairs]:
        leaves, count = (pairs.true_leaf[place], pairs.predicted_leaf[place]), int(pairs.count[place])
        nodes = [pairs.hierarchy.leaves[leaf] for leaf in leaves]
        classes = [[pair for pair in enumerate(pairs.hierarchy.path(*node)) if pair[1] >= 0] for node in nodes]
        shared = len(os.path.commonprefix(classes))  # of (level, class), because names may occur twice
        truth, predicted = (path_of(pairs.hierarchy, *node) for node in nodes)
        share = float(count / totals[leaves[0]])
        found.append(ConfusedPair(truth[:shared], truth[shared:], predicted[shared:], count, share))
    return found


def path_of(hierarchy: Hierarchy, level: int, index: int) -> list[str]:
    """Names from the root down to a class, without the levels that have no value."""
    return [name for name in hierarchy.path_names(level, index) if name is not None]


# ---- watched classes


@dataclass
class WatchedClass:
    """What became of a class's images (pixels), and which others were predicted as it; paths with their counts."""

    path: list[str]
    level: str
    labelled: int
    recall: dict[str, float]  # per level
    predicted_as: list[tuple[tuple[str, ...], int]]
    others_predicted_as_it: list[tuple[tuple[str, ...], int]]


def find_classes(hierarchy: Hierarchy, names: Sequence[str]) -> list[tuple[int, int]]:
    """(level, class) of every name, at whatever levels it occurs.

    Raises:
        ValueError: if the tree has no such class; similar names are given.
    """
    index, found = hierarchy.node_index(), []
    for name in names:
        nodes = [(level, label) for level, column in enumerate(index) for label in column.get(fold_name(name), ())]
        if not nodes:
            known = [known for column in hierarchy.names for known in column]
            close = difflib.get_close_matches(name, known, n=3)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"--watch {name}: the label tree has no such class at any level.{hint}")
        found += nodes
    return found


def watched_class(pairs: ConfusionPairs, level: int, index: int, num_others: int = 5) -> WatchedClass:
    """Recall of a class at every level, and the classes of its level that it is confused with most often."""
    hierarchy, name = pairs.hierarchy, pairs.hierarchy.levels[level]
    true, predicted = pairs.truth[:, level] == index, pairs.predicted[:, level] == index
    recall = {}
    for depth, depth_name in enumerate(hierarchy.levels):
        labelled = true & (pairs.truth[:, depth] >= 0)
        right = labelled & (pairs.truth[:, depth] == pairs.predicted[:, depth])
        total = pairs.count[labelled].sum()
        recall[depth_name] = float(pairs.count[right].sum() / total) if total else float("nan")

    def commonest(paths: Iterable[Sequence[str]], mask: np.ndarray) -> list[tuple[tuple[str, ...], int]]:
        totals: Counter[tuple[str, ...]] = Counter()
        for path, count in zip(paths, pairs.count[mask].tolist(), strict=True):
            totals[tuple(path)] += count
        return totals.most_common(num_others)

    missed, others = true & ~predicted, ~true & predicted & (pairs.truth[:, level] >= 0)
    leaves = (hierarchy.leaves[leaf] for leaf in pairs.predicted_leaf[missed])
    names = (hierarchy.path_names(*leaf)[: level + 1] for leaf in leaves)
    predicted_as = ([part for part in path if part is not None] or ["no class at this level"] for path in names)
    others_paths = (path_of(hierarchy, level, label) for label in pairs.truth[others, level])
    return WatchedClass(
        path_of(hierarchy, level, index),
        name,
        int(pairs.count[true].sum()),
        recall,
        commonest(predicted_as, missed),
        commonest(others_paths, others),
    )


# ---- matrices of many classes


def in_tree_order(hierarchy: Hierarchy, level: int) -> np.ndarray:
    """The classes of a level so that those of one parent, grandparent and so on stand together."""
    paths = np.array([hierarchy.path(level, index)[: level + 1] for index in range(hierarchy.num_classes[level])])
    return np.lexsort(paths.T[::-1])


def density(pairs: ConfusionPairs, level: int, num_cells: int) -> tuple[np.ndarray, np.ndarray, dict[float, str]]:
    """A confusion matrix of many classes, row-normalised and then averaged over cells of neighbouring classes.

    Returns:
        float64 (cells, cells): the share of a class in the row's cell that is predicted as any in the column's, mean
        over the classes that occur (NaN where none does); where the top level's classes begin, in cells; and their
        names by the middle of their range.
    """
    hierarchy, order = pairs.hierarchy, in_tree_order(pairs.hierarchy, level)
    size = len(order)
    cells = min(num_cells, size)
    cell_of = np.empty(size, dtype=np.int64)
    cell_of[order] = np.arange(size) * cells // size
    truth, predicted, count = pairs.of_level(level)
    totals = np.bincount(truth, count, size)
    occurring = np.bincount(cell_of[totals > 0], minlength=cells)
    has_class = predicted >= 0
    truth, predicted, shares = truth[has_class], predicted[has_class], (count / totals[truth])[has_class]
    matrix = np.zeros((cells, cells))
    np.add.at(matrix, (cell_of[truth], cell_of[predicted]), shares)
    with np.errstate(invalid="ignore"):
        matrix /= occurring[:, None]
    tops = np.array([hierarchy.path(level, index)[0] for index in order])
    starts = np.flatnonzero(np.diff(tops, prepend=tops[0] - 1))
    middles = (starts + np.append(starts[1:], size)) / 2 * cells / size
    names = [hierarchy.names[0][top] if top >= 0 else "no class" for top in tops[starts]]
    return matrix, starts * cells / size, dict(zip(middles.tolist(), names, strict=True))
