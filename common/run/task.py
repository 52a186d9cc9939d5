"""What a script adds to the training loop, and what its parts have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from ..data.rows import ProblemLog
from ..images.transforms import Normalize
from ..metrics.report_data import ReportData
from ..model.hierarchy import Hierarchy
from ..optim import Curriculum
from ..report.image_examples import Picture
from .options import CommonArguments
from .processes import sync_buffers
from .progress import evaluation_bar
from .stopping import EvaluationAbandoned, StopRequest


@dataclass
class Data:
    """What training and evaluation draw from, as a script's ``load_data`` returns it; scripts add what they need."""

    hierarchy: Hierarchy
    train_rows: np.ndarray
    eval_rows: np.ndarray


@dataclass
class Evaluation:
    """Results by the contract of all_results.json, and whatever else the script wants to write beside them."""

    results: dict[str, Any]
    extras: Any = None
    report_data: ReportData | None = None


class Task(ABC):
    """A model, its loss and metrics, and the data they work on: what a script describes by deriving a trainer.

    Args:
        args: the script's options.
        accelerator: knows the processes and the device.
        data: see :class:`Data`.
        model: with ``backbone``, ``heads`` and ``config.backbone``.
        curriculum: weights of the levels over the course of the training.
        problems: collects broken images.
    """

    stop: StopRequest
    unit = "images"
    """What is counted"""
    measures: tuple[str, ...] = ("accuracy", "macro_f1")
    """Of each level, whose course the report shows"""

    def __init__(
        self,
        args: CommonArguments,
        accelerator: Accelerator,
        data: Data,
        model: PreTrainedModel,
        curriculum: Curriculum,
        problems: ProblemLog,
    ) -> None:
        self.args, self.accelerator, self.data = args, accelerator, data
        self.curriculum, self.problems = curriculum, problems
        self.spec = spec = model.config.backbone
        if args.image_size and args.image_size != spec["image_size"]:
            raise ValueError(f"--image_size {args.image_size} differs from the saved model's {spec['image_size']}.")
        self.model = model.to(accelerator.device)
        memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
        self.normalize = Normalize(spec["mean"], spec["std"], memory_format).to(accelerator.device)
        self.loss_fn = self.make_loss().to(accelerator.device)
        self.metrics = self.make_metrics()
        self.eval_loader = self.make_eval_loader()

    # ---- what a script adds

    @abstractmethod
    def make_train_loader(self) -> DataLoader:
        """Augmented batches with ``pixels`` (uint8), ``labels`` and ``problems``, in the sampler's order."""

    @abstractmethod
    def make_eval_loader(self) -> DataLoader:
        """Every evaluation image once, in one process."""

    @abstractmethod
    def make_loss(self) -> nn.Module:
        """With ``weights`` per level, ``label_weights``, ``combine``, and a call (scores, labels, denominators)."""

    @abstractmethod
    def make_metrics(self) -> Any:
        """An ``evaluate.Metric`` with ``reset``, ``reduce`` and ``compute``."""

    @abstractmethod
    def train_loss(
        self, pixels: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor, step: int
    ) -> torch.Tensor:
        """This micro-batch's part of the global batch's loss, of uint8 images and labels on the device."""

    @abstractmethod
    def evaluate(self, model: PreTrainedModel) -> Evaluation:
        """Results over all processes."""

    @abstractmethod
    def save_model(self, model: PreTrainedModel) -> None:
        """Write the model, and what prepares images for it, into the output folder (main process only)."""

    @abstractmethod
    def write(self, evaluation: Evaluation) -> None:
        """Write what comes with an evaluation that is kept: predictions, pictures (called by every process)."""

    def pictures(self, data: ReportData) -> dict[str, list[Picture]]:
        """Evaluation images that show how the model errs, by kind; for the report (main process only)."""
        return {}

    def draw(self, folder: Path) -> None:  # noqa: B027, not every script has any
        """Plots of the script's own into a folder, from what :meth:`write` kept (main process only)."""

    def to_labels(self, labels: torch.Tensor) -> torch.Tensor:
        """A batch's labels on the device, as the loss takes them."""
        return labels.to(self.accelerator.device, non_blocking=True)

    def facts(self) -> dict[str, str]:
        """More lines for the banner."""
        return {}

    @property
    def pin_memory(self) -> bool:
        """Page-locked batches, for copies that do not wait."""
        return self.accelerator.device.type == "cuda"

    def to_model(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 on the host -> normalised float on the device."""
        return self.normalize(pixels.to(self.accelerator.device, non_blocking=True))

    # ---- evaluation

    def evaluation_batches(self, model: PreTrainedModel) -> Iterator[dict[str, Any]]:
        """Batches that hold an image, after everything is set for evaluation.

        No collective happens between them, because processes may have different numbers of batches.

        Raises:
            EvaluationAbandoned: after the last one, if the run is to stop.
        """
        model.eval()
        self.loss_fn.eval()
        self.loss_fn.weights = self.curriculum.stages[-1].weights  # so that losses of all stages compare
        sync_buffers(model, self.accelerator)
        self.metrics.reset()
        for batch in evaluation_bar(self.eval_loader, len(self.eval_loader), self.accelerator.is_main_process):
            self.problems.add(batch["problems"])
            if self.stop.here():
                break
            if batch["pixels"] is not None:
                yield batch
        if self.stop.anywhere()[0]:
            raise EvaluationAbandoned

    def computed(self, loss_sums: torch.Tensor, loss_denominators: torch.Tensor) -> dict[str, Any]:
        """Loss and metrics over all processes; sums are float64."""
        accelerator = self.accelerator
        self.metrics.reduce(lambda counts: accelerator.reduce(counts, "sum"))
        sums = accelerator.reduce(torch.stack([loss_sums, loss_denominators]), "sum")
        return {"loss": self.loss_fn.combine(*sums).item(), **self.metrics.compute()}
