"""Images of what the label tree lacks: how well scores tell them from the rest, and how far down the answers hold."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.stats import rankdata

from ..labels.encoding import UNKNOWN
from ..model.answers import SCORES
from .prediction_table import PredictionTable


def unknown_below(table: PredictionTable) -> dict[str, float]:
    """By score, the highest bound that 95 % of the images labelled at the last level reach; none without images."""
    known = table.columns["known"][table.columns["label"][:, -1] >= 0]
    # A little less, because rounding differs in other batches.
    bounds = np.quantile(known, 0.05, 0, method="lower") - 1e-6 if len(known) else []
    return dict(zip(SCORES, np.array(bounds).tolist(), strict=False))


def unknown_results(table: PredictionTable) -> dict[str, Any]:
    """Images with names that the tree lacks, among those that are labelled at the last level.

    Returns:
        ``num_unknown``; by score ``auroc`` and ``tnr_at_95_tpr``, the share of these that looks unknown where 95 % of
        the others look known; in ``levels``, the share of them whose best path is right, where they have a label.
    """
    label, scores, bounds = table.columns["label"], table.columns["known"], unknown_below(table)
    unknown, known = (label == UNKNOWN).any(1), label[:, -1] >= 0
    results: dict[str, Any] = {"num_unknown": int(unknown.sum()), "levels": {}}
    for score, bound, values in zip(bounds, bounds.values(), scores.T, strict=False):
        ranks = rankdata(np.append(values[known], values[unknown]))[: known.sum()]
        wins = ranks.sum() - known.sum() * (known.sum() + 1) / 2
        found = values[unknown] < bound
        results[score] = (
            {"auroc": wins / known.sum() / len(found), "tnr_at_95_tpr": found.mean()} if len(found) else {}
        )
    for level, name in enumerate(table.hierarchy.levels):
        right = (table.best_path == label)[unknown & (label[:, level] >= 0), level]
        results["levels"][name] = float(right.mean()) if len(right) else np.nan
    return results
