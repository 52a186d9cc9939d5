"""What metrics that count on the device have in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import evaluate
import torch


class CountingMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that keeps a fixed set of integer counters, and no predictions.

    Subclasses set ``_shapes``, the shape of each counter, and ``_counts``, one int64 tensor for all of them, so that
    reducing takes one collective and computing one copy to the host.
    """

    _shapes: Mapping[Any, tuple[int, ...]]
    _counts: torch.Tensor

    def _build_data_dir(self) -> str:
        # The base class makes this directory for its cache of predictions, of which there is none here.
        return self._data_dir_root

    def _unpack(self, counts: torch.Tensor) -> dict[Any, torch.Tensor]:
        """The counters by name, as views of ``counts``."""
        parts = counts.split([math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def reset(self) -> None:
        """Set every counter to zero."""
        self._counts.zero_()
