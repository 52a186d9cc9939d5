"""What an evaluation says about classes: the hardest, what they are taken for, and those that are watched."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import numpy as np

from ..metrics.report_data import Evidence
from ..model.hierarchy import Hierarchy, fold_name


class Pairs:
    """The evidence's pairs of truth and prediction, at every level.

    Args:
        hierarchy: the label tree.
        evidence: of an evaluation.
    """

    def __init__(self, hierarchy: Hierarchy, evidence: Evidence) -> None:
        nodes = [(level, index) for level, size in enumerate(hierarchy.num_classes) for index in range(size)]
        paths = np.array([hierarchy.path(*node) for node in nodes])
        self.hierarchy, self.count = hierarchy, evidence.count
        self.truth = paths[evidence.truth]  # (n, levels)
        self.predicted = hierarchy.ancestors.numpy()[evidence.predicted]  # (n, levels)
        leaf_of = {leaf: index for index, leaf in enumerate(hierarchy.leaves)}
        self.true_leaf = np.array([leaf_of.get(node, -1) for node in nodes])[evidence.truth]
        self.predicted_leaf = evidence.predicted

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

    def per_class(self, level: int) -> dict[str, np.ndarray]:
        """``labelled``, ``predicted`` and ``right``, int64 (classes,) each, where the level is labelled."""
        size = self.hierarchy.num_classes[level]
        truth, predicted, count = self.of_level(level)
        chosen = {"labelled": truth >= 0, "predicted": predicted >= 0, "right": truth == predicted}
        of = {"labelled": truth, "predicted": predicted, "right": truth}
        return {name: np.bincount(of[name][mask], count[mask], size).astype(np.int64) for name, mask in chosen.items()}


@dataclass
class ClassScore:
    """How well one class is found."""

    path: list[str]
    labelled: int
    predicted: int
    right: int

    @property
    def recall(self) -> float:
        """Share of its images (pixels) that were found."""
        return self.right / self.labelled if self.labelled else float("nan")

    @property
    def precision(self) -> float:
        """Share of the answers with this class that were right."""
        return self.right / self.predicted if self.predicted else float("nan")

    @property
    def f1(self) -> float:
        """Harmonic mean of both."""
        return 2 * self.right / (self.labelled + self.predicted) if self.labelled + self.predicted else float("nan")


def hardest_classes(pairs: Pairs, level: int, num_classes: int = 15) -> list[ClassScore]:
    """The classes of a level with the lowest F1 of those that occur; of equals, the commonest first."""
    counts = pairs.per_class(level)
    f1 = 2 * counts["right"] / np.maximum(counts["labelled"] + counts["predicted"], 1)
    order = np.lexsort((-counts["labelled"], f1))
    order = order[counts["labelled"][order] > 0][:num_classes]
    return [
        ClassScore(path_of(pairs.hierarchy, level, index), *(int(counts[name][index]) for name in counts))
        for index in order
    ]


@dataclass
class Confusion:
    """One leaf taken for another: their paths after the part that they share, and how often."""

    shared: list[str]
    truth: list[str]
    predicted: list[str]
    count: int
    share: float  # of the true leaf's images or pixels


def confused_pairs(pairs: Pairs, num_pairs: int = 15) -> list[Confusion]:
    """The pairs of different leaves that were confused most often."""
    known = pairs.true_leaf >= 0
    totals = np.bincount(pairs.true_leaf[known], pairs.count[known], pairs.hierarchy.num_leaves)
    wrong = np.flatnonzero(known & (pairs.true_leaf != pairs.predicted_leaf))
    order = wrong[np.argsort(-pairs.count[wrong], kind="stable")][:num_pairs]
    found = []
    for index in order:
        truth, predicted = int(pairs.true_leaf[index]), int(pairs.predicted_leaf[index])
        count = int(pairs.count[index])
        found.append(Confusion(*branches(pairs.hierarchy, truth, predicted), count, count / totals[truth]))
    return found


def branches(hierarchy: Hierarchy, first: int, second: int) -> tuple[list[str], list[str], list[str]]:
    """The names that two leaves' paths share from the root down, and the rest of either."""
    paths = [hierarchy.path(*hierarchy.leaves[leaf]) for leaf in (first, second)]
    nodes = [[(level, label) for level, label in enumerate(path) if label >= 0] for path in paths]
    shared = len(list(takewhile(lambda pair: pair[0] == pair[1], zip(*nodes, strict=False))))
    names = [path_of(hierarchy, *hierarchy.leaves[leaf]) for leaf in (first, second)]
    return names[0][:shared], names[0][shared:], names[1][shared:]


