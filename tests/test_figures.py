"""Figures of classifiers: readable with few classes and with thousands."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from common.metrics.report_data import Evidence
from common.model.hierarchy import Hierarchy
from common.report.figures import Picture, draw_level_confusion, draw_pictures, draw_reliability
from common.report.tables import Pairs


def tree_of(num_leaves: int) -> Hierarchy:
    groups = max(2, num_leaves // 100)
    names = [[f"group $ {index}" for index in range(groups)], [f"leaf {index}" for index in range(num_leaves)]]
    return Hierarchy(["group", "leaf"], names, [[None] * groups, [index % groups for index in range(num_leaves)]])


@pytest.mark.parametrize("num_leaves", [2, 7, 60, 61, 2_786])
def test_confusion_of_few_and_many_classes(num_leaves, tmp_path):
    rng, tree = np.random.default_rng(0), tree_of(num_leaves)
    truth = rng.integers(0, num_leaves, 20_000)
    predicted = np.where(rng.random(20_000) < 0.7, truth, rng.integers(0, num_leaves, 20_000))
    pairs = Pairs(tree, Evidence(truth + tree.num_classes[0], predicted, np.ones(20_000, dtype=np.int64)))
    draw_level_confusion(tmp_path / "confusion.png", pairs, 1)
    with Image.open(tmp_path / "confusion.png") as image:
        assert 250 < image.width < 2000 and 200 < image.height < 2000
    assert (tmp_path / "confusion.png").stat().st_size < 600_000
    assert [file.name for file in tmp_path.iterdir()] == ["confusion.png"]


@pytest.mark.parametrize("num_levels", [1, 2, 6])
def test_reliability_of_any_number_of_levels(num_levels, tmp_path):
    counted = np.zeros((num_levels, 3, 15))
    counted[:, 0, 7], counted[:, 1, 7], counted[:, 2, 7] = 10, 5, 5  # empty bins are left out
    draw_reliability(tmp_path / "r.png", [f"level {index}" for index in range(num_levels)], counted)
    draw_reliability(tmp_path / "nothing.png", ["level"], np.zeros((1, 3, 15)))
    with Image.open(tmp_path / "r.png") as image:
        assert image.width < 1000


def test_pictures(tmp_path):
    pictures = [Picture(Image.new("RGB", (30, 90), "red"), row, "a $ name", "another", 0.25) for row in range(9)]
    draw_pictures(tmp_path / "p.jpg", {"Right": pictures, "Near": [], "Far": pictures[:2]})
    with Image.open(tmp_path / "p.jpg") as image:
        assert image.format == "JPEG" and image.width > 1000
    draw_pictures(tmp_path / "none.jpg", {"Right": []})
    assert not (tmp_path / "none.jpg").exists()
