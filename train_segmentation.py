"""Train a segmentation model whose labels form a tree: binary > coarse > fine, one class per level and pixel.

    accelerate launch train_segmentation.py                               # the demo, about a minute on two CPU cores
    accelerate launch train_segmentation.py --config configs/FILE.yaml --OPTION VALUE ...
    python train_segmentation.py --help

``main`` tells the story: arguments, data, model, evaluation, optimizer, training loop, results. What it calls
stands below it, in the same order; what both scripts share lives in common/. train_taxonomy.py is its twin.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from common.options.arguments import parse_arguments
from common.options.segmentation import SegmentationArguments
from common.run import command

DEMO_CONFIG = Path(__file__).parent / "configs" / "segmentation_demo.yaml"

if __name__ == "__main__":  # --help and wrong options are answered before torch is imported, which takes seconds
    command.run(lambda: parse_arguments(SegmentationArguments, None, __doc__, DEMO_CONFIG))

import numpy as np
import torch
import transformers  # its names are imported when they are used
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from common.checkpoint.state import TrainState
from common.data.copy_paste import CopyPaste
from common.data.masks import MaskedImageRows, MaskReader, masks_to_labels
from common.data.parts import Data, Part
from common.data.rows import ImageRows, ProblemLog, Samples, make_loader
from common.data.sampling import GlobalBatchSampler, evaluation_batches, seed_step
from common.images.mask_transforms import Geometry, MaskEvaluationTransform, MaskTrainTransform
from common.images.transforms import Normalize
from common.labels.hierarchy_files import find_hierarchy, load_hierarchy, read_ignored
from common.losses.class_weights import class_weights
from common.losses.segmentation import SegmentationLoss
from common.metrics.intervals import bootstrap_intervals
from common.metrics.prediction_table import gather_rows
from common.metrics.report_data import REPORT_DATA_FILE, ReportData
from common.metrics.segmentation import SegmentationMetrics
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForSemanticSegmentation
from common.optim.batch_norm import prepare_batch_norm, set_train_mode
from common.optim.parameters import make_optimizer
from common.optim.schedule import Plateau, make_curriculum, set_learning_rate
from common.optim.skipping import RunningStatistics, clip_gradients, find_nonfinite, skipped_if, update_ema
from common.optim.tuning import HeldBack, merged, prepare_tuning
from common.predict.views import averaged
from common.predict.windows import Resampler, dense_labels, image_logits, labels_at_stride, warn_of_scale
from common.publish.models import load_weights, save_model
from common.report.mask_examples import ExampleKeeper, MaskExample, draw_plots, keep_for_plots
from common.report.prediction_masks import PredictionFolder
from common.report.summary import RunSummary
from common.run import setup
from common.run.dry_run import dry_run
from common.run.evaluation import interruptible_batches
from common.run.identity import as_begun, run_facts, run_identity
from common.run.mask_setup import cached_rows, look_at_masks
from common.run.processes import backward, make_accelerator, num_workers, sync_buffers
from common.run.run import Run
from common.run.stopping import StopRequest

logger = logging.getLogger(__name__)

EVALUATION_OPTIONS = ("resize_mode", "eval_crop", "eval_stride", "resize_longer", "tta", "decoding")  # saved
LOSS_OPTIONS = ("focal_gamma", "tversky_beta", "ohem", "dice_over", "aux_weight")
MEASURES = ("mean_iou", "mean_f1")  # of every level, in report, card and with intervals


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

    Raises:
        ValueError: for anything the user can fix, before training starts wherever that is possible.
        Stopped: a signal or the time budget ended the run before its end; there is a checkpoint to resume from.
    """
    args = parse_arguments(SegmentationArguments, argv, __doc__, DEMO_CONFIG)
    setup.evaluated_as_saved(args, EVALUATION_OPTIONS)
    accelerator = make_accelerator(args)
    as_begun(args, accelerator)
    device, problems = accelerator.device, ProblemLog(args.on_bad_sample)

    # ------------------------------------------------------------------------------------------------------------ data
    data = load_data(args, accelerator)
    sampler = None if args.eval_only else setup.make_sampler(args, accelerator, len(data.train.rows))
    curriculum = make_curriculum(args, data.hierarchy, sampler, normalize=False)
    setup.check_settings(args, accelerator, SegmentationMetrics(data.hierarchy, tolerance=args.boundary_tolerance))

    # ----------------------------------------------------------------------------------------------------------- model
    memory_format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = build_model(args, data.hierarchy).to(device, memory_format=memory_format)
    spec = model.config.backbone
    normalize = Normalize(spec["mean"], spec["std"], memory_format).to(device)
    if sampler is not None:
        prepare_tuning(model, args.tune, args.lora_rank, args.gradient_checkpointing, bool(args.unfreeze_after))
        size, parts = sampler.micro_batch_size, sampler.accumulation_steps
        prepare_batch_norm(model, args.batch_norm, accelerator.num_processes, parts, size)
        dry_run(args, accelerator, model, partial(random_loss, args, accelerator, data, model), size)

    # ------------------------------------------------------------------------------------------------ files and masks
    setup.check_images(accelerator, [data.train, data.validation, data.test], problems)
    look_at_masks(args, accelerator, data, problems)
    loss_fn = make_loss(args, data, model, curriculum.stages[-1].weights).to(device)

    # ------------------------------------------------------------------------------------------------------ evaluation
    stop = StopRequest(args.max_train_minutes)
    eval_loss_fn = make_loss(args, data, model, curriculum.stages[-1].weights).to(device).eval()

    def evaluate(part: Part, loader: DataLoader, model: LabelTreeForSemanticSegmentation) -> Evaluation:
        batches = interruptible_batches(loader, stop, problems, accelerator)
        return evaluate_model(args, accelerator, part, batches, normalize, eval_loss_fn, model)

    eval_loader = make_eval_loader(args, accelerator, data.validation, spec)
    facts = run_facts(args, accelerator, model, curriculum, sampler, data, **training_facts(args, data))
    summary = RunSummary(Path(args.output_dir), asdict(args), data.hierarchy, "pixels", MEASURES, facts)
    draw = partial(draw_plots, Path(args.output_dir), hierarchy=data.hierarchy)
    if args.eval_only:
        run = Run(args, accelerator, stop, summary, problems)
        with run.started():
            evaluation = evaluate(data.validation, eval_loader, model)
            save_evaluation(args, accelerator, data.validation, evaluation)
            results = {"train": None, "eval": evaluation.results}
            run.finish(results, model, draw=draw)
        return results

    # ------------------------------------------------------------------------------------------------------- optimizer
    train_loader = make_train_loader(args, accelerator, data.train, spec, sampler)
    ema = ModelEmaV3(model, decay=args.ema_decay, use_warmup=True) if args.ema_decay else None
    optimizer, statistics = make_optimizer(args, model, device), RunningStatistics(model)
    backbone = HeldBack(args, model, sampler)
    if args.compile:
        model.compile()
    wrapped, optimizer = accelerator.prepare(model, optimizer)
    rate_at = partial(curriculum.learning_rate_factor, args.lr_scheduler_type, warmup_ratio=args.warmup_ratio)
    plateau = Plateau(args.plateau_factor, args.plateau_patience) if args.lr_scheduler_type == "plateau" else None
    state = TrainState(accelerator, model, optimizer, ema, sampler, problems, plateau, partly=args.partly)
    identity = run_identity(args, data, sampler)
    run = Run(args, accelerator, stop, summary, problems, state, identity)

    # --------------------------------------------------------------------------------------------------- training loop
    with run.started():  # locks the folder; from the newest checkpoint, or the beginning
        batches, stage = iter(train_loader), None
        while True:
            step = sampler.global_step

            # Evaluate at the end of an epoch and of the training, and save the model if it is the best so far.
            if run.evaluation_due():
                candidate = model if ema is None else ema.module
                sync_buffers(candidate, accelerator)
                evaluation = evaluate(data.validation, eval_loader, candidate)
                rate = rate_at(max(step - 1, 0)) * (1 if plateau is None else plateau.factor)  # of the last step
                run.log_evaluation(evaluation.results, args.learning_rate * rate)
                if run.is_best:
                    save_best(args, accelerator, candidate, evaluation)
                    save_evaluation(args, accelerator, data.validation, evaluation)
                    run.best_saved()

            # A checkpoint is due by steps, epochs or seconds, or because of a signal, which ends the run here.
            run.save_if_due()
            if run.done:
                break

            # Weights of the levels and learning rate are functions of the step (but for plateau): nothing to restore.
            if curriculum.stage(step) is not stage:
                stage = curriculum.stage(step)
                run.log_stage(curriculum, stage)
            loss_fn.weights = stage.weights
            wrapped = backbone.released(wrapped, step)
            rate = rate_at(step) * (1 if plateau is None else plateau.factor)
            set_learning_rate(optimizer, rate)

            # Each level's mean is over the labelled elements of the global batch, not of each micro-batch.
            micro_batches = [next(batches) for _ in range(sampler.accumulation_steps)]
            labels = [masks_to_labels(batch["labels"].to(device, non_blocking=True)) for batch in micro_batches]
            denominators = accelerator.reduce(sum(loss_fn.label_weights(part) for part in labels), "sum")

            set_train_mode(model, args.batch_norm)
            statistics.remember()
            total_loss = torch.zeros((), device=device)
            for micro_step, batch in enumerate(micro_batches):
                problems.add(batch["problems"])
                seed_step(args.seed, step, micro_step, accelerator.process_index)
                pixels = normalize(batch["pixels"].to(device, non_blocking=True))
                is_last = micro_step == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(wrapped):
                    logits = wrapped(pixels, logits_only=True)
                    loss = loss_fn(logits, labels[micro_step], denominators)
                    backward(accelerator, loss)
                total_loss += loss.detach()

            # If loss or gradients are NaN or infinite in any process, the step changes nothing in all of them.
            gradient_norm = clip_gradients(accelerator, model, args.max_grad_norm)
            nonfinite = find_nonfinite(accelerator, total_loss, gradient_norm)
            with model.heads.untrained_kept(stage.weights), skipped_if(nonfinite, optimizer):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            statistics.restore_if(nonfinite)
            if ema is not None:
                update_ema(ema, model, step + 1, nonfinite)
            sampler.advance()
            run.log_step(total_loss, nonfinite, args.learning_rate * rate)

        # ----------------------------------------------------------------------------------------------------- results
        if args.find_learning_rate:
            return run.finish_range_test()
        run.save_end()
        model = merged(model)
        results = {"train": run.train_results(), "eval": state.best_results}
        if data.test is not None:  # once, by the best model
            load_weights(model, args.output_dir, accelerator)
            test = evaluate(data.test, make_eval_loader(args, accelerator, data.test, spec), model)
            save_evaluation(args, accelerator, data.test, test)
            run.show_test(test.results)
            results["test"] = test.results
        run.finish(results, model, draw=draw)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def load_data(args: SegmentationArguments, accelerator: Accelerator) -> Data:
    """Data set, label tree, and all checks that need no model and no pixel."""
    splits, name = setup.open_splits(args, accelerator, draw_demo)
    file = args.hierarchy or find_hierarchy(name, required=not args.eval_only)
    if args.eval_only:
        hierarchy = LabelTreeForSemanticSegmentation.read_hierarchy(args.model_name_or_path)
    else:
        hierarchy, resolved = load_hierarchy(file)
        for line in resolved:
            logger.warning("label tree: %s", line)
    if "last" not in hierarchy.levels:
        args.metric_for_best_model = args.metric_for_best_model.replace(".last.", f".{hierarchy.levels[-1]}.")
    ignored = [*(args.ignore_values or ()), *(read_ignored(file) if file else ())]
    reader = MaskReader(hierarchy, args.mask_palette, ignored, args.mask_orientation == "raw")

    def read(rows: Dataset, name: str, root: Path) -> tuple[MaskedImageRows, None]:
        columns = (ImageRows(rows, column, name, root) for column in (args.image_column, args.mask_column))
        return MaskedImageRows(*columns, reader), None

    return setup.open_parts(args, splits, hierarchy, read)


