"""Bootstrap intervals: how far an evaluation's numbers could be off because of which images it happens to have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
import scipy.sparse
import torch

from ..model.hierarchy import Hierarchy
from .prediction_table import PredictionTable
from .report_data import first_nodes
from .thin import NUM_COUNTS, thin_means

NUM_RESAMPLES = 1000
COVERAGE = 0.95
_BLOCK = 2_000_000  # images drawn at once, 16 MB

STATISTICS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "accuracy": lambda labelled, predicted, right: _ratio(right.sum(1), labelled.sum(1)),
    "macro_f1": lambda labelled, predicted, right: _mean(_ratio(2 * right, labelled + predicted)),
    "mean_iou": lambda labelled, predicted, right: _mean(_ratio(right, labelled + predicted - right)),
}
STATISTICS["mean_f1"] = STATISTICS["macro_f1"]
"""By measure, from float64 (resamples, classes): how often classes were the label, were predicted, and were both"""


def bootstrap_intervals(
    hierarchy: Hierarchy,
    counts: scipy.sparse.sparray | np.ndarray,
    measures: Sequence[str],
    groups: np.ndarray | None = None,
) -> dict[str, Any]:
    """95 % intervals of measures of every level: images are drawn again with replacement, a thousand times.

    Bias-corrected percentiles (Efron, Canadian Journal of Statistics 1981), because means over classes are lower in
    resamples, where rare classes are missing. Images of one group are not independent: whole groups are drawn.

    Args:
        hierarchy: the label tree.
        counts: (images, 3 (classes of all levels + 1)): how often each class was the label, then the prediction, then
            both; after the classes of the levels, in that order, one for the whole path. Its order decides the draws.
            Perhaps then NUM_COUNTS per class of all levels: the means of :mod:`.thin` have intervals too.
        measures: keys of STATISTICS.
        groups: (images,) numbers of groups; by default each image is one.

    Returns:
        ``{level: {measure: [low, high]}, "full_path_accuracy": [low, high]}``; nothing of fewer than two groups.
    """
    counts = scipy.sparse.csr_array(counts, dtype=float)
    if groups is not None:
        _, groups = np.unique(groups, return_inverse=True)
        places = (np.ones(len(groups)), (groups, np.arange(len(groups))))
        counts = scipy.sparse.csr_array(scipy.sparse.coo_array(places) @ counts)
    num_units, by_class = counts.shape[0], counts.T.tocsr()
    if num_units < 2:
        return {}
    ends = np.cumsum([*hierarchy.num_classes, 1])
    width, has_thin = 3 * ends[-1], counts.shape[1] > 3 * ends[-1]
    wanted = [(level, measure) for level in range(hierarchy.num_levels) for measure in measures]
    wanted.append((hierarchy.num_levels, "accuracy"))

    def evaluate(weights: np.ndarray) -> np.ndarray:
        drawn = (by_class @ weights).T
        kinds = np.split(drawn[:, :width], 3, axis=1)
        parts = [[kind[:, start:end] for kind in kinds] for start, end in zip([0, *ends], ends, strict=False)]
        columns = [STATISTICS[measure](*parts[level]) for level, measure in wanted]
        if has_thin:
            thin = torch.from_numpy(drawn[:, width:]).view(len(drawn), -1, NUM_COUNTS)
            columns += [means.numpy() for level in thin_means(thin, hierarchy) for means in level.values()]
        return np.stack(columns, 1)

    estimate = evaluate(np.ones((num_units, 1)))[0]
    random, rounds = np.random.default_rng(0), max(1, _BLOCK // num_units)
    found = []
    for start in range(0, NUM_RESAMPLES, rounds):
        size = min(rounds, NUM_RESAMPLES - start)
        drawn = random.integers(num_units, size=(size, num_units)) + num_units * np.arange(size)[:, None]
        weights = np.bincount(drawn.ravel(), minlength=size * num_units).reshape(size, num_units)
        found.append(evaluate(weights.T.astype(float)))
    bounds = [_corrected(*column) for column in zip(np.concatenate(found).T, estimate, strict=True)]
    of_levels, of_thin = iter(bounds), iter(bounds[len(wanted) :])
    intervals = {name: {measure: next(of_levels) for measure in measures} for name in hierarchy.levels}
    for name, level in zip(hierarchy.levels, thin_means(torch.zeros(ends[-2], NUM_COUNTS), hierarchy), strict=True):
        intervals[name] |= {measure: next(of_thin) for measure in level} if has_thin else {}
    return {**intervals, "full_path_accuracy": next(of_levels)}


def counts_of_predictions(table: PredictionTable) -> scipy.sparse.coo_array:
    """``counts`` of images with one class per level, in the order of the table's rows."""
    hierarchy, label, path = table.hierarchy, table.columns["label"], table.best_path
    labelled = label >= 0
    right, answered = labelled & (label == path), labelled & (path >= 0)
    full = labelled[:, -1]
    full_right = full & np.where(labelled, right, path < 0).all(1)
    size, first = sum(hierarchy.num_classes) + 1, first_nodes(hierarchy)
    places = []
    for kind, (mask, classes, whole) in enumerate(
        ((labelled, label, full), (answered, path, full), (right, label, full_right))
    ):
        images, levels = mask.nonzero()
        places += [(images, kind * size + first[levels] + classes[images, levels])]
        places += [(whole.nonzero()[0], np.full(whole.sum(), kind * size + size - 1))]
    images, columns = (np.concatenate(part) for part in zip(*places, strict=True))
    return scipy.sparse.coo_array((np.ones(len(images)), (images, columns)), shape=(len(label), 3 * size))


def _corrected(resamples: np.ndarray, estimate: float) -> list[float]:
    """Interval of one measure. If resamples lie on one side of the estimate, the correction ends before infinity."""
    resamples, normal = resamples[np.isfinite(resamples)], NormalDist()
    if not len(resamples):
        return [np.nan, np.nan]
    below = (np.sum(resamples < estimate) + np.sum(resamples <= estimate)) / 2
    shift = 2 * normal.inv_cdf((below + 0.5) / (len(resamples) + 1))
    tail = normal.inv_cdf((1 + COVERAGE) / 2)
    return [float(np.quantile(resamples, normal.cdf(shift + side * tail))) for side in (-1, 1)]


def _ratio(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    """Of equal shapes; NaN for 0 / 0."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def _mean(values: np.ndarray) -> np.ndarray:
    """Mean of each row without NaN; NaN of none."""
    return _ratio(np.nansum(values, 1), np.isfinite(values).sum(1).astype(float))
