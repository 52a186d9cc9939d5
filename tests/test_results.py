"""Numbers of an evaluation: names, which of two is better, and the table that is printed."""

from __future__ import annotations

import math

import pytest

from common.metrics.results import cell, check_metric_name, flatten, in_words, is_better, results_table


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
    with pytest.raises(ValueError, match="path.c is not among the results. Did you mean path.a"):
        check_metric_name("path.c", names)
    assert [in_words(name) for name in ("mean_iou", "macro_f1", "top5_accuracy")] == [
        "mean IoU",
        "macro F1",
        "top-5 accuracy",
    ]


def test_table_shows_every_level():
    level = {"accuracy": 0.5, "top5_accuracy": 1.0, "macro_f1": 0.25, "mean_confidence": 0.4, "ece": 0.1}
    path = {"full_path_accuracy": 0.5, "tree_inconsistency": 0.0, "hierarchical_distance": 1.25}
    levels = {"genus": {**level, "num_labelled": 1234}, "species": {**level, "num_labelled": 0}}
    text = results_table({"loss": 1.0, "num_samples": 5, "levels": levels, "path": path, "argmax": path})
    lines = text.splitlines()
    assert lines[1].split() == ["genus", "50.00%", "100.00%", "25.00%", "40.00%", "0.100", "1,234"]
    assert len({len(line) for line in lines[:3]}) == 1 and "distance 1.250" in text
    assert [line.split(":")[0] for line in lines[3:5]] == ["best path", "per-level argmax"]
    assert cell("accuracy", None) == "nan%"  # as it comes back from JSON
