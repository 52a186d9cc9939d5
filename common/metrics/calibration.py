"""Thresholds for back-off: the probability from which on answers at a level are right often enough.

They are found in evaluation and stored with the model.

The finest level is calibrated first: its threshold is the lowest at which the answers reach the precision asked for.
Images left unanswered pass to the level above, and so on. So the precision holds for the answers given at *each*
level, and therefore for all answers together.

A threshold must reach the precision not just on the images at hand: the exact binomial test has to confirm it. Among
many thresholds one would pass by chance, so they are tested from the strictest on and the first failure ends the
search (fixed-sequence testing, as in Angelopoulos et al., Learn then Test, 2021, arXiv 2110.01052); from several
starts, which share the error allowed.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtrc

from ..model.answers import thresholds_for
from ..model.hierarchy import Hierarchy
from .backoff import is_right
from .prediction_table import PredictionTable

TARGETS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Precisions that thresholds are found for"""

ERROR = 0.1
"""Probability that a level's precision on new images of the same kind falls short of the target"""

NUM_STARTS = 4
NUM_STEPS = 200
"""Thresholds tested, at most, from the strictest to the one that answers everything"""


@dataclass
class Calibration:
    """Thresholds of back-off for each of :data:`TARGETS`, as ``config.json`` holds them.

    Attributes:
        num_images: that they were found on.
        decoding: of the best path that they are for.
        targets: precisions.
        levels: names of the levels, coarse to fine.
        thresholds: per level, for each target the lowest probability that is answered; ``None`` for none.
        precision, coverage: per level, for each target: share right, and share answered at this level, there.
    """

    num_images: int
    decoding: str
    targets: list[float]
    levels: list[str]
    thresholds: list[list[float | None]]
    precision: list[list[float | None]]
    coverage: list[list[float]]

    def for_target(self, precision: float) -> tuple[float, list[float | None]]:
        """The lowest target that is at least ``precision``, and its threshold of every level, coarse to fine.

        Raises:
            ValueError: if that is more than any.
        """
        return thresholds_for(asdict(self), precision)

    @classmethod
    def from_dict(cls, content: Mapping[str, Any], hierarchy: Hierarchy) -> Calibration:
        """From what ``config.json`` holds; ValueError if it is for other levels."""
        missing = {entry.name for entry in fields(cls)} - set(content)
        if missing:
            raise ValueError(f"The calibration lacks: {', '.join(sorted(missing))}.")
        calibration = cls(**{entry.name: content[entry.name] for entry in fields(cls)})
        if calibration.levels != list(hierarchy.levels):
            raise ValueError(
                f"The calibration is for the levels {', '.join(calibration.levels)}; the model has "
                f"{', '.join(hierarchy.levels)}."
            )
        return calibration

    def to_dict(self) -> dict[str, Any]:
        """What :meth:`from_dict` takes, ready for JSON."""
        return asdict(self)


def read_calibration(path: str | Path, hierarchy: Hierarchy) -> Calibration:
    """Read the calibration.json that ``--eval_only`` writes; ValueError if it is not there or not that."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no calibration")
        return Calibration.from_dict(content, hierarchy)
    except (OSError, ValueError) as error:
        raise ValueError(f"Cannot read the calibration {path}: {error}") from error


def calibrate(table: PredictionTable, decoding: str) -> Calibration:
    """Thresholds for every target; see the top of the file.

    Args:
        table: predictions for the evaluated images.
        decoding: of the best path.
    """
    judged, right = is_right(table.best_path, table.columns["label"])
    probabilities, levels = table.columns["best_path_probability"], list(table.hierarchy.levels)
    found = [_cascade(probabilities, judged, right, target) for target in TARGETS]
    columns = np.array(found, dtype=object).transpose(2, 1, 0).tolist()  # from (targets, levels, columns)
    return Calibration(len(probabilities), decoding, list(TARGETS), levels, *columns)


def _cascade(
    probabilities: np.ndarray, judged: np.ndarray, right: np.ndarray, target: float
) -> list[tuple[float | None, float | None, float]]:
    """Per level, coarse to fine: threshold, precision and coverage for one target."""
    left = np.ones(len(probabilities), dtype=bool)
    found = []
    for level in reversed(range(probabilities.shape[1])):
        chances = probabilities[:, level]
        known = left & judged[:, level]
        threshold = lowest_threshold(chances[known], right[known, level], target)
        answered = left & (chances >= (np.inf if threshold is None else threshold)) & (chances > 0)
        good = answered & judged[:, level]
        precision = round(float(right[good, level].mean()), 4) if good.any() else None
        found.append((threshold, precision, round(float(answered.sum() / max(len(left), 1)), 4)))
        left &= ~answered
    return found[::-1]


def lowest_threshold(
    probabilities: np.ndarray, right: np.ndarray, target: float, error: float = ERROR
) -> float | None:
    """The lowest probability from which on the precision is at least ``target``, but for the ``error`` allowed.

    Args:
        probabilities: (n,).
        right: (n,) whether the answer is right.
        target: the precision.
        error: probability of finding a threshold although its precision is lower.

    Returns:
        ``None`` if the images at hand are too few to confirm any, or too often wrong.
    """
    order = np.argsort(-probabilities, kind="stable")
    chances, num_right = probabilities[order], np.cumsum(right[order])
    fewest = int(
        np.ceil(np.log(error / NUM_STARTS) / np.log(target))
    )  # with fewer, even all of them right would not be enough
    if len(chances) < fewest:
        return None
    sizes = np.unique(np.linspace(fewest, len(chances), NUM_STEPS).round().astype(int))
    sizes = np.unique(np.searchsorted(-chances, -chances[sizes - 1], side="right"))  # equal ones are answered alike
    p_values = bdtrc(num_right[sizes - 1] - 1, sizes, target)  # of so many right or more if the share is target
    failures = np.flatnonzero(p_values > error / NUM_STARTS)
    starts = np.unique(np.linspace(0, len(sizes), NUM_STARTS, endpoint=False).astype(int))
    ends = [min([*failures[failures >= start], len(sizes)]) for start in starts]
    reached = max((end for start, end in zip(starts, ends, strict=True) if end > start), default=0)
    if not reached:
        return None
    threshold = float(chances[sizes[reached - 1] - 1])
    return threshold - 1e-5 * threshold * (1 - threshold) - 1e-7  # in other batches numbers are rounded differently
