"""Figures of numbers: confusion, reliability, the IoU of every class, the course of a training.

Matplotlib without pyplot's global state; files are complete or absent.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..metrics.results import in_words
from ..system.files import atomic_write
from .confusions import ConfusionPairs, density, in_tree_order

DPI = 110
BLUE, ORANGE, GREY = "#2f6da8", "#d9622b", "#777777"

READABLE_CLASSES = 60
"""More than these have no names in a confusion matrix, which then is a density"""

CELLS = 240


def draw_confusion(path: str | Path, pairs: ConfusionPairs, level: int) -> None:
    """Write a PNG of a level's confusion matrix, each row in percent of its sum.

    Up to 60 classes have a row and a column with a name each; of more, neighbours in the tree share a cell.
    """
    hierarchy, size = pairs.hierarchy, pairs.hierarchy.num_classes[level]
    share, starts, tops = density(pairs, level, CELLS)
    if size <= READABLE_CLASSES:
        share = share[:, : size + bool((share[:, -1] > 0).any())]
        names = [hierarchy.display_names(level)[label] for label in in_tree_order(hierarchy, level)]
        columns = dict(enumerate([*(shortened(name, 32) for name in names), "no value"][: share.shape[1]]))
        rows = {row: columns[row] + (" (absent)" if np.isnan(share[row, 0]) else "") for row in range(size)}
        title, borders, gamma = hierarchy.levels[level], [size - 0.5], 0.5  # sets "no value" apart
        cell = min(max(8 / size, 0.115), 0.8 if size < 8 else 0.42)  # inches
    else:
        share = share[:, :-1]
        rows = columns = {place - 0.5: shortened(name, 18) for place, name in tops.items() if len(tops) <= 20}
        title, borders, gamma = f"{hierarchy.levels[level]}: {size:,} classes in tree order", starts[1:] - 0.5, 0.4
        cell = 4.9 / len(share)
    from matplotlib.colors import PowerNorm

    height, width = cell * np.array(share.shape)
    figure = new_figure(width, height)  # the space for the text around it is added when it is saved
    axes = figure.add_axes((0, 0, 1, 1), facecolor="#eeeeee", xlabel="prediction", ylabel="truth")
    # The root of the share shows rare confusions too.
    heat = axes.imshow(100 * share, "Blues", norm=PowerNorm(gamma, 0, 100), aspect="auto", interpolation="nearest")
    text = {"fontsize": min(9, 62 * cell) if size <= READABLE_CLASSES else 7}
    axes.set_xticks(list(columns), list(columns.values()), rotation=90, **text)
    axes.set_yticks(list(rows), list(rows.values()), **text)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    for border in borders:
        axes.axvline(border, color=GREY, linewidth=0.8 if size <= READABLE_CLASSES else 0.4)
        if size > READABLE_CLASSES:
            axes.axhline(border, color=GREY, linewidth=0.4)
    for row, column in np.argwhere(share > 0) if size <= 20 else ():
        value = 100 * share[row, column]
        shown = "<0.1" if value < 0.05 else f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
        colour = "white" if value > 30 else "black"
        axes.text(column, row, shown, color=colour, fontsize=7.5, ha="center", va="center")
    bar = figure.add_axes((1 + 0.15 / width, 0, 0.13 / width, 1))
    figure.colorbar(heat, bar, format="%d%%").outline.set_visible(False)
    bar.tick_params(labelsize=8)
    save_figure(figure, path, fit=True)


def draw_learning_rates(path: str | Path, rates: Sequence[float], losses: Sequence[float]) -> None:
    """Write a PNG of the loss over the learning rate, cut where the loss has grown out of sight."""
    figure = new_figure(5.5, 3.2, layout="constrained")
    axes = figure.subplots()
    axes.plot(rates, losses, color=BLUE, linewidth=1.4)
    finite = [loss for loss in losses if math.isfinite(loss)] or [1.0]
    low, high = min(finite), max(finite[: max(len(finite) // 3, 1)])
    margin = 0.1 * (high - low) + 1e-3
    axes.set(xscale="log", xlabel="learning rate", ylabel="loss", ylim=(low - margin, high + 3 * margin))
    axes.xaxis.set_major_formatter("{x:.0e}")  # powers in text, not in TeX
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def draw_reliability(path: str | Path, levels: Sequence[str], reliability: np.ndarray) -> None:
    """Write a PNG with a panel per level: accuracy against confidence, and how many images had it.

    ``reliability``: float64 (levels, 3, bins), see :class:`common.metrics.report_data.ReportData`.
    """
    columns = min(3, len(levels))
    rows = -(-len(levels) // columns)
    figure = new_figure(2.7 * columns, 2.75 * rows, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, level, (count, right, confidence) in zip(panels, levels, reliability, strict=False):
        width, found, total = 1 / len(count), count > 0, max(count.sum(), 1)
        axes.bar((np.arange(len(count)) + 0.5) * width, count / total, width * 0.92, color="#d5dfea")
        axes.plot([0, 1], [0, 1], color=GREY, linewidth=0.8, linestyle=":")
        points = (confidence / np.maximum(count, 1))[found], (right / np.maximum(count, 1))[found]
        axes.plot(*points, ".-", color=BLUE, linewidth=1.2, markersize=4)
        axes.set_title(f"{shortened(level, 24)}: ECE {np.abs(right - confidence).sum() / total:.3f}", fontsize=9)
        axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
    for axes in figure.axes[len(levels) :]:
        axes.set_axis_off()
    figure.supxlabel("confidence", fontsize=9)
    figure.supylabel("accuracy (line), share of images (bars)", fontsize=9)
    save_figure(figure, path)


def draw_class_bars(path: str | Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a PNG with the IoU of every class as bars, a panel per level; NaN or None is absent.

    ``results``: per level ``{"mean_iou": float, "per_class": {name: {"iou": float, "num_pixels": int, ...}}}``.
    """
    sizes = [len(scores["per_class"]) for scores in results.values()]
    figure = new_figure(8.5, 0.22 * sum(sizes) + 0.6 * len(sizes), layout="constrained")
    panels = figure.subplots(len(sizes), squeeze=False, height_ratios=sizes).flat
    for axes, (level, scores) in zip(panels, results.items(), strict=True):
        classes = scores["per_class"].values()
        iou = np.array([row["iou"] for row in classes], dtype=float)  # None, which is JSON's NaN, becomes NaN
        pixels = np.array([row["num_pixels"] for row in classes])
        plain = {"color": "white", "pad": 0.3}  # so that the line of the mean does not cross a number
        bars = axes.barh(range(len(iou)), np.nan_to_num(iou), height=0.7, color=BLUE)
        axes.bar_label(bars, [_shown(value) for value in iou], padding=3, fontsize=8, bbox=plain)
        mean = np.array(scores["mean_iou"], dtype=float)
        axes.axvline(mean, color=ORANGE, linestyle="--", linewidth=1)
        axes.set_title(f"{level}: mean IoU {_shown(mean)}", fontsize=10, loc="left")
        axes.set_title("share of the pixels", fontsize=8, color=GREY, loc="right")
        axes.set_yticks(range(len(iou)), [shortened(name, 40) for name in scores["per_class"]])
        shares = axes.twinx()
        shares.set_yticks(range(len(iou)), [f"{share:.2%}" for share in pixels / max(pixels.sum(), 1)], color=GREY)
        for side in (axes, shares):
            side.set(xlim=(0, 1.08), ylim=(len(iou) - 0.4, -0.6))
            side.spines[["top", "right"]].set_visible(False)
            side.tick_params(length=0, labelsize=8)
    save_figure(figure, path)


