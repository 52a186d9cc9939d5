"""Thresholds that keep what they promise on images that they were not chosen on."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import binomtest

from common.metrics.calibration import (
    ERROR,
    NUM_STARTS,
    UNKNOWN,
    calibrate,
    lowest_threshold,
    read_calibration,
)
from common.metrics.prediction_table import PredictionTable
from common.model.answers import answer_levels, thresholds_for
from common.model.hierarchy import Hierarchy
from common.model.tree import IGNORE

TREE = Hierarchy(["a", "b", "c"], [["x"], ["x"], ["x"]], [[None], [0], [0]])


def overconfident(num_images, rng):
    """Probabilities along a path and whether it is right there; the true chance is the square of what is claimed."""
    finest = rng.beta(2, 1, num_images)
    middle = finest + (1 - finest) * rng.beta(1, 1.5, num_images)
    chance = np.stack([middle + (1 - middle) * rng.beta(2, 1, num_images), middle, finest], 1)
    right = rng.random((num_images, 1)) < chance
    return np.sqrt(chance), right


def answered_levels(chances, thresholds):
    path = torch.zeros(chances.shape, dtype=torch.long)
    return answer_levels(torch.from_numpy(chances), path, thresholds).numpy()


def table_of(chances, right) -> PredictionTable:
    """Predictions of the only path, with labels that make them right or wrong."""
    table = PredictionTable(TREE)
    labels = np.where(right, 0, UNKNOWN)
    leaf = np.zeros(len(right), dtype=np.int32)
    table.columns = {"best_path_probability": chances, "leaf": leaf, "label": labels}
    return table


@pytest.mark.parametrize("head", ["tree", "independent"])
def test_promise_is_kept_on_unseen_images(head):
    rng = np.random.default_rng(0)
    kept, covered = 0, []
    for _ in range(20):
        chances, right = overconfident(4000, rng)
        unseen, truth = overconfident(40_000, rng)
        if head == "independent":  # every level has its own opinion; it may fall and rise along the path
            chances, unseen = (part * rng.uniform(0.9, 1, part.shape) for part in (chances, unseen))
        calibration = calibrate(table_of(chances, right), "leaf")
        for target in (0.8, 0.9, 0.95):
            answered = answered_levels(unseen, thresholds_for(calibration, target)[1])
            given = answered >= 0
            good = truth[np.arange(len(answered)), answered][given]
            kept += binomtest(good.sum(), len(good), target, alternative="less").pvalue > 0.01
            covered.append(given.mean())
    assert kept >= 58  # of 60
    assert min(covered) > 0.5  # and that is not because nothing is answered


def test_precision_holds_at_each_level(num_images=20_000):
    rng = np.random.default_rng(1)
    chances, right = overconfident(num_images, rng)
    calibration = calibrate(table_of(chances, right), "leaf")
    _, thresholds = thresholds_for(calibration, 0.9)
    unseen, truth = overconfident(200_000, rng)
    answered = answered_levels(unseen, thresholds)
    for level in range(3):
        assert truth[answered == level, level].mean() >= 0.9
        shown = calibration["coverage"][level][calibration["targets"].index(0.9)]
        assert shown == pytest.approx((answered == level).mean(), abs=0.02)


def test_threshold_against_a_plain_search():
    """Written out again with scipy's exact test, one threshold after the other."""
    rng = np.random.default_rng(2)
    chances = rng.random(120)
    right = rng.random(120) < chances**0.5
    order = np.argsort(-chances)
    first = next(n for n in range(1, 120) if 0.7**n <= ERROR / NUM_STARTS)
    passes = {
        n: binomtest(int(right[order[:n]].sum()), n, 0.7, alternative="greater").pvalue <= ERROR / NUM_STARTS
        for n in range(first, 121)
    }
    sizes, reached = list(passes), 0
    for start in range(NUM_STARTS):
        index = len(sizes) * start // NUM_STARTS
        while index < len(sizes) and passes[sizes[index]]:
            reached, index = max(reached, sizes[index]), index + 1
    assert 0 < reached < 120
    assert lowest_threshold(chances, right, 0.7) == pytest.approx(chances[order[reached - 1]], abs=1e-5)
    assert (chances >= lowest_threshold(chances, right, 0.7)).sum() == reached


def test_too_few_images_give_no_threshold():
    assert lowest_threshold(np.full(10, 0.999), np.ones(10, bool), 0.95) is None
    assert lowest_threshold(np.full(500, 0.999), np.ones(500, bool), 0.95) == pytest.approx(0.999, abs=1e-6)
    assert lowest_threshold(np.full(500, 0.999), np.zeros(500, bool), 0.95) is None
    assert lowest_threshold(np.empty(0), np.empty(0, bool), 0.95) is None


def test_equal_probabilities_are_answered_alike():
    chances = np.repeat([0.9, 0.6], 300)
    right = np.arange(600) < 300
    assert lowest_threshold(chances, right, 0.95) == pytest.approx(0.9, abs=1e-5)


def test_unjudged_images_count_for_coverage_alone():
    chances, right = overconfident(4000, np.random.default_rng(3))
    table = table_of(chances, right)
    table.columns["label"][::2, 2] = IGNORE  # labelled to the middle level only
    calibration = calibrate(table, "leaf")
    index = calibration["targets"].index(0.8)
    assert calibration["precision"][2][index] >= 0.8 and calibration["coverage"][2][index] > 0.4
    halved = calibrate(table_of(chances[1::2], right[1::2]), "leaf")
    assert calibration["thresholds"][2] == halved["thresholds"][2]  # those without a label at this level say nothing


def test_without_images_nothing_is_answered():
    empty = calibrate(table_of(np.empty((0, 3)), np.empty((0, 3), bool)), "leaf")
    assert empty["num_images"] == 0 and thresholds_for(empty, 0.9)[1] == [None] * 3


def test_the_only_class_of_a_level_is_always_answered():
    chances = np.full((500, 3), 0.9)
    chances[:, 0] = 1 - 1e-7 * np.random.default_rng(0).random(500)
    right = np.ones((500, 3), bool)
    right[:, 1:] = np.arange(500)[:, None] % 2
    thresholds = calibrate(table_of(chances, right), "leaf")["thresholds"]
    assert set(thresholds[0]) == {0.0} and thresholds[1][-1] is None


def test_survives_json_and_refuses_other_models(tmp_path):
    chances, right = overconfident(500, np.random.default_rng(5))
    calibration = calibrate(table_of(chances, right), "leaf")
    file = tmp_path / "calibration.json"
    file.write_text(json.dumps(calibration, sort_keys=True))
    assert read_calibration(file, TREE) == calibration
    assert thresholds_for(calibration, 0.86)[0] == 0.9  # the next one that is stored
    with pytest.raises(ValueError, match="up to 0.99, not 0.999"):
        thresholds_for(calibration, 0.999)
    other = Hierarchy(["a", "b"], [["x"], ["x"]], [[None], [0]])
    with pytest.raises(ValueError, match="for the levels a, b, c; the model has a, b"):
        read_calibration(file, other)
    for text in ("{}", "[]", "no json"):
        file.write_text(text)
        with pytest.raises(ValueError, match="Cannot read the calibration"):
            read_calibration(file, TREE)
