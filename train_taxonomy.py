"""Train an image classifier whose labels form a tree: phylum > class > order > family > genus > species.

    accelerate launch train_taxonomy.py                                   # the demo, about a minute on two CPU cores
    accelerate launch train_taxonomy.py --config configs/FILE.yaml --OPTION VALUE ...
    python train_taxonomy.py --help

``main`` tells the story: arguments, data, model, evaluation, optimizer, training loop, results. What it calls
stands below it, in the same order; what both scripts share lives in common/. train_segmentation.py is its twin.
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
from common.options.taxonomy import TaxonomyArguments
from common.run import command

DEMO_CONFIG = Path(__file__).parent / "configs" / "taxonomy_demo.yaml"

if __name__ == "__main__":  # --help and wrong options are answered before torch is imported, which takes seconds
    command.run(lambda: parse_arguments(TaxonomyArguments, None, __doc__, DEMO_CONFIG))

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from huggingface_hub.constants import HF_HOME
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from common.checkpoint.state import TrainState
from common.data.parts import Data, Part
from common.data.problems import image_names
from common.data.rows import ImageRows, ProblemLog, Samples, make_loader
from common.data.sampling import GlobalBatchSampler, evaluation_batches, sample_weights, seed_step
from common.data.splits import LabelColumns, check_columns, check_unseen, get_split, leaves_without_images
from common.images.transforms import EvaluationTransform, MixImages, Normalize, TrainTransform
from common.labels.encoding import read_class_order
from common.labels.hierarchy_files import read_costs
from common.losses.class_weights import class_weights, count_labels, levels_where_labels_end
from common.losses.cross_entropy import LevelCrossEntropy
from common.metrics.answer_costs import cost_results
from common.metrics.calibration import calibrate
from common.metrics.intervals import bootstrap_intervals, counts_of_predictions
from common.metrics.observations import Observations
from common.metrics.prediction_table import PredictionTable
from common.metrics.report_data import REPORT_DATA_FILE, ReportData
from common.metrics.taxonomy import TaxonomyMetrics
from common.metrics.unknown import unknown_below, unknown_results
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification
from common.optim.batch_norm import prepare_batch_norm, set_train_mode
from common.optim.parameters import make_optimizer
from common.optim.schedule import Plateau, make_curriculum, set_learning_rate
from common.optim.skipping import RunningStatistics, clip_gradients, find_nonfinite, skipped_if, update_ema
from common.optim.tuning import HeldBack, merged, prepare_tuning
from common.predict.views import averaged, shown_size
from common.publish.models import image_processor, load_weights, save_model
from common.report.explain import Explainer
from common.report.image_examples import load_pictures
from common.report.summary import RunSummary
from common.run import setup
from common.run.dry_run import dry_run
from common.run.evaluation import interruptible_batches
from common.run.features import features_once, without_training
from common.run.identity import as_begun, run_facts, run_identity
from common.run.processes import backward, make_accelerator, num_workers, sync_buffers
from common.run.run import Run
from common.run.stopping import StopRequest
from common.system.files import write_json

logger = logging.getLogger(__name__)

EVALUATION_OPTIONS = ("resize_mode", "crop_pct", "tta", "decoding")  # a saved model keeps them, and is shown images so
MEASURES = ("accuracy", "macro_f1")  # of every level, in report, card and with intervals


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

    Raises:
        ValueError: for anything the user can fix, before training starts wherever that is possible.
        Stopped: a signal or the time budget ended the run before its end; there is a checkpoint to resume from.
    """
    args = parse_arguments(TaxonomyArguments, argv, __doc__, DEMO_CONFIG)
    setup.evaluated_as_saved(args, EVALUATION_OPTIONS)
    accelerator = make_accelerator(args)
    as_begun(args, accelerator)
    device, problems = accelerator.device, ProblemLog(args.on_bad_sample)

    # ------------------------------------------------------------------------------------------------------------ data
    data = load_data(args, accelerator)
    sampler = None if args.eval_only else make_sampler(args, accelerator, data)
    curriculum = make_curriculum(args, data.hierarchy, sampler)
    setup.check_settings(args, accelerator, TaxonomyMetrics(data.hierarchy, top_k=args.top_k))

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
    loss_fn = make_loss(args, data, model, curriculum.stages[-1].weights).to(device)

    # ------------------------------------------------------------------------------------------------------ evaluation
    stop = StopRequest(args.max_train_minutes)
    eval_loss_fn = make_loss(args, data, model, curriculum.stages[-1].weights).to(device).eval()

    def evaluate(part: Part, loader: DataLoader, model: LabelTreeForImageClassification) -> Evaluation:
        batches = interruptible_batches(loader, stop, problems, accelerator)
        return evaluate_model(args, accelerator, part, batches, normalize, eval_loss_fn, model)

    eval_loader = make_eval_loader(args, accelerator, data.validation, spec)
    facts = run_facts(args, accelerator, model, curriculum, sampler, data)
    summary = RunSummary(Path(args.output_dir), asdict(args), data.hierarchy, "images", MEASURES, facts)
    if data.train is not None:
        train_labels = torch.from_numpy(data.train.labels[data.train.rows])
        summary.train_counts = count_labels(train_labels, data.hierarchy)[-1].numpy()
    saved = args.model_name_or_path if args.eval_only else args.output_dir
    explain = Explainer(saved, eval_loader.dataset.transform) if args.explain else None
    load_examples = partial(load_pictures, data.validation.images, data.hierarchy, explain)
    if args.eval_only:
        run = Run(args, accelerator, stop, summary, problems)
        with run.started():
            evaluation = evaluate(data.validation, eval_loader, model)
            save_evaluation(args, accelerator, data.validation, evaluation)
            results = {"train": None, "eval": evaluation.results}
            run.finish(results, model, load_examples)
        return results

    # ------------------------------------------------------------------------------------------------------- optimizer
    train_loader = make_train_loader(args, accelerator, data.train, spec, sampler)
    if args.cache_features:
        train_loader, eval_loader = features_once(args, accelerator, model, normalize, train_loader, eval_loader)
        facts["without training"] = without_training(train_loader.dataset, eval_loader.dataset, data.hierarchy)
    mix = MixImages(args.mixup, args.cutmix, args.mix_probability, args.seed)
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
            labels = [batch["labels"].to(device, non_blocking=True) for batch in micro_batches]
            denominators = accelerator.reduce(sum(loss_fn.label_weights(part) for part in labels), "sum")

            set_train_mode(model, args.batch_norm)
            statistics.remember()
            total_loss = torch.zeros((), device=device)
            for micro_step, batch in enumerate(micro_batches):
                problems.add(batch["problems"])
                seed_step(args.seed, step, micro_step, accelerator.process_index)
                pixels = normalize(batch["pixels"].to(device, non_blocking=True))
                pixels, mixed_with, share = mix(pixels, labels[micro_step], step)
                is_last = micro_step == len(micro_batches) - 1
                with nullcontext() if is_last else accelerator.no_sync(wrapped):
                    logits = wrapped(pixels, logits_only=True)
                    loss = loss_fn(logits, labels[micro_step], denominators, mixed_with, share)
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
        run.finish(results, model, load_examples)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


