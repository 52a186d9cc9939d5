"""One run per folder: a lock that the kernel gives back when its holder dies, however it dies."""

from __future__ import annotations

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import os
import socket
import weakref
from pathlib import Path

logger = logging.getLogger(__name__)

UNSUPPORTED = {errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL}

_held: weakref.WeakSet[RunLock] = weakref.WeakSet()


class RunLock:
    """Keeps other runs out of a folder, from construction until ``release`` or the end of the process.

    Only the main process of a run takes it. The file ``.lock`` stays behind and says who held it last; the lock is
    not the file but the kernel's, so a killed run leaves nothing to clean up.

    Args:
        folder: made if missing.
        wait: for another live run to release it, as long as that takes.

    Attributes:
        exclusive: false where the file system has no locks.

    Raises:
        ValueError: another live run uses the folder, and ``wait`` is not set.
        OSError: the folder cannot be written.
    """

    def __init__(self, folder: Path, wait: bool = False) -> None:
        self.path = Path(folder) / ".lock"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle: int | None = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise OSError(f"{folder} cannot be written: {error.strerror}.") from error
        try:
            self._lock(wait)
        except BaseException:
            self.release()
            raise
        _held.add(self)

    def _lock(self, wait: bool) -> None:
        self.exclusive = True
        try:
            fcntl.flock(self._handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not wait:
                raise ValueError(f"{self.path.parent} is in use by another run ({self._holder()}).") from None
            logger.info("waiting for another run (%s) in %s", self._holder(), self.path.parent)
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        except OSError as error:
            self.exclusive = False
            if error.errno not in UNSUPPORTED:
                raise
            logger.warning(
                "%s: this file system has no locks (%s); see to it that only one run uses the folder.",
                self.path.parent,
                error.strerror,
            )
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        holder = {"pid": os.getpid(), "host": socket.gethostname(), "started": started}
        with contextlib.suppress(OSError):  # a full disk: the lock holds without these words
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(holder).encode() + b"\n", 0)

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._handle, 4096, 0))
            return f"process {holder['pid']} on {holder['host']}, started {holder['started']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "it has not said which"

    def fileno(self) -> int:
        """Of the handle; a process that inherits it holds the lock, too."""
        return self._handle

    def release(self) -> None:
        """Let others in."""
        _held.discard(self)
        handle, self._handle = self._handle, None
        if handle is not None:
            os.close(handle)

    def __enter__(self) -> RunLock:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _let_go() -> None:
    """In a forked child (a loader's worker): it shares the lock, and would hold it after its parent was killed."""
    for lock in list(_held):
        lock.release()


os.register_at_fork(after_in_child=_let_go)
