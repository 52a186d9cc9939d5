"""What a report needs to know of one evaluation, in memory that does not grow with the number of images.

It is collected on the device without waiting for it, and kept in a small file beside the model that it is of, because
drawing takes longer than an evaluation should.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..model.hierarchy import Hierarchy

EVIDENCE_FILE = "report_data.npz"
"""Beside the model"""

KINDS = ("right", "near", "far")
"""Of examples: the leaf is right; wrong with the same parent (the same genus); wrong with another one"""

PENDING = 2**18
"""Pairs that may wait on the device before equal ones are merged"""

CANDIDATES = 64
"""Of each kind, from which the examples are chosen that differ most"""


@dataclass
class Evidence:
    """How often what was taken for what, which images show it, and how far confidence can be trusted.

    Attributes:
        truth: (n,) flat number of the finest labelled class: the classes of all levels, level after level.
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
        """Write one file in one step."""
        arrays = {"truth": self.truth, "predicted": self.predicted, "count": self.count}
        arrays |= {f"example_{kind}": rows for kind, rows in self.examples.items()}
        if self.reliability is not None:
            arrays["reliability"] = self.reliability
        temporary = Path(f"{path}.tmp")
        with temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: str | Path) -> Evidence:
        """The inverse of :meth:`save`."""
        with np.load(path) as data:
            examples = {
                name.removeprefix("example_"): data[name] for name in data.files if name.startswith("example_")
            }
            reliability = data["reliability"] if "reliability" in data.files else None
            return cls(data["truth"], data["predicted"], data["count"], examples, reliability)

    @classmethod
    def of_leaf_matrix(cls, hierarchy: Hierarchy, matrix: np.ndarray) -> Evidence:
        """From a confusion matrix of the leaves, int64 (leaves, leaves): truth, prediction."""
        truth, predicted = matrix.nonzero()
        first = list(accumulate(hierarchy.num_classes[:-1], initial=0))
        flat = np.array([first[level] + index for level, index in hierarchy.leaves])
        return cls(flat[truth], predicted, matrix[truth, predicted])


class EvidenceCollector:
    """Collects :class:`Evidence` of images with one class per level, batch by batch and without a collective.

    Args:
        hierarchy: the label tree.
        device: where labels and predictions are.
    """

    def __init__(self, hierarchy: Hierarchy, device: str | torch.device = "cpu") -> None:
        self.hierarchy = hierarchy
        first = list(accumulate(hierarchy.num_classes[:-1], initial=0))
        self._first = torch.tensor(first, device=device)
        leaf_of_node = torch.full((sum(hierarchy.num_classes),), -1, device="cpu")
        parents = []
        for leaf, (level, index) in enumerate(hierarchy.leaves):
            leaf_of_node[first[level] + index] = leaf
            above = [(depth, label) for depth, label in enumerate(hierarchy.path(level, index)[:level]) if label >= 0]
            parents.append(first[above[-1][0]] + above[-1][1] if above else -1)
        self._leaf_of_node = leaf_of_node.to(device)
        self._parent = torch.tensor(parents, device=device)
        self._pending: list[torch.Tensor] = []
        self._keys = self._counts = torch.zeros(0, dtype=torch.long, device=device)
        self._kept = {
            kind: torch.full((CANDIDATES, 5), -torch.inf, dtype=torch.float64, device=device) for kind in KINDS
        }

    def add(self, rows: torch.Tensor, labels: torch.Tensor, leaf_scores: torch.Tensor, leaf: torch.Tensor) -> None:
        """Count a batch.

        Args:
            rows: (batch,) row numbers.
            labels: (batch, levels), IGNORE where there is no label.
            leaf_scores: (batch, leaves), whose softmax gives the leaves' probabilities.
            leaf: (batch,) the leaf of the best path.
        """
        depth = torch.arange(1, labels.shape[1] + 1, device=labels.device)
        level = ((labels >= 0) * depth).argmax(1, keepdim=True)  # the finest that is labelled
        node = (labels.gather(1, level) + self._first[level])[:, 0]
        node = torch.where((labels >= 0).any(1), node, -1)
        self._pending.append(node * self.hierarchy.num_leaves + leaf)
        if sum(map(len, self._pending)) > PENDING:
            self._merge()
        self._keep_examples(rows.to(leaf.device), node, leaf_scores, leaf)

    def _merge(self) -> None:
        """Equal pairs become one with a count."""
        keys = torch.cat([self._keys, *self._pending])
        counts = torch.cat([self._counts, torch.ones_like(keys[len(self._keys) :])])
        self._keys, slots = keys.unique(return_inverse=True)
        self._counts = torch.zeros_like(self._keys).index_add_(0, slots, counts)
        self._pending = []

    def _keep_examples(
        self, rows: torch.Tensor, node: torch.Tensor, leaf_scores: torch.Tensor, leaf: torch.Tensor
    ) -> None:
        truth = torch.where(node >= 0, self._leaf_of_node[node], -1)
        confidence = leaf_scores.double().softmax(1).gather(1, leaf[:, None])[:, 0]
        siblings = (self._parent[truth] == self._parent[leaf]) & (self._parent[leaf] >= 0)
        known, right = truth >= 0, truth == leaf
        of_kind = {"right": right, "near": ~right & siblings, "far": ~right & ~siblings}
        # Mistakes are shown that the model was sure of; of what is right, any: these here are as good as drawn by lot.
        # Rows break ties, so that the choice does not depend on how images were batched.
        drawn = (rows.double() * 0.6180339887498949) % 1
        for kind, kept in self._kept.items():
            score = drawn if kind == "right" else confidence - 1e-12 * rows
            score = torch.where(known & of_kind[kind], score, -torch.inf)
            found = torch.stack([score, rows.double(), truth.double(), leaf.double(), confidence], 1)
            everything = torch.cat([kept, found])
            self._kept[kind] = everything[everything[:, 0].topk(CANDIDATES).indices]

    def gather(self, accelerator: Accelerator, num_examples: int = 12) -> Evidence:
        """That of all processes; a collective, after the last batch."""
        self._merge()
        mine = (
            self._keys.cpu().numpy(),
            self._counts.cpu().numpy(),
            {k: v.cpu().numpy() for k, v in self._kept.items()},
        )
        parts = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        keys, slots = np.unique(np.concatenate([part[0] for part in parts]), return_inverse=True)
        count = np.zeros(len(keys), dtype=np.int64)
        np.add.at(count, slots, np.concatenate([part[1] for part in parts]))
        known = keys >= 0
        examples = {
            kind: choose_examples(np.concatenate([part[2][kind] for part in parts]), num_examples) for kind in KINDS
        }
        truth, predicted = np.divmod(keys[known], self.hierarchy.num_leaves)
        return Evidence(truth, predicted, count[known], examples)


def choose_examples(candidates: np.ndarray, num_examples: int) -> np.ndarray:
    """The best ones, of each pair of true and predicted leaf one first: float64 (k, 4), without the score.

    Args:
        candidates: float64 (n, 5): score, row, true leaf, predicted leaf, probability; -inf as score is no candidate.
        num_examples: how many to choose.
    """
    found = candidates[np.isfinite(candidates[:, 0])]
    found = found[np.lexsort((found[:, 1], -found[:, 0]))]
    _, first = np.unique(found[:, 2:4], axis=0, return_index=True)
    again = np.setdiff1d(np.arange(len(found)), first)
    order = np.concatenate([np.sort(first), again]).astype(int)[:num_examples]
    return found[order, 1:]