def draw_history(path: str | Path, history: Sequence[Mapping[str, Any]], measures: Sequence[str]) -> None:
    """Write a PNG of the losses, the learning rate, and measures such as ``mean_iou`` at every level.

    ``history``: the lines of history.jsonl; of them, ``train/loss``, ``eval/levels.<level>.<measure>`` and so on.
    """
    # The last entry of a step counts, as a resumed run repeats some.
    table = pd.DataFrame(history).groupby("global_step").last() if history else pd.DataFrame()
    panels: dict[str, dict[str, str]] = {
        "loss": {"train/loss": "training", "train/epoch_loss": "mean of an epoch", "eval/loss": "evaluation"},
        "learning rate": {"train/learning_rate": ""},
    }
    for measure in measures:
        start, end = "eval/levels.", f".{measure}"
        keys = [key for key in table if key.startswith(start) and key.endswith(end) and ".per_class." not in key]
        panels[in_words(measure)] = {key: key[len(start) : -len(end)] for key in keys}
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure = new_figure(3.667 * columns, 3.1 * rows, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        for key, label in lines.items():
            values = table[key].dropna() if key in table else ()
            if len(values):
                style = ".-" if len(values) <= 40 else "-"
                axes.plot(values.index, values, style, linewidth=1.2, label=f"{label} ({values.iloc[-1]:.3f})")
        if not axes.lines:
            axes.text(0.5, 0.5, "nothing recorded", color=GREY, ha="center", transform=axes.transAxes)
        elif any(lines.values()):
            axes.legend(fontsize=8, frameon=False)
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        axes.grid(color="#e5e5e5", linewidth=0.6)
    save_figure(figure, path)


def _shown(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.3f}"


def shortened(text: str, length: int) -> str:
    """The text, with an ellipsis at the end if it is longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def file_name(text: str) -> str:
    """A level's name as part of a file's: it may hold anything."""
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def new_figure(width: float, height: float, **how: Any) -> Any:
    """A figure of these inches. matplotlib is imported by the first one: no training has to wait for it."""
    from matplotlib.figure import Figure

    return Figure((width, height), dpi=DPI, **how)


def save_figure(figure: Any, path: str | Path, fit: bool = False) -> None:
    """Write a PNG or JPEG atomically; ``fit``: with the text outside of the figure."""
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # a $ in a name is a $
    with atomic_write(path, "wb") as file:
        figure.savefig(file, format=Path(path).suffix[1:], bbox_inches="tight" if fit else None)
