"""Tables, data sets and trees of folders, as people have them, read as one set of rows of text."""

from __future__ import annotations

import csv
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import DatasetDict, load_dataset
from PIL import Image

from common.data.problems import Problem
from common.data.splits import FILE_FORMATS, read_cells
from common.files import retried
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT

from .row_set import SPLIT_NAMES, RowSet, text_column


def read_tables(
    files: Mapping[str, str | Path], columns: Sequence[str], image_columns: Sequence[str], optional: Sequence[str] = ()
) -> RowSet:
    """Read CSV, TSV, JSON lines or Parquet files; ValueError for what is missing or cannot be read at all.

    Args:
        files: split -> file; the split is empty for a table of all.
        columns: what to read.
        image_columns: those of them that hold paths, or in Parquet the images themselves.
        optional: columns to read if they are there.
    """
    return _join([_read_table(Path(file), split, columns, image_columns, optional) for split, file in files.items()])


def from_dataset(splits: DatasetDict, columns: Sequence[str], image_columns: Sequence[str]) -> RowSet:
    """The rows of a data set that holds its images; all of them without a split if there is only one."""
    parts = []
    for split, dataset in splits.items():
        check_names(columns, dataset.column_names, f"split {split!r}")
        if dataset._indices is not None or not dataset.cache_files:
            raise ValueError(f"Split {split!r} is a selection of rows; save it to a folder first.")
        cells = {name: read_cells(dataset, name) for name in columns if name not in image_columns}
        frame = _frame(cells, range(len(dataset)), split if len(splits) > 1 else "")
        frame[SOURCE] = range(len(dataset))
        parts.append(RowSet(frame, sources=tuple(entry["filename"] for entry in dataset.cache_files)))
    return _join(parts)


def _join(parts: Sequence[RowSet]) -> RowSet:
    """The rows of several tables, one after the other."""
    if len({bool(part.sources) for part in parts}) > 1:
        raise ValueError("Some tables hold images and others paths; prepare them apart.")
    offset = 0
    for part in parts:
        if part.sources:
            part.frame[SOURCE] += offset
            offset += len(part.frame)
    return RowSet(
        pd.concat([part.frame for part in parts], ignore_index=True),
        [problem for part in parts for problem in part.problems],
        sources=tuple(file for part in parts for file in part.sources),
    )


def check_names(wanted: Iterable[str], present: Sequence[str], where: str) -> None:
    """ValueError, with the nearest names, if columns are missing or there twice."""
    for name in wanted:
        if name not in present:
            near = get_close_matches(name, present, 1)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{where} has no column {name!r}; it has: {', '.join(map(str, present))}.{hint}")
        if Counter(present)[name] > 1:
            raise ValueError(f"{where} has the column {name!r} twice.")


# ---- tables


@retried
def _read_table(
    path: Path, split: str, columns: Sequence[str], image_columns: Sequence[str], optional: Sequence[str]
) -> RowSet:
    kind = FILE_FORMATS.get(path.suffix.lower())
    if kind is None or not path.is_file():
        what = "does not exist." if kind else f"is none of {', '.join(FILE_FORMATS)}, by its ending."
        raise ValueError(f"The table {path} {what}")
    try:
        if kind == "parquet":
            return _read_parquet(path, split, columns, image_columns, optional)
        read = _read_delimited if kind == "csv" else _read_json
        cells, numbers, malformed = read(path, columns, optional)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not in UTF-8 (byte {error.start}); save it as UTF-8.") from error
    except (csv.Error, OSError, pa.ArrowException) as error:
        raise ValueError(f"Cannot read the table {path}: {error}") from error
    problems = [Problem(split, number, "", "malformed", told) for number, told in malformed.items()]
    return RowSet(_frame(cells, numbers, split), problems)


Cells = dict[str, list[Any]]
"""Column -> a value a row"""


def _read_delimited(
    path: Path, columns: Sequence[str], optional: Sequence[str]
) -> tuple[Cells, list[int], dict[int, str]]:
    """Cells, the numbers of their rows, and what is wrong with other rows."""
    malformed, numbers = {}, []
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.reader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        header = [name.strip() for name in next(reader, [])]
        check_names(columns, header, str(path))
        places = {name: header.index(name) for name in (*columns, *optional) if name in header}
        cells: Cells = {name: [] for name in places}
        known: dict[str, str] = {}  # every cell is a string of its own, though most repeat an earlier one
        for number, row in enumerate(row for row in reader if row):  # blank lines do not count
            if len(row) == len(header):
                numbers.append(number)
                for name, place in places.items():
                    cells[name].append(known.setdefault(row[place], row[place]))
            else:
                what = f"it has {len(row)} fields, the first line {len(header)}"
                malformed[number] = f"{what} (it ends in line {reader.line_num})"
    return cells, numbers, malformed


