"""Parameter groups; and the learning rate and the weights of the levels, as pure functions of the global step."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any

import torch

from ..model.hierarchy import Hierarchy

logger = logging.getLogger(__name__)

SCHEDULES = ("cosine", "linear", "onecycle", "constant", "plateau")


def learning_rate_factor(schedule: str, step: int, num_steps: int, num_warmup_steps: int = 0) -> float:
    """Multiple of the base learning rate for the update from ``step`` to ``step + 1``; a pure function.

    Args:
        schedule: one of :data:`SCHEDULES`. ``onecycle`` is PyTorch's OneCycleLR with cosine annealing, warm-up taking
            the place of its ``pct_start`` (30 % if there is none).
        step: optimizer steps done so far, from 0.
        num_steps: of the training.
        num_warmup_steps: the rate rises linearly over these (``onecycle``: as a cosine).
    """
    if schedule == "range_test":  # of --find_learning_rate, from a thousandth to a hundred times
        return 10 ** (5 * step / max(num_steps - 1, 1) - 3)
    if schedule == "onecycle":  # Smith & Topin 2018: from 1/25 up to 1, then down to 1/250,000
        rising = max((num_warmup_steps or 0.3 * num_steps) - 1, 1e-9)
        falling = min((step - rising) / max(num_steps - 1 - rising, 1e-9), 1.0)
        low, progress = (1 / 25, 1 - step / rising) if step <= rising else (1 / 25e4, falling)
        return low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    if step < num_warmup_steps:
        return (step + 1) / num_warmup_steps
    progress = min((step - num_warmup_steps) / max(num_steps - num_warmup_steps, 1), 1.0)
    courses = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress}
    return {**courses, "constant": 1.0, "plateau": 1.0}[schedule]  # the rest of plateau depends on evaluations


class Plateau:
    """PyTorch's ReduceLROnPlateau as a factor of the learning rate, which a checkpoint can hold.

    The rate is multiplied by ``factor`` after more than ``patience`` evaluations without a better loss.
    """

    def __init__(self, factor: float, patience: int) -> None:
        self._optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(
            self._optimizer, factor=factor, patience=patience, eps=0
        )

    @property
    def factor(self) -> float:
        """Multiple of the learning rate now."""
        return self._optimizer.param_groups[0]["lr"]

    def step(self, loss: float) -> None:
        """After an evaluation with this loss."""
        self._scheduler.step(loss)

    def state_dict(self) -> dict[str, float]:
        """What has to be remembered, as JSON."""
        return {"factor": self.factor, "best": self._scheduler.best, "bad": self._scheduler.num_bad_epochs}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """The inverse of :meth:`state_dict`."""
        self._optimizer.param_groups[0]["lr"] = state["factor"]
        self._scheduler.best, self._scheduler.num_bad_epochs = state["best"], state["bad"]


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    """Give every parameter group its base rate times ``factor``."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor


@dataclass(eq=False)
class Stage:
    """Optimizer steps ``first`` up to ``end`` (excluded) with these weights of the levels."""

    first: int
    end: int
    weights: list[float]


@dataclass
class Curriculum:
    """The stages of a training, one after the other.

    Args:
        stages: in order, without gaps, from step 0.
        scope: whether the learning rate's course ``span``s all stages, or ``restart``s with each of them. Spanning,
            levels that come last are only ever trained with what is left of the rate.
    """

    stages: list[Stage]
    scope: str = "span"

    def stage(self, step: int) -> Stage:
        """The stage of the update from ``step`` to ``step + 1``; past the end, the last one."""
        return next((stage for stage in self.stages if step < stage.end), self.stages[-1])

    def learning_rate_factor(self, schedule: str, step: int, warmup_ratio: float) -> float:
        """Multiple of the base learning rate, see :func:`learning_rate_factor`."""
        stage = self.stage(step)
        first, end = (stage.first, stage.end) if self.scope == "restart" else (0, self.stages[-1].end)
        return learning_rate_factor(schedule, step - first, end - first, round(warmup_ratio * (end - first)))

    def describe(self, stage: Stage, levels: Sequence[str]) -> str:
        """A stage in words."""
        weights = ", ".join(f"{level} {weight:.3g}" for level, weight in zip(levels, stage.weights, strict=True))
        if len(self.stages) == 1:
            return weights
        rate = "learning rate restarts" if self.scope == "restart" else "learning rate continues"
        return f"stage {self.stages.index(stage) + 1} of {len(self.stages)}: {weights} ({rate})"


