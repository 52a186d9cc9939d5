"""How a folder with a data set describes itself: prepared.json of ``data_prep``, and selections of rows.

A *selection* is a choice of rows of another data set (folds and the like), without copies of the images. Its folder
holds ``selection.json``, which says where the rows are, and ``rows.csv``, which lists them: a line for each, in the
order of the new splits, with ``split`` (the new one), ``source_split`` and ``row``. A source on this machine is named
relative to the folder, so that both can be moved together.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from datasets import Dataset, DatasetDict, concatenate_datasets

PREPARED_FILE = "prepared.json"
SELECTION_FILE = "selection.json"
ROWS_FILE = "rows.csv"
FORMAT = 1
"""Of both JSON files"""


def read_prepared(folder: str | Path) -> dict[str, Any] | None:
    """The content of a folder's prepared.json, ``None`` if it has none; ValueError if damaged or of another format."""
    return _read(Path(folder) / PREPARED_FILE)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} is not of format {FORMAT}; write the folder again.")
    return content


def read_image_root(folder: str | Path) -> Path | None:
    """The folder that image paths are relative to, as a selection or a prepared folder says, or ``None``."""
    source = read_source(folder)
    if source is not None:
        return Path(source.image_root)
    root = (read_prepared(folder) or {}).get("image_root")
    return Path(root) if isinstance(root, str) else None


def find_image_root(folder: str | Path) -> Path:
    """The folder that image paths are relative to, described or the data set's own; ValueError if it is not there."""
    root = read_image_root(folder)
    if root is not None and not root.is_dir():
        raise ValueError(
            f"The images of {folder} were in {root}, which does not exist; say where they are now with --image_root."
        )
    return root or Path(folder)


# ---- selections


@dataclass
class SelectionSource:
    """The data set whose rows a selection lists: what :func:`common.data.splits.load_splits` takes, and more."""

    dataset_name: str | None
    dataset_config_name: str | None
    files: dict[str, str]
    image_root: str  # folder that image paths lie in
    num_rows: dict[str, int]  # of each split, to notice if the source has changed


def write_selection(folder: Path, source: SelectionSource, rows: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """Write a selection into a folder: of each new split, (split of the source, row)."""
    with (folder / ROWS_FILE).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "source_split", "row"])
        writer.writerows((split, *place) for split, places in rows.items() for place in places)

    def relative(path: str) -> str:
        return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))

    name = source.dataset_name
    content = asdict(source) | {
        "format": FORMAT,
        "dataset_name": relative(name) if name and Path(name).exists() else name,
        "files": {split: relative(file) for split, file in source.files.items()},
        "image_root": relative(source.image_root),
    }
    (folder / SELECTION_FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_source(folder: str | Path) -> SelectionSource | None:
    """The source of a selection, with paths from the current folder; ``None`` if the folder is no selection.

    ValueError if it is damaged, of another format, or its source is missing.
    """
    path, folder = Path(folder) / SELECTION_FILE, Path(folder)
    content = _read(path)
    if content is None:
        return None
    del content["format"]
    try:
        source = SelectionSource(**content)
        source.files = {split: os.path.normpath(folder / file) for split, file in source.files.items()}
        source.image_root = os.path.normpath(folder / source.image_root)
        name = source.dataset_name
        if name and (folder / name).exists():
            source.dataset_name = os.path.normpath(folder / name)
        elif name and name.startswith("."):
            raise ValueError(f"the data set {name} does not exist, as seen from {folder}")
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"Selection {path}: {error}") from error
    return source


def select_rows(folder: str | Path, source: SelectionSource, splits: DatasetDict) -> DatasetDict:
    """The splits of a selection, from those of its source.

    Raises:
        ValueError: the source has other splits or numbers of rows than when the rows were chosen.
    """
    found = {split: len(dataset) for split, dataset in splits.items()}
    if found != source.num_rows:
        raise ValueError(
            f"Selection {folder}: its source now has {found} rows, not {source.num_rows}; make the selection again."
        )
    path = Path(folder) / ROWS_FILE
    chosen: dict[str, list[Dataset]] = {}
    try:
        lines = pd.read_csv(path, dtype={"split": str, "source_split": str, "row": int}, keep_default_na=False)
        for (split, name), part in lines.groupby(["split", "source_split"], sort=False):
            if not part["row"].between(0, found[name] - 1).all():
                raise ValueError(f"it names rows that the split {name} does not have")
            chosen.setdefault(split, []).append(splits[name].select(part["row"]))
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"Selection {path}: {error}") from error
    return DatasetDict({split: concatenate_datasets(parts) for split, parts in chosen.items()})
