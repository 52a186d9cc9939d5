"""What was predicted for every evaluated image, from which calibration, report and predictions.parquet are made."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..model.answers import known_scores, path_probabilities
from ..model.hierarchy import Hierarchy
from ..system.files import atomic_write

TOP_LEAVES = 5


class PredictionTable:
    """Labels and predictions of images, collected on the device without waiting for it and without a collective.

    An image takes 56 bytes and 8 more per level: 10 MB for 100,000 images and six levels.

    Args:
        hierarchy: the label tree.
        device: where labels and predictions are.
        complete: whether to keep everything that :meth:`write` needs; some 60 bytes and 12 per level more.

    Attributes:
        columns: since :meth:`gather`, in the order of the rows: ``row`` int64 (n,), ``label`` int32 (n, levels),
            ``leaf`` int32 (n,) of the best path, ``level`` int32 (n,) of the answer, ``leaf_probability`` float64
            (n,), ``best_path_probability`` float32 (n, levels), 0 where the path has no class, ``known`` float64
            (n, 4) of :func:`common.model.answers.known_scores`. If complete: ``argmax``, ``argmax_probability`` (n,
            levels), ``top_leaves``, ``top_probabilities`` (n, 5).
    """

    def __init__(self, hierarchy: Hierarchy, device: str | torch.device = "cpu", complete: bool = False) -> None:
        self.hierarchy, self.complete = hierarchy, complete
        self.columns: dict[str, np.ndarray] = {}
        self._batches: list[dict[str, torch.Tensor]] = []
        # An empty batch, so that a process without images has columns, too.
        shapes = [(0, hierarchy.num_leaves), *((0, size) for size in hierarchy.num_classes)]
        leaf_logits, *log_probs = (torch.empty(shape, device=device) for shape in shapes)
        labels = torch.empty((0, hierarchy.num_levels), dtype=torch.long, device=device)
        self.add(torch.empty(0, dtype=torch.long), labels, log_probs, leaf_logits, labels.sum(1), labels.sum(1))

    def add(
        self,
        rows: torch.Tensor,
        labels: torch.Tensor,
        log_probs: Sequence[torch.Tensor],
        leaf_logits: torch.Tensor,
        leaf: torch.Tensor,
        level: torch.Tensor,
    ) -> None:
        """Keep a batch.

        Args:
            rows: int64 (batch,) row numbers, on the host.
            labels: (batch, levels), IGNORE where there is no label.
            log_probs: per level (batch, classes).
            leaf_logits: (batch, leaves), whose softmax gives the leaves' probabilities.
            leaf, level: (batch,) the leaf of the best path, and how far down that is the answer.
        """
        path = path_probabilities(log_probs, self.hierarchy.lift(leaf))
        batch = {
            "row": rows,
            "label": labels.int(),
            "leaf": leaf.int(),
            "level": level.int(),
            "leaf_probability": leaf_logits.double().softmax(1).gather(1, leaf[:, None])[:, 0],
            "best_path_probability": path,
            "known": known_scores(leaf_logits, path),
        }
        if self.complete:
            top = leaf_logits.float().softmax(1).topk(min(TOP_LEAVES, self.hierarchy.num_leaves))
            argmax = [level.max(1) for level in log_probs]
            batch |= {
                "argmax": torch.stack([best.indices for best in argmax], 1),
                "argmax_probability": torch.stack([best.values.exp() for best in argmax], 1),
                "top_leaves": top.indices,
                "top_probabilities": top.values,
            }
        self._batches.append(batch)

    def gather(self, accelerator: Accelerator) -> None:
        """Fill :attr:`columns` with the images of all processes; a collective, after the last batch."""
        names = self._batches[0]
        mine = {name: torch.cat([batch[name] for batch in self._batches]).cpu().numpy() for name in names}
        self.columns, self._batches = gather_rows(accelerator, mine), []

    @property
    def best_path(self) -> np.ndarray:
        """Class numbers int64 (n, levels), IGNORE where the path has none."""
        return self.hierarchy.ancestors.numpy()[self.columns["leaf"]]

    def write(self, path: str | Path, names: Sequence[str]) -> None:
        """One Parquet row per image; ``names`` are those of all rows' files. Without any image there is no file.

        Columns: ``row``, ``image``; per level L ``L_label``, ``L_best_path``, ``L_best_path_probability``,
        ``L_argmax``, ``L_argmax_probability`` (class names, null where there is none); ``top5_leaves``,
        ``top5_probabilities``.
        """
        columns = {**self.columns, "best_path": self.best_path}
        if not len(columns["row"]):
            return
        table: dict[str, pa.Array] = {"row": pa.array(columns["row"])}
        table["image"] = pa.array([names[row] or None for row in columns["row"].tolist()], pa.string())
        for level, name in enumerate(self.hierarchy.levels):
            names = np.array(self.hierarchy.display_names(level), dtype=object)
            for column in ("label", "best_path", "argmax"):
                classes = columns[column][:, level]
                missing = classes < 0
                table[f"{name}_{column}"] = pa.array(names[np.where(missing, 0, classes)], pa.string(), mask=missing)
                if column != "label":
                    table[f"{name}_{column}_probability"] = pa.array(columns[f"{column}_probability"][:, level])
        leaves = np.array(self.hierarchy.leaf_names(), dtype=object)[columns["top_leaves"]]
        table["top5_leaves"] = pa.array(leaves.tolist(), pa.list_(pa.string()))
        table["top5_probabilities"] = pa.array(columns["top_probabilities"].tolist(), pa.list_(pa.float32()))
        with atomic_write(path, "wb") as file:
            pa.parquet.write_table(pa.table(table), file)


def gather_rows(accelerator: Accelerator, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Columns (n, ...) of all processes' images in the order of the column ``row``; a collective."""
    parts = gather_object([columns]) if accelerator.num_processes > 1 else [columns]
    columns = {name: np.concatenate([part[name] for part in parts]) for name in columns}
    order = np.argsort(columns["row"], kind="stable")
    return {name: values[order] for name, values in columns.items()}
