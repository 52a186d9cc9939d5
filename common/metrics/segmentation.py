"""Metrics of dense predictions on a label tree, counted batch by batch on the device that made the predictions.

Everything is read off one confusion matrix of leaves and, for the argmax of each level, off a histogram of the classes
that occur together. Nothing here keeps pixels, waits for the device while counting, or writes to the disk.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import compress
from typing import Any

import numpy as np
import torch

from ..model.hierarchy import Hierarchy
from .counting import CountingMetric
from .thin import NUM_COUNTS, thin_counts, thin_scores

UINT8_IGNORE = 255  # an ignored pixel in uint8 references; in signed ones every negative number is
_DTYPES = (torch.uint8, torch.int16, torch.int32, torch.int64)
_JOINT_LIMIT = 2**22  # counters of a histogram over all levels: 32 MiB
_LANES, _BLOCK = 4, 1024  # see _count


class SegmentationMetrics(CountingMetric):
    """IoU, F1 and pixel accuracy of every level of a label tree, and how well the levels agree, exact and streaming.

    For two decodings: the leaf of the best path, and the per-level argmax. All numbers are of the data set: pixels are
    counted over all images and divided once, never averaged over images or batches. Memory depends on the tree alone:
    it is quadratic in the number of leaves. With TP, FP and FN the pixels of a class that are predicted correctly,
    predicted wrongly, and missed, per level and over the pixels whose reference leaf has a value there:

    - iou: TP / (TP + FP + FN); f1: 2 TP / (2 TP + FP + FN); precision: TP / (TP + FP); recall: TP / (TP + FN).
      0 / 0 is NaN: precision without predictions, recall without references, all four of an absent class.
    - num_pixels: TP + FN.
    - mean_iou, mean_f1: mean over the classes that are a reference or a prediction at least once; NaN over none.
    - pixel_accuracy: share of the pixels whose predicted class is the reference.

    A best path without a value at the level is a miss of the reference and of no class a false positive.
    Over levels, over all labelled pixels (the first two after Park et al., H-CAST, arXiv 2406.11608):

    - full_path_accuracy: share right at every level at which the reference has a value; of the path, in the leaf.
    - tree_inconsistency: share whose predicted classes are not a path of the tree (a level without a value on the path
      of the last level's class cannot contradict it). 0 by construction for the best path.
    - hierarchical_distance, of the path: mean height in levels of the lowest common ancestor of the true and the
      predicted leaf (Bertinetto et al., CVPR 2020, arXiv 1912.09393): 0 if the leaf is right, num_levels - 1 -
      (index of the deepest level at which both have the same class) otherwise, num_levels if they share none.

    With ``tolerance``, of the best path per level, means over classes, counted in pixels of the original image:

    - boundary_iou (Cheng et al., CVPR 2021): IoU of what is within the tolerance of the region's own boundary.
    - boundary_f1: F1 of boundaries, pixels of which are right within the tolerance of the other's.
    - cldice (Shit et al., CVPR 2021): F1 of morphological skeletons, pixels of which are right in the other region.
    - tolerant_iou: IoU where pixels within the tolerance of the other region count as right.
    - object_recall: share of connected regions of the reference, half of which is predicted within the tolerance.

    Args:
        hierarchy: the label tree.
        device: where the counters live and where every tensor given must be.
        tolerance: in pixels.
        keep_counts: whether :meth:`counts_of_calls` is wanted; some 24 bytes per class of all levels and call.
    """

    name = "segmentation_metrics"

    def __init__(
        self,
        hierarchy: Hierarchy,
        device: str | torch.device = "cpu",
        tolerance: int | None = None,
        keep_counts: bool = False,
    ) -> None:
        self.tolerance = tolerance
        rows, num_classes = hierarchy.num_leaves + 1, hierarchy.num_classes  # the first row is for ignored pixels
        # The argmax of all levels is counted together or, in large trees, each level for itself, beside two sums that
        # would follow from counting together. Counters of the argmax are named by the levels they are of.
        self._is_joint = rows * math.prod(num_classes) <= _JOINT_LIMIT
        levels = tuple(range(hierarchy.num_levels))
        self._groups = [levels] if self._is_joint else [(level,) for level in levels]
        self._shapes = dict.fromkeys(("images", "invalid", "right", "consistent"), (1,))
        self._shapes |= {"leaf": (rows, hierarchy.num_leaves)}
        self._shapes |= {"thin": (sum(num_classes), NUM_COUNTS)} if tolerance is not None else {}
        self._shapes |= {group: (rows, *(num_classes[level] for level in group)) for group in self._groups}
        super().__init__(hierarchy, device)
        self._may_look = self._counts.device.type == "cpu"  # elsewhere it would wait for the device
        self._calls: list[torch.Tensor] | None = [] if keep_counts else None
        columns = zip(hierarchy.ancestors.T, num_classes, strict=True)
        below = [column.unsqueeze(1) == torch.arange(size) for column, size in columns]
        self._is_below = torch.cat(below, 1).double().to(device)  # leaf, class of any level
        has_value = [matrix.any(1, keepdim=True).expand_as(matrix) for matrix in below]
        self._has_value = torch.cat(has_value, 1).double().to(device)  # leaf, class of any level: at its level

    # ---- counting

    def add_batch(self, *, predictions: Mapping[str, Any], references: torch.Tensor) -> None:
        """Count the pixels of a batch of images if the references have 3 dimensions, otherwise of one image.

        Args:
            predictions: dict of tensors of any one shape, uint8, int16, int32 or int64, nowhere negative:
                leaf: the leaf of the best path.
                argmax: per level its most probable class. May be left out; the metrics of the argmax are of the pixels
                    for which it was given.
            references: the leaf, of that shape; negative where ignored or, in uint8 (at most 255 leaves), 255.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit the tree and this metric or, where looking at values
                costs no synchronisation (on the CPU), if there is no such class. Elsewhere :meth:`compute` raises it.
        """
        columns = [references, predictions["leaf"], *predictions.get("argmax", ())]
        self._check(columns)
        counters = self._unpack(self._counts)
        rows, leaf, *argmax = self._rows_and_classes(columns, counters["invalid"])
        counters["images"] += len(references) if references.dim() == 3 else 1
        before = None if self._calls is None else counters["leaf"].clone()
        _count(counters["leaf"], [rows, leaf])
        counted = [] if before is None else [self._class_counts((counters["leaf"] - before)[1:].double())]
        if self.tolerance is not None:
            mask = rows.view_as(references).long() - 1
            thin = thin_counts(self.hierarchy, predictions["leaf"], mask, self.tolerance)
            counters["thin"] += thin
            counted.append(thin.double().flatten())
        if before is not None:
            self._calls.append(torch.cat(counted))
        if argmax:
            for group in self._groups:
                _count(counters[group], [rows, *(argmax[level] for level in group)])
        if argmax and not self._is_joint:
            right, consistent = self._agreement(rows.long() - 1, [labels.long() for labels in argmax])
            counters["right"] += (right & (rows > 0)).sum()
            counters["consistent"] += (consistent & (rows > 0)).sum()

    def _check(self, columns: Sequence[torch.Tensor]) -> None:
        tree, device = self.hierarchy, self._counts.device
        shapes = [tuple(column.shape) for column in columns]
        if len(set(shapes)) > 1 or len(columns) not in (2, 2 + tree.num_levels):
            raise ValueError(
                f"References, leaf and argmax have the shapes {shapes}; these must be equal, and there must be an "
                f"argmax of each of the levels {list(tree.levels)}."
            )
        if any(column.dtype not in _DTYPES or column.device != device for column in columns):
            raise ValueError(f"Predictions and references must be on {device}, like the counters, and of {_DTYPES}.")
        if columns[0].dtype == torch.uint8 and tree.num_leaves > UINT8_IGNORE:
            raise ValueError(f"References to {tree.num_leaves} leaves do not fit into uint8, where 255 is ignored.")

    def _rows_and_classes(self, columns: Sequence[torch.Tensor], invalid: torch.Tensor) -> list[torch.Tensor]:
        """References as rows of the histograms, and the classes: flat, in range, of a type no wider than needed."""
        sizes = (self.hierarchy.num_leaves + 1, self.hierarchy.num_leaves, *self.hierarchy.num_classes)
        narrow = torch.int16 if max(sizes) < 2**15 else torch.int32
        references, *classes = (column.flatten() for column in columns)
        if references.dtype != torch.uint8:  # there 255 + 1 is 0; here nothing must become 0 by overflow
            references = references.clamp(-1, sizes[1]).to(narrow)
        columns = [references + 1, *classes]
        if self._may_look:
            # As Python numbers: compared to a tensor, a size beyond the type of the tensor would wrap around.
            extremes = [[bound.item() for bound in column.aminmax()] if len(column) else [0, 0] for column in columns]
            wrong = [low < 0 or high >= size for (low, high), size in zip(extremes, sizes, strict=False)]
            if any(wrong):
                names = ["references", "leaf", *(f"argmax of {level!r}" for level in self.hierarchy.levels)]
                raise ValueError(f"Classes below 0 or beyond the last one in the {list(compress(names, wrong))}.")
        else:  # these pixels are ignored and counted, for compute() to raise
            columns = [column.long() for column in columns]
            inside = [(column >= 0) & (column < size) for column, size in zip(columns, sizes, strict=False)]
            valid = torch.stack(inside).all(0)
            invalid += (~valid).sum()
            columns = [column.where(valid, 0) for column in columns]
        return [column if column.dtype == torch.uint8 else column.to(narrow) for column in columns]

    def _agreement(self, leaves: torch.Tensor, argmax: Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Whether int64 classes (pixels,) of each level are right where the leaf has a value, and whether a path."""
        truth = zip(self.hierarchy.lift(leaves), argmax, strict=True)
        right = torch.stack([(label < 0) | (label == labels) for label, labels in truth]).all(0)
        return right, self.hierarchy.is_path(argmax)

    # ---- results

    def compute(self, *, predictions: Mapping[str, Any] | None = None, references: Any = None) -> dict[str, Any]:
        """The metrics of everything counted so far, and of the given batch if there is one; clears nothing.

        Returns:
            ``{"num_samples": images, "num_pixels": labelled pixels, "levels": {level: {"mean_iou", "pixel_accuracy",
            "mean_f1", "per_class": {display name: {"iou", "precision", "recall", "f1", "num_pixels"}}}}, "path":
            {"full_path_accuracy", "tree_inconsistency", "hierarchical_distance"}, "argmax": {"full_path_accuracy",
            "tree_inconsistency"}}`` in Python numbers; "levels" is for the best path, :meth:`argmax_levels` for the
            argmax. Raises as :meth:`add_batch`.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        counters = self._on_host()
        leaf = counters["leaf"][1:]
        num_pixels = leaf.sum()
        levels = self._level_scores([below.T[:-1] @ leaf.double() @ below for below in self._below()])
        thin = counters["thin"].split(self.hierarchy.num_classes) if self.tolerance is not None else ()
        for level, counts in zip(levels.values(), thin, strict=False):
            for name, values in thin_scores(counts).items():
                level[f"mean_{name}"] = values.nanmean().item()
                for row, value in zip(level["per_class"].values(), values.tolist(), strict=True):
                    row[name] = value
        return {
            "num_samples": counters["images"].item(),
            "num_pixels": num_pixels.item(),
            "levels": levels,
            "path": {
                "full_path_accuracy": _share(leaf.trace(), num_pixels),
                "tree_inconsistency": _share(0 * num_pixels, num_pixels),
                "hierarchical_distance": _share((leaf * self._leaf_distance()).sum(), num_pixels),
            },
            "argmax": self._argmax_scores(counters),
        }

    def argmax_levels(self) -> dict[str, dict[str, Any]]:
        """As "levels" of :meth:`compute`, for the per-level argmax."""
        counters, below, matrices = self._on_host(), self._below(), []
        for group in self._groups:
            for dim, level in enumerate(group, 1):
                of_leaves = counters[group][1:].movedim(dim, 1).unsqueeze(-1).flatten(2).sum(2)
                matrices.append(torch.nn.functional.pad(below[level].T[:-1] @ of_leaves.double(), (0, 1)))
        return self._level_scores(matrices)

    def leaf_confusion(self) -> np.ndarray:
        """Pixels of the best path by leaf, int64 (references, predictions)."""
        return self._on_host()["leaf"][1:].numpy()

    def counts_of_calls(self) -> np.ndarray:
        """For bootstrap intervals, what each ``add_batch`` of this process counted, in their order.

        float64 (calls, 3 (classes of all levels + 1), and with ``tolerance`` NUM_COUNTS per class), as
        :func:`common.metrics.intervals.bootstrap_intervals` says.
        """
        num_classes = self._is_below.shape[1]
        width = 3 * (num_classes + 1) + (0 if self.tolerance is None else NUM_COUNTS * num_classes)
        return torch.stack(self._calls).cpu().numpy() if self._calls else np.zeros((0, width))

    def _class_counts(self, leaf: torch.Tensor) -> torch.Tensor:
        """From a confusion matrix of leaves: pixels labelled, predicted and right per class, and of the whole path."""
        classes, total = leaf @ self._is_below, leaf.sum().view(1)
        labelled, predicted = leaf.sum(1) @ self._is_below, (self._has_value * classes).sum(0)
        right = (self._is_below * classes).sum(0)
        return torch.cat([labelled, total, predicted, total, right, leaf.trace().view(1)])

    def _on_host(self) -> dict[Any, torch.Tensor]:
        counters = self._unpack(self._counts.cpu())
        if invalid := counters["invalid"].item():
            raise ValueError(f"{invalid} of the pixels counted had classes below 0 or beyond the last one.")
        return counters

    def _below(self) -> list[torch.Tensor]:
        """Per level float64 (leaves, classes + 1): 1 where a leaf is of a class; the last column is for none."""
        parts = self._is_below.cpu().split(self.hierarchy.num_classes, 1)
        return [torch.cat([part, 1 - part.sum(1, keepdim=True)], 1) for part in parts]

    def _level_scores(self, matrices: Sequence[torch.Tensor]) -> dict[str, dict[str, Any]]:
        """Scores from float64 confusion matrices (classes, classes + 1) of every level; the last column is none."""
        scores = {}
        for level, (name, matrix) in enumerate(zip(self.hierarchy.levels, matrices, strict=True)):
            right, labelled, predicted = matrix.diagonal(), matrix.sum(1), matrix[:, :-1].sum(0)
            columns = {
                "iou": right / (labelled + predicted - right),
                "precision": right / predicted,
                "recall": right / labelled,
                "f1": 2 * right / (labelled + predicted),
                "num_pixels": labelled.long(),
            }
            rows = zip(*(column.tolist() for column in columns.values()), strict=True)
            per_class = [dict(zip(columns, row, strict=True)) for row in rows]
            scores[name] = {
                "mean_iou": columns["iou"].nanmean().item(),
                "pixel_accuracy": _share(right.sum(), labelled.sum()),
                "mean_f1": columns["f1"].nanmean().item(),
                "per_class": dict(zip(self.hierarchy.display_names(level), per_class, strict=True)),
            }
        return scores

    def _argmax_scores(self, counters: dict[Any, torch.Tensor]) -> dict[str, float]:
        right, consistent, histogram = counters["right"], counters["consistent"], counters[self._groups[0]][1:]
        if self._is_joint:
            leaves, *argmax = histogram.nonzero(as_tuple=True)
            pixels = histogram[leaves, *argmax]
            right, consistent = ((pixels * agrees).sum() for agrees in self._agreement(leaves, argmax))
        total = histogram.sum()
        return {"full_path_accuracy": _share(right, total), "tree_inconsistency": _share(total - consistent, total)}

    def _leaf_distance(self) -> torch.Tensor:
        ancestors, num_levels = self.hierarchy.ancestors, self.hierarchy.num_levels
        shared = (ancestors == ancestors.unsqueeze(1)) & (ancestors >= 0)
        depth = (shared * torch.arange(1, num_levels + 1)).amax(2)
        return (num_levels - depth).fill_diagonal_(0)  # which it is not yet for leaves of upper levels


def _count(counts: torch.Tensor, columns: Sequence[torch.Tensor]) -> None:
    """Add the pixels to a histogram with one dimension per column of values (pixels,), which must be in range."""
    size = counts.numel()
    # On the CPU to increment one counter twice in a row waits for the first to be stored, and most pixels are as the
    # one before. So these go to different lanes, each with its own counters, if 16 bits can index them all.
    lanes = _LANES if counts.device.type == "cpu" and size * _LANES <= 2**15 else 1
    dtype = torch.int16 if lanes > 1 else torch.int32 if size <= 2**31 else torch.long
    index = columns[-1].to(dtype, copy=True)
    for column, stride in zip(columns[:-1], counts.stride()[:-1], strict=True):
        index.add_(column.to(dtype), alpha=stride)
    if lanes > 1:
        full = len(index) - len(index) % _BLOCK  # without the last, incomplete block
        index[:full].view(-1, _BLOCK).add_((torch.arange(_BLOCK) % lanes * size).to(dtype))
        counts += torch.bincount(index, minlength=lanes * size).view(lanes, *counts.shape).sum(0)
    else:  # bincount would wait for other devices to find the largest index
        counts.view(-1).index_add_(0, index, counts.new_ones(1).expand(len(index)))


def _share(part: torch.Tensor, total: torch.Tensor) -> float:
    return (part.double() / total).item()  # 0 / 0 is NaN
