"""A learning rate by trying them: Smith's range test (Cyclical learning rates, WACV 2017).

``--find_learning_rate`` makes a training of some hundred steps in a folder of its own, whose rate rises from a
thousandth of ``--learning_rate`` to a hundred times that, and draws the loss over the rate.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

from ..options.shared import CommonArguments
from ..report.figures import draw_learning_rates
from ..system.files import read_history, write_json

NUM_STEPS = 100

logger = logging.getLogger(__name__)


def as_range_test(args: CommonArguments) -> None:
    """Turn the options of a training into those of its range test."""
    args.output_dir = str(Path(args.output_dir) / "learning_rate")
    args.max_train_steps = args.max_train_steps or NUM_STEPS
    args.lr_scheduler_type, args.warmup_ratio, args.curriculum = "range_test", 0.0, None
    args.logging_steps, args.checkpointing_steps = 1, str(10**9)
    args.checkpointing_seconds = args.max_skipped_steps = 10**9
    args.resume_from_checkpoint, args.push_to_hub = "none", False
    args.test_split = args.test_file = None


def finish_range_test(output_dir: str | Path, num_shown: int = 16) -> list[dict[str, float]]:
    """Draw the curve of a finished test, and print and return ``num_shown`` rows of it; on the main process."""
    folder = Path(output_dir)
    steps = [line for line in read_history(folder / "history.jsonl") if "train/loss" in line]
    rates = [line["train/learning_rate"] for line in steps]
    losses = smoothed([line["train/loss"] for line in steps])
    draw_learning_rates(folder / "learning_rate.png", rates, losses)
    every = math.ceil(len(rates) / num_shown)
    rows = [{"learning_rate": rate, "loss": loss} for rate, loss in zip(rates, losses, strict=True)][::every]
    write_json(folder / "learning_rate.json", rows)
    text = [f"{row['learning_rate']:>14.1e}  {row['loss']:.4f}" for row in rows]
    best = rates[losses.index(min(losses, key=lambda loss: math.inf if math.isnan(loss) else loss))]
    logger.warning("%s\n%s", " learning rate    loss (smoothed)", "\n".join(text))
    logger.warning(
        "The loss is lowest at %.1e; try a tenth to a third of that: --learning_rate %.0e to %.0e. See %s.",
        best, best / 10, best / 3, folder / "learning_rate.png",
    )  # fmt: skip
    return rows


def smoothed(values: Sequence[float], beta: float = 0.9) -> list[float]:
    """Exponential mean without its bias towards zero; NaN from the first NaN or infinite value on."""
    mean, found = 0.0, []
    for step, value in enumerate(values, 1):
        mean = beta * mean + (1 - beta) * (value if math.isfinite(value) else math.nan)
        found.append(mean / (1 - beta**step))
    return found
