"""Folders that are whole or absent."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(folder: str | Path) -> Iterator[Path]:
    """A folder to write into, which gets its name when the body ends without an error.

    Args:
        folder: the name. Until then it is ``NAME.incomplete``; what an interrupted call left there is removed.

    Raises:
        ValueError: there is something by that name already.
    """
    folder = Path(folder).resolve()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists; name a new folder (--output_dir).")
    unfinished = folder.with_name(f"{folder.name}.incomplete")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    yield unfinished
    os.replace(unfinished, folder)
