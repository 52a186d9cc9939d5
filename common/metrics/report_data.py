"""What a report needs to know of one evaluation, in a small file: drawing takes longer than an evaluation should."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..model.hierarchy import Hierarchy
from ..system.files import atomic_write
from .prediction_table import PredictionTable

REPORT_DATA_FILE = "report_data.npz"
"""Beside the model"""

EXAMPLE_KINDS = ("right", "near", "far")
"""The leaf is right; wrong with the same parent (the same genus); wrong with another parent"""

CANDIDATES = 64
"""Of each kind, from which the examples are chosen that differ most"""


@dataclass
class ReportData:
    """How often what was predicted as what, which images show it, and how far confidence can be trusted.

    Attributes:
        truth: (n,) number of the finest labelled class among the classes of all levels, level after level.
        predicted: (n,) leaf of the best path.
        count: (n,) images or pixels.
        examples: per kind float64 (k, 4): row, true leaf, predicted leaf, probability of the predicted leaf.
        reliability: float64 (levels, 3, bins): images, right ones, sum of confidences; ``None`` if not counted.
    """

    truth: np.ndarray
    predicted: np.ndarray
    count: np.ndarray
    examples: dict[str, np.ndarray] = field(default_factory=dict)
    reliability: np.ndarray | None = None

    def save(self, path: str | Path) -> None:
        """Write one file atomically."""
        arrays = {name: value for name, value in vars(self).items() if name != "examples" and value is not None}
        arrays |= {f"example_{kind}": rows for kind, rows in self.examples.items()}
        with atomic_write(path, "wb") as file:
            np.savez_compressed(file, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> ReportData:
        """The inverse of :meth:`save`."""
        with np.load(path) as file:
            arrays = dict(file)
        examples = {kind: arrays.pop(f"example_{kind}") for kind in EXAMPLE_KINDS if f"example_{kind}" in arrays}
        return cls(**arrays, examples=examples)

    @classmethod
    def of_leaf_matrix(cls, hierarchy: Hierarchy, matrix: np.ndarray) -> ReportData:
        """From a confusion matrix of the leaves, int64 (leaves, leaves): truth, prediction."""
        truth, predicted = matrix.nonzero()
        return cls(leaf_nodes(hierarchy)[truth], predicted, matrix[truth, predicted])

    @classmethod
    def of_predictions(cls, table: PredictionTable, num_examples: int = 12) -> ReportData:
        """From predictions for images with one class per level; the same on any number of processes."""
        hierarchy, columns = table.hierarchy, table.columns
        labelled = columns["label"] >= 0
        finest = labelled.shape[1] - 1 - labelled[:, ::-1].argmax(1)
        node = columns["label"][np.arange(len(finest)), finest] + first_nodes(hierarchy)[finest]
        node = np.where(labelled.any(1), node, -1)
        pairs = node.astype(np.int64) * hierarchy.num_leaves + columns["leaf"]
        pairs, count = np.unique(pairs[node >= 0], return_counts=True)
        return cls(*np.divmod(pairs, hierarchy.num_leaves), count, choose_examples(table, node, num_examples))


def first_nodes(hierarchy: Hierarchy) -> np.ndarray:
    """Number of each level's first class among the classes of all levels, level after level: int64 (levels,)."""
    return np.cumsum([0, *hierarchy.num_classes[:-1]])


def leaf_nodes(hierarchy: Hierarchy) -> np.ndarray:
    """Number of each leaf among the classes of all levels: int64 (leaves,)."""
    levels, indices = np.array(hierarchy.leaves).T
    return first_nodes(hierarchy)[levels] + indices


def leaf_of_nodes(hierarchy: Hierarchy) -> np.ndarray:
    """Leaf of each class of all levels, -1 where it is none, and a last -1 for no class: int64 (classes + 1,)."""
    leaves = np.full(sum(hierarchy.num_classes) + 1, -1)
    leaves[leaf_nodes(hierarchy)] = np.arange(hierarchy.num_leaves)
    return leaves


def choose_examples(table: PredictionTable, node: np.ndarray, num_examples: int) -> dict[str, np.ndarray]:
    """Images for :attr:`ReportData.examples`: of each pair of true and predicted leaf one before any second.

    Mistakes are shown that the model was confident of; of what is right, any: these are as good as drawn at random.

    Args:
        table: of the images.
        node: (n,) number of the finest labelled class among those of all levels, -1 where there is none.
        num_examples: of each kind.
    """
    hierarchy, leaf, row = table.hierarchy, table.columns["leaf"], table.columns["row"]
    truth, probability = leaf_of_nodes(hierarchy)[node], table.columns["leaf_probability"]
    parents = [hierarchy.parents[level][index] for level, index in hierarchy.leaves]
    numbers = {None: -1, **{entry: number for number, entry in enumerate(parents) if entry is not None}}
    parent = np.array([numbers[entry] for entry in parents])
    right, siblings = truth == leaf, (parent[truth] == parent[leaf]) & (parent[leaf] >= 0)
    drawn, confident = (row * 0.6180339887498949) % 1, probability - 1e-12 * row
    kinds = {"right": (right, drawn), "near": (~right & siblings, confident), "far": (~right & ~siblings, confident)}
    examples = {}
    for kind, (mask, priority) in kinds.items():
        places = np.flatnonzero(mask & (truth >= 0))
        places = places[np.argsort(-priority[places], kind="stable")][:CANDIDATES]
        _, first = np.unique(truth[places] * hierarchy.num_leaves + leaf[places], return_index=True)
        order = [*np.sort(first), *np.setdiff1d(np.arange(len(places)), first)]
        chosen = places[np.array(order, dtype=int)[:num_examples]]
        examples[kind] = np.stack([column[chosen] for column in (row, truth, leaf, probability)], 1).astype(float)
    return examples
