"""README.md of an output folder: the model card that the Hub shows, with metadata that it understands."""

from __future__ import annotations

import html
import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from huggingface_hub import EvalResult, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from ..metrics.report_data import EVIDENCE_FILE, Evidence
from ..metrics.results import level_rows, path_measures
from ..report.page import REPORT_FILE, TEMPLATES
from ..report.plots import in_words
from ..report.report import PLOTS, percent
from ..report.summary import data_name, run_facts
from ..report.tables import Pairs, hardest_classes, path_of

if TYPE_CHECKING:
    from ..run.training import Trainer

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MARKER = "<!-- Written by the training run; without this line it is left alone. -->"
UNKNOWN_MODEL = "path/to/this/folder"

HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "mean_iou": "mean_iou", "mean_f1": "f1"}
"""Our measures of a level as the Hub calls them"""


@dataclass
class HubTask:
    """What the Hub calls a kind of model."""

    pipeline: str
    name: str
    auto_class: str
    snippet: str


TASKS = {
    "images": HubTask(
        "image-classification",
        "Image Classification",
        "AutoModelForImageClassification",
        '    probability, index = log_probs[0].exp().max(0)\n    print(f"{name}: {names[index]} ({probability:.1%})")',
    ),
    "pixels": HubTask(
        "image-segmentation",
        "Image Segmentation",
        "AutoModelForSemanticSegmentation",
        "    classes = log_probs[0].argmax(0)  # at a quarter of the resolution\n"
        "    print(name, {names[index]: int((classes == index).sum()) for index in classes.unique()})",
    ),
}


@dataclass
class CardPicture:
    """An image file of the repository."""

    caption: str
    path: str


PICTURES = (
    CardPicture("Examples: right, wrong but near, wrong and far", f"{PLOTS}/examples.jpg"),
    CardPicture("Training", f"{PLOTS}/history.png"),
    CardPicture("IoU of every class", f"{PLOTS}/iou.png"),
)


def write_card(trainer: Trainer, results: Mapping[str, Any]) -> None:
    """Write README.md in one step; a file there that a person has written or taken over stays.

    What fails is told, because the model is whole.

    Args:
        trainer: of the run; its output folder holds the model.
        results: ``eval`` of all_results.json.
    """
    try:
        _write(trainer, results, trainer.args.hub_model_id if trainer.args.push_to_hub else None)
    except Exception as error:  # whatever it is, hours of training must not end in it
        logger.warning("The model card could not be written (%s: %s).", type(error).__name__, error)
        logger.debug("stack trace of the above", exc_info=True)


