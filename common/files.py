"""Files and folders that are complete or absent: written beside their names, then renamed."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file atomically; NaN and infinite become null, so that every parser reads it."""
    with atomic_write(path) as file:
        file.write(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def read_history(path: str | Path) -> list[dict[str, Any]]:
    """The lines that :func:`append_history` wrote; none if there is no such file."""
    file = Path(path)
    return [json.loads(line) for line in file.read_text("utf-8").splitlines()] if file.is_file() else []


def append_history(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


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
        with temporary.open(mode, **text) as file:
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
