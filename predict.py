"""Use a model that train_taxonomy.py or train_segmentation.py wrote on new images.

    python predict.py MODEL INPUT ... --output_dir DIR [--OPTION VALUE ...]
    accelerate launch --multi_gpu predict.py MODEL INPUT ... --output_dir DIR
    python predict.py --help

MODEL is a folder or an id on the Hub. INPUT is an image, a folder of images, a pattern such as 'photos/**/*.jpg', a
table (CSV, TSV, JSON lines, Parquet) or a data set written by save_to_disk. Give the same command again after a kill:
what is done stays done. Broken images are passed over and listed in problems.csv.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from tqdm.auto import tqdm

from common.data.problems import Problem, write_problems
from common.data.rows import make_loader
from common.files import write_json
from common.metrics.backoff import find_labels
from common.metrics.calibration import Calibration, read_calibration
from common.model.modeling import LabelTreeForSemanticSegmentation, LabelTreeModel
from common.predict.images import FORMATS, ClassPredictor
from common.predict.inputs import ImageInputs, open_inputs
from common.predict.masks import MaskPredictor
from common.predict.parts import PartBatchSampler, PredictionParts, check_output_dir, plan_parts
from common.predict.predictor import Predictor
from common.predict.windows import check_windows
from common.publish.models import load_saved_model
from common.run.arguments import changed, option, out_of_range, parse_command
from common.run.command import run
from common.run.lock import RunLock
from common.run.processes import make_accelerator, num_workers

logger = logging.getLogger(__name__)


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class InputArguments:
    """Which images."""

    _argument_group_name = "Images"

    image_column: str = option("image", "Column of a table or data set with the images, or their paths.")
    image_root: str | None = option(None, "Folder that paths in a table lie in; by default that of the table.")
    split: str | None = option(None, "Split of a data set with several.")
    level_columns: list[str] | None = option(
        None, "Columns with the true names, one a level, to measure with; by default those called as the levels."
    )


@dataclass
class ClassArguments:
    """Answers about whole images (models of train_taxonomy.py)."""

    _argument_group_name = "Whole images"

    format: list[str] = option(["csv"], "csv, jsonl, or both.")
    top_k: int = option(5, "How many of the most probable leaves to list.", "greater than 0")
    min_confidence: float | None = option(
        None, "Answer at the finest level whose probability is at least this.", "from 0 up to 1"
    )
    target_precision: float | None = option(
        None, "Answer at the finest level where this share of answers is right.", "from 0 up to 1"
    )
    calibration: str | None = option(
        None, "calibration.json of an --eval_only run for --target_precision; the model's own by default."
    )
    group_by: str | None = option(None, "Column (observation) whose photographs are also answered together.")


@dataclass
class MaskArguments:
    """Masks (models of train_segmentation.py)."""

    _argument_group_name = "Masks"

    eval_crop: int | None = option(
        None,
        "Show windows of this many pixels, at the image's own resolution; by default as in evaluation.",
        "greater than 0",
    )
    eval_stride: int | None = option(None, "Distance from window to window; as in evaluation.", "greater than 0")
    resize_longer: int | None = option(
        None, "Longer side that images are resized to before windows are cut; as in evaluation.", "greater than 0"
    )
    overlay_size: int = option(1600, "Longer side of the overlays in pixels; 0 for none.", "at least 0")


@dataclass
class PredictionRunArguments:
    """The run itself."""

    _argument_group_name = "Run"

    output_dir: str = option("predictions", "Folder for the results.")
    per_device_eval_batch_size: int = option(64, "Images per forward pass of a process.", "greater than 0")
    dataloader_num_workers: int | None = option(
        None, "Per process; by default up to 8, as there are cores.", "at least 0"
    )
    mixed_precision: Literal["no", "fp16", "bf16"] | None = option(None, "By default what accelerate launch says.")


@dataclass
class PredictArguments(InputArguments, ClassArguments, MaskArguments, PredictionRunArguments):
    """The options of this script."""

    model: str = option("", "What the command line names first.")
    inputs: Sequence[str] = option([], "What it names after that.")

    # what make_accelerator wants to know, and nobody has to choose here
    seed: ClassVar[int] = 0
    deterministic: ClassVar[bool] = False
    report_to: ClassVar[str] = "none"

    def validate(self) -> None:
        """Raise one ValueError that lists every setting that cannot be right on its own."""
        problems = [*out_of_range(self), *check_windows(self.eval_crop, self.eval_stride)]
        if not set(self.format) <= set(FORMATS):
            problems.append(f"--format is {' or '.join(FORMATS)}, not {' '.join(self.format)}")
        if self.min_confidence is not None and self.target_precision is not None:
            problems.append("--min_confidence and --target_precision are two ways to the same; choose one")
        if problems:
            raise ValueError("; ".join(problems) + ".")


WORDS = {
    "model": {"metavar": "MODEL", "help": "folder or Hub id"},
    "inputs": {"metavar": "INPUT", "nargs": "+", "help": "image, folder, pattern, table or data set"},
}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict; returns what summary.json holds, in the main process.

    Raises:
        ValueError: for anything the user can mend, before the first image wherever that is possible.
    """
    args = parse_command(PredictArguments, argv, __doc__, **WORDS)
    accelerator = make_accelerator(args)
    if accelerator.is_main_process:
        check_output_dir(args.output_dir)
    inputs = open_inputs(args.inputs, args.image_column, args.image_root, args.split)
    model = load_saved_model(args.model).to(accelerator.device).eval()
    predictor = make_predictor(args, accelerator, model, inputs)
    summary = Prediction(args, accelerator, model, inputs, predictor).run()
    accelerator.end_training()
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# What is predicted
# ---------------------------------------------------------------------------------------------------------------------


