"""What metrics that count on the device have in common."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from accelerate.utils import send_to_device
from torch.utils.data import default_collate

from ..model.hierarchy import Hierarchy


class CountingMetric:
    """A fixed set of counters, and no predictions: what is given is counted batch by batch.

    Called as the metrics of HF's ``evaluate`` are, so that ``evaluate.combine`` takes it, too. It is not derived from
    them, because every training would wait for the seconds that importing them takes.

    Counting makes no host synchronisation and no collective; each process counts its own samples, calls
    :meth:`reduce` once, and every process then computes the same numbers.

    Subclasses define their numbers in their docstring. They set ``name`` and ``_shapes``, the shape of each integer
    counter; ``_counts`` is one int64 tensor for all of them, so that reducing takes one collective and computing one
    copy to the host. ``_confidence`` is for those that sum floats.
    """

    name: str
    _shapes: Mapping[Any, tuple[int, ...]]
    _confidence: torch.Tensor | None = None

    def __init__(self, hierarchy: Hierarchy, device: str | torch.device) -> None:
        self.hierarchy = hierarchy
        self._counts = torch.zeros(sum(map(math.prod, self._shapes.values())), dtype=torch.long, device=device)

    def _feature_names(self) -> list[str]:  # evaluate.combine asks for them
        return ["predictions", "references"]

    def _unpack(self, counts: torch.Tensor) -> dict[Any, torch.Tensor]:
        """The counters by name, as views of ``counts``."""
        parts = counts.split([math.prod(shape) for shape in self._shapes.values()])
        return {name: part.view(shape) for (name, shape), part in zip(self._shapes.items(), parts, strict=True)}

    def add(self, *, prediction: Mapping[str, Any] | None = None, reference: Any = None, **kwargs: Any) -> None:
        """Count one sample: arguments without the batch dimension, and errors, as for ``add_batch``."""
        # evaluate.combine passes the plural names on, also for one sample.
        sample = kwargs.get("predictions", prediction), kwargs.get("references", reference)
        predictions, references = send_to_device(default_collate([sample]), self._counts.device)
        self.add_batch(predictions=predictions, references=references)

    def reduce(self, reduce_fn: Callable[[torch.Tensor], torch.Tensor]) -> None:
        """Sum the counters over processes, in place: once, after the last batch, on every process.

        ``reduce_fn`` (``lambda counts: accelerator.reduce(counts, "sum")``) is called with one int64 tensor and, where
        confidence is summed, one float64 tensor.
        """
        for counters in (self._counts, self._confidence):
            if counters is not None:
                counters.copy_(reduce_fn(counters))
