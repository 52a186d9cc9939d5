"""The training loop that both scripts run; what differs between tasks are the methods that a script's trainer adds."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from accelerate.utils import gather_object
from timm.utils import ModelEmaV3
from transformers import PreTrainedModel

from ..checkpoint.resume import RunSaver
from ..checkpoint.state import StepCounts
from ..data.rows import ProblemLog
from ..data.sampling import GlobalBatchSampler, seed_step
from ..files import append_history, write_json
from ..metrics.report_data import REPORT_DATA_FILE
from ..metrics.results import flatten, is_better, results_table
from ..optim import Curriculum, Stage, parameter_groups, set_learning_rate
from ..publish.card import write_card
from ..publish.hub import Publisher
from ..publish.onnx_export import export_onnx
from ..report.report import PLOTS, draw_report
from ..report.summary import RunSummary, shareable
from .arguments import save_arguments
from .lock import RunLock
from .options import CommonArguments
from .progress import Progress, banner
from .stopping import EvaluationAbandoned, RunStatus, Stopped, StopRequest
from .task import Data, Evaluation, Task
from .trackers import log_pictures, start_trackers, tracked

logger = logging.getLogger(__name__)


class Trainer(Task):
    """Optimizer and loop. All state is here; the position is ``sampler``'s.

    Every random draw is a function of the seed and the position (epoch, sample, step), so there is none to carry.

    Args:
        args, accelerator, data, model, curriculum, problems: see :class:`common.run.task.Task`.
        sampler: the order of the training samples, and the position; ``None`` to evaluate only.
    """

    def __init__(
        self,
        args: CommonArguments,
        accelerator: Accelerator,
        data: Data,
        model: PreTrainedModel,
        sampler: GlobalBatchSampler | None,
        curriculum: Curriculum,
        problems: ProblemLog,
    ) -> None:
        self.output_dir = Path(args.output_dir)
        super().__init__(args, accelerator, data, model, curriculum, problems)
        self.sampler = sampler
        self.stage: Stage | None = None
        self.best: float | None = None
        self.best_results: dict[str, Any] = {}
        self.evaluations_without_gain = 0
        self.evaluated_step, self.stopped_early = 0, False
        self.epoch_loss: float | None = None
        self.counts = StepCounts(accelerator.device)
        self.status = RunStatus(self.output_dir, accelerator.is_main_process)
        self.ema: ModelEmaV3 | None = None
        if sampler is not None:
            self.train_loader = self.make_train_loader()
            self.optimizer = self.make_optimizer()
        if accelerator.is_main_process:
            self.output_dir.mkdir(parents=True, exist_ok=True)
            save_arguments(args, self.output_dir / "args.yaml")
            data.hierarchy.save(self.output_dir / "hierarchy.json")
        show = accelerator.is_main_process
        self.publisher: Publisher | None = None
        if args.push_to_hub and sampler is not None and accelerator.is_main_process:
            self.publisher = Publisher(self.output_dir, args.hub_model_id, args.hub_private)
        self.progress = (
            Progress(sampler.num_steps, sampler.global_batch_size, show) if sampler else Progress(0, 0, show)
        )

    # ---- set-up

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

    def run(self) -> dict[str, Any]:
        """Train, or evaluate with ``--eval_only``; returns what all_results.json holds.

        Raises:
            Stopped: if a signal or the time budget ended the run before its end; there is a checkpoint then.
        """
        with StopRequest(self.args.max_train_minutes) as self.stop, self.status.of_run():
            if self.sampler is not None:
                with RunLock(self.output_dir) if self.accelerator.is_main_process else nullcontext():
                    results = self.fit()
            else:
                try:
                    evaluation = self.evaluate(self.model)
                except EvaluationAbandoned:
                    raise Stopped(self.stop.reason) from None
                results = {"train": None, "eval": evaluation.results}
                self.progress.write(results_table(evaluation.results))
                self.keep(evaluation)
            self.finish(results)
        return results

    def fit(self) -> dict[str, Any]:
        """Train from the last checkpoint, or the beginning, to the end.

        The best model is in the output folder whenever an evaluation has found one.
        """
        args, accelerator, sampler = self.args, self.accelerator, self.sampler
        self.show_banner()
        self.saver = RunSaver(self)
        self.saver.resume()
        self.progress.start(sampler.global_step)
        self.status.set("running", global_step=sampler.global_step, num_steps=sampler.num_steps)
        start_trackers(accelerator, args, sampler.global_step)
        batches = iter(self.train_loader)
        while True:
            step = sampler.global_step
            if self.evaluation_due(step):
                self.evaluate_and_keep_best(step)
            self.saver.save_if_due()
            if self.stopped_early or step == sampler.num_steps:
                break
            factor = self.enter_step(step)
            self.train_step(step, [next(batches) for _ in range(sampler.accumulation_steps)])
            sampler.advance()
            self.progress.update()
            if (step + 1) % args.logging_steps == 0 or step + 1 == sampler.num_steps:
                self.log_loss(step + 1, args.learning_rate * factor)
        self.progress.close()
        self.saver.finish()
        self.status.set("running", global_step=sampler.global_step)
        seen = sampler.global_step * sampler.global_batch_size
        train = {
            "loss": self.epoch_loss,
            "global_step": sampler.global_step,
            "epochs": sampler.global_step / sampler.steps_per_epoch,
            "samples_seen": seen,
            "skipped_steps": self.counts.skipped_steps,
            "seconds": self.saver.seconds,
            "images_per_second": seen / self.saver.seconds,
        }
        return {"train": train, "eval": self.best_results}

    def evaluation_due(self, step: int) -> bool:
        """At the end of the training and after every so many epochs, and at each of these steps once."""
        sampler = self.sampler
        epoch_ends = step > 0 and sampler.samples_seen == 0 and sampler.epoch % self.args.eval_epochs == 0
        return self.evaluated_step != step and (step == sampler.num_steps or epoch_ends)

    def enter_step(self, step: int) -> float:
        """Set the stage's level weights and the learning rate for an optimizer step; returns the rate's factor."""
        stage = self.curriculum.stage(step)
        if stage is not self.stage and len(self.curriculum.stages) > 1:
            self.progress.write(f"step {step}: {self.curriculum.describe(stage, self.data.hierarchy.levels)}")
        self.stage = stage
        self.loss_fn.weights = stage.weights
        factor = self.curriculum.learning_rate_factor(self.args.lr_scheduler_type, step, self.args.warmup_ratio)
        set_learning_rate(self.optimizer, factor)
        return factor

    def train_step(self, step: int, batches: list[dict[str, Any]]) -> None:
        """One optimizer step over this process's micro-batches.

        Each level's mean is over the labelled elements of the *global* batch, so neither accumulation nor the number
        of processes changes the loss. If that is no number in any process, the step changes nothing.
        """
        args, accelerator = self.args, self.accelerator
        self.model.train()
        self.loss_fn.train()
        for batch in batches:
            self.problems.add(batch["problems"])
        labels = [self.to_labels(batch["labels"]) for batch in batches]
        denominators = accelerator.reduce(sum(self.loss_fn.label_weights(part) for part in labels), "sum")
        total = torch.zeros((), device=accelerator.device)
        for micro_step, batch in enumerate(batches):
            seed_step(args.seed, step, micro_step, accelerator.process_index)
            last = micro_step == len(batches) - 1
            with nullcontext() if last else accelerator.no_sync(self.wrapped):
                loss = self.train_loss(self.to_model(batch["pixels"]), labels[micro_step], denominators, step)
                # Gradients are averaged over processes, but the parts of a global batch add up.
                accelerator.backward(loss * accelerator.num_processes)
            total += loss.detach()
        if args.max_grad_norm:
            accelerator.clip_grad_norm_(self.model.parameters(), args.max_grad_norm)
        bad = accelerator.reduce((~torch.isfinite(total)).float(), "sum").clamp(max=1)
        with self.model.heads.untrained_kept(self.loss_fn.weights), left_alone(self.optimizer, bad):
            self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.ema is not None:
            self.ema.update(self.model, step=step + 1)
        self.counts.add(total, bad, new_epoch=self.sampler.samples_seen == 0)

    def log_loss(self, step: int, learning_rate: float) -> None:
        """Show and record the mean loss since the last time; ValueError after too many steps without a number."""
        value = self.counts.mean_loss(self.accelerator)
        if self.counts.skipped_in_a_row > self.args.max_skipped_steps:
            raise ValueError(
                f"The loss has been no number for the last {self.counts.skipped_in_a_row} steps before step {step} "
                f"(--max_skipped_steps). Lower --learning_rate, or use bf16 instead of fp16. {self.saver.last_good()}"
            )
        speed = self.progress.log(step, value, learning_rate)
        if self.counts.skipped_steps:
            self.progress.write(f"{self.counts.skipped_steps} steps so far were skipped: their loss was no number.")
        entry = {"loss": value, "learning_rate": learning_rate}
        self.record({f"train/{name}": number for name, number in entry.items()}, step)
        self.accelerator.log({"train/images_per_second": speed}, step=step)

    def record(self, entry: dict[str, Any], step: int) -> None:
        """One line in history.jsonl, and in the trackers if there are any."""
        self.accelerator.log(tracked(entry), step=step)
        if self.accelerator.is_main_process:
            append_history(self.output_dir / "history.jsonl", {"global_step": step, **entry})

    def show_banner(self) -> None:
        """What is trained, on what, for how long."""
        self.progress.write(banner("Training", {**run_facts(self), "output": self.args.output_dir}))

    # ---- evaluation

    def evaluate_and_keep_best(self, step: int) -> None:
        """Evaluate; save the model if it is the best so far; the training may be finished with that."""
        args = self.args
        model = self.model if self.ema is None else self.ema.module
        self.epoch_loss = self.counts.epoch_loss(self.accelerator)
        try:
            evaluation = self.evaluate(model)
        except EvaluationAbandoned:  # to be done again; everything is as it was before
            self.saver.save_if_due()
            raise AssertionError("a stop that all processes know of") from None
        results = evaluation.results
        self.evaluated_step = step
        self.progress.write(f"evaluation after step {step}\n{results_table(results)}")
        factor = self.curriculum.learning_rate_factor(args.lr_scheduler_type, max(step - 1, 0), args.warmup_ratio)
        entry = {"train/epoch_loss": self.epoch_loss, "train/learning_rate": args.learning_rate * factor}
        self.record({**entry, **{f"eval/{name}": value for name, value in flatten(results)}}, step)
        value = dict(flatten(results))[args.metric_for_best_model]
        if self.best_results and not is_better(args.metric_for_best_model, value, self.best):
            self.evaluations_without_gain += 1
            self.stopped_early = self.evaluations_without_gain == args.early_stopping_patience
            return
        self.best = None if math.isnan(value) else value
        self.best_results, self.evaluations_without_gain = results, 0
        if self.accelerator.is_main_process:
            self.save_model(model)
        self.keep(evaluation)
        if self.publisher is not None and args.hub_strategy == "best":
            write_card(self.summary({"train": None, "eval": results}, []))
            self.publisher.start_upload(f"Best model so far, step {step}")
        self.accelerator.wait_for_everyone()
        self.saver.best_found()

    def keep(self, evaluation: Evaluation) -> None:
        """Write what comes with an evaluation that counts."""
        self.write(evaluation)
        if evaluation.report_data is not None and self.accelerator.is_main_process:
            evaluation.report_data.save(self.output_dir / REPORT_DATA_FILE)

    def summary(self, results: dict[str, Any], skipped: list[str]) -> RunSummary:
        """What report and card are made from."""
        options = asdict(self.args)
        hierarchy, facts = self.data.hierarchy, run_facts(self)
        return RunSummary(self.output_dir, options, hierarchy, self.unit, self.measures, facts, results, skipped)

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
            if args.export == "onnx" and results["train"] is not None:
                difference = export_onnx(
                    type(self.model).from_pretrained(self.output_dir), self.output_dir / "model.onnx"
                )
                self.progress.write(f"model.onnx differs by at most {difference:.1e} from the model.")
            if not args.no_report:
                draw_report(self.summary(results, skipped), self.pictures, self.draw)
                log_pictures(accelerator, self.output_dir / PLOTS, (results["train"] or {}).get("global_step", 0))
            if results["train"] is not None:
                write_card(self.summary(results, skipped))
            self.progress.write(f"Results are in {args.output_dir}.")
        accelerator.end_training()  # before the upload, which other processes need not wait for
        if self.publisher is not None and self.publisher.finish("Trained model"):
            self.progress.write(f"The model is at {self.publisher.url}.")


def run_facts(trainer: Trainer) -> dict[str, str]:
    """What is trained, on what, for how long, by title."""
    args, data, sampler = trainer.args, trainer.data, trainer.sampler
    parameters = sum(parameter.numel() for parameter in trainer.model.parameters())
    images = [f"{len(data.train_rows):,} for training"] * (sampler is not None)
    images.append(f"{len(data.eval_rows):,} for validation")
    facts = {
        "model": f"{shareable(args.model_name_or_path)}, {parameters / 1e6:.1f} M parameters, "
        f"{trainer.model.config.head} head",
        "image size": f"{trainer.spec['image_size']} px",
        "label tree": str(data.hierarchy)[len("Hierarchy(") : -1],
        "level weights": ", then ".join(
            trainer.curriculum.describe(stage, data.hierarchy.levels) for stage in trainer.curriculum.stages
        ),
        "images": ", ".join(images),
    }
    if sampler is not None:
        facts |= trainer.facts()
        facts["global batch"] = (
            f"{sampler.global_batch_size} = {sampler.micro_batch_size} per device x "
            f"{sampler.num_processes} processes x {sampler.accumulation_steps} accumulated"
        )
        facts["steps"] = f"{sampler.num_steps:,} = {sampler.num_steps / sampler.steps_per_epoch:.4g} epochs"
    facts["device"] = f"{trainer.accelerator.device}, mixed precision {trainer.accelerator.mixed_precision}"
    return facts


@contextmanager
def left_alone(optimizer: AcceleratedOptimizer, bad: torch.Tensor) -> Iterator[None]:
    """Let a fused optimizer's step change nothing if ``bad`` is 1, without waiting for the device to know.

    With fp16 that is the scaler's part, which sees it in the gradients.
    """
    inner = optimizer.optimizer
    if optimizer.scaler is not None or not inner.defaults.get("fused"):
        yield
        return
    inner.found_inf, inner.grad_scale = bad, None
    yield
    del inner.found_inf, inner.grad_scale
