"""Bootstrap intervals against a plain loop over resampled images, and against the binomial distribution."""

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from scipy.stats import binom, norm
from sklearn.metrics import f1_score

from common.metrics import intervals
from common.metrics.intervals import bootstrap_intervals, counts_of_predictions
from common.metrics.prediction_table import PredictionTable, gather_rows
from common.metrics.segmentation import SegmentationMetrics
from common.metrics.taxonomy import TaxonomyMetrics
from common.model.hierarchy import Hierarchy

TREE = Hierarchy(["family", "species"], [["f", "g"], ["a", "b", "c", "d"]], [[None, None], [0, 0, 1, 1]])


def table_of(labels: np.ndarray, leaves: np.ndarray) -> PredictionTable:
    table = PredictionTable(TREE)
    table.columns = {"row": np.arange(len(labels)), "label": labels, "leaf": leaves}
    return table


def predictions(num_images: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels (images, levels), some only to the family, and predicted leaves, right in seven of ten images."""
    random = np.random.default_rng(seed)
    species = random.choice(4, num_images, p=[0.6, 0.2, 0.15, 0.05])
    leaves = np.where(random.random(num_images) < 0.7, species, random.integers(4, size=num_images))
    labels = np.stack([species // 2, np.where(random.random(num_images) < 0.1, -100, species)], 1)
    return labels, leaves


def test_counts_give_the_metrics():
    labels, leaves = predictions(200)
    counts = counts_of_predictions(table_of(labels, leaves)).toarray()
    metric = TaxonomyMetrics(TREE)
    path = list(TREE.lift(torch.from_numpy(leaves)))
    log_probs = [
        torch.nn.functional.one_hot(column, size).float().log() for column, size in zip(path, (2, 4), strict=True)
    ]
    metric.add_batch(predictions={"log_probs": log_probs, "path": path}, references=torch.from_numpy(labels))
    results = metric.compute()
    labelled, _, right = counts.sum(0).reshape(3, -1)
    assert right[2:6].sum() / labelled[2:6].sum() == results["levels"]["species"]["accuracy"]
    assert right[6] / labelled[6] == results["path"]["full_path_accuracy"]


def test_accuracy_is_binomial():
    labels, leaves = predictions(400)
    found = bootstrap_intervals(TREE, counts_of_predictions(table_of(labels, leaves)), ["accuracy"])
    low, high = found["family"]["accuracy"]
    right = (labels[:, 0] == leaves // 2).mean()
    expected = binom.ppf([0.025, 0.975], 400, right) / 400
    assert low < right < high
    assert np.allclose([low, high], expected, atol=0.008)


def test_as_a_loop_over_resampled_images(monkeypatch):
    monkeypatch.setattr(intervals, "NUM_RESAMPLES", num_resamples := 200)
    labels, leaves = predictions(60)
    found = bootstrap_intervals(TREE, counts_of_predictions(table_of(labels, leaves)), ["macro_f1"])
    random, scores = np.random.default_rng(0), []
    for drawn in random.integers(60, size=(num_resamples, 60)):  # as drawn there
        kept = drawn[labels[drawn, 1] >= 0]
        scores.append(f1_score(labels[kept, 1], leaves[kept], average="macro"))
    kept = labels[:, 1] >= 0
    estimate = f1_score(labels[kept, 1], leaves[kept], average="macro")
    low, high = found["species"]["macro_f1"]
    assert low <= estimate <= high
    share = (np.sum(np.array(scores) < estimate - 1e-12) + np.sum(np.array(scores) <= estimate + 1e-12)) / 2
    shift = 2 * norm.ppf((share + 0.5) / (num_resamples + 1))
    expected = np.quantile(scores, norm.cdf([shift - 1.959964, shift + 1.959964]))
    assert np.allclose([low, high], expected)


def test_images_of_a_group_are_drawn_together():
    labels, leaves = predictions(100)
    labels, leaves = labels.repeat(4, 0), leaves.repeat(4)  # four photographs of each observation, all the same
    counts = counts_of_predictions(table_of(labels, leaves))
    alone = bootstrap_intervals(TREE, counts, ["accuracy"])["full_path_accuracy"]
    together = bootstrap_intervals(TREE, counts, ["accuracy"], np.arange(400) // 4)["full_path_accuracy"]
    assert 1.6 < np.ptp(together) / np.ptp(alone) < 2.4


def test_without_images_there_is_none():
    empty = counts_of_predictions(table_of(np.zeros((0, 2), dtype=int), np.zeros(0, dtype=int)))
    assert bootstrap_intervals(TREE, empty, ["accuracy"]) == {}
    unlabelled = counts_of_predictions(table_of(np.full((5, 2), -100), np.zeros(5, dtype=int)))
    assert np.isnan(bootstrap_intervals(TREE, unlabelled, ["macro_f1"])["species"]["macro_f1"]).all()


@pytest.mark.parametrize("parents", [[[None, None], [0, 0, 1, 1]], [[None, None], [0, None, 1, 1]]])
def test_masks_count_as_their_metrics_do(parents):
    tree = Hierarchy(["coarse", "fine"], [["f", "g"], ["a", "b", "c", "d"]], parents)
    random, metric = np.random.default_rng(0), SegmentationMetrics(tree, keep_counts=True)
    for _ in range(6):
        truth, leaf = torch.from_numpy(random.integers(-1, 4, (2, 9, 7)))
        metric.add_batch(predictions={"leaf": leaf.clamp(min=0)}, references=truth)
    results, counts = metric.compute(), metric.counts_of_calls()
    gathered = gather_rows(Accelerator(cpu=True), {"row": np.arange(6)[::-1], "counts": counts})
    assert gathered["row"].tolist() == [0, 1, 2, 3, 4, 5]
    counts = gathered["counts"]
    assert (counts == metric.counts_of_calls()[::-1]).all()
    labelled, predicted, right = counts.sum(0).reshape(3, -1)
    for name, start, end in (("coarse", 0, 2), ("fine", 2, 6)):
        iou = right[start:end] / (labelled + predicted - right)[start:end]
        assert np.isclose(iou.mean(), results["levels"][name]["mean_iou"])
        assert labelled[start:end].tolist() == [
            row["num_pixels"] for row in results["levels"][name]["per_class"].values()
        ]
    assert right[-1] / labelled[-1] == results["path"]["full_path_accuracy"]
    intervals = bootstrap_intervals(tree, counts, ["mean_iou", "mean_f1"])
    low, high = intervals["fine"]["mean_iou"]
    assert low < results["levels"]["fine"]["mean_iou"] < high
