"""What a segmentation run leaves to look at: predicted masks, examples, and plots of the results."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from PIL import Image

from .hierarchy import Hierarchy
from .mask_transforms import nearest
from .plots import Example, draw_class_bars, draw_confusion, draw_examples, leaf_colours
from .segmentation_metrics import SegmentationMetrics

DATA_FILE = "plots.npz"
"""Beside the model: what the plots are drawn from"""

PLOTS = "plots"

SHOWN = ("image", "truth", "prediction", "name")

LONGEST_SIDE = 384
"""Of example pictures, in pixels"""


class PredictionFolder:
    """Predicted masks as PNG files with a palette, named by row; those of a finished evaluation replace older ones.

    Args:
        folder: where they go.
        hierarchy: names and colours of the leaves; a pixel's value is its leaf.
        wanted: otherwise nothing happens.
    """

    def __init__(self, folder: Path, hierarchy: Hierarchy, wanted: bool) -> None:
        self.folder, self.wanted = folder, wanted
        self.staging = folder.with_name(f".{folder.name}.tmp")
        self.palette = leaf_colours(hierarchy).flatten().tolist()

    def start(self, accelerator: Accelerator) -> None:
        """Make room; every process calls it."""
        if self.wanted:
            if accelerator.is_main_process:
                shutil.rmtree(self.staging, ignore_errors=True)
                self.staging.mkdir(parents=True)
            accelerator.wait_for_everyone()

    def add(self, row: int, leaf: torch.Tensor) -> None:
        """Write the mask (height, width) of a row."""
        if self.wanted:
            save_mask(self.staging / f"{row:06d}.png", leaf, self.palette)

    def keep(self, accelerator: Accelerator) -> None:
        """Let these masks be the ones; every process calls it."""
        if self.wanted:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(self.staging, self.folder)
            accelerator.wait_for_everyone()


def save_mask(path: Path, leaf: torch.Tensor, palette: Sequence[int]) -> None:
    """Write leaves (height, width), up to 255, as an indexed PNG; ``palette`` is their red, green, blue, red, ..."""
    mask = Image.fromarray(leaf.to(torch.uint8).cpu().numpy())
    mask.putpalette(palette)
    mask.save(path, "PNG")


class ExampleKeeper:
    """Remembers what was predicted for a few images that together show as many classes as possible.

    Args:
        rows: the evaluation's rows.
        pixels: int64 (rows looked at, leaves) counts of the first of them.
        num_examples: how many to keep.
    """

    def __init__(self, rows: np.ndarray, pixels: np.ndarray, num_examples: int = 8) -> None:
        self.order = choose_examples(rows[: len(pixels)], pixels, num_examples)
        self.kept: dict[int, Example] = {}

    def add(
        self, row: int, pixels: torch.Tensor, resized: Sequence[int], truth: torch.Tensor, leaf: torch.Tensor
    ) -> None:
        """Keep the image if it is one of the chosen.

        Args:
            row: its number.
            pixels: uint8 (3, h, w) as the model was shown it, padded at the right and at the bottom.
            resized: height and width of the part that is image.
            truth, leaf: (height, width) labels at the image's own size.
        """
        if row not in self.order:
            return
        scale = min(1.0, LONGEST_SIDE / max(truth.shape))
        size = [max(1, round(side * scale)) for side in truth.shape]
        image = pixels[:, : resized[0], : resized[1]].permute(1, 2, 0).cpu().numpy()
        image = np.asarray(Image.fromarray(image).resize(size[::-1], Image.Resampling.BILINEAR))
        labels = [nearest(mask.to("cpu", torch.uint8), size).numpy() for mask in (truth, leaf)]
        self.kept[row] = Example(image, *labels, name=f"row {row}")

    def gather(self, accelerator: Accelerator) -> list[Example]:
        """Those of all processes, in the order of choice."""
        everyone = gather_object([self.kept]) if accelerator.num_processes > 1 else [self.kept]
        found = {row: example for part in everyone for row, example in part.items()}
        return [found[row] for row in self.order if row in found]


def choose_examples(rows: np.ndarray, pixels: np.ndarray, num_examples: int) -> list[int]:
    """Row numbers: each time the image with the most classes that the chosen ones lack, then the rarest pixels."""
    present = pixels > 0
    rarity = (pixels / np.maximum(pixels.sum(0), 1)).sum(1)
    covered = np.zeros(pixels.shape[1], dtype=bool)
    left = list(range(len(rows)))
    chosen: list[int] = []
    while left and len(chosen) < num_examples:
        best = max(left, key=lambda index: ((present[index] & ~covered).sum(), rarity[index]))
        left.remove(best)
        chosen.append(int(rows[best]))
        covered |= present[best]
    return chosen


def keep_for_plots(
    folder: Path,
    hierarchy: Hierarchy,
    metrics: SegmentationMetrics,
    results: Mapping[str, Any],
    examples: Sequence[Example],
) -> None:
    """Write what :func:`draw_plots` needs into one file, because drawing takes longer than an evaluation should."""
    arrays: dict[str, np.ndarray] = {"levels": np.array(json.dumps(results["levels"]))}
    for level, name in enumerate(hierarchy.levels):
        arrays[f"confusion_{name}"] = metrics.confusion(level)
    for index, example in enumerate(examples):
        arrays |= {f"{key}_{index:02d}": np.asarray(value) for key, value in vars(example).items() if key in SHOWN}
    temporary = folder / f".{DATA_FILE}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, folder / DATA_FILE)


def draw_plots(folder: Path, hierarchy: Hierarchy) -> None:
    """Examples and confusion matrix of every level, and IoU of every class, of the last :func:`keep_for_plots`."""
    data = np.load(folder / DATA_FILE)
    folder = folder / PLOTS
    folder.mkdir(parents=True, exist_ok=True)
    numbers = sorted(name.removeprefix("name_") for name in data.files if name.startswith("name_"))
    examples = [
        Example(*(data[f"{key}_{number}"] for key in SHOWN[:3]), name=str(data[f"name_{number}"]))
        for number in numbers
    ]
    for level, name in enumerate(hierarchy.levels):
        draw_examples(folder / f"examples_{name}.png", hierarchy, level, examples)
        draw_confusion(
            folder / f"confusion_{name}.png", hierarchy.display_names(level), data[f"confusion_{name}"], name
        )
    draw_class_bars(folder / "iou.png", json.loads(str(data["levels"])))
