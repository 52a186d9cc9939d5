"""predictions.parquet: what was predicted for every evaluated image."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..metrics.backoff import path_probabilities
from ..model.hierarchy import IGNORE, Hierarchy


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


def prediction_columns(
    rows: torch.Tensor,
    labels: torch.Tensor,
    log_probs: list[torch.Tensor],
    path: list[torch.Tensor],
    leaf_scores: torch.Tensor,
) -> dict[str, np.ndarray]:
    """A batch of predictions as host arrays, in the form that :func:`common.report.files.write_predictions` takes."""
    top = leaf_scores.float().softmax(1).topk(min(5, leaf_scores.shape[1]))
    argmax = [level.max(1) for level in log_probs]
    columns = {
        "row": rows,
        "label": labels,
        "best_path": torch.stack(path, 1),
        "best_path_probability": path_probabilities(log_probs, path),
        "argmax": torch.stack([best.indices for best in argmax], 1),
        "argmax_probability": torch.stack([best.values.exp() for best in argmax], 1),
        "top_leaves": top.indices,
        "top_probabilities": top.values,
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


def gather_predictions(accelerator: Accelerator, parts: Sequence[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """All processes' batches of :func:`prediction_columns` in one table."""
    merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
    everyone = gather_object([merged]) if accelerator.num_processes > 1 else [merged]
    everyone = [part for part in everyone if part]
    return {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]} if everyone else {}
