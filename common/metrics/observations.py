"""Several photographs of one thing, answered together: their mean probabilities, and the metrics of these answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ..model.modeling import LabelTreeModel
from .taxonomy import TaxonomyMetrics

_ONE = 2**40  # probabilities are added as integers, so that order and number of processes do not matter


class Observations:
    """Sums of the probabilities of each observation's images; 8 bytes per observation and output of the model.

    Args:
        groups: (rows,) number of each image's observation.
        labels: int64 (rows, levels); those of an observation's first image are its own.
        model: whose answers are evaluated.
        device: where it is.
    """

    def __init__(self, groups: np.ndarray, labels: np.ndarray, model: LabelTreeModel, device: torch.device) -> None:
        _, first, index = np.unique(groups, return_index=True, return_inverse=True)
        tree, self.model = model.hierarchy, model
        self.labels, self.index = (torch.from_numpy(each).to(device) for each in (labels[first], index))
        num_outputs = tree.num_leaves if model.heads.leaf_softmax else sum(tree.num_classes)
        self.sums = torch.zeros(len(first), num_outputs, dtype=torch.long, device=device)

    def add(self, rows: torch.Tensor, logits: torch.Tensor) -> None:
        """Count a batch: int64 row numbers (batch,) on the host, and the heads' logits (batch, outputs)."""
        shares = self.model.heads.normalized(logits).double().exp()
        index = self.index[rows.to(self.index.device, non_blocking=True)]
        self.sums.index_add_(0, index, (shares * _ONE).round().long())

    def compute(self, metrics: TaxonomyMetrics, reduce_fn: Callable[[torch.Tensor], torch.Tensor]) -> dict[str, Any]:
        """Results of all processes' observations, from new metrics of images; every process calls it."""
        sums = reduce_fn(self.sums)
        for part in sums.sum(1).nonzero()[:, 0].split(1024):  # evaluation may leave images out
            output = self.model.complete(sums[part].clamp(min=1).double().log().float())
            predicted = {"log_probs": output.log_probs, "path": self.model.decode(output).path.unbind(1)}
            metrics.add_batch(predictions=predicted, references=self.labels[part])
        return metrics.compute()
