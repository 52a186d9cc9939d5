"""Saving models with what prepares images for them, and loading them again."""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers  # its names are imported when they are used
from accelerate import Accelerator
from accelerate.utils import broadcast

from ..model.encoders import first_line
from ..model.modeling import (
    LabelTreeConfig,
    LabelTreeForImageClassification,
    LabelTreeForSemanticSegmentation,
    LabelTreeModel,
)
from ..optim.tuning import merged
from ..system.files import naming, retried

MODEL_FILES = (
    *("config.json", "preprocessor_config.json", "*.safetensors", "*.safetensors.index.json"),
    *("*.onnx", "*.onnx.data"),
)
"""What belongs to one model, and goes with it when another takes its place"""


@retried
def save_model(
    model: transformers.PreTrainedModel, processor: transformers.ImageProcessingMixin, output_dir: str | Path
) -> None:
    """Write model.safetensors, config.json, preprocessor_config.json and the code they need, each file atomically.

    What an earlier model left of :data:`MODEL_FILES` is removed before it is out of date.

    Args:
        model: on any device; its config holds the label tree.
        processor: prepares images as evaluation does.
        output_dir: the folder.
    """
    folder = Path(output_dir)
    staging = folder / ".model.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    with naming(folder / "model.safetensors"):
        merged(model).save_pretrained(staging)
        processor.save_pretrained(staging)
    mode = (staging / "config.json").stat().st_mode  # safetensors writes files that only the owner may read
    files = sorted(staging.iterdir())
    older = {file for pattern in MODEL_FILES for file in folder.glob(pattern)} - {folder / file.name for file in files}
    for file in older:
        file.unlink()
    for file in files:
        file.chmod(mode)
        os.replace(file, folder / file.name)
    staging.rmdir()


def image_processor(spec: Mapping[str, Any], resize_mode: str, crop_pct: float) -> transformers.BitImageProcessor:
    """The Transformers image processor that prepares images as evaluation does."""
    size, resized = spec["image_size"], math.floor(spec["image_size"] / crop_pct)
    resample = {"nearest": 0, "lanczos": 1, "bilinear": 2, "bicubic": 3}.get(spec["interpolation"], 3)
    return transformers.BitImageProcessor(
        size={"shortest_edge": resized} if resize_mode == "center" else {"height": resized, "width": resized},
        crop_size={"height": size, "width": size},
        image_mean=spec["mean"],
        image_std=spec["std"],
        resample=resample,
    )


def load_saved_model(name: str) -> LabelTreeModel:
    """A model that one of the scripts wrote, in evaluation mode, from a folder or the Hub.

    Raises:
        ValueError: there is none.
    """
    kinds = {kind.__name__: kind for kind in (LabelTreeForImageClassification, LabelTreeForSemanticSegmentation)}
    try:
        content, _ = LabelTreeConfig.get_config_dict(name)
        kind = kinds.get((content.get("architectures") or [None])[0])
        if content.get("model_type") != LabelTreeConfig.model_type or kind is None:
            raise ValueError(f"{name} holds no model that train_taxonomy.py or train_segmentation.py wrote.")
        return kind.from_pretrained(name, dtype=torch.float32)
    except OSError as error:
        raise ValueError(f"Cannot load the model {name}: {first_line(error)}.") from error


def load_weights(model: LabelTreeModel, folder: str | Path, accelerator: Accelerator) -> None:
    """Put the weights of a saved model into a model of the same kind; only the main process needs to see the folder.

    A collective: every process calls it.
    """
    if accelerator.is_main_process:
        saved = type(model).from_pretrained(folder, dtype=torch.float32).state_dict()
        model.load_state_dict(saved, strict=getattr(model, "auxiliary", None) is None)
    if accelerator.num_processes > 1:
        with torch.no_grad():
            for value in model.state_dict().values():
                value.copy_(broadcast(value.clone()))
