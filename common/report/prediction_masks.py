"""The folder predictions/ of a segmentation model: what ``--save_predictions`` keeps."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from accelerate import Accelerator
from PIL import Image

from ..model.hierarchy import Hierarchy
from .colours import leaf_colours


class PredictionFolder:
    """Predicted masks as PNG files with a palette, named by row; those of a finished evaluation replace older ones.

    A pixel's value is its leaf of ``hierarchy``. Unless the folder is ``wanted``, nothing happens.
    """

    def __init__(self, folder: Path, hierarchy: Hierarchy, wanted: bool) -> None:
        self.folder, self.wanted = folder, wanted
        self.staging = folder.with_name(f".{folder.name}.tmp")
        self.palette = leaf_colours(hierarchy).flatten().tolist()

    def start(self, accelerator: Accelerator) -> None:
        """Begin an evaluation with an empty folder beside the final one; a collective."""
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
        """Let this evaluation's masks replace those in the final folder; a collective."""
        if self.wanted:
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                shutil.rmtree(self.folder, ignore_errors=True)
                os.replace(self.staging, self.folder)
            accelerator.wait_for_everyone()


def save_mask(file: Path | BinaryIO, leaf: torch.Tensor, palette: Sequence[int]) -> None:
    """Write leaves (height, width), up to 255, as an indexed PNG; ``palette`` is their red, green, blue, red, ..."""
    mask = Image.fromarray(leaf.to(torch.uint8).cpu().numpy())
    mask.putpalette(palette)
    mask.save(file, "PNG")
