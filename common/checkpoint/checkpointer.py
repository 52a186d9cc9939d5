"""Checkpoints that are complete or absent: written by a thread, verified when read, the older ones kept until then."""

from __future__ import annotations

import contextlib
import logging
import os
import weakref
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..files import REASONS, StorageError, error_number, retried
from .content import Checkpoint, Job, contents, holds, read_checkpoint
from .host_memory import HostMemory, Tensors
from .layouts import Layout, hidden, manifests, remove, sync_folder
from .manifest import NAME as MANIFEST
from .manifest import BadCheckpointError, Manifest, check_sizes, looks_complete, write_file

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
        self._memory = HostMemory()
        self._damaged: set[Path] = set()
        self._failed = False  # the last save
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: list[Future[None]] = []
        weakref.finalize(self, _report, self._pending)

    # ---- saving

    def save(
        self,
        step: int,
        tensors: Mapping[str, Tensors],
        state: Mapping[str, Any],
        *,
        force: bool = False,
        extra_files: Mapping[str, str | Path] | None = None,
        wait: bool = False,
    ) -> None:
        """Save a checkpoint; on return all arguments may change. Waits for the save before this one, if need be.

        If the very same checkpoint is there and intact, nothing is written; a different or damaged one is replaced.

        Args:
            step: optimizer steps done.
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
        files = contents(state, extra_files or {}, self._memory.copy(tensors))
        self._pending.append(self._thread.submit(self._write, Job(step, force, tuple(tensors), files)))
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

    def _write(self, job: Job) -> None:
        previous = self.layout.linked(self.root)
        try:
            useless = self._try(job)
        except (OSError, StorageError) as error:
            with contextlib.suppress(OSError):
                self.layout.sweep(self.root)
            explained, intact = self._explained(job, error, previous)
            if self._failed or not intact:
                raise explained from error
            self._failed = True
            logger.warning("%s The run goes on; if the next one cannot be saved either, it ends.", explained)
            return
        self._failed = False
        try:
            for path in [*useless, *self._outdated()]:
                self._delete(path)
        except OSError as error:  # the new checkpoint stands
            logger.warning("Old checkpoints in %s could not be deleted: %s", self.root, error)

    @retried
    def _try(self, job: Job) -> list[Path]:
        self.root.mkdir(parents=True, exist_ok=True)
        self.layout.sweep(self.root)
        self._at("swept")
        return self._publish(job)

    def _publish(self, job: Job) -> list[Path]:
        """Bring the folder about, with its link; returns what it makes useless."""
        layout, root = self.layout, self.root
        path = next((path for path in layout.same_step(root, job.step, job.force) if holds(path, job)), None)
        useless = layout.leftovers(root)
        if path is None:
            path = layout.target(root, job.step, job.force)
            incomplete = self._fill(path, job)
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

    def _fill(self, path: Path, job: Job) -> Path:
        """The hidden folder that is to become ``path``, complete and on the disk."""
        serial = 1 + max((known.serial for _, known in manifests(self.layout.folders(self.root))), default=0)
        folder = hidden(path, "incomplete")
        folder.mkdir()
        self._at("folder made")
        entries = {}
        for name, content in job.files.items():
            entries[name] = write_file(folder / name, content)
            self._at(f"{name} written")
        write_file(folder / MANIFEST, [Manifest(job.step, serial, job.groups, entries).encode()])
        self._at("manifest written")
        sync_folder(folder)
        self._at("folder synced")
        return folder

    def _outdated(self) -> list[Path]:
        """All but the newest, oldest first; by manifests alone, so what is not ours or cannot be read stays."""
        if not self.layout.prunes:
            return []
        known = [(known.serial, path) for path, known in manifests(self.layout.folders(self.root))]
        known = sorted((serial, path) for serial, path in known if not self.layout.permanent(path))
        complete = [path for _, path in known if path not in self._damaged and looks_complete(path)]
        keep = {*complete[-self.keep_last :], *self.layout.protected(self.root)}
        return [path for _, path in known if path not in keep]

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

    def _explained(self, job: Job, error: Exception, previous: Path | None) -> tuple[Exception, bool]:
        """The error with all that is known, and whether the previous checkpoint is intact."""
        number = error_number(error)
        reason = f"{REASONS[number]} ({error})" if number in REASONS else str(error)
        text = f"The checkpoint of step {job.step} could not be saved in {self.root}: {reason}."
        intact = previous is not None and previous not in self._damaged and looks_complete(previous)
        if intact:
            text += f" The previous checkpoint, {previous.name}, is intact."
        explained = type(error)(text)
        if isinstance(explained, OSError):
            explained.errno = number
        return explained, intact

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
        linked, reasons = self.layout.linked(self.root), {}
        folders = self.layout.folders(self.root)
        if linked is not None and linked not in folders:
            if linked.exists():
                folders.append(linked)
            else:
                logger.warning("%s names %s, which is gone.", self.root / self.layout.link_name, linked.name)
        candidates = []
        for folder in folders:
            try:
                manifest = Manifest.read(folder)
                check_sizes(folder, manifest)
                candidates.append((folder == linked, manifest.serial, folder, manifest))
            except BadCheckpointError as error:
                reasons[folder] = self._reject(folder, error)
        for *_, folder, manifest in sorted(candidates, key=lambda candidate: candidate[:2], reverse=True):
            try:
                checkpoint = read_checkpoint(folder, manifest)
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
