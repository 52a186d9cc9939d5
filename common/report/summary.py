"""A run in plain data, for its report and model card, in which nothing names folders of this machine."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..model.hierarchy import Hierarchy

logger = logging.getLogger(__name__)


@dataclass
class RunSummary:
    """What report and model card say about a run, and where the files are that they show.

    Attributes:
        output_dir: the run's folder, with history.jsonl, report_data.npz and so on.
        options: the resolved options by name.
        hierarchy: the label tree.
        unit: what is counted, ``images`` or ``pixels``.
        measures: of each level, whose course the report shows, the most important first.
        facts: model, image size, label tree and so on, by title.
        results: what all_results.json holds, ``{"train": {...} or None, "eval": {...}}``.
        skipped: descriptions of broken images.
        train_counts: int64 (classes of the last level,) training images, if they are known.
    """

    output_dir: Path
    options: dict[str, Any]
    hierarchy: Hierarchy
    unit: str
    measures: tuple[str, ...]
    facts: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)
    train_counts: np.ndarray | None = None


@contextmanager
def as_warning(what: str) -> Iterator[None]:
    """Inside, whatever fails is a warning that says ``what`` was not done: hours of training must not end in it."""
    try:
        yield
    except Exception as error:
        logger.warning("%s (%s: %s); the model and its results are intact.", what, type(error).__name__, error)
        logger.debug("stack trace of the above", exc_info=True)


def data_name(options: Mapping[str, Any]) -> str:
    """The data set of a run: its name, or those of its files."""
    if options["train_file"] or options["validation_file"]:
        return ", ".join(Path(file).name for file in (options["train_file"], options["validation_file"]) if file)
    name, config = options["dataset_name"], options["dataset_config_name"]
    name = Path(name).resolve().name if Path(name).exists() else name
    return f"{name} ({config})" if config else name


def shareable(value: Any) -> Any:
    """An option's value without the folders that a path in it names."""
    if isinstance(value, list):
        return [shareable(entry) for entry in value]
    return f".../{Path(value).name}" if isinstance(value, str) and os.path.isabs(value) else value


def shareable_line(line: str) -> str:
    """A description of a broken image without the folders of its file."""
    return re.sub(r"(?<=\bfile )/(?:[^/]*/)*", ".../", line)
