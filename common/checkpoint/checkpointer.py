"""Checkpoints that are complete or absent: written by a thread, verified when read, the older ones kept until then."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ..system.files import REASONS, StorageError, error_number, retried
from .folder import (
    STATE,
    BadCheckpointError,
    Checkpoint,
    Groups,
    Manifest,
    looks_complete,
    manifests,
    read_checkpoint,
    sync_folder,
    write_checkpoint,
)
from .layouts import Layout, hidden, remove

logger = logging.getLogger(__name__)


class Checkpointer:
    """Saves and loads the checkpoints of a run.

    A save copies the tensors to host memory and returns; a thread then writes a hidden folder, hashes and syncs its
    files, renames it, lets the link name it, and only after all that deletes older ones. A kill between any two of
    these leaves the previous checkpoint or the new one. Every process may load, and only the main process may save.
    At the interpreter's exit a save under way is finished first. One that fails while an older checkpoint is intact is
    a warning, unless the one before it failed, too.

    Args:
        root: the folder of the checkpoints; made by the first save.
        keep_last: how many of the latest complete checkpoints stay, and all that a link in ``root`` names.
        layout: how folders and link are called.

    Raises:
        ValueError: ``keep_last`` is below two: nothing to fall back on.
    """

    def __init__(self, root: str | Path, keep_last: int = 2, layout: Layout | None = None) -> None:
        if keep_last < 2:
            raise ValueError(f"--keep_last {keep_last}: keep at least 2, the last one and one to fall back on.")
        self.root, self.keep_last, self.layout = Path(root), keep_last, layout or Layout()
        self._memory: dict[tuple[str, str], torch.Tensor] = {}
        self._damaged: set[Path] = set()
        self._failed = False  # the last save
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        weakref.finalize(self, _report, self._pending)

    # ---- saving

    def save(
        self,
        step: int,
        tensors: Mapping[str, Mapping[str, torch.Tensor]],
        state: Mapping[str, Any],
        *,
        force: bool = False,
        extra_files: Mapping[str, str | Path] | None = None,
        wait: bool = False,
    ) -> None:
        """Save a checkpoint; on return all arguments may change. Waits for the save before this one, if need be.

        Args:
            step: optimizer steps done. A checkpoint of the same step is replaced.
            tensors: groups ("model", "optimizer") of named tensors, on any devices; a file each. Only values are
                kept, not strides or shared memory.
            state: JSON with string keys. Floats come back exactly, NaN and infinities too; tuples as lists.
            force: keep this one for good, where the layout can (the best model on the ISC).
            extra_files: small files to put beside, by name; they are read at once.
            wait: until it is on the disk.

        Raises:
            ValueError, TypeError: the content cannot be saved.
            OSError, StorageError: the save before this one failed, or this one and ``wait`` is set.
        """
        self.wait()
        files = {STATE: json.dumps(state).encode()}
        files |= {name: Path(path).read_bytes() for name, path in (extra_files or {}).items()}
        self._pending.append(self._thread.submit(self._write, step, force, self._on_host(tensors), files))
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until the last save is on the disk; OSError or StorageError if it failed."""
        while self._pending:
            future = self._pending[0]
            try:
                future.result()
            finally:
                if future.done():  # not so if the wait was interrupted
                    self._pending.remove(future)

    def close(self) -> None:
        """Finish the last save; OSError or StorageError if it failed."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _at(self, point: str) -> None:
        """Called between any two steps of a save, for tests to strike there."""

    @torch.no_grad()
    def _on_host(self, groups: Mapping[str, Mapping[str, torch.Tensor]]) -> Groups:
        """Copies in memory that every save uses again: fresh memory costs a page fault per 4 KiB.

        It is page-locked where tensors come from a GPU: all copies run behind each other, and one wait is enough.
        """
        copies: Groups = {group: {} for group in groups}
        for group, tensors in groups.items():
            for name, value in tensors.items():
                if value.layout != torch.strided or value.is_meta:
                    what = f"{group}: {name} ({value.layout}, on {value.device})"
                    raise ValueError(f"{what} does not fit into safetensors.")
                kept = self._memory.get((group, name))
                if kept is None or (kept.shape, kept.dtype) != (value.shape, value.dtype):
                    kept = torch.empty(value.shape, dtype=value.dtype, pin_memory=value.is_cuda)
                copies[group][name] = self._memory[group, name] = kept.copy_(value, non_blocking=value.is_cuda)
        if any(value.is_cuda for tensors in groups.values() for value in tensors.values()):
            torch.cuda.synchronize()
        return copies

    def _write(self, step: int, force: bool, tensors: Groups, files: Mapping[str, bytes]) -> None:
        previous = self.layout.linked(self.root)
        try:
            useless = self._publish(step, force, tensors, files)
        except (OSError, StorageError, SafetensorError) as error:
            with contextlib.suppress(OSError):
                self.layout.sweep(self.root)
            number = error_number(error)
            reason = f"{REASONS[number]} ({error})" if number in REASONS else str(error)
            text = f"The checkpoint of step {step} could not be saved in {self.root}: {reason}."
            intact = previous is not None and previous not in self._damaged and looks_complete(previous)
            if intact:
                text += f" The previous checkpoint, {previous.name}, is intact."
            if self._failed or not intact:
                explained = StorageError(text) if isinstance(error, StorageError) else OSError(text)
                if isinstance(explained, OSError):
                    explained.errno = number
                raise explained from error
            self._failed = True
            logger.warning("%s The run goes on; if the next one cannot be saved either, it ends.", text)
            return
        self._failed = False
        try:
            for path in [*useless, *self._outdated()]:
                self._delete(path)
        except OSError as error:  # the new checkpoint stands
            logger.warning("Old checkpoints in %s could not be deleted: %s", self.root, error)

    @retried
    def _publish(self, step: int, force: bool, tensors: Groups, files: Mapping[str, bytes]) -> list[Path]:
        """Bring the folder about, with its link; returns what it makes useless."""
        layout, root = self.layout, self.root
        root.mkdir(parents=True, exist_ok=True)
        layout.sweep(root)
        self._at("swept")
        useless, path = layout.leftovers(root), layout.target(root, step, force)
        serial = 1 + max((known.serial for known in manifests(layout.folders(root)).values()), default=0)
        incomplete = hidden(path, "incomplete")
        incomplete.mkdir()
        self._at("folder made")
        write_checkpoint(incomplete, step, serial, tensors, files, self._at)
        self._at("folder synced")
        if os.path.lexists(path):
            # Of a damaged save, or of a run that began anew: kept until the new one is in its place.
            useless.append(hidden(path, "replaced"))
            os.rename(path, useless[-1])
            self._at("moved aside")
        os.rename(incomplete, path)
        self._at("renamed")
        sync_folder(root)
        self._damaged.discard(path)
        layout.link(path, self._at)
        self._at("linked")
        sync_folder(root)
        return [other for other in useless if other != path]

    def _outdated(self) -> list[Path]:
        """All but the newest, oldest first; by manifests alone, so what is not ours or cannot be read stays."""
        if not self.layout.prunes:
            return []
        known = manifests(self.layout.folders(self.root))
        oldest_first = sorted(known, key=lambda path: known[path].serial)
        complete = [path for path in oldest_first if path not in self._damaged and looks_complete(path)]
        keep = {*complete[-self.keep_last :], *self.layout.protected(self.root)}
        return [path for path in oldest_first if path not in keep]

    def _delete(self, path: Path) -> None:
        """Hide a folder, then delete it: a kill in between leaves nothing that looks like a checkpoint."""
        if not os.path.lexists(path):
            return
        if not path.name.startswith("."):
            doomed = hidden(path, "deleted")
            os.rename(path, doomed)
            path = doomed
        self._at("hidden for deletion")
        remove(path)
        self._at("deleted")

    # ---- loading

    def load(self, path: str | Path | None = None) -> Checkpoint | None:
        """Load the checkpoint that the link names or, with a warning, the newest other intact one.

        Args:
            path: exactly this folder instead.

        Returns:
            The checkpoint; None if there is none at all.

        Raises:
            ValueError: ``path`` is not intact, or there are checkpoints and none of them is.
        """
        self.wait()
        if path is not None:
            return self._load_exactly(Path(path))
        linked, folders = self.layout.linked(self.root), self.layout.folders(self.root)
        if linked is not None and linked not in folders:
            if linked.exists():
                folders.append(linked)
            else:
                logger.warning("%s names %s, which is gone.", self.root / self.layout.link_name, linked.name)
        known, reasons = {}, {}
        for folder in folders:
            try:
                known[folder] = Manifest.read(folder)
            except BadCheckpointError as error:
                reasons[folder] = self._reject(folder, error)
        for folder in sorted(known, key=lambda folder: (folder == linked, known[folder].serial), reverse=True):
            try:
                checkpoint = read_checkpoint(folder, known[folder])
            except BadCheckpointError as error:
                reasons[folder] = self._reject(folder, error)
                continue
            if linked is not None and folder != linked:
                logger.warning("Falling back on %s, of step %d.", folder, checkpoint.step)
            return checkpoint
        if reasons:
            listed = "; ".join(f"{folder.name}: {reason}" for folder, reason in reasons.items())
            raise ValueError(
                f"{self.root} has checkpoints, but none of them is intact ({listed}). "
                "To give them up and start over, pass --resume_from_checkpoint none."
            )
        return None

    def _load_exactly(self, path: Path) -> Checkpoint:
        folder = self.layout.linked(path.parent) if path.name == self.layout.link_name else path
        try:
            return read_checkpoint(folder or path, Manifest.read(folder or path))
        except BadCheckpointError as error:
            raise ValueError(f"{path} is not an intact checkpoint: {error}.") from None

    def _reject(self, folder: Path, reason: BadCheckpointError) -> BadCheckpointError:
        logger.warning("%s is not used: %s.", folder, reason)
        self._damaged.add(folder)
        return reason


def _report(pending: list[Future[None]]) -> None:
    """At the interpreter's exit: say what nobody waited for."""
    for future in pending:
        if error := future.exception():
            logger.error("%s", error)
