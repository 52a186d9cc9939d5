"""problems.csv: what is wrong with rows of a data set, in one format for all scripts that write or read it."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Value

from ..files import atomic_write

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Problem:
    """What is wrong with one image, or with one row of a table.

    Args:
        split: of the row; empty where there are no splits.
        row: its number in the split or table, from 0.
        image: the file, as the table writes it; empty where images are embedded.
        kind: a word or two to count problems by, such as ``broken`` or ``outside of the root``.
        problem: a sentence for people.
    """

    split: str
    row: int
    image: str
    kind: str
    problem: str


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as CSV."""
    with atomic_write(path) as file:
        writer = csv.writer(file)
        writer.writerow([entry.name for entry in fields(Problem)])
        writer.writerows(astuple(problem) for problem in problems)


def read_problems(path: str | Path) -> list[Problem]:
    """Read what :func:`write_problems` wrote.

    Raises:
        ValueError: it does not exist, or lacks columns.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = csv.DictReader(file)
            names = {entry.name for entry in fields(Problem)}
            if names - set(rows.fieldnames or ()):
                raise ValueError(f"{path} lacks the columns {', '.join(sorted(names - set(rows.fieldnames or ())))}.")
            return [Problem(row["split"], int(row["row"]), row["image"], row["kind"], row["problem"]) for row in rows]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"Cannot read the problems file {path}: {error}") from error


def kept_rows(splits: DatasetDict, files: Sequence[str | Path], image_column: str) -> dict[str, np.ndarray]:
    """Row numbers of each split, int64 ascending, except the rows that problems files list.

    Problems of other splits are ignored.

    Raises:
        ValueError: a row does not exist, or holds another image than the file says: it was made for other data.
    """
    listed: dict[str, set[int]] = {split: set() for split in splits}
    for path in files:
        for problem in read_problems(path):
            if problem.split in splits:
                listed[problem.split].add(problem.row)
                _check_same(splits[problem.split], problem, path, image_column)
    return {split: np.setdiff1d(np.arange(len(splits[split])), list(rows)) for split, rows in listed.items()}


def leave_out(splits: DatasetDict, files: Sequence[str | Path], image_column: str) -> DatasetDict:
    """The splits without the rows that problems files list (see :func:`kept_rows`); the others are renumbered."""
    kept = kept_rows(splits, files, image_column) if files else {}
    left = dict(splits)
    for split, rows in kept.items():
        missing = len(splits[split]) - len(rows)
        if missing:
            logger.warning("%s: %d of %d rows are left out.", split, missing, len(splits[split]))
            left[split] = splits[split].select(rows)
    return DatasetDict(left)


def image_names(dataset: Dataset, column: str) -> list[str]:
    """Each row's image file as the data set writes it; empty where images are embedded without a name."""
    paths = isinstance(dataset.features[column], Value)
    table = dataset.select_columns([column]).with_format("arrow")
    names: list[str] = []
    for start in range(0, len(table), 1000):  # a selection of rows would be copied, images included
        cells = table[start : start + 1000].column(column)
        names += [name or "" for name in (cells if paths else pc.struct_field(cells, "path")).to_pylist()]
    return names


def _check_same(dataset: Dataset, problem: Problem, path: str | Path, image_column: str) -> None:
    where = f"{path} lists row {problem.row} of the {problem.split} split"
    if not 0 <= problem.row < len(dataset):
        raise ValueError(f"{where}, which has {len(dataset)} rows: it was made for other data.")
    if problem.image and image_column in dataset.column_names:
        found = image_names(dataset.select([problem.row]), image_column)[0]
        if found and found != problem.image:
            raise ValueError(f"{where} as {problem.image}, but there it is {found}: it was made for other data.")
