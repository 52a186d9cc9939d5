"""Figures of classifiers: how far confidence can be trusted, confusion among many classes, and example images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from PIL import Image, ImageOps

from .plots import BLUE, DPI, GREY, draw_confusion, save_figure, shortened
from .tables import Pairs, density, in_tree_order

READABLE_CLASSES = 60
"""More than these have no names in a confusion matrix, which then is a density"""

CELLS = 240


def draw_level_confusion(path: str | Path, pairs: Pairs, level: int) -> None:
    """Write a PNG of a level's confusion matrix, each row in shares of its sum.

    Up to 60 classes have a row and a column with a name each; of more, neighbours in the tree share a cell.
    """
    hierarchy = pairs.hierarchy
    if hierarchy.num_classes[level] <= READABLE_CLASSES:
        order, names = in_tree_order(hierarchy, level), hierarchy.display_names(level)
        matrix = pairs.matrix(level)[order][:, [*order, len(order)]]
        draw_confusion(path, [names[label] for label in order], matrix, hierarchy.levels[level])
        return
    matrix, starts, names = density(pairs, level, CELLS)
    size = len(matrix)
    figure = Figure((6.6, 5.6), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#eeeeee")
    corners = (0, size, size, 0)
    heat = axes.imshow(
        100 * matrix, cmap="Blues", norm=PowerNorm(0.4, 0, 100), extent=corners, interpolation="nearest"
    )
    for start in starts[1:]:
        axes.axhline(start, color=GREY, linewidth=0.4)
        axes.axvline(start, color=GREY, linewidth=0.4)
    wide = {place: name for place, name in names.items() if len(names) <= 20}
    axes.set_xticks(list(wide), [shortened(name, 18) for name in wide.values()], rotation=90, fontsize=7)
    axes.set_yticks(list(wide), [shortened(name, 18) for name in wide.values()], fontsize=7)
    axes.tick_params(length=0)
    axes.set(xlabel="prediction", ylabel="truth")
    axes.set_title(f"{hierarchy.levels[level]}: {hierarchy.num_classes[level]:,} classes in tree order", fontsize=10)
    figure.colorbar(heat, ax=axes, format="%d%%", shrink=0.8).outline.set_visible(False)
    save_figure(figure, path)


def draw_reliability(path: str | Path, levels: Sequence[str], reliability: np.ndarray) -> None:
    """Write a PNG with a panel per level: accuracy against confidence, and how many images had it.

    ``reliability``: float64 (levels, 3, bins), see :class:`common.metrics.report_data.Evidence`.
    """
    columns = min(3, len(levels))
    rows = -(-len(levels) // columns)
    figure = Figure((2.7 * columns, 2.75 * rows), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat)
    for axes, level, (count, right, confidence) in zip(panels, levels, reliability, strict=False):
        width, found = 1 / len(count), count > 0
        middle = (np.arange(len(count)) + 0.5) * width
        accuracy, mean = right[found] / count[found], confidence[found] / count[found]
        axes.bar(middle, count / max(count.sum(), 1), width * 0.92, color="#d5dfea")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        axes.plot(mean, accuracy, ".-", color=BLUE, linewidth=1.2, markersize=4)
        ece = np.abs(right - confidence).sum() / max(count.sum(), 1)
        axes.set_title(f"{shortened(level, 24)}: ECE {ece:.3f}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in panels[len(levels) :]:
        axes.set_axis_off()
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy (line), share of images (bars)", fontsize=9)
    save_figure(figure, path)


@dataclass
class Picture:
    """An evaluation image with what it is and what it was taken for."""

    image: Image.Image
    row: int
    truth: str
    predicted: str
    probability: float


def draw_pictures(path: str | Path, kinds: dict[str, Sequence[Picture]], columns: int = 6) -> None:
    """Write a JPEG with a row of images for each title, truth and prediction below them."""
    kinds = {title: pictures[:columns] for title, pictures in kinds.items() if pictures}
    if not kinds:
        return
    figure = Figure((1.75 * columns, 2.35 * len(kinds)), dpi=DPI, layout="constrained")
    for axes in figure.subplots(len(kinds), columns, squeeze=False).flat:
        axes.set_axis_off()
    panels = np.array(figure.axes).reshape(len(kinds), columns)
    for row, (title, pictures) in zip(panels, kinds.items(), strict=True):
        row[0].set_title(title, fontsize=10, loc="left")
        for axes, picture in zip(row, pictures, strict=False):
            axes.imshow(ImageOps.fit(picture.image, (160, 160)))
            lines = [shortened(picture.truth, 28)]
            if picture.predicted != picture.truth:
                lines.append(f"taken for {shortened(picture.predicted, 20)}")
            text = "\n".join([*lines, f"{picture.probability:.0%}"])
            axes.text(0, -0.03, text, fontsize=6.5, va="top", transform=axes.transAxes)
    save_figure(figure, path)
