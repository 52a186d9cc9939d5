"""Tables and trees of folders, as people have them -> one frame of text, and a list of what is wrong with it."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_dataset
from PIL import Image

from common.data.problems import Problem
from common.data.splits import FILE_FORMATS
from data_prep.shards import SOURCE

SPLIT, ROW = "__split__", "__row__"
"""Columns of a frame: the split (empty if the table does not say), and the row's number in its table, from 0"""

SPLIT_FOLDERS = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
"""Names of folders and of cells that stand for splits, as ``datasets`` knows them"""


@dataclass
class Rows:
    """The rows of one or more tables.

    Args:
        frame: a column of text for every column asked for (``None`` where a cell is blank), and SPLIT and ROW.
        problems: rows that could not be read, and are not in the frame.
        sources: Arrow files that hold the images, where the table does; its column SOURCE then has their row there.
        notes: what else people should know, one sentence an entry.
    """

    frame: pd.DataFrame
    problems: list[Problem] = field(default_factory=list)
    sources: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def read_tables(
    files: Mapping[str, str | Path], columns: Sequence[str], image_columns: Sequence[str], optional: Sequence[str] = ()
) -> Rows:
    """Read CSV, TSV, JSON lines or Parquet files.

    Args:
        files: split -> file; the split is empty for a table of all.
        columns: what to read.
        image_columns: those of them that hold paths, or in Parquet the images themselves.
        optional: columns that are read where they are there.

    Raises:
        ValueError: a file or a column is missing, or a file cannot be read at all.
    """
    return join([_read_table(Path(file), split, columns, image_columns, optional) for split, file in files.items()])


def join(parts: Sequence[Rows]) -> Rows:
    """The rows of several tables, one after the other."""
    if len({bool(part.sources) for part in parts}) > 1:
        raise ValueError("Some tables hold images and others paths; prepare them apart.")
    offset = 0
    for part in parts:
        if part.sources:
            part.frame[SOURCE] += offset
            offset += len(part.frame)
    return Rows(
        pd.concat([part.frame for part in parts], ignore_index=True),
        [problem for part in parts for problem in part.problems],
        tuple(file for part in parts for file in part.sources),
        [note for part in parts for note in part.notes],
    )


def from_dataset(splits: DatasetDict, columns: Sequence[str], image_columns: Sequence[str]) -> Rows:
    """The rows of a data set that holds its images; all of them without a split if there is only one."""
    parts = []
    for split, dataset in splits.items():
        check_names(columns, dataset.column_names, f"split {split!r}")
        if dataset._indices is not None or not dataset.cache_files:
            raise ValueError(f"Split {split!r} is a selection of rows; save it to a folder first.")
        cells = dataset.select_columns([name for name in columns if name not in image_columns]).with_format("arrow")[:]
        frame = _frame({name: cells[name].to_pylist() for name in cells.column_names}, range(len(dataset)), split)
        if len(splits) == 1:
            frame[SPLIT] = ""
        frame[SOURCE] = range(len(dataset))
        parts.append(Rows(frame, sources=tuple(entry["filename"] for entry in dataset.cache_files)))
    return join(parts)


