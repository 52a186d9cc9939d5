"""Files and folders that are complete or absent: written beside their names, then renamed; disks that fail."""

from __future__ import annotations

import errno
import functools
import json
import logging
import math
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal, ParamSpec, TypeVar

import yaml

logger = logging.getLogger(__name__)

Parameters, Result = ParamSpec("Parameters"), TypeVar("Result")

TRANSIENT = {errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EINTR, errno.EAGAIN, errno.EBUSY, errno.ENOTCONN}
TRANSIENT |= {errno.ECONNRESET, errno.ECONNABORTED, getattr(errno, "EREMOTEIO", errno.EIO)}
"""What disks and network file systems say that may answer the next time"""

REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the quota is used up",
    errno.EFBIG: "the file system takes no larger file",
    errno.EROFS: "the folder is read-only",
    errno.EACCES: "the folder may not be written",
    errno.EPERM: "the folder may not be written",
}

PAUSES = (0.2, 1, 4, 10)
"""Seconds between attempts"""


# ---- disks that fail


class StorageError(Exception):
    """A disk or network file system did not answer, several times; no OSError, as that may be a broken image."""

    def __str__(self) -> str:  # a loader hands errors of its workers on as a stack trace
        return super().__str__().strip().rsplit("StorageError: ", 1)[-1]


def error_number(error: BaseException | None) -> int | None:
    """The system's number of an error, or of what caused it; libraries in Rust have it in their words."""
    while error is not None:
        if isinstance(error, OSError) and error.errno is not None:
            return error.errno
        if found := re.search(r"\(os error (\d+)\)", str(error)):
            return int(found[1])
        error = error.__cause__
    return None


def is_transient(error: BaseException) -> bool:
    """Whether the same may work the next time."""
    return isinstance(error, StorageError) or error_number(error) in TRANSIENT


def retried(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Call a function again, after growing pauses, while it fails by transient errors; StorageError in the end."""

    @functools.wraps(function)
    def attempts(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        for pause in (*PAUSES, None):
            try:
                return function(*args, **kwargs)
            except Exception as error:
                if isinstance(error, StorageError) or not is_transient(error):
                    raise
                if pause is None:
                    raise StorageError(f"{error} (after {len(PAUSES) + 1} attempts)") from error
                logger.warning("%s; trying again in %g s", error, pause)
                time.sleep(pause)
        raise AssertionError("the last attempt returns or raises")

    return attempts


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Inside, a file is written: if the disk is full the OSError says so and names it, whatever a library raised."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        if number is None and isinstance(error, OSError):  # Pillow's and NumPy's own
            state = os.statvfs(Path(path).parent)
            number = errno.ENOSPC if not state.f_bavail or (state.f_files and not state.f_favail) else None
        if number not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or getattr(error, "named", False):
            raise
        explained = OSError(f"{path} could not be written: {REASONS[number]}.")
        explained.errno, explained.named = number, True
        raise explained from error


# ---- reading


class StrictLoader(yaml.SafeLoader):
    """SafeLoader that refuses a key written twice instead of keeping the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        twice = [key for key, count in Counter(key for key in keys if isinstance(key, Hashable)).items() if count > 1]
        if twice:
            raise ValueError(f"line {node.start_mark.line + 1}: listed twice: {twice}.")
        return super().construct_mapping(node, deep)


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds; yaml.YAMLError or ValueError if it is none, or a key stands there twice."""
    return yaml.load(Path(path).read_text(encoding="utf-8-sig"), Loader=StrictLoader)


# ---- writing


@retried
def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file atomically; NaN and infinite become null, so that every parser reads it."""
    with atomic_write(path) as file:
        file.write(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines that :func:`append_history` wrote; none if there is no such file."""
    file = Path(path)
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


@retried
def append_history(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file, or after an error nothing."""
    line = json.dumps(_plain(entry), allow_nan=False).encode() + b"\n"
    with naming(path), Path(path).open("ab", buffering=0) as file:
        size = file.tell()
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        except OSError:
            file.truncate(size)
            raise


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w", sync: bool = False) -> Iterator[IO]:
    """A file to write that takes its name when it is complete; after an error, a file already there stays as it was.

    Until then it is ``<name>.tmp`` in the same folder.

    Args:
        path: of the file.
        mode: ``w`` for UTF-8 text with line ends as given, ``wb`` for bytes.
        sync: wait until the content is on the disk, so that a power cut does not leave an empty file by that name.
    """
    temporary = Path(f"{path}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with naming(path), temporary.open(mode, **text) as file:
            yield file
            if sync:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """A folder to write into that takes its name when it is complete; after an error it is not there at all.

    Until then it is ``PATH.incomplete``; what a killed process left there is removed first.

    Raises:
        ValueError: there is a file, or a folder that is not empty, by that name.
    """
    path = Path(path).resolve()
    if path.exists() and (not path.is_dir() or any(path.iterdir())):
        raise ValueError(f"{path} already exists; name a new folder (--output_dir).")
    temporary = path.with_name(f"{path.name}.incomplete")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
