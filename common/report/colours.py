"""Pictures of a segmentation run, in files that are whole or absent; Matplotlib without pyplot's global state."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.text import Text
from PIL import Image

from ..model.hierarchy import IGNORE, Hierarchy

DPI = 110
RIGHT, WRONG, DIM = (0, 170, 110), (240, 40, 40), (115, 115, 115)
BLUE, ORANGE, GREY = "#2f6da8", "#d9622b", "#777777"
# Ottosson's OKLab (2020), in which distances are about as large as they look: linear RGB from cubes of LMS from OKLab.
OKLAB_TO_LMS = np.array([[1, 0.39634, 0.21580], [1, -0.10556, -0.06385], [1, -0.08948, -1.29149]])
LMS_TO_RGB = np.array([[4.07674, -3.30771, 0.23097], [-1.26844, 2.60976, -0.34132], [-0.0042, -0.70342, 1.70761]])


# ---- colours


def leaf_colours(hierarchy: Hierarchy) -> np.ndarray:
    """Colours that a person can tell apart, uint8 (leaves, 3).

    Leaves of one class of the level above the last share a range of hues; leaves without such a class are grey.
    """
    return _choose([_pool(*hues) for hues in _hue_ranges(hierarchy)])


def level_colours(hierarchy: Hierarchy, level: int | str) -> np.ndarray:
    """Colours of the classes of one level, uint8 (classes, 3): above the last level, the mean hue of their leaves."""
    index = _level_index(hierarchy, level)
    if index == hierarchy.num_levels - 1:
        return leaf_colours(hierarchy)[: hierarchy.num_classes[index]]  # the first leaves are the last level's classes
    hues, ancestors = _hue_ranges(hierarchy).mean(1), hierarchy.ancestors[:, index].numpy()
    members = [hues[(ancestors == label) & ~np.isnan(hues)] for label in range(hierarchy.num_classes[index])]
    return _choose([_pool(*[found.mean() if found.size else math.nan] * 2) for found in members])


def _hue_ranges(hierarchy: Hierarchy) -> np.ndarray:
    """First and last hue in degrees that each leaf may have, float (leaves, 2); nan for leaves without a group."""
    groups = [hierarchy.path(*leaf)[:-1] or leaf for leaf in hierarchy.leaves]
    groups = [group if group[-1] != IGNORE else None for group in groups]
    # Sorted by path, so that groups of one upper class are neighbours. From one to the next it is two steps.
    sizes = {group: groups.count(group) for group in sorted({group for group in groups if group})}
    step = 360 / max(sum(sizes.values()) + len(sizes), 1)
    ranges, start = {None: (math.nan, math.nan)}, 210  # so that the mean over all groups is a red
    for group, size in sizes.items():
        ranges[group] = (start, start + step * (size - 1))
        start += step * (size + 1)
    return np.array([ranges[group] for group in groups])


def _pool(first_hue: float, last_hue: float) -> np.ndarray:
    """The colours within a range of hues that a screen can show, OKLab (n, 3); greys if the range is nan."""
    if math.isnan(first_hue):
        return np.array([(lightness, 0, 0) for lightness in (0.86, *np.linspace(0.35, 0.8, 16))])
    hues = np.radians(np.linspace(first_hue, last_hue, 9))
    lightness, chroma, hue = np.meshgrid(np.linspace(0.5, 0.85, 8), [0.11, 0.15, 0.19], hues, indexing="ij")
    colours = np.stack([lightness, chroma * np.cos(hue), chroma * np.sin(hue)], -1).reshape(-1, 3)
    linear = (colours @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T
    return colours[((linear >= 0) & (linear <= 1)).all(1)]


def _choose(pools: Sequence[np.ndarray]) -> np.ndarray:
    """One colour of each pool of OKLab (n, 3), each as far as can be from those before it: uint8 (pools, 3)."""
    chosen = [np.zeros(3)]  # black is for ignored pixels
    for pool in pools:
        # Lightness counts less, as the picture below the colours changes it.
        difference = (pool[:, None] - np.array(chosen)) * (0.6, 1, 1)
        chosen.append(pool[np.linalg.norm(difference, axis=2).min(1).argmax()])
    linear = ((np.array(chosen[1:]) @ OKLAB_TO_LMS.T) ** 3 @ LMS_TO_RGB.T).clip(0, 1)
    return np.rint(255 * np.where(linear < 0.0031, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)).astype("u1")


def _level_index(hierarchy: Hierarchy, level: int | str) -> int:
    return hierarchy.levels.index(level) if isinstance(level, str) else range(hierarchy.num_levels)[level]


# ---- examples


@dataclass
class Example:
    """One picture with its labels: integers, leaves of the tree. Where the truth is 255 or negative, it is ignored."""

    image: np.ndarray  # uint8 (h, w, 3)
    truth: np.ndarray  # (h, w)
    prediction: np.ndarray  # (h, w)
    name: str  # shown beside it

    @property
    def ignored(self) -> np.ndarray:
        """Pixels without a label, bool (h, w)."""
        return (self.truth < 0) | (self.truth == 255)

    def lift(self, table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Truth and prediction, int64 (h, w), looked up in a table of leaves, IGNORE where the truth is ignored."""
        leaves = (np.where(self.ignored, 0, labels.astype(int)) for labels in (self.truth, self.prediction))
        return tuple(np.where(self.ignored, IGNORE, table[column]) for column in leaves)


