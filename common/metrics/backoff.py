"""Which answers are right: labels by name, and what they can judge."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..labels.encoding import LabelPath, encode_path
from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE

UNKNOWN = -1
"""Label of something that is named, but that the label tree has no class for"""


def is_right(path: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which predictions labels can judge, and which of them are right: two boolean arrays (n, levels).

    A label reaches a level if it names a class there or below; if only below, an answer at this level is wrong.

    Args:
        path: (n, levels) predicted class numbers, IGNORE where there is none.
        labels: (n, levels) class numbers, IGNORE where blank, UNKNOWN where the tree lacks what is named.
    """
    reached = np.logical_or.accumulate((labels >= 0)[:, ::-1], axis=1)[:, ::-1]
    judged = (reached | (labels == UNKNOWN)) & (path >= 0)
    return judged, judged & (labels == path)


def find_labels(hierarchy: Hierarchy, columns: Sequence[Sequence[str | None]]) -> np.ndarray:
    """Labels int64 (n, levels) of clean names, one column a level; what the tree lacks is UNKNOWN, blanks IGNORE."""
    index = hierarchy.node_index()
    known: dict[LabelPath, Sequence[int]] = {}
    for path in set(zip(*columns, strict=True)):
        kept, labels = list(path), None
        while (labels := encode_path(hierarchy, index, tuple(kept))) is None:
            kept[max(level for level, name in enumerate(kept) if name is not None)] = None
        known[path] = [
            UNKNOWN if name is not None and label == IGNORE else label
            for name, label in zip(path, labels, strict=True)
        ]
    rows = [known[path] for path in zip(*columns, strict=True)]
    return np.array(rows, dtype=np.int64).reshape(-1, hierarchy.num_levels)
