"""A finished run in plain data, for tests of its report and model card."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from common.model.hierarchy import Hierarchy
from common.report.summary import RunSummary

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src="http://evil.example/x.png" onerror="alert(1)">',
    "{{ 7 * 7 }} {% raw %}",
    "$x_1$ & 'quoted'",
    "n" * 300,
    "</style></table></main>",
]
TREE = Hierarchy(["<b>group</b>", "class"], [["A & B", HOSTILE[0]], HOSTILE], [[None, None], [0, 0, 0, 1, 1, 1]])

OPTIONS: dict[str, Any] = {
    "output_dir": "/home/me/out",
    "dataset_name": "org/data",
    "dataset_config_name": None,
    "train_file": None,
    "validation_file": None,
    "validation_split": "validation",
    "metric_for_best_model": "loss",
    "model_name_or_path": "timm/test_vit",
    "no_pretrained": True,
    "backbone_weights": None,
    "head": "tree",
    "watch": [HOSTILE[4], HOSTILE[0]],
    "license": "cc-by-4.0",
    "push_to_hub": False,
    "hub_model_id": None,
}


def run_summary(folder: Path) -> RunSummary:
    """Of a trained classifier of :data:`TREE`, in a folder that is made."""
    folder.mkdir(parents=True, exist_ok=True)
    level = {"accuracy": 0.5, "top5_accuracy": 1.0, "macro_f1": 0.25, "mean_confidence": 0.4, "ece": float("nan")}
    path = {"full_path_accuracy": 0.25, "tree_inconsistency": 0.0, "hierarchical_distance": 1.25}
    levels = {name: {**level, "num_labelled": 666} for name in TREE.levels}
    evaluation = {"loss": 1.0, "num_samples": 666, "levels": levels, "path": path, "argmax": path}
    train = {"seconds": 120.0, "skipped_steps": 5}
    facts = {HOSTILE[5]: HOSTILE[4], "image size": "32 px"}
    results = {"train": train, "eval": evaluation}
    return RunSummary(folder, OPTIONS, TREE, "images", ("accuracy", "macro_f1"), facts, results, HOSTILE)
