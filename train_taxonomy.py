"""Train an image classifier whose labels form a tree: phylum > class > order > family > genus > species.

    accelerate launch train_taxonomy.py                                   # the demo, about a minute on two CPU cores
    accelerate launch train_taxonomy.py --config configs/FILE.yaml --OPTION VALUE ...
    python train_taxonomy.py --help

The story: arguments, data, model, loss and optimizer, training, evaluation, results. Each step is a function below, in
this order; what other scripts could share lives in common/.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.utils.data import DataLoader

from common.data.rows import ImageRows, ProblemLog, Samples, make_loader
from common.data.sampling import EvaluationBatchSampler
from common.data.splits import (
    LabelColumns,
    check_groups,
    check_unseen,
    choose_rows,
    get_split,
    leaves_without_images,
)
from common.files import write_json
from common.images.transforms import IMAGE_RESIZE_MODES, EvaluationTransform, MixImages, TrainTransform
from common.labels.encoding import read_class_order
from common.losses.class_weights import class_weights, count_labels, levels_where_labels_end
from common.losses.cross_entropy import LevelCrossEntropy
from common.metrics.backoff import path_probabilities
from common.metrics.calibration import CalibrationCounter
from common.metrics.report_data import Evidence, EvidenceCollector
from common.metrics.taxonomy import TaxonomyMetrics
from common.model.hierarchy import Hierarchy
from common.model.modeling import LabelTreeForImageClassification
from common.optim import make_curriculum
from common.publish.models import image_processor, save_model, settle_evaluation
from common.report.figures import Picture
from common.report.predictions import write_predictions
from common.report.report import load_pictures
from common.run.arguments import option, parse_arguments
from common.run.command import run
from common.run.options import AugmentationArguments, CommonArguments, DataArguments, LossArguments, ModelArguments
from common.run.processes import make_accelerator, num_workers
from common.run.setup import check_settings, image_root, make_sampler, open_splits, start_from
from common.run.task import Data, Evaluation
from common.run.training import Trainer
from data_prep.make_demo import make_taxonomy

logger = logging.getLogger(__name__)

DEMO_CONFIG = Path(__file__).parent / "configs" / "taxonomy_demo.yaml"


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class TaxonomyDataArguments(DataArguments):
    """Where the images and labels are."""

    _argument_group_name = "Data"

    level_columns: list[str] | None = option(None, "One column per level of the label tree, coarse to fine.")
    label_column: str | None = option(None, "One column that names a class of the tree in the file --hierarchy.")


@dataclass
class TaxonomyAugmentationArguments(AugmentationArguments):
    """What happens to images on their way to the model."""

    _argument_group_name = "Images and augmentation"

    resize_mode: Literal[IMAGE_RESIZE_MODES] = option(
        "center", "In evaluation: cut out the centre, or squash the whole image."
    )
    crop_pct: float = option(1.0, "Share of the resized image that evaluation keeps.", "over 0 and up to 1")
    crop_scale: float = option(
        0.25, "Smallest share of the image's area that a random crop keeps in training.", "over 0 and up to 1"
    )
    aspect_ratio: float = option(1.33, "Widest random crop, width to height.", "at least 1")
    auto_augment: str | None = option(None, "timm policy, for example rand-m9-mstd0.5-inc1 (RandAugment).")
    random_erasing: float = option(0.0, "Probability of erasing a random rectangle.", "from 0 up to 1")
    mixup: float = option(0.0, "Alpha of mixup; 0 for none. The labels of every level are mixed.", "at least 0")
    cutmix: float = option(0.0, "Alpha of cutmix; 0 for none. The labels of every level are mixed.", "at least 0")
    mix_probability: float = option(1.0, "Share of the steps that mix, if mixup or cutmix are on.", "from 0 up to 1")


@dataclass
class TaxonomyModelArguments(ModelArguments):
    """Backbone and heads."""

    _argument_group_name = "Model"

    init_leaf_from_classifier: str | None = option(
        None, "Start the last level from the backbone's own classifier; FILE lists its class names, one a line."
    )


@dataclass
class TaxonomyLossArguments(LossArguments):
    """What is minimised."""

    _argument_group_name = "Loss"

    logit_adjustment: float = option(
        0.0, "Multiple of the log-prior added to scores in training; usually 0 or 1.", "at least 0"
    )
    label_smoothing: float = option(
        0.0, "Share of the target spread over all classes of a level.", "at least 0 and less than 1"
    )


@dataclass
class TaxonomyArguments(
    TaxonomyDataArguments,
    TaxonomyAugmentationArguments,
    TaxonomyModelArguments,
    TaxonomyLossArguments,
    CommonArguments,
):
    """The options of this script."""

    def problems(self) -> list[str]:
        problems = super().problems()
        if self.class_weighting != "none" and self.logit_adjustment:
            problems.append("--class_weighting and --logit_adjustment correct the same thing twice; choose one")
        if (self.mixup or self.cutmix) and (self.per_device_train_batch_size or 2) % 2:
            problems.append("mixup and cutmix mix pairs: --per_device_train_batch_size must be even")
        return problems

    def idle(self) -> list[tuple[str, bool, str]]:
        return [*super().idle(), ("mix_probability", not (self.mixup or self.cutmix), "mixup and cutmix are off")]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

    Raises:
        ValueError: for anything the user can mend, before training starts wherever that is possible.
    """
    args = parse_arguments(TaxonomyArguments, argv, __doc__, DEMO_CONFIG)
    accelerator = make_accelerator(args)
    data = load_data(args, accelerator)
    mix_pairs = bool(args.mixup or args.cutmix)
    sampler = None if args.eval_only else make_sampler(args, accelerator, len(data.train_rows), mix_pairs)
    curriculum = make_curriculum(args, data.hierarchy, sampler)
    problems = ProblemLog(args.on_bad_sample)
    check_settings(args, accelerator, TaxonomyMetrics(data.hierarchy), [data.train_images, data.eval_images], problems)
    model = build_model(args, data.hierarchy)
    return TaxonomyTrainer(args, accelerator, data, model, sampler, curriculum, problems).run()


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class TaxonomyData(Data):
    """Images and labels; ``train_images`` is ``None`` with ``--eval_only``."""

    train_images: ImageRows | None
    train_labels: np.ndarray
    eval_images: ImageRows
    eval_labels: np.ndarray