def _read_json(path: Path, columns: Sequence[str], optional: Sequence[str]) -> tuple[Cells, list[int], dict[int, str]]:
    """As :func:`_read_delimited`."""
    entries = dict(enumerate(_json_entries(path)))
    malformed = {n: "it is not a JSON object" for n, entry in entries.items() if not isinstance(entry, dict)}
    rows = {number: entry for number, entry in entries.items() if number not in malformed}
    present = list(dict.fromkeys(name for row in rows.values() for name in row))
    check_names(columns, present, str(path))
    names = [name for name in (*columns, *optional) if name in present]
    return {name: [row.get(name) for row in rows.values()] for name in names}, list(rows), malformed


def _json_entries(path: Path) -> Iterator[Any]:
    """The entries of a file with one JSON object a line, or one list of them; ``None`` for a line that is no JSON."""
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
) -> RowSet:
    schema = pq.read_schema(path)
    check_names(columns, schema.names, str(path))
    names = [name for name in (*columns, *optional) if name in schema.names]
    kinds = {schema.field(name).type for name in image_columns}
    if any(pa.types.is_struct(kind) or pa.types.is_binary(kind) for kind in kinds):
        # datasets copies the file to memory-mapped Arrow once, so that workers can open it anywhere.
        dataset = load_dataset("parquet", data_files={"rows": str(path)}, split="rows")
        rows = from_dataset(DatasetDict(rows=dataset), names, image_columns)
        rows.frame[SPLIT] = split
        return rows
    table = pq.read_table(path, columns=names)
    return RowSet(_frame({name: table[name].to_pylist() for name in names}, range(len(table)), split))


def _frame(cells: Mapping[str, Sequence[Any]], numbers: Sequence[int], split: str) -> pd.DataFrame:
    columns = {}
    for name, values in cells.items():
        if any(isinstance(value, list | dict) for value in values):
            raise ValueError(f"Column {name!r} holds lists or objects, not one value a row.")
        known = {value: _text(value) for value in dict.fromkeys(values)}
        columns[name] = text_column(known[value] for value in values)
    return pd.DataFrame({**columns, SPLIT: split, ROW: pd.Series(list(numbers), dtype="int64")})


def _text(value: Any) -> str | None:
    """A cell as text: ``None`` for blank and NaN, whole numbers without a decimal point."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    stripped = "" if value is None else str(value).strip()
    return None if stripped in ("", "nan", "NaN") else stripped


# ---- folders


def read_image_folder(root: str | Path, levels: Sequence[str]) -> RowSet:
    """The images of a tree of folders, one folder a class; with several levels, that deep.

    A first tier of folders that are all named as splits (train, val, ...) says the splits.

    Args:
        root: the folder; paths are relative to it.
        levels: what the tiers of folders are called, coarse to fine.

    Raises:
        ValueError: no image is in a folder of that depth.
    """
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"There is no folder {root} (--image_folder).")
    tiers = [entry.name for entry in root.iterdir() if entry.is_dir()]
    by_split = bool(tiers) and all(name.lower() in SPLIT_NAMES for name in tiers)
    depth = len(levels) + by_split
    endings = Image.registered_extensions()
    problems, rows, others = [], [], 0
    for name in _files(root):
        if os.path.splitext(name)[1].lower() not in endings:
            others += 1
            continue
        parts, number = name.split(os.sep)[:-1], len(rows) + len(problems)
        if len(parts) == depth:
            split = SPLIT_NAMES[parts[0].lower()] if by_split else ""
            rows.append([name, *parts[by_split:], split, number])
        else:
            told = f"it lies {len(parts)} folders deep, not {depth}"
            problems.append(Problem("", number, name, "no label", told))
    if not rows:
        raise ValueError(f"No image lies {depth} folders deep in {root} ({', '.join(levels)}).")
    frame = pd.DataFrame(rows, columns=[IMAGE, *levels, SPLIT, ROW], dtype=object).astype({ROW: "int64"})
    notes = [f"{others} files in {root} are not images by their file extension and were skipped."] if others else []
    return RowSet(frame, problems, notes)


def _files(root: Path) -> Iterator[str]:
    """Paths of all files, relative to the folder, in a fixed order; links to folders are not followed."""
    for folder, folders, files in os.walk(root):
        folders.sort()
        for name in sorted(files):
            yield os.path.relpath(os.path.join(folder, name), root)