def draw_demo() -> Path:
    """The folder of the demo data, drawn if it is not there yet."""
    from demo.sets import make_artworks  # only the demo needs what draws it

    return make_artworks(Path(HF_HOME) / "label_tree_demo_2" / "artworks")


def make_train_loader(
    args: SegmentationArguments,
    accelerator: Accelerator,
    part: Part,
    spec: Mapping[str, Any],
    sampler: GlobalBatchSampler,
) -> DataLoader:
    """Augmented batches with ``pixels`` (uint8), ``labels`` (masks) and ``problems``, in the sampler's order."""
    rows = cached_rows(args, accelerator, part.images)
    paste = CopyPaste(rows, args.copy_paste, part.looked, part.pixels) if args.copy_paste else None
    transform = MaskTrainTransform(args, geometry(args, spec["image_size"]), spec["mean"], part.pixels, paste)
    on_bad_sample = "replace" if args.on_bad_sample == "skip" else "error"
    images = Samples(rows, part.rows, transform, seed=args.seed, on_bad_sample=on_bad_sample)
    return make_loader(images, sampler, num_workers(args, accelerator), accelerator.device.type == "cuda")


def make_eval_loader(
    args: SegmentationArguments, accelerator: Accelerator, part: Part, spec: Mapping[str, Any]
) -> DataLoader:
    """Every evaluation image once, in one process."""
    shown = geometry(args, args.eval_crop or spec["image_size"])
    rows = cached_rows(args, accelerator, part.images)
    images = Samples(rows, part.rows, MaskEvaluationTransform(shown, spec["mean"]), on_bad_sample="drop")
    batch_size = 1 if shown.windows else args.per_device_eval_batch_size
    batches = evaluation_batches(len(images), batch_size, accelerator.process_index, accelerator.num_processes)
    return make_loader(images, batches, num_workers(args, accelerator), accelerator.device.type == "cuda")


