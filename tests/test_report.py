"""Files that are whole or absent, numbers that every parser reads."""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow.parquet
import pytest
from conftest import png
from PIL import Image

from common.files import append_history, write_json
from common.images.transforms import EvaluationTransform
from common.metrics.results import check_metric_name, flatten, is_better, results_table
from common.model.hierarchy import IGNORE, Hierarchy
from common.publish.models import image_processor
from common.report.predictions import write_predictions


def test_json_is_strict_and_replaces_in_one_step(tmp_path):
    write_json(tmp_path / "a.json", {"x": float("nan"), "y": [1.5, {"z": math.inf}]})
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": [1.5, {"z": None}]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert json.loads((tmp_path / "a.json").read_text())["x"] is None  # the old file is whole
    append_history(tmp_path / "h.jsonl", {"a": math.nan})
    append_history(tmp_path / "h.jsonl", {"a": 1})
    assert [json.loads(line) for line in (tmp_path / "h.jsonl").read_text().splitlines()] == [{"a": None}, {"a": 1}]


@pytest.mark.parametrize(
    ("name", "value", "best", "expected"),
    [
        ("loss", 1.0, 2.0, True),
        ("loss", 2.0, 1.0, False),
        ("levels.species.accuracy", 0.6, 0.5, True),
        ("levels.species.ece", 0.6, 0.5, False),
        ("path.hierarchical_distance", 0.4, 0.5, True),
        ("path.tree_inconsistency", 0.4, 0.5, True),
        ("levels.species.accuracy", 0.5, 0.5, False),
        ("loss", math.nan, 1.0, False),
        ("loss", 3.0, None, True),
    ],
)
def test_is_better(name, value, best, expected):
    assert is_better(name, value, best) is expected


def test_metric_names():
    names = [name for name, _ in flatten({"path": {"a": 1}, "b": 2})]
    assert names == ["path.a", "b"]
    with pytest.raises(ValueError, match="path.c is not among the results: path.a, b"):
        check_metric_name("path.c", names)


def test_table_shows_every_level():
    level = {"accuracy": 0.5, "top5_accuracy": 1.0, "macro_f1": 0.25, "mean_confidence": 0.4, "ece": 0.1}
    path = {"full_path_accuracy": 0.5, "tree_inconsistency": 0.0, "hierarchical_distance": 1.25}
    levels = {"genus": {**level, "num_labelled": 1234}, "species": {**level, "num_labelled": 0}}
    text = results_table({"loss": 1.0, "num_samples": 5, "levels": levels, "path": path, "argmax": path})
    lines = text.splitlines()
    assert lines[1].split() == ["genus", "50.00%", "100.00%", "25.00%", "40.00%", "0.100", "1,234"]
    assert len({len(line) for line in lines[:3]}) == 1 and "distance 1.250" in text


def test_predictions_name_classes_and_are_sorted_by_row(tmp_path):
    tree = Hierarchy(["g", "s"], [["A", "B"], ["x", "x"]], [[None, None], [0, 1]])
    columns = {
        "row": np.array([7, 2]),
        "label": np.array([[0, IGNORE], [1, 1]]),
        "best_path": np.array([[0, 0], [1, 1]]),
        "argmax": np.array([[1, 0], [1, 1]]),
        "best_path_probability": np.array([[0.5, 0.25], [1, 1]]),
        "argmax_probability": np.array([[0.6, 0.25], [1, 1]]),
        "top_leaves": np.array([[0, 1], [1, 0]]),
        "top_probabilities": np.array([[0.25, 0.1], [1, 0]], dtype=np.float32),
    }
    write_predictions(tmp_path / "p.parquet", tree, columns)
    table = pyarrow.parquet.read_table(tmp_path / "p.parquet").to_pydict()
    assert table["row"] == [2, 7]
    assert table["s_label"] == ["x (B)", None] and table["g_argmax"] == ["B", "B"] and table["g_label"] == ["B", "A"]
    assert table["top5_leaves"] == [["x (B)", "x (A)"], ["x (A)", "x (B)"]]
    assert table["g_best_path_probability"] == [1, 0.5]


@pytest.mark.parametrize("mode", ["center", "squash"])
@pytest.mark.parametrize("crop_pct", [1.0, 0.875])
def test_saved_processor_prepares_images_as_evaluation_does(mode, crop_pct):
    spec = {"image_size": 32, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25], "interpolation": "bilinear"}
    pixels = np.random.default_rng(0).integers(0, 255, (6, 8, 3)).astype(np.uint8)
    image = Image.fromarray(pixels).resize((90, 70), Image.Resampling.BICUBIC)
    ours = EvaluationTransform(32, resize_mode=mode, crop_pct=crop_pct, interpolation="bilinear")
    expected = (ours(png(image)).float() / 255 - np.array(spec["mean"])[:, None, None]) / np.array(spec["std"])[
        :, None, None
    ]
    theirs = image_processor(spec, mode, crop_pct)(image, return_tensors="pt")["pixel_values"][0]
    assert theirs.shape == expected.shape
    assert (theirs - expected).abs().mean() < 0.02  # of values with a deviation of about 1
