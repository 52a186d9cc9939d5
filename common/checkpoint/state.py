"""What a run must remember to continue as if it had never stopped."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import nn

from ..data.rows import ProblemLog
from ..data.sampling import GlobalBatchSampler
from ..optim.schedule import Plateau


class StepCounts:
    """Sums over steps; those of losses are this process's share of the global ones, the others are the same for all.

    Args:
        device: of the losses.
    """

    LOSS, STEPS, EPOCH_LOSS, EPOCH_STEPS, SKIPPED, IN_A_ROW = range(6)

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self.skipped_steps = self.skipped_in_a_row = 0

    def add(self, loss: torch.Tensor, nonfinite: torch.Tensor, new_epoch: bool) -> None:
        """Count a step.

        Args:
            loss: of this process.
            nonfinite: 1 if the loss was NaN or infinite in any process, else 0.
            new_epoch: whether it was the first of an epoch.
        """
        if new_epoch:
            self.sums[self.EPOCH_LOSS : self.EPOCH_STEPS + 1] = 0
        good = 1 - nonfinite
        loss = torch.where(nonfinite > 0, 0, loss)
        self.sums[: self.SKIPPED] += torch.stack([loss, good, loss, good]).to(self.sums)
        self.sums[self.SKIPPED] += nonfinite
        self.sums[self.IN_A_ROW] = (self.sums[self.IN_A_ROW] + nonfinite) * nonfinite

    def mean_loss(self, accelerator: Accelerator) -> float:
        """Over the good steps since the last call, of all processes; nan if there were none."""
        loss = accelerator.reduce(self.sums[self.LOSS], "sum")
        host = torch.stack([loss, *self.sums[self.STEPS :]]).tolist()
        self.skipped_steps, self.skipped_in_a_row = int(host[self.SKIPPED]), int(host[self.IN_A_ROW])
        self.sums[: self.STEPS + 1] = 0
        return host[self.LOSS] / host[self.STEPS] if host[self.STEPS] else math.nan

    def epoch_loss(self, accelerator: Accelerator) -> float:
        """Mean over the good steps of the epoch, of all processes."""
        loss = accelerator.reduce(self.sums[self.EPOCH_LOSS], "sum")
        return (loss / self.sums[self.EPOCH_STEPS]).item()

    def gathered(self) -> list[list[float]]:
        """The sums of all processes."""
        return gather_object([self.sums.tolist()])

    def restore(self, gathered: list[list[float]], process_index: int, num_processes: int) -> None:
        """Take back this process's sums; of another number of processes, the first takes the losses of all."""
        if len(gathered) == num_processes:
            mine = gathered[process_index]
        else:
            mine = list(gathered[0])
            for column in (self.LOSS, self.EPOCH_LOSS):
                mine[column] = sum(row[column] for row in gathered) if process_index == 0 else 0.0
        self.sums.copy_(torch.tensor(mine, dtype=torch.float64))
        self.skipped_steps = int(mine[self.SKIPPED])


