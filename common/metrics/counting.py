"""What metrics that count on the device have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import evaluate
import torch


class CountingMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that keeps a fixed set of counters, and no predictions.

    Counting makes no host synchronisation and no collective; each process counts its own samples, calls
    :meth:`reduce` once, and every process then computes the same numbers.

    Subclasses set ``_shapes``, the shape of each integer counter, and ``_counts``, one int64 tensor for all of them,
    so that reducing takes one collective and computing one copy to the host; ``_confidence`` only if they sum floats.
    """

    _shapes: Mapping[Any, tuple[int, ...]]
    _counts: torch.Tensor
    _confidence: torch.Tensor | None = None

    def _build_data_dir(self) -> str:
        # The base class makes this directory for its cache of predictions, of which there is none here.
        return self._data_dir_root

    def _zeros(self, device: str | torch.device) -> torch.Tensor:
        return torch.zeros(sum(map(math.prod, self._shapes.values())), dtype=torch.long, device=device)

    def _unpack(self, counts: torch.Tensor) -> dict[Any, torch.Tensor]:
        """The counters by name, as views of ``counts``."""
        parts = counts.split([math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def add(self, *, prediction: Mapping[str, Any] | None = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one sample: arguments without the batch dimension, and errors, as for ``add_batch``."""
        # evaluate.combine passes the plural names on, also for one sample.
        prediction, reference = kwargs.get("predictions", prediction), kwargs.get("references", reference)

        def batch_of_one(value: Any) -> Any:
            if isinstance(value, list | tuple):
                return [batch_of_one(entry) for entry in value]
            return torch.as_tensor(value, device=self._counts.device).unsqueeze(0)

        batch = {name: batch_of_one(value) for name, value in prediction.items()}
        self.add_batch(predictions=batch, references=batch_of_one(reference))

    def reduce(self, reduce_fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Sum the counters over processes, in place: once, after the last batch, on every process.

        Args:
            reduce_fn: returns the sum over processes of the tensor that it is given, for instance
                ``lambda tensor: accelerator.reduce(tensor, "sum")``. Called with one int64 tensor and, where
                confidence is summed, one float64 tensor.
        """
        for counters in self._counters:
            counters.copy_(reduce_fn(counters))

    def reset(self) -> None:
        """Set every counter to zero."""
        for counters in self._counters:
            counters.zero_()

    @property
    def _counters(self) -> list[torch.Tensor]:
        return [self._counts] if self._confidence is None else [self._counts, self._confidence]
