"""Files that are complete or absent: written under another name, then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file atomically; NaN and infinite become null, so that every parser reads it."""
    with atomic_write(path) as file:
        file.write(json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def append_history(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


@contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "w") -> Iterator[IO]:
    """A file to write that takes its name when it is complete; after an error, a file already there stays as it was.

    Text is UTF-8, its line ends as given. Until then it is ``<name>.tmp`` in the same folder.
    """
    temporary = Path(f"{path}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    try:
        with temporary.open(mode, **text) as file:
            yield file
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
