"""Metrics of images on a label tree, counted batch by batch on the device that made the predictions.

Nothing here keeps predictions, waits for the device while counting, or writes to the disk: a metric is a fixed set of
counters, linear in the number of classes, that is summed over processes once and divided at the very end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, compress
from typing import Any

import torch

from ..model.hierarchy import Hierarchy
from .counting import CountingMetric


class TaxonomyMetrics(CountingMetric):
    """Accuracy, F1 and calibration of every level of a label tree, and how well the levels agree, exact and streaming.

    For two decodings of the same probabilities: the best path of the tree and the per-level argmax. A mean over no
    samples is NaN. Per level, over the samples labelled there:

    - num_labelled: how many these are.
    - accuracy: share whose predicted class is the reference. A path without a value at the level is wrong.
    - top5_accuracy: share whose reference is among the 5 (or ``top_k``) classes of the highest log-probability,
      whatever the decoding. Equal ones are chosen as ``torch.topk`` does.
    - macro_f1: mean F1 over the classes that were a reference or a prediction at least once. A prediction without a
      value is a miss of its reference and of no class a false positive.
    - mean_confidence: mean probability of the predicted class, 0 where there is none.
    - ece: expected calibration error (Guo et al., ICML 2017) with the bins (0, 1/n], ..., ((n-1)/n, 1]: the mean of
      |accuracy - mean confidence| of the bins, weighted with their share of the samples.

    Over levels, for each decoding; the first and last over the samples labelled at the last level:

    - full_path_accuracy: share right at every level at which the reference has a value (FPA of Park et al., H-CAST,
      arXiv 2406.11608). The best path must also have no value exactly where the reference has none.
    - tree_inconsistency: of all samples, share whose predicted classes are not a path of the tree (TICE, same paper).
      0 by construction for the best path.
    - hierarchical_distance: mean height in levels of the lowest common ancestor of the true and the predicted leaf
      (Bertinetto et al., CVPR 2020, arXiv 1912.09393): 0 if the leaf is right, num_levels - 1 - (index of the deepest
      level at which both paths have the same class) otherwise, and num_levels if they share none. For the argmax the
      predicted path is that of the last level's class.

    Args:
        hierarchy: the label tree.
        device: where the counters live and where every tensor given must be; it must support float64.
        num_bins: number of bins of the calibration error.
        top_k: how many of the highest-scored classes ``top5_accuracy`` looks at, and what it is called.
    """

    name = "taxonomy_metrics"

    def __init__(
        self, hierarchy: Hierarchy, device: str | torch.device = "cpu", num_bins: int = 15, top_k: int = 5
    ) -> None:
        self.num_bins, self.top_k = num_bins, top_k
        num_levels, num_nodes = hierarchy.num_levels, sum(hierarchy.num_classes)
        # A dimension of 2 is the decoding, best path or argmax. Classes of all levels lie side by side.
        self._shapes = dict.fromkeys(("full_right", "inconsistent", "distance"), (2,))
        self._shapes |= dict.fromkeys(("labelled", "predicted", "right"), (num_nodes,))
        self._shapes |= dict.fromkeys(("binned", "binned_right"), (num_levels, num_bins))
        self._shapes |= {"samples": (1,), "top": (num_levels,)}
        super().__init__(hierarchy, device)
        self._confidence = torch.zeros(self._shapes["binned_right"], dtype=torch.double, device=device)
        self._first_class = torch.tensor([*accumulate(hierarchy.num_classes[:-1], initial=0)], device=device)
        self._num_classes = torch.tensor(hierarchy.num_classes, device=device)
        self._level_index = torch.arange(num_levels, device=device)

    # ---- counting

    def add_batch(self, *, predictions: Mapping[str, Any], references: torch.Tensor) -> None:
        """Count one batch; an empty one is allowed.

        Args:
            predictions: dict with
                log_probs: per level a floating-point tensor (batch, classes of the level) of natural-log
                    probabilities, which need not sum to one.
                path: per level an int64 tensor (batch,), the best path; IGNORE (-100) where it has no value.
            references: int64 tensor (batch, num_levels); IGNORE where a sample is unlabelled or a level has no value.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit the tree and this metric or, where looking at values
                costs no synchronisation (on the CPU), if a class is not of its level.
        """
        log_probs, columns = [level.detach() for level in predictions["log_probs"]], list(predictions["path"])
        self._check(log_probs, columns, references)
        path, argmax = torch.stack(columns, 1), torch.stack([level.argmax(1) for level in log_probs], 1)
        decoded = torch.stack([path, argmax])  # (2, batch, num_levels)
        if references.device.type == "cpu":  # elsewhere looking would wait for the device
            beyond = (torch.stack([path, references]) >= self._num_classes).flatten(0, 1).any(0).tolist()
            if any(beyond):
                levels = list(compress(self.hierarchy.levels, beyond))
                raise ValueError(f"Path or references name a class beyond the last one of the levels {levels}.")
        labelled = references >= 0
        right = labelled & (decoded == references)
        counters = self._unpack(self._counts)
        counters["samples"] += len(references)
        self._count_classes(counters, path, references, right[0])
        for level, column in enumerate(log_probs):
            # Twice as fast on the CPU as counting the classes above the label, where ties take several passes.
            top = column.topk(min(self.top_k, column.shape[1]), sorted=False).indices
            counters["top"][level] += (top == references[:, level, None]).sum()

        # The references' probabilities are not used: reading them is what stops a class out of range on a device whose
        # values are not looked at, where it would be counted as a class of the next level.
        index = torch.stack([path, references]).clamp(min=0)
        chosen = [column.gather(1, index[:, :, level].T)[:, 0] for level, column in enumerate(log_probs)]
        answered = labelled & (path >= 0)
        confidence = torch.where(answered, torch.stack(chosen, 1).double().exp(), 0.0)
        # Clamped as integers, because a NaN confidence must fall into some bin rather than outside the counters.
        bins = ((confidence * self.num_bins).ceil().long() - 1).clamp(0, self.num_bins - 1)
        binned = ((counters["binned"], answered), (counters["binned_right"], right[0]), (self._confidence, confidence))
        for counter, values in binned:
            counter.scatter_add_(1, bins.T, values.T.to(counter.dtype))

        fully_labelled = labelled[:, -1]
        absent = torch.stack([path < 0, torch.ones_like(labelled)])  # the argmax cannot leave a level out
        agrees = torch.where(labelled, right, absent).all(2)
        counters["full_right"] += (agrees & fully_labelled).sum(1)
        counters["inconsistent"] += (~self.hierarchy.is_path(decoded.unbind(2))).sum(1)
        lifted, truth = torch.stack(self.hierarchy.lift(torch.stack([argmax[:, -1], references[:, -1]])), 2)
        shared = (torch.stack([path, lifted]) == truth) & (truth >= 0)
        depth = (shared * (self._level_index + 1)).amax(2)
        counters["distance"] += ((self.hierarchy.num_levels - depth) * fully_labelled).sum(1)

    def _check(self, log_probs: list[torch.Tensor], path: list[torch.Tensor], references: torch.Tensor) -> None:
        tensors, num_samples, num_levels = [references, *log_probs, *path], len(references), self.hierarchy.num_levels
        shapes = [tuple(tensor.shape) for tensor in tensors]
        expected = [(num_samples, size) for size in (num_levels, *self.hierarchy.num_classes)]
        expected += [(num_samples,)] * num_levels
        if shapes != expected:
            raise ValueError(
                f"References, log_probs and path have the shapes {shapes}; the hierarchy asks for {expected} "
                f"(levels {list(self.hierarchy.levels)})."
            )
        if any(labels.dtype != torch.long for labels in (references, *path)):
            raise ValueError("References and path must be int64 tensors.")
        if any(tensor.device != self._counts.device for tensor in tensors):
            raise ValueError(f"Predictions and references must be on {self._counts.device}, where the counters are.")

    def _count_classes(
        self, counters: dict[str, torch.Tensor], path: torch.Tensor, references: torch.Tensor, right: torch.Tensor
    ) -> None:
        labelled = references >= 0
        reference_slot = (references.clamp(min=0) + self._first_class).flatten()
        path_slot = (path.clamp(min=0) + self._first_class).flatten()
        counters["labelled"].scatter_add_(0, reference_slot, labelled.flatten().long())
        counters["predicted"].scatter_add_(0, path_slot, (labelled & (path >= 0)).flatten().long())
        counters["right"].scatter_add_(0, path_slot, right.flatten().long())

    # ---- results

    def compute(
        self, *, predictions: Mapping[str, Any] | None = None, references: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """The metrics of everything counted so far, and of the given batch if there is one; clears nothing.

        Returns:
            ``{"num_samples": int, "levels": {level: {"accuracy", "top5_accuracy", "macro_f1", "mean_confidence",
            "ece", "num_labelled"}}, "path": {"full_path_accuracy", "tree_inconsistency", "hierarchical_distance"},
            "argmax": {as "path"}}`` in Python numbers; "levels" is for the best path. Raises as :meth:`add_batch`.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        counters, confidence = self._unpack(self._counts.cpu()), self._confidence.cpu()
        kinds = [counters[name].split(self.hierarchy.num_classes) for name in ("labelled", "predicted", "right")]
        gap = (counters["binned_right"] - confidence).abs().sum(1)  # the bins' sizes cancel against their weights
        levels = {}
        for level, (name, labelled, predicted, right) in enumerate(zip(self.hierarchy.levels, *kinds, strict=True)):
            num_labelled, occurring = labelled.sum().item(), labelled + predicted > 0
            f1 = 2 * right[occurring].double() / (labelled + predicted)[occurring]
            levels[name] = {
                "accuracy": _ratio(right.sum(), num_labelled),
                f"top{self.top_k}_accuracy": _ratio(counters["top"][level], num_labelled),
                "macro_f1": _ratio(f1.sum(), len(f1)),
                "mean_confidence": _ratio(confidence[level].sum(), num_labelled),
                "ece": _ratio(gap[level], num_labelled),
                "num_labelled": num_labelled,
            }
        num_samples, num_fully_labelled = counters["samples"].item(), kinds[0][-1].sum().item()
        path, argmax = (
            {
                "full_path_accuracy": _ratio(counters["full_right"][decoding], num_fully_labelled),
                "tree_inconsistency": _ratio(counters["inconsistent"][decoding], num_samples),
                "hierarchical_distance": _ratio(counters["distance"][decoding], num_fully_labelled),
            }
            for decoding in (0, 1)
        )
        return {"num_samples": num_samples, "levels": levels, "path": path, "argmax": argmax}

    def reliability(self) -> torch.Tensor:
        """How far the best path's confidence can be trusted: float64 (levels, 3, bins) on the host.

        In each bin of confidence: the labelled images with an answer, the right ones, and the sum of the confidences.
        """
        counters = self._unpack(self._counts)
        columns = [counters["binned"].double(), counters["binned_right"].double(), self._confidence]
        return torch.stack(columns, 1).cpu()


def _ratio(total: torch.Tensor, count: int) -> float:
    return total.item() / count if count else math.nan
