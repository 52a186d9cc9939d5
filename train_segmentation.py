"""Train a segmentation model whose labels form a tree: binary > coarse > fine, one class per level and pixel.

    accelerate launch train_segmentation.py                               # the demo, about a minute on two CPU cores
    accelerate launch train_segmentation.py --config configs/FILE.yaml --OPTION VALUE ...
    python train_segmentation.py --help

The story: arguments, data, model, training, evaluation, results. Each step is a function below, in this order; what is
the same for whole images (train_taxonomy.py) lives in common/.
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
from accelerate.utils import broadcast_object_list
from huggingface_hub.constants import HF_HOME
from torch.utils.data import DataLoader
from transformers import SegformerImageProcessor

from common.data.decoded_cache import open_cache
from common.data.masks import MaskedImageRows, MaskReader
from common.data.rows import ImageRows, ProblemLog, Samples, make_loader
from common.data.sampling import EvaluationBatchSampler
from common.data.splits import check_groups, choose_rows, get_split
from common.images.mask_files import IGNORED_PIXEL
from common.images.mask_transforms import (
    MASK_RESIZE_MODES,
    Geometry,
    MaskEvaluationTransform,
    MaskTrainTransform,
    resize_pair,
)
from common.labels.hierarchy_files import find_hierarchy, load_hierarchy
from common.losses.class_weights import class_weights
from common.losses.segmentation import SegmentationLoss
from common.metrics.report_data import Evidence
from common.metrics.segmentation import SegmentationMetrics
from common.model.decoders import DECODERS
from common.model.hierarchy import IGNORE, Hierarchy
from common.model.modeling import LabelTreeForSemanticSegmentation
from common.optim import make_curriculum
from common.predict.windows import Resampler, check_windows, dense_labels, image_logits
from common.publish.models import save_model, settle_evaluation
from common.report.mask_pictures import ExampleKeeper, PredictionFolder, draw_plots, keep_for_plots
from common.run.arguments import option, parse_arguments
from common.run.command import run
from common.run.options import (
    AugmentationArguments,
    CommonArguments,
    DataArguments,
    LossArguments,
    ModelArguments,
    RunArguments,
)
from common.run.processes import make_accelerator, num_workers
from common.run.setup import check_settings, image_root, make_sampler, open_splits, start_from
from common.run.task import Data, Evaluation
from common.run.training import Trainer
from data_prep.make_demo import make_artworks

logger = logging.getLogger(__name__)

DEMO_CONFIG = Path(__file__).parent / "configs" / "segmentation_demo.yaml"
LOSSES = ("dice_focal", "cross_entropy", "dice")
MASKS_LOOKED_AT = 2_000  # before training, for values that mean nothing; all of them where weights depend on counts


# ---------------------------------------------------------------------------------------------------------------------
# Arguments
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class SegmentationDataArguments(DataArguments):
    """Where the images and labels are."""

    _argument_group_name = "Data"

    mask_column: str = option("mask", "Column with the masks, or their paths; pixel value v is class v, 255 ignored.")
    mask_palette: str | None = option(None, "YAML file with a colour per class, for masks that are coded by colour.")
    cache_decoded: bool = option(
        False, "Decode everything once into a file that all processes of a node share; for slow decoding."
    )


@dataclass
class SegmentationAugmentationArguments(AugmentationArguments):
    """What happens to images on their way to the model."""

    _argument_group_name = "Images and augmentation"

    resize_mode: Literal[MASK_RESIZE_MODES] = option(
        "squash", "Show the whole image squashed to a square, or fit into it."
    )
    eval_crop: int | None = option(
        None,
        "Show windows of this many pixels, at the image's own resolution, instead of the whole.",
        "greater than 0",
    )
    eval_stride: int | None = option(
        None, "Distance from window to window in evaluation; two thirds of a window by default.", "greater than 0"
    )
    resize_longer: int | None = option(
        None, "Longer side that images are resized to before windows are cut; their own by default.", "greater than 0"
    )
    scale_jitter: list[float] = option([0.5, 2.0], "Smallest and largest random scale in training.")
    rare_crop: float = option(
        0.5, "Probability that a crop is placed on a class other than the image's commonest.", "from 0 up to 1"
    )
    rot90: float = option(0.5, "Probability of a random turn by multiples of 90 degrees.", "from 0 up to 1")


@dataclass
class SegmentationModelArguments(ModelArguments):
    """Backbone, decoder and heads."""

    _argument_group_name = "Model"

    model_name_or_path: str = option(
        "nvidia/segformer-b3-finetuned-ade-512-512",
        "timm/<name>, hf-hub:<org>/<timm model>, a Transformers id or folder, or a folder that this script wrote.",
    )
    decoder: Literal[tuple(DECODERS)] = option("upernet", "From the pyramid of feature maps to one at stride 4.")
    decoder_channels: int = option(256, "Its width.", "greater than 0")


@dataclass
class SegmentationLossArguments(LossArguments):
    """What is minimised."""

    _argument_group_name = "Loss"

    level_weights: list[str] = option(
        ["rising"], "A number per level, or leaf, equal, leaf_heavy or rising (0.2, 0.3, 1); taken literally."
    )
    loss: Literal[LOSSES] = option("dice_focal", "Of each level.")
    dice_weight: float = option(0.5, "Of the Dice part of dice_focal.", "at least 0")
    focal_weight: float = option(0.5, "Of the focal part of dice_focal.", "at least 0")
    focal_gamma: float = option(2.0, "How much focal loss turns away from pixels that are right.", "at least 0")
    dice_over: Literal["image", "batch"] = option(
        "image", "Overlap of each image, or of a forward pass as a whole (then batch sizes change the loss)."
    )


@dataclass
class SegmentationRunArguments(RunArguments):
    """The run itself."""

    _argument_group_name = "Run"

    metric_for_best_model: str = option(
        "levels.last.mean_iou", "Entry of eval in all_results.json, last for the last level; or loss."
    )


@dataclass
class SegmentationArguments(
    SegmentationDataArguments,
    SegmentationAugmentationArguments,
    SegmentationModelArguments,
    SegmentationLossArguments,
    SegmentationRunArguments,
    CommonArguments,
):
    """The options of this script."""

    def problems(self) -> list[str]:
        problems = super().problems()
        problems += check_windows(self.eval_crop, self.eval_stride)
        if len(self.scale_jitter) != 2 or not 0 < self.scale_jitter[0] <= self.scale_jitter[-1]:
            problems.append(f"--scale_jitter takes the smallest and the largest scale, not {self.scale_jitter}")
        if self.loss == "dice_focal" and not self.dice_weight + self.focal_weight:
            problems.append("--dice_weight and --focal_weight must not both be 0")
        return problems

    def idle(self) -> list[tuple[str, bool, str]]:
        other = f"--loss is {self.loss}"
        return [
            *super().idle(),
            ("dice_weight", self.loss != "dice_focal", other),
            ("focal_weight", self.loss != "dice_focal", other),
            ("focal_gamma", self.loss != "dice_focal", other),
            ("dice_over", self.loss == "cross_entropy", other),
            ("eval_stride", not self.eval_crop, "there is no --eval_crop"),
            ("resize_longer", not self.eval_crop, "there is no --eval_crop"),
            ("resize_mode", bool(self.eval_crop), "--eval_crop cuts windows"),
        ]


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

    Raises:
        ValueError: for anything the user can mend, before training starts wherever that is possible.
    """
    args = parse_arguments(SegmentationArguments, argv, __doc__, DEMO_CONFIG)
    accelerator = make_accelerator(args)
    data = load_data(args, accelerator)
    sampler = None if args.eval_only else make_sampler(args, accelerator, len(data.train_rows))
    curriculum = make_curriculum(args, data.hierarchy, sampler, normalize=False)
    problems = ProblemLog(args.on_bad_sample)
    check_settings(
        args, accelerator, SegmentationMetrics(data.hierarchy), [data.train_images, data.eval_images], problems
    )
    look_at_masks(args, accelerator, data, problems)
    model = build_model(args, data.hierarchy)
    return SegmentationTrainer(args, accelerator, data, model, sampler, curriculum, problems).run()


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class SegmentationData(Data):
    """Images with masks; ``train_images`` is ``None`` with ``--eval_only``."""

    train_images: MaskedImageRows | None
    eval_images: MaskedImageRows
    train_pixels: np.ndarray | None = None  # int64 (leaves,)
    eval_looked: np.ndarray | None = None  # row numbers
    eval_pixels: np.ndarray | None = None  # int64 (of these, leaves)


