"""report.html and plots/: one page that opens from disk, on a phone and on paper, without a network or scripts."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..metrics.report_data import REPORT_DATA_FILE, ReportData
from ..metrics.results import in_words, interval_text, level_rows, path_measures
from ..system.files import atomic_write, read_history
from .confusions import (
    ConfusionPairs,
    class_table,
    confused_pairs,
    hardest_classes,
    scores_by_frequency,
    watched_class,
)
from .figures import draw_confusion, draw_history, draw_reliability, file_name
from .image_examples import Picture, draw_pictures
from .summary import RunSummary, as_warning, data_name, shareable, shareable_line

PLOTS = "plots"
REPORT_FILE = "report.html"
CLASSES_FILE = "metrics_per_class.csv"

EXAMPLE_TITLES = {
    "right": "Right",
    "near": "Wrong but near: another class of the same {parent}",
    "far": "Wrong and far",
}

FIGURES = {
    "curves": {"history": "Loss, learning rate, and every level in the course of the training"},
    "class_figures": {"iou": "IoU of every class"},
    "example_figures": {
        "explained": "What counted for the predictions of the examples is light (Grad-CAM)",
        "examples_LEVEL": "Chosen to show many classes: image, truth, prediction and error at the level LEVEL",
        "worst_LEVEL": "The worst images: image, truth, prediction and error at the level LEVEL",
    },
    "reliability": {"reliability": "Accuracy against confidence"},
    "confusion": {"confusion_LEVEL": "Confusion at the level LEVEL"},
}
"""Captions of what is drawn into plots/, by section of the page and name of the file"""

THUMBNAIL = 200
"""Longest side of an example image, in pixels"""


def draw_report(
    summary: RunSummary,
    examples: Callable[[ReportData], Mapping[str, Sequence[Picture]]] | None = None,
    draw: Callable[[Path], None] | None = None,
) -> None:
    """Write plots/ and report.html of the evaluation that was kept; a failure is a warning, as the model is intact.

    Args:
        summary: of the finished run.
        examples: loads evaluation images that show how the model errs, by kind.
        draw: draws plots of the script's own into a folder.
    """
    with as_warning("The report could not be drawn"):
        plots = summary.output_dir / PLOTS
        plots.mkdir(parents=True, exist_ok=True)
        for older in [*plots.glob("*.png"), *plots.glob("*.jpg")]:  # perhaps of levels that there are no more
            older.unlink()
        if draw is not None:
            draw(plots)
        if entries := read_history(summary.output_dir / "history.jsonl"):
            draw_history(plots / "history.png", entries, summary.measures)
        content = _classes(summary, plots, examples) | _figures(plots, summary.hierarchy.levels)
        # Names of classes and files may hold anything: all text is escaped.
        templates = FileSystemLoader(Path(__file__).parent)
        environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
        environment.filters |= {"in_words": in_words, "percent": percent, "line": shareable_line}
        environment.globals |= {"level_rows": level_rows, "path_measures": path_measures, "interval": interval_text}
        settings = {name: shareable(value) for name, value in summary.options.items()}
        page = environment.get_template(REPORT_FILE).render(
            content,
            summary=summary,
            name=summary.output_dir.resolve().name,
            today=date.today().isoformat(),
            facts={"data": data_name(summary.options), **summary.facts},
            settings=yaml.safe_dump(settings, sort_keys=False),
        )
        with atomic_write(summary.output_dir / REPORT_FILE) as file:
            file.write(page)


def _classes(
    summary: RunSummary, plots: Path, load: Callable[[ReportData], Mapping[str, Sequence[Picture]]] | None
) -> dict[str, Any]:
    """What the report data say about classes; sections are empty without them."""
    hierarchy, file = summary.hierarchy, summary.output_dir / REPORT_DATA_FILE
    if not file.is_file():
        return {"watched": [], "hardest": {}, "frequencies": {}, "confused": [], "examples": {}}
    data = ReportData.load(file)
    pairs, levels = ConfusionPairs(hierarchy, data), list(enumerate(hierarchy.levels))
    with atomic_write(summary.output_dir / CLASSES_FILE) as table:
        class_table(pairs).to_csv(table, index=False)
    for level, name in levels:
        draw_confusion(plots / f"confusion_{file_name(name)}.png", pairs, level)
    if data.reliability is not None:
        draw_reliability(plots / "reliability.png", hierarchy.levels, data.reliability)
    parent = hierarchy.levels[-2] if hierarchy.num_levels > 1 else "parent"
    found = {} if load is None else load(data)
    pictures = {EXAMPLE_TITLES[kind].format(parent=parent): row for kind, row in found.items() if row}
    draw_pictures(plots / "examples.jpg", pictures)
    shown = {title: [replace(each, image=each.explained) for each in row] for title, row in pictures.items()}
    if any(each.image is not None for row in shown.values() for each in row):
        draw_pictures(plots / "explained.png", shown)
    counts = summary.train_counts
    return {
        "watched": [watched_class(pairs, *node) for node in hierarchy.find_nodes(summary.options["watch"] or ())],
        "hardest": {name: hardest_classes(pairs, level) for level, name in reversed(levels)},
        "frequencies": {} if counts is None else scores_by_frequency(pairs, counts),
        "confused": confused_pairs(pairs),
        "examples": {title: [thumbnail(picture) for picture in row] for title, row in pictures.items()},
    }


def _figures(plots: Path, levels: Sequence[str]) -> dict[str, list[dict[str, Any]]]:
    """What was drawn, by section."""
    found: dict[str, list[dict[str, Any]]] = {section: [] for section in FIGURES}
    for section, captions in FIGURES.items():
        for name, caption in captions.items():
            for level in levels if "LEVEL" in name else levels[:1]:
                file = plots / f"{name.replace('LEVEL', file_name(level))}.png"
                if file.is_file():
                    found[section].append(embedded(file, caption=caption.replace("LEVEL", level)))
    return found


def embedded(file: Path | io.BytesIO, **more: Any) -> dict[str, Any]:
    """A PNG or JPEG file as part of the page: its ``source``, ``width`` and ``height``, and what else is given."""
    content = file.read_bytes() if isinstance(file, Path) else file.getvalue()
    with Image.open(io.BytesIO(content)) as image:
        source = f"data:image/{image.format.lower()};base64,{base64.b64encode(content).decode()}"
        return {"source": source, "width": image.width, "height": image.height, **more}


def thumbnail(picture: Picture) -> dict[str, Any]:
    """A small copy of an example image as part of the page."""
    image, file = picture.image.copy(), io.BytesIO()
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    image.save(file, "JPEG", quality=80, optimize=True)
    return {**vars(picture), "name": shareable(picture.name), **embedded(file)}


def percent(value: float | None) -> str:
    """A share for people; a dash for NaN, which is None in JSON."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}%"
