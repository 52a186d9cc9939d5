"""Train an image classifier whose labels form a tree: phylum > class > order > family > genus > species.

    accelerate launch train_taxonomy.py                                   # the demo, about a minute on two CPU cores
    accelerate launch train_taxonomy.py --config configs/FILE.yaml --OPTION VALUE ...
    python train_taxonomy.py --help

The story: arguments, data, model, loss and optimizer, training, evaluation, results. Each step is a function below, in
this order; what other scripts could share lives in common/.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.constants import HF_HOME
from timm.utils import ModelEmaV3
from torch.utils.data import DataLoader

from common.arguments import CommonArguments, parse_arguments
from common.backbones import load_backbone
from common.data import (
    LabelColumns,
    check_groups,
    check_unseen,
    choose_rows,
    get_split,
    leaves_without_images,
    load_splits,
)
from common.hierarchy import Hierarchy
from common.image_rows import ImageRows, LabelledImages, ProblemLog, make_loader
from common.images import MixImages, Normalize, TrainTransform, evaluation_transform
from common.labels import read_class_order
from common.losses import LevelCrossEntropy, class_weights, count_labels, level_weights, levels_where_labels_end
from common.metrics import TaxonomyMetrics
from common.modeling import LabelTreeForImageClassification
from common.optimization import learning_rate_factor, parameter_groups, set_learning_rate
from common.report import (
    append_history,
    check_metric_name,
    flatten,
    is_better,
    results_table,
    save_model,
    write_json,
    write_predictions,
)
from common.runtime import Progress, banner, evaluation_bar, make_accelerator, num_workers, run, sync_buffers
from common.sampling import EvaluationBatchSampler, GlobalBatchSampler, seed_step
from data_prep.make_demo import make_taxonomy

logger = logging.getLogger(__name__)

DEMO_CONFIG = Path(__file__).parent / "configs" / "taxonomy_demo.yaml"


@dataclass
class TaxonomyArguments(CommonArguments):
    """Options of this script: all of them shared so far."""


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

    Raises:
        ValueError: for anything the user can mend, before training starts wherever that is possible.
    """
    args = parse_arguments(TaxonomyArguments, argv, __doc__, DEMO_CONFIG)
    accelerator = make_accelerator(args)
    data = load_data(args, accelerator)
    sampler = None if args.eval_only else make_sampler(args, accelerator, len(data.train_rows))
    problems = ProblemLog(args.on_bad_sample)
    check_settings(args, accelerator, data, problems)
    model = build_model(args, data.hierarchy)
    trainer = Trainer(args, accelerator, data, model, sampler, problems)
    if args.eval_only:
        evaluation = trainer.evaluate(trainer.model)
        results = {"train": None, "eval": evaluation.results}
        trainer.progress.write(results_table(evaluation.results))
        trainer.write_predictions(evaluation)
    else:
        results = trainer.fit()
    trainer.finish(results)
    return results


# ---------------------------------------------------------------------------------------------------------------------
# Data
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Data:
    """What training and evaluation draw from; ``train_images`` is ``None`` with ``--eval_only``."""

    hierarchy: Hierarchy
    train_images: ImageRows | None
    train_labels: np.ndarray
    train_rows: np.ndarray
    eval_images: ImageRows
    eval_labels: np.ndarray
    eval_rows: np.ndarray


def load_data(args: TaxonomyArguments, accelerator: Accelerator) -> Data:
    """Data set, label tree, labels of every level, and all checks that need no model."""
    with accelerator.local_main_process_first():
        files = {args.train_split: args.train_file, args.validation_split: args.validation_file}
        name = args.dataset_name
        if name == "demo" and not args.validation_file:
            name = str(make_taxonomy(Path(HF_HOME) / "label_tree_demo" / "taxonomy"))
        splits = load_splits(name, args.dataset_config_name, files)
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
    return Data(
        hierarchy=hierarchy,
        train_images=train and ImageRows(train, args.image_column, args.train_split, root),
        train_labels=train_labels,
        train_rows=choose_rows(len(train_labels), args.max_train_samples, args.seed),
        eval_images=ImageRows(validation, args.image_column, args.validation_split, eval_root),
        eval_labels=eval_labels,
        eval_rows=choose_rows(len(eval_labels), args.max_eval_samples, args.seed),
    )