def check_names(wanted: Iterable[str], present: Sequence[str], where: str) -> None:
    """ValueError, with the nearest names, if columns are missing or stand twice."""
    for name in wanted:
        if name not in present:
            near = get_close_matches(name, present, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no column {name!r}; it has: {', '.join(map(str, present))}.{hint}")
        if Counter(present)[name] > 1:
            raise ValueError(f"{where} has the column {name!r} twice.")


def text(value: Any) -> str | None:
    """A cell as text: ``None`` for blank and NaN, whole numbers without a decimal point."""
    if value is None or value != value:  # NaN is the one value that differs from itself
        return None
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    stripped = str(value).strip()
    return None if stripped in ("", "nan", "NaN") else stripped


def column_of(cells: Iterable[str | None]) -> pd.Series:
    """Cells as a column that keeps ``None`` as it is; pandas by itself makes NaN of it."""
    return pd.Series(list(cells), dtype=object)


# ---- tables


def _read_table(
    path: Path, split: str, columns: Sequence[str], image_columns: Sequence[str], optional: Sequence[str]
) -> Rows:
    kind = FILE_FORMATS.get(path.suffix.lower())
    if kind is None or not path.is_file():
        what = "does not exist." if kind else f"is none of {', '.join(FILE_FORMATS)}, by its ending."
        raise ValueError(f"The table {path} {what}")
    try:
        if kind == "parquet":
            return _read_parquet(path, split, columns, image_columns, optional)
        read = _read_delimited if kind == "csv" else _read_json
        return read(path, split, columns, optional)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (csv.Error, OSError, pa.ArrowException) as error:
        raise ValueError(f"Cannot read the table {path}: {error}") from error


def _read_delimited(path: Path, split: str, columns: Sequence[str], optional: Sequence[str]) -> Rows:
    problems, numbers = [], []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = [name.strip() for name in next(reader, [])]
        check_names(columns, header, str(path))
        wanted = {name: header.index(name) for name in (*columns, *optional) if name in header}
        cells: dict[str, list[str]] = {name: [] for name in wanted}
        known: dict[str, str] = {}  # every cell is a string of its own, though most repeat an earlier one
        for number, row in enumerate(row for row in reader if row):  # blank lines do not count
            if len(row) != len(header):
                told = f"it has {len(row)} fields, the first line {len(header)} (it ends in line {reader.line_num})"
                problems.append(Problem(split, number, "", "malformed", told))
                continue
            numbers.append(number)
            for name, position in wanted.items():
                cells[name].append(known.setdefault(row[position], row[position]))
    return Rows(_frame(cells, numbers, split), problems)


def _read_json(path: Path, split: str, columns: Sequence[str], optional: Sequence[str]) -> Rows:
    problems, numbers, rows = [], [], []
    for number, entry in enumerate(_json_entries(path)):
        if isinstance(entry, dict):
            numbers.append(number)
            rows.append(entry)
        else:
            problems.append(Problem(split, number, "", "malformed", "it is not a JSON object"))
    present = list(dict.fromkeys(name for row in rows for name in row))
    check_names(columns, present, str(path))
    wanted = [name for name in (*columns, *optional) if name in present]
    return Rows(_frame({name: [row.get(name) for row in rows] for name in wanted}, numbers, split), problems)


def _json_entries(path: Path) -> Iterator[Any]:
    with path.open(encoding="utf-8-sig") as file:
        lines = (line for line in file if line.strip())
        first = next(lines, "")
        if first.lstrip().startswith("["):
            try:
                yield from json.loads(path.read_text(encoding="utf-8-sig"))
            except ValueError as error:
                raise ValueError(f"Cannot read the table {path}: {error}") from error
            return
        for line in (first, *lines) if first else ():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                yield None


def _read_parquet(
    path: Path, split: str, columns: Sequence[str], image_columns: Sequence[str], optional: Sequence[str]
) -> Rows:
    schema = pq.read_schema(path)
    check_names(columns, schema.names, str(path))
    kinds = {schema.field(name).type for name in image_columns}
    if any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in kinds):
        # datasets copies the file to memory-mapped Arrow once, so that workers can open it anywhere.
        wanted = [name for name in (*columns, *optional) if name in schema.names]
        dataset = load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
        rows = from_dataset(DatasetDict(rows=dataset), wanted, image_columns)
        rows.frame[SPLIT] = split
        return rows
    table = pq.read_table(path, columns=[name for name in (*columns, *optional) if name in schema.names])
    return Rows(_frame({name: table[name].to_pylist() for name in table.column_names}, range(len(table)), split))


def _frame(cells: Mapping[str, Sequence[Any]], numbers: Sequence[int], split: str) -> pd.DataFrame:
    known: dict[Any, str | None] = {}
    columns = {}
    for name, values in cells.items():
        if any(isinstance(value, list | dict) for value in values[:100]):
            raise ValueError(f"Column {name!r} holds lists or objects, not one value a row.")
        columns[name] = column_of(
            known[value] if value in known else known.setdefault(value, text(value)) for value in values
        )
        known.clear()
    return pd.DataFrame({**columns, SPLIT: split, ROW: pd.Series(list(numbers), dtype="int64")})


# ---- folders


def read_image_folder(root: str | Path, levels: Sequence[str], image_column: str) -> Rows:
    """The images of a tree of folders, one folder a class; with several levels, that deep.

    A first tier of folders that are all named as splits (train, val, ...) says the splits.

    Args:
        root: the folder.
        levels: what the tiers of folders are called, coarse to fine.
        image_column: gets the paths, relative to ``root``.

    Raises:
        ValueError: no image is in a folder of that depth.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"There is no folder {root} (--image_folder).")
    tiers = sorted(entry.name for entry in root.iterdir() if entry.is_dir())
    by_split = bool(tiers) and all(name.lower() in SPLIT_FOLDERS for name in tiers)
    depth = len(levels) + by_split
    endings = Image.registered_extensions()
    problems, rows, others = [], [], 0
    for name in _files(root):
        if os.path.splitext(name)[1].lower() not in endings:
            others += 1
            continue
        parts = name.split(os.sep)[:-1]
        if len(parts) != depth:
            told = f"it lies {len(parts)} folders deep, not {depth}"
            problems.append(Problem("", len(rows) + len(problems), name, "no label", told))
            continue
        split = SPLIT_FOLDERS[parts[0].lower()] if by_split else ""
        rows.append([name, *parts[by_split:], split, len(rows) + len(problems)])
    if not rows:
        raise ValueError(f"No image lies {depth} folders deep in {root} ({', '.join(levels)}).")
    frame = pd.DataFrame(rows, columns=[image_column, *levels, SPLIT, ROW], dtype=object).astype({ROW: "int64"})
    notes = [f"{others} files in {root} are no images by their ending, and were passed over."] if others else []
    return Rows(frame, problems, notes=notes)


def _files(root: Path) -> Iterator[str]:
    """Paths of all files, relative to the folder, in a fixed order; links to folders are not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), root)
