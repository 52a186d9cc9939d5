"""Thresholds for back-off, found in evaluation: from which probability on answers at a level are right often enough.

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
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import bdtrc

from ..labels.encoding import UNKNOWN
from ..model.hierarchy import Hierarchy
from .prediction_table import PredictionTable

TARGETS = (0.5, 0.7, 0.8, 0.85, 0.9, 0.95, 0.98, 0.99)
"""Precisions that thresholds are found for"""

ERROR = 0.1
"""Probability that a level's precision on new images of the same kind falls short of the target"""

NUM_STARTS, NUM_STEPS = 4, 200
"""Thresholds tested, at most, from the strictest to the one that answers everything"""

KEYS = ("num_images", "decoding", "targets", "levels", "thresholds", "precision", "coverage")
"""Of a calibration, see :func:`calibrate`"""


def read_calibration(path: str | Path, hierarchy: Hierarchy) -> dict[str, Any]:
    """Read the calibration.json that ``--eval_only`` writes; ValueError if it is not there, not that, or of others."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
        if missing := [name for name in KEYS if name not in content]:
            raise ValueError(f"it lacks {', '.join(missing)}")
        if content["levels"] != list(hierarchy.levels):
            theirs, ours = (", ".join(levels) for levels in (content["levels"], hierarchy.levels))
            raise ValueError(f"it is for the levels {theirs}; the model has {ours}")
    except (OSError, ValueError, TypeError) as error:
        raise ValueError(f"Cannot read the calibration {path}: {error}") from error
    return content


def calibrate(table: PredictionTable, decoding: str) -> dict[str, Any]:
    """Thresholds of back-off for each of :data:`TARGETS`, as ``config.json`` holds them; see the top of the file.

    Args:
        table: predictions for the evaluated images.
        decoding: of the best path that they are for.

    Returns:
        ``num_images`` that they were found on, ``decoding``, ``targets`` (the precisions), names of the ``levels``;
        and per level, coarse to fine, for each target: ``thresholds``, the lowest probability that is answered, or
        ``None`` for none; ``precision`` and ``coverage``, the share right, and the share answered at this level.
    """
    judged, right = is_right(table.best_path, table.columns["label"])
    probabilities, levels = table.columns["best_path_probability"], list(table.hierarchy.levels)
    found = [_cascade(probabilities, judged, right, target) for target in TARGETS]
    sure = (np.where(probabilities > 0, probabilities, 1) > 1 - 1e-5).all(0)
    for level in np.flatnonzero(sure & (np.array(table.hierarchy.num_classes) == 1)):
        for columns in found:  # the only class is always answered: its probability is 1, but for rounding
            columns[level] = (None if columns[level][0] is None else 0.0, *columns[level][1:])
    columns = np.array(found, dtype=object).transpose(2, 1, 0).tolist()  # from (targets, levels, columns)
    return dict(zip(KEYS, (len(probabilities), decoding, list(TARGETS), levels, *columns), strict=True))


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


def fewest_images(target: float, error: float = ERROR) -> int:
    """How many answers show a precision if all of them are right; with fewer it cannot be shown."""
    return int(np.ceil(np.log(error / NUM_STARTS) / np.log(target)))


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
    fewest = fewest_images(target, error)
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
