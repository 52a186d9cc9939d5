"""Metrics of boundaries, lines and objects against loops with SciPy, image by image and class by class."""

import numpy as np
import pytest
import torch
from scipy import ndimage
from test_segmentation_metrics import TREES, assert_same, damage_tree

from common.metrics.intervals import NUM_RESAMPLES, _corrected, bootstrap_intervals
from common.metrics.results import flatten, in_words, results_table
from common.metrics.segmentation import SegmentationMetrics
from common.metrics.thin import thin_counts, thin_scores
from common.model.tree import IGNORE

CROSS, SQUARE = ndimage.generate_binary_structure(2, 1), np.ones((3, 3), bool)


def masks(hierarchy, seed=0, shape=(3, 24, 30)):
    """Predictions are the labels, shifted, with some errors; a corner is without labels."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randint(hierarchy.num_leaves, (shape[0], 5, 6), generator=generator)
    truth = coarse.repeat_interleave(5, 1).repeat_interleave(5, 2)[:, : shape[1], : shape[2]].clone()
    truth[torch.rand(shape, generator=generator) < 0.03] = 0
    leaf = truth.roll((1, 2), (1, 2))
    noise = torch.randint(hierarchy.num_leaves, shape, generator=generator)
    leaf = torch.where(torch.rand(shape, generator=generator) < 0.05, noise, leaf)
    truth[:, :4, :7] = IGNORE
    return leaf, truth


def near(mask, distance):
    return ndimage.distance_transform_cdt(~mask, "chessboard") <= distance if mask.any() else mask


def edge_of(mask, distance=1):
    return mask & near(~mask, distance) if not mask.all() else np.zeros_like(mask)


def skeleton(mask):
    """Lantuejoul's formula."""
    found = np.zeros_like(mask)
    for _ in range(21):
        eroded = ndimage.binary_erosion(mask, CROSS, border_value=1)
        found |= mask & ~ndimage.binary_dilation(eroded, SQUARE)
        mask = eroded
    return found


def ratio(pairs):
    part, whole = (sum(values) for values in zip(*pairs, strict=True))
    return part / whole if whole else np.nan


def f1(found, right):
    recall, precision = (np.nan_to_num(ratio(pairs)) for pairs in (found, right))
    if not any(whole for _, whole in [*found, *right]):
        return np.nan
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def expected_scores(pairs, distance):
    """Of one class, from (label, prediction, where there are labels) of every image."""
    rows = {name: [] for name in ("band", "edges", "edges_given", "lines", "lines_given", "tolerant", "objects")}
    for wanted, given, known in pairs:
        inside, deep = (~near(~known, d) if not known.all() else known for d in (1, distance))
        bands = [edge_of(mask, distance) & deep for mask in (wanted, given)]
        rows["band"].append(((bands[0] & bands[1]).sum(), (bands[0] | bands[1]).sum()))
        edges = [edge_of(mask) & inside for mask in (wanted, given)]
        rows["edges"].append(((edges[0] & near(edges[1], distance)).sum(), edges[0].sum()))
        rows["edges_given"].append(((edges[1] & near(edges[0], distance)).sum(), edges[1].sum()))
        lines = [skeleton(mask) for mask in (wanted, given)]
        rows["lines"].append(((lines[0] & given).sum(), lines[0].sum()))
        rows["lines_given"].append(((lines[1] & wanted).sum(), lines[1].sum()))
        false = (given & ~near(wanted, distance)).sum()
        rows["tolerant"].append(((wanted & near(given, distance)).sum(), wanted.sum() + false))
        labelled, number = ndimage.label(wanted, SQUARE)
        for index in range(1, number + 1):
            rows["objects"].append((near(given, distance)[labelled == index].mean() >= 0.5, 1))
    return {
        "boundary_iou": ratio(rows["band"]),
        "boundary_f1": f1(rows["edges"], rows["edges_given"]),
        "cldice": f1(rows["lines"], rows["lines_given"]),
        "tolerant_iou": ratio(rows["tolerant"]),
        "object_recall": ratio(rows["objects"]) if rows["objects"] else np.nan,
    }