def stage_epochs(given: Sequence[str]) -> list[int]:
    """Epochs of each stage of ``--curriculum``: words ``EPOCHS=WEIGHT,WEIGHT,...``; ValueError if they are not."""
    epochs = [entry.partition("=")[0].strip() for entry in given]
    for entry, count in zip(given, epochs, strict=True):
        if "=" not in entry or not count.isdecimal() or int(count) == 0:
            raise ValueError(f"--curriculum takes EPOCHS=WEIGHT,WEIGHT,... a stage, for example 20=1,0,0; got {entry}")
    return [int(count) for count in epochs]


def make_curriculum(args: Any, hierarchy: Hierarchy, sampler: Any | None, normalize: bool = True) -> Curriculum:
    """From the options: the stages of ``--curriculum``, or a single one with ``--level_weights``.

    Args:
        args: the script's options.
        hierarchy: names the levels.
        sampler: knows the steps. A curriculum is cut off, or its last stage prolonged, to end with the training.
            ``None`` to evaluate only, with the weights of the last stage.
        normalize: whether weights are scaled to sum to 1.
    """
    given = args.level_weights
    if list(given) == ["auto"]:
        given = ["equal" if args.head == "independent" else "leaf"]
    epochs, weights = [1], [level_weights(given, hierarchy, normalize)]
    if args.curriculum:
        epochs = stage_epochs(args.curriculum)
        words = [[word.strip() for word in entry.partition("=")[2].split(",")] for entry in args.curriculum]
        weights = [level_weights(entry, hierarchy, normalize, "--curriculum") for entry in words]
    num_steps, steps_per_epoch = (sampler.num_steps, sampler.steps_per_epoch) if sampler else (sum(epochs), 1)
    ends = [total * steps_per_epoch for total in accumulate(epochs)]
    if ends[-1] != num_steps and args.curriculum:
        done = "cut off" if ends[-1] > num_steps else "prolonged in its last stage"
        logger.warning("The curriculum has %d steps, the training %d: it is %s.", ends[-1], num_steps, done)
    ends[-1] = max(ends[-1], num_steps)
    bounds = pairwise([0, *(min(end, num_steps) for end in ends)])
    stages = [Stage(*bound, values) for bound, values in zip(bounds, weights, strict=True) if bound[0] < bound[1]]
    return Curriculum(stages, args.curriculum_schedule)


def level_weights(
    given: Sequence[str] | None, hierarchy: Hierarchy, normalize: bool = True, option: str = "--level_weights"
) -> list[float]:
    """Weights of the levels.

    Args:
        given: one number per level, or one word: ``leaf`` (the last level alone), ``equal``, ``leaf_heavy`` (half of
            the weight on the last level, the rest shared equally), or ``rising`` (1 on the last level, 0.2 to 0.3 on
            those above; with three levels 0.2, 0.3, 1).
        hierarchy: has the levels.
        normalize: scale them to sum to 1; otherwise they are taken literally.
        option: that messages name.

    Raises:
        ValueError: if it is neither.
    """
    levels = hierarchy.num_levels
    presets = {
        "leaf": [0.0] * (levels - 1) + [1.0],
        "equal": [1.0 / levels] * levels,
        "leaf_heavy": [0.5 / max(levels - 1, 1)] * (levels - 1) + [0.5],
        "rising": [*torch.linspace(0.2, 0.3, levels - 1, dtype=torch.float64).tolist(), 1.0],
    }
    given = list(given or ["leaf"])
    try:
        weights = presets[given[0]] if given[0] in presets and len(given) == 1 else [float(entry) for entry in given]
    except ValueError:
        raise ValueError(f"{option} takes numbers or one of {', '.join(presets)}; got {given}.") from None
    if len(weights) != levels:
        raise ValueError(f"{option} has {len(weights)} numbers for {levels} levels ({', '.join(hierarchy.levels)}).")
    if min(weights) < 0 or not 0 < sum(weights) < float("inf"):
        raise ValueError(f"{option} must be at least 0, finite and not all 0; got {weights}.")
    return [weight / sum(weights) for weight in weights] if normalize else weights