def geometry(args: SegmentationArguments, size: int) -> Geometry:
    """At which size images are shown, for windows or whole images of ``size``."""
    return Geometry(size, args.resize_mode, bool(args.eval_crop), args.resize_longer)


def training_facts(args: SegmentationArguments, data: Data) -> dict[str, str]:
    """What the banner says of this task's training."""
    if data.train_pixels is None:
        return {}
    pixels = data.train_pixels / max(1, data.train_pixels.sum())
    names = data.hierarchy.leaf_names()
    return {
        "pixels": ", ".join(f"{names[leaf]} {100 * pixels[leaf]:.3g}%" for leaf in (-pixels).argsort()),
        "decoder": f"{args.decoder}, {args.decoder_channels} channels",
        "loss": f"{' '.join(args.loss)}, class weights {args.class_weighting}",
    }


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: SegmentationArguments, hierarchy: Hierarchy) -> LabelTreeForSemanticSegmentation:
    """A backbone with fresh decoder and heads; or a model that this script wrote, with the classes it knows."""
    model, backbone, before = setup.start_from(
        args, LabelTreeForSemanticSegmentation, hierarchy, "decoder", "decoder_channels", pyramid=True
    )
    setup.settle(args, hierarchy, model, backbone)
    evaluation = {name: getattr(args, name) for name in EVALUATION_OPTIONS}
    if model is None:
        model = LabelTreeForSemanticSegmentation.build(
            backbone,
            hierarchy,
            args.head,
            dropout=args.dropout,
            head_scale=args.head_scale,
            decoder=args.decoder,
            decoder_channels=args.decoder_channels,
        )
        model.go_on_from(before)
    if args.eval_only:
        warn_of_scale(model.config.evaluation or {}, args.eval_crop)
    model.config.evaluation = evaluation
    if args.aux_weight:
        model.add_auxiliary_head()
    return model