@dataclass
class TrainState:
    """All that a checkpoint holds of a run; randomness follows from seed and position, so there is none."""

    accelerator: Accelerator  # knows the processes, and has the gradient scaler of fp16
    model: nn.Module  # as trained, not wrapped
    optimizer: torch.optim.Optimizer  # as ``accelerator.prepare`` returned it
    ema: nn.Module | None  # timm's ``ModelEmaV3``
    sampler: GlobalBatchSampler  # the position: epoch and samples seen
    problems: ProblemLog  # broken images met so far
    plateau: Plateau | None = None  # lowers the learning rate when the loss stops falling
    partly: bool = False  # only what is trained is kept; the rest of the weights must be there again
    counts: StepCounts = field(init=False)
    best: float | None = None  # of the metric that chooses the best model; ``None`` before the first, or for NaN
    best_results: dict[str, Any] = field(default_factory=dict)  # ``eval`` of all_results.json, of the best model
    evaluations_without_gain: int = 0  # since the best one
    evaluated_step: int = 0  # of the last evaluation
    epoch_loss: float | None = None  # mean of the epoch before it
    stopped_early: bool = False  # whether there were too many evaluations without gain
    seconds: float = 0.0  # spent on training, over all parts of the run

    PLAIN = ("best", "best_results", "evaluations_without_gain", "evaluated_step", "epoch_loss", "stopped_early")
    PLAIN += ("seconds",)

    def __post_init__(self) -> None:
        self.counts = StepCounts(self.accelerator.device)

    @cached_property
    def frozen(self) -> dict[str, str]:
        """Names and digests of the weights that are not kept."""
        values = [pair for pair in self.model.named_parameters() if self.partly and not pair[1].requires_grad]
        return {name: xxhash.xxh3_64_hexdigest(value.detach().cpu().numpy()) for name, value in values}

    def _models(self) -> list[tuple[str, nn.Module]]:
        return [("weights", self.model), *([] if self.ema is None else [("ema", self.ema.module)])]

    def is_good(self, last_step_counts: bool = True) -> bool:
        """Whether it is worth keeping: all weights are finite, and the last step was not skipped. A collective."""
        values = [value for value in self.model.state_dict().values() if value.is_floating_point()]
        good = torch.stack([value.isfinite().all() for value in values]).all()
        if last_step_counts:
            good &= self.counts.sums[StepCounts.IN_A_ROW] == 0
        return bool(self.accelerator.reduce(good.float(), "sum") == self.accelerator.num_processes)

    def state_dict(self) -> dict[str, Any]:
        """Groups of tensors by name, and ``state``, which is JSON. A collective: every process calls it."""
        optimizer, entries, scalars = flatten_optimizer(self.optimizer)
        scaler = self.accelerator.scaler
        state = {
            "sampler": self.sampler.state_dict(),
            "optimizer_entries": entries,
            "optimizer_scalars": scalars,
            "scaler": scaler.state_dict() if scaler else None,
            "sums": self.counts.gathered(),
            "problems": sorted(set(gather_object(list(self.problems.found)))),
            "plateau": self.plateau and self.plateau.state_dict(),
            "frozen": self.frozen,
            **{name: getattr(self, name) for name in self.PLAIN},
        }
        kept = {
            group: {name: value for name, value in model.state_dict().items() if name not in self.frozen}
            for group, model in self._models()
        }
        return {**kept, "optimizer": optimizer, "state": state}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """The inverse of :meth:`state_dict`, on any number of processes."""
        accelerator, state = self.accelerator, saved["state"]
        if state.get("frozen", {}) != self.frozen:
            raise ValueError("The frozen weights differ from those that the run began with: --model_name_or_path.")
        for group, model in self._models():
            present = model.state_dict()
            model.load_state_dict({**{name: present[name] for name in self.frozen}, **saved[group]})
        scalars = state.get("optimizer_scalars", [])
        load_optimizer(self.optimizer, saved["optimizer"], state["optimizer_entries"], scalars)
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        self.sampler.load_state_dict(state["sampler"])
        self.counts.restore(state["sums"], accelerator.process_index, accelerator.num_processes)
        self.problems.found.update(dict.fromkeys(state["problems"]))
        if self.plateau is not None and state.get("plateau"):
            self.plateau.load_state_dict(state["plateau"])
        for name in self.PLAIN:
            setattr(self, name, state[name])


def flatten_optimizer(
    optimizer: torch.optim.Optimizer,
) -> tuple[dict[str, torch.Tensor], list[str], list[dict[str, Any]]]:
    """An optimizer's state as named tensors, their names in order, and its counters.

    Groups are made anew from the options, but for the step that some of timm's optimizers count there.
    """
    state = optimizer.state_dict()
    tensors, numbers = {}, {}
    for index, entry in state["state"].items():
        for name, value in entry.items():
            kept = tensors if isinstance(value, torch.Tensor) else numbers
            kept[f"{index}.{name}"] = value
    steps = {str(index): float(group["step"]) for index, group in enumerate(state["param_groups"]) if "step" in group}
    return tensors, list(tensors), [numbers, steps]


def load_optimizer(
    optimizer: torch.optim.Optimizer,
    tensors: dict[str, torch.Tensor],
    names: list[str],
    scalars: list[dict[str, Any]] = (),
) -> None:
    """The inverse of :func:`flatten_optimizer`."""
    numbers, steps = scalars or ({}, {})
    state: dict[int, dict[str, Any]] = {}
    for name, value in [*((name, tensors[name]) for name in names), *numbers.items()]:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = value
    groups = optimizer.state_dict()["param_groups"]
    for index, step in steps.items():
        now = groups[int(index)].get("step", 0)
        groups[int(index)]["step"] = torch.full_like(now, step) if isinstance(now, torch.Tensor) else int(step)
    optimizer.load_state_dict({"state": state, "param_groups": groups})
