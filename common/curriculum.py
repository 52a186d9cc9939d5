"""Weights of the levels over the course of a training: one stage as a rule, several in a curriculum."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

from .hierarchy import Hierarchy
from .losses import level_weights
from .optimization import learning_rate_factor
from .sampling import GlobalBatchSampler

logger = logging.getLogger(__name__)

SCHEDULE_SCOPES = ("span", "restart")


@dataclass(eq=False)
class Stage:
    """Optimizer steps ``first`` up to ``end`` (excluded) with these weights of the levels."""

    first: int
    end: int
    weights: list[float]


class Curriculum:
    """The stages of a training, one after the other.

    Args:
        stages: in order, without gaps, from step 0.
        scope: whether the learning rate's course ``span``s all stages, or ``restart``s with each of them. Spanning,
            levels that come last are only ever trained with what is left of the rate.
    """

    def __init__(self, stages: Sequence[Stage], scope: str = "span") -> None:
        assert stages and scope in SCHEDULE_SCOPES
        self.stages, self.scope = list(stages), scope

    def stage(self, step: int) -> Stage:
        """The stage of the update from ``step`` to ``step + 1``; past the end, the last one."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    def learning_rate_factor(self, schedule: str, step: int, warmup_ratio: float) -> float:
        """Multiple of the base learning rate, see :func:`common.optimization.learning_rate_factor`."""
        first, end = 0, self.stages[-1].end
        if self.scope == "restart":
            stage = self.stage(step)
            first, end = stage.first, stage.end
        return learning_rate_factor(schedule, step - first, end - first, round(warmup_ratio * (end - first)))

    def describe(self, stage: Stage, levels: Sequence[str]) -> str:
        """A stage in words."""
        weights = ", ".join(f"{level} {weight:.3g}" for level, weight in zip(levels, stage.weights, strict=True))
        if len(self.stages) == 1:
            return weights
        rate = "learning rate starts anew" if self.scope == "restart" else "learning rate goes on"
        return f"stage {self.stages.index(stage) + 1} of {len(self.stages)}: {weights} ({rate})"


def stage_epochs(given: Sequence[str]) -> list[int]:
    """Epochs of each stage of ``--curriculum``: words ``EPOCHS=WEIGHT,WEIGHT,...``; ValueError if they are not."""
    epochs = [entry.partition("=")[0].strip() for entry in given]
    for entry, count in zip(given, epochs, strict=True):
        if "=" not in entry or not count.isdecimal() or int(count) == 0:
            raise ValueError(f"--curriculum takes EPOCHS=WEIGHT,WEIGHT,... a stage, for example 20=1,0,0; got {entry}")
    return [int(count) for count in epochs]


def stage_weights(given: Sequence[str], hierarchy: Hierarchy, normalize: bool = True) -> list[list[float]]:
    """Level weights of each stage of ``--curriculum``: numbers, or a preset of :func:`common.losses.level_weights`."""
    words = [[word.strip() for word in entry.partition("=")[2].split(",")] for entry in given]
    return [level_weights(entry, hierarchy, normalize, "--curriculum") for entry in words]


def make_curriculum(
    args: Any, hierarchy: Hierarchy, sampler: GlobalBatchSampler | None, normalize: bool = True
) -> Curriculum:
    """From the options: the stages of ``--curriculum``, or a single one with ``--level_weights``.

    Args:
        args: the script's options.
        hierarchy: names the levels.
        sampler: knows the steps. A curriculum is cut off, or its last stage prolonged, to end with the training.
            ``None`` to evaluate only, with the weights of the last stage.
        normalize: whether weights are scaled to sum to 1.
    """
    epochs, weights = [1], [level_weights(args.level_weights, hierarchy, normalize)]
    if args.curriculum:
        epochs = stage_epochs(args.curriculum)
        weights = stage_weights(args.curriculum, hierarchy, normalize)
    num_steps, steps_per_epoch = (sampler.num_steps, sampler.steps_per_epoch) if sampler else (sum(epochs), 1)
    ends = [total * steps_per_epoch for total in accumulate(epochs)]
    if ends[-1] != num_steps and args.curriculum:
        done = "cut off" if ends[-1] > num_steps else "prolonged in its last stage"
        logger.warning("The curriculum has %d steps, the training %d: it is %s.", ends[-1], num_steps, done)
    ends[-1] = max(ends[-1], num_steps)
    bounds = pairwise([0, *(min(end, num_steps) for end in ends)])
    return Curriculum(
        [Stage(*bound, values) for bound, values in zip(bounds, weights, strict=True) if bound[0] < bound[1]],
        args.curriculum_schedule,
    )
