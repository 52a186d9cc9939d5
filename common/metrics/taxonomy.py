"""Metrics of predictions on a label tree, counted batch by batch on the device that made the predictions.

Nothing here keeps predictions, waits for the device while counting, or writes to the disk: a metric is a fixed set of
counters, linear in the number of classes, that is summed over processes once and divided at the very end.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import accumulate, compress
from typing import Any

import datasets
import evaluate
import torch

from ..model.hierarchy import Hierarchy
from .counting import CountingMetric

_PATH, _ARGMAX = 0, 1  # the two decodings, in the order in which every counter holds them

_DESCRIPTION = """Accuracy, F1 and calibration of every level of a label tree, and how well the levels agree with each
other, for two decodings of the same probabilities: the best path of the tree and the per-level argmax.

Per level, over the samples labelled there:
    num_labelled: how many these are.
    accuracy: share whose predicted class is the reference. A path without a value at the level is wrong.
    top5_accuracy: share whose reference is among the 5 (or ``top_k``) classes with the highest log-probability (all
        classes if there are fewer), whatever the decoding. Equal ones are chosen as ``torch.topk`` does.
    macro_f1: mean F1 over the classes that were a reference or a prediction at least once. A prediction without a
        value is a miss of its reference and of no class a false positive.
    mean_confidence: mean probability of the predicted class, 0 where there is none.
    ece: expected calibration error (Guo et al., ICML 2017): the bins are (0, 1/n], ..., ((n-1)/n, 1] for n bins, and
        the error is the mean of |accuracy - mean confidence| of the bins, weighted with their share of the samples.

Over levels, for each decoding:
    full_path_accuracy: over the samples labelled at the last level, share right at every level at which the reference
        has a value (FPA of Park et al., H-CAST, arXiv 2406.11608). The best path must also have no value exactly where
        the reference has none.
    tree_inconsistency: over all samples, share whose predicted classes are not a path of the tree (TICE, same paper).
        0 by construction for the best path.
    hierarchical_distance: over the samples labelled at the last level, mean height in levels of the lowest common
        ancestor of the true and the predicted leaf (Bertinetto et al., CVPR 2020, arXiv 1912.09393): 0 if the leaf is
        right, num_levels - 1 - (index of the deepest level at which both paths have the same class) otherwise, and
        num_levels if they share none. For the argmax the predicted path is that of the last level's class.

A mean over no samples is NaN.
"""

_INPUTS = """
Args:
    predictions: dict with
        log_probs: per level a floating-point tensor (batch, classes of the level) of natural-log probabilities, which
            need not sum to one.
        path: per level an int64 tensor (batch,), the best path; IGNORE (-100) where it has no value.
    references: int64 tensor (batch, num_levels); IGNORE where a sample is unlabelled or a level has no value.
"""

_CITATION = """@misc{hcast, author={Park, S. and Zhang, Y. and Yu, S. X. and Beery, S. and Huang, J.}, year={2024},
  title={Visually Consistent Hierarchical Image Classification}, eprint={2406.11608}}
@inproceedings{mistakes, author={Bertinetto, L. and Mueller, R. and Tertikas, K. and Samangooei, S. and Lord, N. A.},
  title={Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks}, booktitle={CVPR}, year={2020}}
@inproceedings{calibration, author={Guo, C. and Pleiss, G. and Sun, Y. and Weinberger, K. Q.}, year={2017},
  title={On Calibration of Modern Neural Networks}, booktitle={ICML}}