def load_data(args: TaxonomyArguments, accelerator: Accelerator) -> Data:
    """Data set, label tree, labels of every level, and all checks that need no model."""
    splits, _ = setup.open_splits(args, accelerator, draw_demo)
    columns = LabelColumns(args.level_columns, args.label_column, args.hierarchy, args.conflicts)
    if args.eval_only:
        columns.trust_finest = True  # tables may have changed since
        hierarchy = LabelTreeForImageClassification.read_hierarchy(args.model_name_or_path)
        columns.level_columns = columns.level_columns or (None if columns.label_column else hierarchy.levels)
    else:
        train = get_split(splits, args.train_split, "--train_split")
        check_columns(train, columns.columns(), args.train_split)
        hierarchy, resolved = columns.read_hierarchy(train)
        for line in resolved:
            logger.warning("label tree: %s", line)

    def read(rows: Dataset, name: str, root: Path) -> tuple[ImageRows, np.ndarray]:
        labels = columns.read_labels(rows, hierarchy, name, args.score_unknown and name != args.train_split)
        return ImageRows(rows, args.image_column, name, root), labels

    data = setup.open_parts(args, splits, hierarchy, read)
    if data.train is not None:
        check_unseen(data.train.labels, data.validation.labels, hierarchy)
        empty = leaves_without_images(data.train.labels, hierarchy)
        if empty:
            logger.warning("label tree: %d leaves have no training image: %s.", len(empty), ", ".join(empty[:5]))
    return data


