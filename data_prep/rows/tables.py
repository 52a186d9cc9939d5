"""Tables, data sets and trees of folders, as people have them, read as one set of rows of text."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from datasets import Dataset, Image, Value, concatenate_datasets

from common.data.folders import find_images
from common.data.problems import Problem
from common.data.splits import Reading, check_names, open_table, read_cells
from data_prep.parts.columns import IMAGE, ROW, SOURCE, SPLIT

from .row_set import RowSet, text_column


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
        image_columns: those of the columns that hold paths, or in Parquet the images themselves.
        optional: columns to read if they are there.
    """
    reading = replace(reading or Reading(), images=image_columns, told=[*columns, *optional])
    parts = []
    for split, file in files.items():
        dataset, table = open_table(file, reading)
        check_names(columns, dataset.column_names, str(file))
        names = [name for name in (*columns, *optional) if name in dataset.column_names]
        held = any(not isinstance(dataset.features[name], Value) for name in image_columns)
        part = from_dataset(dataset, names, image_columns, held)
        part.frame[SPLIT], part.frame[ROW] = split, table.numbers
        part.problems += [Problem(split, row, "", "malformed", told) for row, told in table.malformed.items()]
        part.notes += table.notes
        parts.append(part)
    return join(parts)


def from_dataset(dataset: Dataset, columns: Sequence[str], image_columns: Sequence[str], held: bool = True) -> RowSet:
    """The rows of a data set that holds its images, or else their paths; without splits."""
    names = [name for name in columns if not (held and name in image_columns)]
    frame = pd.DataFrame({name: text_column(read_cells(dataset, name)) for name in names}, range(len(dataset)))
    source = dataset.select_columns(list(image_columns)) if held else None
    for name in image_columns if held else ():
        if isinstance(dataset.features[name], Image):
            source = source.cast_column(name, Image(decode=False))
    return RowSet(frame.assign(**{SPLIT: "", ROW: range(len(frame))}), source=source)


def join(parts: Sequence[RowSet]) -> RowSet:
    """The rows of several tables, one after the other."""
    sources = [part.source for part in parts if part.source is not None]
    if sources and len(sources) < len(parts):
        raise ValueError("Some tables hold images and others paths; prepare them apart.")
    frame = pd.concat([part.frame for part in parts], ignore_index=True)
    if sources:
        frame[SOURCE] = range(len(frame))
    return RowSet(
        frame,
        [problem for part in parts for problem in part.problems],
        [note for part in parts for note in part.notes],
        concatenate_datasets(sources) if sources else None,
    )


def read_image_folder(root: str | Path, levels: Sequence[str]) -> RowSet:
    """The images of a tree of folders (:mod:`common.data.folders`), a folder a class; with several levels, that deep.

    Raises:
        ValueError: no image is in a folder of that depth.
    """
    if not os.path.isdir(root):
        raise ValueError(f"There is no folder {root} (--image_folder).")
    found = find_images(root)
    splits = found.splits()
    depth = len(levels) + bool(splits)
    problems, rows = [], []
    for number, name in enumerate(found.names):
        parts = name.split(os.sep)[:-1]
        if len(parts) == depth:
            rows.append([name, *parts[bool(splits) :], splits[parts[0]] if splits else "", number])
        else:
            told = f"it lies {len(parts)} folders deep, not {depth}"
            problems.append(Problem("", number, name, "no label", told))
    if not rows:
        raise ValueError(f"No image lies {depth} folders deep in {root} ({', '.join(levels)}).")
    frame = pd.DataFrame(rows, columns=[IMAGE, *levels, SPLIT, ROW], dtype=object).astype({ROW: "int64"})
    return RowSet(frame, problems, found.notes)