def make_predictor(
    args: PredictArguments, accelerator: Accelerator, model: LabelTreeModel, inputs: ImageInputs
) -> Predictor:
    """What fits the model, with everything that the options and the table say."""
    dense = isinstance(model, LabelTreeForSemanticSegmentation)
    for line in idle_options(args, inputs, dense):
        logger.warning("%s", line)
    evaluation = model.config.evaluation
    if not evaluation or "decoding" not in evaluation:
        raise ValueError(f"{args.model} does not say how it was evaluated; it was written by an earlier version.")
    if dense:
        given = {name: getattr(args, name) for name in ("eval_crop", "eval_stride", "resize_longer")}
        return MaskPredictor(
            model,
            accelerator,
            output_dir=args.output_dir,
            evaluation={**evaluation, **{name: value for name, value in given.items() if value is not None}},
            overlay_size=args.overlay_size,
            window_batch_size=args.per_device_eval_batch_size,
        )
    return ClassPredictor(
        model,
        accelerator,
        decoding=evaluation["decoding"],
        top_k=args.top_k,
        formats=args.format,
        thresholds=thresholds(args, model),
        groups=inputs.column(args.group_by) if args.group_by else None,
        labels=true_labels(args, model, inputs),
    )


def idle_options(args: PredictArguments, inputs: ImageInputs, dense: bool) -> list[str]:
    """A sentence for each setting that was changed and cannot take effect."""
    files, table = inputs.rows is None, inputs.images.root is not None
    idle = [
        ("image_column", files, "the inputs are image files"),
        ("split", files or table, "the inputs are no data set"),
        ("image_root", not table, "no table names the images"),
        ("calibration", args.target_precision is None, "there is no --target_precision"),
        ("level_columns", dense, "the model predicts masks"),
        *((entry.name, dense, "the model predicts masks") for entry in fields(ClassArguments)),
        *((entry.name, not dense, "the model is for whole images") for entry in fields(MaskArguments)),
    ]
    told = {name: why for name, is_idle, why in idle if is_idle and changed(args, name)}
    return [f"--{name} has no effect: {why}." for name, why in told.items()]