def _write(trainer: Trainer, results: Mapping[str, Any], repo_id: str | None) -> None:
    path = trainer.output_dir / CARD_FILE
    if path.is_file() and MARKER not in path.read_text(encoding="utf-8"):
        logger.warning("%s is not of a training run: it is left as it is.", path)
        return
    model_id = repo_id or UNKNOWN_MODEL
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        finalize=plain_markdown,
        keep_trailing_newline=True,
    )
    text = environment.get_template("model_card.md").render(
        metadata=Markup(metadata(trainer, results, repo_id).to_yaml()),
        marker=Markup(MARKER),
        model_id=Markup(model_id),
        card=_content(trainer, results, repo_id),
    )
    temporary = path.with_name(f"{path.name}.tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)


def plain_markdown(value: Any) -> Any:
    """Text that Markdown shows as it is: names of classes may hold anything. Markup stays."""
    if isinstance(value, Markup) or value is None:
        return value
    text = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", text)


def metadata(trainer: Trainer, results: Mapping[str, Any], repo_id: str | None) -> ModelCardData:
    """The block at the top: what the Hub searches and shows beside the model."""
    args, task = trainer.args, TASKS[trainer.unit]
    data = hub_id(None if args.validation_file or args.dataset_name == "demo" else args.dataset_name)
    return ModelCardData(
        model_name=(repo_id or trainer.output_dir.resolve().name).rpartition("/")[2],
        library_name="transformers",
        pipeline_tag=task.pipeline,
        license=args.license,
        base_model=base_model(args),
        datasets=[data] if data else None,
        tags=["vision", "hierarchical", "label-tree", args.head],
        metrics=sorted({HUB_METRICS[measure] for measure in trainer.measures}),
        eval_results=_eval_results(trainer, results, data, task) or None,
    )


def _eval_results(trainer: Trainer, results: Mapping[str, Any], data: str | None, task: HubTask) -> list[EvalResult]:
    numbers = [
        (HUB_METRICS[measure], f"{level} {in_words(measure)}", row[measure])
        for level, row in results["levels"].items()
        for measure in trainer.measures
    ]
    numbers.append(("accuracy", "every level right", results["path"]["full_path_accuracy"]))
    return [
        EvalResult(
            task_type=task.pipeline,
            task_name=task.name,
            dataset_type=data or "custom",
            dataset_name=data_name(trainer.args),
            dataset_config=trainer.args.dataset_config_name,
            dataset_split=trainer.args.validation_split,
            metric_type=kind,
            metric_name=name,
            metric_value=value,
        )
        for kind, name, value in numbers
        if value is not None and math.isfinite(value)
    ]


def hub_id(name: str | None) -> str | None:
    """The name if it can be one on the Hub, owner and all, and is no folder here."""
    if not name or name.count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def base_model(args: Any) -> str | None:
    """The Hub id of the backbone that training started from."""
    if args.no_pretrained or args.backbone_weights:
        return None
    return hub_id(args.model_name_or_path.removeprefix("hf-hub:").removeprefix("hf_hub:"))


def _content(trainer: Trainer, results: Mapping[str, Any], repo_id: str | None) -> dict[str, Any]:
    hierarchy, task = trainer.data.hierarchy, TASKS[trainer.unit]
    header, *rows = level_rows(results)
    what = "An image classifier" if trainer.unit == "images" else "A segmentation model"
    level, index = hierarchy.leaves[0]
    return {
        "title": (repo_id or trainer.output_dir.resolve().name).rpartition("/")[2],
        "summary": f"{what} that answers at every level of a label tree, {' > '.join(hierarchy.levels)}, "
        f"with {hierarchy.num_leaves:,} leaves. Metrics are of the best path through the tree.",
        "columns": [in_words(name) for name in header[1:]],
        "levels": [(row[0], f"{size:,}", row[1:]) for row, size in zip(rows, hierarchy.num_classes, strict=True)],
        "paths": path_measures(results),
        "evaluated_on": f"{results['num_samples']:,} images, split {trainer.args.validation_split} of "
        f"{data_name(trainer.args)}",
        "example_path": path_of(hierarchy, level, index),
        "pictures": [
            CardPicture(picture.caption, Markup(picture.path))
            for picture in PICTURES
            if (trainer.output_dir / picture.path).is_file()
        ],
        "task": Markup(task.pipeline),
        "auto_class": Markup(task.auto_class),
        "snippet": Markup(task.snippet),
        "facts": {"data": data_name(trainer.args), **run_facts(trainer)},
        "has_report": (trainer.output_dir / REPORT_FILE).is_file(),
        **_weak_classes(trainer),
    }


def _weak_classes(trainer: Trainer) -> dict[str, Any]:
    hierarchy, file = trainer.data.hierarchy, trainer.output_dir / EVIDENCE_FILE
    if not file.is_file():
        return {"weak": [], "rare": None}
    pairs, last = Pairs(hierarchy, Evidence.load(file)), hierarchy.num_levels - 1
    missing = int((pairs.per_class(last)["labelled"] == 0).sum())
    total = hierarchy.num_classes[last]
    return {
        "weak": [(score.path[-1], percent(score.f1)) for score in hardest_classes(pairs, last, 5)],
        "rare": f"{missing:,} of the {total:,} classes of the last level do not occur in the evaluation data."
        if missing
        else None,
    }