def path_of(hierarchy: Hierarchy, level: int, index: int) -> list[str]:
    """Names from the root down to a class, without the levels that have no value."""
    return [name for name in hierarchy.path_names(level, index) if name is not None]


# ---- watched classes


@dataclass
class Watched:
    """How one class fared: of its images (pixels), which levels were right, and what it was confused with."""

    path: list[str]
    level: str
    labelled: int
    recall: dict[str, float]  # per level
    taken_for: list[tuple[list[str], int]]  # path and count, the commonest first
    others_taken_for_it: list[tuple[list[str], int]]


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


def watched(pairs: Pairs, level: int, index: int, num_others: int = 5) -> Watched:
    """What became of a class's images, and which others were taken for it."""
    hierarchy = pairs.hierarchy
    mine = pairs.truth[:, level] == index
    total = int(pairs.count[mine].sum())
    recall = {}
    for depth, name in enumerate(hierarchy.levels):
        labelled = mine & (pairs.truth[:, depth] >= 0)
        right = labelled & (pairs.truth[:, depth] == pairs.predicted[:, depth])
        known = pairs.count[labelled].sum()
        recall[name] = float(pairs.count[right].sum() / known) if known else float("nan")
    answered = pairs.predicted[:, level] == index
    elsewhere = ~mine & answered & (pairs.truth[:, level] >= 0)
    true_names = [path_of(hierarchy, level, label) for label in pairs.truth[elsewhere, level]]
    wrong = mine & ~answered
    predicted_names = [_path_up_to(hierarchy, leaf, level) for leaf in pairs.predicted_leaf[wrong]]
    return Watched(
        path_of(hierarchy, level, index),
        hierarchy.levels[level],
        total,
        recall,
        _commonest(predicted_names, pairs.count[wrong], num_others),
        _commonest(true_names, pairs.count[elsewhere], num_others),
    )


def _path_up_to(hierarchy: Hierarchy, leaf: int, level: int) -> list[str]:
    names = hierarchy.path_names(*hierarchy.leaves[leaf])[: level + 1]
    return [name for name in names if name is not None] or ["no class at this level"]


def _commonest(paths: Sequence[list[str]], counts: np.ndarray, most: int) -> list[tuple[list[str], int]]:
    totals: dict[tuple[str, ...], int] = {}
    for path, count in zip(paths, counts.tolist(), strict=True):
        totals[tuple(path)] = totals.get(tuple(path), 0) + count
    return [(list(path), count) for path, count in sorted(totals.items(), key=lambda item: -item[1])[:most]]


# ---- matrices of many classes


def in_tree_order(hierarchy: Hierarchy, level: int) -> np.ndarray:
    """The classes of a level so that those of one parent, grandparent and so on stand together."""
    paths = np.array([hierarchy.path(level, index)[: level + 1] for index in range(hierarchy.num_classes[level])])
    return np.lexsort(paths.T[::-1])


def density(pairs: Pairs, level: int, num_cells: int) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """A confusion matrix of many classes, row-normalised and then averaged over cells of neighbouring classes.

    Returns:
        float64 (cells, cells): the share of a class in the row's cell that is answered with any in the column's, mean
        over the classes that occur (nan where none does); where the top level's classes begin, in cells; and their
        names by the middle of their range.
    """
    hierarchy = pairs.hierarchy
    order = in_tree_order(hierarchy, level)
    size = len(order)
    cells = min(num_cells, size)
    cell_of = np.empty(size, dtype=np.int64)
    cell_of[order] = np.arange(size) * cells // size
    truth, predicted, count = pairs.of_level(level)
    totals = np.bincount(truth, count, size)
    occurring = np.bincount(cell_of[totals > 0], minlength=cells)
    answered = predicted >= 0
    matrix = np.zeros((cells, cells))
    shares = count[answered] / totals[truth[answered]]
    np.add.at(matrix, (cell_of[truth[answered]], cell_of[predicted[answered]]), shares)
    matrix = np.where(occurring[:, None] > 0, matrix / np.maximum(occurring, 1)[:, None], np.nan)
    tops = np.array([hierarchy.path(level, index)[0] for index in order])
    starts = np.flatnonzero(np.diff(tops, prepend=tops[0] - 1))
    ends = np.append(starts[1:], size)
    names = {
        (start + end) / 2 * cells / size: hierarchy.names[0][tops[start]] if tops[start] >= 0 else "no class"
        for start, end in zip(starts, ends, strict=True)
    }
    return matrix, starts * cells / size, names
