"""Example images of a segmentation model: which to show, and truth, prediction and error as colours over them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
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
from ..model.tree import IGNORE
from ..system.files import atomic_write
from .colours import level_colours
from .figures import DPI, GREY, draw_class_bars, file_name, new_figure, save_figure, shortened

DATA_FILE = "plots.npz"
"""Beside the model: what the plots are drawn from"""

AT_ONCE = 16
"""Images whose masks are copied from the device together"""

LONGEST_SIDE = 384
"""Of example images, in pixels"""

PANEL = 200
"""Width of a picture in a figure, in pixels"""

RIGHT, WRONG, DIM = (0, 170, 110), (240, 40, 40), (115, 115, 115)


@dataclass
class MaskExample:
    """An image with its labels: integers, leaves of the tree. Where the truth is 255 or negative, it is ignored."""

    image: np.ndarray  # uint8 (h, w, 3)
    truth: np.ndarray  # (h, w)
    prediction: np.ndarray  # (h, w)
    name: str  # shown beside it

    @property
    def ignored(self) -> np.ndarray:
        """Pixels without a label, bool (h, w)."""
        return (self.truth < 0) | (self.truth == IGNORED_PIXEL)

    def lift(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction, int64 (h, w), looked up in a table of leaves, IGNORE where the truth is ignored."""
        leaves = (np.where(self.ignored, 0, labels.astype(int)) for labels in (self.truth, self.prediction))
        return tuple(np.where(self.ignored, IGNORE, table[column]) for column in leaves)


# ---- choosing


class ExampleKeeper:
    """Remembers what was predicted for some images: a few that together show many classes, and the worst ones.

    Args:
        rows: the evaluation's rows.
        pixels: int64 (rows looked at, leaves) counts of the first of them.
        name: of a row's image.
        num_examples: how many to keep for their classes.
        num_worst: how many to keep of those with the lowest :func:`mean_recall`.
    """

    def __init__(
        self,
        rows: np.ndarray,
        pixels: np.ndarray,
        name: Callable[[int], str],
        num_examples: int = 8,
        num_worst: int = 4,
    ) -> None:
        self.order = choose_for_classes(rows[: len(pixels)], pixels, num_examples)
        self.num_worst, self.name = num_worst, name
        self.found: list[tuple[int, float, MaskExample]] = []  # row, recall
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
        self.waiting.append((row, pixels, resized, *(nearest(mask.to(torch.uint8), size) for mask in (truth, leaf))))
        if len(self.waiting) >= AT_ONCE:
            self._look()

    def _look(self) -> None:
        """Copy masks from the device, those of several images at once because each copy waits for it."""
        for row, pixels, (height, width), *masks in self.waiting:
            truth, leaf = (mask.cpu().numpy() for mask in masks)
            recall, worst = mean_recall(truth, leaf), self._worst(self.found)
            if row in self.order or len(worst) < self.num_worst or (recall, row) < (worst[-1][1], worst[-1][0]):
                image = Image.fromarray(pixels[:, :height, :width].permute(1, 2, 0).cpu().numpy())
                image = np.asarray(image.resize(truth.shape[::-1], Image.Resampling.BILINEAR))
                self.found.append((row, recall, MaskExample(image, truth, leaf, Path(self.name(row)).name)))
                worst = self._worst(self.found)
                self.found = [entry for entry in self.found if entry[0] in self.order or entry in worst]
        self.waiting = []

    def _worst(self, found: list[tuple[int, float, MaskExample]]) -> list[tuple[int, float, MaskExample]]:
        known = [entry for entry in found if not math.isnan(entry[1])]
        return sorted(known, key=lambda entry: (entry[1], entry[0]))[: self.num_worst]

    def gather(self, accelerator: Accelerator) -> dict[str, list[MaskExample]]:
        """Those of all processes, a collective: ``examples`` in the order of choice, ``worst`` from the worst on."""
        self._look()
        found = gather_object(self.found) if accelerator.num_processes > 1 else self.found
        chosen = {row: example for row, _, example in found}
        worst = [replace(entry, name=f"{recall:.0%} of {entry.name}") for _, recall, entry in self._worst(found)]
        return {"examples": [chosen[row] for row in self.order if row in chosen], "worst": worst}


def mean_recall(truth: np.ndarray, leaf: np.ndarray) -> float:
    """Mean over the leaves of an image of the share of their pixels that was found; NaN if nothing is labelled.

    Args:
        truth, leaf: uint8 (h, w); where the truth is 255, it is ignored.
    """
    labelled = truth != IGNORED_PIXEL
    pixels = np.bincount(truth[labelled])
    right = np.bincount(truth[labelled & (truth == leaf)], minlength=len(pixels))
    return float((right[pixels > 0] / pixels[pixels > 0]).mean()) if labelled.any() else math.nan


def choose_for_classes(rows: np.ndarray, pixels: np.ndarray, num_examples: int) -> list[int]:
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


# ---- from the evaluation to the plots


def keep_for_plots(folder: Path, results: Mapping[str, Any], examples: Mapping[str, Sequence[MaskExample]]) -> None:
    """Write what :func:`draw_plots` needs into one file, because drawing takes longer than an evaluation should."""
    arrays: dict[str, np.ndarray] = {"levels": np.array(json.dumps(results["levels"]))}
    for kind, chosen in examples.items():
        for index, example in enumerate(chosen):
            arrays |= {f"{kind}_{key}_{index:02d}": np.asarray(value) for key, value in vars(example).items()}
    with atomic_write(folder / DATA_FILE, "wb") as file:
        np.savez_compressed(file, **arrays)