def image_root(args: TaxonomyArguments, file: str | None) -> Path:
    """The folder that image paths of a table are relative to."""
    if args.image_root:
        return Path(args.image_root)
    return Path(file).parent if file else Path(args.dataset_name)


def make_sampler(args: TaxonomyArguments, accelerator: Accelerator, num_samples: int) -> GlobalBatchSampler:
    """Batch sizes that fit together, the number of optimizer steps, and the order of the samples."""
    processes = accelerator.num_processes
    micro = args.per_device_train_batch_size or (args.global_batch_size or 32 * processes) // processes or 1
    if (args.mixup or args.cutmix) and micro % 2:
        raise ValueError(f"mixup and cutmix mix pairs: {micro} images per device and forward pass are not even.")
    return GlobalBatchSampler(
        num_samples,
        args.global_batch_size or micro * processes,
        micro,
        num_steps=args.max_train_steps,
        num_epochs=args.num_train_epochs,
        seed=args.seed,
        process_index=accelerator.process_index,
        num_processes=processes,
    )


def check_settings(args: TaxonomyArguments, accelerator: Accelerator, data: Data, problems: ProblemLog) -> None:
    """What can be known to be wrong, or missing on the disk, before a model is loaded."""
    for line in args.without_effect():
        logger.warning("%s", line)
    level_weights(args.level_weights, data.hierarchy)
    results = TaxonomyMetrics(data.hierarchy).compute()
    check_metric_name(args.metric_for_best_model, ["loss", *(name for name, _ in flatten(results))])
    if accelerator.is_local_main_process:
        for images in (data.train_images, data.eval_images):
            if images is not None:
                problems.add(images.check_headers())


# ---------------------------------------------------------------------------------------------------------------------
# Model
# ---------------------------------------------------------------------------------------------------------------------


def build_model(args: TaxonomyArguments, hierarchy: Hierarchy) -> LabelTreeForImageClassification:
    """A backbone with fresh heads; or a model that this script wrote, with its heads if the label tree is the same."""
    saved = LabelTreeForImageClassification.is_saved_at(args.model_name_or_path)
    if args.eval_only and not saved:
        raise ValueError(f"{args.model_name_or_path} holds no model written by this script (--eval_only).")
    if saved:
        model = LabelTreeForImageClassification.from_pretrained(args.model_name_or_path)
        for line in args.without_effect_on_saved_models():
            logger.warning("%s", line)
        if model.hierarchy == hierarchy and (args.eval_only or model.config.head == args.head):
            return model
        logger.warning("%s has other classes or another head: only its backbone is used.", args.model_name_or_path)
        backbone, classifier = model.backbone, None
    else:
        backbone, classifier = load_backbone(
            args.model_name_or_path,
            pretrained=not args.no_pretrained,
            weights=args.backbone_weights,
            image_size=args.image_size,
            drop_path_rate=args.drop_path_rate,
            trust_remote_code=args.trust_remote_code,
        )
    model = LabelTreeForImageClassification.build(backbone, hierarchy, args.head, args.dropout)
    if args.init_leaf_from_classifier:
        if classifier is None:
            raise ValueError("--init_leaf_from_classifier needs a backbone whose own classifier has been trained.")
        rows = read_class_order(args.init_leaf_from_classifier, hierarchy, classifier.out_features)
        model.heads.init_leaves(classifier.weight, classifier.bias, rows)
    return model


# ---------------------------------------------------------------------------------------------------------------------
# Training
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """Results by the contract of all_results.json, and with ``--save_predictions`` what goes into the table."""

    results: dict[str, Any]
    predictions: dict[str, np.ndarray] | None


