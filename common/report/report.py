"""From a finished run to its report: what is drawn, in which order, and what each section says."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from ..data.rows import ImageRows
from ..images.files import BadSampleError
from ..metrics.report_data import EVIDENCE_FILE, Evidence
from ..metrics.results import level_rows, path_measures
from ..model.hierarchy import Hierarchy
from .figures import Picture, draw_level_confusion, draw_pictures, draw_reliability
from .page import REPORT_FILE, ReportContent, embed_file, embed_picture, write_report
from .plots import draw_history, file_name, in_words
from .summary import data_name, run_facts, shareable, shareable_line
from .tables import Pairs, confused_pairs, find_classes, hardest_classes, watched

if TYPE_CHECKING:
    from ..run.training import Trainer

logger = logging.getLogger(__name__)

PLOTS = "plots"

EXAMPLE_TITLES = {
    "right": "Right",
    "near": "Wrong but near: another class of the same {parent}",
    "far": "Wrong and far",
}


def draw_report(trainer: Trainer, results: Mapping[str, Any], skipped: Sequence[str]) -> None:
    """Write plots/ and report.html of the evaluation that was kept; what fails is told, because the model is whole.

    Args:
        trainer: of the finished run.
        results: what all_results.json holds.
        skipped: descriptions of broken images.
    """
    try:
        plots = trainer.output_dir / PLOTS
        plots.mkdir(parents=True, exist_ok=True)
        for older in [*plots.glob("*.png"), *plots.glob("*.jpg")]:  # perhaps of levels that there are no more
            older.unlink()
        content = _content(trainer, results, skipped)
        write_report(trainer.output_dir / REPORT_FILE, content)
    except Exception as error:  # whatever it is, hours of training must not end in it
        logger.warning("The report could not be drawn (%s: %s); the model and its results are whole.", *_kind(error))
        logger.debug("stack trace of the above", exc_info=True)


def _kind(error: Exception) -> tuple[str, Exception]:
    return type(error).__name__, error


def _content(trainer: Trainer, results: Mapping[str, Any], skipped: Sequence[str]) -> ReportContent:
    args, folder = trainer.args, trainer.output_dir
    evaluation, train = results["eval"], results["train"]
    steps = (train or {}).get("skipped_steps", 0)
    report = ReportContent(
        title=f"{'Training' if train else 'Evaluation'} report: {folder.resolve().name}",
        subtitle=f"Written on {date.today().isoformat()}. Metrics are of the best path through the label tree, on the "
        f"{args.validation_split} split"
        + (f"; the model is the best by {args.metric_for_best_model}." if train else "."),
        unit=trainer.unit,
        headline=headline(trainer, evaluation, train),
        facts={"data": data_name(args), **run_facts(trainer)},
        levels=level_rows(evaluation),
        paths=path_measures(evaluation),
        skipped_steps=f"{steps:,} training steps, because their loss was no number." if steps else "No training step.",
        skipped=[shareable_line(line) for line in skipped],
        settings=yaml.safe_dump({name: shareable(value) for name, value in asdict(args).items()}, sort_keys=False),
    )
    _add_curves(report, folder, trainer.measures)
    trainer.draw(folder / PLOTS)
    if (folder / EVIDENCE_FILE).is_file():
        _add_evidence(report, trainer, Evidence.load(folder / EVIDENCE_FILE))
    _add_plots(report, folder / PLOTS)
    return report


def headline(
    trainer: Trainer, evaluation: Mapping[str, Any], train: Mapping[str, Any] | None
) -> list[tuple[str, str]]:
    """The few numbers that matter most, as (label, value)."""
    measure = trainer.measures[0]
    levels = {level: row[measure] for level, row in evaluation["levels"].items()}
    tiles = [(f"{level} {in_words(measure)}", percent(value)) for level, value in levels.items()]
    tiles.append(("every level right", percent(evaluation["path"]["full_path_accuracy"])))
    if train:
        tiles.append(("minutes of training", f"{train['seconds'] / 60:,.1f}"))
    return tiles


def percent(value: float | None) -> str:
    """A share for people; a dash for nan, which is None in JSON."""
    return "–" if value is None or math.isnan(value) else f"{100 * value:.1f}%"


def _add_curves(report: ReportContent, folder: Path, measures: Sequence[str]) -> None:
    history = folder / "history.jsonl"
    if not history.is_file():
        return
    entries = [json.loads(line) for line in history.read_text(encoding="utf-8").splitlines()]
    path = folder / PLOTS / "history.png"
    draw_history(path, entries, *measures)
    report.curves.append(embed_file(path, "Loss, learning rate, and each level as training went on"))


def _add_evidence(report: ReportContent, trainer: Trainer, evidence: Evidence) -> None:
    hierarchy, plots = trainer.data.hierarchy, trainer.output_dir / PLOTS
    pairs = Pairs(hierarchy, evidence)
    nodes = find_classes(hierarchy, trainer.args.watch or ())
    report.watched = [watched(pairs, *node) for node in nodes]
    report.hardest = {
        name: hardest_classes(pairs, level) for level, name in reversed(list(enumerate(hierarchy.levels)))
    }
    report.confused = confused_pairs(pairs)
    for level, name in enumerate(hierarchy.levels):
        path = plots / f"confusion_{file_name(name)}.png"
        draw_level_confusion(path, pairs, level)
        report.confusion.append(embed_file(path, f"Confusion at the level {name}"))
    if evidence.reliability is not None:
        draw_reliability(plots / "reliability.png", hierarchy.levels, evidence.reliability)
        report.reliability.append(embed_file(plots / "reliability.png", "Accuracy against confidence"))
    parent = hierarchy.levels[-2] if hierarchy.num_levels > 1 else "parent"
    pictures = {
        EXAMPLE_TITLES[kind].format(parent=parent): found
        for kind, found in trainer.pictures(evidence).items()
        if found
    }
    draw_pictures(plots / "examples.jpg", pictures)
    report.examples = {title: [embed_picture(picture) for picture in found] for title, found in pictures.items()}


def _add_plots(report: ReportContent, plots: Path) -> None:
    """What the script itself drew."""
    for path in sorted(plots.glob("*.png")):
        kind, _, level = path.stem.partition("_")
        if kind in ("examples", "worst") and level:
            title = "Chosen to show many classes" if kind == "examples" else "The worst images"
            report.example_figures.append(
                embed_file(path, f"{title}: image, truth, prediction and error at the level {level}")
            )
    if (plots / "iou.png").is_file():
        report.class_figures.append(embed_file(plots / "iou.png", "IoU of every class"))


def load_pictures(images: ImageRows, hierarchy: Hierarchy, evidence: Evidence) -> dict[str, list[Picture]]:
    """The images that the evidence names as examples, by kind."""
    names = hierarchy.leaf_names()
    kinds: dict[str, list[Picture]] = {}
    for kind, rows in evidence.examples.items():
        kinds[kind] = []
        for row, truth, predicted, probability in rows.tolist():
            try:
                image = images.load(int(row), images.encoded([int(row)])[0])
            except BadSampleError:  # it was readable before
                continue
            kinds[kind].append(Picture(image, int(row), names[int(truth)], names[int(predicted)], probability))
    return kinds