def load_data(args: SegmentationArguments, accelerator: Accelerator) -> SegmentationData:
    """Data set, label tree, and all checks that need no model and no pixel."""
    splits, name = open_splits(args, accelerator, "artworks", make_artworks)
    validation = get_split(splits, args.validation_split, "--validation_split")
    train = None if args.eval_only else get_split(splits, args.train_split, "--train_split")
    if args.eval_only:
        hierarchy = LabelTreeForSemanticSegmentation.read_hierarchy(args.model_name_or_path)
    else:
        hierarchy, resolved = load_hierarchy(args.hierarchy or find_hierarchy(name))
        for line in resolved:
            logger.warning("label tree: %s", line)
        if args.group_column:
            check_groups(train, validation, args.group_column)
    if "last" not in hierarchy.levels:
        args.metric_for_best_model = args.metric_for_best_model.replace(".last.", f".{hierarchy.levels[-1]}.")
    reader = MaskReader(hierarchy, args.mask_palette)

    def rows(dataset: Any, split: str, file: str | None) -> MaskedImageRows:
        root = image_root(args, file)
        columns = (ImageRows(dataset, column, split, root) for column in (args.image_column, args.mask_column))
        return MaskedImageRows(*columns, reader)

    eval_images = rows(validation, args.validation_split, args.validation_file)
    train_images = None if train is None else rows(train, args.train_split, args.train_file)
    return SegmentationData(
        hierarchy=hierarchy,
        train_images=train_images,
        train_rows=choose_rows(len(train_images or ()), args.max_train_samples, args.seed),
        eval_images=eval_images,
        eval_rows=choose_rows(len(eval_images), args.max_eval_samples, args.seed),
    )


