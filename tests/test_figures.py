"""Figures that are complete PNG files, readable with few classes and with thousands, and cope with what is absent."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.metrics.report_data import ReportData
from common.model.hierarchy import Hierarchy
from common.report.confusions import ConfusionPairs
from common.report.figures import draw_class_bars, draw_confusion, draw_history, draw_reliability
from common.report.image_examples import Picture, draw_pictures


def size_of(path: Path) -> tuple[int, int]:
    """Of a figure that is complete, and alone in its folder."""
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    with Image.open(path) as image:
        image.load()
        assert image.format == "PNG"
        assert len(np.unique(np.asarray(image))) > 3
        return image.size


def tree_of(num_leaves: int) -> Hierarchy:
    groups = max(2, num_leaves // 100)
    names = [[f"group $ {index}" for index in range(groups)], [f"leaf {index}" for index in range(num_leaves)]]
    return Hierarchy(["group", "leaf"], names, [[None] * groups, [index % groups for index in range(num_leaves)]])


@pytest.mark.parametrize(
    ("num_leaves", "smallest"), [(1, 150), (2, 250), (16, 700), (60, 900), (61, 500), (2_786, 500)]
)
def test_confusion_of_few_and_many_classes(num_leaves, smallest, tmp_path):
    rng, tree, path = np.random.default_rng(0), tree_of(num_leaves), tmp_path / "confusion.png"
    truth = rng.integers(0, max(1, num_leaves - 1), 20_000)  # the last class is absent
    predicted = np.where(rng.random(20_000) < 0.7, truth, rng.integers(0, num_leaves, 20_000))
    pairs = ConfusionPairs(tree, ReportData(truth + tree.num_classes[0], predicted, np.ones(20_000, dtype=np.int64)))
    draw_confusion(path, pairs, 1)
    width, height = size_of(path)
    assert smallest < width < 2000 and smallest < height < 2000
    assert path.stat().st_size < 600_000


def test_confusion_has_a_column_for_no_value_if_there_is_any(tmp_path):
    tree = Hierarchy(["g", "s"], [["A", "clean"], ["x", "y"]], [[None, None], [0, 0]])  # leaves x, y, clean
    matrix, path = np.array([[3, 1, 0], [0, 2, 0], [0, 0, 0]]), tmp_path / "confusion.png"
    draw_confusion(path, ConfusionPairs(tree, ReportData.of_leaf_matrix(tree, matrix)), 1)
    narrow = size_of(path)
    matrix[1, 2] = 1  # what is clean has no class at s
    draw_confusion(path, ConfusionPairs(tree, ReportData.of_leaf_matrix(tree, matrix)), 1)
    assert size_of(path)[0] > narrow[0] + 50


@pytest.mark.parametrize("num_levels", [1, 2, 6])
def test_reliability_of_any_number_of_levels(num_levels, tmp_path):
    counted = np.zeros((num_levels, 3, 15))
    counted[:, 0, 7], counted[:, 1, 7], counted[:, 2, 7] = 10, 5, 5  # empty bins are left out
    draw_reliability(tmp_path / "r.png", [f"level {index}" for index in range(num_levels)], counted)
    draw_reliability(tmp_path / "nothing.png", ["level"], np.zeros((1, 3, 15)))
    with Image.open(tmp_path / "r.png") as image:
        assert image.width < 1000


def test_pictures(tmp_path):
    pictures = [Picture(Image.new("RGB", (30, 90), "red"), str(row), "a $ name", "another", 0.25) for row in range(9)]
    draw_pictures(tmp_path / "p.jpg", {"Right": pictures, "Near": [], "Far": pictures[:2]})
    with Image.open(tmp_path / "p.jpg") as image:
        assert image.format == "JPEG" and image.width > 1000
    draw_pictures(tmp_path / "none.jpg", {"Right": []})
    assert not (tmp_path / "none.jpg").exists()


def scores(ious: list[float | None]) -> dict:
    """Of one level; the class without an IoU is absent."""
    rows = [{"iou": iou, "num_pixels": 0 if iou is None or math.isnan(iou) else 1000} for iou in ious]
    return {"mean_iou": 0.5, "per_class": {f"class {index}": row for index, row in enumerate(rows)}}


def test_class_bars(tmp_path):
    path = tmp_path / "bars.png"
    draw_class_bars(path, {"binary": scores([1.0, 0.0]), "fine": scores([0.3, math.nan, None, 0.7])})
    assert 500 < size_of(path)[0] < 1200 and 200 < size_of(path)[1] < 600
    draw_class_bars(path, {"fine": scores([0.5] * 40)})
    assert 900 < size_of(path)[1] < 1500
    draw_class_bars(path, {"fine": {"mean_iou": math.nan, "per_class": scores([None])["per_class"]}})
    assert size_of(path)[1] < 200


def test_history(tmp_path):
    path = tmp_path / "history.png"
    history = [{"global_step": step, "train/loss": 1 / step, "train/learning_rate": 1e-4} for step in range(1, 100)]
    for step in (50, 99, 50):  # resumed from step 50
        measures = {f"eval/levels.{level}.mean_iou": step / 100 for level in ("binary", "fine")}
        history.append(
            {"global_step": step, "eval/loss": None, "eval/levels.fine.per_class.a.mean_iou": 3, **measures}
        )
    draw_history(path, history, ["mean_iou"])
    assert size_of(path) == (1210, 341)
    draw_history(path, [], ["mean_iou"])
    assert size_of(path) == (1210, 341)
