"""The checkpoints of a run: which one it continues from, and saving its state.

Where a run starts, the first that holds:

1. ``--resume_from_checkpoint none``: at the beginning. Checkpoints of an earlier run are set aside.
2. The newest intact checkpoint in the output folder (on the ISC: in ``$CHECKPOINT_ARTIFACT_PATH``). A requeued job
   runs the same command again, so this comes before 3.
3. ``--resume_from_checkpoint PATH``: a checkpoint, or the newest intact one of another run's output folder.
4. The beginning, from ``--model_name_or_path``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast, broadcast_object_list

from .checkpointer import Checkpointer
from .folder import MANIFEST, STATE, Checkpoint
from .layouts import ArtifactLayout, Layout
from .state import TrainState

logger = logging.getLogger(__name__)

CHECKPOINTS = "checkpoints"

# What a fresh run must not find of an older one in the output folder.
LEFTOVERS = ["history.jsonl", "all_results.json", "predictions.parquet", "skipped_images.json", "report_data.npz"]
LEFTOVERS += ["report.html", "plots/*.png", "plots/*.jpg"]

# A new length changes the course of the learning rate; the run may continue with it.
LENGTH = {"num_train_epochs", "max_train_steps"}

# The parts of the output folder that a checkpoint on the ISC brings along, because nothing else is shipped.
INSIDE = {"weights.safetensors", "optimizer.safetensors", "ema.safetensors", STATE, MANIFEST}
BEST_MODEL = ("*.safetensors", "*.json", "*.jsonl", "*.py", "*.yaml", "*.npz")


def _place(output_dir: Path) -> tuple[Path, Layout]:
    """The folder of a run's checkpoints, and what they are called there."""
    if artifact := os.environ.get("CHECKPOINT_ARTIFACT_PATH"):
        return Path(artifact), ArtifactLayout(os.environ.get("CHECKPOINT_ARTIFACT_LINK") == "relative")
    return output_dir / CHECKPOINTS, Layout()


def identity_to_resume(output_dir: str | Path, asked: str) -> dict[str, Any] | None:
    """The identity in the checkpoint that a run would continue from, by the list at the top; ``None`` if it begins.

    A look at what is probably there, without the tensors: :meth:`RunCheckpoints.find` checks it.
    """
    if asked == "none":
        return None
    places = [_place(Path(output_dir))] + [(Path(asked) / CHECKPOINTS, Layout())] * (asked != "auto")
    folders = [folder for root, layout in places for folder in (layout.linked(root), *layout.folders(root)[::-1])]
    for folder in filter(None, [*folders, Path(asked)]):
        with suppress(OSError, ValueError, KeyError):
            return json.loads((folder / STATE).read_text(encoding="utf-8"))["identity"]
    return None


