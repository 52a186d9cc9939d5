"""Predictions of whole images, one line each: written as tables, and counted."""

from __future__ import annotations

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..files import atomic_write


@contextmanager
def line_writer(path: Path) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that adds a line to a CSV or JSON lines file, by the file's suffix."""
    with atomic_write(path) as file:
        table: csv.DictWriter | None = None

        def add(line: Mapping[str, Any]) -> None:
            nonlocal table
            if path.suffix == ".jsonl":
                file.write(json.dumps(line, ensure_ascii=False) + "\n")
                return
            cells = flat_line(line)
            if table is None:
                table = csv.DictWriter(file, list(cells))
                table.writeheader()
            table.writerow(cells)

        yield add


def flat_line(line: Mapping[str, Any]) -> dict[str, Any]:
    """A line as cells of a table: LEVEL and LEVEL_probability, top1 and top1_probability, answer, answer_level, ..."""
    cells = {name: value for name, value in line.items() if name not in ("levels", "top", "answer")}
    answer = line.get("answer")
    if answer is not None:
        cells |= {"answer" if name == "text" else f"answer_{name}": value for name, value in answer.items()}
    for level, entry in line["levels"].items():
        column = f"{level} (level)" if level in cells else level  # a level may be called group
        cells |= {column if name == "name" else f"{column}_{name}": value for name, value in entry.items()}
    for place, entry in enumerate(line["top"], 1):
        cells |= {f"top{place}": entry["leaf"], f"top{place}_probability": entry["probability"]}
    return cells


class AnswerCounts:
    """How many images or groups were answered at which level, and how many of those with a known label are right."""

    def __init__(self, levels: Sequence[str]) -> None:
        self.levels = levels
        self.num = 0
        self.has_answers = False
        self.paths: Counter[tuple[str, str]] = Counter()
        self.answers: Counter[tuple[str, str]] = Counter()

    def add(self, line: Mapping[str, Any]) -> None:
        """Count one image or group."""
        self.num += 1
        for level, entry in line["levels"].items():
            _count(self.paths, level, entry)
        answer = line.get("answer")
        if answer is not None:
            self.has_answers = True
            if answer["level"] is not None:
                _count(self.answers, answer["level"], answer)

    def compute(self) -> dict[str, Any]:
        """Shares, per level and over all; ``None`` where there is nothing to divide by.

        ``coverage`` is the share answered at exactly this level, ``precision`` the share of right ones among answers
        with a known label, ``accuracy`` that of the best path at the level, answered or not.
        """
        result: dict[str, Any] = {"num": self.num}
        if any(self.paths[level, "judged"] for level in self.levels):
            result["accuracy"] = {
                level: _share(self.paths[level, "right"], self.paths[level, "judged"]) for level in self.levels
            }
        if self.has_answers:
            result["answers"] = {level: self._shares([level]) for level in self.levels}
            result["answers"]["all"] = self._shares(self.levels)
        return result

    def _shares(self, levels: Sequence[str]) -> dict[str, Any]:
        total, judged, right = (
            sum(self.answers[level, what] for level in levels) for what in ("total", "judged", "right")
        )
        coverage, precision = _share(total, self.num), _share(right, judged)
        return {"num_answered": total, "coverage": coverage, "num_judged": judged, "precision": precision}


def _count(counts: Counter[tuple[str, str]], level: str, entry: Mapping[str, Any]) -> None:
    known = entry.get("right") is not None
    counts.update({(level, "total"): 1, (level, "judged"): known, (level, "right"): known and entry["right"]})


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def counts_table(name: str, counts: Mapping[str, Any]) -> list[str]:
    """What :meth:`AnswerCounts.compute` returns as lines of text; none if there is no share in it."""
    accuracy, answers = counts.get("accuracy", {}), counts.get("answers", {})
    if not accuracy and not answers:
        return []
    rows = [[name, "accuracy", *(["answered", "coverage", "judged", "precision"] if answers else [])]]
    for level in {**accuracy, **answers}:
        rows.append([level, _shown(accuracy.get(level)), *map(_shown, answers.get(level, {}).values())])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _shown(value: float | int | None) -> str:
    if isinstance(value, float):
        return f"{100 * value:.2f}%"
    return "-" if value is None else f"{value:,}"
