"""What a segmentation run leaves to look at: predicted masks, examples, and plots of the results."""

from __future__ import annotations

import json
import math
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

from ..images.mask_files import IGNORED_PIXEL
from ..images.mask_transforms import nearest
from ..model.hierarchy import Hierarchy
from .plots import Example, draw_class_bars, draw_examples, file_name, leaf_colours

DATA_FILE = "plots.npz"
"""Beside the model: what the plots are drawn from"""

AT_ONCE = 16
"""Images that are looked at together"""

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
    """Remembers what was predicted for some images: a few that together show many classes, and the worst ones.

    Args:
        rows: the evaluation's rows.
        pixels: int64 (rows looked at, leaves) counts of the first of them.
        num_examples: how many to keep for their classes.
        num_worst: how many to keep of those in which the least was found; see :func:`found_share`.
    """

    def __init__(self, rows: np.ndarray, pixels: np.ndarray, num_examples: int = 8, num_worst: int = 4) -> None:
        self.order = choose_examples(rows[: len(pixels)], pixels, num_examples)
        self.num_worst = num_worst
        self.kept: dict[int, Example] = {}
        self.worst: list[tuple[float, int, Example]] = []
        self.waiting: list[tuple[int, torch.Tensor, Sequence[int], torch.Tensor, torch.Tensor]] = []

    def add(
        self, row: int, pixels: torch.Tensor, resized: Sequence[int], truth: torch.Tensor, leaf: torch.Tensor
    ) -> None:
        """Keep the image if it is one of the chosen, or among the worst so far.

        Args:
            row: its number.
            pixels: uint8 (3, h, w) as the model was shown it, padded at the right and at the bottom.
            resized: height and width of the part that is image.
            truth, leaf: (height, width) labels at the image's own size.
        """
        scale = min(1.0, LONGEST_SIDE / max(truth.shape))
        size = [max(1, round(side * scale)) for side in truth.shape]
        masks = [nearest(mask.to(torch.uint8), size) for mask in (truth, leaf)]
        self.waiting.append((row, pixels, resized, *masks))
        if len(self.waiting) >= AT_ONCE:
            self.look()

    def look(self) -> None:
        """Take the masks from the device, of several images at once because each time waits for it."""
        for row, pixels, resized, *masks in self.waiting:
            truth, leaf = (mask.cpu().numpy() for mask in masks)
            share = found_share(truth, leaf)
            is_bad = len(self.worst) < self.num_worst or (share, row) < self.worst[-1][:2]
            if row not in self.order and not is_bad:
                continue
            image = pixels[:, : resized[0], : resized[1]].permute(1, 2, 0).cpu().numpy()
            image = np.asarray(Image.fromarray(image).resize(truth.shape[::-1], Image.Resampling.BILINEAR))
            if row in self.order:
                self.kept[row] = Example(image, truth, leaf, name=f"row {row}")
            if is_bad and not np.isnan(share):
                self.worst.append((share, row, Example(image, truth, leaf, name=f"row {row}: {share:.0%} found")))
                self.worst = sorted(self.worst, key=lambda entry: entry[:2])[: self.num_worst]
        self.waiting = []

    def gather(self, accelerator: Accelerator) -> dict[str, list[Example]]:
        """Those of all processes: ``examples`` in the order of choice, and ``worst`` from the worst on."""
        self.look()
        mine = (self.kept, self.worst)
        everyone = gather_object([mine]) if accelerator.num_processes > 1 else [mine]
        found = {row: example for kept, _ in everyone for row, example in kept.items()}
        worst = sorted((entry for _, part in everyone for entry in part), key=lambda entry: entry[:2])
        return {
            "examples": [found[row] for row in self.order if row in found],
            "worst": [example for _, _, example in worst[: self.num_worst]],
        }


def found_share(truth: np.ndarray, leaf: np.ndarray) -> float:
    """Mean over the leaves of an image of the share of their pixels that were found; nan if nothing is labelled.

    Args:
        truth, leaf: uint8 (h, w); where the truth is 255, it is ignored.
    """
    labelled = truth != IGNORED_PIXEL
    pixels = np.bincount(truth[labelled])
    right = np.bincount(truth[labelled & (truth == leaf)], minlength=len(pixels))
    return float((right[pixels > 0] / pixels[pixels > 0]).mean()) if labelled.any() else math.nan


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


def keep_for_plots(folder: Path, results: Mapping[str, Any], examples: Mapping[str, Sequence[Example]]) -> None:
    """Write what :func:`draw_plots` needs into one file, because drawing takes longer than an evaluation should."""
    arrays: dict[str, np.ndarray] = {"levels": np.array(json.dumps(results["levels"]))}
    for kind, chosen in examples.items():
        for index, example in enumerate(chosen):
            arrays |= {f"{kind}_{key}_{index:02d}": np.asarray(value) for key, value in vars(example).items()}
    temporary = folder / f".{DATA_FILE}.tmp"
    with temporary.open("wb") as file:
        np.savez_compressed(file, **arrays)
    os.replace(temporary, folder / DATA_FILE)


def draw_plots(source: Path, folder: Path, hierarchy: Hierarchy) -> None:
    """Examples and worst images at every level, and IoU of every class, of the last :func:`keep_for_plots`.

    Args:
        source: the folder with its file.
        folder: where the PNG files go.
        hierarchy: the label tree.
    """
    with np.load(source / DATA_FILE) as data:
        arrays = {name: data[name] for name in data.files}
    for kind in ("examples", "worst"):
        start = f"{kind}_name_"
        numbers = sorted(name.removeprefix(start) for name in arrays if name.startswith(start))
        examples = [
            Example(
                *(arrays[f"{kind}_{key}_{number}"] for key in ("image", "truth", "prediction")),
                name=str(arrays[f"{start}{number}"]),
            )
            for number in numbers
        ]
        for level, name in enumerate(hierarchy.levels):
            if examples:
                draw_examples(folder / f"{kind}_{file_name(name)}.png", hierarchy, level, examples)
    draw_class_bars(folder / "iou.png", json.loads(str(arrays["levels"])))