def overlay_colours(example: Example, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Labels (h, w) in the ``colours`` of their classes, uint8 (classes, 3), over the grey picture: uint8 (h, w, 3).

    Dim grey where the label is negative, hatched where ignored.
    """
    return _paint(example, np.where(labels[..., None] < 0, DIM, colours[labels.clip(0)]))


def error_colours(hierarchy: Hierarchy, level: int | str, example: Example) -> np.ndarray:
    """Wrong pixels red and right ones green over the grey picture, uint8 (h, w, 3); ignored ones hatched.

    Dim grey are pixels whose truth has no class at this level, which are neither right nor wrong, and the right ones
    of the background: of leaves whose path skips a level, as Clean has no kind of damage.
    """
    ancestors = hierarchy.ancestors.numpy()
    truth, prediction = example.lift(ancestors[:, _level_index(hierarchy, level)])
    background, _ = example.lift((ancestors < 0).any(1))
    painted = np.where(((truth == prediction) & (background == 0))[..., None], RIGHT, DIM)
    painted[(truth >= 0) & (truth != prediction)] = WRONG
    return _paint(example, painted)


def _paint(example: Example, painted: np.ndarray) -> np.ndarray:
    """Colours (h, w, 3) as bright as the picture below, so that fine cracks are seen; ignored pixels hatched."""
    grey = example.image @ np.array([0.299, 0.587, 0.114])
    painted = painted * (0.55 + 0.45 / 255 * grey[..., None])
    period = max(8, max(grey.shape) // 24)
    hatch = np.where(np.add(*np.indices(grey.shape)) % period < period // 4, 48, 0)
    return np.where(example.ignored[..., None], hatch[..., None], painted).astype(np.uint8)


def draw_examples(path: str | Path, hierarchy: Hierarchy, level: int | str, examples: Sequence[Example]) -> None:
    """Write a PNG with a row per example: image, truth, prediction and error at one level (name or index)."""
    colours, names = level_colours(hierarchy, level), hierarchy.display_names(_level_index(hierarchy, level))
    lifted = [example.lift(hierarchy.ancestors[:, _level_index(hierarchy, level)].numpy()) for example in examples]
    shown = sorted({label for pair in lifted for labels in pair for label in np.unique(labels).tolist() if label >= 0})
    classes = [Patch(color=colours[label] / 255, label=shortened(names[label], 28)) for label in shown]
    kinds = {"right": RIGHT, "background": DIM, "wrong": WRONG, "ignored": (0, 0, 0)}
    errors = [Patch(color=np.array(colour) / 255, label=label) for label, colour in kinds.items()]
    columns = max(1, int(88 / (7 + max((len(patch.get_label()) for patch in classes), default=0))))
    panel, gap, left, caption = 200, 6, 28, 24  # pixels
    heights = [round(panel * min(example.image.shape[0] / example.image.shape[1], 1.6)) for example in examples]
    bottom = 14 + 21 * max(2, math.ceil(len(classes) / columns))
    canvas = np.full((30 + sum(heights) + caption * len(heights) + bottom, left + 4 * (panel + gap), 3), 255, np.uint8)
    figure = Figure((canvas.shape[1] / DPI, canvas.shape[0] / DPI), dpi=DPI)
    starts = [left + column * (panel + gap) for column in range(4)]
    text = {"transform": None, "ha": "center", "va": "center"}  # in pixels from the lower left
    for start, title in zip(starts, ("image", "truth", "prediction", "error"), strict=True):
        figure.text(start + panel / 2, len(canvas) - 16, title, fontsize=10, **text)
    top = 30
    for example, (truth, prediction), height in zip(examples, lifted, heights, strict=True):
        overlays = [overlay_colours(example, labels, colours) for labels in (truth, prediction)]
        panels = [example.image, *overlays, error_colours(hierarchy, level, example)]
        for start, pixels in zip(starts, panels, strict=True):
            small = np.asarray(Image.fromarray(pixels).resize((panel, height), Image.Resampling.HAMMING))
            # Brightness in steps of 8: hardly to be seen, and the file becomes half as large.
            canvas[top : top + height, start : start + panel] = small // 8 * 8 + 4
        labelled, y = truth >= 0, len(canvas) - top - height
        share = f"{np.mean((truth == prediction)[labelled]):.1%} right" if labelled.any() else "nothing labelled"
        figure.text(starts[-1] + panel / 2, y - 11, share, fontsize=7.5, color=GREY, **text)
        figure.text(12, y + height / 2, shortened(example.name, height // 7), rotation=90, fontsize=7.5, **text)
        top += height + caption
    figure.figimage(canvas)
    look = {"fontsize": 8, "frameon": False, "borderpad": 0, "borderaxespad": 0}
    x, y = left / canvas.shape[1], (bottom - 6) / len(canvas)
    figure.legend(handles=classes, loc="upper left", bbox_to_anchor=(x, y), ncols=columns, **look)
    figure.legend(handles=errors, loc="upper right", bbox_to_anchor=(0.995, y), ncols=2, **look)
    save_figure(figure, path)


# ---- numbers


def draw_confusion(path: str | Path, names: Sequence[str], matrix: np.ndarray, title: str) -> None:
    """Write a PNG of a confusion matrix, each row in percent of its sum.

    ``matrix``: int64 (classes, classes + 1), a row per true class, a column per predicted one, the last for no value.
    """
    num_classes, total = len(names), matrix.sum(1, keepdims=True)
    predicted = [shortened(name, 32) for name in names] + ["no value"] * bool(matrix[:, -1].any())
    true = [predicted[label] + " (absent)" * int(total[label, 0] == 0) for label in range(num_classes)]
    percent = 100 * matrix[:, : len(predicted)] / np.where(total > 0, total, math.nan)
    cell = min(max(8 / num_classes, 0.115), 0.8 if num_classes < 8 else 0.42)  # inches
    width, height, size = cell * len(predicted), cell * num_classes, min(9, 62 * cell)
    figure = Figure((width, height), dpi=DPI)  # the space for the text around it is added when it is saved
    axes = figure.add_axes((0, 0, 1, 1), facecolor="#eeeeee", xlabel="prediction", ylabel="truth")
    # The square root shows rare confusions too.
    heat = axes.imshow(percent, cmap="Blues", norm=PowerNorm(0.5, 0, 100), aspect="auto")
    axes.set_xticks(range(len(predicted)), predicted, rotation=90, fontsize=size)
    axes.set_yticks(range(num_classes), true, fontsize=size)
    axes.set_title(title, fontsize=10)
    axes.tick_params(length=0)
    axes.axvline(num_classes - 0.5, color=GREY, linewidth=0.8)  # sets "no value" apart
    for row, column in np.argwhere(percent > 0) if num_classes <= 20 else ():
        value = percent[row, column]
        text = "<0.1" if value < 0.05 else f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"
        axes.text(column, row, text, color="white" if value > 30 else "black", fontsize=7.5, ha="center", va="center")
    bar = figure.add_axes((1 + 0.15 / width, 0, 0.13 / width, 1))
    figure.colorbar(heat, bar, format="%d%%").outline.set_visible(False)
    bar.tick_params(labelsize=8)
    save_figure(figure, path, fit=True)


def draw_class_bars(path: str | Path, results: Mapping[str, Mapping[str, Any]]) -> None:
    """Write a PNG with the IoU of every class as bars, a panel per level; nan or None is absent.

    ``results``: per level ``{"mean_iou": float, "per_class": {name: {"iou": float, "num_pixels": int, ...}}}``.
    """
    sizes = [len(scores["per_class"]) for scores in results.values()]
    height = 0.22 * sum(sizes) + 0.6 * len(sizes)  # inches
    figure, y = Figure((6, height), dpi=DPI), height
    for (level, scores), size in zip(results.items(), sizes, strict=True):
        y -= 0.22 * size + 0.6
        axes = figure.add_axes((0, (y + 0.25) / height, 1, 0.22 * size / height))
        _class_bars(axes, scores["per_class"])
        mean = np.array(scores["mean_iou"], dtype=float)  # None, which is JSON's nan, becomes nan
        axes.axvline(mean, color=ORANGE, linestyle="--", linewidth=1)
        axes.set_title(f"{level}: mean IoU {_shown(mean)}", fontsize=10, loc="left")
    save_figure(figure, path, fit=True)


def _class_bars(axes: Axes, classes: Mapping[str, Mapping[str, Any]]) -> None:
    scores = np.array([score["iou"] for score in classes.values()], dtype=float)
    pixels = np.array([score["num_pixels"] for score in classes.values()])
    axes.barh(range(len(scores)), np.nan_to_num(scores), height=0.7, color=BLUE)
    for row, (iou, share) in enumerate(zip(scores, pixels / max(pixels.sum(), 1), strict=True)):
        place = {"y": row, "va": "center", "fontsize": 8, "zorder": 3, "bbox": {"color": "white", "pad": 0.3}}
        axes.text(0.008 + np.nan_to_num(iou), s=_shown(iou), **place)
        axes.text(1.16, s=f"{share:.2%}", color=GREY, ha="right", **place)
    axes.text(1.16, -0.75, "share of the pixels", color=GREY, ha="right", va="bottom", fontsize=8)
    axes.set_yticks(range(len(scores)), [shortened(name, 40) for name in classes])
    axes.set(xlim=(0, 1), ylim=(len(scores) - 0.4, -0.6))
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0, labelsize=8)


def draw_history(path: str | Path, history: Sequence[Mapping[str, Any]], *measures: str) -> None:
    """Write a PNG of the losses, the learning rate, and measures such as ``mean_iou`` at every level.

    ``history``: the lines of history.jsonl; of them, ``train/loss``, ``eval/levels.<level>.<measure>`` and so on.
    """
    panels: dict[str, dict[str, str]] = {
        "loss": {"train/loss": "training", "train/epoch_loss": "mean of an epoch", "eval/loss": "evaluation"},
        "learning rate": {"train/learning_rate": ""},
    }
    for measure in measures:
        start, end = "eval/levels.", f".{measure}"
        keys = dict.fromkeys(key for entry in history for key in entry if key.startswith(start) and key.endswith(end))
        levels = {key: key[len(start) : -len(end)] for key in keys if ".per_class." not in key}
        panels[in_words(measure)] = levels
    rows, columns = (2, 2) if len(panels) == 4 else (1, len(panels))
    figure = Figure((3.667 * columns, 3.1 * rows), dpi=DPI, layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, squeeze=False).flat
    for axes, (title, lines) in zip(grid, panels.items(), strict=True):
        _course(axes, title, lines, history)
    save_figure(figure, path)


def _course(axes: Axes, title: str, lines: Mapping[str, str], history: Sequence[Mapping[str, Any]]) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel("step", fontsize=9)
    for key, label in lines.items():
        # The last entry of a step counts, as a resumed run repeats some.
        points = sorted({entry["global_step"]: entry[key] for entry in history if key in entry}.items())
        if points:
            steps, values = np.array(points, dtype=float).T
            style = ".-" if len(steps) <= 40 else "-"
            axes.plot(steps, values, style, linewidth=1.2, label=f"{label} ({values[-1]:.3f})")
    if not axes.lines:
        axes.text(0.5, 0.5, "nothing recorded", color=GREY, ha="center", transform=axes.transAxes)
    elif any(lines.values()):
        axes.legend(fontsize=8, frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.grid(color="#e5e5e5", linewidth=0.6)


def _shown(value: float) -> str:
    return "absent" if math.isnan(value) else f"{value:.3f}"


def shortened(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def in_words(measure: str) -> str:
    """A measure's name for people: ``mean_iou`` is mean IoU."""
    words = {"iou": "IoU", "f1": "F1", "ece": "ECE", "num": "number", "top5": "top-5"}
    return " ".join(words.get(word, word) for word in measure.split("_"))


def file_name(text: str) -> str:
    """A level's name as part of a file's: it may hold anything."""
    return "".join(letter if letter.isalnum() else "_" for letter in text)


def save_figure(figure: Figure, path: str | Path, fit: bool = False) -> None:
    """Write a PNG or JPEG in one step; ``fit``: with the text outside of the figure."""
    for text in figure.findobj(Text):
        text.set_parse_math(False)  # a $ in a name is a $
    figure.savefig(f"{path}.tmp", format=Path(path).suffix[1:], bbox_inches="tight" if fit else None)
    os.replace(f"{path}.tmp", path)
