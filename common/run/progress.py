"""What a run shows: a bar or lines, and a banner."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any

from tqdm.auto import tqdm

logger = logging.getLogger(__name__)


class Progress:
    """A bar for people, lines for files: steps done, loss and images per second, on the main process only.

    Args:
        num_steps: of the training.
        global_batch_size: images per step.
        show: whether this process shows anything.
    """

    def __init__(self, num_steps: int, global_batch_size: int, show: bool) -> None:
        self.num_steps, self.global_batch_size, self.show = num_steps, global_batch_size, show
        self.start(0)
        live = show and num_steps > 0 and sys.stderr.isatty()
        self.bar = tqdm(total=num_steps, unit="step", dynamic_ncols=True, disable=not live)

    def start(self, step: int) -> None:
        """Count from here, at the beginning or where a run resumes."""
        self.first_step, self.started = step, time.perf_counter()
        if step:
            self.bar.update(step)

    def update(self) -> None:
        """One more step is done."""
        self.bar.update()

    def log(self, step: int, loss: float, learning_rate: float) -> float:
        """Show a loss; returns images per second since the start, pauses for evaluation included."""
        speed = (step - self.first_step) * self.global_batch_size / (time.perf_counter() - self.started)
        if not self.bar.disable:
            self.bar.set_postfix_str(f"loss {loss:.4f}, {speed:.0f} images/s")
        elif self.show:
            logger.info(
                "step %d/%d  loss %.4f  lr %.2e  %.0f images/s", step, self.num_steps, loss, learning_rate, speed
            )
        return speed

    def write(self, text: str) -> None:
        """Print lines without breaking the bar."""
        if self.show:
            for line in text.splitlines():
                if self.bar.disable:
                    logger.info("%s", line)
                else:
                    self.bar.write(line, file=sys.stderr)

    def close(self) -> None:
        """Leave the bar as it stands."""
        self.bar.close()


def banner(title: str, facts: Mapping[str, Any]) -> str:
    """A run's facts, one a line."""
    width = max(map(len, facts))
    return "\n".join([f"***** {title} *****", *(f"  {name:<{width}}  {value}" for name, value in facts.items())])


def too_short(
    history: Iterable[Mapping[str, Any]], results: Mapping[str, Any], epochs: int, learning_rate: float
) -> str | None:
    """A sentence if a classifier could have learned more: its loss was falling and it is less sure than it is right.

    Args:
        history: the lines of history.jsonl.
        results: ``eval`` of all_results.json.
        epochs, learning_rate: of the training.
    """
    losses = [line["train/loss"] for line in history if "train/loss" in line]
    leaf = list(results["levels"].values())[-1]
    if len(losses) < 2 or not {"accuracy", "mean_confidence"} <= set(leaf):
        return None
    middle, end, confidence = losses[(len(losses) - 1) // 2], losses[-1], leaf["mean_confidence"]
    if not (end < 0.97 * middle and confidence < min(0.5, leaf["accuracy"] - 0.1)):
        return None
    return (
        f"The loss was still falling (from {middle:.3g} to {end:.3g} in the second half), and the model is "
        f"{100 * confidence:.0f} % sure where {100 * leaf['accuracy']:.0f} % are right: train longer, for example "
        f"--num_train_epochs {3 * epochs}, or at a higher rate, --learning_rate {3 * learning_rate:g}; "
        "--find_learning_rate draws which ones work."
    )
