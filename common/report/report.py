"""report.html and plots/: one page that opens from disk, on a phone and on paper, without a network or scripts."""

from __future__ import annotations

import base64
import io
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from ..files import atomic_write, read_history
from ..metrics.report_data import REPORT_DATA_FILE, ReportData
from ..metrics.results import in_words, interval_text, level_rows, path_measures
from .confusions import (
    ConfusionPairs,
    confused_pairs,
    find_classes,
    hardest_classes,
    scores_by_frequency,
    watched_class,
)
from .figures import draw_confusion, draw_history, draw_reliability, file_name
from .image_examples import Picture, draw_pictures
from .summary import RunSummary, data_name, shareable, shareable_line

logger = logging.getLogger(__name__)

PLOTS = "plots"
REPORT_FILE = "report.html"

EXAMPLE_TITLES = {
    "right": "Right",
    "near": "Wrong but near: another class of the same {parent}",
    "far": "Wrong and far",
}

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
    try:
        plots = summary.output_dir / PLOTS
        plots.mkdir(parents=True, exist_ok=True)
        for older in [*plots.glob("*.png"), *plots.glob("*.jpg")]:  # perhaps of levels that there are no more
            older.unlink()
        if draw is not None:
            draw(plots)
        content = _texts(summary) | _curves(summary, plots) | _classes(summary, plots, examples) | _own_plots(plots)
        write_page(summary.output_dir / REPORT_FILE, content)
    except Exception as error:  # whatever it is, hours of training must not end in it
        name = type(error).__name__
        logger.warning("The report could not be drawn (%s: %s); the model and its results are intact.", name, error)
        logger.debug("stack trace of the above", exc_info=True)


def write_page(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write the page. Names of classes and files may hold anything: all text is escaped.

    ``content`` is what the template report.html shows, by name; an empty section is left out.
    """
    templates = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=templates, autoescape=True, undefined=StrictUndefined)
    environment.filters["in_words"] = in_words
    with atomic_write(path) as file:
        file.write(environment.get_template(REPORT_FILE).render(content))


def _texts(summary: RunSummary) -> dict[str, Any]:
    """What is said of the run, and of every level."""
    options, train, evaluation = summary.options, summary.results["train"], summary.results["eval"]
    split, metric = options["validation_split"], options["metric_for_best_model"]
    test = summary.results.get("test")
    steps = (train or {}).get("skipped_steps", 0)
    measure = summary.measures[0]
    tiles = {
        f"{level} {in_words(measure)}{interval_text(evaluation, level, measure)}": percent(row[measure])
        for level, row in evaluation["levels"].items()
    }
    words = f"every level right{interval_text(evaluation, 'full_path_accuracy')}"
    tiles[words] = percent(evaluation["path"]["full_path_accuracy"])
    if train:
        tiles["minutes of training"] = f"{train['seconds'] / 60:,.1f}"
    return {
        "title": f"{'Training' if train else 'Evaluation'} report: {summary.output_dir.resolve().name}",
        "subtitle": f"Written on {date.today().isoformat()}. Metrics are of the best path through the label tree, on "
        f"the {split} split"
        + (f"; the model is the best by {metric}." if train else ".")
        + (" In brackets: 95 % intervals." if evaluation.get("intervals") else ""),
        "unit": summary.unit,
        "headline": tiles,
        "facts": {"data": data_name(options), **summary.facts},
        "levels": level_rows(evaluation),
        "paths": path_measures(evaluation),
        "test_levels": level_rows(test) if test else [],
        "test_paths": path_measures(test) if test else {},
        "skipped_steps": f"{steps:,} training steps, because their loss was NaN or infinite."
        if steps
        else "No training step.",
        "skipped": [shareable_line(line) for line in summary.skipped],
        "settings": yaml.safe_dump({name: shareable(value) for name, value in options.items()}, sort_keys=False),
    }


def _curves(summary: RunSummary, plots: Path) -> dict[str, Any]:
    entries = read_history(summary.output_dir / "history.jsonl")
    if not entries:
        return {"curves": []}
    draw_history(plots / "history.png", entries, summary.measures)
    caption = "Loss, learning rate, and every level in the course of the training"
    return {"curves": [embedded(plots / "history.png", caption=caption)]}


def _classes(
    summary: RunSummary, plots: Path, load: Callable[[ReportData], Mapping[str, Sequence[Picture]]] | None
) -> dict[str, Any]:
    """What the report data say about classes; sections are empty without them."""
    hierarchy, file = summary.hierarchy, summary.output_dir / REPORT_DATA_FILE
    content: dict[str, Any] = dict.fromkeys(("watched", "confused", "reliability", "confusion"), ())
    content |= {"hardest": {}, "examples": {}, "frequencies": {}}
    if not file.is_file():
        return content
    data = ReportData.load(file)
    pairs, levels = ConfusionPairs(hierarchy, data), list(enumerate(hierarchy.levels))
    nodes = find_classes(hierarchy, summary.options["watch"] or ())
    content["watched"] = [watched_class(pairs, *node) for node in nodes]
    content["hardest"] = {name: hardest_classes(pairs, level) for level, name in reversed(levels)}
    if summary.train_counts is not None:
        content["frequencies"] = scores_by_frequency(pairs, summary.train_counts)
    content["confused"] = confused_pairs(pairs)
    confusion = {name: plots / f"confusion_{file_name(name)}.png" for name in hierarchy.levels}
    for level, name in levels:
        draw_confusion(confusion[name], pairs, level)
    content["confusion"] = [
        embedded(path, caption=f"Confusion at the level {name}") for name, path in confusion.items()
    ]
    if data.reliability is not None:
        draw_reliability(plots / "reliability.png", hierarchy.levels, data.reliability)
        content["reliability"] = [embedded(plots / "reliability.png", caption="Accuracy against confidence")]
    parent = hierarchy.levels[-2] if hierarchy.num_levels > 1 else "parent"
    found = {} if load is None else load(data)
    pictures = {EXAMPLE_TITLES[kind].format(parent=parent): row for kind, row in found.items() if row}
    draw_pictures(plots / "examples.jpg", pictures)
    content["examples"] = {title: [thumbnail(picture) for picture in row] for title, row in pictures.items()}
    return content


def _own_plots(plots: Path) -> dict[str, Any]:
    """What the script itself drew."""
    figures = []
    for path in sorted(plots.glob("*.png")):
        kind, _, level = path.stem.partition("_")
        if kind in ("examples", "worst") and level:
            title = "Chosen to show many classes" if kind == "examples" else "The worst images"
            caption = f"{title}: image, truth, prediction and error at the level {level}"
            figures.append(embedded(path, caption=caption))
    bars = plots / "iou.png"
    return {
        "example_figures": figures,
        "class_figures": [embedded(bars, caption="IoU of every class")] if bars.is_file() else [],
    }


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
    return {**vars(picture), **embedded(file)}


def percent(value: float | None) -> str:
    """A share for people; a dash for NaN, which is None in JSON."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}%"
