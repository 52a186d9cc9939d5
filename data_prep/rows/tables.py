"""Tables, data sets and trees of folders, as people have them, read as one set of rows of text."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from datasets import DatasetDict, Value
from PIL import Image

from common.data.problems import Problem
from common.data.splits import Reading, check_names, open_table, read_cells
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT

from .row_set import SPLIT_NAMES, RowSet, text_column


def read_tables(
    files: Mapping[str, str | Path],
    columns: Sequence[str],
    image_columns: Sequence[str],
    optional: Sequence[str] = (),
    reading: Reading | None = None,
) -> RowSet:
    """Read tables of any kind (:mod:`common.labels.table_files`); ValueError for what cannot be read at all.

    Args:
        files: split -> file; the split is empty for a table of all.
        columns: what to read.
        image_columns: those of them that hold paths, or in Parquet the images themselves.
        optional: columns to read if they are there.
        reading: how cells are read.
    """
    reading = replace(reading or Reading(), images=image_columns, told=[*columns, *optional])
    parts = []
    for split, file in files.items():
        dataset, table = open_table(file, reading)
        check_names(columns, dataset.column_names, str(file))
        names = [name for name in (*columns, *optional) if name in dataset.column_names]
        held = any(not isinstance(dataset.features[name], Value) for name in image_columns)
        part = from_dataset(DatasetDict({split: dataset}), names, image_columns, held)
        part.frame[SPLIT], part.frame[ROW] = split, table.numbers
        part.problems += [Problem(split, row, "", "malformed", told) for row, told in table.malformed.items()]
        part.notes += table.notes
        parts.append(part)
    return _join(parts)


def from_dataset(
    splits: DatasetDict, columns: Sequence[str], image_columns: Sequence[str], held: bool = True
) -> RowSet:
    """The rows of a data set that holds its images, or else their paths; without a split if there is only one."""
    parts = []
    for split, dataset in splits.items():
        check_names(columns, dataset.column_names, f"split {split!r}")
        if held and (dataset._indices is not None or not dataset.cache_files):
            raise ValueError(f"Split {split!r} is a selection of rows; save it to a folder first.")
        cells = {
            name: text_column(read_cells(dataset, name)) for name in columns if not (held and name in image_columns)
        }
        rows = pd.Series(range(len(dataset)), dtype="int64")
        frame = pd.DataFrame({**cells, SPLIT: split if len(splits) > 1 else "", ROW: rows})
        if held:
            frame[SOURCE] = range(len(dataset))
        parts.append(RowSet(frame, sources=tuple(entry["filename"] for entry in dataset.cache_files) if held else ()))
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
        [note for part in parts for note in part.notes],
        tuple(file for part in parts for file in part.sources),
    )


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
