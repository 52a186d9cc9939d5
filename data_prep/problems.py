"""problems.csv: what is wrong with rows of a data set, in one form for every script that finds or heeds it."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path


@dataclass(frozen=True)
class Problem:
    """What is wrong with one image, or with one row of a table.

    Args:
        split: of the row; empty where there are no splits.
        row: its number in the split or table, from 0.
        image: the file, as the table writes it; empty where images are embedded.
        kind: a word or two that problems can be counted by, such as ``broken`` or ``outside of the root``.
        problem: a sentence for people.
    """

    split: str
    row: int
    image: str
    kind: str
    problem: str


def write_problems(path: str | Path, problems: Iterable[Problem]) -> None:
    """Write problems as CSV, whole or not at all."""
    unfinished = Path(f"{path}.incomplete")
    with unfinished.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow([entry.name for entry in fields(Problem)])
        writer.writerows(astuple(problem) for problem in problems)
    os.replace(unfinished, path)


def read_problems(path: str | Path) -> list[Problem]:
    """Read what :func:`write_problems` wrote.

    Raises:
        ValueError: it is not there, or not of this form.
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
