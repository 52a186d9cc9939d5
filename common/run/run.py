"""A run: its folder, where it stands, what it shows, when an evaluation or a checkpoint is due, and how it ends.

The training loop is in the scripts. A run knows nothing of losses, metrics or the insides of models.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..checkpoint.run_checkpoints import RunCheckpoints
from ..checkpoint.state import TrainState
from ..data.rows import ProblemLog
from ..metrics.report_data import ReportData
from ..metrics.results import flatten, is_better, results_table
from ..model.modeling import LabelTreeModel
from ..optim.schedule import Curriculum, Stage
from ..options.arguments import save_arguments
from ..options.shared import CommonArguments
from ..publish.card import write_card
from ..publish.hub import Publisher
from ..publish.onnx_export import export_onnx
from ..report.image_examples import Picture
from ..report.report import PLOTS, draw_report
from ..report.summary import RunSummary
from ..system.files import append_history, naming, read_history, write_json
from ..system.lock import RunLock
from .processes import on_main_process, wait_for_all
from .progress import Progress, banner, too_short
from .range_test import finish_range_test
from .stopping import EvaluationAbandoned, RunStatus, Stopped, StopRequest
from .trackers import log_pictures, start_trackers, tracked


class Run:
    """A training run, or with ``state=None`` an evaluation.

    Args:
        args: the script's options.
        accelerator: knows the processes.
        stop: signals and the time budget.
        summary: the facts of the run; what report and model card are made from at the end.
        problems: broken images met so far.
        state: what a checkpoint holds.
        identity: what must be the same when the run continues; see :func:`common.run.identity.run_identity`.
    """

    def __init__(
        self,
        args: CommonArguments,
        accelerator: Accelerator,
        stop: StopRequest,
        summary: RunSummary,
        problems: ProblemLog,
        state: TrainState | None = None,
        identity: Mapping[str, Any] | None = None,
    ) -> None:
        self.args, self.accelerator, self.stop = args, accelerator, stop
        self.summary, self.problems, self.state = summary, problems, state
        self.output_dir, self.is_main = Path(args.output_dir), accelerator.is_main_process
        self.status = RunStatus(self.output_dir, self.is_main)
        self.progress = Progress(0, 0, self.is_main)
        self.publisher: Publisher | None = None
        if state is not None:
            self.progress = Progress(state.sampler.num_steps, state.sampler.global_batch_size, self.is_main)
            self.checkpoints = RunCheckpoints(self.output_dir, state, identity, args.keep_last)
            if args.push_to_hub and self.is_main:
                self.publisher = Publisher(self.output_dir, args.hub_model_id, args.hub_private)

    # ---- beginning

    @contextmanager
    def started(self) -> Iterator[None]:
        """Inside: the folder is locked, signals ask for a checkpoint, run_status.json says how the run stands.

        A run that is refused (the folder is in use, or its checkpoints are of another run) has changed nothing.

        Raises:
            Stopped: if a signal or the time budget ended the run before its end; there is a checkpoint then.
            ValueError: the run is refused.
        """
        checkpoint = None
        locks = self.is_main and self.state is not None
        lock = on_main_process(self.accelerator, lambda: RunLock(self.output_dir) if locks else None)
        with lock or nullcontext(), self.stop:
            if self.state is not None:
                asked = self.args.resume_from_checkpoint
                self.progress.write(banner("Training", {**self.summary.facts, "output": self.args.output_dir}))
                checkpoint = on_main_process(self.accelerator, lambda: self.checkpoints.find(asked))
            with self.status.of_run():
                if self.is_main:
                    save_arguments(self.args, self.output_dir / "args.yaml")
                    with naming(self.output_dir / "hierarchy.json"):
                        self.summary.hierarchy.save(self.output_dir / "hierarchy.json")
                if self.state is not None:
                    self.checkpoints.restore(checkpoint, start_over=asked == "none")
                    self._start_clocks()
                try:
                    yield
                except EvaluationAbandoned:  # it is done again when the run continues; nothing has changed
                    if self.state is None:
                        raise Stopped(self.stop.reason) from None
                    self.save_if_due()
                    raise AssertionError("a stop that all processes know of") from None

    def _start_clocks(self) -> None:
        step = self.state.sampler.global_step
        self.progress.start(step)
        self.status.set("running", global_step=step, num_steps=self.state.sampler.num_steps)
        start_trackers(self.accelerator, self.args, step)
        self._saved_at = time.monotonic()
        self._started = time.monotonic() - self.state.seconds

    # ---- when things are due

    def evaluation_due(self) -> bool:
        """At the end of the training and after every so many epochs, and at each of these steps once."""
        if self.args.find_learning_rate:
            return False
        sampler, step = self.state.sampler, self.state.sampler.global_step
        epoch_ends = step > 0 and sampler.samples_seen == 0 and sampler.epoch % self.args.eval_epochs == 0
        return self.state.evaluated_step != step and (step == sampler.num_steps or epoch_ends)

    @property
    def done(self) -> bool:
        """Whether the training is at its end."""
        return self.state.stopped_early or self.state.sampler.global_step == self.state.sampler.num_steps

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its parts."""
        return time.monotonic() - self._started

    def save_if_due(self) -> None:
        """Save by steps, epochs or seconds, or because the run is to stop: then this raises Stopped.

        A collective; call it between steps, on every process.
        """
        sampler, step, every = self.state.sampler, self.state.sampler.global_step, self.args.checkpointing_steps
        by_steps = sampler.samples_seen == 0 if every == "epoch" else step % int(every) == 0
        seconds = self.args.checkpointing_seconds
        if seconds is None:
            seconds = 30 if self.checkpoints.on_isc else 600  # a cycle on the ISC lasts 90 seconds
        by_time = self.is_main and bool(seconds) and time.monotonic() - self._saved_at > seconds
        stop, by_time = self.stop.anywhere(also=by_time)
        if step != self.checkpoints.saved_step and (stop or by_time or (by_steps and step > 0)):
            if self.state.is_good():
                self._save(wait=stop)
            elif by_steps or stop:
                self.progress.write(f"step {step} was skipped, or weights are NaN or infinite: no checkpoint of it.")
        if stop:
            self.checkpoints.close()
            self.status.set("running", global_step=step)
            raise Stopped(self.stop.reason)

    def _save(self, **how: bool) -> None:
        self.state.seconds = self.seconds
        self.checkpoints.save(**how)
        self._saved_at = time.monotonic()
        self.status.set("running", global_step=self.checkpoints.saved_step)

    # ---- logs

    def log_step(self, loss: torch.Tensor, nonfinite: torch.Tensor, learning_rate: float) -> None:
        """Count a step, after ``sampler.advance``; print and record the mean loss every ``--logging_steps``.

        Args:
            loss: this process's share of the global batch's, a scalar on the device.
            nonfinite: 1 if the step was skipped because of NaN or infinite numbers, on the device.
            learning_rate: of the step.

        Raises:
            ValueError: more than ``--max_skipped_steps`` steps in a row were skipped.
        """
        state, step = self.state, self.state.sampler.global_step
        state.counts.add(loss, nonfinite, new_epoch=(step - 1) % state.sampler.steps_per_epoch == 0)
        self.progress.update()
        if step % self.args.logging_steps and step != state.sampler.num_steps:
            return
        mean_loss = state.counts.mean_loss(self.accelerator)
        if state.counts.skipped_in_a_row > self.args.max_skipped_steps:
            raise ValueError(
                f"The loss has been NaN or infinite for the last {state.counts.skipped_in_a_row} steps before step "
                f"{step} (--max_skipped_steps). Lower --learning_rate, or use bf16 instead of fp16. "
                f"{self.checkpoints.last_good()}"
            )
        speed = self.progress.log(step, mean_loss, learning_rate)
        if state.counts.skipped_steps:
            self.progress.write(
                f"{state.counts.skipped_steps} steps so far were skipped: their loss was NaN or infinite."
            )
        self._record({"train/loss": mean_loss, "train/learning_rate": learning_rate}, step)
        self.accelerator.log({"train/images_per_second": speed}, step=step)

    def log_stage(self, curriculum: Curriculum, stage: Stage) -> None:
        """Show that a stage of a curriculum begins, if there is more than one."""
        if len(curriculum.stages) > 1:
            text = curriculum.describe(stage, self.summary.hierarchy.levels)
            self.progress.write(f"step {self.state.sampler.global_step}: {text}")

    def log_evaluation(self, results: Mapping[str, Any], learning_rate: float) -> None:
        """Print and record an evaluation; afterwards ``is_best`` and ``done`` know of it.

        Args:
            results: ``eval`` of all_results.json.
            learning_rate: of the last step.
        """
        state, args, step = self.state, self.args, self.state.sampler.global_step
        state.evaluated_step, state.epoch_loss = step, state.counts.epoch_loss(self.accelerator)
        self.progress.write(f"evaluation after step {step}\n{results_table(results)}")
        entry = {"train/epoch_loss": state.epoch_loss, "train/learning_rate": learning_rate}
        self._record({**entry, **{f"eval/{name}": value for name, value in flatten(results)}}, step)
        if state.plateau is not None:
            state.plateau.step(results["loss"])
        value = dict(flatten(results))[args.metric_for_best_model]
        if state.best_results and not is_better(args.metric_for_best_model, value, state.best):
            state.evaluations_without_gain += 1
            state.stopped_early = state.evaluations_without_gain == args.early_stopping_patience
        else:
            state.best = None if math.isnan(value) else value
            state.best_results, state.evaluations_without_gain = results, 0

    @property
    def is_best(self) -> bool:
        """Whether the last evaluation was the best so far."""
        return self.state.evaluations_without_gain == 0

    def _record(self, entry: dict[str, Any], step: int) -> None:
        """One line in history.jsonl, and in the trackers if there are any."""
        self.accelerator.log(tracked(entry), step=step)
        if self.is_main:
            append_history(self.output_dir / "history.jsonl", {"global_step": step, **entry})

    # ---- results

    def best_saved(self) -> None:
        """The best model is in the output folder: publish it if asked; on the ISC, let it be shipped. A collective."""
        if self.publisher is not None and self.args.hub_strategy == "best":
            write_card(replace(self.summary, results={"train": None, "eval": self.state.best_results}))
            self.publisher.start_upload(f"Best model so far, step {self.state.sampler.global_step}")
        self.accelerator.wait_for_everyone()
        if self.checkpoints.on_isc and self.state.is_good(last_step_counts=False):
            self._save(force=True)  # in a folder of its own kind

    def train_results(self) -> dict[str, Any]:
        """``train`` of all_results.json."""
        state, sampler = self.state, self.state.sampler
        seen = sampler.global_step * sampler.global_batch_size
        return {
            "loss": state.epoch_loss,
            "global_step": sampler.global_step,
            "epochs": sampler.global_step / sampler.steps_per_epoch,
            "samples_seen": seen,
            "skipped_steps": state.counts.skipped_steps,
            "seconds": self.seconds,
            "images_per_second": seen / self.seconds,
        }

    def save_end(self) -> None:
        """Save the end of the training, so that the same command finds it done. A collective."""
        self.progress.close()
        unsaved = self.checkpoints.saved_step != self.state.sampler.global_step
        if unsaved and self.state.is_good(last_step_counts=False):
            self._save()
        self.checkpoints.close()

    def finish_range_test(self) -> dict[str, Any]:
        """What ``--find_learning_rate`` ends with. A collective."""
        self.progress.close()
        rows = finish_range_test(self.output_dir) if self.is_main else []
        wait_for_all()
        self.accelerator.end_training()
        return {"train": self.train_results(), "rates": rows}

    def show_test(self, results: Mapping[str, Any]) -> None:
        """Print the evaluation of the test split."""
        self.progress.write(f"test, by the best model\n{results_table(results)}")

    def finish(
        self,
        results: dict[str, Any],
        model: LabelTreeModel,
        examples: Callable[[ReportData], dict[str, list[Picture]]] | None = None,
        draw: Callable[[Path], None] | None = None,
    ) -> None:
        """Write all_results.json, report and model card; export and upload if asked. A collective.

        Args:
            results: what all_results.json is to hold.
            model: of the class that was saved.
            examples: loads example images for the report.
            draw: draws plots of the script's own into a folder.
        """
        args, trained = self.args, results["train"] is not None
        skipped = sorted(set(gather_object(list(self.problems.found))))
        summary = replace(self.summary, results=results, skipped=skipped)
        if self.is_main:
            write_json(self.output_dir / "all_results.json", results)
            if skipped:
                write_json(self.output_dir / "skipped_images.json", skipped)
                self.progress.write(f"{len(skipped)} broken images were skipped, see skipped_images.json.")
            if trained and args.export == "onnx":
                saved = type(model).from_pretrained(self.output_dir)
                difference = export_onnx(saved, self.output_dir / "model.onnx")
                self.progress.write(f"model.onnx differs by at most {difference:.1e} from the model.")
            if not args.no_report:
                draw_report(summary, examples, draw)
                log_pictures(self.accelerator, self.output_dir / PLOTS, (results["train"] or {}).get("global_step", 0))
            if trained:
                write_card(summary)
                hint = too_short(
                    read_history(self.output_dir / "history.jsonl"), results["eval"], args.epochs, args.learning_rate
                )
                if hint:
                    self.progress.write(hint)
            self.progress.write(f"Results are in {args.output_dir}.")
        if self.publisher is not None and self.publisher.finish("Trained model"):
            self.progress.write(f"The model is at {self.publisher.url}.")
        wait_for_all()  # launchers and srun kill the others soon after the first process has ended
        self.accelerator.end_training()