def load_data(args: TaxonomyArguments, accelerator: Accelerator) -> TaxonomyData:
    """Data set, label tree, labels of every level, and all checks that need no model."""
    splits, _ = open_splits(args, accelerator, "taxonomy", make_taxonomy)
    validation = get_split(splits, args.validation_split, "--validation_split")
    columns = LabelColumns(args.level_columns, args.label_column, args.hierarchy)
    if args.eval_only:
        hierarchy = LabelTreeForImageClassification.read_hierarchy(args.model_name_or_path)
        columns.level_columns = columns.level_columns or (None if columns.label_column else hierarchy.levels)
        train, train_labels = None, np.empty((0, hierarchy.num_levels), dtype=np.int64)
    else:
        train = get_split(splits, args.train_split, "--train_split")
        columns.check(train, args.train_split)
        columns.check(validation, args.validation_split)
        hierarchy, resolved = columns.read_hierarchy(train)
        for line in resolved:
            logger.warning("label tree: %s", line)
        train_labels = columns.read_labels(train, hierarchy, args.train_split)
    eval_labels = columns.read_labels(validation, hierarchy, args.validation_split)
    if train is not None:
        check_unseen(train_labels, eval_labels, hierarchy)
        empty = leaves_without_images(train_labels, hierarchy)
        if empty:
            logger.warning("label tree: %d leaves have no training image: %s.", len(empty), ", ".join(empty[:5]))
        if args.group_column:
            check_groups(train, validation, args.group_column)
    root, eval_root = image_root(args, args.train_file), image_root(args, args.validation_file)
    return TaxonomyData(
        hierarchy=hierarchy,
        train_images=train and ImageRows(train, args.image_column, args.train_split, root),
        train_labels=train_labels,
        train_rows=choose_rows(len(train_labels), args.max_train_samples, args.seed),
        eval_images=ImageRows(validation, args.image_column, args.validation_split, eval_root),
        eval_labels=eval_labels,
        eval_rows=choose_rows(len(eval_labels), args.max_eval_samples, args.seed),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: TaxonomyArguments, hierarchy: Hierarchy) -> LabelTreeForImageClassification:
    """A backbone with fresh heads; or a model that this script wrote, with its heads if the label tree is the same."""
    model, backbone, classifier = start_from(
        args, LabelTreeForImageClassification, hierarchy, "init_leaf_from_classifier"
    )
    if model is not None:
        settle_evaluation(args, model, EVALUATION_OPTIONS)
        return model
    model = LabelTreeForImageClassification.build(
        backbone,
        hierarchy,
        args.head,
        dropout=args.dropout,
        evaluation={name: getattr(args, name) for name in EVALUATION_OPTIONS},
    )
    if args.init_leaf_from_classifier:
        if classifier is None:
            raise ValueError("--init_leaf_from_classifier needs a backbone whose own classifier has been trained.")
        rows = read_class_order(args.init_leaf_from_classifier, hierarchy, classifier.out_features)
        model.heads.init_leaves(classifier.weight, classifier.bias, rows)
    return model


