"""What the answers of an evaluation cost: by the costs that chose them, and on the tracks of FungiCLEF."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..model.costs import cost_matrix, group_leaves
from ..model.tree import IGNORE
from .prediction_table import PredictionTable
from .report_data import first_nodes


def cost_results(table: PredictionTable, settings: Mapping[str, Any]) -> dict[str, float]:
    """Mean cost of the answers to images labelled at the last level, and the share of all images without an answer.

    ``settings`` are those of :func:`common.model.costs.cost_matrix`. With a group ``poisonous``,
    :func:`fungiclef_tracks` too, on which an answer above the leaves is unknown.
    """
    tree, columns = table.hierarchy, table.columns
    leaf, level, truth = columns["leaf"], columns["level"], columns["label"][:, -1]
    node = np.where(level < 0, -1, first_nodes(tree)[level] + tree.ancestors.numpy()[leaf, level])
    paid = cost_matrix(tree, **settings).numpy()[node[truth >= 0], truth[truth >= 0]]
    results = {name: _mean(values) for name, values in (("mean_cost", paid), ("not_answered", level < 0))}
    if "poisonous" in settings.get("groups", {}):
        answer, judged = np.where(level == np.array(tree.leaves)[leaf, 0], leaf, -1), truth != IGNORE
        poisonous = group_leaves(tree, settings["groups"])["poisonous"].numpy()
        results |= fungiclef_tracks(answer[judged], truth[judged], poisonous)
    return results


def fungiclef_tracks(answer: np.ndarray, truth: np.ndarray, poisonous: np.ndarray) -> dict[str, float]:
    """Mean costs as in Picek, Sulc, Matas: Overview of FungiCLEF 2024 (CEUR-WS 3740), and as its script has them.

    Track 1: errors; unknown is a class. 2: 100 for a poisonous species answered as another or as unknown, 1 for any
    other answered as poisonous. 3: both. 4: errors, of which naming an unknown species costs 10, the reverse 0.1.

    Args:
        answer, truth: (n,) leaves, -1 for unknown.
        poisonous: bool (leaves,).
    """
    toxic, taken = (np.append(poisonous, False)[leaves] for leaves in (truth, answer))
    error, confused = answer != truth, 100 * (toxic & ~taken) + (~toxic & taken)
    special = error * np.where(truth < 0, 10, np.where(answer < 0, 0.1, 1))
    tracks = enumerate((error, confused, error + confused, special), start=1)
    return {f"track_{number}": _mean(cost) for number, cost in tracks}


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan
