"""Predict new images with a model that train_taxonomy.py or train_segmentation.py wrote.

    python predict.py MODEL INPUT ... --output_dir DIR [--OPTION VALUE ...]
    python predict.py output photos --output_dir predictions                        # a folder of images
    python predict.py output table.csv --image_column file --target_precision 0.95  # "Amanita sp." where unsure
    accelerate launch --multi_gpu predict.py output photos --output_dir predictions

MODEL is a folder or an id on the Hub. INPUT is an image, a folder of images, a pattern such as 'photos/**/*.jpg', a
table (CSV, TSV, JSON lines, Parquet) or a data set written by save_to_disk. After an interruption, run the same
command again: it computes what is missing. Broken images are skipped and listed in problems.csv.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from common.options.arguments import changed, groups_of, parse_command
from common.options.prediction import FORMATS, OBJECT_FORMATS, WORDS, PredictArguments
from common.run.command import run

if __name__ == "__main__":  # --help and wrong options are answered before torch is imported, which takes seconds
    run(lambda: parse_command(PredictArguments, None, __doc__, **WORDS))

import numpy as np
import torch
import xxhash
from accelerate import Accelerator
from PIL import Image
from tqdm.auto import tqdm

from common.data.problems import Problem, write_problems
from common.data.rows import Samples, make_loader
from common.data.splits import Reading
from common.labels.encoding import find_labels, group_key
from common.labels.hierarchy_files import read_costs
from common.metrics.calibration import fewest_images, read_calibration
from common.model.answers import thresholds_for
from common.model.modeling import LabelTreeForSemanticSegmentation, LabelTreeModel
from common.predict.images import ClassPredictor
from common.predict.inputs import ImageInputs, open_inputs
from common.predict.masks import MaskPredictor
from common.predict.parts import PredictionParts, check_output_dir, plan_parts
from common.predict.views import IMAGE_VIEWS, MASK_VIEWS, load_models
from common.run.processes import make_accelerator, num_workers, on_main_process
from common.system.files import write_json
from common.system.lock import RunLock

logger = logging.getLogger(__name__)

Predictor = ClassPredictor | MaskPredictor

SUMMARY = "summary.json"
LOG_SECONDS = 30  # between lines in logs
PROBLEM_KINDS = {"lies outside": "outside of the root", "No such file": "missing", "row has no image": "missing"}
"""Part of a message about an image -> the kind that problems.csv gives; otherwise it is broken"""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Predict; returns what summary.json holds, in the main process.

    Raises:
        ValueError: for anything the user can fix, before the first image wherever that is possible.
    """
    args = parse_command(PredictArguments, argv, __doc__, **WORDS)
    accelerator = make_accelerator(args)
    if args.max_image_pixels:
        Image.MAX_IMAGE_PIXELS = args.max_image_pixels / 2  # above twice as many Pillow refuses
    if accelerator.is_main_process:
        check_output_dir(args.output_dir)
    inputs = open_inputs(args.inputs, args.image_column, args.image_root, args.split, Reading.of(args))
    models = [model.to(accelerator.device).eval() for model in load_models([args.model, *(args.more_models or [])])]
    predictor = make_predictor(args, accelerator, models, inputs)

    plan = plan_parts(len(inputs), predictor.largest_part, predictor.groups)
    settings = fingerprint(args, accelerator, models, inputs, predictor) if accelerator.is_main_process else {}
    parts = PredictionParts(args.output_dir, len(plan), settings)
    summary: dict[str, Any] = {}
    with on_main_process(accelerator, lambda: RunLock(args.output_dir)) or nullcontext():
        todo = on_main_process(accelerator, parts.begin, share=True)
        if todo is not None:
            if len(todo) < len(plan):
                logger.info("resuming: %d of %d parts are done.", len(plan) - len(todo), len(plan))
            predict(args, accelerator, inputs, predictor, {part: plan[part] for part in todo}, parts)
        if accelerator.is_main_process and todo is None:
            logger.info("%s is finished already.", args.output_dir)
            summary = json.loads((Path(args.output_dir) / SUMMARY).read_text(encoding="utf-8"))
        elif accelerator.is_main_process:
            parts.wait()
            summary = merge(args, inputs, predictor, parts)
    accelerator.end_training()
    if summary and summary["num_broken"] == summary["num_images"]:
        raise ValueError(f"None of the {summary['num_images']} images could be read; problems.csv says why.")
    return summary


# ---------------------------------------------------------------------------------------------------------------------
# The predictor and its settings
# ---------------------------------------------------------------------------------------------------------------------