def make_sampler(args: TaxonomyArguments, accelerator: Accelerator, data: Data) -> GlobalBatchSampler:
    """Order of the images and batch sizes: pairs if neighbours are mixed, and rare classes more often if asked."""
    labels = data.train.labels[data.train.rows]
    depth = np.where(labels >= 0, np.arange(labels.shape[1]), -1).max(1)  # an image's class: its finest label
    classes = np.stack([depth, labels[np.arange(len(labels)), depth]], 1)
    _, classes = np.unique(classes, axis=0, return_inverse=True)
    weights = sample_weights(classes.ravel(), args.sampling)
    return setup.make_sampler(args, accelerator, len(labels), args.mixes, weights)


def draw_demo() -> Path:
    """The folder of the demo data, drawn if it is not there yet."""
    from demo.sets import make_taxonomy  # only the demo needs what draws it

    return make_taxonomy(Path(HF_HOME) / "label_tree_demo_2" / "taxonomy")


def make_train_loader(
    args: TaxonomyArguments, accelerator: Accelerator, part: Part, spec: Mapping[str, Any], sampler: GlobalBatchSampler
) -> DataLoader:
    """Augmented batches with ``pixels`` (uint8), ``labels`` and ``problems``, in the sampler's order."""
    transform = TrainTransform(args, spec)
    on_bad_sample = "replace" if args.on_bad_sample == "skip" else "error"
    images = Samples(part.images, part.rows, transform, part.labels, args.seed, on_bad_sample)
    return make_loader(images, sampler, num_workers(args, accelerator), accelerator.device.type == "cuda")


def make_eval_loader(
    args: TaxonomyArguments, accelerator: Accelerator, part: Part, spec: Mapping[str, Any]
) -> DataLoader:
    """Every evaluation image once, in one process."""
    transform = EvaluationTransform(
        shown_size(spec["image_size"], args.tta),
        resize_mode=args.resize_mode,
        crop_pct=args.crop_pct,
        interpolation=spec["interpolation"],
    )
    images = Samples(part.images, part.rows, transform, part.labels, on_bad_sample="drop")
    size = args.per_device_eval_batch_size
    batches = evaluation_batches(len(images), size, accelerator.process_index, accelerator.num_processes)
    return make_loader(images, batches, num_workers(args, accelerator), accelerator.device.type == "cuda")


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: TaxonomyArguments, hierarchy: Hierarchy) -> LabelTreeForImageClassification:
    """A backbone with fresh heads; or a model that this script wrote, with the classes it knows."""
    model, backbone, before = setup.start_from(
        args, LabelTreeForImageClassification, hierarchy, "init_leaf_from_classifier"
    )
    setup.settle(args, hierarchy, model, backbone)
    evaluation = {name: getattr(args, name) for name in EVALUATION_OPTIONS}
    costs = (model.config.evaluation or {}).get("costs") if model is not None else None
    evaluation["costs"] = read_costs(args.costs, hierarchy) if args.costs else costs or {}
    if model is not None:
        model.config.evaluation = evaluation
        return model
    model = LabelTreeForImageClassification.build(
        backbone, hierarchy, args.head, dropout=args.dropout, head_scale=args.head_scale, evaluation=evaluation
    )
    model.go_on_from(before)
    if args.init_leaf_from_classifier:
        if not isinstance(before, torch.nn.Linear):
            raise ValueError("--init_leaf_from_classifier needs a backbone whose own classifier has been trained.")
        rows = read_class_order(args.init_leaf_from_classifier, hierarchy, before.out_features)
        model.heads.init_leaves(before.weight, before.bias, rows)
    return model


def make_loss(
    args: TaxonomyArguments, data: Data, model: LabelTreeForImageClassification, level_weights: Sequence[float]
) -> LevelCrossEntropy:
    """Cross-entropy of every level that has weight, corrected for rare classes if asked."""
    parts = [part for part in (data.train, data.validation) if part is not None]
    labels = [torch.from_numpy(part.labels[part.rows]) for part in parts]
    counts = count_labels(labels[0] if data.train is not None else labels[0][:0], data.hierarchy)
    backoff_levels: list[int] = []
    if model.heads.leaf_softmax:  # independent levels just train those above
        backoff_levels = levels_where_labels_end(torch.cat(labels))
    return LevelCrossEntropy(
        model.heads,
        level_weights,
        [class_weights(count, args.class_weighting, args.class_weight_max_ratio) for count in counts],
        args.label_smoothing,
        args.logit_adjustment,
        counts,
        backoff_levels,
    )