def look_at_masks(
    args: SegmentationArguments, accelerator: Accelerator, data: SegmentationData, problems: ProblemLog
) -> None:
    """Read masks before any training: for values that are no class, and to know how common the classes are."""
    found: list[Any] = [None]
    looked = data.train_rows if args.class_weighting != "none" else spread(data.train_rows, MASKS_LOOKED_AT)
    data.eval_looked = spread(data.eval_rows, MASKS_LOOKED_AT)
    if accelerator.is_main_process:
        threads = max(1, num_workers(args, accelerator))
        train = (None, []) if data.train_images is None else data.train_images.count_pixels(looked, threads)
        found = [(*train, *data.eval_images.count_pixels(data.eval_looked, threads))]
    counts, train_problems, data.eval_pixels, eval_problems = broadcast_object_list(found)[0]
    problems.add([*train_problems, *eval_problems])
    if counts is None:
        return
    data.train_pixels = counts.sum(0)
    unseen = np.flatnonzero((data.train_pixels == 0) & (data.eval_pixels.sum(0) > 0))
    names = data.hierarchy.leaf_names()
    if len(unseen) and len(data.train_rows) == len(counts):
        logger.warning("validation has classes that training lacks: %s.", ", ".join(names[leaf] for leaf in unseen))
    missing = np.flatnonzero(data.train_pixels == 0)
    if len(missing):
        logger.warning(
            "label tree: %d leaves have no pixel in the %d training masks looked at: %s.",
            len(missing),
            len(counts),
            ", ".join(names[leaf] for leaf in missing[:5]),
        )


def spread(rows: np.ndarray, most: int) -> np.ndarray:
    """The rows, or so many of them at even distances."""
    return rows[np.linspace(0, len(rows) - 1, min(most, len(rows))).astype(int)]


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: SegmentationArguments, hierarchy: Hierarchy) -> LabelTreeForSemanticSegmentation:
    """A backbone with fresh decoder and heads; or a model that this script wrote, if the label tree is the same."""
    model, backbone, _ = start_from(
        args, LabelTreeForSemanticSegmentation, hierarchy, "decoder", "decoder_channels", pyramid=True
    )
    if model is None:
        return LabelTreeForSemanticSegmentation.build(
            backbone,
            hierarchy,
            args.head,
            dropout=args.dropout,
            decoder=args.decoder,
            decoder_channels=args.decoder_channels,
            evaluation={name: getattr(args, name) for name in EVALUATION_OPTIONS},
        )
    settle_evaluation(args, model, EVALUATION_OPTIONS)
    return model


EVALUATION_OPTIONS = ("resize_mode", "eval_crop", "eval_stride", "resize_longer", "decoding")


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


