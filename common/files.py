"""Files that are whole or absent: written beside their names, then renamed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO


def write_json(path: str | Path, content: Any) -> None:
    """Replace a JSON file in one step; NaN becomes null, so that every parser reads it."""
    _replace(path, json.dumps(_plain(content), indent=2, allow_nan=False) + "\n")


def append_history(path: str | Path, entry: Mapping[str, Any]) -> None:
    """Add one line to a JSON-lines file."""
    with Path(path).open("a", encoding="utf-8") as file:
        file.write(json.dumps(_plain(entry), allow_nan=False) + "\n")


@contextmanager
def replaced_file(path: str | Path) -> Iterator[TextIO]:
    """A text file to write that takes its name when it is whole; after an error it is not there at all."""
    temporary = Path(f"{path}.tmp")
    try:
        with temporary.open("w", encoding="utf-8", newline="") as stream:
            yield stream
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _replace(path: str | Path, text: str) -> None:
    with replaced_file(path) as stream:
        stream.write(text)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
