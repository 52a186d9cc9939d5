"""What a run must remember to go on as if it had never stopped, and when that is written.

Where a run starts, the first that holds:

1. ``--resume_from_checkpoint none``: at the beginning. Checkpoints of an earlier run are set aside.
2. The newest good checkpoint in the output folder (on the ISC: in ``$CHECKPOINT_ARTIFACT_PATH``). A requeued job runs
   the same command again, so this comes before 3.
3. ``--resume_from_checkpoint PATH``: a checkpoint, or the newest good one of another run's output folder.
4. The beginning, from ``--model_name_or_path``.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast, broadcast_object_list, gather_object

from ..run.stopping import Stopped
from .checkpointer import Checkpointer
from .content import Checkpoint
from .layouts import ArtifactLayout, Layout
from .state import flatten_optimizer, load_optimizer

if TYPE_CHECKING:
    from ..run.training import Trainer

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

# What a fresh run must not find of an older one in the output folder.
LEFTOVERS = (
    "history.jsonl",
    "all_results.json",
    "predictions.parquet",
    "skipped_images.json",
    "report_data.npz",
    "report.html",
    "plots/*.png",
    "plots/*.jpg",
)

# Options that do not change the course of a run; with any other it would no longer be that of one run.
# fmt: off
MAY_CHANGE = {
    "per_device_train_batch_size", "per_device_eval_batch_size", "dataloader_num_workers", "output_dir", "report_to",
    "checkpointing_steps", "checkpointing_seconds", "keep_last", "resume_from_checkpoint", "max_train_minutes",
    "max_skipped_steps", "cache_decoded", "image_root", "dataset_name", "train_file", "validation_file", "hierarchy",
    "backbone_weights", "no_pretrained", "compile", "save_predictions", "early_stopping_patience", "on_bad_sample",
    "trust_remote_code", "watch", "no_report", "push_to_hub", "hub_model_id", "export",
    "hub_private", "hub_strategy", "license",
}
# fmt: on
LENGTH = {"num_train_epochs", "max_train_steps"}

# The parts of the output folder that a checkpoint on the ISC brings along, because nothing else is shipped.
INSIDE = {"weights.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "manifest.json"}
BEST_MODEL = ("*.safetensors", "*.json", "*.jsonl", "*.py", "*.yaml", "*.npz")


class RunSaver:
    """Saves a trainer's run when it is due, and puts it back.

    Args:
        trainer: whose state this is; set up, but not trained yet.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer, self.args = trainer, trainer.args
        artifact = os.environ.get("CHECKPOINT_ARTIFACT_PATH")
        self.root = Path(artifact) if artifact else trainer.output_dir / CHECKPOINTS
        self.on_isc = bool(artifact)
        self.files: Checkpointer | None = None
        if trainer.accelerator.is_main_process:
            self.files = Checkpointer(self.root, self.args.keep_last, self.layout())
        self.started = self.saved_at = time.monotonic()
        self.saved_step = -1
        self.seconds_before = 0.0

    @property
    def seconds(self) -> float:
        """Time spent on the run, over all its parts."""
        return self.seconds_before + time.monotonic() - self.started

    def layout(self) -> Layout | None:
        """Names of folders; on the ISC those of its artifacts, with a relative link if the user asks for it."""
        return ArtifactLayout(os.environ.get("CHECKPOINT_ARTIFACT_LINK") == "relative") if self.on_isc else None

    # ---- saving

    def save_if_due(self) -> None:
        """Save by steps, epochs or seconds, or because the run is to stop: then this raises Stopped.

        A collective; call it between steps, on every process.
        """
        trainer, sampler = self.trainer, self.trainer.sampler
        step, every = sampler.global_step, self.args.checkpointing_steps
        by_steps = sampler.samples_seen == 0 if every == "epoch" else step % int(every) == 0
        seconds = self.args.checkpointing_seconds
        if seconds is None:
            seconds = 30 if self.on_isc else 600  # a cycle on the ISC lasts 90 seconds
        by_time = trainer.accelerator.is_main_process and bool(seconds) and time.monotonic() - self.saved_at > seconds
        stop, by_time = trainer.stop.anywhere(also=by_time)
        if step != self.saved_step and (stop or by_time or (by_steps and step > 0)):
            self.save(wait=stop)
        if stop:
            self.close()
            trainer.status.set("running", global_step=step)
            raise Stopped(trainer.stop.reason)

    def save(self, wait: bool = False, force: bool = False) -> None:
        """Write everything; returns as soon as it is copied, unless ``wait``."""
        trainer = self.trainer
        sums = trainer.counts.gathered()
        problems = sorted(set(gather_object(list(trainer.problems.found))))
        if self.files is not None:
            optimizer, entries = flatten_optimizer(trainer.optimizer.optimizer)
            tensors = {"weights": trainer.model.state_dict(), "optimizer": optimizer}
            if trainer.ema is not None:
                tensors["ema"] = trainer.ema.module.state_dict()
            history = trainer.output_dir / "history.jsonl"
            state = {
                "identity": self.identity(),
                "sampler": trainer.sampler.state_dict(),
                "optimizer_entries": entries,
                "scaler": trainer.accelerator.scaler.state_dict() if trainer.accelerator.scaler else None,
                "sums": sums,
                "evaluated_step": trainer.evaluated_step,
                "best": trainer.best,
                "best_results": trainer.best_results,
                "evaluations_without_gain": trainer.evaluations_without_gain,
                "epoch_loss": trainer.epoch_loss,
                "stopped_early": trainer.stopped_early,
                "history_bytes": history.stat().st_size if history.is_file() else 0,
                "problems": problems,
                "seconds": self.seconds,
            }
            files = self.brought_along() if self.on_isc else {}
            self.files.save(trainer.sampler.global_step, tensors, state, force=force, extra_files=files, wait=wait)
        self.saved_step, self.saved_at = trainer.sampler.global_step, time.monotonic()
        trainer.status.set("running", global_step=self.saved_step)

    def brought_along(self) -> dict[str, Path]:
        """The best model and the history, which must be in a checkpoint if nothing else of the run is kept."""
        folder = self.trainer.output_dir
        return {file.name: file for pattern in BEST_MODEL for file in folder.glob(pattern) if file.is_file()}

    def best_found(self) -> None:
        """On the ISC, the best model must stand in a folder of its own kind to be shipped."""
        if self.on_isc:
            self.save(force=True)

    def finish(self) -> None:
        """Save the end, so that the same command finds the run finished."""
        if self.saved_step != self.trainer.sampler.global_step:
            self.save()
        self.close()

    def close(self) -> None:
        """Wait until the last checkpoint is durable."""
        if self.files is not None:
            self.files.close()

    def last_good(self) -> str:
        """Where to go on from, in words."""
        self.close()
        if self.saved_step < 0:
            return "There is no checkpoint yet."
        return f"The last checkpoint before that is of step {self.saved_step}, in {self.root}."

    def identity(self) -> dict[str, Any]:
        """What must be the same when a run goes on."""
        data = self.trainer.data
        options = {name: value for name, value in asdict(self.args).items() if name not in MAY_CHANGE}
        return {
            **options,
            "global_batch_size": self.trainer.sampler.global_batch_size,
            "training images": len(data.train_rows),
            "validation images": len(data.eval_rows),
            "label tree": data.hierarchy.to_dict(),
        }

    # ---- going on

    def resume(self) -> None:
        """Go to where the run was, or make the output folder ready for a new one; every process calls it."""
        found: list[Any] = [None]
        if self.files is not None:
            checkpoint = self.find()
            found = [checkpoint and (checkpoint.step, checkpoint.state, _shapes(checkpoint))]
            if checkpoint is None:
                for pattern in LEFTOVERS:
                    for file in self.trainer.output_dir.glob(pattern):
                        file.unlink()
        broadcast_object_list(found)
        if found[0] is None:
            return
        step, state, shapes = found[0]
        self.check(state["identity"])
        tensors = checkpoint.tensors if self.files is not None else None
        self.restore(step, state, self.shared(tensors, shapes))
        if self.files is not None:
            self.restore_files(checkpoint, state)
            self.trainer.progress.write(f"Going on from step {step}, {checkpoint.path}.")

    def find(self) -> Checkpoint | None:
        """The checkpoint to go on from, by the list at the top of this file."""
        asked = self.args.resume_from_checkpoint
        if asked == "none":
            if self.root.is_dir() and any(self.root.iterdir()):
                aside = self.root.with_name(f"{self.root.name}.before-{time.time():.0f}")
                logger.warning("--resume_from_checkpoint none: earlier checkpoints are now in %s.", aside)
                self.files.close()
                os.replace(self.root, aside)
                self.files = Checkpointer(self.root, self.args.keep_last, self.layout())
            return None
        checkpoint = self.files.load()
        if checkpoint is not None or asked == "auto":
            return checkpoint
        other = Path(asked)
        if (other / CHECKPOINTS).is_dir():
            checkpoint = Checkpointer(other / CHECKPOINTS, self.args.keep_last).load()
        else:
            checkpoint = self.files.load(other)
        if checkpoint is None:
            raise ValueError(f"There is no checkpoint at {asked} (--resume_from_checkpoint).")
        return checkpoint

    def check(self, saved: dict[str, Any]) -> None:
        """ValueError if the run was another one; a new length is told, because it changes the learning rate."""
        now = self.identity()
        different = [name for name in now if saved.get(name) != now[name]]
        shown = [
            f"{name} was {saved.get(name)}, now {now[name]}" if name != "label tree" else "the label tree"
            for name in different
            if name not in LENGTH
        ]
        if shown:
            raise ValueError(
                f"The checkpoint in {self.root} is of another run: {'; '.join(shown)}. Use the same settings, another "
                "--output_dir, or --resume_from_checkpoint none."
            )
        if different:
            logger.warning("The length of the training has changed: the learning rate follows the new one from here.")

    def shared(self, tensors: dict[str, dict[str, torch.Tensor]] | None, shapes: dict[str, Any]) -> dict[str, Any]:
        """The main process's tensors on every process; only that one needs to see the files."""
        accelerator = self.trainer.accelerator
        if accelerator.num_processes == 1:
            return tensors
        received: dict[str, dict[str, torch.Tensor]] = {}
        for group, entries in shapes.items():
            received[group] = {}
            for name, (shape, dtype) in entries.items():
                empty = torch.empty(shape, dtype=getattr(torch, dtype), device=accelerator.device)
                value = empty if tensors is None else tensors[group][name].to(accelerator.device)
                received[group][name] = broadcast(value.contiguous())
        return received

    def restore(self, step: int, state: dict[str, Any], tensors: dict[str, dict[str, torch.Tensor]]) -> None:
        """Put everything back."""
        trainer = self.trainer
        accelerator = trainer.accelerator
        trainer.model.load_state_dict(tensors["weights"])
        if trainer.ema is not None:
            trainer.ema.module.load_state_dict(tensors["ema"])
        load_optimizer(trainer.optimizer.optimizer, tensors["optimizer"], state["optimizer_entries"])
        if accelerator.scaler is not None and state["scaler"] is not None:
            accelerator.scaler.load_state_dict(state["scaler"])
        trainer.sampler.load_state_dict(state["sampler"])
        trainer.counts.restore(state["sums"], accelerator.process_index, accelerator.num_processes)
        for name in (
            "evaluated_step",
            "best",
            "best_results",
            "evaluations_without_gain",
            "epoch_loss",
            "stopped_early",
        ):
            setattr(trainer, name, state[name])
        trainer.problems.found.update(dict.fromkeys(state["problems"]))
        self.seconds_before = state["seconds"]
        self.saved_step = step

    def restore_files(self, checkpoint: Checkpoint, state: dict[str, Any]) -> None:
        """Cut the history to what it was; on the ISC, unpack what the checkpoint brought along."""
        folder = self.trainer.output_dir
        if self.on_isc:
            for pattern in BEST_MODEL:
                for file in checkpoint.path.glob(pattern):
                    if file.name not in INSIDE:
                        shutil.copyfile(file, folder / file.name)
        history = folder / "history.jsonl"
        if history.is_file():
            os.truncate(history, state["history_bytes"])
        (folder / "all_results.json").unlink(missing_ok=True)


def _shapes(checkpoint: Checkpoint) -> dict[str, dict[str, tuple[list[int], str]]]:
    return {
        group: {name: (list(value.shape), str(value.dtype).removeprefix("torch.")) for name, value in entries.items()}
        for group, entries in checkpoint.tensors.items()
    }
