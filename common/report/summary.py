"""A run in a few lines, for its banner, report and model card; in them nothing names folders of this machine."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..model.hierarchy import Hierarchy
from ..run.options import CommonArguments

if TYPE_CHECKING:
    from ..run.training import Trainer


def run_facts(trainer: Trainer) -> dict[str, str]:
    """What is trained, on what, for how long, by title."""
    args, data, sampler = trainer.args, trainer.data, trainer.sampler
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    images = [f"{len(data.train_rows):,} for training"] * (sampler is not None)
    images.append(f"{len(data.eval_rows):,} for validation")
    facts = {
        "model": f"{shareable(args.model_name_or_path)}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.model.config.head} head",
        "image size": f"{trainer.spec['image_size']} px",
        "label tree": str(data.hierarchy)[len("Hierarchy(") : -1],
        "level weights": ", then ".join(
            trainer.curriculum.describe(stage, data.hierarchy.levels) for stage in trainer.curriculum.stages
        ),
        "images": ", ".join(images),
    }
    if sampler is not None:
        facts |= trainer.facts()
        facts["global batch"] = (
            f"{sampler.global_batch_size} = {sampler.micro_batch_size} per device x "
            f"{sampler.num_processes} processes x {sampler.accumulation_steps} accumulated"
        )
        facts["steps"] = f"{sampler.num_steps:,} = {sampler.num_steps / sampler.steps_per_epoch:.4g} epochs"
    facts["device"] = f"{trainer.accelerator.device}, mixed precision {trainer.accelerator.mixed_precision}"
    return facts


@dataclass
class RunSummary:
    """Plain data about a run; what report and card are made from."""

    output_dir: Path
    options: dict[str, Any]
    hierarchy: Hierarchy
    unit: str
    measures: tuple[str, ...]
    facts: dict[str, str]
    results: dict[str, Any] = field(default_factory=dict)
    skipped: list[str] = field(default_factory=list)


def data_name(args: CommonArguments) -> str:
    """What the run used."""
    if args.validation_file:
        return ", ".join(Path(file).name for file in (args.train_file, args.validation_file) if file)
    local = Path(args.dataset_name).exists()
    name = Path(args.dataset_name).resolve().name if local else args.dataset_name
    return f"{name} ({args.dataset_config_name})" if args.dataset_config_name else name


def shareable(value: Any) -> Any:
    """An option's value without the folders that a path in it names."""
    if isinstance(value, list):
        return [shareable(entry) for entry in value]
    return f".../{Path(value).name}" if isinstance(value, str) and os.path.isabs(value) else value


def shareable_line(line: str) -> str:
    """A description of a broken image without the folders of its file."""
    return re.sub(r"(?<=\bfile )/(?:[^/]*/)*", ".../", line)
