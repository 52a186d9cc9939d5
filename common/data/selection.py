"""A data set that is a choice of rows of another one: folds and the like, without copies of the images.

Such a folder holds ``selection.json``, which says where the rows are, and ``rows.csv``, which names them: a line for
each, in the order of the new splits, with ``split`` (the new one), ``source_split`` and ``row``. A source that lies on
this machine is named relative to the folder, so that both can be moved together.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, concatenate_datasets

NAME = "selection.json"
ROWS = "rows.csv"
FORMAT = 1


@dataclass
class Source:
    """Where the rows of a selection are.

    Args:
        dataset_name, dataset_config_name, files: what :func:`common.data.splits.load_splits` takes.
        image_root: folder that image paths lie in.
        num_rows: of each split, to notice that the source is another one by now.
    """

    dataset_name: str | None
    dataset_config_name: str | None
    files: dict[str, str]
    image_root: str
    num_rows: dict[str, int]


def write_selection(folder: Path, source: Source, rows: Mapping[str, Sequence[tuple[str, int]]]) -> None:
    """Write a selection.

    Args:
        folder: where, as it will be named in the end; it exists.
        source: with paths from the current folder.
        rows: of each new split, (split of the source, row).
    """
    with (folder / ROWS).open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["split", "source_split", "row"])
        writer.writerows((split, *place) for split, places in rows.items() for place in places)
    name = source.dataset_name
    content = asdict(source) | {
        "format": FORMAT,
        "dataset_name": _relative(name, folder) if name and Path(name).exists() else name,
        "files": {split: _relative(file, folder) for split, file in source.files.items()},
        "image_root": _relative(source.image_root, folder),
    }
    (folder / NAME).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _relative(path: str, folder: Path) -> str:
    return os.path.relpath(os.path.abspath(path), os.path.abspath(folder))


def read_source(folder: str | Path) -> Source | None:
    """Where the rows of a selection are, with paths from the current folder; ``None`` if the folder is none.

    Raises:
        ValueError: it is damaged, or of another format.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content.pop("format") != FORMAT:
            raise ValueError(f"its format is not {FORMAT}")
        source = Source(**content)
        name = source.dataset_name
        if name and name.startswith(".") and not (Path(folder) / name).exists():
            raise ValueError(f"the data set {name} is not there (seen from {folder})")
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(f"Selection {path}: {error}") from error
    here = {split: os.path.normpath(Path(folder) / file) for split, file in source.files.items()}
    if name and (Path(folder) / name).exists():
        source.dataset_name = os.path.normpath(Path(folder) / name)
    source.files, source.image_root = here, os.path.normpath(Path(folder) / source.image_root)
    return source


def select_rows(folder: str | Path, source: Source, splits: DatasetDict) -> DatasetDict:
    """The new splits.

    Args:
        folder: of the selection.
        source: what :func:`read_source` gave.
        splits: of the source.

    Raises:
        ValueError: the source has other splits or numbers of rows than when the rows were chosen.
    """
    found = {split: len(dataset) for split, dataset in splits.items()}
    if found != source.num_rows:
        raise ValueError(
            f"Selection {folder}: its source has {found} rows by now, not {source.num_rows}; choose again."
        )
    chosen: dict[str, dict[str, list[int]]] = {}
    path = Path(folder) / ROWS
    try:
        with path.open(encoding="utf-8", newline="") as file:
            for line in csv.DictReader(file):
                row = int(line["row"])
                if not 0 <= row < found[line["source_split"]]:
                    raise ValueError(f"there is no row {row}")
                chosen.setdefault(line["split"], {}).setdefault(line["source_split"], []).append(row)
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ValueError(f"Selection {path}: {error}") from error
    return DatasetDict({split: _joined(splits, parts) for split, parts in chosen.items()})


def _joined(splits: Mapping[str, Dataset], parts: Mapping[str, list[int]]) -> Dataset:
    selected = [splits[split].select(rows) for split, rows in parts.items()]
    return concatenate_datasets(selected) if len(selected) > 1 else selected[0]


def source_root(name: Any) -> Path | None:
    """The folder that a selection's image paths lie in; ``None`` if ``name`` is no folder with a selection."""
    source = read_source(name) if name else None
    return Path(source.image_root) if source else None
