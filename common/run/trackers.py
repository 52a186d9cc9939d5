"""TensorBoard, Weights & Biases and Trackio through Accelerate: the same names for the same things in all of them.

``train/loss``, ``train/learning_rate``, ``train/images_per_second``, ``eval/loss``, ``eval/LEVEL/MEASURE``,
``eval/path/MEASURE``, ``eval/argmax/MEASURE``, and at the end pictures as ``examples/...``.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from PIL import Image

from ..options.shared import CommonArguments
from ..system.files import write_json

logger = logging.getLogger(__name__)

PROJECT = "label-tree"

RUN_FILE = "tracker_run.json"
"""Beside the checkpoints' folder: under which name trackers know the run, so that a resumed run continues there"""


def start_trackers(accelerator: Accelerator, args: CommonArguments, step: int) -> None:
    """Begin a run in every tracker of ``--report_to``, or continue it.

    Args:
        accelerator: made with these trackers.
        args: the options; trackers store them.
        step: the optimizer step that training resumes from, 0 at the beginning.

    Raises:
        ValueError: if a tracker cannot start, for example because nobody is logged in.
    """
    if args.report_to == "none":
        return
    folder = Path(args.output_dir)
    name = folder.resolve().name
    run = _run_id(folder, step) if accelerator.is_main_process else ""
    options = {
        "tensorboard": {"purge_step": step + 1} if step else {},  # what came after the checkpoint happens again
        "wandb": {"id": run, "resume": "allow", "name": name, "dir": str(folder)},
        "trackio": {"name": f"{name}-{run}", "resume": "allow"},
    }
    plain = bool | int | float | str
    config = {key: value if isinstance(value, plain) else str(value) for key, value in asdict(args).items()}
    try:
        accelerator.init_trackers(PROJECT, config=config, init_kwargs=options)
    except Exception as error:  # each tracker has errors of its own
        raise ValueError(f"--report_to {args.report_to}: {type(error).__name__}: {error}") from error


def _run_id(folder: Path, step: int) -> str:
    """The run's name in the trackers: that of the resumed run, or a new one."""
    file = folder / RUN_FILE
    if step and file.is_file():
        return json.loads(file.read_text(encoding="utf-8"))["run"]
    run = uuid.uuid4().hex[:10]
    write_json(file, {"run": run})
    return run


def tracked(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of history.jsonl by the names that trackers group by: ``eval/levels.L.ece`` is ``eval/L/ece``."""
    return {name.replace("eval/levels.", "eval/").replace(".", "/"): value for name, value in entry.items()}


def log_pictures(accelerator: Accelerator, folder: Path, step: int) -> None:
    """Show the pictures of examples in the trackers that can; a failure is logged, because the results are complete.

    Args:
        accelerator: with trackers that have started; on the main process.
        folder: the plots.
        step: of the training.
    """
    files = sorted(file for kind in ("examples", "worst") for file in folder.glob(f"{kind}*.*g"))
    for tracker in accelerator.trackers:
        try:
            for file in files:
                name, picture = f"examples/{file.stem}", Image.open(file).convert("RGB")
                if tracker.name == "tensorboard":
                    tracker.log_images({name: np.asarray(picture)[None]}, step=step, dataformats="NHWC")
                elif tracker.name == "wandb":
                    tracker.log_images({name: [picture]}, step=step)
                elif tracker.name == "trackio":
                    import trackio  # not a requirement

                    tracker.log({name: trackio.Image(str(file))}, step=step)
        except Exception as error:  # each tracker has errors of its own
            logger.warning("%s did not take the pictures (%s: %s).", tracker.name, type(error).__name__, error)