def make_loss(
    args: SegmentationArguments, data: Data, model: LabelTreeForSemanticSegmentation, level_weights: Sequence[float]
) -> SegmentationLoss:
    """The weighted parts of every level that has weight."""
    weights = None
    if data.train_pixels is not None:
        counts = data.hierarchy.count_lifted(torch.from_numpy(data.train_pixels))
        weights = [class_weights(count, args.class_weighting, args.class_weight_max_ratio) for count in counts]
    options = {name: getattr(args, name) for name in LOSS_OPTIONS}
    return SegmentationLoss(model.heads, level_weights, weights, args.loss_parts, **options)


def random_loss(
    args: SegmentationArguments,
    accelerator: Accelerator,
    data: Data,
    model: LabelTreeForSemanticSegmentation,
    pixels: torch.Tensor,
) -> torch.Tensor:
    """The loss of random labels at every level, as in training; for the dry run."""
    set_train_mode(model, args.batch_norm)
    with accelerator.autocast():
        logits = model(pixels, logits_only=True)
    labels = torch.randint(data.hierarchy.num_leaves, (len(pixels), *pixels.shape[2:]), device=pixels.device)
    return make_loss(args, data, model, [1.0] * data.hierarchy.num_levels).to(pixels.device)(logits, labels)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """Results by the contract of all_results.json, and what is written beside them if the model is kept."""

    results: dict[str, Any]
    report_data: ReportData
    masks: PredictionFolder
    examples: dict[str, list[MaskExample]]


