"""Rows of a table, and why some are left out: paths outside of the root, duplicates, groups in two splits."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from common.data.drawing import draw_splits, number_groups
from common.data.folders import name_splits
from common.data.problems import Problem, read_problems
from data_prep.parts.columns import IMAGE, MASK, ROW, SPLIT, SPLITS


@dataclass
class RowSet:
    """The rows of one or more tables that can be used, and those that cannot.

    Args:
        frame: a column of text for each column of the tables (``None`` where a cell is blank), and SPLIT, ROW and
            perhaps SOURCE, see :mod:`data_prep.parts.columns`. Paths of images are in the column IMAGE.
        problems: rows that were left out.
        notes: what else people should know, one sentence an entry.
        source: the data set that holds the images, where the table does.
    """

    frame: pd.DataFrame
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    source: Dataset | None = None

    def leave_out(self, wrong: Iterable[bool], kind: str, problem: str | Callable[[int], str]) -> None:
        """Take rows out, and note why: a sentence, or a function that makes one for a position in the frame."""
        wrong = np.asarray(wrong, dtype=bool)
        images = self.frame.get(IMAGE)
        for position in np.flatnonzero(wrong).tolist():
            told = problem if isinstance(problem, str) else problem(position)
            split, row = self.frame[SPLIT].iloc[position], int(self.frame[ROW].iloc[position])
            image = None if images is None else images.iloc[position]
            self.problems.append(Problem(split or "", row, image or "", kind, told))
        self.frame = self.frame[~wrong].reset_index(drop=True)


def text_column(cells: Iterable[str | None]) -> pd.Series:
    """Cells as a column of a frame that keeps ``None`` as it is; pandas by itself makes NaN of it."""
    return pd.Series(list(cells), dtype=object)


def exclude_listed(rows: RowSet, files: Sequence[str | Path]) -> None:
    """Leave out what problems files list: images by path, or by split and row where the file names no image."""
    listed = [problem for file in files for problem in read_problems(file)]
    images = {os.path.normpath(problem.image): problem for problem in listed if problem.image}
    numbers = {(problem.split, problem.row): problem for problem in listed if not problem.image}
    keys = list(zip(rows.frame[SPLIT].fillna(""), rows.frame[ROW], strict=True))
    paths = rows.frame.get(IMAGE, text_column([None] * len(keys)))
    found = [
        (images.get(os.path.normpath(path)) if path else None) or numbers.get(key) or numbers.get(("", key[1]))
        for path, key in zip(paths, keys, strict=True)
    ]
    used = {id(problem) for problem in found}
    unused = [problem for problem in (*images.values(), *numbers.values()) if id(problem) not in used]
    rows.leave_out([entry is not None for entry in found], "excluded", lambda at: f"listed as {found[at].kind}")
    if unused:
        rows.notes.append(f"{len(unused)} entries of --exclude_rows match no row, such as {unused[0]}.")


def check_paths(rows: RowSet, columns: Sequence[str], root: str, optional: str | None = None) -> None:
    """Leave out rows whose paths are blank, or leave ``root`` as they are written; make the others relative to it.

    Paths of the ``optional`` column may be blank.

    Symbolic links are followed only when a file is about to be opened: see :func:`data_prep.folder.images.find_file`.
    """
    for column in columns:
        if column != optional:
            hint = " (see --missing_mask)" if column == MASK else ""
            rows.leave_out(rows.frame[column].isna(), "missing", f"the row has no {column}{hint}")
        paths = [path and _relative(path, root) for path in rows.frame[column]]
        rows.frame[column] = text_column(new or old for new, old in zip(paths, rows.frame[column], strict=True))
        told = f"the path of its {column} leads out of the folder {root}"
        wrong = [new is None and old is not None for new, old in zip(paths, rows.frame[column], strict=True)]
        rows.leave_out(wrong, "outside of the root", told)


def _relative(path: str, root: str) -> str | None:
    """A path relative to the root; ``None`` if it leads out of it, or is not a path."""
    if "\0" in path:
        return None
    relative = os.path.relpath(os.path.join(root, path), root)
    return None if relative == os.curdir or relative.split(os.sep)[0] == os.pardir else relative


def read_splits(rows: RowSet, column: str) -> None:
    """Take the splits from a column of names such as train, val, testing; rows with other values are left out.

    ValueError if no row is in training.
    """
    cells = rows.frame[column]
    exact, likely = name_splits(cells.dropna().unique())
    if set(cells.dropna()) == {"0", "1"}:  # as CUB and others write "is it a training image?"
        likely = {"1": "train", "0": "test"}
    rows.notes += [f"{column} {name!r} is read as {split}." for name, split in likely.items()]
    known = exact | likely
    rows.frame[SPLIT] = text_column(known.get(cell, "") for cell in cells)
    rows.leave_out(rows.frame[SPLIT] == "", "no split", lambda at: f"{column} is {cells.iloc[at]!r}")
    if not (rows.frame[SPLIT] == "train").any():
        raise ValueError(f"No row is in training: --split_column {column} must hold values such as train, val, test.")


def drop_duplicates(rows: RowSet, columns: Sequence[str]) -> None:
    """Leave out rows whose image an earlier row of the same split has, and training rows that evaluation has too.

    The problem says in which of the columns with labels the two rows differ.
    """
    if IMAGE not in rows.frame:
        return
    frame = rows.frame
    again = frame.duplicated([SPLIT, IMAGE])
    first = frame[~again].set_index([SPLIT, IMAGE]) if again.any() else None

    def told(at: int) -> str:
        row = frame.iloc[at]
        before = first.loc[(row[SPLIT], row[IMAGE])]
        differ = [name for name in columns if row[name] != before[name] and (row[name] or before[name])]
        what = f", there with another {' and '.join(differ)}" if differ else ""
        return f"row {before[ROW]} has the same image{what}"

    rows.leave_out(again, "listed twice", told)
    leave_shared(rows, IMAGE, "image in two splits")


def leave_shared(rows: RowSet, column: str, kind: str) -> None:
    """Leave out of training what validation or test has too, and out of validation what test has, by a column."""
    for at, split in enumerate(SPLITS[:-1]):
        values = rows.frame[column]
        shared = set(values[rows.frame[SPLIT].isin(SPLITS[at + 1 :])].dropna())
        wrong = (rows.frame[SPLIT] == split) & values.isin(shared)
        rows.leave_out(wrong, kind, lambda at, values=values: f"{column} {values.iloc[at]!r} is also in a later split")


def split_randomly(
    rows: RowSet, group_column: str | None, levels: Sequence[str], shares: tuple[float, float], seed: int
) -> None:
    """Give every row a split by :func:`common.data.drawing.draw_splits`; rows of validation and test stay there.

    Rows with the same value of the group column stay together, by default those with the same image; a blank is a
    group of its own. Validation and test get these shares at most; ValueError unless they add up to less than 1.
    """
    if min(shares) < 0 or sum(shares) >= 1:
        raise ValueError(f"--validation_share {shares[0]} and --test_share {shares[1]} must add up to less than 1.")
    pool = rows.frame[SPLIT].isin(("", "train"))
    frame = rows.frame[pool]
    column = group_column or IMAGE
    groups = number_groups(frame[column].tolist()) if column in frame else np.arange(len(frame))
    paths = pd.MultiIndex.from_frame(frame[list(levels)]) if levels else pd.Index([0] * len(frame))
    path = pd.factorize(paths)[0] if len(frame) else np.empty(0, dtype=int)
    drawn = draw_splits(groups, path, shares, seed)
    rows.frame.loc[pool, SPLIT] = np.array(SPLITS)[drawn].astype(object)
    for at, share in enumerate(shares, start=1):
        if share and not (drawn == at).any():
            rows.notes.append(
                f"No image is in {SPLITS[at]}: there are {len(set(groups))} groups, too few or too large, or "
                f"each is the only one with some class. A larger --{SPLITS[at]}_share or smaller groups help."
            )