class SegmentationTrainer(Trainer):
    """The loop of :class:`common.run.training.Trainer`, for one label a level and pixel."""

    unit = "pixels"
    measures = ("mean_iou", "mean_f1")

    def make_train_loader(self) -> DataLoader:
        args, spec = self.args, self.spec
        geometry = self.geometry(spec["image_size"])
        transform = MaskTrainTransform(
            geometry,
            scale_jitter=args.scale_jitter,
            rare_crop=args.rare_crop,
            hflip=args.hflip,
            vflip=args.vflip,
            rot90=args.rot90,
            color_jitter=args.color_jitter,
            mean=spec["mean"],
        )
        most = max(args.scale_jitter)
        rows = self.decoded(
            self.data.train_images,
            lambda image, mask: resize_pair(image, mask, geometry.largest(*mask.shape, most)),
            f"train {geometry} {most}",
        )
        on_bad_sample = "replace" if args.on_bad_sample == "skip" else "error"
        images = Samples(rows, self.data.train_rows, transform, seed=args.seed, on_bad_sample=on_bad_sample)
        return make_loader(images, self.sampler, num_workers(args, self.accelerator), self.pin_memory)

    def make_eval_loader(self) -> DataLoader:
        args = self.args
        geometry = self.geometry(args.eval_crop or self.spec["image_size"])
        transform = MaskEvaluationTransform(geometry, self.spec["mean"])
        rows = self.decoded(
            self.data.eval_images,
            lambda image, mask: (resize_pair(image, mask, geometry.resized(*mask.shape))[0], mask),
            f"evaluation {geometry}",
        )
        images = Samples(rows, self.data.eval_rows, transform, on_bad_sample="drop")
        sampler = EvaluationBatchSampler(
            len(images),
            1 if geometry.windows else args.per_device_eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return make_loader(images, sampler, num_workers(args, self.accelerator), self.pin_memory)

    def geometry(self, size: int) -> Geometry:
        """At which size images are shown, for windows or whole images of ``size``."""
        return Geometry(size, self.args.resize_mode, bool(self.args.eval_crop), self.args.resize_longer)

    def decoded(self, rows: MaskedImageRows, shrink: Any, settings: str) -> Any:
        """The rows themselves, or with ``--cache_decoded`` what is in their place in memory."""
        if not self.args.cache_decoded:
            return rows
        with self.accelerator.local_main_process_first():
            workers = num_workers(self.args, self.accelerator)
            return open_cache(Path(HF_HOME) / "label_tree_cache", rows, shrink, settings, workers)

    def make_loss(self) -> SegmentationLoss:
        """Dice and focal loss, or one of its parts, of every level that has weight."""
        args, hierarchy = self.args, self.data.hierarchy
        dice, focal, gamma = {
            "dice_focal": (args.dice_weight, args.focal_weight, args.focal_gamma),
            "cross_entropy": (0.0, 1.0, 0.0),
            "dice": (1.0, 0.0, 0.0),
        }[args.loss]
        weights = None
        if self.data.train_pixels is not None:
            counts = hierarchy.count_lifted(torch.from_numpy(self.data.train_pixels))
            weights = [class_weights(count, args.class_weighting, args.class_weight_max_ratio) for count in counts]
        return SegmentationLoss(
            self.model.heads,
            self.curriculum.stages[-1].weights,
            weights,
            dice_weight=dice,
            focal_weight=focal,
            focal_gamma=gamma,
            dice_over=args.dice_over,
        )

    def make_metrics(self) -> SegmentationMetrics:
        return SegmentationMetrics(self.data.hierarchy, device=self.accelerator.device)

    def to_labels(self, labels: torch.Tensor) -> torch.Tensor:
        labels = super().to_labels(labels).long()
        return torch.where(labels == IGNORED_PIXEL, IGNORE, labels)

    def train_loss(
        self, pixels: torch.Tensor, labels: torch.Tensor, denominators: torch.Tensor, step: int
    ) -> torch.Tensor:
        return self.loss_fn(self.wrapped(pixels, logits_only=True), labels, denominators)

    def facts(self) -> dict[str, str]:
        pixels = self.data.train_pixels / max(1, self.data.train_pixels.sum())
        names = self.data.hierarchy.leaf_names()
        return {
            "pixels": ", ".join(f"{names[leaf]} {100 * pixels[leaf]:.3g}%" for leaf in (-pixels).argsort()),
            "decoder": f"{self.model.config.decoder}, {self.model.config.decoder_channels} channels",
            "loss": f"{self.args.loss}, class weights {self.args.class_weighting}",
        }

    # ---- evaluation

    @torch.no_grad()
    def evaluate(self, model: LabelTreeForSemanticSegmentation) -> Evaluation:
        loss_fn, hierarchy = self.loss_fn, self.data.hierarchy
        sums = torch.zeros(2, loss_fn.num_levels, 2, dtype=torch.float64, device=self.accelerator.device)
        folder = PredictionFolder(self.output_dir / "predictions", hierarchy, self.args.save_predictions)
        folder.start(self.accelerator)
        examples = ExampleKeeper(self.data.eval_looked, self.data.eval_pixels)
        for batch in self.evaluation_batches(model):
            labels = self.to_labels(batch["labels"])
            scores = self.predict(model, batch["pixels"])
            if self.args.eval_crop:  # the image may be large: for the loss its scores are not enlarged
                labels = labels_at_stride(labels, scores, model.stride)
            sums += torch.stack([loss_fn.level_sums(scores, labels), loss_fn.label_weights(labels)])
            log_probs = model.heads.log_probs(scores)
            path_scores = model.heads.path_scores(scores, log_probs, self.args.decoding)
            alone = log_probs[:-1] if self.last_level_is_leaf(model) else log_probs
            for index, truth in enumerate(batch["truth"]):
                dense = [path_scores[index], *(level[index] for level in alone)]
                resampler = Resampler(batch["resized"][index], truth.shape, model.stride, scores.device)
                leaf, *argmax = dense_labels(resampler, dense, lambda parts: [part.max(1).indices for part in parts])
                argmax += [leaf] * (len(log_probs) - len(alone))
                self.metrics.add_batch(
                    predictions={"leaf": leaf, "argmax": argmax}, references=truth.to(leaf.device, non_blocking=True)
                )
                row = int(batch["rows"][index])
                folder.add(row, leaf)
                examples.add(row, batch["pixels"][index], batch["resized"][index], truth, leaf)
        results = self.computed(*sums)
        for level, row in self.metrics.argmax_levels().items():
            means = {name: value for name, value in row.items() if name != "per_class"}
            results["argmax"].setdefault("levels", {})[level] = means
        evidence = Evidence.of_leaf_matrix(hierarchy, self.metrics.leaf_confusion())
        return Evaluation(results, (folder, examples.gather(self.accelerator)), evidence)

    def last_level_is_leaf(self, model: LabelTreeForSemanticSegmentation) -> bool:
        """Whether the last level's most probable class is always the leaf of the best path: no need to look twice."""
        hierarchy = self.data.hierarchy
        only_leaves = hierarchy.num_leaves == hierarchy.num_classes[-1]
        return model.heads.leaf_softmax and only_leaves and self.args.decoding == "leaf"

    def predict(self, model: LabelTreeForSemanticSegmentation, pixels: torch.Tensor) -> torch.Tensor:
        """Scores at stride 4 of uint8 images: whole ones, or with ``--eval_crop`` one in windows."""
        args = self.args
        with self.accelerator.autocast():
            return image_logits(
                model,
                pixels,
                self.to_model,
                eval_crop=args.eval_crop,
                eval_stride=args.eval_stride,
                batch_size=args.per_device_eval_batch_size,
            )

    # ---- results

    def save_model(self, model: LabelTreeForSemanticSegmentation) -> None:
        spec = self.spec
        side = {"height": spec["image_size"], "width": spec["image_size"]}
        processor = SegformerImageProcessor(size=side, image_mean=spec["mean"], image_std=spec["std"], resample=2)
        save_model(model, processor, self.output_dir)

    def write(self, evaluation: Evaluation) -> None:
        """Predicted masks, if asked for, and what pictures of them need."""
        folder, examples = evaluation.extras
        folder.keep(self.accelerator)
        if self.accelerator.is_main_process:
            keep_for_plots(self.output_dir, evaluation.results, examples)

    def draw(self, folder: Path) -> None:
        draw_plots(self.output_dir, folder, self.data.hierarchy)


def labels_at_stride(labels: torch.Tensor, scores: torch.Tensor, stride: int) -> torch.Tensor:
    """Labels (batch, height, width) in the middle of what each of the scores stands for, ignored beyond the image."""
    labels = labels[:, stride // 2 :: stride, stride // 2 :: stride]
    missing = [have - want for have, want in zip(scores.shape[2:], labels.shape[1:], strict=True)]
    return torch.nn.functional.pad(labels, (0, missing[1], 0, missing[0]), value=IGNORE)


if __name__ == "__main__":
    run(main)