def draw_plots(source: Path, folder: Path, hierarchy: Hierarchy) -> None:
    """Examples and worst images at every level, and IoU of every class, of the last :func:`keep_for_plots`.

    ``source`` is the folder with its file; the PNG files go into ``folder``.
    """
    with np.load(source / DATA_FILE) as data:
        draw_class_bars(folder / "iou.png", json.loads(str(data["levels"])))
        for kind in ("examples", "worst"):
            numbers = sorted(name.rpartition("_")[2] for name in data.files if name.startswith(f"{kind}_name"))
            keys = [entry.name for entry in fields(MaskExample)]
            examples = [MaskExample(*(data[f"{kind}_{key}_{number}"] for key in keys)) for number in numbers]
            for level, name in enumerate(hierarchy.levels if examples else ()):
                draw_examples(folder / f"{kind}_{file_name(name)}.png", hierarchy, level, examples)


# ---- drawing


def draw_examples(path: str | Path, hierarchy: Hierarchy, level: int, examples: Sequence[MaskExample]) -> None:
    """Write a PNG with a row per example: image, truth, prediction and error at one level."""
    from matplotlib.patches import Patch

    colours, names = level_colours(hierarchy, level), hierarchy.display_names(level)
    lifted = [example.lift(hierarchy.ancestors[:, level].numpy()) for example in examples]
    shown = sorted({label for pair in lifted for labels in pair for label in np.unique(labels).tolist() if label >= 0})
    classes = [Patch(color=colours[label] / 255, label=shortened(names[label], 28)) for label in shown]
    kinds = {"right": RIGHT, "background": DIM, "wrong": WRONG, "ignored": (0, 0, 0)}
    errors = [Patch(color=np.array(colour) / 255, label=label) for label, colour in kinds.items()]
    columns = max(1, int(88 / (7 + max((len(patch.get_label()) for patch in classes), default=0))))
    heights = [round(PANEL * min(example.image.shape[0] / example.image.shape[1], 1.6)) for example in examples]
    size = 4 * PANEL + 60, sum(heights) + 28 * len(heights) + 64 + 21 * math.ceil(len(classes) / columns)
    figure = new_figure(*np.array(size) / DPI, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.02, h_pad=0.02, hspace=0, wspace=0)
    grid = figure.subplots(len(examples), 4, squeeze=False, height_ratios=heights)
    for axes, title in zip(grid[0], ("image", "truth", "prediction", "error"), strict=True):
        axes.set_title(title, fontsize=10)
    for row, example, (truth, prediction), height in zip(grid, examples, lifted, heights, strict=True):
        overlays = [overlay_colours(example, labels, colours) for labels in (truth, prediction)]
        panels = [example.image, *overlays, error_colours(hierarchy, level, example)]
        for axes, pixels in zip(row, panels, strict=True):
            small = np.asarray(Image.fromarray(pixels).resize((PANEL, height), Image.Resampling.HAMMING))
            # Brightness in steps of 8: hardly to be seen, and the file becomes half as large.
            axes.imshow(small // 8 * 8 + 4, interpolation="nearest", aspect="auto")
            axes.set(xticks=[], yticks=[])
            axes.spines[:].set_visible(False)
        labelled = truth >= 0
        share = f"{np.mean((truth == prediction)[labelled]):.1%} right" if labelled.any() else "nothing labelled"
        row[-1].set_xlabel(share, fontsize=7.5, color=GREY)
        row[0].set_ylabel(shortened(str(example.name), height // 7), fontsize=7.5)
    figure.legend(handles=errors, loc="outside upper right", ncols=4, fontsize=8, frameon=False)
    figure.legend(handles=classes, loc="outside lower left", ncols=columns, fontsize=8, frameon=False)
    save_figure(figure, path)


def overlay_colours(example: MaskExample, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (h, w) in ``colours`` (classes, 3) over the grey image, uint8 (h, w, 3); dim grey where negative."""
    return _paint(example, np.where(labels[..., None] < 0, DIM, colours[labels.clip(0)]))


def error_colours(hierarchy: Hierarchy, level: int, example: MaskExample) -> np.ndarray:
    """Wrong pixels red and right ones green over the grey image, uint8 (h, w, 3); ignored ones hatched.

    Dim grey are pixels whose truth has no class at this level, which are neither right nor wrong, and the right ones
    of the background: of leaves whose path skips a level, as Clean has no kind of damage.
    """
    ancestors = hierarchy.ancestors.numpy()
    truth, prediction = example.lift(ancestors[:, level])
    background, _ = example.lift((ancestors < 0).any(1))
    painted = np.where(((truth == prediction) & (background == 0))[..., None], RIGHT, DIM)
    painted[(truth >= 0) & (truth != prediction)] = WRONG
    return _paint(example, painted)


def _paint(example: MaskExample, painted: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) as bright as the image below, so that fine cracks are seen; ignored pixels hatched."""
    grey = example.image @ np.array([0.299, 0.587, 0.114])
    painted = painted * (0.55 + 0.45 / 255 * grey[..., None])
    period = max(8, max(grey.shape) // 24)
    hatch = np.where(np.add(*np.indices(grey.shape)) % period < period // 4, 48, 0)
    return np.where(example.ignored[..., None], hatch[..., None], painted).astype(np.uint8)
