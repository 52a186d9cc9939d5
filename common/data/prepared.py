"""prepared.json: what a folder written by ``data_prep`` says about itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .selection import source_root

NAME = "prepared.json"
FORMAT = 1


def read_prepared(folder: str | Path) -> dict[str, Any] | None:
    """The content of a folder's prepared.json; ``None`` if it has none.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; prepare the data again.")
    return content


def read_image_root(folder: str | Path) -> Path | None:
    """The folder that a prepared folder's image paths are relative to; ``None`` if it holds the images itself.

    Raises:
        ValueError: see :func:`read_prepared`.
    """
    content = read_prepared(folder)
    root = content.get("image_root") if content else None
    return Path(root) if isinstance(root, str) else None


def find_image_root(folder: str | Path) -> Path:
    """The folder that image paths of a data set are relative to: as its selection or prepared.json says, or its own.

    Raises:
        ValueError: they say where the images are, and there is no such folder.
    """
    noted = source_root(folder) or read_image_root(folder)
    if noted is not None and not noted.is_dir():
        raise ValueError(
            f"The images of {folder} were in {noted}, which is not there; say where they are now with --image_root."
        )
    return noted or Path(folder)