class Trainer:
    """Loaders, loss, optimizer, and the loop over them. All state is here; the position is ``sampler``'s.

    Every random draw is a function of the seed and the position (epoch, sample, step), so there is none to carry.
    """

    def __init__(
        self,
        args: TaxonomyArguments,
        accelerator: Accelerator,
        data: Data,
        model: LabelTreeForImageClassification,
        sampler: GlobalBatchSampler | None,
        problems: ProblemLog,
    ) -> None:
        self.args, self.accelerator, self.data = args, accelerator, data
        self.sampler, self.problems = sampler, problems
        self.output_dir = Path(args.output_dir)
        spec = model.config.backbone
        if args.image_size and args.image_size != spec["image_size"]:
            raise ValueError(f"--image_size {args.image_size} differs from the saved model's {spec['image_size']}.")
        self.model = model.to(accelerator.device)
        self.normalize = Normalize(spec["mean"], spec["std"]).to(accelerator.device)
        self.mix = MixImages(args.mixup, args.cutmix, args.mix_probability, args.seed)
        self.loss_fn = self.make_loss().to(accelerator.device)
        self.metrics = TaxonomyMetrics(data.hierarchy, device=accelerator.device)
        self.eval_loader = self.make_eval_loader(spec)
        self.best: float | None = None
        self.best_results: dict[str, Any] = {}
        self.evaluations_without_gain = 0
        self.ema: ModelEmaV3 | None = None
        if sampler is not None:
            self.train_loader = self.make_train_loader(spec)
            self.optimizer = self.make_optimizer()
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            args.save(self.output_dir / "args.yaml")
            data.hierarchy.save(self.output_dir / "hierarchy.json")
        show = accelerator.is_main_process
        self.progress = (
            Progress(sampler.num_steps, sampler.global_batch_size, show) if sampler else Progress(0, 0, show)
        )

    # ---- set-up

    def make_train_loader(self, spec: dict[str, Any]) -> DataLoader:
        """Augmented images, in the sampler's order."""
        args = self.args
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
        data = self.data
        images = LabelledImages(
            data.train_images, data.train_labels, data.train_rows, transform, args.seed, on_bad_sample
        )
        return make_loader(images, self.sampler, num_workers(args, self.accelerator), self.pin_memory)

    def make_eval_loader(self, spec: dict[str, Any]) -> DataLoader:
        """Every evaluation image once, in one process."""
        args, data = self.args, self.data
        transform = evaluation_transform(
            spec["image_size"],
            resize_mode=args.resize_mode,
            crop_pct=args.crop_pct,
            interpolation=spec["interpolation"],
            mean=spec["mean"],
        )
        images = LabelledImages(data.eval_images, data.eval_labels, data.eval_rows, transform, on_bad_sample="drop")
        sampler = EvaluationBatchSampler(
            len(images),
            args.per_device_eval_batch_size,
            self.accelerator.process_index,
            self.accelerator.num_processes,
        )
        return make_loader(images, sampler, num_workers(args, self.accelerator), self.pin_memory)

    @property
    def pin_memory(self) -> bool:
        """Page-locked batches, for copies that do not wait."""
        return self.accelerator.device.type == "cuda"

    def make_loss(self) -> LevelCrossEntropy:
        """Cross-entropy of every level that has weight, corrected for rare classes if asked."""
        args, hierarchy = self.args, self.data.hierarchy
        labels = torch.from_numpy(self.data.train_labels[self.data.train_rows])
        counts = count_labels(labels, hierarchy)
        return LevelCrossEntropy(
            self.model.heads,
            level_weights(args.level_weights, hierarchy),
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

    def make_optimizer(self) -> torch.optim.Optimizer:
        """AdamW; also what happens to the model before it is wrapped for several processes."""
        args, accelerator = self.args, self.accelerator
        if args.channels_last:
            self.model.to(memory_format=torch.channels_last)
        if args.ema_decay:
            self.ema = ModelEmaV3(self.model, decay=args.ema_decay, use_warmup=True)
        groups = parameter_groups(self.model, args.learning_rate, args.weight_decay, args.layer_decay)
        optimizer = torch.optim.AdamW(
            groups, betas=(args.adam_beta1, args.adam_beta2), fused=accelerator.device.type in ("cpu", "cuda")
        )
        if args.compile:
            self.model.compile()
        self.wrapped, optimizer = accelerator.prepare(self.model, optimizer)
        return optimizer

    # ---- the loop

    def fit(self) -> dict[str, Any]:
        """Train to the end; the best model is in the output folder whenever an evaluation has found one."""
        args, accelerator, sampler = self.args, self.accelerator, self.sampler
        num_steps = sampler.num_steps
        self.show_banner()
        if accelerator.is_main_process:  # what an earlier run left here must not be taken for this one's
            for name in ("history.jsonl", "all_results.json", "predictions.parquet", "skipped_images.json"):
                (self.output_dir / name).unlink(missing_ok=True)
        if args.report_to != "none":
            config = {name: str(value) for name, value in vars(args).items()}
            accelerator.init_trackers("label-tree", config=config)
        started = time.perf_counter()
        batches = iter(self.train_loader)
        running, epoch_loss = torch.zeros(2, device=accelerator.device)
        epoch_steps, logged = 0, 0
        while sampler.global_step < num_steps:
            step = sampler.global_step
            factor = learning_rate_factor(
                args.lr_scheduler_type, step, num_steps, round(args.warmup_ratio * num_steps)
            )
            set_learning_rate(self.optimizer, factor)
            loss = self.train_step(step, [next(batches) for _ in range(sampler.accumulation_steps)])
            running, epoch_loss, epoch_steps = running + loss, epoch_loss + loss, epoch_steps + 1
            epoch = sampler.epoch
            sampler.advance()
            step += 1
            self.progress.update()
            done = step == num_steps
            if step % args.logging_steps == 0 or done:
                self.log_loss(step, running / (step - logged), args.learning_rate * factor)
                running, logged = torch.zeros_like(running), step
            epoch_ends = sampler.epoch > epoch
            if done or (epoch_ends and sampler.epoch % args.eval_epochs == 0):
                train_loss = accelerator.reduce(epoch_loss / epoch_steps, "sum").item()
                if self.evaluate_and_keep_best(step):
                    break
            if epoch_ends:
                epoch_loss, epoch_steps = torch.zeros_like(epoch_loss), 0
        self.progress.close()
        seconds = time.perf_counter() - started
        seen = sampler.global_step * sampler.global_batch_size
        train = {
            "loss": train_loss,
            "global_step": sampler.global_step,
            "epochs": sampler.global_step / sampler.steps_per_epoch,
            "samples_seen": seen,
            "seconds": seconds,
            "images_per_second": seen / seconds,
        }
        return {"train": train, "eval": self.best_results}

    def train_step(self, step: int, batches: list[dict[str, Any]]) -> torch.Tensor:
        """One optimizer step over this process's micro-batches; returns its share of the global batch's loss.

        Each level's mean is over the labelled images of the *global* batch, so neither accumulation nor the number of
        processes changes the loss.
        """
        args, accelerator = self.args, self.accelerator
        device = accelerator.device
        self.model.train()
        self.loss_fn.train()
        for batch in batches:
            self.problems.add(batch["problems"])
        labels = [batch["labels"].to(device, non_blocking=True) for batch in batches]
        denominators = accelerator.reduce(self.loss_fn.label_weights(torch.cat(labels)), "sum")
        total = torch.zeros((), device=device)
        for micro_step, batch in enumerate(batches):
            seed_step(args.seed, step, micro_step, accelerator.process_index)
            pixels = self.to_model(batch["pixels"])
            pixels, mixed_with, share = self.mix(pixels, labels[micro_step], step)
            last = micro_step == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                scores = self.wrapped(pixels, scores_only=True)
                loss = self.loss_fn(scores, labels[micro_step], denominators, mixed_with, share)
                # Gradients are averaged over processes, but the parts of a global batch add up.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        if args.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, step=step + 1)
        return total

    def to_model(self, pixels: torch.Tensor) -> torch.Tensor:
        """uint8 on the host -> normalised float on the device."""
        pixels = self.normalize(pixels.to(self.accelerator.device, non_blocking=True))
        return pixels.contiguous(memory_format=torch.channels_last) if self.args.channels_last else pixels

    def log_loss(self, step: int, loss: torch.Tensor, learning_rate: float) -> None:
        """Show and record the mean loss since the last time; ValueError if it is no number any more."""
        value = self.accelerator.reduce(loss, "sum").item()
        if not math.isfinite(value):
            raise ValueError(
                f"The loss became {value} before step {step}. Lower --learning_rate, or use bf16 instead of fp16."
            )
        speed = self.progress.log(step, value, learning_rate)
        entry = {"loss": value, "learning_rate": learning_rate, "images_per_second": speed}
        self.record({f"train/{name}": number for name, number in entry.items()}, step)

    def record(self, entry: dict[str, Any], step: int) -> None:
        """One line in history.jsonl, and in the trackers if there are any."""
        self.accelerator.log(entry, step=step)
        if self.accelerator.is_main_process:
            append_history(self.output_dir / "history.jsonl", {"global_step": step, **entry})

    def show_banner(self) -> None:
        """What is trained, on what, for how long."""
        args, data, sampler = self.args, self.data, self.sampler
        parameters = sum(parameter.numel() for parameter in self.model.parameters())
        facts = {
            "model": f"{args.model_name_or_path}, {parameters / 1e6:.1f} M parameters, {args.head} head",
            "image size": f"{self.model.config.backbone['image_size']} px",
            "label tree": str(data.hierarchy)[len("Hierarchy(") : -1],
            "level weights": ", ".join(f"{weight:.3g}" for weight in self.loss_fn.weights),
            "images": f"{len(data.train_rows):,} for training, {len(data.eval_rows):,} for validation",
            "global batch": f"{sampler.global_batch_size} = {sampler.micro_batch_size} per device x "
            f"{sampler.num_processes} processes x {sampler.accumulation_steps} accumulated",
            "steps": f"{sampler.num_steps:,} = {sampler.num_steps / sampler.steps_per_epoch:.4g} epochs",
            "device": f"{self.accelerator.device}, mixed precision {self.accelerator.mixed_precision}",
            "output": args.output_dir,
        }
        self.progress.write(banner("Training", facts))

    # ---- evaluation

    def evaluate_and_keep_best(self, step: int) -> bool:
        """Evaluate; save the model if it is the best so far. Returns whether to stop early."""
        args = self.args
        model = self.model if self.ema is None else self.ema.module
        evaluation = self.evaluate(model)
        results = evaluation.results
        self.progress.write(f"evaluation after step {step}\n{results_table(results)}")
        self.record({f"eval/{name}": value for name, value in flatten(results)}, step)
        value = dict(flatten(results))[args.metric_for_best_model]
        if self.best_results and not is_better(args.metric_for_best_model, value, self.best):
            self.evaluations_without_gain += 1
            return self.evaluations_without_gain == args.early_stopping_patience
        self.best = None if math.isnan(value) else value
        self.best_results, self.evaluations_without_gain = results, 0
        if self.accelerator.is_main_process:
            save_model(model, self.output_dir, resize_mode=args.resize_mode, crop_pct=args.crop_pct)
        self.write_predictions(evaluation)
        self.accelerator.wait_for_everyone()
        return False

    @torch.no_grad()
    def evaluate(self, model: LabelTreeForImageClassification) -> Evaluation:
        """Results over all processes. No collective inside the loop, whose length may differ between them."""
        accelerator, loss_fn, heads = self.accelerator, self.loss_fn, model.heads
        model.eval()
        loss_fn.eval()
        sync_buffers(model, accelerator)
        self.metrics.reset()
        sums = torch.zeros(2, loss_fn.num_levels, dtype=torch.float64, device=accelerator.device)
        parts: list[dict[str, np.ndarray]] = []
        for batch in evaluation_bar(self.eval_loader, len(self.eval_loader), accelerator.is_main_process):
            self.problems.add(batch["problems"])
            if batch["pixels"] is None:
                continue
            labels = batch["labels"].to(accelerator.device, non_blocking=True)
            with accelerator.autocast():
                scores = model(self.to_model(batch["pixels"]), scores_only=True)
            sums += torch.stack([loss_fn.level_sums(scores, labels), loss_fn.label_weights(labels)])
            log_probs, leaf_scores = heads.log_probs(scores), heads.leaf_scores(scores)
            if self.args.decoding == "levels":
                path = model.hierarchy.best_path([level.exp() for level in log_probs])
            else:
                path = model.hierarchy.lift(leaf_scores.argmax(1))
            self.metrics.add_batch(predictions={"log_probs": log_probs, "path": path}, references=labels)
            if self.args.save_predictions:
                parts.append(prediction_columns(batch["rows"], labels, log_probs, path, leaf_scores))
        self.metrics.reduce(lambda counts: accelerator.reduce(counts, "sum"))
        sums = accelerator.reduce(sums, "sum")
        results = {"loss": loss_fn.combine(*sums).item(), **self.metrics.compute()}
        return Evaluation(results, self.gather(parts) if self.args.save_predictions else None)

    def gather(self, parts: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """All processes' predictions in one table."""
        merged = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]} if parts else {}
        everyone = gather_object([merged]) if self.accelerator.num_processes > 1 else [merged]
        everyone = [part for part in everyone if part]
        return {name: np.concatenate([part[name] for part in everyone]) for name in everyone[0]} if everyone else {}

    def write_predictions(self, evaluation: Evaluation) -> None:
        """predictions.parquet, if asked for."""
        if evaluation.predictions and self.accelerator.is_main_process:
            write_predictions(self.output_dir / "predictions.parquet", self.data.hierarchy, evaluation.predictions)

    # ---- the end

    def finish(self, results: dict[str, Any]) -> None:
        """Write all_results.json and say where things are."""
        args, accelerator = self.args, self.accelerator
        skipped = sorted(set(gather_object(list(self.problems.found))))
        if accelerator.is_main_process:
            write_json(self.output_dir / "all_results.json", results)
            if skipped:
                write_json(self.output_dir / "skipped_images.json", skipped)
                self.progress.write(f"{len(skipped)} broken images were skipped, see skipped_images.json.")
            self.progress.write(f"Results are in {args.output_dir}.")
        accelerator.end_training()


def prediction_columns(
    rows: torch.Tensor,
    labels: torch.Tensor,
    log_probs: list[torch.Tensor],
    path: list[torch.Tensor],
    leaf_scores: torch.Tensor,
) -> dict[str, np.ndarray]:
    """A batch of predictions as host arrays, in the form that :func:`common.report.write_predictions` takes."""
    top = leaf_scores.float().softmax(1).topk(min(5, leaf_scores.shape[1]))
    argmax = [level.max(1) for level in log_probs]
    chosen = [
        torch.where(label >= 0, level.gather(1, label.clamp(min=0)[:, None])[:, 0].exp(), 0)
        for level, label in zip(log_probs, path, strict=True)
    ]
    columns = {
        "row": rows,
        "label": labels,
        "best_path": torch.stack(path, 1),
        "best_path_probability": torch.stack(chosen, 1),
        "argmax": torch.stack([best.indices for best in argmax], 1),
        "argmax_probability": torch.stack([best.values.exp() for best in argmax], 1),
        "top_leaves": top.indices,
        "top_probabilities": top.values,
    }
    return {name: values.cpu().numpy() for name, values in columns.items()}


if __name__ == "__main__":
    run(main)
