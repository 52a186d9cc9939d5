"""What makes a run that run: the facts that must be the same when it continues, and those that its banner shows."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from ..checkpoint.run_checkpoints import identity_to_resume
from ..data.parts import Data
from ..data.sampling import GlobalBatchSampler
from ..model.modeling import LabelTreeModel
from ..optim.schedule import Curriculum
from ..options.shared import CommonArguments
from ..report.summary import shareable
from .processes import on_main_process
from .range_test import as_range_test

# Options that do not change the course of a run; with any other it would no longer be that of one run.
# fmt: off
MAY_CHANGE = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "output_dir", "report_to",
    "checkpointing_steps", "checkpointing_seconds", "keep_last", "resume_from_checkpoint", "max_train_minutes",
    "max_skipped_steps", "cache_decoded", "image_root", "dataset_name", "train_file", "validation_file", "hierarchy",
    "backbone_weights", "no_pretrained", "compile", "save_predictions", "early_stopping_patience", "on_bad_sample",
    "trust_remote_code", "watch", "no_report", "push_to_hub", "hub_model_id", "export",
    "hub_private", "hub_strategy", "license", "test_split", "test_file", "image_suffix",
    "gradient_checkpointing", "cache_features", "explain",
}
# fmt: on


# Options that older code did not have or that were numbers then, and what it did.
BEGUN_WITH = {
    "head_scale": 1.0,
    "head_lr_scale": 1.0,
    "resize_mode": "center",
    "crop_pct": 1.0,
    "image_mean": None,
    "image_std": None,
}


def as_begun(args: CommonArguments, accelerator: Accelerator) -> None:
    """Set options without a fixed default that were not given as the run began with that is to continue.

    So runs that older code began go on as they were.
    """
    if args.eval_only:
        return
    if args.find_learning_rate:
        as_range_test(args)
        return

    def look() -> dict[str, Any] | None:
        begun = identity_to_resume(args.output_dir, args.resume_from_checkpoint)
        config = Path(args.output_dir) / "config.json"  # of the best model so far
        if begun is not None and "image_mean" not in begun and config.is_file():
            spec = json.loads(config.read_text(encoding="utf-8"))["backbone"]
            begun |= {"image_mean": spec["mean"], "image_std": spec["std"]}
        return begun

    begun = on_main_process(accelerator, look, share=True)
    for name, before in BEGUN_WITH.items():
        if begun is not None and getattr(args, name, "") is None:
            setattr(args, name, begun.get(name, before))


def run_identity(args: CommonArguments, data: Data, sampler: GlobalBatchSampler) -> dict[str, Any]:
    """What must be the same when a run continues, by name."""
    return {
        **{name: value for name, value in asdict(args).items() if name not in MAY_CHANGE},
        "global_batch_size": sampler.global_batch_size,
        "training images": len(data.train.rows),
        "validation images": len(data.validation.rows),
        "label tree": data.hierarchy.to_dict(),
    }


def run_facts(
    args: CommonArguments,
    accelerator: Accelerator,
    model: LabelTreeModel,
    curriculum: Curriculum,
    sampler: GlobalBatchSampler | None,
    data: Data,
    **more: str,
) -> dict[str, str]:
    """What is trained, on what, for how long, by title; nothing in it names folders of this machine.

    ``more`` are a script's own lines about training.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    parts = {"training": data.train if sampler is not None else None, "validation": data.validation, "test": data.test}
    images = [f"{len(part.rows):,} for {name}" for name, part in parts.items() if part is not None]
    levels = model.hierarchy.levels
    facts = {
        "model": f"{shareable(args.model_name_or_path)}, {parameters / 1e6:.1f} M parameters, "
        f"{model.config.head} head",
        "image size": f"{model.config.backbone['image_size']} px",
        "label tree": str(model.hierarchy)[len("Hierarchy(") : -1],
        "level weights": ", then ".join(curriculum.describe(stage, levels) for stage in curriculum.stages),
        "images": ", ".join(images),
    }
    if sampler is not None:
        facts |= more
        facts["global batch"] = (
            f"{sampler.global_batch_size} = {sampler.micro_batch_size} per device x "
            f"{sampler.num_processes} processes x {sampler.accumulation_steps} accumulated"
        )
        facts["steps"] = f"{sampler.num_steps:,} = {sampler.num_steps / sampler.steps_per_epoch:.4g} epochs"
    facts["device"] = f"{accelerator.device}, mixed precision {accelerator.mixed_precision}"
    return facts