def thresholds(args: PredictArguments, model: LabelTreeModel) -> list[float | None] | None:
    """Per level, the lowest probability to answer with; ``None`` if answers are not asked for."""
    if args.min_confidence is not None:
        return [args.min_confidence] * model.hierarchy.num_levels
    if args.target_precision is None:
        return None
    if args.calibration:
        calibration = read_calibration(args.calibration, model.hierarchy)
    elif model.config.calibration:
        calibration = Calibration.from_dict(model.config.calibration, model.hierarchy)
    else:
        raise ValueError(
            f"{args.model} carries no calibration, which --target_precision needs. Make one on validation data: "
            "train_taxonomy.py --eval_only --model_name_or_path MODEL ... writes calibration.json; give that with "
            "--calibration. Or use --min_confidence."
        )
    decoding = model.config.evaluation["decoding"]
    if calibration.decoding != decoding:
        raise ValueError(f"The calibration is for --decoding {calibration.decoding}, the model uses {decoding}.")
    target, found = calibration.for_target(args.target_precision)
    if all(threshold is None for threshold in found):
        raise ValueError(
            f"At no level could {target:.1%} of answers be shown to be right on the {calibration.num_images} images "
            "of the calibration; ask for less, or calibrate on more images."
        )
    if target != args.target_precision:
        logger.info("--target_precision %s: the calibration's next target is %s.", args.target_precision, target)
    return found


def true_labels(args: PredictArguments, model: LabelTreeModel, inputs: ImageInputs) -> np.ndarray | None:
    """Labels of every row and level, if the table or data set has them."""
    levels = model.hierarchy.levels
    columns = args.level_columns
    if columns is None:
        if inputs.rows is None or not set(levels) <= set(inputs.rows.column_names):
            return None
        columns = list(levels)
    if len(columns) != len(levels):
        raise ValueError(f"--level_columns takes a column for each of the levels {', '.join(levels)}.")
    return find_labels(model.hierarchy, [inputs.column(column) for column in columns])


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