"""


class TaxonomyMetrics(CountingMetric):
    """Streaming, exact metrics of a classifier whose labels form a tree.

    ``metric.description`` defines every number; see :class:`common.metrics.counting.CountingMetric`.

    Args:
        hierarchy: the label tree.
        device: where the counters live and where every tensor given must be; it must support float64.
        num_bins: number of bins of the calibration error.
        top_k: how many of the highest-scored classes ``top5_accuracy`` looks at, and what it is called.

    Raises:
        ValueError: if ``num_bins`` is below 1.
    """

    def __init__(
        self, hierarchy: Hierarchy, device: str | torch.device = "cpu", num_bins: int = 15, top_k: int = 5
    ) -> None:
        super().__init__()
        if num_bins < 1:
            raise ValueError(f"The calibration error needs at least one bin, got num_bins={num_bins}.")
        self.hierarchy = hierarchy
        self.num_bins, self.top_k = num_bins, top_k
        num_levels, num_nodes = hierarchy.num_levels, sum(hierarchy.num_classes)
        # The first dimension of 2 is the decoding. Classes of all levels lie side by side, level after level.
        self._shapes = {
            "samples": (1,),
            "full_right": (2,),
            "inconsistent": (2,),
            "distance": (2,),
            "top": (num_levels,),
            "binned": (2, num_levels * num_bins),
            "binned_right": (2, num_levels * num_bins),
            "labelled": (num_nodes,),
            "predicted": (2, num_nodes),
            "right": (2, num_nodes),
        }
        self._counts = self._zeros(device)
        self._confidence = torch.zeros(self._shapes["binned_right"], dtype=torch.double, device=device)
        first = list(accumulate(hierarchy.num_classes[:-1], initial=0))
        self._first_class = torch.tensor(first, device=device)
        self._num_classes = torch.tensor(hierarchy.num_classes, device=device)
        self._level_index = torch.arange(num_levels, device=device)

    def _info(self) -> evaluate.MetricInfo:
        number = datasets.Value("int64")
        log_probs = datasets.Sequence(datasets.Sequence(datasets.Value("float32")))
        predictions = {"log_probs": log_probs, "path": datasets.Sequence(number)}
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_INPUTS,
            features=datasets.Features({"predictions": predictions, "references": datasets.Sequence(number)}),
            reference_urls=["https://arxiv.org/abs/2406.11608", "https://arxiv.org/abs/1912.09393"],
        )

    # ---- counting

    def add_batch(self, *, predictions: Mapping[str, Any], references: torch.Tensor) -> None:
        """Count one batch; an empty one is allowed.

        Raises:
            ValueError: if shapes, dtypes or devices do not fit the tree and this metric or, where looking at values
                costs no synchronisation (on the CPU), if a class is not of its level.
        """
        log_probs, path = self._inputs(predictions, references)
        with torch.no_grad():
            argmax = torch.stack([level.argmax(1) for level in log_probs], 1)
            decoded = torch.stack([torch.stack(path, 1), argmax])  # (2, batch, num_levels)
            self._check_classes(decoded, references)
            labelled = references >= 0
            right = labelled & (decoded == references)
            counters = self._unpack(self._counts)
            counters["samples"] += len(references)
            self._count_classes(counters, decoded, references, right)
            self._count_probabilities(counters, log_probs, decoded, references, right)
            self._count_paths(counters, decoded, references, right)

    def _inputs(self, predictions: Mapping[str, Any], references: torch.Tensor) -> tuple[list[torch.Tensor], ...]:
        log_probs, path = list(predictions["log_probs"]), list(predictions["path"])
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
        return log_probs, path

    def _check_classes(self, decoded: torch.Tensor, references: torch.Tensor) -> None:
        if references.device.type == "cpu":  # elsewhere looking would wait for the device
            beyond = torch.cat([decoded, references.unsqueeze(0)]) >= self._num_classes
            levels = list(compress(self.hierarchy.levels, beyond.flatten(0, 1).any(0).tolist()))
            if levels:
                raise ValueError(f"Path or references name a class beyond the last one of the levels {levels}.")

    def _count_classes(
        self, counters: dict[str, torch.Tensor], decoded: torch.Tensor, references: torch.Tensor, right: torch.Tensor
    ) -> None:
        labelled = references >= 0
        reference_slot = (references.clamp(min=0) + self._first_class).flatten()
        decoded_slot = (decoded.clamp(min=0) + self._first_class).flatten(1)
        counters["labelled"].scatter_add_(0, reference_slot, labelled.flatten().long())
        counters["predicted"].scatter_add_(1, decoded_slot, (labelled & (decoded >= 0)).flatten(1).long())
        counters["right"].scatter_add_(1, decoded_slot, right.flatten(1).long())

    def _count_probabilities(
        self,
        counters: dict[str, torch.Tensor],
        log_probs: list[torch.Tensor],
        decoded: torch.Tensor,
        references: torch.Tensor,
        right: torch.Tensor,
    ) -> None:
        found = [_in_top(column, references[:, level], self.top_k) for level, column in enumerate(log_probs)]
        counters["top"] += torch.stack(found).sum(1)
        # The references' probabilities are not used: reading them is what stops a class out of range on a device whose
        # values are not looked at, where it would be counted as a class of the next level.
        index = torch.cat([decoded, references.unsqueeze(0)]).clamp(min=0)
        chosen = [column.gather(1, index[:, :, level].T) for level, column in enumerate(log_probs)]
        confidence = torch.stack(chosen, 2).transpose(0, 1)[:2].double().exp()
        answered = (references >= 0) & (decoded >= 0)
        confidence = torch.where(answered, confidence, 0.0)
        # Clamped as integers, because a NaN confidence must fall into some bin rather than outside the counters.
        bins = ((confidence * self.num_bins).ceil().long() - 1).clamp(0, self.num_bins - 1)
        slot = (bins + self._level_index * self.num_bins).flatten(1)
        counters["binned"].scatter_add_(1, slot, answered.flatten(1).long())
        counters["binned_right"].scatter_add_(1, slot, right.flatten(1).long())
        self._confidence.scatter_add_(1, slot, confidence.flatten(1))

    def _count_paths(
        self, counters: dict[str, torch.Tensor], decoded: torch.Tensor, references: torch.Tensor, right: torch.Tensor
    ) -> None:
        labelled = references >= 0
        fully_labelled = labelled[:, -1]
        absent = torch.stack([decoded[_PATH] < 0, torch.ones_like(labelled)])  # the argmax cannot leave a level out
        agrees = torch.where(labelled, right, absent).all(2)
        counters["full_right"] += (agrees & fully_labelled).sum(1)
        counters["inconsistent"] += (~self.hierarchy.is_path(decoded.unbind(2))).sum(1)
        leaves = torch.stack([decoded[_ARGMAX, :, -1], references[:, -1]])
        lifted, truth = torch.stack(self.hierarchy.lift(leaves), 2)
        shared = (torch.stack([decoded[_PATH], lifted]) == truth) & (truth >= 0)
        depth = (shared * (self._level_index + 1)).amax(2)
        counters["distance"] += ((self.hierarchy.num_levels - depth) * fully_labelled).sum(1)

    # ---- results

    def compute(
        self, *, predictions: Mapping[str, Any] | None = None, references: torch.Tensor | None = None
    ) -> dict[str, Any]:
        """The metrics of everything counted so far, and of the given batch if there is one; clears nothing.

        Returns:
            ``{"num_samples": int, "levels": {level: {"accuracy", "top5_accuracy", "macro_f1", "mean_confidence",
            "ece", "num_labelled"}}, "path": {"full_path_accuracy", "tree_inconsistency", "hierarchical_distance"},
            "argmax": {as "path"}}`` in Python numbers; "levels" is for the best path, :meth:`argmax_levels` for the
            argmax.

        Raises:
            ValueError: as :meth:`add_batch`.
        """
        if predictions is not None or references is not None:
            self.add_batch(predictions=predictions, references=references)
        counters = self._unpack(self._counts.cpu())
        return {
            "num_samples": counters["samples"].item(),
            "levels": self._level_scores(counters, _PATH),
            "path": self._tree_scores(counters, _PATH),
            "argmax": self._tree_scores(counters, _ARGMAX),
        }

    def argmax_levels(self) -> dict[str, dict[str, float]]:
        """As "levels" of :meth:`compute`, for the per-level argmax."""
        return self._level_scores(self._unpack(self._counts.cpu()), _ARGMAX)

    def reliability(self) -> torch.Tensor:
        """How far the best path's confidence can be trusted: float64 (levels, 3, bins) on the host.

        In each bin of confidence: the labelled images with an answer, the right ones, and the sum of the confidences.
        """
        counters = self._unpack(self._counts.cpu())
        columns = [counters["binned"][_PATH], counters["binned_right"][_PATH], self._confidence[_PATH].cpu()]
        return torch.stack([column.double().view(self.hierarchy.num_levels, -1) for column in columns], 1)

    def _level_scores(self, counters: dict[str, torch.Tensor], decoding: int) -> dict[str, dict[str, float]]:
        num_classes, num_levels = self.hierarchy.num_classes, self.hierarchy.num_levels
        labelled = counters["labelled"].split(num_classes)
        predicted, right = (counters[name][decoding].split(num_classes) for name in ("predicted", "right"))
        binned_right = counters["binned_right"][decoding].view(num_levels, -1)
        confidence = self._confidence[decoding].view(num_levels, -1).cpu()
        gap = (binned_right - confidence).abs().sum(1)  # the sizes of the bins cancel against their weights
        scores = {}
        for level, name in enumerate(self.hierarchy.levels):
            num_labelled = labelled[level].sum().item()
            scores[name] = {
                "accuracy": _ratio(right[level].sum(), num_labelled),
                f"top{self.top_k}_accuracy": _ratio(counters["top"][level], num_labelled),
                "macro_f1": _macro_f1(labelled[level], predicted[level], right[level]),
                "mean_confidence": _ratio(confidence[level].sum(), num_labelled),
                "ece": _ratio(gap[level], num_labelled),
                "num_labelled": num_labelled,
            }
        return scores

    def _tree_scores(self, counters: dict[str, torch.Tensor], decoding: int) -> dict[str, float]:
        num_fully_labelled = counters["labelled"][-self.hierarchy.num_classes[-1] :].sum().item()
        return {
            "full_path_accuracy": _ratio(counters["full_right"][decoding], num_fully_labelled),
            "tree_inconsistency": _ratio(counters["inconsistent"][decoding], counters["samples"].item()),
            "hierarchical_distance": _ratio(counters["distance"][decoding], num_fully_labelled),
        }


def _in_top(log_probs: torch.Tensor, labels: torch.Tensor, top_k: int) -> torch.Tensor:
    """Whether labels (batch,) are among the top_k classes of log_probs (batch, classes); negative ones never are."""
    # Twice as fast on the CPU as counting the classes above the label, where ties take several passes.
    top = log_probs.topk(min(top_k, log_probs.shape[1]), sorted=False).indices
    return (top == labels.unsqueeze(1)).any(1)


def _macro_f1(labelled: torch.Tensor, predicted: torch.Tensor, right: torch.Tensor) -> float:
    """Mean F1 over classes that occur, from the counts (classes,) of references, of predictions and of agreements."""
    occurring = labelled + predicted > 0
    f1 = 2 * right[occurring].double() / (labelled + predicted)[occurring]
    return _ratio(f1.sum(), len(f1))


def _ratio(total: torch.Tensor, count: int) -> float:
    return total.item() / count if count else math.nan
