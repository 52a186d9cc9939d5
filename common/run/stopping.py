"""When to stop before the end: signals and a time budget, agreed by all processes; and what others learn of it."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from ..system.files import StorageError, is_transient, write_json
from .processes import host_group

logger = logging.getLogger(__name__)

STOPPED_STATUS = 85
"""Exit status of a run that stopped early with a checkpoint; BSD's and Slurm's range of free use."""

STATUS_FILE = "run_status.json"

SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class Stopped(SystemExit):
    """A run that stopped early, with a checkpoint to resume from."""

    def __init__(self, reason: str) -> None:
        super().__init__(STOPPED_STATUS)
        self.reason = reason


class EvaluationAbandoned(Exception):
    """An evaluation that was not finished because the run is to stop; it has to be done again."""


class StopRequest:
    """Remembers that the run shall stop; a context in which the first signal asks and the second one exits at once.

    Slurm sends SIGTERM several times while it ends a job, and SIGKILL when it is tired of waiting; so in its jobs only
    a second SIGINT exits at once.

    Args:
        max_minutes: time budget, counted from now.
    """

    def __init__(self, max_minutes: float | None = None) -> None:
        self.reason: str | None = None
        self._deadline = time.monotonic() + 60 * max_minutes if max_minutes else None
        self._before: dict[int, Any] = {}
        # On the host, so that asking everyone does not wait for the device.
        self._group = host_group()

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.reason is not None:
            if "SLURM_JOB_ID" in os.environ and number != signal.SIGINT:
                return
            os.write(2, f"{name} again: exiting at once\n".encode())
            os._exit(128 + number)
        self.reason = f"received {name}"
        os.write(2, f"{name}: will stop after this step, with a checkpoint; again to exit at once\n".encode())

    def here(self) -> bool:
        """Whether this process has been asked to stop, or the time is up."""
        if self.reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self.reason = "the time budget is used up (--max_train_minutes)"
        return self.reason is not None

    def anywhere(self, also: bool = False) -> tuple[bool, bool]:
        """Whether any process has been asked to stop, and whether ``also`` is true for any: the same answer for all.

        A collective: every process must call it at the same place.
        """
        answers = self.here(), also
        if self._group is None:
            return answers
        flags = torch.tensor(answers, dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        if flags[0] and self.reason is None:
            self.reason = "another process was asked to stop"
        return bool(flags[0]), bool(flags[1])


class RunStatus:
    """``run_status.json``: how a run stands, for whoever launched it; launchers turn exit statuses into 1.

    ``status`` is ``running``, ``finished``, ``stopped`` (resume from the checkpoint), ``failed`` (fix it first) or
    ``crashed`` (it may be gone the next time); ``running`` that stays behind means that the run was killed.

    Args:
        folder: the output folder.
        write: whether this process does.
    """

    def __init__(self, folder: str | Path, write: bool) -> None:
        self.path, self._write = Path(folder) / STATUS_FILE, write
        self.progress: dict[str, int] = {}

    def set(self, status: str, reason: str = "", **progress: int) -> None:
        """Replace the file in one step; ``global_step`` and ``num_steps`` stay until they are given anew."""
        self.progress |= progress
        if not self._write or (status == "running" and progress and self._told()):
            return
        content = {"status": status, "reason": reason[:1000], **self.progress, "time": time.time()}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.path, content)
        except (OSError, StorageError):
            try:  # where nothing can be added: in the file's own block, in which these few words fit
                with self.path.open("r+", encoding="utf-8") as file:
                    file.write(json.dumps(content))
                    file.truncate()
            except OSError as error:
                logger.warning("%s could not be written (%s); its status would be %s.", self.path, error, status)

    @contextmanager
    def of_run(self) -> Iterator[RunStatus]:
        """``running`` inside, and how it ended afterwards."""
        self.set("running")
        try:
            yield self
        except Stopped as stop:
            self.set("stopped", stop.reason)
            raise
        except Exception as error:
            # Whichever process it was says so: the first may never learn of it, or only of the connection's end.
            failed = isinstance(error, ValueError | OSError) and not is_transient(error)
            if failed or not self._told():
                self._write = True
                self.set("failed" if failed else "crashed", str(error) or type(error).__name__)
            raise
        self.set("finished")

    def _told(self) -> bool:
        """Whether another process has said already how the run ended."""
        with suppress(OSError, ValueError, KeyError):
            return json.loads(self.path.read_text(encoding="utf-8"))["status"] in {"failed", "crashed"}
        return False