class RunCheckpoints:
    """Saves a run's state, and puts it back; the main process reads and writes, the others get it from there.

    On the ISC (``CHECKPOINT_ARTIFACT_PATH`` is set) checkpoints follow its artifact protocol, and bring the best model
    and the history along, because nothing else is shipped.

    Args:
        output_dir: of the run.
        state: what is saved and put back.
        identity: what must be the same when the run continues, by name; see :func:`common.run.identity.run_identity`.
        keep_last: how many checkpoints stay.
    """

    def __init__(self, output_dir: Path, state: TrainState, identity: Mapping[str, Any], keep_last: int) -> None:
        self.output_dir, self.state, self.identity, self.keep_last = output_dir, state, dict(identity), keep_last
        self.root, self.layout = _place(output_dir)
        self.on_isc = isinstance(self.layout, ArtifactLayout)
        self.accelerator: Accelerator = state.accelerator
        self.files = self._checkpointer() if self.accelerator.is_main_process else None
        self.saved_step = -1

    def _checkpointer(self) -> Checkpointer:
        return Checkpointer(self.root, self.keep_last, self.layout)

    # ---- saving

    def save(self, wait: bool = False, force: bool = False) -> None:
        """Write everything; returns as soon as it is copied to host memory, unless ``wait``. A collective.

        ``force``: on the ISC, in a folder that is kept for good.
        """
        saved, step = self.state.state_dict(), self.state.sampler.global_step
        if self.files is not None:
            history = self.output_dir / "history.jsonl"
            size = history.stat().st_size if history.is_file() else 0
            content = {"identity": self.identity, **saved.pop("state"), "history_bytes": size}
            found = [file for pattern in BEST_MODEL for file in self.output_dir.glob(pattern) if file.is_file()]
            files = {file.name: file for file in found if file.name not in INSIDE} if self.on_isc else {}
            self.files.save(step, saved, content, force=force, extra_files=files, wait=wait)
        self.saved_step = step

    def close(self) -> None:
        """Wait until the last checkpoint is durable."""
        if self.files is not None:
            self.files.close()

    def last_good(self) -> str:
        """Where to continue from, in words."""
        self.close()
        if self.saved_step < 0:
            return "There is no checkpoint yet."
        return f"The last checkpoint before that is of step {self.saved_step}, in {self.root}."

    # ---- resuming

    def find(self, asked: str) -> Checkpoint | None:
        """The checkpoint to continue from, by the list at the top of this file; on the main process.

        Args:
            asked: ``--resume_from_checkpoint``.

        Raises:
            ValueError: there is none where it is asked for, none is intact, or it is of another run.
        """
        if asked == "none":
            return None
        checkpoint = self.files.load()
        if checkpoint is None and asked != "auto":
            other = Path(asked)
            if (other / CHECKPOINTS).is_dir():
                checkpoint = Checkpointer(other / CHECKPOINTS, self.keep_last).load()
            else:
                checkpoint = self.files.load(other)
            if checkpoint is None:
                raise ValueError(f"There is no checkpoint at {asked} (--resume_from_checkpoint).")
        if checkpoint is not None:
            self._check(checkpoint.state["identity"])
        return checkpoint

    def _check(self, saved: Mapping[str, Any]) -> None:
        """ValueError if the run was another one; a new length is logged, because it changes the learning rate."""
        # Options that older versions did not have are missing; or they took one word, not a list.
        known = [(name, value) for name, value in self.identity.items() if name in saved]
        different = [name for name, value in known if saved[name] != value and [saved[name]] != value]
        shown = [
            f"{name} was {saved.get(name)}, now {self.identity[name]}" if name != "label tree" else "the label tree"
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

    def restore(self, checkpoint: Checkpoint | None, start_over: bool) -> None:
        """Put the state back, or make the output folder ready for a new run; every process calls it.

        Args:
            checkpoint: what :meth:`find` returned, on the main process.
            start_over: set checkpoints of an earlier run aside.
        """
        found: list[Any] = [None]
        if self.files is not None:
            if checkpoint is None:
                self._clear(start_over)
            else:
                without_data = {
                    group: {name: value.to("meta") for name, value in tensors.items()}
                    for group, tensors in checkpoint.tensors.items()
                }
                found = [(checkpoint.step, checkpoint.state, without_data)]
        broadcast_object_list(found)
        if found[0] is None:
            return
        self.saved_step, state, tensors = found[0]
        if checkpoint is not None:
            tensors = checkpoint.tensors
        if self.accelerator.num_processes > 1:  # only the main process needs to see the files
            tensors = {group: self._shared(values) for group, values in tensors.items()}
        self.state.load_state_dict({**tensors, "state": state})
        if checkpoint is not None:
            self._restore_files(checkpoint)
            logger.info("Resuming from step %d, %s.", checkpoint.step, checkpoint.path)

    def _shared(self, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The main process's tensors on every process; the others give tensors without data."""
        device = self.accelerator.device
        return {
            name: broadcast(torch.empty_like(value, device=device) if value.is_meta else value.to(device))
            for name, value in tensors.items()
        }

    def _clear(self, start_over: bool) -> None:
        if start_over and self.root.is_dir() and any(self.root.iterdir()):
            aside = self.root.with_name(f"{self.root.name}.before-{time.time():.0f}")
            logger.warning("--resume_from_checkpoint none: earlier checkpoints are now in %s.", aside)
            self.files.close()
            os.replace(self.root, aside)
            self.files = self._checkpointer()
        for pattern in LEFTOVERS:
            for file in self.output_dir.glob(pattern):
                file.unlink()

    def _restore_files(self, checkpoint: Checkpoint) -> None:
        """Cut the history to what it was; on the ISC, unpack what the checkpoint brought along."""
        if self.on_isc:
            for pattern in BEST_MODEL:
                for file in checkpoint.path.glob(pattern):
                    if file.name not in INSIDE:
                        shutil.copyfile(file, self.output_dir / file.name)
        history = self.output_dir / "history.jsonl"
        if history.is_file():
            os.truncate(history, checkpoint.state["history_bytes"])
        (self.output_dir / "all_results.json").unlink(missing_ok=True)