def random_loss(
    args: TaxonomyArguments,
    accelerator: Accelerator,
    data: Data,
    model: LabelTreeForImageClassification,
    pixels: torch.Tensor,
) -> torch.Tensor:
    """The loss of random labels at every level, as in training; for the dry run."""
    set_train_mode(model, args.batch_norm)
    with accelerator.autocast():
        logits = model(pixels, logits_only=True)
    leaf = torch.randint(data.hierarchy.num_leaves, (len(pixels),), device=pixels.device)
    labels = torch.stack(data.hierarchy.lift(leaf), 1)
    return make_loss(args, data, model, [1.0] * data.hierarchy.num_levels).to(pixels.device)(logits, labels)


# ---------------------------------------------------------------------------------------------------------------------
# Evaluation
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """Results by the contract of all_results.json, and what is written beside them if the model is kept."""

    results: dict[str, Any]
    predictions: PredictionTable
    report_data: ReportData
    calibration: dict[str, Any]


@torch.no_grad()
def evaluate_model(
    args: TaxonomyArguments,
    accelerator: Accelerator,
    part: Part,
    batches: Iterable[dict[str, Any]],
    normalize: Normalize,
    loss_fn: LevelCrossEntropy,
    model: LabelTreeForImageClassification,
) -> Evaluation:
    """Results over all processes; a collective."""
    model.eval()
    hierarchy, device = model.hierarchy, accelerator.device
    answer = averaged([model], args.tta)
    metrics = TaxonomyMetrics(hierarchy, device, top_k=args.top_k)
    predictions = PredictionTable(hierarchy, device, complete=args.save_predictions)
    sums = torch.zeros(2, hierarchy.num_levels, dtype=torch.float64, device=device)
    observations = None
    if part.observations is not None:
        observations = Observations(part.observations, part.labels, model, device)
    for batch in batches:
        labels = batch["labels"].to(device, non_blocking=True)
        with accelerator.autocast():
            logits = answer(normalize(batch["pixels"].to(device, non_blocking=True)), logits_only=True)
        sums += torch.stack([loss_fn.level_sums(logits, labels), loss_fn.label_weights(labels)])
        output = model.complete(logits)
        answers = model.decode(output)
        predicted = {"log_probs": output.log_probs, "path": answers.path.unbind(1)}
        metrics.add_batch(predictions=predicted, references=labels)
        predictions.add(batch["rows"], labels, output.log_probs, output.logits, answers.leaf, answers.level)
        if observations is not None:
            observations.add(batch["rows"], logits)
    metrics.reduce(lambda counts: accelerator.reduce(counts, "sum"))
    predictions.gather(accelerator)
    report_data = ReportData.of_predictions(predictions)
    report_data.reliability = metrics.reliability().numpy()
    results = {"loss": loss_fn.combine(*accelerator.reduce(sums, "sum")).item(), **metrics.compute()}
    if args.score_unknown:
        results["unknown"] = unknown_results(predictions)
    if args.decoding == "cost":
        results["costs"] = cost_results(predictions, model.config.evaluation["costs"])
    if observations is not None:
        together = TaxonomyMetrics(hierarchy, device, top_k=args.top_k)
        results["observations"] = observations.compute(together, lambda sums: accelerator.reduce(sums, "sum"))
    groups = None if part.groups is None else part.groups[predictions.columns["row"]]
    results["intervals"] = bootstrap_intervals(hierarchy, counts_of_predictions(predictions), MEASURES, groups)
    return Evaluation(
        results=results,
        predictions=predictions,
        report_data=report_data,
        calibration=calibrate(predictions, args.decoding) | {"unknown_below": unknown_below(predictions)},
    )


def save_best(
    args: TaxonomyArguments, accelerator: Accelerator, model: LabelTreeForImageClassification, evaluation: Evaluation
) -> None:
    """Write the model, and what prepares images for it, into the output folder."""
    if accelerator.is_main_process:
        model.config.calibration = evaluation.calibration
        save_model(model, image_processor(model.config.backbone, args.resize_mode, args.crop_pct), args.output_dir)


def save_evaluation(args: TaxonomyArguments, accelerator: Accelerator, part: Part, evaluation: Evaluation) -> None:
    """Write what belongs to an evaluation: predictions, data for the report, thresholds that no model keeps."""
    folder = Path(args.output_dir)
    if not accelerator.is_main_process:
        return
    if args.eval_only:
        write_json(folder / "calibration.json", evaluation.calibration)
    if args.save_predictions:
        names = image_names(part.images.rows, part.images.column)
        evaluation.predictions.write(folder / f"predictions{part.suffix}.parquet", names)
    if not part.suffix:
        evaluation.report_data.save(folder / REPORT_DATA_FILE)


if __name__ == "__main__":
    command.run(main)
