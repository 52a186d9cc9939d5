"""Evaluation batches that a stop request can interrupt."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader

from ..data.rows import ProblemLog
from .progress import evaluation_bar
from .stopping import EvaluationAbandoned, StopRequest


class EvaluationBatches:
    """The batches of this process that hold an image, each time it is iterated over.

    No collective happens between them, because processes may have different numbers of batches.

    Args:
        loader: every evaluation image once, in one process.
        stop: looked at before every batch.
        problems: gets the broken images.
        accelerator: knows the processes.

    Raises:
        EvaluationAbandoned: after the last batch, on every process, if the run is to stop.
    """

    def __init__(self, loader: DataLoader, stop: StopRequest, problems: ProblemLog, accelerator: Accelerator) -> None:
        self.loader, self.stop, self.problems, self.accelerator = loader, stop, problems, accelerator

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in evaluation_bar(self.loader, len(self.loader), self.accelerator.is_main_process):
            self.problems.add(batch["problems"])
            if self.stop.here():
                break
            if batch["pixels"] is not None:
                yield batch
        if self.stop.anywhere()[0]:
            raise EvaluationAbandoned
