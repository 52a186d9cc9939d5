"""README.md of an output folder: the model card that the Hub shows, with metadata that it understands."""

from __future__ import annotations

import html
import logging
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id

from ..metrics.report_data import REPORT_DATA_FILE, ReportData
from ..metrics.results import in_words, level_rows, path_measures
from ..report.confusions import ConfusionPairs, hardest_classes, path_of
from ..report.report import PLOTS, REPORT_FILE, percent
from ..report.summary import RunSummary, as_warning, data_name
from ..system.files import atomic_write

logger = logging.getLogger(__name__)

CARD_FILE = "README.md"
MARKER = "<!-- Written by the training run; without this line it is left alone. -->"
UNKNOWN_MODEL = "path/to/this/folder"

HUB_METRICS = {"accuracy": "accuracy", "macro_f1": "f1", "mean_iou": "mean_iou", "mean_f1": "f1"}
"""Our measures of a level as the Hub calls them"""


TASKS = {
    "images": ("image-classification", "AutoModelForImageClassification"),
    "pixels": ("image-segmentation", "AutoModelForSemanticSegmentation"),
}
"""The Hub's task, and the class of Transformers that loads the model, by what is counted"""

PICTURES = {
    "Examples: right, wrong but near, wrong and far": f"{PLOTS}/examples.jpg",
    "Training": f"{PLOTS}/history.png",
    "IoU of every class": f"{PLOTS}/iou.png",
}


def write_card(summary: RunSummary) -> None:
    """Write README.md of a run; one that a person has written or taken over stays. A failure is a warning."""
    with as_warning("The model card could not be written"):
        path = summary.output_dir / CARD_FILE
        if path.is_file() and MARKER not in path.read_text(encoding="utf-8"):
            logger.warning("%s was not written by a training run: it is left as it is.", path)
            return
        text = card_text(summary)
        with atomic_write(path) as file:
            file.write(text)


def card_text(summary: RunSummary) -> str:
    """The card as Markdown, with the metadata in front of it."""
    hierarchy, options, results = summary.hierarchy, summary.options, summary.results["eval"]
    repo_id = options["hub_model_id"] if options["push_to_hub"] else None
    more = {"On the test split, scored once": summary.results.get("test")}
    more["Of observations, by the mean over their images"] = summary.results["eval"].get("observations")
    data = data_name(options)
    name = (repo_id or summary.output_dir.resolve().name).rpartition("/")[2]
    (_, *columns), *rows = level_rows(results)
    weak, num_missing, last = [], 0, hierarchy.num_levels - 1
    if (summary.output_dir / REPORT_DATA_FILE).is_file():
        pairs = ConfusionPairs(hierarchy, ReportData.load(summary.output_dir / REPORT_DATA_FILE))
        num_missing = int((pairs.per_class(last)[0] == 0).sum())
        weak = [(score.path[-1], percent(score.f1)) for score in hardest_classes(pairs, last, 5)]
    content = {
        "title": name,
        "tree": " > ".join(hierarchy.levels),
        "columns": [in_words(column) for column in columns],
        "levels": list(zip(rows, hierarchy.num_classes, strict=True)),
        "paths": path_measures(results),
        "more": {title: level_rows(found)[1:] for title, found in more.items() if found},
        "evaluated_on": f"{results['num_samples']:,} images, split {options['validation_split']} of {data}",
        "example_path": path_of(hierarchy, *hierarchy.leaves[0]),
        "facts": {"data": data, **summary.facts},
        "weak": weak,
    }
    card = ModelCard.from_template(
        metadata(summary, name),
        str(Path(__file__).with_name("model_card.md")),
        **{key: plain_markdown(value) for key, value in content.items()},
        model_id=repo_id or UNKNOWN_MODEL,
        marker=MARKER,
        task=TASKS[summary.unit],
        decoding=options.get("decoding"),
        in_windows=options.get("eval_crop"),
        resize_mode=options.get("resize_mode"),
        num_leaves=hierarchy.num_leaves,
        has_intervals=bool(results.get("intervals")),
        has_report=(summary.output_dir / REPORT_FILE).is_file(),
        missing=(num_missing, hierarchy.num_classes[last]),
        pictures={text: path for text, path in PICTURES.items() if (summary.output_dir / path).is_file()},
    )
    return f"{card}\n"


def plain_markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, also in lists and dicts: names of classes may hold anything."""
    if isinstance(value, Mapping):
        return {plain_markdown(key): plain_markdown(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain_markdown(entry) for entry in value]
    if not isinstance(value, str):
        return value
    return re.sub(r"([\\`*_\[\]|~])", r"\\\1", html.escape(" ".join(value.split()), quote=False))


def metadata(summary: RunSummary, name: str) -> ModelCardData:
    """The block at the top: what the Hub searches and shows beside the model."""
    options, results, task = summary.options, summary.results["eval"], TASKS[summary.unit][0]
    own_data = options["train_file"] or options["validation_file"] or options["dataset_name"] == "demo"
    data = None if own_data else hub_id(options["dataset_name"])
    numbers = [
        (HUB_METRICS[measure], f"{level} {in_words(measure)}", row[measure])
        for level, row in results["levels"].items()
        for measure in summary.measures
    ]
    numbers.append(("accuracy", "every level right", results["path"]["full_path_accuracy"]))
    eval_results = [
        EvalResult(
            task_type=task,
            task_name=task.replace("-", " ").title(),
            dataset_type=data or "custom",
            dataset_name=data_name(options),
            dataset_config=options["dataset_config_name"],
            dataset_split=options["validation_split"],
            metric_type=kind,
            metric_name=words,
            metric_value=value,
        )
        for kind, words, value in numbers
        if value is not None and math.isfinite(value)
    ]
    return ModelCardData(
        model_name=name,
        library_name="transformers",
        pipeline_tag=task,
        license=options["license"],
        base_model=base_model(options),
        datasets=[data] if data else None,
        tags=["vision", "hierarchical", "label-tree", options["head"]],
        metrics=sorted({HUB_METRICS[measure] for measure in summary.measures}),
        eval_results=eval_results or None,
    )


def hub_id(name: str) -> str | None:
    """The name if it can be one on the Hub, owner and all, and is no folder here."""
    if name.count("/") != 1 or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def base_model(options: Mapping[str, Any]) -> str | None:
    """The Hub id of the backbone that training started from."""
    if options["no_pretrained"] or options["backbone_weights"]:
        return None
    return hub_id(options["model_name_or_path"].removeprefix("hf-hub:").removeprefix("hf_hub:"))