@torch.no_grad()
def evaluate_model(
    args: SegmentationArguments,
    accelerator: Accelerator,
    part: Part,
    batches: Iterable[dict[str, Any]],
    normalize: Normalize,
    loss_fn: SegmentationLoss,
    model: LabelTreeForSemanticSegmentation,
) -> Evaluation:
    """Results over all processes; a collective."""
    model.eval()
    hierarchy, heads, device = model.hierarchy, model.heads, accelerator.device
    answer = averaged([model], args.tta)
    metrics = SegmentationMetrics(hierarchy, device, args.boundary_tolerance, keep_counts=True)
    masks = PredictionFolder(Path(args.output_dir) / f"predictions{part.suffix}", hierarchy, args.save_predictions)
    masks.start(accelerator)
    examples, rows = ExampleKeeper(part.looked, part.pixels, part.images.images.name), []
    sums = torch.zeros(2, hierarchy.num_levels, len(loss_fn.parts), dtype=torch.float64, device=device)
    # With one softmax over leaves, the last level's most probable class is the leaf of the best path.
    only_leaves = hierarchy.num_leaves == hierarchy.num_classes[-1]
    last_is_leaf = heads.leaf_softmax and only_leaves and args.decoding == "leaf"
    windows = {"eval_crop": args.eval_crop, "eval_stride": args.eval_stride}
    windows["batch_size"] = args.per_device_eval_batch_size
    for batch in batches:
        labels = masks_to_labels(batch["labels"].to(device, non_blocking=True))
        with accelerator.autocast():
            logits = image_logits(answer, batch["pixels"], normalize, **windows)
        if args.eval_crop:  # the image may be large: for the loss its logits are not enlarged
            labels = labels_at_stride(labels, logits, model.stride)
        sums += torch.stack([loss_fn.level_sums(logits, labels), loss_fn.label_weights(labels)])
        log_probs = heads.log_probs(logits)
        path_scores = model.path_scores(logits, log_probs)
        alone = log_probs[:-1] if last_is_leaf else log_probs
        for index, truth in enumerate(batch["truth"]):
            dense = [path_scores[index], *(level[index] for level in alone)]
            resampler = Resampler(batch["resized"][index], truth.shape, model.stride, logits.device)
            leaf, *argmax = dense_labels(resampler, dense, lambda parts: [part.max(1).indices for part in parts])
            argmax += [leaf] * (len(log_probs) - len(alone))
            metrics.add_batch(
                predictions={"leaf": leaf, "argmax": argmax}, references=truth.to(leaf.device, non_blocking=True)
            )
            rows.append(row := int(batch["rows"][index]))
            masks.add(row, leaf)
            examples.add(row, batch["pixels"][index], batch["resized"][index], truth, leaf)
    metrics.reduce(lambda counts: accelerator.reduce(counts, "sum"))
    results = {"loss": loss_fn.combine(*accelerator.reduce(sums, "sum")).item(), **metrics.compute()}
    for level, row in metrics.argmax_levels().items():
        means = {name: value for name, value in row.items() if name != "per_class"}
        results["argmax"].setdefault("levels", {})[level] = means
    counted = gather_rows(accelerator, {"row": np.array(rows, dtype=int), "counts": metrics.counts_of_calls()})
    groups = None if part.groups is None else part.groups[counted["row"]]
    results["intervals"] = bootstrap_intervals(hierarchy, counted["counts"], MEASURES, groups)
    return Evaluation(
        results=results,
        report_data=ReportData.of_leaf_matrix(hierarchy, metrics.leaf_confusion()),
        masks=masks,
        examples=examples.gather(accelerator),
    )


def save_best(
    args: SegmentationArguments,
    accelerator: Accelerator,
    model: LabelTreeForSemanticSegmentation,
    evaluation: Evaluation,
) -> None:
    """Write the model, and what prepares images for it, into the output folder."""
    if accelerator.is_main_process:
        spec = model.config.backbone
        side = {"height": spec["image_size"], "width": spec["image_size"]}
        colours = {"image_mean": spec["mean"], "image_std": spec["std"]}
        processor = transformers.SegformerImageProcessor(size=side, resample=2, **colours)
        save_model(model, processor, args.output_dir)


def save_evaluation(args: SegmentationArguments, accelerator: Accelerator, part: Part, evaluation: Evaluation) -> None:
    """Write what belongs to an evaluation: predicted masks, data for plots and report."""
    folder = Path(args.output_dir)
    evaluation.masks.keep(accelerator)
    if accelerator.is_main_process and not part.suffix:
        keep_for_plots(folder, evaluation.results, evaluation.examples)
        evaluation.report_data.save(folder / REPORT_DATA_FILE)


if __name__ == "__main__":
    command.run(main)
