"""What a model answers: the best path, its probabilities, and the finest level that is probable enough."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from .hierarchy import Hierarchy

SCORES = ("probability", "logit", "energy", "tree")
"""How known an image looks: highest probability and logit of a leaf, log of the sum of exp(logit) (Liu et al., NeurIPS
2020), and the probability of the path's last level less that above it: low if sure of the genus, of no species"""


@dataclass
class Answers:
    """What :meth:`.modeling.LabelTreeModel.decode` returns, for images or for their pixels.

    Attributes:
        hierarchy: the label tree.
        leaf: (batch, ...) number of the leaf that the best path ends in.
        path: (batch, levels, ...) class numbers, IGNORE where the path has none; always a path of the tree.
        probabilities: (batch, levels, ...) float32, of the path's classes; 0 where the path has none.
        level: (batch, ...) what :func:`answer_levels` returns; without thresholds the last level of the path.
    """

    hierarchy: Hierarchy
    leaf: torch.Tensor
    path: torch.Tensor
    probabilities: torch.Tensor
    level: torch.Tensor

    def describe(self) -> list[dict[str, Any]]:
        """For each image of a batch: name and probability at every level, and the answer as people write it."""
        names, lines = self.hierarchy.shown_names, []
        columns = (self.path.tolist(), self.probabilities.tolist(), self.level.tolist())
        for path, chances, level in zip(*columns, strict=True):
            levels = {
                kind: {"name": None if label < 0 else column[label], "probability": round(chance, 6)}
                for kind, column, label, chance in zip(self.hierarchy.levels, names, path, chances, strict=True)
            }
            answer = {
                "level": None if level < 0 else self.hierarchy.levels[level],
                "text": answer_text(self.hierarchy, path, level),
                "probability": None if level < 0 else round(chances[level], 6),
            }
            lines.append({"levels": levels, "answer": answer})
        return lines


def path_probabilities(log_probs: Sequence[torch.Tensor], path: Sequence[torch.Tensor]) -> torch.Tensor:
    """Probability of the path's class at every level, float32 (batch, levels, ...); 0 where the path has none.

    Of log-probabilities (batch, classes, ...) and class numbers or IGNORE (batch, ...), per level.
    """
    return torch.stack(
        [
            torch.where(label >= 0, level.gather(1, label.clamp(min=0)[:, None])[:, 0].exp(), 0)
            for level, label in zip(log_probs, path, strict=True)
        ],
        1,
    )


def known_scores(leaf_logits: torch.Tensor, probabilities: torch.Tensor) -> torch.Tensor:
    """:data:`SCORES`, float64 (batch, 4), from (batch, leaves) and the best path's probabilities (batch, levels)."""
    logits, path = leaf_logits.double(), torch.nn.functional.pad(probabilities.double(), (1, 0), value=1.0)
    highest, energy = logits.amax(1), logits.logsumexp(1)
    return torch.stack([(highest - energy).exp(), highest, energy, path[:, -1] - path[:, -2]], 1)


def answer_levels(probabilities: torch.Tensor, path: torch.Tensor, thresholds: Sequence[float | None]) -> torch.Tensor:
    """The finest level of each path whose probability reaches the level's threshold; -1 where none does.

    Args:
        probabilities, path: (n, levels, ...).
        thresholds: per level; ``None`` for levels that are never answered.
    """
    answered = torch.full_like(path[:, 0], -1)
    for level, bound in enumerate(thresholds):
        if bound is not None:
            answered = answered.masked_fill((path[:, level] >= 0) & (probabilities[:, level] >= bound), level)
    return answered


def thresholds_for(calibration: Mapping[str, Any], precision: float) -> tuple[float, list[float | None]]:
    """The lowest target of a calibration, as ``config.json`` holds it, that is at least ``precision``; its thresholds.

    Raises:
        ValueError: if that is more than any.
    """
    for index, target in enumerate(calibration["targets"]):
        if target >= precision:
            return target, [column[index] for column in calibration["thresholds"]]
    raise ValueError(f"The model is calibrated for precisions up to {max(calibration['targets'])}, not {precision}.")


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
