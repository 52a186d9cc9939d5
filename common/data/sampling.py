"""The order of the samples, which depends on the seed and the epoch alone, not on processes or workers.

Global batch ``b`` of an epoch is the slice ``[b * G, (b + 1) * G)`` of that epoch's permutation. Every process
computes a contiguous part of each global batch, in one or more micro-batches. The position is two global numbers,
``epoch`` and ``samples_seen``; so a run resumed on other processes or workers sees the same global batches. The
random numbers of a sample are a function of (seed, epoch, index); therefore keys hold the epoch beside the index.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

Key = tuple[int, int]
"""(epoch, index of the sample in the data set)"""


def sample_weights(classes: np.ndarray, sampling: str, threshold: float = 1e-3) -> np.ndarray | None:
    """How often each sample is to be drawn, relative to the others: float64 (samples,); ``None`` for equally often.

    ``classes`` are those of the samples. ``sqrt``: classes by the square root of their size (Mahajan et al., ECCV
    2018); ``balanced``: every class as often; ``repeat_factor``: max(1, sqrt(threshold / frequency)) (Gupta et al.,
    LVIS, CVPR 2019).
    """
    if sampling == "natural":
        return None
    _, inverse, counts = np.unique(classes, return_inverse=True, return_counts=True)
    if sampling == "repeat_factor":
        return np.maximum(1.0, np.sqrt(threshold * len(classes) / counts))[inverse]
    return (counts ** (-0.5 if sampling == "sqrt" else -1.0))[inverse]


def epoch_order(num_samples: int, seed: int, epoch: int, weights: np.ndarray | None = None) -> np.ndarray:
    """The samples of one epoch in order: int64 (num_samples,), the same on every machine.

    Without weights, a permutation. With them a sample occurs as often as its weight asks for, rounded up or down by
    systematic resampling (which sample is rounded which way differs from epoch to epoch).
    """
    rng = np.random.Generator(np.random.Philox(key=[seed, epoch]))
    order = rng.permutation(num_samples)
    if weights is None:
        return order
    order = order[np.argsort(weights[order], kind="stable")]  # classes of one size together: their sum is exact
    ends = np.cumsum(weights[order]) * (num_samples / weights.sum())
    drawn = np.searchsorted(ends, np.arange(num_samples) + rng.random(), side="right").clip(max=num_samples - 1)
    return order[drawn][rng.permutation(num_samples)]


class GlobalBatchSampler:
    """Batch sampler of one process: micro-batches of (epoch, index) keys, from the position to the end of training.

    Args:
        num_samples: size of the training set.
        global_batch_size: samples per optimizer step, over all processes.
        micro_batch_size: samples per forward pass of one process; ``micro_batch_size * num_processes`` must divide
            ``global_batch_size``.
        num_steps: optimizer steps of the training; ``num_epochs`` passes over the training set by default.
        weights: of the samples, see :func:`epoch_order`.

    Raises:
        ValueError: if the sizes do not divide, or there are fewer samples than a global batch. The incomplete batch at
            the end of an epoch is left out; it holds other samples in every epoch.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        micro_batch_size: int,
        num_steps: int | None = None,
        seed: int = 0,
        process_index: int = 0,
        num_processes: int = 1,
        num_epochs: int = 1,
        weights: np.ndarray | None = None,
    ) -> None:
        if global_batch_size % (micro_batch_size * num_processes):
            raise ValueError(
                f"--global_batch_size {global_batch_size} is not a multiple of --per_device_train_batch_size "
                f"{micro_batch_size} x {num_processes} processes; change one of them so that it divides."
            )
        if num_samples < global_batch_size:
            raise ValueError(
                f"There are {num_samples} training samples, fewer than one global batch of {global_batch_size}; "
                "lower --global_batch_size."
            )
        self.num_samples = num_samples
        self.global_batch_size, self.micro_batch_size = global_batch_size, micro_batch_size
        self.num_steps = num_epochs * self.steps_per_epoch if num_steps is None else num_steps
        self.seed, self.weights = seed, weights
        self.process_index, self.num_processes = process_index, num_processes
        self.epoch = self.samples_seen = 0

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps, that is global batches, in an epoch."""
        return self.num_samples // self.global_batch_size

    @property
    def accumulation_steps(self) -> int:
        """Micro-batches of this process per optimizer step."""
        return self.global_batch_size // (self.micro_batch_size * self.num_processes)

    @property
    def global_step(self) -> int:
        """Optimizer steps done at the current position."""
        return self.epoch * self.steps_per_epoch + self.samples_seen // self.global_batch_size

    def advance(self) -> None:
        """Move the position by one global batch; call it after the optimizer step."""
        self.samples_seen += self.global_batch_size
        if self.samples_seen >= self.steps_per_epoch * self.global_batch_size:
            self.epoch, self.samples_seen = self.epoch + 1, 0

    def state_dict(self) -> dict[str, int]:
        """The position: global numbers, valid for any number of processes and workers."""
        return {"epoch": self.epoch, "samples_seen": self.samples_seen}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Move to a position, for the next iterator."""
        self.epoch, self.samples_seen = state["epoch"], state["samples_seen"]

    def __len__(self) -> int:
        return max(self.num_steps - self.global_step, 0) * self.accumulation_steps

    def __iter__(self) -> Iterator[list[Key]]:
        share = self.global_batch_size // self.num_processes
        order_of, order = -1, np.empty(0)
        for step in range(self.global_step, self.num_steps):
            epoch, batch = divmod(step, self.steps_per_epoch)
            if epoch != order_of:
                order_of, order = epoch, epoch_order(self.num_samples, self.seed, epoch, self.weights)
            first = batch * self.global_batch_size + self.process_index * share
            for start in range(first, first + share, self.micro_batch_size):
                yield [(epoch, index) for index in order[start : start + self.micro_batch_size].tolist()]


def evaluation_batches(
    num_samples: int, batch_size: int, process_index: int = 0, num_processes: int = 1
) -> list[list[Key]]:
    """This process's batches of (0, index) keys: every sample on exactly one process, in order and without padding.

    Processes may have different numbers of batches.
    """
    start, end = (num_samples * part // num_processes for part in (process_index, process_index + 1))
    return [[(0, at) for at in range(first, min(first + batch_size, end))] for first in range(start, end, batch_size)]


def seed_sample(seed: int, epoch: int, index: int) -> None:
    """Seed the global generators of Python, numpy and torch (CPU), all of which augmentation uses, for one sample."""
    sequence = np.random.SeedSequence([seed, epoch, index]).generate_state(3)
    random.seed(int(sequence[0]))
    np.random.seed(int(sequence[1]))
    torch.random.default_generator.manual_seed(int(sequence[2]))


@contextmanager
def generators_kept() -> Iterator[None]:
    """Restores the states of the global generators at the end, so that nothing outside changes."""
    before = random.getstate(), np.random.get_state(), torch.random.get_rng_state()
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.random.set_rng_state(before[2])


def seed_step(seed: int, global_step: int, micro_step: int, process_index: int) -> None:
    """Seed dropout and stochastic depth by the position, so that no generator state has to be saved."""
    sequence = np.random.SeedSequence([seed, global_step, micro_step, process_index]).generate_state(1, np.uint64)
    torch.manual_seed(int(sequence[0]))