def make_predictor(
    args: PredictArguments, accelerator: Accelerator, models: list[LabelTreeModel], inputs: ImageInputs
) -> Predictor:
    """The predictor for the kind of model, with the settings of options, table and model."""
    model, evaluation = models[0], models[0].config.evaluation
    dense = isinstance(model, LabelTreeForSemanticSegmentation)
    for line in idle_options(args, inputs, dense):
        logger.warning("%s", line)
    if not evaluation or "decoding" not in evaluation:
        raise ValueError(f"{args.model} was written by an earlier version, without its evaluation settings.")
    wrong = set(args.format) - ({"csv", *OBJECT_FORMATS} if dense else set(FORMATS))
    if wrong:
        raise ValueError(f"--format {' '.join(sorted(wrong))} is not for this kind of model.")
    if args.costs and not dense:
        costs = read_costs(args.costs, model.hierarchy)
        model.config.evaluation = {**evaluation, "decoding": "cost", "costs": costs}
    known = MASK_VIEWS if dense else IMAGE_VIEWS
    if args.tta and args.tta not in known:
        raise ValueError(f"--tta of this kind of model is one of {', '.join(known)}, not {args.tta}.")
    if dense:
        return MaskPredictor(args, accelerator, models)
    groups = [group_key(cell) for cell in inputs.column(args.group_by)] if args.group_by else None
    labels = true_labels(args, model, inputs)
    bound = None if args.unknown == "none" else calibration_of(args, model)["unknown_below"][args.unknown]
    return ClassPredictor(args, accelerator, models, thresholds(args, model), bound, groups, labels)


def idle_options(args: PredictArguments, inputs: ImageInputs, dense: bool) -> list[str]:
    """A sentence for each setting that was changed and cannot take effect."""
    files, table = inputs.rows is None, inputs.images.root is not None or args.inputs[0].lower().endswith(".txt")
    groups = groups_of(PredictArguments)
    of_images, of_masks = ([entry.name for entry in groups[title]] for title in ("Whole images", "Masks"))
    idle = [
        (files, ["image_column"], "the inputs are image files"),
        (files or table, ["split"], "the inputs are not a data set"),
        (not table, ["image_root", "image_suffix"], "there is no table with paths"),
        (not (dense or args.target_precision or args.unknown != "none"), ["calibration"], "nothing here needs one"),
        (dense, ["level_columns", *of_images], "the model predicts masks"),
        (not dense, of_masks, "the model classifies whole images"),
    ]
    chosen = [(name, why) for is_idle, names, why in idle if is_idle for name in names if changed(args, name)]
    return [f"--{name} has no effect: {why}." for name, why in chosen]


def thresholds(args: PredictArguments, model: LabelTreeModel) -> list[float | None] | None:
    """Per level, the lowest probability of an answer (``None``: never answer); ``None`` without answers."""
    if args.min_confidence is not None:
        return [args.min_confidence] * model.hierarchy.num_levels
    if args.target_precision is None:
        return None
    calibration = calibration_of(args, model)
    decoding = model.config.evaluation["decoding"]
    if calibration["decoding"] != decoding:
        raise ValueError(f"The calibration is for --decoding {calibration['decoding']}, the model uses {decoding}.")
    target, found = thresholds_for(calibration, args.target_precision)
    num_images, need = calibration["num_images"], fewest_images(target)
    why = f"calibrate on more than {need:,}" if num_images < need else "too few answers are right: ask for less"
    never = [level for level, threshold in zip(calibration["levels"], found, strict=True) if threshold is None]
    reason = f"{num_images:,} calibration images cannot show {target:.1%} for {', '.join(never)}; {why}."
    if len(never) == len(found):
        raise ValueError(f"--target_precision {args.target_precision}: no level would be answered. {reason}")
    if never:
        logger.info("Never answered: %s", reason)
    if target != args.target_precision:
        logger.info("--target_precision %s: using %s, the calibration's next target.", args.target_precision, target)
    return found


def calibration_of(args: PredictArguments, model: LabelTreeModel) -> dict[str, Any]:
    """That of ``--calibration`` or of the model; ValueError if it is not there."""
    calibration = read_calibration(args.calibration, model.hierarchy) if args.calibration else model.config.calibration
    if not calibration or (args.unknown != "none" and not calibration.get("unknown_below")):
        raise ValueError(
            f"{args.model} has no calibration, which --target_precision and --unknown need. Make one on validation "
            "data: train_taxonomy.py --eval_only --model_name_or_path MODEL ... writes calibration.json; pass it with "
            "--calibration. Or use --min_confidence."
        )
    return calibration


