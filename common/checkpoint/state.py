"""Parts of a run's state in a form that can be written: sums over steps, and what an optimizer remembers."""

from __future__ import annotations

import math

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object


class StepCounts:
    """Sums over steps; of losses they are this process's share of the global ones, the rest is the same for all.

    Args:
        device: of the losses.
    """

    LOSS, STEPS, EPOCH_LOSS, EPOCH_STEPS, SKIPPED, IN_A_ROW = range(6)

    def __init__(self, device: torch.device) -> None:
        self.sums = torch.zeros(6, dtype=torch.float64, device=device)
        self.skipped_steps = self.skipped_in_a_row = 0

    def add(self, loss: torch.Tensor, bad: torch.Tensor, new_epoch: bool) -> None:
        """Count a step.

        Args:
            loss: of this process.
            bad: 1 if the loss was no number in any process, else 0.
            new_epoch: whether it was the first of an epoch.
        """
        if new_epoch:
            self.sums[self.EPOCH_LOSS : self.EPOCH_STEPS + 1] = 0
        good = 1 - bad
        loss = torch.where(bad > 0, 0, loss)
        self.sums[: self.SKIPPED] += torch.stack([loss, good, loss, good]).to(self.sums)
        self.sums[self.SKIPPED] += bad
        self.sums[self.IN_A_ROW] = (self.sums[self.IN_A_ROW] + bad) * bad

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


def flatten_optimizer(optimizer: torch.optim.Optimizer) -> tuple[dict[str, torch.Tensor], list[str]]:
    """An optimizer's state as named tensors, and their names in order; groups are made anew from the options."""
    tensors = {
        f"{index}.{name}": value
        for index, entry in optimizer.state_dict()["state"].items()
        for name, value in entry.items()
        if isinstance(value, torch.Tensor)
    }
    return tensors, list(tensors)


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], names: list[str]) -> None:
    """The inverse of :func:`flatten_optimizer`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name in names:
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensors[name]
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
