"""Evaluation batches that a stop request can interrupt."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from ..data.rows import ProblemLog
from .stopping import EvaluationAbandoned, StopRequest


def interruptible_batches(
    loader: DataLoader, stop: StopRequest, problems: ProblemLog, accelerator: Accelerator
) -> Iterator[dict[str, Any]]:
    """The batches of this process that hold an image.

    No collective happens between them, because processes may have different numbers of batches.

    Args:
        loader: every evaluation image once, in one process.
        stop: looked at before every batch.
        problems: gets the broken images.
        accelerator: knows the processes.

    Raises:
        EvaluationAbandoned: after the last batch, on every process, if the run is to stop.
    """
    live = accelerator.is_main_process and sys.stderr.isatty()
    for batch in tqdm(loader, desc="evaluation", leave=False, dynamic_ncols=True, disable=not live):
        problems.add(batch["problems"])
        if stop.here():
            break
        if batch["pixels"] is not None:
            yield batch
    if stop.anywhere()[0]:
        raise EvaluationAbandoned
