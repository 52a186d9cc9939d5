"""Back-off: an answer at the finest level that is probable enough, "Amanita sp." rather than a wrong species."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ..labels.encoding import LabelPath, encode_path
from ..model.hierarchy import Hierarchy
from ..model.tree import IGNORE

UNKNOWN = -1
"""Label of something that is named, but that the label tree has no class for"""


def path_probabilities(log_probs: Sequence[torch.Tensor], path: Sequence[torch.Tensor]) -> torch.Tensor:
    """Probability of the path's class at every level, float32 (batch, levels); 0 where the path has none.

    Args:
        log_probs: per level (batch, classes).
        path: per level (batch,) class numbers, IGNORE where there is none.
    """
    return torch.stack(
        [
            torch.where(label >= 0, level.gather(1, label.clamp(min=0)[:, None])[:, 0].exp(), 0)
            for level, label in zip(log_probs, path, strict=True)
        ],
        1,
    )


def answer_levels(probabilities: np.ndarray, path: np.ndarray, thresholds: Sequence[float | None]) -> np.ndarray:
    """The finest level of each path whose probability reaches the level's threshold; -1 where none does.

    Args:
        probabilities, path: (n, levels).
        thresholds: per level; ``None`` for levels that are never answered.
    """
    bounds = np.array([np.inf if threshold is None else threshold for threshold in thresholds])
    reached = (probabilities >= bounds) & (path >= 0)
    finest = probabilities.shape[1] - 1 - reached[:, ::-1].argmax(1)
    return np.where(reached.any(1), finest, -1)


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


def answer_text(hierarchy: Hierarchy, path: Sequence[int], level: int) -> str:
    """An answer as people write it: a name of the last level as it is, "Amanita sp." for a genus, otherwise both.

    A species that is only an epithet is written behind its genus. Without an answer (level -1): "not identified".
    """
    if level < 0:
        return "not identified"
    kind, name = hierarchy.levels[level], hierarchy.names[level][path[level]]
    if kind.lower() == "genus":
        return f"{name} sp."
    if level < hierarchy.num_levels - 1:
        return f"{kind} {name}"
    above = [label.lower() for label in hierarchy.levels[:level]]
    if kind.lower() == "species" and name.islower() and " " not in name and "genus" in above:
        genus = path[above.index("genus")]
        return name if genus < 0 else f"{hierarchy.names[above.index('genus')][genus]} {name}"
    return name
