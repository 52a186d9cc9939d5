"""What metrics that count on the device have in common."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

import datasets
import evaluate
import torch
from accelerate.utils import send_to_device
from torch.utils.data import default_collate

from ..model.hierarchy import Hierarchy

_CITATION = """@misc{hcast, author={Park, S. and Zhang, Y. and Yu, S. X. and Beery, S. and Huang, J.}, year={2024},
  title={Visually Consistent Hierarchical Image Classification}, eprint={2406.11608}}
@inproceedings{mistakes, author={Bertinetto, L. and Mueller, R. and Tertikas, K. and Samangooei, S. and Lord, N. A.},
  title={Making Better Mistakes: Leveraging Class Hierarchies with Deep Networks}, booktitle={CVPR}, year={2020}}
@inproceedings{calibration, author={Guo, C. and Pleiss, G. and Sun, Y. and Weinberger, K. Q.}, year={2017},
  title={On Calibration of Modern Neural Networks}, booktitle={ICML}}
"""


class CountingMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that keeps a fixed set of counters, and no predictions.

    Counting makes no host synchronisation and no collective; each process counts its own samples, calls
    :meth:`reduce` once, and every process then computes the same numbers.

    Subclasses define their numbers in their docstring, which is the metric's description. They set ``_features``, and
    ``_shapes``, the shape of each integer counter; ``_counts`` is one int64 tensor for all of them, so that reducing
    takes one collective and computing one copy to the host. ``_confidence`` is for those that sum floats.
    """

    _features: Mapping[str, Any]
    _shapes: Mapping[Any, tuple[int, ...]]
    _confidence: torch.Tensor | None = None

    def __init__(self, hierarchy: Hierarchy, device: str | torch.device) -> None:
        super().__init__()
        self.hierarchy = hierarchy
        self._counts = torch.zeros(sum(map(math.prod, self._shapes.values())), dtype=torch.long, device=device)

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=inspect.getdoc(type(self)),
            citation=_CITATION,
            inputs_description="",  # stands in the docstring of add_batch
            features=datasets.Features(self._features),
            reference_urls=["https://arxiv.org/abs/2406.11608", "https://arxiv.org/abs/1912.09393"],
        )

    def _build_data_dir(self) -> str:
        # The base class makes this directory for its cache of predictions, of which there is none here.
        return self._data_dir_root

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
