"""problems.csv: what is wrong with rows of a data set, in one format for all scripts that write or read it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Value

from ..system.files import atomic_write

logger = logging.getLogger(__name__)


class Problem(NamedTuple):
    """What is wrong with one image, or with one row of a table."""

    split: str  # of the row; empty where there are no splits
    row: int  # its number in the split or table, from 0
    image: str  # the file, as the table writes it; empty where images are embedded
    kind: str  # a word or two to count problems by, such as "broken" or "outside of the root"
    problem: str  # a sentence for people


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as CSV."""
    with atomic_write(path) as file:
        csv.writer(file).writerows([Problem._fields, *problems])


def read_problems(path: str | Path) -> list[Problem]:
    """Read what :func:`write_problems` wrote; ValueError if it does not exist, or lacks columns."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            lacking = set(Problem._fields) - set(rows.fieldnames or ())
            if lacking:
                raise ValueError(f"{path} lacks the columns {', '.join(sorted(lacking))}.")
            return [Problem(*map(row.get, Problem._fields))._replace(row=int(row["row"])) for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the problems file {path}: {error}") from error


def leave_out(
    splits: DatasetDict, files: Sequence[str | Path], image_column: str
) -> tuple[DatasetDict, dict[str, np.ndarray]]:
    """The splits without the rows that problems files list, and the numbers, int64, that the other rows had.

    Problems of other splits are ignored.

    Raises:
        ValueError: a row does not exist, or holds another image than the file says: it was made for other data.
    """
    listed: dict[str, set[int]] = {split: set() for split in splits}
    for path in files:
        for split, row, image, *_ in read_problems(path):
            if split not in splits:
                continue
            where, dataset = f"{path} lists row {row} of the {split} split", splits[split]
            if not 0 <= row < len(dataset):
                raise ValueError(f"{where}, which has {len(dataset)} rows: it was made for other data.")
            known = image and image_column in dataset.column_names
            found = known and image_names(dataset.select([row]), image_column)[0]
            if found and found != image:
                raise ValueError(f"{where} as {image}, but there it is {found}: it was made for other data.")
            listed[split].add(row)
    left, kept = dict(splits), {}
    for split, rows in listed.items():
        kept[split] = np.setdiff1d(np.arange(len(splits[split])), list(rows))
        if rows:
            logger.warning("%s: %d of %d rows are left out.", split, len(rows), len(splits[split]))
            left[split] = splits[split].select(kept[split])
    return DatasetDict(left), kept


def image_names(dataset: Dataset, column: str) -> list[str]:
    """Each row's image file as the data set writes it; empty where images are embedded without a name."""
    paths = isinstance(dataset.features[column], Value)
    table = dataset.select_columns([column]).with_format("arrow")
    names: list[str] = []
    for start in range(0, len(table), 1000):  # a selection of rows would be copied, images included
        cells = table[start : start + 1000].column(column)
        names += [name or "" for name in (cells if paths else pc.struct_field(cells, "path")).to_pylist()]
    return names
