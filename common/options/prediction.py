"""The options of predict.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from .arguments import option, out_of_range
from .segmentation import check_windows
from .shared import MISSING_VALUES

FORMATS, OBJECT_FORMATS = ("csv", "jsonl"), ("coco", "geojson")


@dataclass
class PredictArguments:
    """The options of this script."""

    model: str = option("", "The first word of the command line.")
    inputs: Sequence[str] = option([], "The words after it.")

    image_column: str = option("image", "Column with images, or their paths, in a table or data set.", group="Images")
    image_root: str | None = option(None, "Folder that paths in a table lie in; by default that of the table.")
    image_suffix: str | None = option(None, "Ending to add to image paths in a table that lack it, for example .jpg.")
    missing_values: list[str] | None = option(None, MISSING_VALUES)
    split: str | None = option(None, "Split of a data set with several.")
    max_image_pixels: int | None = option(
        None, "Images of more pixels are refused as broken; by default 178,956,970, as in Pillow.", "greater than 0"
    )
    level_columns: list[str] | None = option(
        None, "Columns with true names, one per level, to measure accuracy; by default those named as levels."
    )

    more_models: list[str] | None = option(
        None, "More of the same label tree, head and pixels: probabilities are averaged.", group="Models and views"
    )
    format: list[str] = option(["csv"], "Of predictions: csv, jsonl or both; of objects: coco, geojson or both.")
    tta: Literal["none", "hflip", "five_crop", "d4"] | None = option(
        None, "Average over views of each image: mirrored, five crops, or the eight turns of a mask; as in evaluation."
    )

    top_k: int = option(5, "Number of most probable leaves to list.", "greater than 0", group="Whole images")
    rank_by: Literal["probability", "distance"] = option(
        "probability", "Whether those listed are most probable, or nearest in the tree to what it may be."
    )
    min_confidence: float | None = option(None, "Answer at the finest level that is so probable.", "from 0 up to 1")
    target_precision: float | None = option(
        None, "Answer at the finest level at which this share of answers is expected right.", "from 0 up to 1"
    )
    costs: str | None = option(None, "YAML file with costs: answer at the cheapest level, or not at all.")
    allowed: str | None = option(None, "Text file with names of classes of any level, one a line: only these occur.")
    unknown: Literal["none", "probability", "logit", "energy", "tree"] = option(
        "none", "Score that tells images of unknown classes, and one in twenty others."
    )
    calibration: str | None = option(None, "Its calibration.json of an --eval_only run; by default the model's own.")
    review: str | None = option(None, "CSV file for images that are probably mislabelled, and those to label next.")
    features: str | None = option(None, "Parquet file for the backbone's features of each image, too.")
    group_by: str | None = option(None, "Column (observation): photographs of one value are also classified together.")

    eval_crop: int | None = option(
        None, "Windows of so many pixels, at own resolution; as in evaluation.", "greater than 0", group="Masks"
    )
    eval_stride: int | None = option(None, "From window to window; as in evaluation.", "greater than 0")
    resize_longer: int | None = option(
        None, "Longer side of images before windows are cut; by default as in evaluation.", "greater than 0"
    )
    mm_per_pixel: float | None = option(None, "Width of a pixel, for areas in square millimetres.", "greater than 0")
    overlay_size: int = option(1600, "Longer side of the overlays in pixels; 0 for none.", "at least 0")

    output_dir: str = option("predictions", "Folder for the results.", group="Run")
    per_device_eval_batch_size: int = option(64, "Images per forward pass of a process.", "greater than 0")
    dataloader_num_workers: int | None = option(None, "Per process; by default one per core, up to 8.", "at least 0")
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "By default as accelerate launch says.")

    # needed by make_accelerator, but no options here
    seed: ClassVar[int] = 0
    deterministic: ClassVar[bool] = False
    report_to: ClassVar[str] = "none"

    def validate(self) -> None:
        """Raise one ValueError that lists every wrong setting."""
        problems = [*out_of_range(self), *check_windows(self.eval_crop, self.eval_stride)]
        known = (*FORMATS, *OBJECT_FORMATS)
        if not set(self.format) <= set(known):
            problems.append(f"--format is {', '.join(known)}, not {' '.join(self.format)}")
        if self.review and not Path(self.review).parent.is_dir():
            problems.append(f"--review: there is no folder {Path(self.review).parent}")
        if self.allowed and not (Path(self.allowed).is_file() and Path(self.allowed).stat().st_size):
            problems.append(f"--allowed: there is no file {self.allowed}, or it is empty")
        ways = [name for name in ("min_confidence", "target_precision", "costs") if getattr(self, name) is not None]
        if len(ways) > 1:
            problems.append(f"--{' and --'.join(ways)} do the same in different ways; choose one")
        if problems:
            raise ValueError("; ".join(problems) + ".")


WORDS = {
    "model": {"metavar": "MODEL", "help": "folder or Hub id"},
    "inputs": {"metavar": "INPUT", "nargs": "+", "help": "image, folder, pattern, table or data set"},
}