def true_labels(args: PredictArguments, model: LabelTreeModel, inputs: ImageInputs) -> np.ndarray | None:
    """Labels int64 (rows, levels), if the table or data set has them."""
    levels = model.hierarchy.levels
    columns = args.level_columns or list(levels)
    if args.level_columns is None and (inputs.rows is None or not set(levels) <= set(inputs.rows.column_names)):
        return None
    if len(columns) != len(levels):
        raise ValueError(f"--level_columns takes a column for each of the levels {', '.join(levels)}.")
    return find_labels(model.hierarchy, [inputs.column(column) for column in columns])


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


def fingerprint(
    args: PredictArguments,
    accelerator: Accelerator,
    models: list[LabelTreeModel],
    inputs: ImageInputs,
    predictor: Predictor,
) -> dict[str, Any]:
    """What the results depend on, by its name in messages."""
    digest = xxhash.xxh3_128()  # of weights and configurations
    for model in models:
        config = {name: value for name, value in model.config.to_dict().items() if name != "_name_or_path"}
        digest.update(json.dumps(config, sort_keys=True, default=str).encode())
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    options = ("group_by", "level_columns", "max_image_pixels", "review")
    return {
        "the model": digest.hexdigest(),
        "the images": inputs.fingerprint(),
        "--mixed_precision": accelerator.mixed_precision,
        **{f"--{name}": getattr(args, name) for name in options},
        **predictor.settings,
    }


def predict(
    args: PredictArguments,
    accelerator: Accelerator,
    inputs: ImageInputs,
    predictor: Predictor,
    todo: Mapping[int, np.ndarray],
    parts: PredictionParts,
) -> None:
    """Predict and write this process's share of the parts; ``todo`` has the rows of each."""
    size = predictor.batch_size
    batches = [
        (part, rows[start : start + size])
        for part, rows in list(todo.items())[accelerator.process_index :: accelerator.num_processes]
        for start in range(0, len(rows), size)
    ]
    loader = make_loader(
        Samples(inputs.images, np.arange(len(inputs)), predictor.transform, on_bad_sample="drop"),
        [[(0, int(row)) for row in rows] for _, rows in batches],
        min(num_workers(args, accelerator), len(batches)),
        accelerator.device.type == "cuda",
    )
    total, done, lines = sum(len(rows) for _, rows in batches), 0, []
    live = accelerator.is_main_process and sys.stderr.isatty()
    bar = tqdm(total=total, unit=" images", desc="predicting", dynamic_ncols=True, disable=not live)
    start = logged = time.perf_counter()
    for index, ((part, rows), batch) in enumerate(zip(batches, loader, strict=True)):
        good = [] if batch["pixels"] is None else batch["rows"].tolist()
        bad = [int(row) for row in rows if row not in good]
        problems = zip(bad, batch["problems"], strict=True)
        lines += [{"kind": "problem", "row": row, "problem": message} for row, message in problems]
        if good:
            lines += predictor.predict(batch, [inputs.names[row] for row in good])
        if index + 1 == len(batches) or batches[index + 1][0] != part:
            parts.write(part, lines if predictor.groups is None else lines + predictor.finish_part())
            lines = []
        done, now = done + len(rows), time.perf_counter()
        bar.update(len(rows))
        if not live and (now - logged > LOG_SECONDS or done == total):  # only the main process shows these
            logger.info("%s of %s images  %.1f images/s", f"{done:,}", f"{total:,}", done / (now - start))
            logged = now
    bar.close()


def merge(args: PredictArguments, inputs: ImageInputs, predictor: Predictor, parts: PredictionParts) -> dict[str, Any]:
    """Write tables and summary.json from all parts, which must be complete; returns the summary."""
    problems: list[Problem] = []

    def good_lines() -> Iterator[dict[str, Any]]:
        for line in parts.lines():
            if line["kind"] != "problem":
                yield line
                continue
            row, message = line["row"], line["problem"]
            kind = next((kind for words, kind in PROBLEM_KINDS.items() if words in message), "broken")
            text = message.removeprefix(f"{inputs.images.describe(row)}: ")
            problems.append(Problem("", row, inputs.names[row], kind, text))

    output_dir = Path(args.output_dir)
    results = predictor.merge(good_lines(), output_dir)
    if problems:
        write_problems(output_dir / "problems.csv", sorted(problems, key=lambda entry: entry.row))
    summary = {"model": args.model, "num_images": len(inputs), "num_broken": len(problems), **results}
    write_json(output_dir / SUMMARY, summary)
    parts.finish()
    if problems:
        logger.info("%d of %d images are broken, see problems.csv.", len(problems), len(inputs))
    logger.info("Results are in %s.", output_dir)
    return summary


if __name__ == "__main__":
    run(main)
