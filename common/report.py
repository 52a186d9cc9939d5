"""What a run leaves behind: JSON, history, tables, predictions and the model, none of them ever half-written."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet
from transformers import BitImageProcessor, ImageProcessingMixin, PreTrainedModel

from .hierarchy import IGNORE, Hierarchy

LOWER_IS_BETTER = {"loss", "ece", "tree_inconsistency", "hierarchical_distance"}


# ---- numbers


def write_json(path: str | Path, content: Any) -> None:
    """Replace a JSON file in one step; NaN becomes null, so that every parser reads it."""
    _replace(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def append_history(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


@contextmanager
def replaced_file(path: str | Path) -> Iterator[TextIO]:
    """A text file to write that takes its name when it is whole; after an error it is not there at all."""
    temporary = Path(f"{path}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: str | Path, text: str) -> None:
    with replaced_file(path) as stream:
        stream.write(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def flatten(results: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Nested results as (dotted name, number)."""
    for key, value in results.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def check_metric_name(name: str, known: Sequence[str]) -> None:
    """ValueError listing what there is if ``--metric_for_best_model`` names nothing of the results."""
    if name not in known:
        raise ValueError(f"--metric_for_best_model {name} is not among the results: {', '.join(known)}.")


def is_better(name: str, value: float, best: float | None) -> bool:
    """Whether ``value`` of the metric ``name`` improves on ``best``; NaN never does."""
    if math.isnan(value):
        return False
    if best is None:
        return True
    return value < best if name.rpartition(".")[2] in LOWER_IS_BETTER else value > best


def results_table(results: Mapping[str, Any]) -> str:
    """The evaluation as text: a row a level, and the measures of the whole path for both decodings."""
    rows = level_rows(results)
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    for label, measures in path_measures(results).items():
        lines.append(f"{label}: {'  '.join(f'{words} {value}' for words, value in measures)}")
    return "\n".join([*lines, f"loss {results['loss']:.4f}  images {results['num_samples']}"])


def level_rows(results: Mapping[str, Any]) -> list[list[str]]:
    """A header, then a row a level."""
    levels = results["levels"]
    columns = [name for name, value in next(iter(levels.values())).items() if not isinstance(value, Mapping)]
    return [
        ["level", *columns],
        *([level, *(cell(name, row[name]) for name in columns)] for level, row in levels.items()),
    ]


def path_measures(results: Mapping[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Per decoding, the measures of the whole path as (words, value)."""
    return {
        label: [(words, cell(key, results[name][key])) for key, words in MEASURES.items() if key in results[name]]
        for name, label in (("path", "best path"), ("argmax", "level by level"))
    }


MEASURES = {
    "full_path_accuracy": "full path",
    "tree_inconsistency": "not in the tree",
    "hierarchical_distance": "hierarchical distance",
}


def cell(name: str, value: float) -> str:
    """nan may have become None on the way through a file."""
    value = math.nan if value is None else value
    if name.startswith("num_"):
        return f"{value:,}"
    return f"{value:.3f}" if name in {"ece", "hierarchical_distance"} else f"{100 * value:.2f}%"


# ---- predictions


def write_predictions(path: str | Path, hierarchy: Hierarchy, columns: Mapping[str, np.ndarray]) -> None:
    """One Parquet row per evaluated image, in the order of the rows.

    Columns: ``row``; per level L ``L_label``, ``L_best_path``, ``L_best_path_probability``, ``L_argmax``,
    ``L_argmax_probability`` (class names, null where there is none); ``top5_leaves``, ``top5_probabilities``.

    Args:
        path: of the file.
        hierarchy: names the classes.
        columns: ``row`` (n,), ``label``, ``best_path``, ``argmax`` (n, levels) class numbers;
            ``best_path_probability``, ``argmax_probability`` (n, levels); ``top_leaves``, ``top_probabilities``
            (n, k).
    """
    order = np.argsort(columns["row"], kind="stable")
    columns = {name: values[order] for name, values in columns.items()}
    table: dict[str, pa.Array] = {"row": pa.array(columns["row"])}
    for level, name in enumerate(hierarchy.levels):
        names = hierarchy.display_names(level)
        for column in ("label", "best_path", "argmax"):
            table[f"{name}_{column}"] = _names(columns[column][:, level], names)
            if column != "label":
                table[f"{name}_{column}_probability"] = pa.array(columns[f"{column}_probability"][:, level])
    leaves = np.array(hierarchy.leaf_names(), dtype=object)
    table["top5_leaves"] = pa.array(leaves[columns["top_leaves"]].tolist(), type=pa.list_(pa.string()))
    table["top5_probabilities"] = pa.array(columns["top_probabilities"].tolist(), type=pa.list_(pa.float32()))
    pa.parquet.write_table(pa.table(table), f"{path}.tmp")
    os.replace(f"{path}.tmp", path)


def _names(labels: np.ndarray, names: Sequence[str]) -> pa.Array:
    mask = labels == IGNORE
    return pa.array(np.array(names, dtype=object)[np.where(mask, 0, labels)], type=pa.string(), mask=mask)


# ---- the model


def save_model(model: PreTrainedModel, processor: ImageProcessingMixin, output_dir: str | Path) -> None:
    """Write model.safetensors, config.json, preprocessor_config.json and the code they need, each in one step.

    Args:
        model: on any device; its config holds the label tree.
        processor: prepares images as evaluation does.
        output_dir: the folder.
    """
    folder = Path(output_dir)
    staging = folder / ".model.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    model.save_pretrained(staging)
    processor.save_pretrained(staging)
    mode = (staging / "config.json").stat().st_mode  # safetensors lets the owner alone read what it writes
    for file in sorted(staging.iterdir()):
        file.chmod(mode)
        os.replace(file, folder / file.name)
    staging.rmdir()


def image_processor(spec: Mapping[str, Any], resize_mode: str, crop_pct: float) -> BitImageProcessor:
    """The Transformers image processor that prepares images as evaluation does."""
    size, resized = spec["image_size"], math.floor(spec["image_size"] / crop_pct)
    resample = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}.get(spec["interpolation"], 3)
    return BitImageProcessor(
        size={"shortest_edge": resized} if resize_mode == "center" else {"height": resized, "width": resized},
        crop_size={"height": size, "width": size},
        image_mean=spec["mean"],
        image_std=spec["std"],
        resample=resample,
    )