EVALUATION_OPTIONS = ("resize_mode", "crop_pct", "decoding")


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class TaxonomyTrainer(Trainer):
    """The loop of :class:`common.run.training.Trainer`, for one label a level and image."""

    def make_train_loader(self) -> DataLoader:
        args, data, spec = self.args, self.data, self.spec
        transform = TrainTransform(
            spec["image_size"],
            crop_scale=args.crop_scale,
            aspect_ratio=args.aspect_ratio,
            hflip=args.hflip,
            vflip=args.vflip,
            color_jitter=args.color_jitter,
            auto_augment=args.auto_augment,
            random_erasing=args.random_erasing,
            interpolation=spec["interpolation"],
            mean=spec["mean"],
        )
        on_bad_sample = "replace" if args.on_bad_sample == "skip" else "error"
        images = Samples(data.train_images, data.train_rows, transform, data.train_labels, args.seed, on_bad_sample)
        return make_loader(images, self.sampler, num_workers(args, self.accelerator), self.pin_memory)

    def make_eval_loader(self) -> DataLoader:
        args, data, spec = self.args, self.data, self.spec
        transform = EvaluationTransform(
            spec["image_size"],
            resize_mode=args.resize_mode,
            crop_pct=args.crop_pct,
            interpolation=spec["interpolation"],
        )
        images = Samples(data.eval_images, data.eval_rows, transform, data.eval_labels, on_bad_sample="drop")
        sampler = EvaluationBatchSampler(
            len(images),
            args.per_device_eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return make_loader(images, sampler, num_workers(args, self.accelerator), self.pin_memory)

    def make_loss(self) -> LevelCrossEntropy:
        """Cross-entropy of every level that has weight, corrected for rare classes if asked."""
        args, hierarchy = self.args, self.data.hierarchy
        labels = torch.from_numpy(self.data.train_labels[self.data.train_rows])
        counts = count_labels(labels, hierarchy)
        return LevelCrossEntropy(
            self.model.heads,
            self.curriculum.stages[-1].weights,
            [class_weights(count, args.class_weighting, args.class_weight_max_ratio) for count in counts],
            args.label_smoothing,
            args.logit_adjustment,
            counts,
            self.backoff_levels(labels),
        )

    def backoff_levels(self, train_labels: torch.Tensor) -> list[int]:
        """Where labels end early, in training or validation; heads of independent levels just train those above."""
        if not self.model.heads.leaf_softmax:
            return []
        eval_labels = torch.from_numpy(self.data.eval_labels[self.data.eval_rows])
        return levels_where_labels_end(torch.cat([train_labels, eval_labels]))

    def make_metrics(self) -> TaxonomyMetrics:
        return TaxonomyMetrics(self.data.hierarchy, device=self.accelerator.device)

    def train_loss(
        self, pixels: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor, step: int
    ) -> torch.Tensor:
        """Mixed images give the mixed losses of both labels."""
        mix = MixImages(self.args.mixup, self.args.cutmix, self.args.mix_probability, self.args.seed)
        pixels, mixed_with, share = mix(pixels, labels, step)
        scores = self.wrapped(pixels, logits_only=True)
        return self.loss_fn(scores, labels, denominators, mixed_with, share)

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, model: LabelTreeForImageClassification) -> Evaluation:
        accelerator, loss_fn, heads = self.accelerator, self.loss_fn, model.heads
        sums = torch.zeros(2, loss_fn.num_levels, dtype=torch.float64, device=accelerator.device)
        evidence = EvidenceCollector(model.hierarchy, accelerator.device)
        parts: list[dict[str, np.ndarray]] = []
        calibration = CalibrationCounter()
        for batch in self.evaluation_batches(model):
            labels = self.to_labels(batch["labels"])
            with accelerator.autocast():
                scores = model(self.to_model(batch["pixels"]), logits_only=True)
            sums += torch.stack([loss_fn.level_sums(scores, labels), loss_fn.label_weights(labels)])
            log_probs, leaf_scores = heads.log_probs(scores), heads.leaf_logits(scores)
            leaf = heads.path_scores(scores, log_probs, self.args.decoding).argmax(1)
            path = model.hierarchy.lift(leaf)
            self.metrics.add_batch(predictions={"log_probs": log_probs, "path": path}, references=labels)
            calibration.add(path_probabilities(log_probs, path), path, labels)
            evidence.add(batch["rows"], labels, leaf_scores, leaf)
            if self.args.save_predictions:
                parts.append(prediction_columns(batch["rows"], labels, log_probs, path, leaf_scores))
        model.config.calibration = calibration.calibrate(accelerator, model.hierarchy, self.args.decoding).to_dict()
        results = self.computed(*sums)
        evidence = evidence.gather(accelerator)
        evidence.reliability = self.metrics.reliability().numpy()
        return Evaluation(results, self.gather(parts) if self.args.save_predictions else None, evidence)

    def gather(self, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """All processes' predictions in one table."""
        merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        everyone = gather_object([merged]) if self.accelerator.num_processes > 1 else [merged]
        everyone = [part for part in everyone if part]
        return {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]} if everyone else {}

    # ---- results

    def save_model(self, model: LabelTreeForImageClassification) -> None:
        processor = image_processor(self.spec, self.args.resize_mode, self.args.crop_pct)
        save_model(model, processor, self.output_dir)

    def write(self, evaluation: Evaluation) -> None:
        """predictions.parquet, if asked for; and with ``--eval_only`` the calibration, which no model then keeps."""
        if self.args.eval_only and self.accelerator.is_main_process:
            write_json(self.output_dir / "calibration.json", self.model.config.calibration)
        if evaluation.extras and self.accelerator.is_main_process:
            write_predictions(self.output_dir / "predictions.parquet", self.data.hierarchy, evaluation.extras)

    def pictures(self, evidence: Evidence) -> dict[str, list[Picture]]:
        return load_pictures(self.data.eval_images, self.data.hierarchy, evidence)


def prediction_columns(
    rows: torch.Tensor,
    labels: torch.Tensor,
    log_probs: list[torch.Tensor],
    path: list[torch.Tensor],
    leaf_scores: torch.Tensor,
) -> dict[str, np.ndarray]:
    """A batch of predictions as host arrays, in the form that :func:`common.report.files.write_predictions` takes."""
    top = leaf_scores.float().softmax(1).topk(min(5, leaf_scores.shape[1]))
    argmax = [level.max(1) for level in log_probs]
    columns = {
        "row": rows,
        "label": labels,
        "best_path": torch.stack(path, 1),
        "best_path_probability": path_probabilities(log_probs, path),
        "argmax": torch.stack([best.indices for best in argmax], 1),
        "argmax_probability": torch.stack([best.values.exp() for best in argmax], 1),
        "top_leaves": top.indices,
        "top_probabilities": top.values,
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


if __name__ == "__main__":
    run(main)