@pytest.mark.parametrize("distance", [1, 3])
@pytest.mark.parametrize("tree", ["damage", "random 0"])
def test_scores_equal_those_of_scipy(tree, distance):
    hierarchy = TREES[tree]
    leaf, truth = masks(hierarchy)
    metric = SegmentationMetrics(hierarchy, tolerance=distance)
    metric.add_batch(predictions={"leaf": leaf}, references=truth)
    levels, lifted = metric.compute()["levels"], (hierarchy.lift(truth), hierarchy.lift(leaf))
    for level, name in enumerate(hierarchy.levels):
        columns = [column[level].numpy() for column in lifted]
        known, all_scores = columns[0] >= 0, []
        for label, row in enumerate(levels[name]["per_class"].values()):
            pairs = [(t == label, (g == label) & k, k) for t, g, k in zip(*columns, known, strict=True)]
            scores = expected_scores(pairs, distance)
            assert {key: row[key] for key in scores} == pytest.approx(scores, rel=1e-12, nan_ok=True)
            all_scores.append(scores)
        for key in all_scores[0]:
            values = [scores[key] for scores in all_scores]
            assert levels[name][f"mean_{key}"] == pytest.approx(np.nanmean(values), rel=1e-12)


def test_images_processes_and_types_change_nothing():
    hierarchy = damage_tree()
    leaf, truth = masks(hierarchy)
    whole, parts = (SegmentationMetrics(hierarchy, tolerance=2, **options) for options in ({}, {"keep_counts": True}))
    whole.add_batch(predictions={"leaf": leaf}, references=truth)
    halves = [SegmentationMetrics(hierarchy, tolerance=2) for _ in range(2)]
    small = truth.where(truth >= 0, 255).to(torch.uint8)
    for index in range(3):
        parts.add_batch(predictions={"leaf": leaf[index].to(torch.uint8)}, references=small[index])
        halves[index > 0].add_batch(predictions={"leaf": leaf[index]}, references=truth[index])
    sent = [half._counts.clone() for half in halves]
    halves[1].reduce(lambda counts: sum(sent))
    for metric in (parts, halves[1]):
        assert_same(metric.compute()["levels"], whole.compute()["levels"])


def test_intervals_are_of_images_drawn_again():
    hierarchy, num_images = damage_tree(), 12
    leaf, truth = masks(hierarchy, shape=(num_images, 24, 30))
    metric = SegmentationMetrics(hierarchy, tolerance=1, keep_counts=True)
    for index in range(num_images):
        metric.add_batch(predictions={"leaf": leaf[index]}, references=truth[index])
    found = bootstrap_intervals(hierarchy, metric.counts_of_calls(), ["mean_iou"])
    counts = np.stack([thin_counts(hierarchy, *pair, 1) for pair in zip(leaf, truth, strict=True)])
    drawn = np.random.default_rng(0).integers(num_images, size=(NUM_RESAMPLES, num_images))  # as drawn there
    name, first = hierarchy.levels[-1], sum(hierarchy.num_classes[:-1])
    scores = thin_scores(torch.from_numpy(counts[drawn, first:].sum(1)))
    for key, estimate in ((key, metric.compute()["levels"][name][f"mean_{key}"]) for key in scores):
        low, high = found[name][f"mean_{key}"]
        values = np.nanmean(scores[key].numpy(), 1)
        assert (values < low).mean() < 0.2 and (values > high).mean() < 0.2
        assert [low, high] == pytest.approx(_corrected(values, estimate))


def test_a_crack_one_pixel_off():
    hierarchy = damage_tree()
    truth, leaf = torch.zeros(2, 20, 20, dtype=torch.long)
    truth[:, 10] = 1
    leaf[:, 11] = 1
    metric = SegmentationMetrics(hierarchy, tolerance=1)
    metric.add_batch(predictions={"leaf": leaf}, references=truth)
    crack = metric.compute()["levels"]["fine"]["per_class"]["crack"]
    assert crack["iou"] == 0 == crack["cldice"]
    assert crack["boundary_f1"] == crack["tolerant_iou"] == crack["object_recall"] == 1


def test_without_the_option_there_is_nothing_and_with_it_names():
    names = [name for name, _ in flatten(SegmentationMetrics(damage_tree(), tolerance=2).compute())]
    assert "levels.fine.mean_cldice" in names and "levels.fine.per_class.crack.boundary_iou" in names
    results = SegmentationMetrics(damage_tree()).compute()
    assert not any("boundary" in name for name, _ in flatten(results))
    assert in_words("mean_cldice") == "mean clDice"
    assert "mean_object_recall" in results_table(
        {"loss": 1.0, **SegmentationMetrics(damage_tree(), tolerance=2).compute()}
    )