class Prediction:
    """Predicts part after part, merges them in the end, and goes on where an earlier run stopped."""

    def __init__(
        self,
        args: PredictArguments,
        accelerator: Accelerator,
        model: LabelTreeModel,
        inputs: ImageInputs,
        predictor: Predictor,
    ) -> None:
        self.args, self.accelerator, self.inputs, self.predictor = args, accelerator, inputs, predictor
        self.model, self.output_dir = model, Path(args.output_dir)
        self.plan = plan_parts(len(inputs), predictor.largest_part, predictor.groups)
        self.parts = PredictionParts(self.output_dir, len(self.plan), self.fingerprint())

    def fingerprint(self) -> dict[str, Any]:
        """What decides the results, in the words of messages."""
        if not self.accelerator.is_main_process:
            return {}
        return {
            "the model": fingerprint_of(self.model),
            "the images": self.inputs.fingerprint(),
            "--mixed_precision": self.accelerator.mixed_precision,
            **{f"--{name}": getattr(self.args, name) for name in ("group_by", "level_columns")},
            **self.predictor.settings(),
        }

    def run(self) -> dict[str, Any]:
        """Everything; returns the summary in the main process."""
        main = self.accelerator.is_main_process
        with RunLock(self.output_dir) if main else nullcontext():
            finished, todo = self.begin()
            if not finished:
                self.predict(todo)
            if not main:
                return {}
            if finished:
                logger.info("%s is finished already.", self.output_dir)
                return json.loads((self.output_dir / SUMMARY).read_text(encoding="utf-8"))
            return self.finish()

    def begin(self) -> tuple[bool, list[int]]:
        """What the main process found in the output folder, known to all; ValueError if that is something else."""
        found: list[Any] = [None]
        if self.accelerator.is_main_process:
            try:
                found = [(*self.parts.begin(), None)]
            except (ValueError, OSError) as error:
                found = [(False, [], str(error))]
        finished, todo, error = broadcast_object_list(found)[0]
        if error:
            raise ValueError(error)
        num_done = len(self.plan) - len(todo)
        if num_done and not finished:
            logger.info("going on: %d of %d parts are done.", num_done, len(self.plan))
        return finished, todo

    def predict(self, todo: Sequence[int]) -> None:
        """This process's share of the parts."""
        accelerator = self.accelerator
        mine = todo[accelerator.process_index :: accelerator.num_processes]
        sampler = PartBatchSampler(
            [self.plan[part] for part in mine], self.predictor.batch_size(self.args.per_device_eval_batch_size)
        )
        batches = list(sampler.batches())
        loader = make_loader(
            self.predictor.samples(self.inputs.images),
            sampler,
            min(num_workers(self.args, accelerator), len(batches)),
            accelerator.device.type == "cuda",
        )
        lines: list[dict[str, Any]] = []
        with ImageProgress(sum(map(len, sampler.parts)), accelerator) as progress:
            for index, ((position, rows), batch) in enumerate(zip(batches, loader, strict=True)):
                lines += self.predict_batch(rows, batch)
                progress.update(len(rows))
                if index + 1 == len(batches) or batches[index + 1][0] != position:
                    self.parts.write(mine[position], lines + self.predictor.finish_part())
                    lines = []

    def predict_batch(self, rows: np.ndarray, batch: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Lines of a batch's images, and of those that are broken."""
        good = [] if batch["pixels"] is None else batch["rows"].tolist()
        bad = [int(row) for row in rows if row not in good]
        lines = [
            {"kind": "problem", "row": row, "problem": message}
            for row, message in zip(bad, batch["problems"], strict=True)
        ]
        return lines + (self.predictor.predict(batch, [self.inputs.names[row] for row in good]) if good else [])

    def finish(self) -> dict[str, Any]:
        """Wait for the other processes, and put the parts together."""
        self.parts.wait(lambda: None)
        problems: list[Problem] = []

        def lines() -> Iterator[dict[str, Any]]:
            for line in self.parts.lines():
                if line["kind"] == "problem":
                    problems.append(self.problem(line))
                else:
                    yield line

        results = self.predictor.merge(lines(), self.output_dir)
        if problems:
            write_problems(self.output_dir / "problems.csv", sorted(problems, key=lambda problem: problem.row))
        summary = {"model": self.args.model, "num_images": len(self.inputs), "num_broken": len(problems), **results}
        write_json(self.output_dir / SUMMARY, summary)
        self.parts.finish()
        for line in self.predictor.describe_results(results):
            logger.info("%s", line)
        if problems:
            logger.info("%d of %d images are broken, see problems.csv.", len(problems), len(self.inputs))
        logger.info("Results are in %s.", self.output_dir)
        return summary

    def problem(self, line: Mapping[str, Any]) -> Problem:
        """A broken image as problems.csv has it."""
        row, message = line["row"], line["problem"]
        kind = next((kind for words, kind in KINDS.items() if words in message), "broken")
        message = message.removeprefix(f"{self.inputs.images.describe(row)}: ")
        return Problem("", row, self.inputs.names[row], kind, message)


SUMMARY = "summary.json"
KINDS = {"lies outside": "outside of the root", "No such file": "missing", "row has no image": "missing"}


def fingerprint_of(model: LabelTreeModel) -> str:
    """Of weights and configuration, wherever they came from."""
    config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
    digest = xxhash.xxh3_128(json.dumps(config, sort_keys=True, default=str).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class ImageProgress:
    """A bar with the rate where a person watches, otherwise a line now and then; of the main process's share."""

    def __init__(self, num_images: int, accelerator: Accelerator, seconds: float = 30) -> None:
        show = accelerator.is_main_process
        others = accelerator.num_processes - 1
        live = show and sys.stderr.isatty()
        self.bar = tqdm(
            total=num_images,
            unit=" images",
            desc=f"predicting (and {others} more)" if others else "predicting",
            dynamic_ncols=True,
            disable=not live,
        )
        self.show, self.num_images, self.done = show and not live, num_images, 0
        self.started = self.told = time.perf_counter()
        self.seconds = seconds

    def update(self, num_images: int) -> None:
        """So many more are done."""
        self.bar.update(num_images)
        self.done += num_images
        now = time.perf_counter()
        if self.show and (now - self.told > self.seconds or self.done == self.num_images):
            self.told = now
            rate = self.done / (now - self.started)
            logger.info("%s of %s images  %.1f images/s", f"{self.done:,}", f"{self.num_images:,}", rate)

    def __enter__(self) -> ImageProgress:
        return self

    def __exit__(self, *_: Any) -> None:
        self.bar.close()


if __name__ == "__main__":
    run(main)
